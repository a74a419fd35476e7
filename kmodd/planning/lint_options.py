"""Checks of `options` lines: what of the text is no parameter of the module."""

from __future__ import annotations

import re

from kmodd.config import cmdline
from kmodd.index.catalog import Hit, Snapshot, lookup_or_nothing
from kmodd.planning.findings import Finding, error, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from kmodd.config.modprobe_d import Options

    Parameters = Callable[[str], frozenset[str] | None]
    """Returns the parameters of the module in a file, with `_` for `-`; None if it cannot be read."""

_OF_EACH_MODULE = frozenset(("async_probe", "async_probe_requested", "dyndbg"))
"""Parameters that the kernel handles itself for every module (kernel/module/main.c, lib/dynamic_debug.c)."""
_NAME = re.compile(r"[A-Za-z_][\w-]*")


def check_options(snapshot: Snapshot, parameters: Parameters) -> Iterator[Finding]:
    """Find `options` lines without effect, or with words that are no parameters.

    Words of the kernel command line are checked only for parameters of existing modules: `x.y=z` has other readers.
    """
    targets = {alias.pattern for alias in snapshot.config.aliases}
    for options in snapshot.config.options:
        hits = lookup_or_nothing(options.module, snapshot)
        is_cmdline = options.at.file == cmdline.PATH
        if not is_cmdline and (finding := _unreachable(options, hits, options.module in targets)):
            yield finding
        if is_cmdline and (len(hits) != 1 or hits[0].source != "module name"):
            continue
        known = _known(hits, snapshot, parameters)
        yield from _words(options, known)


def _unreachable(options: Options, hits: tuple[Hit, ...], is_pattern: bool) -> Finding | None:
    """Return the finding of a line whose module does not exist or takes no options."""
    module = options.module
    if not hits and not is_pattern:
        hint = "; wildcards are not supported here" if any(each in module for each in "*?[\\") else ""
        return error(options.at, "unknown-module", f"options for {module}: no such module or alias{hint}")
    if hits and all(hit.builtin for hit in hits):
        name = hits[0].module
        text = (
            f"options for {module} have no effect: {name} is built into the kernel, which takes {name}.PARAMETER=VALUE"
        )
        return warning(options.at, "builtin", f"{text} on its command line")
    return None


def _known(hits: tuple[Hit, ...], snapshot: Snapshot, parameters: Parameters) -> frozenset[str] | None:
    """Return the parameters of the one module of `hits`; None if there are several or they are unknown."""
    if len({hit.module for hit in hits}) != 1 or hits[0].builtin:
        return None
    found = snapshot.catalog.dep(hits[0].module)
    return parameters(found.path) if found and found.path else None


def _words(options: Options, known: frozenset[str] | None) -> Iterator[Finding]:
    """Find words that are no parameter: the kernel ignores them, or refuses the module."""
    words = [token for _, token in cmdline.tokens(options.text)]
    at, module = options.at, options.module
    comment = next((number for number, word in enumerate(words) if word.startswith("#")), len(words))
    if comment < len(words):
        text = f"the kernel gets `{' '.join(words[comment:])}` as parameters of {module}"
        yield error(at, "comment", f"{text}: a comment needs a line of its own")
    del words[comment:]
    while words:
        joined, count = _parted(words, known)
        word, *_ = words
        del words[:count]
        if joined:
            yield error(at, "blank", f"blanks around `=` in the options of {module}: expected `{joined}`")
        else:
            yield from _word(options, word, known)


def _word(options: Options, word: str, known: frozenset[str] | None) -> Iterator[Finding]:
    """Check one `NAME` or `NAME=VALUE`."""
    at, module = options.at, options.module
    name, equals, value = word.partition("=")
    prefix, dot, rest = name.partition(".")
    if dot and prefix.replace("-", "_") == module and at.file != cmdline.PATH:
        text = f"{name} is no parameter of {module}: expected `{rest}{equals}{value}`"
        yield error(at, "prefix", f"{text}; the module's name is repeated on the kernel command line only")
        return
    if value[:1] == "'" and not value[1:].endswith("'"):
        yield error(
            at, "quote", f"the value of {name} ends at its first blank: expected double quotes, not single ones"
        )
    elif value.endswith(","):
        yield warning(at, "blank", f"the value of {name} ends in a comma: expected no blank within a list of values")
    if known is not None and (unknown := _unknown(name, known)):
        yield error(at, "unknown-parameter", f"{module} has no parameter `{name}`{unknown}")


def _parted(words: list[str], known: frozenset[str] | None) -> tuple[str, int]:
    """Return `x=1` if the first words are `x = 1`, `x= 1` or `x =1`, else an empty text; and the number of words."""
    word, following, last = [*words, "", ""][:3]
    name, equals, value = word.partition("=")
    if not name and equals:
        return f"NAME={value}", 1
    if not equals and following == "=":
        return f"{name}={last}", 3
    if not equals and following.startswith("="):
        return f"{name}{following}", 2
    if equals and not value and following and "=" not in following:
        is_name = following.replace("-", "_") in known if known is not None else _NAME.fullmatch(following)
        if not is_name:
            return f"{name}={following}", 2
    return "", 1


def _unknown(name: str, known: Collection[str]) -> str:
    """Return the rest of a sentence about a parameter that is not in `known`, or an empty text if it is."""
    plain = name.replace("-", "_")
    if plain in known or plain in _OF_EACH_MODULE:
        return ""
    from difflib import get_close_matches  # only here: 3 ms

    near = get_close_matches(plain, known, 1)
    if near:
        return f"; did you mean `{near[0]}`?"
    return "; it has none" if not known else "; `modinfo -p` lists those it has"
