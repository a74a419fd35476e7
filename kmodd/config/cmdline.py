"""Parse the kernel command line into a `CommandLine`.

Each parameter is parsed as by the program that defines it: kmod (`module.param=value`, `modprobe.blacklist=`), the
kernel (`module_blacklist=`) or systemd (`modules_load=`).
"""

from __future__ import annotations

from kmodd.config.modprobe_d import DROP_IN, Blacklist, Config, Extensions, Options, bad_bracket
from kmodd.dataclass import dataclass
from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.names import ModuleName, module_name, underscores
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/proc/cmdline"
_MAX_KMOD_BYTES = 4095
"""Bytes that kmod reads: its buffer has 4,096 with the NUL (kmod_config_parse_kcmdline)."""

_ONLY_LAST = "module_blacklist= is given more than once: the kernel uses only the last one"

_SPACES = "\t\n\v\f\r "


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The module parameters and module lists of a kernel command line."""

    options: tuple[Options, ...] = ()
    blacklist: tuple[Blacklist, ...] = ()
    """`modprobe.blacklist=`, with dashes as written; in kmod a name with a dash never matches."""
    module_blacklist: tuple[str, ...] = ()
    """`module_blacklist=`: modules that the kernel refuses, compared byte by byte; the last occurrence counts."""
    modules_load: tuple[str, ...] = ()
    """`modules_load=`: modules to load at boot, before those of modules-load.d."""
    kmodd_off: bool = False
    """`kmodd=off`: the service does not start."""
    problems: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()
    """Parts that have no effect."""
    complaints: tuple[str, ...] = ()
    """Messages of kmod for standard error."""

    def config(self, extensions: Extensions = DROP_IN) -> Config:
        """Return the part to merge after all files of modprobe.d.

        Blacklisted names are spelled with `_` if `extensions.cmdline_blacklist_dashes` is set.
        """
        blacklist = self.blacklist
        if extensions.cmdline_blacklist_dashes:
            blacklist = tuple(Blacklist(module_name(entry.module), entry.at) for entry in blacklist)
        refused = tuple(Blacklist(ModuleName(name), Where(PATH, 1)) for name in self.module_blacklist)
        return Config(
            options=self.options,
            blacklist=blacklist,
            kernel_blacklist=refused,
            remarks=self.remarks,
            problems=self.problems,
            complaints=self.complaints,
            extensions=extensions,
        )


EMPTY = CommandLine()


def parse(text: str, initrd: bool = False) -> CommandLine:
    """Parse the text of /proc/cmdline. Raises nothing; invalid options are `problems`.

    text: decoded by `kmodd.text.decode`, without newline translation. initrd: also read `rd.modules_load=`.
    """
    at = Where(PATH, 1)
    options: list[Options] = []
    blacklist: list[Blacklist] = []
    problems: list[Problem] = []
    complaints: list[str] = []
    seen_by_kmod = encode(text)[:_MAX_KMOD_BYTES].partition(b"\0")[0]
    for column, module, param in _options(decode(seen_by_kmod)):
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
    module_blacklist, is_repeated = _module_blacklist(words)
    remarks = (Problem(at, 0, "", _ONLY_LAST, "overridden"),) if is_repeated else ()
    return CommandLine(
        tuple(options),
        tuple(blacklist),
        module_blacklist,
        _modules_load(words, initrd),
        ("kmodd", "off") in words,
        tuple(problems),
        remarks,
        tuple(complaints),
    )


def tokens(text: str) -> Iterator[tuple[int, str]]:
    """Yield the index and text of each token.

    White space outside of quotes ends a token. A quote may open within a token; an unclosed one extends to the end.
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


# ── parameters of kmod ───────────────────────────────────────────────────────────────────────────────────────────────


def _options(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield column, module and `param` or `param=value` of every option token (kmod_config_parse_kcmdline).

    Quotes in a value are kept. A token with an unclosed quote is dropped. Tokens after `--` count too.
    """
    for at, token in tokens(text):
        if token.count('"') % 2:
            return
        quoted = token.startswith('"')  # boot loaders pass `module.param="a b"` as `"module.param=a b"`
        module, dot, rest = token[quoted:].partition(".")
        param, equals, value = rest.partition("=")
        # Module and parameter contain no quote and no second dot, the module no `=`.
        forbidden = set('".=' + (_SPACES if quoted else ""))
        if not dot or not forbidden.isdisjoint(module + param) or (quoted and not equals):
            continue
        yield at + 1 + quoted, module, f'{param}{equals}"{value}' if quoted else rest


def _complaint(module: str) -> str:
    """Return kmod's message about an invalid module name; kmod replaces the dashes before the unmatched bracket."""
    end = bad_bracket(module)
    return (
        "libkmod: ERROR: kcmdline_parse_result: "
        "Ignoring bad option on kernel command line while parsing module name: "
        f"'{underscores(module[:end])}{module[end:]}'"
    )


# ── parameters of the kernel and systemd ─────────────────────────────────────────────────────────────────────────────


def _words(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield key and value (None without `=`) of every token, without enclosing quotes (lib/cmdline.c next_arg).

    Dashes in keys become underscores: the kernel (parameq) and systemd treat them as equal.
    """
    for _, token in tokens(text.partition("\0")[0]):
        key, equals, value = _unquoted(token).partition("=")
        yield key.replace("-", "_"), _unquoted(value) if equals else None


def _unquoted(text: str) -> str:
    return text[1:].removesuffix('"') if text.startswith('"') else text


def _module_blacklist(words: tuple[tuple[str, str | None], ...]) -> tuple[tuple[str, ...], bool]:
    """Return the names of the last `module_blacklist=a,b` before `--`, and whether an earlier one has others.

    Words after `--` are for init (kernel/module/main.c).
    """
    lists: list[tuple[str, ...]] = []
    for key, value in words:
        if key == "__":  # `--`
            break
        if key == "module_blacklist" and value is not None:
            lists.append(tuple(name for name in value.split(",") if name))
    last = lists[-1] if lists else ()
    return last, any(name not in last for names in lists for name in names)


def _modules_load(words: tuple[tuple[str, str | None], ...], initrd: bool) -> tuple[str, ...]:
    """Return the names of all `modules_load=a,b`, each once (systemd-modules-load.service(8)).

    initrd: also read `rd.modules_load=`.
    """
    keys = ("modules_load", "rd.modules_load") if initrd else ("modules_load",)
    names = [name for key, value in words if key in keys and value for name in value.split(",") if name]
    return tuple(dict.fromkeys(names))
