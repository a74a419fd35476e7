"""ELF images made section by section, of both classes and byte orders."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest


@dataclass
class Maker:
    """Puts an ELF image together, section by section."""

    wide: bool = True
    order: str = "<"
    machine: int = 62
    sections: list[tuple[bytes, bytes]] = field(default_factory=list)

    def add(self, name: bytes, data: bytes) -> Maker:
        self.sections.append((name, data))
        return self

    def symbols(self, *symbols: tuple[bytes, int, int, int]) -> Maker:
        """.symtab and .strtab, from name, info, section index and value; the empty first symbol is added."""
        table = bytearray()
        names = bytearray(b"\0")
        for name, info, shndx, value in ((b"", 0, 0, 0), *symbols):
            at = 0
            if name:
                at = len(names)
                names += name + b"\0"
            if self.wide:
                table += struct.pack(self.order + "IBBHQQ", at, info, 0, shndx, value, 0)
            else:
                table += struct.pack(self.order + "IIIBBH", at, value, 0, info, 0, shndx)
        return self.add(b".symtab", bytes(table)).add(b".strtab", bytes(names))

    def versions(self, *entries: tuple[int, bytes]) -> Maker:
        form = self.order + ("Q56s" if self.wide else "I60s")
        return self.add(b"__versions", b"".join(struct.pack(form, crc, name) for crc, name in entries))

    def image(self) -> bytes:
        size = 64 if self.wide else 52
        names = bytearray(b"\0")
        body = bytearray()
        rows = [(0, 0, 0)]
        for name, data in [*self.sections, (b".shstrtab", b"")]:
            name_at = len(names)
            names += name + b"\0"
            if name == b".shstrtab":
                data = bytes(names)
            rows.append((name_at, size + len(body), len(data)))
            body += data
        if self.wide:
            form = self.order + "IIQQQQIIQQ"
            table = b"".join(struct.pack(form, name, 1, 0, 0, at, end, 0, 0, 1, 0) for name, at, end in rows)
            numbers = (1, self.machine, 1, 0, 0, size + len(body), 0, 64, 0, 0, 64, len(rows), len(rows) - 1)
            head = struct.pack(self.order + "HHIQQQIHHHHHH", *numbers)
        else:
            form = self.order + "10I"
            table = b"".join(struct.pack(form, name, 1, 0, 0, at, end, 0, 0, 1, 0) for name, at, end in rows)
            numbers = (1, self.machine, 1, 0, 0, size + len(body), 0, 52, 0, 0, 40, len(rows), len(rows) - 1)
            head = struct.pack(self.order + "HHIIIIIHHHHHH", *numbers)
        ident = b"\x7fELF" + bytes((2 if self.wide else 1, 1 if self.order == "<" else 2, 1)) + bytes(9)
        return ident + head + body + table


FORMS = pytest.mark.parametrize(("wide", "order"), [(True, "<"), (True, ">"), (False, "<"), (False, ">")])
GLOBAL, WEAK = 0x10, 0x20
UNDEFINED, ABSOLUTE = 0, 0xFFF1
