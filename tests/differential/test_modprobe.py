"""Our modprobe and kmod 34's, on full Debian trees and on nasty configurations: equal bytes, equal status.

Every module by -D, every pattern of modules.alias by -R, -c in full; every case of fixtures/rootfs on its own tree and
again on each Debian tree; configurations that hypothesis draws. The cases are also compared with Debian 12's kmod 30.
What may differ stands in known_differences.py.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmodd.dataclass import replace
from kmodd.index import bin_reader
from tests import rootfs, trees
from tests.differential import known_differences
from tests.differential.kmod_peer import KmodPeer, kmod_30, kmod_34, without_places
from tests.rootfs import Said, ours, ours_in

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

FLAVOURS = {"6.1-amd64": (4000, 26000), "6.1-cloud-amd64": (1000, 2000), "6.12-amd64": (4000, 26000)}
"""Flavour → modules and alias lines that its tree has at least."""
CONFIGURATIONS = 40
BATCH = 500
FENCE = "kmodd_fence"
"""An alias that stands between two questions of one run, so that each answer is known by its place."""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    with trees.may_be_away():
        return kmod_34(tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="module")
def peer_30(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    return kmod_30(tmp_path_factory.mktemp("peer30"))


@pytest.fixture(scope="module", params=FLAVOURS)
def tree(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A flavour and its root; the two of Debian 12 must be there."""
    flavour: str = request.param
    with trees.may_be_away(flavour):
        return flavour, trees.debian_tree(flavour)


def difference(peers: Said, own: Said) -> str:
    """Describe the difference in one line; empty without one."""
    for name in ("out", "err", "status"):
        theirs, mine = getattr(peers, name), getattr(own, name)
        if theirs != mine:
            return f"{name}: kmod {theirs!r:.300}, kmodd {mine!r:.300}"
    return ""


def different(pairs: Iterator[tuple[str, Said, Said]]) -> tuple[int, list[str]]:
    """How many were compared, and the first few that differ."""
    count = 0
    found: list[str] = []
    for what, peers, own in pairs:
        count += 1
        if (words := difference(peers, own)) and len(found) < 5:
            found.append(f"{what}: {words}")
    return count, found


# ── full trees ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_depends_of_every_module(peer: KmodPeer, tree: tuple[str, Path]) -> None:
    flavour, root = tree
    base = ["-d", str(root), "-S", trees.release(root), "-D"]
    lines = (trees.module_dir(root) / "modules.dep").read_text().splitlines()
    names = [line.partition(":")[0].rpartition("/")[2].partition(".")[0] for line in lines]
    count, found = different((name, peer.run([*base, name]), ours([*base, name])) for name in names)
    assert found == []
    assert count >= FLAVOURS[flavour][0]


def alias_patterns(root: Path) -> list[str]:
    lines = (trees.module_dir(root) / "modules.alias").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("alias ")]


def test_resolution_of_every_alias(peer: KmodPeer, tree: tuple[str, Path], tmp_path: Path, rng: random.Random) -> None:
    flavour, root = tree
    patterns = alias_patterns(root)
    unique = list(dict.fromkeys(patterns))
    count, found = different(answers(peer, root, tmp_path, unique))
    assert found == []
    assert count == len(unique)
    assert len(patterns) >= FLAVOURS[flavour][1], "the tree has fewer aliases than it should"

    texts = [concrete(pattern, rng) for pattern in rng.sample(unique, min(2000, len(unique)))]
    assert different(answers(peer, root, tmp_path, texts))[1] == []


