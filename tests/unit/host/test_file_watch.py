"""`Watch` with this machine's inotify; an event is there when the call that caused it returns."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import inotify_simple
import pytest

from kmodd.host.file_watch import Watch


@pytest.fixture
def watch() -> Iterator[Watch]:
    one = Watch()
    yield one
    one.close()


def wakes(watch: Watch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def noticed(watch: Watch) -> bool:
    """Whether the loop wakes for a change, and sleeps afterwards."""
    woken = wakes(watch)
    counts = watch.changed()
    assert woken or not counts, "a change that would have waited for the next event"
    assert not wakes(watch)
    return counts


def entry(folder: Path) -> Path:
    path = folder / "modules.dep.bin"
    path.write_text("old")
    return path


# ── one directory ──────────────────────────────────────────────────────────────────────────────────────────────────

CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "a new file": lambda folder, _: (folder / "new").touch(),
    "a new directory": lambda folder, _: (folder / "new").mkdir(),
    "a new link": lambda folder, _: (folder / "new").symlink_to("modules.dep.bin"),
    "written in place": lambda _, file: file.write_text("new"),
    "appended to": lambda _, file: file.open("a").close(),
    "deleted": lambda _, file: file.unlink(),
    "moved within": lambda folder, file: file.rename(folder / "other"),
    "moved away": lambda folder, file: file.rename(folder.parent / "other"),
    "made readable": lambda _, file: file.chmod(0o640),
    "the directory made readable": lambda folder, _: folder.chmod(0o700),
    "the directory renamed": lambda folder, _: folder.rename(folder.parent / "other"),
    "the directory deleted": lambda folder, _: shutil.rmtree(folder),
}
NOTHING: dict[str, Callable[[Path, Path], object]] = {
    "read": lambda _, file: file.read_text(),
    "listed": lambda folder, _: os.listdir(folder),
    "opened": lambda _, file: os.close(os.open(file, os.O_RDONLY)),
    "a neighbour of the directory": lambda folder, _: (folder.parent / "neighbour").write_text("x"),
    "deeper down": lambda folder, _: (folder / "kernel/x.ko").write_text("x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_directory_is_noticed(tmp_path: Path, watch: Watch, change: str) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    file = entry(folder)
    assert watch.set([str(folder)]) == ()
    assert not noticed(watch)
    CHANGES[change](folder, file)
    assert noticed(watch)
    watch.set([str(folder)])
    assert not noticed(watch), "the queue was not emptied"


@pytest.mark.parametrize("deed", NOTHING)
def test_reads_and_other_places_are_not_changes(tmp_path: Path, watch: Watch, deed: str) -> None:
    folder = tmp_path / "watched"
    (folder / "kernel").mkdir(parents=True)
    file = entry(folder)
    watch.set([str(folder)])
    NOTHING[deed](folder, file)
    assert not noticed(watch)
    file.unlink()  # the control
    assert noticed(watch)


def test_reads_do_not_even_wake(tmp_path: Path, watch: Watch) -> None:
    file = entry(tmp_path)
    watch.set([str(tmp_path)])
    for _ in range(100):
        file.read_bytes()
        os.listdir(tmp_path)
    assert not wakes(watch)


def test_an_index_rewritten_as_depmod_does_it(tmp_path: Path, watch: Watch) -> None:
    """A temporary file beside it, then rename(2): `tools/depmod.c`, depmod_output."""
    index = entry(tmp_path)
    watch.set([str(tmp_path)])
    for text in ("one", "two"):
        temporary = tmp_path / "modules.dep.bin.1234.tmp"
        temporary.write_text(text)
        temporary.rename(index)
        assert noticed(watch)
        assert watch.set([str(tmp_path)]) == ()


def test_many_changes_wake_once(tmp_path: Path, watch: Watch) -> None:
    watch.set([str(tmp_path)])
    for number in range(1000):
        (tmp_path / str(number)).touch()
    assert watch.changed()
    assert not wakes(watch)
    assert not watch.changed()


def test_a_queue_that_overflowed_counts(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """inotify(7): IN_Q_OVERFLOW has watch descriptor -1; the lost events are unknown."""
    watch.set([str(tmp_path)])
    for mask, counts in ((inotify_simple.flags.Q_OVERFLOW, True), (inotify_simple.flags.IGNORED, False)):
        lost = inotify_simple.Event(-1, int(mask), 0, "")
        monkeypatch.setattr(inotify_simple.INotify, "read", lambda self, timeout, lost=lost: [lost])
        assert watch.changed() is counts


# ── directories that come and go ───────────────────────────────────────────────────────────────────────────────────


def test_a_directory_that_is_not_there_yet(tmp_path: Path, watch: Watch) -> None:
    """Made in one go; only the next name on the way counts meanwhile."""
    wanted = tmp_path / "a/b/c"
    watch.set([str(wanted)])
    (tmp_path / "b").mkdir()
    (tmp_path / "c").touch()
    assert not noticed(watch)
    wanted.mkdir(parents=True)
    assert noticed(watch)
    watch.set([str(wanted)])
    (wanted / "x.conf").touch()
    assert noticed(watch)


def test_a_directory_created_step_by_step(tmp_path: Path, watch: Watch) -> None:
    wanted = tmp_path / "a/b/c"
    for folder in (tmp_path / "a", tmp_path / "a/b", wanted):
        watch.set([str(wanted)])
        assert not noticed(watch)
        folder.mkdir()
        assert noticed(watch)


@pytest.mark.parametrize("moved", ["lib/modules/6.1", "lib/modules", "lib"])
def test_the_module_tree_renamed_away_and_back(tmp_path: Path, watch: Watch, moved: str) -> None:
    """At any height: inotify itself says nothing of a rename further up."""
    tree = tmp_path / "lib/modules/6.1"
    tree.mkdir(parents=True)
    watch.set([str(tree)])
    here, away = tmp_path / moved, tmp_path / "away"
    for old, new in ((here, away), (away, here)):
        old.rename(new)
        assert noticed(watch)
        watch.set([str(tree)])
    entry(tree)
    assert noticed(watch)


def test_a_directory_deleted_and_made_again(tmp_path: Path, watch: Watch) -> None:
    """Between two calls, and while the old one is held open."""
    folder = tmp_path / "conf.d"
    folder.mkdir()
    watch.set([str(folder)])
    held = os.open(folder, os.O_RDONLY)
    folder.rmdir()
    folder.mkdir()
    os.close(held)
    assert noticed(watch)
    watch.set([str(folder)])
    (folder / "x.conf").touch()
    assert noticed(watch)


def test_a_directory_replaced_by_rename(tmp_path: Path, watch: Watch) -> None:
    folder, other = tmp_path / "conf.d", tmp_path / "new"
    folder.mkdir()
    other.mkdir()
    watch.set([str(folder)])
    other.rename(folder)
    assert noticed(watch)
    watch.set([str(folder)])
    (folder / "x.conf").touch()
    assert noticed(watch)


def test_links_on_the_way(tmp_path: Path, watch: Watch) -> None:
    """/lib -> usr/lib; the directory behind it counts, and so does another link in its place."""
    for version in ("1", "2"):
        (tmp_path / f"usr{version}/lib/modules").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr1/../usr1/lib")
    tree = tmp_path / "lib/modules"
    watch.set([str(tree)])
    entry(tmp_path / "usr1/lib/modules")
    assert noticed(watch)
    entry(tmp_path / "usr2/lib/modules")
    assert not noticed(watch)
    (tmp_path / "new").symlink_to(tmp_path / "usr2/lib")
    (tmp_path / "new").rename(tmp_path / "lib")
    assert noticed(watch)
    watch.set([str(tree)])
    (tmp_path / "usr2/lib/modules/x").touch()
    assert noticed(watch)


def test_links_in_a_circle_and_a_file_in_place_of_a_directory(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").touch()
    wanted = [str(tmp_path / "a/x"), str(tmp_path / "file/x")]
    assert watch.set(wanted) == ()
    for name in ("b", "file"):
        (tmp_path / name).unlink()
        assert noticed(watch)
        (tmp_path / name).mkdir()
        assert noticed(watch)
        watch.set(wanted)


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_gives_another_state(tmp_path: Path, watch: Watch, change: str) -> None:
    """Without a wake-up or a call of `changed`."""
    folder = tmp_path / "watched"
    folder.mkdir()
    file = entry(folder)
    assert watch.state() is None, "nothing is watched yet"
    watch.set([str(folder)])
    before = watch.state()
    assert before is not None
    file.read_text()
    assert watch.state() == before
    CHANGES[change](folder, file)
    assert watch.state() is None
    assert watch.changed()
    assert watch.state() is None, "the events are unread: a new directory is not watched"
    watch.set([str(folder)])
    assert not watch.changed(), "nothing but that a watch was dropped"
    assert watch.state() not in (before, None)


def test_an_unwatchable_directory_has_no_state(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(inotify_simple.INotify, "add_watch", full)
    assert watch.set([str(tmp_path)])
    assert watch.state() is None


@pytest.mark.root
def test_a_mount_over_a_directory_is_noticed(tmp_path: Path, watch: Watch) -> None:
    """As for a merged system extension (systemd-sysext(8)); a mount elsewhere is ignored."""
    tree, elsewhere = tmp_path / "usr/lib/modules", tmp_path / "elsewhere"
    for folder in (tree, elsewhere):
        folder.mkdir(parents=True)
    watch.set([str(tree)])
    mounted = []
    try:
        for folder, counts in ((elsewhere, False), (tmp_path / "usr", True)):
            before = watch.state()
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
            mounted.append(folder)
            assert watch.state() != before
            assert wakes(watch), "who asks for the state takes nothing from the loop"
            assert watch.changed() is counts
            watch.set([str(tree)])
        tree.mkdir(parents=True)
        assert noticed(watch)
    finally:
        for folder in reversed(mounted):
            subprocess.run(["umount", folder], check=True)
    assert watch.changed()
    watch.set([str(tree)])
    entry(tree)
    assert noticed(watch)


# ── set ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_list_again_costs_no_call(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    calls: list[str] = []
    lstat = os.lstat

    def counted(path: str) -> os.stat_result:
        calls.append(path)
        return lstat(path)

    monkeypatch.setattr(os, "lstat", counted)
    watch.set([str(folder)])
    asked = len(calls)
    assert asked
    watch.set([str(folder)])
    assert len(calls) == asked
    (folder / "x").touch()
    assert watch.changed()
    asked = len(calls)
    watch.set([str(folder)])
    assert len(calls) > asked, "after a change it has to look"


def test_a_directory_no_longer_watched_is_silent(tmp_path: Path, watch: Watch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    watch.set([str(one)])
    (one / "late").touch()
    watch.set([str(two)])
    (one / "x").touch()
    assert not noticed(watch)
    (two / "x").touch()
    assert noticed(watch)


def test_many_rounds_leave_no_watch_behind(tmp_path: Path, watch: Watch) -> None:
    """Bounded: the kernel lists the watches of a descriptor in /proc/self/fdinfo (proc(5))."""

    def watches() -> int:
        found = 0
        for path in Path("/proc/self/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += path.read_text().count("inotify wd:")
        return found

    folder = tmp_path / "watched"
    counts = set()
    for number in range(50):
        folder.mkdir()
        watch.set([str(folder)])
        counts.add(watches())
        folder.rename(tmp_path / str(number))
        assert watch.changed()
    assert len(counts) == 1


def test_a_directory_that_changes_while_it_is_being_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change comes between stat and watch, so no event reports it."""
    wanted = tmp_path / "a/b"
    watch = Watch()
    add = inotify_simple.INotify.add_watch

    def late(inotify: inotify_simple.INotify, path: str, mask: int) -> object:
        wanted.mkdir(parents=True, exist_ok=True)
        return add(inotify, path, mask)

    monkeypatch.setattr(inotify_simple.INotify, "add_watch", late)
    watch.set([str(wanted)])
    watch.changed()
    watch.set([str(wanted)])
    (wanted / "x").touch()
    assert noticed(watch)
    watch.close()


def test_an_unwatchable_directory_is_reported_and_the_others_are_watched(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    add = inotify_simple.INotify.add_watch

    def full(inotify: inotify_simple.INotify, path: str, mask: int) -> object:
        if path == str(one):
            raise OSError(28, "No space left on device")
        return add(inotify, path, mask)

    monkeypatch.setattr(inotify_simple.INotify, "add_watch", full)
    told = watch.set([str(one), str(two)])
    assert [(error.errno, error.filename) for error in told] == [(28, str(one))]
    (two / "x").touch()
    assert noticed(watch)


# ── in the loop ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_wakes_the_loop(tmp_path: Path, watch: Watch) -> None:
    watch.set([str(tmp_path)])
    with selectors.DefaultSelector() as selector:
        selector.register(watch, selectors.EVENT_READ)
        assert selector.select(0) == []
        with subprocess.Popen([sys.executable, "-c", f"open({str(tmp_path / 'x')!r}, 'w')"]):
            assert selector.select(30)
    assert watch.changed()


def test_inotify_simple_is_imported_with_the_first_watch() -> None:
    code = "import sys, kmodd.host.file_watch; print('inotify_simple' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_close_frees_every_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    watch = Watch()
    watch.set([str(tmp_path)])
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
