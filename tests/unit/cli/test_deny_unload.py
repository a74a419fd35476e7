"""`kmodd deny --unload`: what it removes, refuses, and says."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmodd.cli import deny
from kmodd.cli.deny_unload import carry_out, unload_of
from kmodd.host.tree import Tree
from kmodd.loader.in_process import Machine
from kmodd.planning.outcome import Outcome
from kmodd.planning.unload import Unloaded
from tests import rootfs
from tests.fakes import FakeKernel

LOADED = (
    "ext4 1 0 - Live 0x0\njbd2 1 1 ext4, Live 0x0\nmbcache 1 1 ext4, Live 0x0\nvfat 1 2 - Live 0x0\n"
    "fat 1 1 vfat, Live 0x0\n"
)


@dataclass
class Removing(FakeKernel):
    """A kernel that removes lines of /proc/modules below a root, with the holders that they name."""

    root: Path = Path()
    asked: list[str] = field(default_factory=list)

    def delete_module(self, name: str, flags: int) -> None:
        assert flags == os.O_NONBLOCK
        self.asked.append(name)
        if code := self.refuse.get(name):
            raise OSError(code, os.strerror(code))
        path = self.root / "proc/modules"
        lines = []
        for line in path.read_text().splitlines():
            words = line.split()
            holders = [holder for holder in words[3].strip("-,").split(",") if holder not in ("", name)]
            gone = int(f"{name}," in words[3])
            if words[0] != name:
                shown = "".join(f"{holder}," for holder in holders) or "-"
                lines.append(f"{words[0]} {words[1]} {int(words[2]) - gone} {shown} Live 0x0\n")
        path.write_text("".join(lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = rootfs.build("names", tmp_path / "root")
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/modules").write_text(LOADED)
    return root


def removed(root: Path, names: list[str], **refuse: int) -> tuple[Unloaded, list[str], list[Outcome]]:
    """The result, the calls of the kernel, and the records."""
    tree = Tree(str(root), rootfs.RELEASE)
    snapshot = tree.quick_snapshot()
    kernel, records = Removing(refuse, root=root), list[Outcome]()
    result = carry_out(names, unload_of(names, tree, snapshot), tree, snapshot, Machine(kernel, records.append))
    return result, kernel.asked, records


def test_what_uses_a_module_goes_before_it_and_what_it_needs_stays(root: Path) -> None:
    """mbcache, which nothing uses any more, is not denied; `modprobe -r` would take it."""
    result, asked, records = removed(root, ["jbd2"])
    assert result == Unloaded(("ext4", "jbd2"), ())
    assert asked == ["ext4", "jbd2"]
    assert [(record.module, record.result) for record in records] == [("ext4", "removed"), ("jbd2", "removed")]
    assert "mbcache" in (root / "proc/modules").read_text()


def test_what_stays_is_named_with_the_reason(root: Path) -> None:
    (root / "proc/self/mountinfo").write_text("1 0 0:40 / /mnt rw - vfat x rw\n")
    result, asked, _ = removed(root, ["fat", "jbd2", "gone"])
    assert result.removed == ("ext4", "jbd2")
    assert result.stayed == (
        ("vfat", "it is in use by the file system at /mnt, with 2 references"),
        ("fat", "vfat uses it and stays"),
    )
    assert asked == ["ext4", "jbd2"]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (errno.EPERM, "the kernel refuses to remove it: EPERM, not permitted: "),
        (errno.EBUSY, "the kernel refuses to remove it: EBUSY, the module is being "),
        (errno.EAGAIN, "it is in use"),
    ],
)  # fmt: skip
def test_a_refusal_of_the_kernel_is_told_in_its_words(root: Path, code: int, why: str) -> None:
    result, asked, records = removed(root, ["jbd2"], ext4=code)
    assert result.removed == ()
    (ext4, said), (jbd2, because) = result.stayed
    assert (ext4, jbd2, because) == ("ext4", "jbd2", "ext4 uses it and stays")
    assert said.startswith(why)
    assert asked == ["ext4"]
    assert records[0].result == "not_removed"


def test_a_remove_line_is_carried_out(root: Path) -> None:
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/x.conf").write_text("remove ext4 exit 3\n")
    result, asked, _ = removed(root, ["ext4"])
    assert result.stayed == (("ext4", "its remove command at /etc/modprobe.d/x.conf:1 failed"),)
    assert asked == []


def test_a_remove_line_that_does_nothing_is_named(root: Path) -> None:
    """The control is a module without one that is there again after the removal."""
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/x.conf").write_text("remove ext4 /bin/true\n")
    result, asked, _ = removed(root, ["ext4"])
    assert result.stayed == (
        ("ext4", "its remove command at /etc/modprobe.d/x.conf:1 ended well and did not remove it"),
    )
    assert asked == []
    tree = Tree(str(root), rootfs.RELEASE)
    snapshot = tree.quick_snapshot()
    again = carry_out(
        ["jbd2"], unload_of(["jbd2"], tree, snapshot), tree, snapshot, Machine(FakeKernel(), lambda _: None)
    )
    assert again.stayed[0] == (
        "ext4",
        "its remove command at /etc/modprobe.d/x.conf:1 ended well and did not remove it",
    )
    (root / "etc/modprobe.d/x.conf").unlink()
    snapshot = tree.quick_snapshot()
    again = carry_out(
        ["ext4"], unload_of(["ext4"], tree, snapshot), tree, snapshot, Machine(FakeKernel(), lambda _: None)
    )
    assert again.stayed == (("ext4", "it was loaded again"),)


@pytest.mark.parametrize(
    ("lines", "names", "gone"),
    [
        ("mydrv 1 0 - Live 0x0\n", ["mydrv"], ["mydrv"]),
        ("mydrv 1 1 other, Live 0x0\nother 1 0 - Live 0x0\n", ["mydrv"], ["other", "mydrv"]),
        ("mya 1 1 myb, Live 0x0\nmyb 1 1 myc, Live 0x0\nmyc 1 0 - Live 0x0\n", ["myb", "mya"], ["myc", "myb", "mya"]),
        ("mya 1 1 ext4, Live 0x0\next4 1 0 - Live 0x0\n", ["mya"], ["ext4", "mya"]),
    ],
)
def test_a_module_that_the_tree_lacks_is_removed(root: Path, lines: str, names: list[str], gone: list[str]) -> None:
    (root / "proc/modules").write_text(lines)
    result, asked, records = removed(root, names)
    assert (result, asked) == (Unloaded(tuple(gone), ()), gone)
    assert [(record.module, record.result) for record in records] == [(name, "removed") for name in gone]


def test_an_alias_of_its_name_does_not_stand_for_a_loaded_module(root: Path) -> None:
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/x.conf").write_text("alias ext4 vfat\n")
    assert removed(root, ["ext4"])[:2] == (Unloaded(("ext4",), ()), ["ext4"])


def test_a_module_with_references_is_known_to_stay(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is changed without --force. The controls are one that only modules use, and one with a remove command."""
    assert deny.main([*base(root), "--dry-run", "fat"]) == 1
    said = capfd.readouterr()
    assert "Failed to remove vfat, fat: vfat is in use, with 2 references; nothing is changed without --" in said.err
    assert "Modules to remove, in this order: vfat, fat" in said.out
    assert deny.main([*base(root), "--dry-run", "--force", "fat"]) == 1
    assert "By force: vfat, fat: vfat is in use, with 2 references" in capfd.readouterr().err
    assert deny.main([*base(root), "--dry-run", "jbd2"]) == 0
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/x.conf").write_text("remove vfat /sbin/stop-all\n")
    assert deny.main([*base(root), "--dry-run", "fat"]) == 0


