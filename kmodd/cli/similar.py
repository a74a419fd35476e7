"""A known word that is like an unknown one: "did you mean"."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SIMILAR = 0.72
"""Share of equal characters from which a word is a candidate: `e1000x` is e1000e, `nosuch` is nothing."""


def hint(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'WORD'?` for the known word that is most like `word`; empty if there is none."""
    from difflib import get_close_matches  # only for a mistake

    found = get_close_matches(word, list(known), 1, _SIMILAR)
    return f"; did you mean {found[0]!r}?" if found else ""
