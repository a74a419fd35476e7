"""Whose `driver_override` is set; a device whose lock is held holds up nobody for long."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from kmodd.host import driver_override
from kmodd.host.driver_override import DriverOverrides, _Child


class Devices:
    """A sysfs with such files; one with a pipe in its place hangs whoever reads it, until something is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.overrides = DriverOverrides(str(root))

    def file(self, name: str) -> Path:
        folder = self.root / "sys/devices" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "driver_override"

    def add(self, name: str, value: str = "(null)") -> None:
        self.file(name).write_text(f"{value}\n")

    def hang(self, name: str) -> None:
        os.mkfifo(self.file(name))

    def ask(self, *names: str) -> list[str]:
        found = self.overrides.of(f"/devices/{name}" for name in names)
        return sorted(path.removeprefix("/devices/") for path in found)

    def hung(self) -> list[str]:
        return [path.removeprefix("/devices/") for path in self.overrides._hung]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of these tests: it passes while all children sleep, and not while one has not come to its answer."""
    now = [0.0]

    def wait(
        children: Sequence[_Child], _: object, __: object, limit: float
    ) -> tuple[list[_Child], list[_Child], list[_Child]]:
        while True:
            asleep = all(state(child.pid) == "S" for child in children)  # before the look: who sleeps has answered
            if (ready := select.select(children, [], [], 0)[0]) or not limit:
                return ready, [], []
            if asleep:
                now[0] += limit
                return [], [], []
            os.sched_yield()

    monkeypatch.setattr(driver_override, "select", SimpleNamespace(select=wait))
    monkeypatch.setattr(driver_override, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def state(pid: int) -> str:
    """Of a process (proc_pid_stat(5)); empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


@pytest.fixture
def it(tmp_path: Path, clock: list[float]) -> Devices:
    return Devices(tmp_path)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The children that were made."""
    made: list[int] = []
    fork = os.fork

    def counted() -> int:
        if pid := fork():
            made.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", counted)
    return made


def test_what_is_set_is_told_from_what_is_not(it: Devices) -> None:
    it.add("a")
    it.add("b", "vfio-pci")
    it.add("c", "")
    it.file("d")  # a device of a bus without the file
    assert it.ask("a", "b", "c", "d") == ["b"]
    assert it.hung() == []


def test_those_after_one_that_hangs_are_asked_all_the_same(it: Devices) -> None:
    it.add("a")
    it.hang("b")
    it.add("c")
    it.add("d", "vfio-pci")
    it.hang("e")
    it.add("f")
    assert it.ask("a", "b", "c", "d", "e", "f") == ["b", "d", "e"]
    assert it.hung() == ["b", "e"]


def test_one_that_hangs_is_not_asked_again_before_its_child_has_ended(it: Devices, forks: list[int]) -> None:
    """Each look would cost half a second, and leave one unkillable child more.

    A child in the kernel's sleep ends when the lock is released; here a second holder of its pipe plays that.
    """
    it.hang("a")
    it.add("b")
    assert it.ask("a", "b") == ["a"]
    (child,) = it.overrides._hung.values()
    ours, theirs = os.pipe()
    os.dup2(ours, child.pipe)
    os.close(ours)
    del forks[:]
    assert it.ask("a") == ["a"]
    assert forks == []
    assert it.ask("a", "b") == ["a"]
    (other,) = forks
    os.waitpid(other, 0)  # it holds what it was forked with
    os.close(theirs)
    it.file("a").unlink()
    it.add("a")
    assert it.ask("a") == []
    assert it.hung() == []


def test_a_killed_child_may_be_reaped_by_anybody(it: Devices, forks: list[int]) -> None:
    """The daemon reaps whatever ended: a pid that was given again says nothing."""
    it.hang("a")
    assert it.ask("a") == ["a"]
    os.waitpid(forks[0], 0)
    it.file("a").unlink()
    it.add("a")
    assert it.ask("a") == []


def test_so_many_children_hang_and_no_more(it: Devices, forks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_override, "MAX_HUNG", 1)
    for name in "ab":
        it.hang(name)
    it.ask("a")
    (child,) = it.overrides._hung.values()
    ours, theirs = os.pipe()
    os.dup2(ours, child.pipe)
    os.close(ours)
    del forks[:]
    assert it.ask("b") == ["b"]
    assert forks == []
    os.close(theirs)


def test_how_long_it_took_is_known(it: Devices, clock: list[float]) -> None:
    """A batch of requests ends when that was long."""
    it.hang("a")
    it.ask("a")
    assert 0.9 * driver_override.LIMIT < it.overrides.waited == clock[0]
