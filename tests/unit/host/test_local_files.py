"""The files of `kmodd deny` and `kmodd allow`: all of them are written, or none."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from kmodd.host import local_files
from kmodd.host.atomic_files import replace_all
from kmodd.host.local_files import Edit, EditError, locked, open_lock, read_text, set_flag, write_all

FIRST, SECOND = Edit("/etc/a", "", "new\n"), Edit("/etc/b", "old\n", "new\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/b").write_text("old\n")
    return tmp_path


def test_all_files_are_written_or_none(root: Path) -> None:
    """A directory in the place of a file cannot be replaced, by root neither."""
    (root / "etc/c").mkdir()
    with pytest.raises(EditError, match=r"^Failed to write /etc/c: Is a directory$"):
        write_all(str(root), (FIRST, SECOND, Edit("/etc/c", "", "x\n")))
    assert not (root / "etc/a").exists()
    assert (root / "etc/b").read_text() == "old\n"
    write_all(str(root), (FIRST, SECOND))
    assert [(root / "etc" / name).read_text() for name in "ab"] == ["new\n", "new\n"]


def test_a_file_keeps_its_mode_and_owner(root: Path) -> None:
    (root / "etc/b").chmod(0o600)
    owner = (1, 1) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(root / "etc/b", *owner)
    write_all(str(root), (FIRST, SECOND))
    about = (root / "etc/b").stat()
    assert (about.st_mode & 0o7777, about.st_uid, about.st_gid) == (0o600, *owner)
    assert (root / "etc/a").stat().st_mode & 0o7777 == 0o644


@pytest.mark.root
def test_a_user_cannot_have_root_wait(root: Path) -> None:
    """All who can read the directory can lock it. Control: below another root that lock counts."""
    directory = root / "etc/kmodd/policy.d"
    directory.mkdir(parents=True)
    theirs = os.open(directory, os.O_RDONLY)
    fcntl.flock(theirs, fcntl.LOCK_EX)
    ours, below = open_lock("", str(root / "lock")), open_lock(str(root), str(root / "lock"))
    fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert stat.S_IMODE(os.fstat(ours).st_mode) == 0o600
    with pytest.raises(BlockingIOError):
        fcntl.flock(below, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for fd in (theirs, ours, below):
        os.close(fd)


def test_a_file_that_cannot_be_read_is_named(root: Path) -> None:
    os.mkfifo(root / "etc/fifo")
    (root / "etc/link").symlink_to("b")
    for name in ("fifo", "link"):
        with pytest.raises(EditError, match=rf"^Failed to read /etc/{name}: "):
            read_text(str(root), f"/etc/{name}")
    assert read_text(str(root), "/etc/none") == ""


def test_a_directory_that_cannot_be_made_is_named(root: Path) -> None:
    (root / "etc/kmodd").write_text("")
    with pytest.raises(EditError, match=r"^Failed to open /etc/kmodd/policy.d: "), locked(str(root)):
        pass


TEMPORARY = "/run/kmodd/policy.d/04-until-boot.conf"


def test_below_run_a_link_leads_nowhere_else(root: Path) -> None:
    """The daemon can write below /run/kmodd, and must not have root's verbs write its lines into modprobe.d."""
    (root / "etc/modprobe.d").mkdir()
    (root / "run/kmodd").mkdir(parents=True)
    (root / "run/kmodd/policy.d").symlink_to(root / "etc/modprobe.d")
    (root / "run/kmodd/flags").symlink_to(root / "etc/modprobe.d")
    for attempt in (
        lambda: write_all(str(root), [Edit(TEMPORARY, "", "install loop /bin/id\n")]),
        lambda: read_text(str(root), TEMPORARY),
        lambda: set_flag(str(root), "once-loop"),
    ):
        with pytest.raises(EditError, match="Not a directory"):
            attempt()
    assert list((root / "etc/modprobe.d").iterdir()) == []
    write_all(str(root), [Edit("/etc/x/a", "", "line\n")])  # the control: elsewhere a link of root's is followed
    (root / "etc/y").symlink_to("x")
    assert read_text(str(root), "/etc/y/a") == "line\n"


def test_a_directory_that_is_exchanged_meanwhile_is_not_written_through(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A taken-over daemon puts a link in the directory's place between two steps of a verb."""
    (root / "etc/modprobe.d").mkdir()
    policy = root / "run/kmodd/policy.d"
    policy.mkdir(parents=True)

    def exchanged(directory: str, files: list[tuple[str, bytes]], mode: int) -> None:
        policy.rename(root / "run/kmodd/old")
        policy.symlink_to(root / "etc/modprobe.d")
        replace_all(directory, files, mode)

    monkeypatch.setattr(local_files, "replace_all", exchanged)
    write_all(str(root), [Edit(TEMPORARY, "", "install loop /bin/id\n")])
    assert list((root / "etc/modprobe.d").iterdir()) == []
    assert (root / "run/kmodd/old/04-until-boot.conf").read_text() == "install loop /bin/id\n"
