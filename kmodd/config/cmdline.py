"""The kernel command line: a text in, `CommandLine` out.

Three readers look at this one line, and each reads it in its own way; so does this file:
kmod (`module.param=value`, `modprobe.blacklist=`), the kernel (`module_blacklist=`) and systemd (`modules_load=`).
"""

from __future__ import annotations

from kmodd.config.modprobe_d import DROP_IN, Blacklist, Config, Extensions, Options, bad_bracket
from kmodd.dataclass import dataclass
from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.names import ModuleName, module_name, underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/proc/cmdline"
_READ_BY_KMOD = 4095
"""Bytes: kmod_config_parse_kcmdline has a buffer of 4,096 with a NUL."""

_SPACES = "\t\n\v\f\r "


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What the command line says about modules."""

    options: tuple[Options, ...] = ()
    blacklist: tuple[Blacklist, ...] = ()
    """`modprobe.blacklist=`, with its dashes as written: in kmod such a name never matches."""
    module_blacklist: tuple[str, ...] = ()
    """What the kernel itself refuses, compared byte by byte with the module's name; of several, the last counts."""
    modules_load: tuple[str, ...] = ()
    """To be loaded at boot, before the files of modules-load.d."""
    kmodd_off: bool = False
    """`kmodd=off`: the service does not start."""
    problems: tuple[Problem, ...] = ()
    complaints: tuple[str, ...] = ()
    """What Debian 12's kmod writes to standard error."""

    def config(self, extensions: Extensions = DROP_IN) -> Config:
        """The part that belongs behind all files of modprobe.d; blacklisted names get `_` if `extensions` says so."""
        blacklist = self.blacklist
        if extensions.cmdline_blacklist_dashes:
            blacklist = tuple(Blacklist(module_name(entry.module), entry.at) for entry in blacklist)
        return Config(
            options=self.options,
            blacklist=blacklist,
            problems=self.problems,
            complaints=self.complaints,
            extensions=extensions,
        )


EMPTY = CommandLine()


def parse(text: str, initrd: bool = False) -> CommandLine:
    """Read the text of /proc/cmdline (`surrogateescape`, no newline translation). Never raises.

    In an initrd `rd.modules_load=` counts too.
    """
    at = Where(PATH, 1)
    options: list[Options] = []
    blacklist: list[Blacklist] = []
    problems: list[Problem] = []
    complaints: list[str] = []
    seen_by_kmod = text.encode("utf-8", "surrogateescape")[:_READ_BY_KMOD].partition(b"\0")[0]
    for column, module, param in _options(seen_by_kmod.decode("utf-8", "surrogateescape")):
        if module == "modprobe" and param.startswith("blacklist="):
            names = param.removeprefix("blacklist=").split(",")
            blacklist += [Blacklist(ModuleName(name), at) for name in names]
            continue
        try:
            options.append(Options(underscores(module), param.replace("\t", " "), at))
        except UnmatchedBracket:
            column += bad_bracket(module)
            problems.append(Problem(at, column, text.rstrip("\n"), "expected a module's name with matching brackets"))
            complaints.append(_complaint(module))
    words = tuple(_words(text))
    return CommandLine(
        tuple(options),
        tuple(blacklist),
        _module_blacklist(words),
        _modules_load(words, initrd),
        ("kmodd", "off") in words,
        tuple(problems),
        tuple(complaints),
    )


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    """Where each token begins, and it.

    White space ends a token, unless it stands between quotes; one may open anywhere, and left open runs to the end.
    """
    start, is_quoted = -1, False
    for at, char in enumerate(text):
        if char == '"':
            is_quoted = not is_quoted
        if start < 0 and char not in _SPACES:
            start = at
        elif start >= 0 and char in _SPACES and not is_quoted:
            yield start, text[start:at]
            start = -1
    if start >= 0:
        yield start, text[start:]


# ── as kmod reads it ─────────────────────────────────────────────────────────────────────────────────────────────────


def _options(text: str) -> Iterator[tuple[int, str, str]]:
    """Column, module and `param` or `param=value` of every token that is an option (kmod_config_parse_kcmdline).

    Quotes in a value stay. A token that has a quote left open is lost. A token after `--` counts like any other.
    """
    for at, token in _tokens(text):
        if token.count('"') % 2:
            return
        quoted = token.startswith('"')  # what a boot loader makes of `module.param="a b"`
        module, dot, rest = token[quoted:].partition(".")
        param, equals, value = rest.partition("=")
        # Neither the module nor the parameter has a quote, a second dot or (before its dot) a `=`.
        strange = set('".=' + (_SPACES if quoted else ""))
        if not dot or not strange.isdisjoint(module + param) or (quoted and not equals):
            continue
        yield at + 1 + quoted, module, f'{param}{equals}"{value}' if quoted else rest


def _complaint(module: str) -> str:
    """What kmod writes about a name that it does not take; it has turned the dashes up to where it stumbles."""
    end = bad_bracket(module)
    return (
        "libkmod: ERROR ../libkmod/libkmod-config.c:489 kcmdline_parse_result: "
        "Ignoring bad option on kernel command line while parsing module name: "
        f"'{underscores(module[:end])}{module[end:]}'"
    )


# ── as the kernel and systemd read it ────────────────────────────────────────────────────────────────────────────────


def _words(text: str) -> Iterator[tuple[str, str | None]]:
    """Key and value (None without `=`) of every token, quotes around either taken off (lib/cmdline.c next_arg).

    In keys a dash is an underscore, for the kernel (parameq) and for systemd alike.
    """
    for _, token in _tokens(text.partition("\0")[0]):
        key, equals, value = _unquoted(token).partition("=")
        yield key.replace("-", "_"), _unquoted(value) if equals else None


def _unquoted(text: str) -> str:
    return text[1:].removesuffix('"') if text.startswith('"') else text


def _module_blacklist(words: tuple[tuple[str, str | None], ...]) -> tuple[str, ...]:
    """`module_blacklist=a,b` (kernel/module/main.c): set anew by each occurrence; what follows `--` is for init."""
    names: tuple[str, ...] = ()
    for key, value in words:
        if key == "__":  # `--`
            break
        if key == "module_blacklist" and value is not None:
            names = tuple(name for name in value.split(",") if name)
    return names


def _modules_load(words: tuple[tuple[str, str | None], ...], initrd: bool) -> tuple[str, ...]:
    """`modules_load=a,b`, in an initrd with `rd.` too; each name once (systemd-modules-load.service(8))."""
    keys = ("modules_load", "rd.modules_load") if initrd else ("modules_load",)
    names = [name for key, value in words if key in keys and value for name in value.split(",") if name]
    return tuple(dict.fromkeys(names))
