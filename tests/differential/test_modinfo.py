"""Our modinfo and static-nodes, and kmod 34's: equal bytes, equal status; elf.py and pyelftools: equal views.

Every module of the full trees, files that are odd in one way each, and builtins.
"""

from __future__ import annotations

import gzip
import json
import lzma
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section, SymbolTableSection

from kmodd.cli import static_nodes
from kmodd.cli.kmod import modinfo
from kmodd.host.module_reader import read_module
from kmodd.modfile import elf
from kmodd.modfile.elf import ElfError, Image
from kmodd.names import module_of_path
from tests import compiled, trees
from tests.differential.kmod_peer import KmodPeer, kmod_34
from tests.rootfs import Said
from tests.tool import difference, ours

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

FLAVOURS = {"6.1-amd64": 4000, "6.1-cloud-amd64": 1000, "6.12-amd64": 4000}
"""Flavour → modules that its tree has at least."""
BATCH = 500


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    with trees.may_be_away():
        return kmod_34(tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="module")
def modules() -> Path:
    return compiled.modules()


@pytest.fixture(scope="module", params=FLAVOURS)
def tree(request: pytest.FixtureRequest) -> tuple[str, Path]:
    flavour: str = request.param
    with trees.may_be_away(flavour):
        return flavour, trees.debian_tree(flavour)


def batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), BATCH):
        yield names[start : start + BATCH]


def paths(root: Path) -> list[str]:
    """The files of all modules, below the module directory."""
    lines = (trees.module_dir(root) / "modules.dep").read_text().splitlines()
    return [line.partition(":")[0] for line in lines]


# ── full trees ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_module(peer: KmodPeer, tree: tuple[str, Path]) -> None:
    flavour, root = tree
    names = [module_of_path(path) for path in paths(root)]
    compared = 0
    for batch in batches([str(name) for name in names]):
        command = ["-b", str(root), "-k", trees.release(root), *batch]
        theirs, mine = peer.run(command, name="modinfo"), ours(modinfo.main, command)
        assert difference(theirs, mine) == ""
        compared += theirs.out.count(b"\nfilename: ") + 1
    assert compared == len(names) >= FLAVOURS[flavour]


@pytest.mark.parametrize("option", ["", "-m", "-0", "-n", "-F name", "-F alias", "-F file"])
def test_every_builtin(peer: KmodPeer, tree: tuple[str, Path], option: str) -> None:
    _, root = tree
    lines = (trees.module_dir(root) / "modules.builtin").read_text().splitlines()
    names = [str(module_of_path(line)) for line in lines]
    command = ["-b", str(root), "-k", trees.release(root), *option.split(), *names, "nosuchmodule"]
    theirs = peer.run(command, name="modinfo")
    assert difference(theirs, ours(modinfo.main, command)) == ""
    assert theirs.status == 1
    assert len(names) >= 100


def test_elf_reader_sees_what_pyelftools_sees() -> None:
    """The struct reader of depmod's hot path, on every module: .modinfo, exports and needs with CRC and binding."""
    flavour = "6.1-amd64"
    root = trees.debian_tree(flavour)
    compared = 0
    for path in paths(root):
        data = read_module(str(trees.module_dir(root) / path))
        image = Image(data)
        assert our_view(image) == pyelftools_view(data), path
        compared += 1
    assert compared >= FLAVOURS[flavour]


SystemState = tuple[list[bytes], list[tuple[bytes, int]], list[tuple[bytes, int, bool]]]


def our_view(image: Image) -> SystemState:
    versions = image.version_facts()
    exports = list(zip(image.exports(), versions.exports, strict=True))
    return image.modinfo(), exports, list(zip(image.needs(), versions.needs, versions.weak, strict=True))


