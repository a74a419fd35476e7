"""The files of `kmodd deny` and `kmodd allow`: all of them are written, or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.host.local_files import Edit, EditError, locked, read_text, write_all

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
