"""The ELF reader on made images: both classes, both byte orders, damage (libkmod-elf.c)."""

from __future__ import annotations

import errno
import struct

import pytest

from kmodd.modfile import elf
from kmodd.modfile.elf import ElfError, Facts, Image, joined, strings
from tests.elf_maker import ABSOLUTE, FORMS, GLOBAL, UNDEFINED, WEAK, Maker


@FORMS
def test_every_class_and_byte_order(wide: bool, order: str) -> None:
    maker = Maker(wide, order)
    maker.add(b".modinfo", b"alias=pci:v1\0license=GPL\0\0alias=b-c\0softdep=pre: x\0weakdep=y\0alias")
    maker.add(b"crcs", struct.pack(order + "III", 1, 0xABCDEF01, 3))
    maker.versions((7, b"needed"), (9, b"module_layout"), (8, b".dotted"))
    maker.symbols(
        (b"local", 0, 1, 0),
        (b"__crc_given", GLOBAL, ABSOLUTE, 0x1234),
        (b"needed", GLOBAL, UNDEFINED, 0),
        (b"__crc_stored", 0, 2, 4),
        (b"maybe", WEAK, UNDEFINED, 0),
        (b"", GLOBAL, UNDEFINED, 0),
        (b"index_with_a_zero_byte", GLOBAL, 0x100, 0),
        (b"__crc_beyond", 0, 2, 9),
        (b"__crc_nowhere", 0, 77, 9),
        (b".dotted", GLOBAL, UNDEFINED, 0),
    )
    image = Image(maker.image())
    assert elf.facts(image) == Facts(
        aliases=b"pci:v1\0b-c\0\0", softdeps=b"pre: x\0", weakdeps=b"y\0",
        exports=b"given\0stored\0beyond\0nowhere\0",
        needs=b"needed\0maybe\0.dotted\0module_layout\0dotted\0",
    )  # fmt: skip
    versions = image.version_facts()
    assert versions.exports == (0x1234, 0xABCDEF01, 2**64 - 1, 2**64 - 1)
    assert versions.needs == (7, 0, 0, 9, 8)
    assert versions.weak == (False, True, False, False, False)


def test_exports_without_crc() -> None:
    """Only where there is no `__crc_` symbol, __ksymtab_strings counts; zero padding at its beginning does not."""
    maker = Maker().add(b"__ksymtab_strings", b"\0\0one\0\0two\0").symbols((b"x", 0, 1, 0))
    assert Image(maker.image()).exports() == [b"one", b"two"]
    assert Image(maker.image()).version_facts().exports == (0, 0)
    maker.sections[0] = (b"__ksymtab_strings", b"one")
    with pytest.raises(ElfError):
        Image(maker.image()).exports()
    assert elf.facts(Image(maker.image())).problem == errno.EINVAL


def test_the_first_section_of_a_name_counts() -> None:
    maker = Maker().add(b".modinfo", b"alias=first\0").add(b".modinfo", b"alias=second\0")
    assert Image(maker.image()).modinfo() == [b"alias=first"]


def test_without_symbols_nothing_is_needed() -> None:
    image = Image(Maker().add(b".modinfo", b"license=GPL\0").versions((1, b"module_layout")).image())
    with pytest.raises(ElfError):
        image.needs()
    assert elf.facts(image) == elf.NOTHING


def test_sparc_registers_are_not_needed_symbols() -> None:
    symbols = ((b"register", 13, UNDEFINED, 0), (b"real", GLOBAL, UNDEFINED, 0))
    assert Image(Maker(True, ">", 43).symbols(*symbols).image()).needs() == [b"real"]
    assert Image(Maker(True, ">", 22).symbols(*symbols).image()).needs() == [b"register", b"real"]


@pytest.mark.parametrize("table", [b"x" * 63, b""])
def test_versions_of_a_wrong_size_leave_the_needs_of_the_symbols(table: bytes) -> None:
    """kmod_elf_get_dependency_symbols; beside kmod itself in differential/test_depmod.py."""
    maker = Maker().add(b"__versions", table).add(b".behind", b"yz\0").symbols((b"a", GLOBAL, UNDEFINED, 0))
    assert Image(maker.image()).needs() == [b"a"]


def test_a_name_that_fills_its_field_of_versions_is_an_error() -> None:
    """kmod 30 reads on into the next section."""
    maker = Maker().add(b"__versions", b"x" * 64).add(b".behind", b"yz\0").symbols((b"a", GLOBAL, UNDEFINED, 0))
    image = Image(maker.image())
    with pytest.raises(ElfError):
        image.versions()
    with pytest.raises(ElfError):
        image.needs()


def test_a_name_outside_of_the_strings() -> None:
    maker = Maker().symbols((b"a", GLOBAL, UNDEFINED, 0), (b"__crc_b", GLOBAL, ABSOLUTE, 1))
    name, symtab = maker.sections[0]
    maker.sections[0] = (name, symtab[:24] + b"\xff\xff\xff\x00" + symtab[28:])
    assert elf.facts(Image(maker.image())) == elf.NOTHING


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"", errno.ENOEXEC),
        (b"\x7fELF\x02\x01" + bytes(10), errno.ENOEXEC),
        (b"\x7fELF\x02\x01" + bytes(20), errno.EINVAL),
        (b"\x7fELF\x03\x01" + bytes(99), errno.EINVAL),
        (b"\x7fELF\x02\x03" + bytes(99), errno.EINVAL),
        (b"\x7fELF\x02\x01" + bytes(99), errno.EINVAL),
        (b"#!/bin/sh\n" + bytes(99), errno.ENOEXEC),
    ],
)
def test_an_invalid_image_is_an_error(data: bytes, number: int) -> None:
    with pytest.raises(ElfError) as caught:
        Image(data)
    assert caught.value.number == number


def test_only_the_section_of_names_must_have_a_name_within_them() -> None:
    """As kmod 34, which skips every other section whose name is outside."""
    data = Maker().add(b".modinfo", b"a=b\0").image()
    (table,) = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)

    def without_a_name(section: int) -> bytes:
        at = table + 64 * section
        return data[:at] + struct.pack("<I", 1 << 20) + data[at + 4 :]

    for section in range(1, count):
        if section != names:
            Image(without_a_name(section))
    with pytest.raises(ElfError) as caught:
        Image(without_a_name(names))
    assert caught.value.number == errno.EINVAL


def test_every_cut_is_an_error_or_an_answer() -> None:
    data = Maker().add(b".modinfo", b"a=b\0").versions((1, b"x")).symbols((b"a", GLOBAL, UNDEFINED, 0)).image()
    for length in range(len(data)):
        with pytest.raises(ElfError):
            Image(data[:length])


def test_lists_of_strings() -> None:
    assert strings(joined([b"a", b"", b"b"])) == [b"a", b"", b"b"]
    assert strings(joined([])) == []
