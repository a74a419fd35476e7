"""Devices with `driver_override` set; a device whose lock is held delays the caller for a limited time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import pytest

from kmodd.host import driver_override
from kmodd.host.driver_override import DriverOverrides


class Child(Protocol):
    """A process that reads the files; its pipe is readable when it has answered or ended."""

    pid: int

    def fileno(self) -> int: ...


class Devices:
    """A sysfs with `driver_override` files; a pipe in place of one blocks its reader until `release`."""

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

    def release(self, name: str) -> None:
        """The lock of the device is free; nothing is set."""
        with self.file(name).open("w") as pipe:
            pipe.write("(null)\n")
        self.file(name).unlink()
        self.add(name)

    def ask(self, *names: str) -> list[str]:
        found = self.overrides.of(f"/devices/{name}" for name in names)
        return sorted(path.removeprefix("/devices/") for path in found)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of these tests: it passes only while all children sleep."""
    now = [0.0]

    def wait(
        children: Sequence[Child], _: object, __: object, limit: float
    ) -> tuple[list[Child], list[Child], list[Child]]:
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
    """Process ids of the children."""
    made: list[int] = []
    fork = os.fork

    def counted() -> int:
        if pid := fork():
            made.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", counted)
    return made


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch, forks: list[int]) -> Iterator[None]:
    """A child in the kernel's uninterruptible sleep takes no SIGKILL before its read returns."""
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    yield
    for pid in forks:
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def test_a_device_with_an_override_is_returned(it: Devices) -> None:
    it.add("a")
    it.add("b", "vfio-pci")
    it.add("c", "")
    it.file("d")  # a device of a bus without the file
    assert it.ask("a", "b", "c", "d") == ["b"]


def test_devices_behind_a_blocked_one_are_read(it: Devices, forks: list[int], unkillable: None) -> None:
    it.add("a")
    it.hang("b")
    it.add("c")
    it.add("d", "vfio-pci")
    it.hang("e")
    it.add("f")
    assert it.ask("a", "b", "c", "d", "e", "f") == ["b", "d", "e"]
    made = len(forks)
    assert it.ask("b", "e") == ["b", "e"]
    assert len(forks) == made, "both have a child already"


def test_a_blocked_device_gets_one_child(it: Devices, forks: list[int], unkillable: None) -> None:
    """Another read would cost half a second, and leave another child that cannot be killed."""
    it.hang("a")
    it.add("b")
    assert it.ask("a", "b") == ["a"]
    made = len(forks)
    assert it.ask("a") == ["a"]
    assert len(forks) == made
    assert it.ask("a", "b") == ["a"]
    assert len(forks) == made + 1
    it.release("a")
    os.waitpid(forks[0], 0)
    assert it.ask("a") == []


def test_a_killed_child_may_be_reaped_elsewhere(it: Devices, forks: list[int]) -> None:
    """The daemon reaps every child; its pid may belong to another process by then."""
    it.hang("a")
    assert it.ask("a") == ["a"]
    os.waitpid(forks[0], 0)
    it.file("a").unlink()
    it.add("a")
    assert it.ask("a") == []


def test_the_number_of_blocked_children_is_limited(
    it: Devices, forks: list[int], unkillable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_override, "MAX_HUNG", 1)
    for name in "ab":
        it.hang(name)
    it.ask("a")
    made = len(forks)
    assert it.ask("b") == ["b"]
    assert len(forks) == made


def test_the_time_spent_reading_is_counted(it: Devices, clock: list[float]) -> None:
    """A batch of requests ends when it was long."""
    it.hang("a")
    it.ask("a")
    assert 0.9 * driver_override.LIMIT < it.overrides.waited == clock[0]
