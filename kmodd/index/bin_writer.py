"""The `modules.*.bin` indexes, written fast: rows in, bytes out, in the layout of kmod 33 and before.

`binindex` reads them, and says what the bytes mean. Where its `build` grows a trie row by row, here the rows are sorted
first; then each node is finished when the walk through the keys leaves it, and that is the order of the file: a node
stands behind its subtrees, the root last (kmod index_write__node).
"""

from __future__ import annotations

from operator import itemgetter

from kmodd.errors import ParseError
from kmodd.index.bin_reader import HEADER, MAGIC, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX = 0x80000000
_VALUES = 0x40000000
_CHILDREN = 0x20000000

Row = tuple[bytes, int, bytes]
"""Key, priority, value."""


def build(rows: Iterable[Row]) -> bytes:
    """The index of `rows`, put in one after the other: the lowest priority first, of equal ones the last put in.

    Raises ParseError for a key that is not 7-bit text.
    """
    ordered = list(rows)
    ordered.reverse()
    ordered.sort(key=itemgetter(0, 1))
    writer = _Writer()
    keys: list[bytes] = []
    blobs: list[bytes] = []
    last = None
    count = 0
    for key, priority, text in ordered:
        value = priority.to_bytes(4, "big") + text + b"\0"
        if key == last:
            count += 1
            blobs[-1] = count.to_bytes(4, "big") + blobs[-1][4:] + value
        else:
            last, count = key, 1
            keys.append(key)
            blobs.append(b"\0\0\0\1" + value)
    if not b"".join(keys).isascii():
        bad = next(key for key in keys if not key.isascii())
        raise ParseError(bad.decode("utf-8", "surrogateescape"))
    writer.trie(keys, blobs)
    return writer.file()


class _Writer:
    """Node by node, in the order of the file."""

    def __init__(self) -> None:
        self.parts: list[bytes | bytearray] = []
        self.at = HEADER
        self.root = 0

    def node(self, prefix: bytes, children: list[tuple[int, int]], values: bytes) -> int:
        """Write one node; children as byte and word, in order. The word that points at it."""
        word = self.at
        if prefix:
            word |= _PREFIX
            self.parts.append(prefix + b"\0")
            self.at += len(prefix) + 1
        if children:
            word |= _CHILDREN
            first, last = children[0][0], children[-1][0]
            table = bytearray(2 + 4 * (last - first + 1))
            table[0], table[1] = first, last
            for byte, child in children:
                slot = 4 * (byte - first)
                table[slot + 2 : slot + 6] = child.to_bytes(4, "big")
            self.parts.append(table)
            self.at += len(table)
        if values:
            word |= _VALUES
            self.parts.append(values)
            self.at += len(values)
        return word

    def trie(self, keys: list[bytes], blobs: list[bytes]) -> None:
        """Write all nodes for distinct keys in byte order.

        `way` leads from the root to the last key: of each node its depth (how much of the key its prefix ends), the
        children that are written, and its values. How much two keys share, the first bit tells in which their numbers
        differ. Most nodes are leaves, and are written right here.
        """
        way: list[tuple[int, list[tuple[int, int]], bytes]] = [(0, [], b"")]
        before, number, length = b"", 0, 0
        write = self.parts.append
        for key, blob in zip([*keys, b""], [*blobs, b""], strict=True):
            last, last_length = number, length
            number, length = int.from_bytes(key, "big"), len(key)
            if length < last_length:
                shared = length - ((number ^ last >> 8 * (last_length - length)).bit_length() + 7 >> 3)
            else:
                shared = last_length - ((last ^ number >> 8 * (length - last_length)).bit_length() + 7 >> 3)
            while way[-1][0] > shared:
                depth, children, values = way.pop()
                if way[-1][0] < shared:
                    way.append((shared, [], b""))
                edge, siblings, _ = way[-1]
                if children:
                    siblings.append((before[edge], self.node(before[edge + 1 : depth], children, values)))
                    continue
                if edge + 1 < depth:
                    values = before[edge + 1 : depth] + b"\0" + values
                    siblings.append((before[edge], self.at | _PREFIX | _VALUES))
                else:
                    siblings.append((before[edge], self.at | _VALUES))
                write(values)
                self.at += len(values)
            if key:
                way.append((length, [], blob))
            elif blob:
                way[0] = (0, way[0][1], blob)
            before = key
        _, children, values = way[0]
        self.root = self.node(b"", children, values)

    def file(self) -> bytes:
        """What was written, behind its header."""
        return b"".join([*(word.to_bytes(4, "big") for word in (MAGIC, VERSION, self.root)), *self.parts])
