"""Which module files are root's alone: links into a tree, trees of links, sticky directories, what never answers."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest

from kmodd.host.file_owner import find, open_file
from kmodd.host.module_reader import read_ahead
from kmodd.host.tree import Tree
from tests import hanging_file_system

USER = 65534
LIMIT = 30.0
"""Seconds after which a call that must not wait has failed."""


class Root:
    """A root directory with one tree, `lib/modules`, and a store beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = path / "lib/modules/6.1"
        self.store = path / "opt/store"
        for folder in (self.tree / "kernel", self.store):
            folder.mkdir(parents=True)
        self.target = self.store / "a.ko"
        self.target.write_bytes(b"\x7fELF")
        self.link = self.tree / "kernel/a.ko"
        self.trees = (f"{path}/lib/modules", f"{path}/usr/lib/modules")

    def why(self, name: str = "kernel/a.ko") -> str:
        """Why the file of that name in the tree is not root's alone."""
        return find(f"{self.tree}/{name}", self.trees).why


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_a_link_to_what_is_roots_all_the_way_down_is_roots(root: Root) -> None:
    root.link.symlink_to(root.target)
    assert root.why() == ""
    fd = open_file(str(root.link), root.trees)
    assert os.readlink(f"/proc/self/fd/{fd}") == str(root.target)
    os.close(fd)


@pytest.mark.parametrize("form", ["relative", "chain", "folder", "tree", "top"])
def test_each_form_of_link_is_followed(root: Root, form: str) -> None:
    """As NixOS, ostree and image builders lay them; the negative control of each is a target that others may write."""
    match form:
        case "relative":
            root.link.symlink_to("../../../../opt/store/a.ko")
        case "chain":
            (root.store / "b.ko").symlink_to("./../store//a.ko")
            root.link.symlink_to(root.store / "b.ko")
        case "folder":
            (root.tree / "kernel").rmdir()
            (root.tree / "kernel").symlink_to(root.store)
        case "tree":
            (root.tree / "kernel").rmdir()
            root.tree.rmdir()
            (root.store / "kernel").symlink_to(".")
            root.tree.symlink_to(root.store)
        case _:
            (root.tree / "kernel").rmdir()
            root.tree.rmdir()
            (root.path / "lib/modules").rmdir()
            (root.store / "6.1").mkdir()
            (root.store / "6.1/kernel").symlink_to("..")
            (root.path / "lib/modules").symlink_to("../opt/store")
    assert root.why() == ""
    root.target.chmod(0o666)
    assert "is writable by others" in root.why()


@pytest.mark.root
@pytest.mark.parametrize("place", ["opt", "opt/store", "opt/store/a.ko"])
def test_a_target_of_a_user_is_foreign_and_the_reason_says_whose(root: Root, place: str) -> None:
    root.link.symlink_to(root.target)
    os.chown(root.path / place, USER, -1)
    named = "which" if place.endswith("a.ko") else f"and {root.path / place}"
    assert root.why() == f"is a link to {root.target}, {named} is owned by uid {USER}, not by root"
    with pytest.raises(OSError, match="is owned by uid") as error:
        open_file(str(root.link), root.trees)
    assert error.value.errno == errno.EACCES


@pytest.mark.root
def test_a_link_of_a_user_is_foreign_wherever_it_leads(root: Root) -> None:
    root.link.symlink_to(root.target)
    os.chown(root.link, USER, -1, follow_symlinks=False)
    assert root.why() == f"is owned by uid {USER}, not by root"
    root.link.unlink()
    (root.store / "b.ko").symlink_to(root.target)
    os.chown(root.store / "b.ko", USER, -1, follow_symlinks=False)
    root.link.symlink_to(root.store / "b.ko")
    assert root.why() == f"is a link to {root.store}/b.ko, which is owned by uid {USER}, not by root"


@pytest.mark.root
def test_in_a_sticky_directory_of_root_its_own_entries_count_and_those_of_others_do_not(root: Root) -> None:
    root.link.symlink_to(root.target)
    root.store.chmod(0o1775)
    assert root.why() == ""
    os.chown(root.target, USER, -1)
    assert f"which is owned by uid {USER}" in root.why()
    os.chown(root.target, 0, -1)
    os.chown(root.store, USER, -1)
    assert f"and {root.store} is owned by uid {USER}" in root.why()


def test_a_writable_directory_without_the_sticky_bit_is_foreign(root: Root) -> None:
    root.link.symlink_to(root.target)
    root.store.chmod(0o775)
    assert f"and {root.store} is writable by its group" in root.why()