def test_a_refusal_is_json_with_its_reason(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The control is an answer that is no refusal."""
    assert deny.main([*base(root), "--dry-run", "--json", "fat"]) == 1
    line = json.loads(capfd.readouterr().out)
    assert line["refused"] == "Failed to remove vfat, fat: vfat is in use, with 2 references"
    assert (line["changed"], line["files"], line["unload"]["removed"]) == (False, [], None)
    assert line["unload"]["references"] == [{"module": "vfat", "count": 2}]
    assert deny.main([*base(root), "--dry-run", "--json", "jbd2"]) == 0
    assert json.loads(capfd.readouterr().out)["refused"] is None


def test_what_is_forced_is_named_once(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """References of a mounted file system are its own; in JSON the reason is a field, and not on standard error."""
    (root / "proc/self/mountinfo").write_text("1 0 0:40 / /mnt rw - vfat x rw\n")
    assert deny.main([*base(root), "--dry-run", "vfat"]) == 1
    assert "remove vfat: in use by the file system at /mnt; nothing is changed" in capfd.readouterr().err
    assert deny.main([*base(root), "--dry-run", "--force", "--json", "vfat"]) == 1
    said = capfd.readouterr()
    assert json.loads(said.out)["forced"] == ["vfat: in use by the file system at /mnt"]
    assert (json.loads(said.out)["unload"]["references"], said.err) == ([{"module": "vfat", "count": 2}], "")


def base(root: Path) -> list[str]:
    return ["--root", str(root), "--kernel", rootfs.RELEASE, "--unload"]


def test_a_dry_run_shows_what_would_go(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place, folder = root / "sys/devices/x/disk", root / "sys/bus/x/drivers/ext4"
    place.mkdir(parents=True)
    folder.mkdir(parents=True)
    (folder / "disk").symlink_to(place)
    (root / "sys/module/ext4/drivers").mkdir(parents=True)
    (root / "sys/module/ext4/drivers/x:ext4").symlink_to(folder)
    assert deny.main([*base(root), "--dry-run", "jbd2"]) == 0
    said = capfd.readouterr().out
    assert "Modules to remove, in this order: ext4, jbd2\nDevices that lose their driver: /sys/devices/x/disk\n" in said
    assert (root / "proc/modules").read_text() == LOADED
    assert deny.main([*base(root), "--dry-run", "--json", "jbd2"]) == 0
    line = json.loads(capfd.readouterr().out)
    assert line["unload"] == {
        "modules": ["ext4", "jbd2"], "devices": [{"module": "ext4", "device": "/sys/devices/x/disk"}],
        "in_use": [], "references": [], "removed": None, "stayed": None,
    }  # fmt: skip
    assert deny.main([*base(root), "jbd2"]) == 2


@pytest.mark.parametrize(
    ("file", "line", "module", "what"),
    [
        ("self/mountinfo", "1 0 0:40 / /srv rw - ext4 x rw\n", "jbd2", "ext4, jbd2: in use by the file system at /srv"),
        ("swaps", "Filename\n/dev/x file\n", "jbd2", ""),
    ],
)
def test_what_is_in_use_wants_force(
    root: Path, file: str, line: str, module: str, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The plan is shown all the same; the control is swap that needs no module."""
    (root / "proc" / file).write_text(line)
    assert deny.main([*base(root), "--dry-run", module]) == (1 if what else 0)
    said = capfd.readouterr()
    assert (f"Failed to remove {what}; nothing is changed without --force" in said.err) == bool(what)
    assert "Modules to remove, in this order: " in said.out
    assert deny.main([*base(root), "--dry-run", "--force", module]) == 0
    said = capfd.readouterr()
    assert "+deny   module=" in said.out
    assert (f"By force: {what}" in said.err) == bool(what)


def test_a_built_in_module_cannot_go(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    builtin = next(iter((root / "lib/modules" / rootfs.RELEASE / "modules.builtin").read_text().split()))
    name = builtin.rpartition("/")[2].removesuffix(".ko")
    assert deny.main([*base(root), "--dry-run", name]) == 1
    assert "cannot be removed: it is built into the kernel" in capfd.readouterr().out
