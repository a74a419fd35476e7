"""depmod.d(5): texts in, `DepmodConfig` out; and which of two files with one module name it prefers.

Which files take part, and in which order, is decided by `modprobe_d.ordered`, as for modprobe.d. A bad line stops
nothing. All of it is kmod's cfg_file_parse and depmod_module_is_higher_priority.
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
    """All that depmod.d says for one kernel release, each kind in the order it was read."""

    search: tuple[str, ...] = ("updates",)
    """Directories below the module directory, the best first; BUILT_IN and EXTERNAL among them."""
    overrides: tuple[str, ...] = ()
    """Files that win over others of their name: relative path without an extension."""
    externals: tuple[str, ...] = ()
    """Absolute directories to look for modules in as well."""
    excludes: tuple[str, ...] = ()
    """Names of directories and files to leave out, at any depth."""
    complaints: tuple[str, ...] = ()
    """What kmod says of bad lines, at level ERROR."""


PLAIN = DepmodConfig()
ALWAYS_EXCLUDED = (".", "..", "build", "source")


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_RAW_LINE = re.compile(r"(?:[^\\\n]|\\.)*\\?", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse(files: Iterable[ConfFile], release: str) -> DepmodConfig:
    """What the files say about kernel `release`. Raises nothing."""
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
    r"""The words of each line, and the number of its last physical line; `\` LF joins, `\x` is `x`, in comments too."""
    start, number = 0, 0
    while start < len(text):
        match = _RAW_LINE.match(text, start)
        assert match is not None  # it matches the empty string
        start = match.end() + 1
        number += 1 + match[0].count("\n")
        line = _ESCAPE.sub(lambda escape: "" if escape[1] == "\n" else escape[1], match[0]).partition("\0")[0]
        words = [word for word in re.split("[\t ]", line) if word]
        if words and not line.startswith("#"):
            yield number, words


# ── kernel releases ──────────────────────────────────────────────────────────────────────────────────────────────────

_BRACKET = re.compile(r"\[(\^?)(\]?(?:\[([:.=])(?:(?!\3\]).)*\3\]|[^\]])*)\]", re.DOTALL)
_CLASS = re.compile(r"\[:(\w+):\]")
_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "blank": " \t", "cntrl": "\x00-\x1f\x7f", "digit": "0-9", "graph": "!-~",
    "lower": "a-z", "print": " -~", "punct": "!-/:-@[-`{-~", "space": "\t-\r ", "upper": "A-Z", "xdigit": "0-9A-Fa-f",
}  # fmt: skip


def kernel_matches(pattern: str, release: str) -> bool:
    """Whether a kernel version of depmod.d, `*` or a POSIX extended regular expression, is found in `release`.

    An expression that is none matches nothing (cfg_kernel_matches).
    """
    if pattern == "*":
        return True
    try:
        return re.search(_translated(pattern), release) is not None
    except (re.error, OverflowError, RecursionError):
        return False


def _translated(pattern: str) -> str:
    """A POSIX extended regular expression in the words of `re`. Raises re.error for what is none, or far-fetched."""
    done = ""
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "[":
            match = _BRACKET.match(pattern, at - 1)
            if match is None:
                raise re.error("a bracket that is not closed")
            done += f"[{match[1]}{_members(match[2])}]"
            at = match.end()
        elif char == "\\":
            if at == len(pattern):
                raise re.error("a backslash at the end")
            # of what GNU adds, the classes and word borders that `re` spells alike
            done += "\\" + pattern[at] if pattern[at] in "wWsSbB" else re.escape(pattern[at])
            at += 1
        elif char in "*+?":
            run = char + pattern[at : len(pattern) - len(pattern[at:].lstrip("*+?"))]
            if done.endswith(("(", "}")):
                raise re.error("nothing to repeat, or a repetition repeated")
            # `x+?` is no lazy `x+` here but `(x+)?`
            done += char if set(run) == {char} else "*"
            at += len(run) - 1
        else:
            done += r"\Z" if char == "$" else char
    return done


def _members(text: str) -> str:
    """What stands in a POSIX bracket expression, as `re` wants it."""
    done = ""
    at = 0
    while at < len(text):
        match = _CLASS.match(text, at)
        if match is not None:
            if match[1] not in _CLASSES:
                raise re.error("no such class")
            done += _CLASSES[match[1]].replace("[", "\\[")
            at = match.end()
            continue
        done += "-" if text[at] == "-" and 0 < at < len(text) - 1 else re.escape(text[at])
        at += 1
    return done


# ── which file wins ──────────────────────────────────────────────────────────────────────────────────────────────────


def wins(config: DepmodConfig, directory: str, module: str, path: str, rival: str) -> bool:
    """Whether the file `path` takes the place of `rival`, found before it, which has the same module name.

    In: the module directory, the module's name, and both paths. Ties stay with the one found first, except where both
    lie below one directory of `search`: there kmod ranks the new one alone, and so it wins.
    """
    new, old = _stem(path, module), _stem(rival, module)
    new_below, old_below = _below(directory, new), _below(directory, old)
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


def _stem(path: str, module: str) -> str:
    """A path without its extension."""
    return path[: path.rfind("/") + 1 + len(module)]


def _below(directory: str, path: str) -> str:
    """A path relative to the module directory; empty where it is not below it."""
    return path[len(directory) + 1 :] if path.startswith(directory) else ""
