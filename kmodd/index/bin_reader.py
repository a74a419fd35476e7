"""Read `modules.*.bin` indexes (exact, by wildcard, all entries), and build them byte for byte as depmod does.

Format (kmod libkmod/libkmod-index.c): big-endian 4-byte words; a header `magic version root`; a trie whose nodes are
`[prefix NUL] [first last child…] [count (priority value NUL)…]`. The flags in the upper four bits of the word that
points at a node tell which of the three parts it has. An edge is one byte below 128; the rest of its label is the
child's prefix.

A damaged file raises ParseError with file and offset. A walk reads no more nodes than fit into the file, so a cycle of
nodes raises ParseError too.
"""

from __future__ import annotations

from struct import unpack_from

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError, UnmatchedBracket
from kmodd.index import fnmatch
from kmodd.names import underscores
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAGIC = 0xB007F457
VERSION = 0x00020001
HEADER = 12
MAX_KEY = 4096
"""Maximum length of a key in bytes, PATH_MAX: depmod writes no longer one."""

_PREFIX = 0x80000000
_VALUES = 0x40000000
_CHILDREN = 0x20000000
_OFFSET = 0x0FFFFFFF
_WILD = b"*?["


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a key."""

    priority: int
    """Position of the module in depmod's order; 0 is the highest priority."""
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """A value found by a wildcard look-up, and its key, a pattern."""

    pattern: str
    value: Value


@dataclass(slots=True)
class _Node:
    prefix: bytes
    first: int
    children: tuple[int, ...]
    values_at: int
    """Offset of the values; 0: none."""

    def child(self, byte: int) -> int:
        """Return the word of the child for `byte`, 0 if there is none."""
        index = byte - self.first
        return self.children[index] if 0 <= index < len(self.children) else 0


class BinIndex:
    """A `.bin` file in memory; nodes are decoded on demand."""

    def __init__(self, data: bytes, file: str) -> None:
        """Check the header. Raises ParseError unless it is that of an index of major version 2.

        file: its name in errors.
        """
        self._data = data
        self._file = file
        if len(data) < HEADER:
            raise self._error(len(data), f"only {len(data)} bytes, expected a header of {HEADER}")
        if self._word(0) != MAGIC:
            raise self._error(0, f"magic {self._word(0):x}, expected {MAGIC:x}")
        if self._word(4) >> 16 != VERSION >> 16:
            raise self._error(4, f"major version {self._word(4) >> 16}, expected {VERSION >> 16}")
        self._root = self._word(8)

    def has_entries(self) -> bool:
        """Return whether the file has a root node; depmod writes none without entries."""
        return bool(self._root & _OFFSET)

    def get(self, key: str) -> str | None:
        """Return the first value of exactly this key, or None (kmod index_mm_search). Raises ParseError."""
        rest = encode(key)
        word = self._root
        for _ in range(len(rest) + 1):
            if not word & _OFFSET:
                return None
            node = self._node(word)
            if not rest.startswith(node.prefix):
                return None
            rest = rest[len(node.prefix) :]
            if not rest:
                values = self._values(node)
                return values[0].text if values else None
            word, rest = node.child(rest[0]), rest[1:]
        return None

    def wildcard(self, text: str) -> tuple[Found, ...]:
        """Return the values of all keys that match `text` as patterns, by priority, then the last found first.

        The walk is kmod's (index_mm_searchwild): the part of a pattern before its first wildcard is compared byte by
        byte, including escapes, and fnmatch gets only the rest. Raises ParseError.
        """
        query = encode(text)
        found: list[Found] = []
        walk = _Walk(self)
        word, at = self._root, 0
        while word & _OFFSET:
            node = walk.read(word)
            wild = next((i for i, byte in enumerate(node.prefix) if byte in _WILD), -1)
            literal = node.prefix if wild < 0 else node.prefix[:wild]
            if not query.startswith(literal, at):
                break
            at += len(literal)
            if wild >= 0:
                walk.explore(node, query[:at], node.prefix[wild:], query[at:], found)
                break
            for byte in _WILD:
                child = node.child(byte)
                if child & _OFFSET:
                    below = walk.read(child)
                    walk.explore(below, query[:at], bytes((byte,)) + below.prefix, query[at:], found)
            if at == len(query):
                found.extend(Found(decode(query), value) for value in self._values(node))
                break
            word = node.child(query[at])
            at += 1
        found.reverse()
        found.sort(key=lambda hit: hit.value.priority)
        return tuple(found)

    def entries(self) -> Iterator[tuple[str, tuple[Value, ...]]]:
        """Yield every key with its values, in byte order, as `modprobe -c` prints them. Raises ParseError."""
        walk = _Walk(self)
        stack = [(self._root, b"")]
        while stack:
            word, before = stack.pop()
            if not word & _OFFSET:
                continue
            node = walk.read(word)
            key = walk.joined(before, node.prefix)
            values = self._values(node)
            if values:
                walk.spend(len(values))
                yield decode(key), values
            for index in range(len(node.children) - 1, -1, -1):
                if node.children[index] & _OFFSET:
                    stack.append((node.children[index], key + bytes((node.first + index,))))

    def _error(self, offset: int, what: str) -> ParseError:
        return ParseError(f"{self._file}: offset {offset}: {what}")

    def _word(self, offset: int) -> int:
        raw = self._data[offset : offset + 4]
        if len(raw) != 4:
            raise self._error(offset, "truncated, expected four bytes")
        return int.from_bytes(raw, "big")

    def _string(self, offset: int) -> bytes:
        end = self._data.find(b"\0", offset)
        if end < 0:
            raise self._error(offset, "string without NUL byte")
        return self._data[offset:end]

    def _node(self, word: int) -> _Node:
        at = word & _OFFSET
        if not HEADER <= at <= len(self._data):
            raise self._error(at, f"expected a node, the file has {len(self._data)} bytes")
        prefix = b""
        if word & _PREFIX:
            prefix = self._string(at)
            at += len(prefix) + 1
        first = 0
        children: tuple[int, ...] = ()
        if word & _CHILDREN:
            bounds = self._data[at : at + 2]
            if len(bounds) < 2 or not bounds[0] <= bounds[1] < 128:
                raise self._error(at, f"children from {bounds[:1].hex()} to {bounds[1:].hex()}, expected 00 to 7f")
            first = bounds[0]
            count = bounds[1] - first + 1
            if at + 2 + 4 * count > len(self._data):
                raise self._error(at, "truncated within a node's children")
            children = unpack_from(f">{count}I", self._data, at + 2)
            at += 2 + 4 * count
        return _Node(prefix, first, children, at if word & _VALUES else 0)

    def _values(self, node: _Node) -> tuple[Value, ...]:
        if not node.values_at:
            return ()
        count, at = self._word(node.values_at), node.values_at + 4
        if count * 5 > len(self._data) - at:
            raise self._error(node.values_at, f"{count} values do not fit into the file")
        values = []
        for _ in range(count):
            raw = self._string(at + 4)
            values.append(Value(self._word(at), decode(raw)))
            at += 4 + len(raw) + 1
        return tuple(values)


