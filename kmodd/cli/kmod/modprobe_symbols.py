"""`modprobe --show-modversions` and `--show-exports`: print symbols that a module imports or exports, with CRCs."""

from __future__ import annotations

import errno
import os

from kmodd.cli.kmod.messages import CRIT, Messages
from kmodd.host.module_reader import read_module
from kmodd.host.tree import Tree
from kmodd.modfile.elf import ElfError, Image


def show(text: str, wanted: bool, tree: Tree, messages: Messages) -> int:
    """Print the symbols of a module and return 0, or 1 after an error message.

    text: path of a module file, or the name of a module. wanted: imported symbols, else exported ones.
    """
    path = text
    if not tree.present(text):
        line = tree.quick_snapshot(like_kmod=True).catalog.dep(text.replace("-", "_"))
        if line is None:
            messages.log(CRIT, f"Module {text} not found.")
            return 1
        path = line.path
    try:
        image = Image(read_module(tree.real(path)))
        rows = image.versions() if wanted else _exports(image)
        code = 0 if rows or (wanted and image.section(b"__versions") is not None) else errno.ENODATA
    except OSError as error:
        rows, code = [], error.errno or errno.EIO
    except ElfError as error:
        rows, code = [], error.number
    if code:
        what = "modversions" if wanted else "symbols"
        messages.log(CRIT, f"could not get {what} of {text}: {os.strerror(code)}")
        return 1
    for name, crc in rows:
        messages.show(f"0x{crc:08x}\t{os.fsdecode(name)}")
    return 0


def _exports(image: Image) -> list[tuple[bytes, int]]:
    """Return exported symbols with their CRCs, 0 without a symbol table. Raises ElfError."""
    names = image.exports()
    try:
        checksums = image.version_facts().exports
    except ElfError:
        checksums = (0,) * len(names)
    return list(zip(names, checksums, strict=True))
