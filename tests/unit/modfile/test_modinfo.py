"""modinfo: fields, parameters, signatures, imports."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from kmodd.modfile import modinfo, signature
from kmodd.modfile.elf import ElfError
from kmodd.modfile.modinfo import Parameter
from tests import compiled
from tests.elf_maker import FORMS, Maker


@FORMS
def test_fields_in_every_form_of_elf(wide: bool, order: str) -> None:
    data = Maker(wide, order).add(b".modinfo", b"\0\0license=GPL\0\0parm=a=b:c=d\0alone\0=\0").image()
    found = modinfo.info(data)
    assert found.fields == ((b"license", b"GPL"), (b"parm", b"a=b:c=d"), (b"alone", b""), (b"", b""))
    assert found.signature is None
    assert found.build_id == b""


def test_without_modinfo() -> None:
    with pytest.raises(ElfError) as caught:
        modinfo.info(Maker().add(b".text", b"x").image())
    assert caught.value.number == errno.ENODATA


def test_the_first_modinfo_counts() -> None:
    data = Maker().add(b".modinfo", b"a=1\0").add(b".modinfo", b"a=2\0").image()
    assert modinfo.info(data).fields == ((b"a", b"1"),)


def test_parameters() -> None:
    fields = [(b"parm", b"a:first"), (b"parmtype", b"b:int"), (b"parmtype", b"a:uint"), (b"parm", b"c:d:e"),
              (b"parm", b"nocolon"), (b"parm", b"a:second"), (b"other", b"x:y")]  # fmt: skip
    found, bad = modinfo.parameters(fields)
    assert list(found.values()) == [
        Parameter(b"a", b"second", b"uint"), Parameter(b"b", None, b"int"), Parameter(b"c", b"d:e", None)
    ]  # fmt: skip
    assert bad == [(b"parm", b"nocolon")]


def test_hexadecimal() -> None:
    assert modinfo.hexadecimal(b"") == b""
    assert modinfo.hexadecimal(bytes(20)).count(b"\n") == 0
    assert modinfo.hexadecimal(bytes([255]) * 21) == b"FF:" * 20 + b"\n\t\tFF"


def test_a_signature_and_every_cut_and_bend_of_it() -> None:
    data = (compiled.modules() / "signed.ko").read_bytes()
    found = signature.parse(data)
    assert found is not None
    assert (found.kind, found.signer, found.hash) == (b"PKCS#7", b"kmodd test key", b"sha256")
    assert len(found.signature) == 256
    tail = data[-1000:]
    assert signature.parse(tail) == found
    answers = 0
    for at in range(len(tail)):
        bent = tail[:at] + bytes((tail[at] ^ 0x40,)) + tail[at + 1 :]
        answers += signature.parse(bent) is not None
        signature.parse(tail[:at])
        signature.parse(tail[at:])
    assert 0 < answers < len(tail)


def test_no_signature() -> None:
    for data in (b"", signature.MAGIC, b"x" * 11 + signature.MAGIC, b"x" * 100, bytes(12) + signature.MAGIC):
        assert signature.parse(data) is None


def test_it_imports_little() -> None:
    """A file needs no index; the ELF library is loaded only when there is something to parse."""
    code = (
        "import sys; from kmodd.cli.kmod.modinfo import main; main(['-n', sys.argv[1]]); "
        "print(sorted(set(sys.modules) & set(sys.argv[2:])))"
    )
    file = str(compiled.modules() / "mod1.ko")
    names = ["elftools", "lzma", "zstandard", "json", "kmodd.host.tree", "kmodd.index.catalog", "argparse"]
    names += ["subprocess"]
    done = subprocess.run([sys.executable, "-c", code, file, *names], capture_output=True, text=True)
    assert done.stdout == f"{file}\n[]\n"
