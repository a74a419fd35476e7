"""Parse depmod.d(5) into a `DepmodConfig`, and choose between two module files of the same name.

`modprobe_d.ordered` selects and sorts the files, as for modprobe.d. Invalid lines are skipped. The rules are those of
kmod's cfg_file_parse and depmod_module_is_higher_priority.
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kmodd.config.modprobe_d import ConfFile

BUILT_IN = "built-in"
EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class DepmodConfig:
    """The directives of depmod.d for one kernel release, each kind in file order."""

    search: tuple[str, ...] = ("updates",)
    """Directories relative to the module directory, highest priority first; BUILT_IN and EXTERNAL are special."""
    overrides: tuple[str, ...] = ()
    """Module files that take precedence over others of their name: relative paths without suffix."""
    externals: tuple[str, ...] = ()
    """Additional directories with modules, as absolute paths."""
    excludes: tuple[str, ...] = ()
    """Names of directories and files to skip, at any depth."""
    complaints: tuple[str, ...] = ()
    """kmod's messages about invalid lines, at level ERROR."""


PLAIN = DepmodConfig()
ALWAYS_EXCLUDED = (".", "..", "build", "source")


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_RAW_LINE = re.compile(r"(?:[^\\\n]|\\.)*\\?", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse(files: Iterable[ConfFile], release: str) -> DepmodConfig:
    """Return the directives of `files` for kernel `release`. Raises nothing; invalid lines are `complaints`."""
    search: list[str] = []
    overrides: list[str] = []
    externals: list[str] = []
    excludes: list[str] = []
    complaints: list[str] = []
    for file in files:
        for number, words in _statements(file.text):
            match words:
                case ["search", *names]:
                    search += names
                case ["override", module, kernel, directory, *_]:
                    if kernel_matches(kernel, release):
                        overrides.append(f"{directory}/{module}")
                case ["external", kernel, directory, *_]:
                    if kernel_matches(kernel, release):
                        externals.append(directory)
                case ["exclude", *names]:
                    excludes += names
                case ["include" | "make_map_files", *_]:
                    pass
                case [word, *_]:
                    complaints.append(f"{file.path}:{number}: ignoring bad line starting with '{word}'")
    return DepmodConfig(
        tuple(search) or PLAIN.search, tuple(overrides), tuple(externals), tuple(excludes), tuple(complaints)
    )


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    r"""Yield the number of the last physical line and the words of each logical line.

    `\` LF joins lines, `\x` is `x`, in comments too.
    """
    start, number = 0, 0
    while start < len(text):
        match = _RAW_LINE.match(text, start)
        assert match is not None  # the expression matches the empty string
        start = match.end() + 1
        number += 1 + match[0].count("\n")
        line = _ESCAPE.sub(lambda escape: "" if escape[1] == "\n" else escape[1], match[0]).partition("\0")[0]
        words = [word for word in re.split("[\t ]", line) if word]
        if words and not line.startswith("#"):
            yield number, words


# ── kernel releases ──────────────────────────────────────────────────────────────────────────────────────────────────

_BRACKET = re.compile(r"\[(\^?)(\]?(?:\[([:.=])(?:(?!\3\]).)*\3\]|[^\]])*)\]", re.DOTALL)
_CLASS = re.compile(r"\[([:.=])(.+?)\1\]", re.DOTALL)
_ESCAPES = {
    **{char: f"\\{char}" for char in "wWsSbB"}, **{digit: f"(?:\\{digit})" for digit in "123456789"},
    "<": r"\b(?=\w)", ">": r"\b(?<=\w)", "`": r"\A", "'": r"\Z",
}  # fmt: skip
"""Back references, and the extensions of GNU that have a like in `re`."""
_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "blank": " \t", "cntrl": "\x00-\x1f\x7f", "digit": "0-9", "graph": "!-~",
    "lower": "a-z", "print": " -~", "punct": "!-/:-@[-`{-~", "space": "\t-\r ", "upper": "A-Z", "xdigit": "0-9A-Fa-f",
}  # fmt: skip


