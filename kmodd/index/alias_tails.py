"""What patterns have behind a common beginning: one `Tail`, or `Many`, and which of them may fit a name."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from kmodd.dataclass import dataclass
from kmodd.index.fnmatch import literal_pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.index.fnmatch_regex import Fits
    from kmodd.names import ModuleName

    Tail = tuple[Fits, "tuple[AliasMatch, ...]"]
    """The rest of a pattern after its stem: how to compare it, and what it says when it matches."""


_FEW = 2
"""So many tails of one stem are compared one by one: finding their pieces would cost as much."""


@dataclass(frozen=True, slots=True)
class AliasMatch:
    """One pattern that matched."""

    pattern: str
    """As the file spells it, dashes kept."""
    module: ModuleName
    line: int
    """Its line in the text file; 0 where the source has no lines."""


class Many:
    """Many tails of one stem, each filed under the piece of it that fewest others have.

    Pieces with the same first byte share an `_Anchor`: what all of them begin with. Wherever the name has that, a dict
    over the first bytes of these pieces tells which lengths are worth asking the dict of whole pieces for.
    """

    __slots__ = ("anchors", "numbers", "spellings", "tails", "unfiled")

    def __init__(self, spellings: list[str], numbers: list[Sequence[int]]) -> None:
        """Tails by their spellings, in the order of the walk, with the numbers of the patterns that have them."""
        self.spellings = spellings
        self.numbers = numbers
        """Both are let go where the tail itself is made."""
        self.tails: list[Tail | None] = [None] * len(spellings)
        """None: never was a candidate yet."""
        self.unfiled = list(range(len(spellings)))
        self.anchors: tuple[_Anchor, ...] = ()
        if len(spellings) > _FEW:
            self._file()

    def _file(self) -> None:
        together = "".join(self.spellings)
        if "?" in together or "[" in together or "\\" in together:
            pieces = [sorted(literal_pieces(spelling)) or [""] for spelling in self.spellings]
        else:
            pieces = [spelling.split("*") for spelling in self.spellings]
        counts = Counter(chain.from_iterable(pieces))
        counts[""] = len(pieces) + 1  # the last resort: it is everywhere
        filed: dict[str, list[int]] = {}
        for number, those in enumerate(pieces):
            filed.setdefault(min(those, key=counts.__getitem__), []).append(number)
        self.unfiled = filed.pop("", [])
        self.anchors = tuple([_Anchor(first, filed) for first in sorted({piece[0] for piece in filed})])

    def candidates(self, text: str, at: int) -> list[int]:
        """Which tails have their piece in the text after `at`, or have no piece, in the order of the walk."""
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
    """The pieces with one first byte."""

    __slots__ = ("lengths", "pieces", "shortest", "text")

    def __init__(self, first: str, filed: dict[str, list[int]]) -> None:
        """Of pieces filed with the numbers of their tails, those that begin with `first`."""
        self.pieces = {piece: numbers for piece, numbers in filed.items() if piece[0] == first}
        self.shortest = min(map(len, self.pieces))
        lowest, highest = min(self.pieces), max(self.pieces)
        common = 1
        while common < self.shortest and lowest[common] == highest[common]:
            common += 1
        self.text = lowest[:common]
        """The longest beginning that they have in common."""
        lengths: dict[str, set[int]] = {}
        for piece in self.pieces:
            lengths.setdefault(piece[: self.shortest], set()).add(len(piece))
        self.lengths = {start: tuple(sorted(those)) for start, those in lengths.items()}
