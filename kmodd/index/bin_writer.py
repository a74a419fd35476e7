"""Build `modules.*.bin` indexes from all rows at once, in the layout of kmod 34.

`bin_reader` documents the format. Its `build` inserts rows one by one; here the rows are sorted first, so that each
node is complete when the walk over the keys leaves it. In the file a node precedes its subtrees, of which that of the
smallest byte is first (kmod index_write__node). This is the reverse of a walk from the largest key to the smallest that
writes a node after its subtrees, so places are counted from the end of the file until all nodes are known.
"""

from __future__ import annotations

from operator import itemgetter

from kmodd.errors import ParseError
from kmodd.index.bin_reader import HEADER, MAGIC, VERSION
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX = 0x80000000
_VALUES = 0x40000000
_CHILDREN = 0x20000000
_FLAGS = _PREFIX | _VALUES | _CHILDREN

Row = tuple[bytes, int, bytes]
"""Key, priority, value."""


def build(rows: Iterable[Row]) -> bytes:
    """Return the bytes of an index of `rows`.

    The values of a key are sorted by priority number, those with equal priority in reverse order of `rows`.
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
        raise ParseError(decode(bad))
    writer.trie(keys[::-1], blobs[::-1])
    return writer.file()


class _Writer:
    """Writes nodes from the end of the file to its beginning."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        """Nodes, the last of the file first; the table of one with children is added by `file`."""
        self.tables: list[tuple[int, bytes, list[tuple[int, int]], bytes]] = []
        """Nodes with children: index in `parts`, prefix with its NUL, byte and word of each child, values."""
        self.size = 0
        """Bytes from the beginning of the last written node to the end of the file."""
        self.root = 0

    def node(self, prefix: bytes, children: list[tuple[int, int]], values: bytes) -> int:
        """Write a node, and return the word that points at it, with the distance from the end of the file.

        children: byte and word of each, sorted by descending byte.
        """
        flags = 0
        if prefix:
            flags |= _PREFIX
            prefix += b"\0"
        self.size += len(prefix) + len(values)
        if children:
            flags |= _CHILDREN
            self.size += 2 + 4 * (children[0][0] - children[-1][0] + 1)
            self.tables.append((len(self.parts), prefix, children, values))
        if values:
            flags |= _VALUES
        self.parts.append(prefix + values)
        return self.size | flags

    def trie(self, keys: list[bytes], blobs: list[bytes]) -> None:
        """Write all nodes for distinct keys, sorted in descending order. blobs: the encoded values of each key.

        `path` has the nodes from the root to the last key: depth (length of the key up to the end of the node's
        prefix), written children, values. The length of the common beginning of two keys follows from the first bit
        in which they differ as numbers. Most nodes are leaves, which are written here without a call of `node`.
        """
        path: list[tuple[int, list[tuple[int, int]], bytes]] = [(0, [], b"")]
        before, number, length = b"", 0, 0
        write = self.parts.append
        for key, blob in zip([*keys, b""], [*blobs, b""], strict=True):
            last, last_length = number, length
            number, length = int.from_bytes(key, "big"), len(key)
            if length < last_length:
                shared = length - ((number ^ last >> 8 * (last_length - length)).bit_length() + 7 >> 3)
            else:
                shared = last_length - ((last ^ number >> 8 * (length - last_length)).bit_length() + 7 >> 3)
            while path[-1][0] > shared:
                depth, children, values = path.pop()
                if path[-1][0] < shared:
                    path.append((shared, [], b""))
                edge, siblings, _ = path[-1]
                if children:
                    siblings.append((before[edge], self.node(before[edge + 1 : depth], children, values)))
                    continue
                flags = _VALUES
                if edge + 1 < depth:
                    values = before[edge + 1 : depth] + b"\0" + values
                    flags |= _PREFIX
                write(values)
                self.size += len(values)
                siblings.append((before[edge], self.size | flags))
            if path[-1][0] < length:
                path.append((length, [], blob))
            elif blob:  # the key begins the ones before it
                path[-1] = (length, path[-1][1], blob)
            before = key
        _, children, values = path[0]
        self.root = self.node(b"", children, values)

    def file(self) -> bytes:
        """Return header and nodes."""
        total = HEADER + self.size
        for index, prefix, children, values in self.tables:
            first, last = children[-1][0], children[0][0]
            table = bytearray(2 + 4 * (last - first + 1))
            table[0], table[1] = first, last
            for byte, word in children:
                slot = 4 * (byte - first)
                place = (word & _FLAGS) + total - (word & ~_FLAGS)
                table[slot + 2 : slot + 6] = place.to_bytes(4, "big")
            self.parts[index] = prefix + table + values
        root = (self.root & _FLAGS) + total - (self.root & ~_FLAGS)
        return b"".join([*(word.to_bytes(4, "big") for word in (MAGIC, VERSION, root)), *reversed(self.parts)])