def answers(peer: KmodPeer, root: Path, folder: Path, aliases: list[str]) -> Iterator[tuple[str, Said, Said]]:
    """Ask both for all aliases, many in one run; return the answer of each to each alias."""
    (folder / "fence.conf").write_text(f"alias {FENCE} {FENCE}\n")
    base = ["-d", str(root), "-S", trees.release(root), "-C", str(folder / "fence.conf"), "-a", "-R", "--"]
    for start in range(0, len(aliases), BATCH):
        batch = aliases[start : start + BATCH]
        command = [*base, *(word for alias in batch for word in (alias, FENCE))]
        peers, own = peer.run(command), ours(command)
        both = zip(batch, parted(peers), parted(own), strict=True)
        for alias, theirs, mine in both:
            yield alias, replace(peers, out=theirs, err=b""), replace(own, out=mine, err=b"")
        assert difference(peers, own) == "", "the messages, or the order of answers, differ"


def parted(said: Said) -> list[bytes]:
    """The answers between the fences."""
    return said.out.split(f"{FENCE}\n".encode())[:-1]


def concrete(pattern: str, rng: random.Random) -> str:
    """A text that a pattern may match: its wildcards filled with anything."""
    text = ""
    while pattern:
        char, pattern = pattern[0], pattern[1:]
        match char:
            case "*":
                text += "".join(rng.choices("0123456789ABCDEFabcxyz*?:_.", k=rng.choice((0, 1, 4, 8))))
            case "?":
                text += rng.choice("0Fz:")
            case "[":
                members, _, pattern = pattern.partition("]")
                text += rng.choice(members.replace("-", "")) if members else ""
            case _:
                text += char
    return text


def test_whole_configuration(peer: KmodPeer, tree: tuple[str, Path]) -> None:
    _, root = tree
    command = ["-d", str(root), "-S", trees.release(root), "-c"]
    peers, own = peer.run(command), ours(command)
    assert difference(peers, own) == ""
    assert own.out.count(b"\n") > 5000