def kernel_matches(pattern: str, release: str) -> bool:
    """Return whether the kernel version of a directive, `*` or a POSIX extended regular expression, matches `release`.

    The expression may match any part of `release`; an invalid one matches nothing (cfg_kernel_matches).
    """
    if pattern == "*":
        return True
    try:
        return re.search(_python_regex(pattern), release) is not None
    except (re.error, OverflowError, RecursionError):
        return False


def _python_regex(pattern: str) -> str:
    """Translate a POSIX extended regular expression for `re`. Raises re.error for an invalid or unsupported one."""
    done = ""
    at = depth = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "[":
            match = _BRACKET.match(pattern, at - 1)
            if match is None:
                raise re.error("unclosed bracket")
            done += f"[{match[1]}{_bracket_members(match[2])}]"
            at = match.end()
        elif char == "\\":
            if at == len(pattern):
                raise re.error("trailing backslash")
            done += _ESCAPES.get(pattern[at]) or re.escape(pattern[at])
            at += 1
        elif char in "*+?":
            run = char + pattern[at : len(pattern) - len(pattern[at:].lstrip("*+?"))]
            if done.endswith(("(", "}")):
                raise re.error("nothing to repeat, or multiple repeat")
            # POSIX reads `x+?` as `(x+)?`, not as a lazy `x+`
            done += char if set(run) == {char} else "*"
            at += len(run) - 1
        else:
            depth += (char == "(") - (char == ")")
            is_literal = depth < 0  # a parenthesis that nothing opens stands for itself
            depth = max(depth, 0)
            done += r"\Z" if char == "$" else r"\)" if is_literal else char
    return done


def _bracket_members(text: str) -> str:
    """Translate the content of a POSIX bracket expression for `re`. Raises re.error for an unknown class."""
    done = ""
    at = 0
    while at < len(text):
        match = _CLASS.match(text, at)
        if match is not None:
            is_class = match[1] == ":"  # else a collating element, which in the C locale is one character
            if match[2] not in _CLASSES if is_class else len(match[2]) != 1:
                raise re.error("unknown character class or collating element")
            done += _CLASSES[match[2]].replace("[", "\\[") if is_class else re.escape(match[2])
            at = match.end()
            continue
        done += "-" if text[at] == "-" and 0 < at < len(text) - 1 else re.escape(text[at])
        at += 1
    return done


# ── precedence of module files ───────────────────────────────────────────────────────────────────────────────────────


def wins(config: DepmodConfig, directory: str, module: str, path: str, rival: str) -> bool:
    """Return whether the module file `path` replaces `rival`, a file of the same module found earlier.

    directory: the module directory. module: name of the module. path, rival: absolute paths.
    The earlier file wins a tie, unless both are below the same directory of `search`: kmod then ranks only the new
    file, which wins.
    """
    new, old = _without_suffix(path, module), _without_suffix(rival, module)
    new_below, old_below = _relative(directory, new), _relative(directory, old)
    for override in reversed(config.overrides):
        if new_below == override:
            return True
        if old_below == override:
            return False
    built_in = new_rank = old_rank = -1
    rank = 0
    for place in reversed(config.search):
        if place == BUILT_IN:
            built_in = rank
        elif place == EXTERNAL:
            for external in reversed(config.externals):
                new_rank = rank if new.startswith(external + "/") else new_rank
                old_rank = rank if old.startswith(external + "/") else old_rank
                rank += 1
        elif new_below.startswith(place + "/"):
            new_rank = rank
        elif old_below.startswith(place + "/"):
            old_rank = rank
        rank += 1
    return (built_in if new_rank < 0 else new_rank) > (built_in if old_rank < 0 else old_rank)


def _without_suffix(path: str, module: str) -> str:
    """Return the path of a module file without its suffix."""
    return path[: path.rfind("/") + 1 + len(module)]


def _relative(directory: str, path: str) -> str:
    """Return `path` relative to `directory`, or an empty text if it is elsewhere."""
    return path[len(directory) + 1 :] if path.startswith(directory) else ""