class _Walk:
    """Reads the nodes for one query. Raises ParseError when it reads more than fit into the file: they form a cycle."""

    def __init__(self, index: BinIndex) -> None:
        self._index = index
        self._left = len(index._data)
        self._keys_left = 16 * len(index._data)
        """Limit for the bytes of compared patterns: they share beginnings in the file, damage makes them endless."""

    def read(self, word: int) -> _Node:
        self.spend(4)
        return self._index._node(word)

    def spend(self, bytes_needed: int) -> None:
        self._left -= bytes_needed
        if self._left < 0:
            raise self._index._error(8, "nodes form a cycle")

    def joined(self, before: bytes, after: bytes) -> bytes:
        if len(before) + len(after) > MAX_KEY:
            raise self._index._error(8, f"key of more than {MAX_KEY} bytes")
        return before + after

    def explore(self, start: _Node, literal: bytes, pattern: bytes, text: bytes, found: list[Found]) -> None:
        """Append to `found` the values of `start` and the nodes below it whose patterns match `text`, children first.

        pattern: that of `start`. literal: text before the pattern, for the results.
        """
        wanted = decode(text)
        stack: list[tuple[_Node | int, bytes, bool]] = [(start, pattern, False)]
        while stack:
            at, key, children_done = stack.pop()
            if isinstance(at, int):
                at = self.read(at)
                key = self.joined(key, at.prefix)
                self._keys_left -= len(key)
                if self._keys_left < 0:
                    raise self._index._error(8, "nodes form a cycle")
            if not children_done:
                stack.append((at, key, True))
                for index in range(len(at.children) - 1, -1, -1):
                    if at.children[index] & _OFFSET:
                        stack.append((at.children[index], key + bytes((at.first + index,)), False))
                continue
            if at.values_at and _may_match(key, text) and fnmatch.matches(decode(key), wanted):
                values = self._index._values(at)
                self.spend(len(values))
                found.extend(Found(decode(literal + key), value) for value in values)


