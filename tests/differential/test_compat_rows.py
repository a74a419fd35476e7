"""Rows of docs/COMPAT.md that no other test holds: each fails when the program of the row does as kmodd."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.cli.kmod import depmod, insmod, modinfo
from tests import compiled, rootfs, trees
from tests.differential.kmod_peer import KmodPeer, kmod_30, kmod_34
from tests.elf_maker import Maker
from tests.rootfs import Said
from tests.tool import difference, ours

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def kmod30(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    return kmod_30(tmp_path_factory.mktemp("30"))


@pytest.fixture(scope="module")
def kmod34(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    with trees.may_be_away():
        return kmod_34(tmp_path_factory.mktemp("34"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return rootfs.build("names", tmp_path / "root")


def modprobe(root: Path, *words: str) -> Said:
    return rootfs.ours(["--root", str(root), "-S", rootfs.RELEASE, *words])


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


# ── modprobe ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_usr_lib_modprobe_d(kmod30: KmodPeer, kmod34: KmodPeer, root: Path) -> None:
    put(root, "usr/lib/modprobe.d/a.conf", "alias one loop\n")
    put(root, "lib/modprobe.d/b.conf", "alias two loop\n")
    old = [kmod30.run(["-R", name], root, rootfs.RELEASE).status for name in ("one", "two")]
    new = [kmod34.run(["-R", name], root, rootfs.RELEASE).status for name in ("one", "two")]
    assert (old, new) == ([1, 0], [0, 0])
    assert [modprobe(root, "-R", name).status for name in ("one", "two")] == new


@pytest.mark.parametrize(
    "words", [("--show-alias", "ext4"), ("--show-exports", "ext4"), ("--show-modversions", "ext4")]
)
def test_names_of_the_unreleased_master(kmod30: KmodPeer, kmod34: KmodPeer, root: Path, words: tuple[str, str]) -> None:
    """No release knows the option, or takes a name where it wants a path."""
    assert kmod30.run(words, root, rootfs.RELEASE).status == 1
    assert kmod34.run(words, root, rootfs.RELEASE).status == 1
    mine = modprobe(root, *words)
    assert (mine.status == 0) is (words[0] == "--show-alias")
    assert b"unrecognized option" not in mine.err


def test_a_dry_run_without_v_prints_nothing(kmod30: KmodPeer, kmod34: KmodPeer, root: Path) -> None:
    for peer in (kmod30, kmod34):
        assert peer.run(["-n", "loop"], root, rootfs.RELEASE) == modprobe(root, "-n", "loop") == Said(b"", b"", 0)
        assert peer.run(["-n", "-v", "loop"], root, rootfs.RELEASE).out == modprobe(root, "-n", "-v", "loop").out != b""


@pytest.mark.parametrize("option", ["--root=/nowhere", "--ro", "--no-d", "--js"])
def test_options_of_kmodd(kmod30: KmodPeer, kmod34: KmodPeer, root: Path, option: str) -> None:
    """kmod knows none of them; where they are abbreviated, kmodd says the same."""
    for peer in (kmod30, kmod34):
        theirs = peer.run([option, "-R", "loop"], root, rootfs.RELEASE)
        assert (theirs.status, b"unrecognized option" in theirs.err) == (1, True)
        if "=" not in option:
            assert difference(theirs, modprobe(root, option, "-R", "loop")) == ""
    assert rootfs.ours([f"--root={root}", "-S", rootfs.RELEASE, "-R", "loop"]).status == 0


def test_name_in_messages_of_getopt(kmod34: KmodPeer, root: Path) -> None:
    theirs = kmod34.run(["-?"], root, rootfs.RELEASE, name="/sbin/modprobe")
    assert theirs.err.startswith(b"/sbin/modprobe: ")
    assert modprobe(root, "-?").err.startswith(b"modprobe: ")


@pytest.mark.parametrize("is_bare", [True, False])
def test_a_tree_without_bin_files(kmod30: KmodPeer, kmod34: KmodPeer, root: Path, is_bare: bool) -> None:
    for path in (root / "lib/modules" / rootfs.RELEASE).glob("*.bin") if is_bare else ():
        path.unlink()
    assert modprobe(root, "-R", "fs-ext4").out == b"ext4\n"
    for peer in (kmod30, kmod34):
        assert peer.run(["-R", "fs-ext4"], root, rootfs.RELEASE).status == int(is_bare)


def test_an_index_that_a_power_cut_has_left_empty(kmod30: KmodPeer, kmod34: KmodPeer, root: Path) -> None:
    """kmod says no word about it."""
    directory = root / "lib/modules" / rootfs.RELEASE
    for name in ("modules.dep", "modules.dep.bin"):
        (directory / name).write_bytes(b"")
    mine = modprobe(root, "-D", "loop")
    assert b"depmod" in mine.err
    for peer in (kmod30, kmod34):
        theirs = peer.run(["-D", "loop"], root, rootfs.RELEASE)
        assert b"depmod" not in theirs.err
        assert theirs.status == mine.status == 1


def test_usr_lib_modules(kmod30: KmodPeer, kmod34: KmodPeer, root: Path) -> None:
    (root / "usr/lib").mkdir(parents=True, exist_ok=True)
    (root / "lib/modules").rename(root / "usr/lib/modules")
    assert modprobe(root, "-R", "fs-ext4").out == b"ext4\n"
    for peer in (kmod30, kmod34):
        assert peer.run(["-R", "fs-ext4"], root, rootfs.RELEASE).status == 1


def test_kmod_log(kmod34: KmodPeer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "etc/modprobe.d/bad.conf", "nonsense\n")
    words = ["-R", "loop"]
    quiet, loud = (kmod34.run(words, root, rootfs.RELEASE, env={"KMOD_LOG": level}) for level in ("crit", "err"))
    assert (b"nonsense" in quiet.err, b"nonsense" in loud.err) == (False, True)
    monkeypatch.setenv("KMOD_LOG", "crit")
    assert difference(loud, modprobe(root, *words)) == ""


def test_a_long_name(kmod30: KmodPeer, kmod34: KmodPeer, root: Path) -> None:
    """kmod cuts a name of more than 4,095 bytes; the control is one that all find."""
    for length, of_kmod in ((4100, 1), (200, 0)):
        put(root, "etc/modprobe.d/long.conf", f"alias {'y' * length} loop\n")
        words = ["-R", "y" * length]
        assert [peer.run(words, root, rootfs.RELEASE).status for peer in (kmod30, kmod34)] == [of_kmod, of_kmod]
        assert modprobe(root, *words).out == b"loop\n"


def test_a_backslash_before_the_first_wildcard_of_an_index(kmod30: KmodPeer, kmod34: KmodPeer, root: Path) -> None:
    """kmod takes it literally; so does a `.bin` index with kmodd, while a text is matched as fnmatch(3) does."""
    directory = root / "lib/modules" / rootfs.RELEASE
    (directory / "modules.alias").write_text("alias pre\\?x* loop\n")
    (directory / "modules.alias.bin").write_bytes(rootfs.twins(directory)["modules.alias.bin"])
    for peer in (kmod30, kmod34):
        found = [peer.run(["-R", name], root, rootfs.RELEASE).status for name in ("pre?xy", "pre\\axy")]
        assert found == [modprobe(root, "-R", name).status for name in ("pre?xy", "pre\\axy")] == [1, 0]
    (directory / "modules.alias.bin").unlink()
    assert [modprobe(root, "-R", name).status for name in ("pre?xy", "pre\\axy")] == [0, 1]


# ── insmod ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("option", ["--force", "--syslog", "--verbose"])
def test_long_options_of_insmod(kmod30: KmodPeer, kmod34: KmodPeer, option: str) -> None:
    """kmod 30 has none but -V and -h."""
    words = [option, "/nowhere/x.ko"]
    old, new, mine = kmod30.run(words, name="insmod"), kmod34.run(words, name="insmod"), ours(insmod.main, words)
    assert (b"unrecognized option" in old.err, b"unrecognized option" in new.err) == (True, False)
    assert difference(new, mine) == ""


# ── depmod ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tree(folder: Path) -> Path:
    """A tree with one module that is compiled."""
    directory = folder / "lib/modules" / rootfs.RELEASE
    directory.mkdir(parents=True)
    module = next(path for path in sorted(compiled.modules().rglob("*.ko")))
    shutil.copy(module, directory / "x.ko")
    return directory


def test_quick_compares_microseconds(kmod30: KmodPeer, kmod34: KmodPeer, tmp_path: Path) -> None:
    """A module that is newer by a tenth of a second; the control is newer by two seconds."""
    directory = tree(tmp_path)
    words = ["-b", str(tmp_path), "-A", rootfs.RELEASE]
    dep, second = directory / "modules.dep", 10**9
    written = {}
    runs: dict[str, Callable[[], Said]] = {
        "30": lambda: kmod30.run(words, name="depmod"),
        "34": lambda: kmod34.run(words, name="depmod"),
        "kmodd": lambda: ours(depmod.main, words),
    }
    for newer in (second // 10, 2 * second):
        for who, run in runs.items():
            dep.write_text("old\n")
            os.utime(dep, ns=(10**18, 10**18))
            for path in (directory / "x.ko", directory):
                os.utime(path, ns=(10**18 + newer, 10**18 + newer))
            assert run().status == 0
            written[newer, who] = dep.read_text() != "old\n"
    assert [written[second // 10, who] for who in ("30", "34", "kmodd")] == [False, False, True]
    assert [written[2 * second, who] for who in ("30", "34", "kmodd")] == [True, True, True]


def test_weakdeps_are_an_index_of_34(kmod30: KmodPeer, kmod34: KmodPeer, tmp_path: Path) -> None:
    directory = tree(tmp_path)
    words = ["-b", str(tmp_path), rootfs.RELEASE]
    index = directory / "modules.weakdep"
    assert kmod30.run(words, name="depmod").status == 0
    assert not index.exists()
    assert kmod34.run(words, name="depmod").status == 0
    theirs = index.read_bytes()
    index.unlink()
    assert ours(depmod.main, words).status == 0
    assert index.read_bytes() == theirs


@pytest.mark.parametrize("option", ["-m", "-o"])
def test_directories_of_depmod(kmod30: KmodPeer, kmod34: KmodPeer, tmp_path: Path, option: str) -> None:
    """kmod 30 takes -m for an option without a value, and does not know -o."""
    directory = tree(tmp_path)
    value = str(tmp_path / "lib/modules") if option == "-m" else str(tmp_path / "out")
    words = ["-b", str(tmp_path), option, "/lib/modules" if option == "-m" else value, rootfs.RELEASE]
    old = kmod30.run(words, name="depmod")
    assert not (directory / "modules.dep").exists()
    assert (b"invalid option" in old.err) is (option == "-o")
    assert kmod34.run(words, name="depmod").status == 0
    assert ours(depmod.main, words).status == 0


def test_an_output_directory_that_is_not_writable(kmod34: KmodPeer, tmp_path: Path) -> None:
    """kmod reports each file and ends with status 0."""
    tree(tmp_path)
    target = tmp_path / "out/lib/modules" / rootfs.RELEASE
    target.parent.mkdir(parents=True)
    target.symlink_to("/proc")
    words = ["-b", str(tmp_path), "-o", str(tmp_path / "out"), rootfs.RELEASE]
    theirs, mine = kmod34.run(words, name="depmod"), ours(depmod.main, words)
    assert (theirs.status, theirs.err.count(b"depmod: ERROR: openat(") > 5) == (0, True)
    assert (mine.status, mine.err.count(b"\n")) == (1, 1 + mine.err.count(b"WARNING"))
    assert b"depmod: FATAL: could not write the index in " in mine.err


@pytest.mark.parametrize("prefix", ["", "ab", "_"])
def test_a_symbol_prefix_is_one_character(kmod30: KmodPeer, kmod34: KmodPeer, tmp_path: Path, prefix: str) -> None:
    tree(tmp_path)
    words = ["-n", "-P", prefix, "-b", str(tmp_path), rootfs.RELEASE]
    mine = ours(depmod.main, words)
    assert mine.status == int(prefix != "_")
    assert difference(kmod34.run(words, name="depmod"), mine) == ""
    assert kmod30.run(words, name="depmod").status == mine.status


@pytest.mark.parametrize("tool", ["depmod", "modinfo"])
def test_the_version_names_zlib(kmod34: KmodPeer, tool: str) -> None:
    theirs, mine = kmod34.run(["-V"], name=tool), ours({"depmod": depmod, "modinfo": modinfo}[tool].main, ["-V"])
    assert (b"-ZLIB" in theirs.out, b"+ZLIB" in mine.out) == (True, True)
    assert mine.out.splitlines()[0] == theirs.out.splitlines()[0]


# ── modinfo ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_MAGIC = b"~Module signature appended~\n"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key with its certificate."""
    folder = tmp_path_factory.mktemp("key")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=test -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("digest", "of_30"),
    [
        ("sha1", "sha1"), ("sha256", "sha256"), ("sha384", "sha384"), ("sha512", "sha512"), ("rmd160", "rmd160"),
        ("sha3-256", ""), ("sha3-384", ""), ("sha3-512", ""), ("sha512-256", ""), ("sha512-224", ""),
    ],
)  # fmt: skip
def test_names_of_hash_algorithms(
    kmod30: KmodPeer, kmod34: KmodPeer, signer: Path, tmp_path: Path, digest: str, of_30: str
) -> None:
    module = tmp_path / "x.ko"
    content = next(path for path in sorted(compiled.modules().rglob("*.ko"))).read_bytes()
    module.write_bytes(content)
    command = f"openssl cms -sign -binary -noattr -nosmimecap -nocerts -md {digest} -inkey key.pem -signer cert.pem"
    signed = subprocess.run(
        [*command.split(), "-provider", "default", "-provider", "legacy", "-outform", "DER", "-in", str(module)],
        cwd=signer, check=True, capture_output=True,
    ).stdout  # fmt: skip
    module.write_bytes(content + signed + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, len(signed)) + _MAGIC)
    words = ["-F", "sig_hashalgo", str(module)]
    mine = ours(modinfo.main, words)
    assert difference(kmod34.run(words, name="modinfo"), mine) == ""
    assert mine.out.strip() != b""
    assert kmod30.run(words, name="modinfo").out.decode().strip() == of_30


def test_a_long_key_is_not_padded(kmod30: KmodPeer, kmod34: KmodPeer, tmp_path: Path) -> None:
    module = tmp_path / "x.ko"
    module.write_bytes(Maker().add(b".modinfo", b"a_key_of_many_letters=value\0license=GPL\0").image())
    words = [str(module)]
    mine = ours(modinfo.main, words)
    assert difference(kmod34.run(words, name="modinfo"), mine) == ""
    assert difference(kmod30.run(words, name="modinfo"), mine) != ""
    assert b"a_key_of_many_letters:value" in mine.out
