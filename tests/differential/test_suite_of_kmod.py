"""What kmod's own test suite states of the tools, in other words and beside both kmods.

The suite's tests of modprobe, depmod, insmod, rmmod, lsmod and static-nodes have their like in fixtures/rootfs,
tests/acting.py, depmod_cases.py and test_modinfo.py; here is what those lack.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from kmodd.cli.kmod import modinfo
from tests import compiled, rootfs, trees
from tests.differential.kmod_peer import KmodPeer, kmod_30, kmod_34
from tests.rootfs import Said
from tests.tool import difference, ours

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

TEXTS = (
    "modules.alias", "modules.builtin", "modules.builtin.modinfo", "modules.dep", "modules.devname", "modules.order",
    "modules.softdep", "modules.symbols", "modules.weakdep",
)  # fmt: skip
NAMES = (
    "ext4.* ext4.x kmodplib kmod.lib kmodxlib barabsss a1234Z m1234Z -aa-cc- _aa_cc_ -aab-cc -aa-b-b-cc _aa_b_b_cc "
    "aa_bb_cc- aa-bb-cc- snd-hda-intel iTCO_wdt balbalbalbbalbalbal - [ ] a] [a [] * ? \\ext4 \xff é"
).split()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> tuple[KmodPeer, KmodPeer]:
    """kmod 30 and kmod 34."""
    with trees.may_be_away():
        return kmod_30(tmp_path_factory.mktemp("peer30")), kmod_34(tmp_path_factory.mktemp("peer34"))


def differences(peers: Sequence[KmodPeer], root: Path, *words: str) -> list[str]:
    """What each kmod's modprobe does otherwise than ours below `root`."""
    own = rootfs.ours(["--root", str(root), "-S", rootfs.RELEASE, *words])
    said = [peer.run(words, root, rootfs.RELEASE) for peer in peers]
    return [text for theirs in said if (text := difference(theirs, own))]


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("name", TEXTS)
def test_a_tree_of_an_older_kernel_without_a_text(
    peers: tuple[KmodPeer, KmodPeer], tmp_path: Path, name: str, is_there: bool
) -> None:
    """An index of text that is missing or empty beside whole `.bin` files, as of a kernel that does not make it."""
    root = rootfs.build("builtin", tmp_path / "root")
    file = root / "lib/modules" / rootfs.RELEASE / name
    file.unlink(missing_ok=True)
    if is_there:
        file.touch()
    for command in ("-D loop", "-R fs-ext4", "-D crypto_algapi", "-D kvm-intel", "-n -v ext4", "-R crc16", "-c"):
        assert differences(peers, root, *command.split()) == [], command


def test_an_empty_index_of_the_aliases_of_builtins(peers: tuple[KmodPeer, KmodPeer], tmp_path: Path) -> None:
    """As depmod leaves it for a kernel without modules.builtin.modinfo: no module is lost."""
    root = rootfs.build("builtin", tmp_path / "root")
    directory = root / "lib/modules" / rootfs.RELEASE
    (directory / "modules.builtin.modinfo").unlink()
    (directory / "modules.builtin.alias.bin").write_bytes(b"")
    for command in ("-D loop", "-D crypto_algapi", "-R fs-ext4"):
        assert differences(peers, root, *command.split()) == [], command


@pytest.mark.parametrize("option", ["-R", "-D"])
def test_names_that_are_normalized(peers: tuple[KmodPeer, KmodPeer], tmp_path: Path, option: str) -> None:
    """Dashes outside of brackets are underscores, those inside are ranges, in names and in patterns."""
    root = rootfs.build("names", tmp_path / "root")
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/a.conf").write_text(
        "alias ext4.* ext4\nalias kmod[p.b]lib loop\nalias bar[aaa][bbbb]sss tun\nalias [az]1234[AZ] dummy\n"
        "alias -aa[-bb-]cc- fuse\nalias -aa-b[-]b-cc loop\nalias aa-bb-cc_ loop\n"
    )
    found = [name for name in NAMES if not differences(peers, root, option, "--", name)]
    assert found == NAMES
    assert rootfs.ours(["--root", str(root), "-S", rootfs.RELEASE, "-R", "aa_bb-cc-"]).out == b"loop\n"
    assert rootfs.ours(["--root", str(root), "-S", rootfs.RELEASE, "-R", "kmodxlib"]).status == 1


@pytest.mark.parametrize("place", ["extra/mod1.ko", "{root}/outside/mod1.ko", "{root}/outside/gone.ko"])
def test_modinfo_finds_a_module_where_modules_dep_says(
    peers: tuple[KmodPeer, KmodPeer], tmp_path: Path, place: str
) -> None:
    """Below the tree or outside of it; only what is read from a file that is not there is an error."""
    directory = tmp_path / "lib/modules" / rootfs.RELEASE
    for folder in (directory / "extra", tmp_path / "outside"):
        folder.mkdir(parents=True)
        shutil.copy(compiled.modules() / "mod1.ko", folder)
    path = place.format(root=tmp_path)
    (directory / "modules.dep").write_text(f"{path}:\n")
    (directory / "modules.dep.bin").write_bytes(rootfs.twins(directory)["modules.dep.bin"])
    name = path.rpartition("/")[2].removesuffix(".ko")
    for option in ("-F filename", "-F depends", "", "-n"):
        words = ["-b", str(tmp_path), "-k", rootfs.RELEASE, *option.split(), name]
        own: Said = ours(modinfo.main, words)
        assert [difference(peer.run(words, name="modinfo"), own) for peer in peers] == ["", ""], option
        assert own.status == int("gone" in place and option in ("", "-F depends"))
