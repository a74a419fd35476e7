"""Cache of the facts that depmod read from each module file, stored beside the index: bytes in and out.

A file with unchanged path, inode, size and times is not read again. The cache is optional and verified: it names its
directory and carries a checksum. A damaged, truncated or foreign cache, or one of another format, raises ParseError,
and depmod reads all files. It holds no pickled or marshalled objects: a forged cache can only give wrong facts, and a
user who can write the cache can write the index too.

Format: header; directory; one fixed-size record per module; then the strings of all records, concatenated.
"""

from __future__ import annotations

from array import array
from struct import Struct
from zlib import crc32

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError
from kmodd.modfile.elf import Facts
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "modules.kmodd-cache"
_MAGIC = b"kmodd-cache\n\0\0" + array("H", [1]).tobytes()
"""The last two bytes show the byte order of the machine, which the bucket numbers use."""
FORMAT = 1
"""Increase when `Facts`, or the way they are read, changes."""
_HEADER = Struct("<16sIIIQ")
"""Magic, format, CRC-32 of everything after the header, number of records, length of the directory."""
_RECORD = Struct("<QQqqi7I")
"""Inode, size, mtime, ctime, problem; lengths of path, aliases, softdeps, weakdeps, exports, needs, buckets."""


Stamp = tuple[int, int, int, int]
"""Identity of a file's content: inode, size in bytes, mtime and ctime in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The facts of one module file, and its stamp when they were read."""

    path: str
    stamp: Stamp
    facts: Facts
    buckets: bytes
    """Result of `depmod_graph.export_buckets` for the facts."""


def dump(directory: str, entries: Iterable[Entry]) -> bytes:
    """Return the bytes of a cache for the module directory `directory`."""
    records = []
    texts: list[bytes] = []
    for entry in entries:
        facts = entry.facts
        parts = (
            encode(entry.path), facts.aliases, facts.softdeps, facts.weakdeps, facts.exports, facts.needs, entry.buckets
        )  # fmt: skip
        records.append(_RECORD.pack(*entry.stamp, facts.problem, *map(len, parts)))
        texts += parts
    place = encode(directory)
    body = b"".join([place, *records, *texts])
    return _HEADER.pack(_MAGIC, FORMAT, crc32(body), len(records), len(place)) + body


def load(data: bytes, directory: str) -> dict[str, Entry]:
    """Return the entries of a cache by path. Raises ParseError if it cannot be used for `directory`."""
    if len(data) < _HEADER.size:
        raise ParseError("truncated")
    magic, form, checksum, count, length = _HEADER.unpack_from(data)
    if magic != _MAGIC or form != FORMAT:
        raise ParseError("not a cache, or a cache of another version")
    if crc32(memoryview(data)[_HEADER.size :]) != checksum:
        raise ParseError("damaged")
    at = _HEADER.size + length
    if data[_HEADER.size : at] != encode(directory):
        raise ParseError("made for another directory")
    end = at + count * _RECORD.size
    if end > len(data):
        raise ParseError("inconsistent lengths")
    entries = {}
    text_at = end
    for inode, size, mtime, ctime, problem, *lengths in _RECORD.iter_unpack(data[at:end]):
        parts = []
        for each in lengths:
            parts.append(data[text_at : text_at + each])
            text_at += each
        path = decode(parts[0])
        facts = Facts(parts[1], parts[2], parts[3], parts[4], parts[5], problem)
        entries[path] = Entry(path, (inode, size, mtime, ctime), facts, parts[6])
    if text_at != len(data):
        raise ParseError("inconsistent lengths")
    return entries
