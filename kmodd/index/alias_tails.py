"""The rest of alias patterns after a common stem: one `Tail`, or `Many`, which selects candidates for a name."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from kmodd.index.fnmatch import literal_pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.index.fnmatch_regex import Fits
    from kmodd.index.text_files import Match

    Tail = tuple[Fits, tuple[Match, ...]]
    """The rest of a pattern after its stem: the test for a text, and the result if it matches."""


_MAX_UNFILED = 2
"""Tails of one stem that are all tested, without an index of their pieces, which would take as long to search."""


class Many:
    """The tails of one stem, each filed under its literal piece that the fewest other tails contain.

    Pieces with the same first byte share an `_Anchor`, their longest common beginning. At each occurrence of the anchor
    in a name, a dict of the first bytes of these pieces has the lengths to look up in the dict of whole pieces.
    """

    __slots__ = ("anchors", "numbers", "spellings", "tails", "unfiled")

    def __init__(self, spellings: list[str], numbers: list[Sequence[int]]) -> None:
        """Take the texts of the tails, in the order of the walk, and the numbers of the patterns with each tail."""
        self.spellings = spellings
        self.numbers = numbers
        """An item of both lists is released when its tail is built."""
        self.tails: list[Tail | None] = [None] * len(spellings)
        """None: not a candidate so far."""
        self.unfiled = list(range(len(spellings)))
        self.anchors: tuple[_Anchor, ...] = ()
        if len(spellings) > _MAX_UNFILED:
            self._file()

    def _file(self) -> None:
        """File each tail under its rarest piece; tails without pieces remain in `unfiled`."""
        together = "".join(self.spellings)
        if "?" in together or "[" in together or "\\" in together:
            pieces = [sorted(literal_pieces(spelling)) or [""] for spelling in self.spellings]
        else:
            pieces = [spelling.split("*") for spelling in self.spellings]
        counts = Counter(chain.from_iterable(pieces))
        counts[""] = len(pieces) + 1  # last choice: an empty piece is in every text
        filed: dict[str, list[int]] = {}
        for number, those in enumerate(pieces):
            filed.setdefault(min(those, key=counts.__getitem__), []).append(number)
        self.unfiled = filed.pop("", [])
        self.anchors = tuple([_Anchor(first, filed) for first in sorted({piece[0] for piece in filed})])

    def candidates(self, text: str, at: int) -> list[int]:
        """Return the numbers of the tails without a piece or with their piece in `text` from `at`, in walk order."""
        numbers = self.unfiled
        for anchor in self.anchors:
            here = text.find(anchor.text, at)
            while here >= 0:
                lengths = anchor.lengths.get(text[here : here + anchor.shortest])
                if lengths is not None:
                    for length in lengths:
                        numbers = numbers + anchor.pieces.get(text[here : here + length], [])
                here = text.find(anchor.text, here + 1)
        return numbers if len(numbers) < 2 else sorted(set(numbers))


class _Anchor:
    """The pieces with the same first byte."""

    __slots__ = ("lengths", "pieces", "shortest", "text")

    def __init__(self, first: str, filed: dict[str, list[int]]) -> None:
        """Select the pieces that begin with `first` from `filed`, a dict from pieces to the numbers of their tails."""
        self.pieces = {piece: numbers for piece, numbers in filed.items() if piece[0] == first}
        self.shortest = min(map(len, self.pieces))
        lowest, highest = min(self.pieces), max(self.pieces)
        common = 1
        while common < self.shortest and lowest[common] == highest[common]:
            common += 1
        self.text = lowest[:common]
        """The longest common beginning of the pieces."""
        lengths: dict[str, set[int]] = {}
        for piece in self.pieces:
            lengths.setdefault(piece[: self.shortest], set()).add(len(piece))
        self.lengths = {start: tuple(sorted(those)) for start, those in lengths.items()}
