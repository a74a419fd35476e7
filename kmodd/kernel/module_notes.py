"""Parse the ELF notes that the kernel shows of a loaded module: `build_id_of_notes`."""

from __future__ import annotations

_HEAD = 12
"""Bytes of the size of the name, the size of the content, and the type, 4 each (Elf64_Nhdr in elf(5))."""
_BUILD_ID = (b"GNU\0", 3)
"""Name and type of the note with the build ID (NT_GNU_BUILD_ID)."""


def build_id_of_notes(notes: bytes) -> bytes:
    """Return the build ID in notes of this machine's byte order, as in /sys/module/NAME/notes; empty: there is none.

    pyelftools reads notes of an ELF file alone, and these are without one. A loader reads them after each load, so this
    imports little.
    """
    at = 0
    while at + _HEAD <= len(notes):
        name_size, size, kind = memoryview(notes)[at : at + _HEAD].cast("I")
        name_at = at + _HEAD
        content_at = name_at + (name_size + 3 & ~3)
        if (notes[name_at : name_at + name_size], kind) == _BUILD_ID:
            content = notes[content_at : content_at + size]
            return content if len(content) == size else b""
        at = content_at + (size + 3 & ~3)
    return b""
