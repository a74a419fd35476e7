"""Write initramfs archives (cpio "newc"), the only format that the kernel unpacks.

Own code and not cpio(1), so that all files in the archive belong to root for any user of the tests, and files can come
from memory as well as from a folder. Times are kept: Python's byte code is valid only while its source keeps its own.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

# `/lib`, `/bin` … of the guest are links into /usr: a folder of that name in the archive would hide the real one.
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64")


@dataclass
class Archive:
    """Collects entries and writes them. Paths are relative to the root of the archive, without a leading slash."""

    _parts: list[bytes] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def add(self, path: str, data: bytes = b"", mode: int = stat.S_IFREG | 0o644, mtime: int = 0) -> None:
        """Add one entry; `mode` carries the type, `data` is the content of a file or the target of a link.

        Parent folders that were not added are made (0755). A path that was added before is replaced at unpacking.
        """
        parent = os.path.dirname(path)
        if parent and parent not in self._seen:
            self.add(parent, mode=stat.S_IFDIR | 0o755, mtime=mtime)
        self._seen.add(path)
        self._parts.append(_entry(len(self._parts) + 1, path, data, mode, mtime))

    def add_tree(self, folder: Path, prefix: str, merged_usr: bool = False) -> None:
        """Add everything below `folder` under `prefix`; with `merged_usr` its `lib/x` becomes `usr/lib/x`."""
        for top, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted([*folders, *files]):
                source = Path(top, name)
                place = source.relative_to(folder)
                if merged_usr and place.parts[0] in _MERGED:
                    place = Path("usr", place)
                self._add_file(source, os.path.join(prefix, str(place)))

    def _add_file(self, source: Path, path: str) -> None:
        status = source.lstat()
        data = b""
        if stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(source))
        elif stat.S_ISREG(status.st_mode):
            data = source.read_bytes()
        self.add(path, data, status.st_mode, int(status.st_mtime))

    def finish(self) -> bytes:
        """Return the finished archive."""
        return b"".join([*self._parts, _entry(0, "TRAILER!!!", b"", 0, 0)])


def _entry(inode: int, path: str, data: bytes, mode: int, mtime: int) -> bytes:
    """One header with its name and content, each padded to four bytes; every entry belongs to root."""
    name = os.fsencode(path) + b"\0"
    fields = (inode, mode, 0, 0, 1, mtime & 0xFFFFFFFF, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    return header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)