def _may_match(pattern: bytes, text: bytes) -> bool:
    """Return False if the literal parts of a pattern exclude a match, so that it need not be compiled."""
    if b"[" in pattern or b"]" in pattern or b"\\" in pattern:
        return _is_closed(pattern)
    parts = pattern.split(b"*")
    if b"?" not in parts[-1] and not text.endswith(parts[-1]):
        return False
    return all(part in text or b"?" in part for part in parts)


def _is_closed(pattern: bytes) -> bool:
    """Return whether the brackets of a pattern are matched. depmod writes no others, and they take long to compare."""
    try:
        underscores(decode(pattern))
    except UnmatchedBracket:
        return False
    return True


@dataclass(slots=True)
class _Branch:
    """A node of a trie that is being built."""

    prefix: bytes
    children: dict[int, _Branch]
    values: list[tuple[int, bytes]]

    @property
    def flags(self) -> int:
        """Flags of the parts that the node has."""
        return _PREFIX * bool(self.prefix) | _CHILDREN * bool(self.children) | _VALUES * bool(self.values)

    @property
    def size(self) -> int:
        """Size in the file, in bytes."""
        prefix = len(self.prefix) + 1 if self.prefix else 0
        children = 2 + 4 * (max(self.children) - min(self.children) + 1) if self.children else 0
        values = 4 + sum(4 + len(text) + 1 for _, text in self.values) if self.values else 0
        return prefix + children + values


def build(entries: Iterable[tuple[str, str, int]], *, preorder: bool) -> bytes:
    """Return the bytes of an index of `entries` (key, value, priority), inserted one by one as by depmod.

    preorder: use the layout of kmod 34 (a node before its subtrees), else that of kmod 33 and before (after them).
    Raises ParseError for a key that is not 7-bit text.
    """
    root = _Branch(b"", {}, [])
    for key, text, priority in entries:
        raw = encode(key)
        if not raw.isascii() or b"\0" in raw:
            raise ParseError(f"key {key!r}: expected 7-bit text")
        _insert(root, raw, priority, encode(text))
    nodes = _ordered(root, preorder)
    words: dict[int, int] = {}
    at = HEADER
    for node in nodes:
        words[id(node)] = node.flags | at
        at += node.size
    head = b"".join(word.to_bytes(4, "big") for word in (MAGIC, VERSION, words[id(root)]))
    return head + b"".join(_node_bytes(node, words) for node in nodes)


def _insert(root: _Branch, key: bytes, priority: int, value: bytes) -> None:
    """Insert a value as kmod's index_insert: split a node if `key` differs within its prefix, descend or add a leaf."""
    node = root
    while True:
        same = 0
        for one, other in zip(node.prefix, key, strict=False):
            if one != other:
                break
            same += 1
        if same < len(node.prefix):
            below = _Branch(node.prefix[same + 1 :], node.children, node.values)
            node.children, node.values = {node.prefix[same]: below}, []
            node.prefix = node.prefix[:same]
        key = key[same:]
        if not key:
            at = next((i for i, (rank, _) in enumerate(node.values) if rank >= priority), len(node.values))
            node.values.insert(at, (priority, value))
            return
        child = node.children.get(key[0])
        if child is None:
            node.children[key[0]] = _Branch(key[1:], {}, [(priority, value)])
            return
        node, key = child, key[1:]


def _ordered(root: _Branch, preorder: bool) -> list[_Branch]:
    """Return all nodes in the order of the file. Not recursive: the trie may be thousands of nodes deep."""
    nodes = []
    stack = [root]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack += [node.children[byte] for byte in sorted(node.children, reverse=preorder)]
    return nodes if preorder else nodes[::-1]


def _node_bytes(node: _Branch, words: dict[int, int]) -> bytes:
    """Return the bytes of a node in the file. words: the word that points at each node, by the id() of the node."""
    out = bytearray()
    if node.prefix:
        out += node.prefix + b"\0"
    if node.children:
        first, last = min(node.children), max(node.children)
        out += bytes((first, last))
        for byte in range(first, last + 1):
            child = node.children.get(byte)
            out += (words[id(child)] if child else 0).to_bytes(4, "big")
    if node.values:
        out += len(node.values).to_bytes(4, "big")
        for priority, text in node.values:
            out += priority.to_bytes(4, "big") + text + b"\0"
    return bytes(out)