# ── configurations ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "version"), [("peer", 34), ("peer_30", 30)])
@pytest.mark.parametrize("case", rootfs.cases())
def test_case_on_its_own_tree(
    name: str, version: int, case: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    peer: KmodPeer = request.getfixturevalue(name)
    root = rootfs.build(case, tmp_path / "root")
    for command in rootfs.commands(case):
        peers = peer.run(rootfs.words(command), root, rootfs.RELEASE)
        words = difference(peers, ours_in(root, command))
        if reason := known_differences.reason(case, command, version):
            assert words, f"{command!r} is equal: the row {reason!r} of known_differences is no longer needed"
        else:
            assert words == "", f"{command}: {words}"


def test_cases_on_a_full_tree(peer: KmodPeer, tree: tuple[str, Path], tmp_path: Path) -> None:
    _, root = tree
    compared = 0
    for case in rootfs.cases():
        if rootfs.has_own_tree(case):
            continue
        place = rootfs.build(case, tmp_path / case, root / "lib" / "modules")
        compared += 1
        for command in rootfs.commands(case):
            if known_differences.reason(case, command, 34) or command.endswith(" -c"):  # -c: once a tree is enough
                continue
            peers = peer.run(rootfs.words(command), place, trees.release(root))
            assert difference(peers, ours_in(place, command, trees.release(root))) == "", f"{case}: {command}"
    assert compared >= CONFIGURATIONS


def test_every_row_of_known_differences_names_a_command() -> None:
    for row in known_differences.KNOWN:
        for case, command in row.commands:
            assert command in rootfs.commands(case), row.name


def test_compat_has_a_row_for_each_difference() -> None:
    text = (rootfs.ROOTFS.parent.parent / "docs" / "COMPAT.md").read_text()
    assert [row.name for row in known_differences.KNOWN if f"| {row.name} |" not in text] == []


def test_a_place_in_the_source_is_left_out_of_30s_messages(peer_30: KmodPeer, tmp_path: Path) -> None:
    """The row "place in the source": the only change that the comparison makes to the output of kmod 30."""
    root = rootfs.build("lines", tmp_path / "root")
    text = (
        b"libkmod: ERROR ../libkmod/libkmod-config.c:712 kmod_config_parse: a line 1\nx: ERROR: ../libkmod/a.c:1 f() y"
    )
    assert without_places(text) == b"libkmod: ERROR: kmod_config_parse: a line 1\nx: ERROR: y"
    assert without_places(b"modprobe: ERROR: ../libkmod f() y") == b"modprobe: ERROR: ../libkmod f() y"
    assert peer_30.run(["-D", "loop"], root, rootfs.RELEASE).err.startswith(b"libkmod: ERROR: kmod_config_parse: ")


def test_indexes_of_34_are_written_as_its_depmod_writes_them(peer: KmodPeer, tmp_path: Path) -> None:
    """The layout of kmod 34, on a full tree, byte for byte."""
    root = trees.debian_tree("6.1-cloud-amd64")
    copy = tmp_path / "root"
    shutil.copytree(root / "lib" / "modules", copy / "lib" / "modules", symlinks=True)
    directory = copy / "lib" / "modules" / trees.release(root)
    before = (directory / "modules.dep.bin").read_bytes()
    assert peer.run(["-b", str(copy), trees.release(root)], name="depmod").status == 0
    for name, data in rootfs.twins(directory, preorder=True).items():
        assert data == (directory / name).read_bytes(), name
    assert before != (directory / "modules.dep.bin").read_bytes()


# ── drawn configurations ─────────────────────────────────────────────────────────────────────────────────────────────

NAMES = st.sampled_from(
    "ext4 jbd2 mbcache crc16 loop dummy tun fuse uhci-hcd uhci_hcd ehci-pci e1000e aes aes-generic crypto-crc32c x y-z "
    "fs-ext4 snd-pcsp nosuch symbol:jbd2__journal_start char-major-10-229 pci:v00008086d000010D3sv0sd0bc02sc00i00 eth0"
    "".split()
)
PATTERNS = st.one_of(
    NAMES, st.sampled_from(["*", "e*", "??x*", "lo[a-p]p", "[!l]*", "*-*", "x", "d[u-", "a]", "\\\\*", "y?z"])
)
BLANK = st.sampled_from([" ", "\t", "  ", " \\\n ", " \t "])
SOFTDEP = st.lists(st.one_of(NAMES, st.sampled_from(["pre:", "post:", "pre:", "a[b"])), max_size=6).map(" ".join)
TAIL = st.one_of(NAMES, SOFTDEP, st.sampled_from(["", " ", "/bin/true $CMDLINE_OPTS", 'a=1 b="c d"', "\\", "x\r", "é"]))
LINE = st.one_of(
    st.tuples(
        st.sampled_from("alias blacklist install options remove softdep softdep alias".split()),
        BLANK,
        PATTERNS,
        BLANK,
        TAIL,
    ).map("".join),
    st.sampled_from(
        ["", "#", "# x \\", " # y", "include z", "frob x", "alias", "softdep loop pre: dummy post: tun fuse"]
    ),
)
CMDLINE = st.one_of(st.just(""), NAMES.map(lambda name: f"{name}.a=1 x.y"))
FILE = st.lists(LINE, max_size=8).map("\n".join)
COMMAND = st.tuples(
    st.lists(st.sampled_from(["-b", "-i", "-q", "--first-time"]), max_size=2, unique=True),
    st.sampled_from([["-D"], ["-D"], ["-n", "-v"], ["-R"], ["-a", "-D"]]),
    st.lists(NAMES, min_size=1, max_size=2),
).map(lambda parts: [*parts[0], *parts[1], *parts[2]])


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the small tree and no configuration."""
    root = rootfs.build("names", tmp_path_factory.mktemp("drawn") / "root")
    for folder in ("etc", "run", "lib"):
        (root / folder / "modprobe.d").mkdir(parents=True)
    (root / "proc").mkdir()
    return root


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(FILE, min_size=1, max_size=3), cmdline=CMDLINE, command=COMMAND)
def test_drawn_configuration(peer: KmodPeer, bare: Path, files: list[str], cmdline: str, command: list[str]) -> None:
    places = ("etc/modprobe.d/b.conf", "lib/modprobe.d/a.conf", "run/modprobe.d/z.conf")
    for place in places:
        (bare / place).unlink(missing_ok=True)
    for place, text in zip(places, files, strict=False):
        (bare / place).write_text(text)
    (bare / "proc" / "cmdline").write_text(cmdline + "\n")
    for argv in (command, ["-c"]):
        peers = peer.run(argv, bare, rootfs.RELEASE)
        own = ours(["--root", str(bare), "-S", rootfs.RELEASE, *argv])
        assert difference(peers, own) == "", argv


# ── environment ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options",
    ["", "-R", "-a -R", " -R", "-R ", "-q  -R", "-R\t-q", "'-R'", '"-a" -R', "'-R'x", "-C '/alt/odd name' -D", '-a"R"',
     "-C '/alt/odd", "-C /alt/a\"b c\"d -D", "'' -R", "-D loop a='b c'"],
)  # fmt: skip
def test_options_from_the_environment(
    peer: KmodPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    root = rootfs.build("config-option", tmp_path / "root")
    for argv in (["-D", "loop"], ["-R", "ext4", "x"], ["-q", "nosuch", "-R"], ["-D", "--", "loop", "a=1"]):
        peers = peer.run(argv, root, rootfs.RELEASE, env={"MODPROBE_OPTIONS": options})
        monkeypatch.setenv("MODPROBE_OPTIONS", options)
        assert difference(peers, ours(["--root", str(root), "-S", rootfs.RELEASE, *argv])) == "", argv


# ── the comparison itself ────────────────────────────────────────────────────────────────────────────────────────────


def test_one_changed_byte_is_seen(peer: KmodPeer, tmp_path: Path, rng: random.Random) -> None:
    """A changed byte anywhere in our output fails each comparison."""
    root = rootfs.build("names", tmp_path / "root")
    for argv in (["-D", "ext4"], ["-R", "fs-ext4"], ["-D", "nosuch"], ["-c"]):
        peers = peer.run(argv, root, rootfs.RELEASE)
        own = ours(["--root", str(root), "-S", rootfs.RELEASE, *argv])
        assert difference(peers, own) == ""
        if own.out:
            assert difference(peers, replace(own, out=with_a_byte_changed(own.out, rng))) != ""
        if own.err:
            assert difference(peers, replace(own, err=with_a_byte_changed(own.err, rng))) != ""
        assert difference(peers, replace(own, status=own.status ^ 1)) != ""


def with_a_byte_changed(text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text))
    return text[:at] + bytes((text[at] ^ 1,)) + text[at + 1 :]


def test_one_changed_byte_among_all_aliases_is_seen(peer: KmodPeer, tmp_path: Path) -> None:
    """The same through the indexes: with one module renamed in ours, the run over aliases fails."""
    root = rootfs.build("names", tmp_path / "root")
    changed = tmp_path / "changed"
    shutil.copytree(root, changed)
    index = changed / "lib" / "modules" / rootfs.RELEASE / "modules.alias.bin"
    index.write_bytes(index.read_bytes().replace(b"ext4\0", b"ext5\0", 1))
    patterns = [key for key, _ in bin_reader.BinIndex(index.read_bytes(), "").entries()]
    found = [
        pattern
        for pattern in patterns
        if difference(
            peer.run(["-R", pattern], root, rootfs.RELEASE),
            ours(["--root", str(changed), "-S", rootfs.RELEASE, "-R", pattern]),
        )
    ]
    assert len(found) == 1


def test_indexes_are_written_as_depmod_writes_them(tree: tuple[str, Path]) -> None:
    """All five .bin files of a full tree out of its texts, byte for byte."""
    _, root = tree
    directory = trees.module_dir(root)
    for name, data in rootfs.twins(directory).items():
        assert data == (directory / name).read_bytes(), name
