"""Module names and what kmod counts as the same name."""

from __future__ import annotations

from kmodd.errors import UnmatchedBracket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType

    ModuleName = NewType("ModuleName", str)
else:
    ModuleName = str
"""A name as the kernel spells it: with `_`, never `-`."""

MODULE_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
"""File names that depmod takes for modules (kmod shared/util.c, kmod_exts)."""


def underscores(text: str) -> str:
    """`text` with `-` turned into `_`, except inside `[…]`, where a dash is a range.

    Serves module names, configuration keys, look-up names and alias patterns alike
    (kmod `alias_normalize` and `underscores`).

    Raises UnmatchedBracket for a `]` without `[` or a `[` without `]`.
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
    """A name typed by a person or written in a file, as the kernel spells it; brackets are not special here."""
    return ModuleName(text.replace("-", "_"))


def module_of_path(path: str) -> ModuleName:
    """The name of the module in a file: its base name up to the first `.`, dashes turned (kmod path_to_modname)."""
    return module_name(path.rpartition("/")[2].partition(".")[0])