def test_a_directory_above_the_tree_counts_for_targets_outside_of_it_only(root: Root) -> None:
    inside = root.tree / "b.ko"
    inside.write_bytes(b"\x7fELF")
    root.path.chmod(0o777)
    root.link.symlink_to("../b.ko")
    assert root.why() == ""
    root.link.unlink()
    root.link.symlink_to("../../../../opt/store/a.ko")
    assert f"and {root.path} is writable by others" in root.why()


def test_the_search_ends_at_the_first_place_that_is_not_roots(root: Root) -> None:
    """What lies behind it may never answer; that a missing file is no error shows that nothing looks there."""
    root.store.chmod(0o777)
    root.link.symlink_to(root.store / "none/none.ko")
    assert f"is a link to {root.store}/none/none.ko, and {root.store} is writable" in root.why()
    root.store.chmod(0o755)
    with pytest.raises(FileNotFoundError):
        root.why()


@pytest.mark.root
def test_a_file_system_that_never_answers_is_not_asked(root: Root) -> None:
    hanging = root.path / "mnt"
    hanging.mkdir()
    root.link.symlink_to(hanging / "a.ko")
    with hanging_file_system.mounted(hanging):
        asking = threading.Thread(target=_stat, args=(root.link,), daemon=True)
        asking.start()
        assert root.why() == (
            f"is a link to {hanging}/a.ko, and {hanging} is on a file system that may not answer (fuse)"
        )
        read_ahead(str(root.link), root.trees)
        assert Tree(str(root.path), "6.1").find("/lib/modules/6.1/kernel/a.ko")
        assert asking.is_alive()  # the control: who follows the link waits
    asking.join(LIMIT)
    assert not asking.is_alive()


def _stat(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.stat()


def test_a_loop_of_links_is_an_error(root: Root) -> None:
    root.link.symlink_to("a.ko")
    with pytest.raises(OSError, match="Too many levels") as error:
        root.why()
    assert error.value.errno == errno.ELOOP


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused_without_waiting(root: Root, kind: str) -> None:
    root.target.unlink()
    match kind:
        case "pipe":
            os.mkfifo(root.target)
        case "folder":
            root.target.mkdir()
        case _:
            root.target = Path("/dev/null")
    root.link.symlink_to(root.target)
    refusals: list[str] = []

    def attempt() -> None:
        try:
            open_file(str(root.link), root.trees)
        except OSError as error:
            refusals.append(error.strerror or "")
        read_ahead(str(root.link), root.trees)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert len(refusals) == 1
    assert "is not a regular file" in refusals[0] or "is writable by others" in refusals[0]


def test_a_file_swapped_between_look_and_open_is_not_opened(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.link.symlink_to(root.target)
    opens = os.open

    def swap(path: str, flags: int, *rest: int) -> int:
        if path == str(root.target) and not flags & os.O_PATH:
            root.target.rename(root.store / "old.ko")
            root.target.write_bytes(b"\x7fELF of another")
        return opens(path, flags, *rest)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match="was replaced while it was opened"):
        open_file(str(root.link), root.trees)


def test_a_link_swapped_between_look_and_open_does_not_change_what_is_opened(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.link.symlink_to(root.target)
    other = root.path / "other.ko"
    other.write_bytes(b"\x7fELF of another")
    opens = os.open

    def swap(path: str, flags: int, *rest: int) -> int:
        if path == str(root.target) and not flags & os.O_PATH:
            root.link.unlink()
            root.link.symlink_to(other)
        return opens(path, flags, *rest)

    monkeypatch.setattr(os, "open", swap)
    fd = open_file(str(root.link), root.trees)
    assert os.readlink(f"/proc/self/fd/{fd}") == str(root.target)
    os.close(fd)
    assert os.readlink(root.link) == str(other)


def test_a_tree_names_what_is_missing_foreign_and_roots(root: Root) -> None:
    """Stale indexes of depmod name links that are gone, and links whose target is."""
    tree = Tree(str(root.path), "6.1")
    printed = "/lib/modules/6.1/kernel/a.ko"
    assert tree.find(printed) is None
    root.link.symlink_to(root.target)
    assert tree.foreign(printed) == ""
    root.target.chmod(0o666)
    assert "is writable by others" in tree.foreign(printed)
    root.target.unlink()
    assert (tree.find(printed), tree.foreign(printed)) == (None, "")
