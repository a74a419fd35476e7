"""What depmod has read of every module file, kept beside the index: bytes in and out.

A file that looks as it did (same path, inode, size, times) is not read again. The cache is never needed and never
believed blindly: it says for which directory it is and carries a checksum; what is damaged, cut off, foreign or of
another format is ParseError, and all files are read. It holds no pickled or marshalled objects: the worst that a forged
one can do is to give wrong facts, and who can write it can write the index as well.

Form: HEADER; the directory; a fixed RECORD for each module; then the strings of all records, one behind the other.
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
"""Ends in the byte order of the machine, which the numbers of buckets have."""
FORMAT = 1
"""To be raised when `Facts`, or the way in which they are read, changes."""
_HEADER = Struct("<16sIIIQ")
"""Magic, format, checksum of all that follows this header, count of records, length of the directory."""
_RECORD = Struct("<QQqqi7I")
"""Inode, size, mtime, ctime, problem; lengths of path, aliases, softdeps, weakdeps, exports, needs, buckets."""


Stamp = tuple[int, int, int, int]
"""How a file looks from outside: inode, size, mtime and ctime in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One module file as it was read."""

    path: str
    stamp: Stamp
    facts: Facts
    buckets: bytes
    """`depmod.export_buckets` of the facts."""


def dump(directory: str, entries: Iterable[Entry]) -> bytes:
    """The cache for the module directory of this name."""
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
    """The entries by path. Raises ParseError."""
    if len(data) < _HEADER.size:
        raise ParseError("cut off")
    magic, form, checksum, count, length = _HEADER.unpack_from(data)
    if magic != _MAGIC or form != FORMAT:
        raise ParseError("of another version, or no cache at all")
    if crc32(memoryview(data)[_HEADER.size :]) != checksum:
        raise ParseError("damaged")
    at = _HEADER.size + length
    if data[_HEADER.size : at] != encode(directory):
        raise ParseError("of another directory")
    end = at + count * _RECORD.size
    if end > len(data):
        raise ParseError("its numbers do not fit together")
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
        raise ParseError("its numbers do not fit together")
    return entries