class _Bytes:
    """A file in memory; what pyelftools reads is not copied first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, len(self.data))[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        found = self.data[self.at : self.at + size]
        self.at += len(found)
        return found


def pyelftools_view(data: bytes) -> SystemState:
    """The same by pyelftools, symbol by symbol, except that it decodes only the symbols that count."""
    file = ELFFile(_Bytes(data))
    sections: dict[str, Section] = {}
    for section in file.iter_sections():
        sections.setdefault(section.name, section)
    modinfo_strings = [text for text in sections[".modinfo"].data().split(b"\0") if text]
    crcs: dict[bytes, int] = {}
    if "__versions" in sections:
        for crc, name in struct.iter_unpack("<Q56s", sections["__versions"].data()):
            crcs.setdefault(name.partition(b"\0")[0], crc)
    table = sections[".symtab"]
    assert isinstance(table, SymbolTableSection)
    exports = []
    needs = []
    seen = set()
    raw = table.data()
    has_crcs = b"__crc_" in file.get_section(table["sh_link"]).data()
    for number in range(1, table.num_symbols()):
        undefined = raw[24 * number + 6 : 24 * number + 8] == b"\0\0"
        if not undefined and (not has_crcs or raw[24 * number + 4] & 15):  # the symbol of a CRC has no type
            continue
        symbol = table.get_symbol(number)
        name = symbol.name.encode("latin-1")
        if symbol["st_shndx"] == "SHN_UNDEF":
            if name:
                needs.append((name, crcs.get(name, 0), symbol["st_info"]["bind"] == "STB_WEAK"))
                seen.add(name)
        elif name.startswith(b"__crc_"):
            crc = symbol["st_value"]
            if symbol["st_shndx"] != "SHN_ABS":
                start = file.get_section(symbol["st_shndx"])["sh_offset"] + crc
                crc = int.from_bytes(data[start : start + 4], "little")
            exports.append((name.removeprefix(b"__crc_"), crc))
    needs += [(name, crc, False) for name, crc in crcs.items() if name not in seen]
    if not exports and "__ksymtab_strings" in sections:
        exports = [(name, 0) for name in sections["__ksymtab_strings"].data().split(b"\0") if name]
    return modinfo_strings, exports, needs


# ── odd files ────────────────────────────────────────────────────────────────────────────────────────────────────────

OPTIONS = ("", "-0", "-p", "-a", "-d", "-l", "-n", "-F parm", "-F parmtype", "-F signer", "-F signature", "-F Alias",
           "-F alias", "-F name", "-F filename", "-0 -F parm", "-m", "--field=depends", "-F nothing")  # fmt: skip


def odd_files(folder: Path, modules: Path) -> list[Path]:
    """Files that are odd in one way each, beside our modules."""
    mod1 = (modules / "mod1.ko").read_bytes()
    signed = (modules / "signed.ko").read_bytes()
    end = len(signed) - 40
    length = int.from_bytes(signed[end + 8 : end + 12], "big")
    magic = b"~Module signature appended~\n"

    def old(signer: bytes, key: bytes, signature: bytes, *kind: int) -> bytes:
        block = struct.pack(">5B3xI", *kind, len(signer), len(key), len(signature))
        return mod1 + signer + key + signature + block + magic

    contents = {
        "empty.ko": b"",
        "five.ko": b"\x7fELF\x02",
        "text.ko": b"no module at all\n" * 9,
        "cut.ko": mod1[:30000],
        "headless.ko": mod1[64:],
        "packed.ko.xz": lzma.compress(mod1),
        "packed_signed.ko.xz": lzma.compress(signed),
        "cut.ko.xz": lzma.compress(mod1)[:800],
        "plain.ko.xz": mod1,
        "xz.ko": lzma.compress(mod1),
        "two.dots.ko": mod1,
        "da-sh.ko": mod1,
        "no_magic.ko": signed[:-1] + b"x",
        "bent_signature.ko": signed[: end - length + 5] + b"\xff" + signed[end - length + 6 :],
        "long_signature.ko": signed[: end + 8] + b"\xff\xff\xff\xff" + signed[end + 12 :],
        "x509.ko": old(b"A signer", bytes(range(20)), bytes(range(200, 256)), 1, 4, 1),
        "pgp.ko": old(b"", b"", b"\1", 0, 8, 0),
        "hash9.ko": old(b"a", b"b", b"\1", 0, 9, 0),
        "kind3.ko": old(b"a", b"b", b"\1", 0, 4, 3),
        "algorithm2.ko": old(b"a", b"b", b"\1", 2, 4, 1),
        "no_signature.ko": old(b"a", b"b", b"", 0, 4, 1),
        "twenty.ko": old(b"a", bytes(21), bytes(40), 0, 0, 1),
        "pkcs7_rubbish.ko": old(b"", b"", bytes(100), 0, 0, 2),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    for section in (".modinfo", ".symtab", ".strtab"):
        target = folder / f"without_{section[1:]}.ko"
        subprocess.run(["objcopy", "--rename-section", f"{section}=.x", modules / "mod1.ko", target], check=True)
    odd = [b"alias", b"=x", b"parm=nocolon", b"parm=a:", b"parmtype=a:int", b"parm=:x", b"parm=a:again", b"", b"\xff="]
    table = folder / "table"
    table.write_bytes(b"\0\0" + b"\0".join(odd) + b"\0last=unterminated")
    for name in ("odd_modinfo", "empty_modinfo"):
        target = folder / f"{name}.ko"
        subprocess.run(["objcopy", "--update-section", f".modinfo={table}", modules / "mod1.ko", target], check=True)
        table.write_bytes(b"\0\0\0")
    (folder / "link.ko").symlink_to(modules / "mod2.ko")
    (folder / "dead.ko").symlink_to("nowhere")
    (folder / "folder.ko").mkdir()
    return sorted(path for path in [*folder.iterdir(), *modules.glob("*.ko")] if path.name != "table")


def test_odd_files(peer: KmodPeer, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = odd_files(tmp_path, modules)
    compared = 0
    for option in OPTIONS:
        for file in files:
            command = [*option.split(), str(file)]
            theirs = peer.run(command, name="modinfo")
            assert difference(theirs, ours(modinfo.main, command)) == "", command
            compared += 1
    assert len(files) >= 40
    assert compared >= 700
    monkeypatch.chdir(tmp_path)
    for name in ("./text.ko", "x509.ko", f"../{tmp_path.name}/pgp.ko", "nothing.ko", "dead.ko", "folder.ko", "link.ko"):
        assert difference(peer.run([name], name="modinfo"), ours(modinfo.main, [name])) == "", name


def test_lookup_and_command_line(peer: KmodPeer, modules: Path) -> None:
    root = trees.debian_tree("6.1-amd64")
    base = ["-b", str(root), "-k", trees.release(root)]
    names = (
        "ext4 fs-ext4 ext-4 e1000e pci:v00008086d000010D3sv0sd0bc02sc00i00 symbol:usb_register_driver "
        "char-major-10-237 "
        "usb:v1D6Bp0002d0601dc09dsc00dp01ic09isc00ip00in00 acpi-cpufreq acpi_cpufreq unix net-pf-1 a[b a]b [x] nosuch "
        "snd-hda-intel kernel/fs/ext4/ext4.ko ext4.ko EXT4 virtio:d00000001v00001AF4 x:y loop.anything"
    ).split()
    for option in ("", "-m", "-n", "-F alias", "-0"):
        for name in names:
            command = [*base, *option.split(), name]
            theirs = peer.run(command, name="modinfo")
            assert difference(theirs, ours(modinfo.main, command)) == "", command
    file = str(modules / "params.ko")
    for words in ("", "-h", "-z", "-F", "--nosuch", "-b", "-n -p {}", "-p -n {} {}", "--aut {}", "-- {}", "-k 9 x"):
        command = words.replace("{}", file).split()
        theirs = peer.run(command, name="modinfo")
        assert difference(theirs, ours(modinfo.main, command)) == "", command


def test_a_flipped_byte_is_a_difference(peer: KmodPeer, modules: Path) -> None:
    theirs = peer.run([str(modules / "params.ko")], name="modinfo")
    flipped = bytes((theirs.out[0] ^ 1,)) + theirs.out[1:]
    assert difference(theirs, Said(flipped, theirs.err, theirs.status)) != ""


def test_damaged_modules(peer: KmodPeer, modules: Path, tmp_path: Path, rng: random.Random) -> None:
    """Bytes bent in the header and the section table: the same fields or the same error, unless kmod itself crashes."""
    compared = 0
    for number in range(150):
        data = bytearray((modules / rng.choice(["params.ko", "aliases-many.ko", "mod1.ko"])).read_bytes())
        table = int.from_bytes(data[40:48], "little")
        for _ in range(rng.randint(1, 3)):
            start, end = rng.choice(((0, 64), (table, table + 64 * 40)))
            data[rng.randrange(start, end)] = rng.randrange(256)
        file = tmp_path / f"damaged{number}.ko"
        file.write_bytes(data)
        theirs = peer.run([str(file)], name="modinfo")
        if theirs.status >= 0:
            assert difference(theirs, ours(modinfo.main, [str(file)])) == "", f"damaged{number}"
            compared += 1
    assert compared >= 100


# ── our own ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_equals_the_text(modules: Path, tmp_path: Path) -> None:
    for file in sorted(modules.glob("*.ko")):
        said = ours(modinfo.main, ["--json", str(file)])
        found = json.loads(said.out)
        lines = ours(modinfo.main, [str(file)]).out.decode()
        assert found["filename"] == str(file)
        for key, values in found["fields"].items():
            assert all(f"\n{key}:" in lines and value in lines for value in values)
        notes = subprocess.run(["readelf", "-n", str(file)], capture_output=True, text=True).stdout
        assert f"Build ID: {found['build_id']}" in notes
        assert (found["signature"] is not None) == (file.name == "signed.ko")
    packed = tmp_path / "mod1.ko.gz"
    packed.write_bytes(gzip.compress((modules / "mod1.ko").read_bytes()))
    both = ours(modinfo.main, ["--json", str(packed), str(modules / "params.ko")]).out.splitlines()
    assert [json.loads(line)["name"] for line in both] == ["mod1", "params"]
    kinds = {each["name"]: each["type"] for each in json.loads(both[1])["parameters"]}
    assert kinds["huge"] == "ullong"
    assert kinds["not_there"] is None
    only = json.loads(ours(modinfo.main, ["--json", "-F", "license", str(packed)]).out)
    assert only["fields"] == {"license": ["GPL"]}


def test_elf_reader_refuses_what_is_none() -> None:
    with pytest.raises(ElfError):
        Image(b"\x7fELF")
    assert elf.facts(Image(b"\x7fELF\x02\x01" + bytes(34) + b"@" + bytes(17) + b"\x40\0\2\0\1\0" + bytes(64) + bytes(24)
                           + b"\xbf" + bytes(7) + b"\1" + bytes(31))) == elf.NOTHING  # fmt: skip


# ── static-nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────

DEVNAMES = (
    "# head\nloop loop-control c10:237\nfuse fuse c10:229\nsnd snd/seq c116:1\na b/c/d b7:0\n",
    "bad line\nx y z\nx y c1:2 more\n  x\ty  c1:2\nx y c1:x\nx y d1:2\n\n#\nx y c-1:4294967299\n",
    "x y c1 :2\nx y c 1: 2\nx\ry c1:2\nx y c1:2\r\n",
    "no newline c1:2",
    "",
)


@pytest.mark.parametrize("text", DEVNAMES)
@pytest.mark.parametrize("option", ["", "-f human", "-f tmpfiles", "-f devname", "--format=tmpfiles"])
def test_static_nodes(peer: KmodPeer, tmp_path: Path, text: str, option: str) -> None:
    folder = tmp_path / "lib" / "modules" / "6.1.0-x"
    folder.mkdir(parents=True)
    (folder / "modules.devname").write_text(text)
    argv = option.split()
    theirs = peer.run(["static-nodes", *argv], tmp_path, "6.1.0-x", name="kmod")
    mine = ours(static_nodes.main, ["--root", str(tmp_path), "--kernel", "6.1.0-x", *argv])
    assert difference(theirs, mine) == ""
    place = tmp_path / "new" / "folder" / "nodes"
    assert ours(static_nodes.main, ["--root", str(tmp_path), "--kernel", "6.1.0-x", *argv, "-o", str(place)]).out == b""
    assert place.read_bytes() == theirs.out


def test_static_nodes_of_a_tree(peer: KmodPeer) -> None:
    root = trees.debian_tree("6.1-amd64")
    for form in ("human", "tmpfiles", "devname"):
        theirs = peer.run(["static-nodes", "-f", form], root, trees.release(root), name="kmod")
        mine = ours(static_nodes.main, ["--root", str(root), "--kernel", trees.release(root), "-f", form])
        assert difference(theirs, mine) == ""
        assert mine.out.count(b"\n") >= 10


@pytest.mark.parametrize("words", ["-h", "-f nosuch", "-z", "-f", "--nosuch", "-f human", "-o /nosuch/x"])
def test_static_nodes_without_a_tree(peer: KmodPeer, tmp_path: Path, words: str) -> None:
    theirs = peer.run(["static-nodes", *words.split()], tmp_path, "6.1.0-x", name="kmod")
    mine = ours(static_nodes.main, ["--root", str(tmp_path), "--kernel", "6.1.0-x", *words.split()])
    assert difference(theirs, mine) == ""
