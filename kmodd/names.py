"""Module names, and the spellings that kmod treats as equal."""

from __future__ import annotations

from kmodd.errors import UnmatchedBracket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType

    ModuleName = NewType("ModuleName", str)
else:
    ModuleName = str
"""A module name as spelled by the kernel, with `_` for `-`."""

MODULE_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
"""Suffixes of the files that depmod reads as modules (kmod shared/util.c, kmod_exts)."""


def underscores(text: str) -> str:
    """Return `text` with `-` replaced by `_`, except inside `[…]`, where a dash is a range.

    This is the normal form of module names, configuration keys, look-up names and alias patterns (kmod
    `alias_normalize` and `underscores`). Raises UnmatchedBracket for a `]` without `[` or a `[` without `]`.
    """
    if "[" not in text and "]" not in text:
        return text.replace("-", "_")
    done = []
    rest = text
    while rest:
        head, bracket, tail = rest.partition("[")
        if "]" in head:
            raise UnmatchedBracket(f"unmatched bracket in {text!r}")
        done.append(head.replace("-", "_"))
        if not bracket:
            break
        inside, closing, rest = tail.partition("]")
        if not closing:
            raise UnmatchedBracket(f"unmatched bracket in {text!r}")
        done.append(f"[{inside}]")
    return "".join(done)


def module_name(text: str) -> ModuleName:
    """Return a name from the command line or a file as the kernel spells it; brackets are not special."""
    return ModuleName(text.replace("-", "_"))


def module_of_path(path: str) -> ModuleName:
    """Return the name of the module in a file: its base name up to the first `.`, with `_` (kmod path_to_modname)."""
    return module_name(path.rpartition("/")[2].partition(".")[0])


def joined_params(params: tuple[str, ...]) -> str:
    """Join module parameters with blanks (kmod options_from_array).

    A value that has a blank and does not begin with a quote is put in double quotes.
    """
    text = ""
    for param in params:
        key, equals, value = param.partition("=")
        quote = '"' if equals and " " in value and value[0] not in "\"'" else ""
        text += f"{' ' if text else ''}{key}{equals}{quote}{value}{quote}"
    return text
