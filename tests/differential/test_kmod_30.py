"""Rows of docs/COMPAT.md on Debian 12's kmod 30 that the other comparisons do not show.

Each command gives the same with kmod 34's tool and with ours, and something else with kmod 30's.
"""

from __future__ import annotations

import lzma
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from kmodd.cli.kmod import depmod, insmod, modinfo, modprobe
from tests import acting, compiled, rootfs, trees
from tests.differential import depmod_cases
from tests.differential.depmod_cases import Place
from tests.differential.kernel_peer import KernelPeer
from tests.differential.kmod_peer import KmodPeer, kmod_30, kmod_34
from tests.elf_maker import Maker
from tests.rootfs import Said
from tests.tool import Main, contents, ours

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

TOOLS: Mapping[str, Main] = MappingProxyType(
    {"depmod": depmod.main, "insmod": insmod.main, "modinfo": modinfo.main, "modprobe": modprobe.main}
)
COMPAT = Path(__file__).parents[2] / "docs" / "COMPAT.md"
SHA_256, SHA3_256 = (bytes.fromhex(f"60864801650304020{digit}") for digit in "18")


def unmerged(place: Place) -> None:
    """A /usr/lib/modprobe.d beside /lib/modprobe.d."""
    place.write("/usr/lib/modprobe.d/x.conf", "alias unmerged loop\n")
    place.write("modules.dep", "")


def same_second(place: Place) -> None:
    """A module that is a microsecond younger than modules.dep."""
    depmod_cases.course(place)
    place.write("modules.dep", "")
    second = 1_700_000_000_000_000_000
    for path in place.directory.rglob("*.ko"):
        os.utime(path, ns=(second, second))
    os.utime(place.directory / "modules.dep", ns=(second, second + 1000))
    os.utime(place.directory / "kernel/mod1.ko", ns=(second, second + 2000))


def odd_modules(place: Place) -> None:
    """bare: without .modinfo; long: with a long key; sha3: with the name of another hash in its signature."""
    place.write("bare.ko", Maker().add(b".text", b"x").image())
    place.write("long.ko", Maker().add(b".modinfo", b"a_key_of_more_than_15=1\0license=GPL\0").image())
    signed = (place.compiled / "signed.ko").read_bytes()
    assert SHA_256 in signed
    place.write("sha3.ko", signed.replace(SHA_256, SHA3_256))


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and a command that shows it."""

    name: str
    build: Callable[[Place], None]
    command: str


ROWS = (
    Row("`/usr/lib/modprobe.d` that is not `/lib/modprobe.d`", unmerged, "modprobe -c"),
    Row("`insmod -f`, `--force`, `--syslog`, `--verbose`", unmerged, "insmod --force /nosuch.ko"),
    Row("`insmod -f`, `--force`, `--syslog`, `--verbose`", unmerged, "insmod --verbose /nosuch.ko"),
    Row("`depmod -m DIR`, `-o DIR`", depmod_cases.course, "depmod -b {root} -o {root}/out VERSION"),
    Row("layout of `modules.*.bin`", depmod_cases.aliases, "depmod -b {root} VERSION"),
    Row("`modules.weakdep`", depmod_cases.course, "depmod -b {root} VERSION"),
    Row("a module without `.modinfo`, or without symbols", odd_modules, "modinfo {directory}/bare.ko"),
    Row("a key of more than 15 bytes in modinfo", odd_modules, "modinfo {directory}/long.ko"),
    Row("names of hash algorithms in `sig_hashalgo`", odd_modules, "modinfo -F sig_hashalgo {directory}/sha3.ko"),
)

ELSEWHERE = ("place in the source", "a compressed module that the kernel can decompress")
"""Rows with a test of their own, in test_modprobe.py and below."""

Result = tuple[Said, dict[str, bytes], dict[str, bytes]]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> tuple[KmodPeer, KmodPeer]:
    """kmod 30 and kmod 34."""
    with trees.may_be_away():
        return kmod_30(tmp_path_factory.mktemp("peer30")), kmod_34(tmp_path_factory.mktemp("peer34"))


def run(row: Row, root: Path, peer: KmodPeer | None) -> Result:
    """Build the row's machine at `root` and run its command by a kmod, or by ours; return output and index files."""
    place = Place(root, compiled.modules())
    place.directory.mkdir(parents=True)
    row.build(place)
    words = row.command.format(root=root, directory=place.directory).replace("VERSION", depmod_cases.RELEASE)
    tool, *argv = words.split()
    if peer is not None:
        said = peer.run(argv, root if tool == "modprobe" else None, depmod_cases.RELEASE, tool)
    else:
        under = ["--root", str(root), "-S", depmod_cases.RELEASE] if tool == "modprobe" else []
        said = ours(TOOLS[tool], [*under, *argv])
    out = root / "out/lib/modules" / depmod_cases.RELEASE
    files = (contents(out), contents(place.directory))
    for written in files:
        written.pop("modules.kmodd-cache", None)
    return said, *files


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.command)
def test_row(row: Row, peers: tuple[KmodPeer, KmodPeer], tmp_path: Path) -> None:
    """One path for all three: messages name it."""
    results = []
    for number, peer in enumerate((*peers, None)):
        root = tmp_path / "root"
        results.append(run(row, root, peer))
        root.rename(tmp_path / str(number))
    of_30, of_34, mine = results
    assert mine == of_34
    assert of_30 != of_34, f"kmod 30 does the same: the row {row.name!r} is no longer needed"


def test_only_ours_sees_a_module_of_the_same_second(peers: tuple[KmodPeer, KmodPeer], tmp_path: Path) -> None:
    """The row "`depmod -A`", of both kmods."""
    row = Row("`depmod -A`", same_second, "depmod -A -b {root} VERSION")
    made = [run(row, tmp_path / str(number), peer)[2]["modules.dep"] for number, peer in enumerate((*peers, None))]
    assert made[:2] == [b"", b""]
    assert b"mod1.ko:" in made[2]


def test_compressed_modules_reach_the_kernel_as_they_are(tmp_path: Path, peers: tuple[KmodPeer, KmodPeer]) -> None:
    """Ours does as kmod 34: tests/vm/test_sandbox.py has the calls on real kernels."""
    calls = []
    for number, peer in enumerate(peers):
        folder = tmp_path / f"peer{number}"
        folder.mkdir()
        machine = acting.Scenario("", []).build(tmp_path / str(number))
        (machine.root / "sys/module/compression").write_text("xz\n")
        packed = machine.root / "packed.ko.xz"
        packed.write_bytes(lzma.compress(b"packed "))
        assert KernelPeer(peer, folder).run(machine, [str(packed)], rootfs.RELEASE, "insmod").status == 0
        calls.append([call[0] for call in machine.calls])
    assert calls == [["image"], ["insert"]]


def test_every_row_on_kmod_30_has_a_test() -> None:
    """By its name, in this folder."""
    table = COMPAT.read_text().partition("\n## Debian 12's kmod 30\n")[2].partition("\n## ")[0]
    names = re.findall(r"^\| (.+?) \| ", table, re.MULTILINE)[2:]
    assert len(names) > 20
    assert {row.name for row in ROWS} | {*ELSEWHERE} <= {*names}
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert [name for name in names if f'"{name}"' not in sources] == []
