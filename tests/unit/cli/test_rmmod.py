"""rmmod beyond kmod's; tests/acting.py compares the rest with kmod 30."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kmodd.cli.kmod import rmmod
from kmodd.loader.in_process import Machine
from kmodd.planning.outcome import Outcome
from tests.fake_machine import FakeMachine


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    machine = FakeMachine(tmp_path, needs={"b": ("a",)})
    machine.add("a", "b", "c")
    return machine


def run(machine: FakeMachine, *argv: str, told: list[Outcome] | None = None) -> int:
    tell = (lambda _: None) if told is None else told.append
    return rmmod.main(["--root", str(machine.root), *argv], Machine(machine, tell))


def test_each_module_is_tried_and_reported(machine: FakeMachine) -> None:
    machine.refuse_removal["c"] = errno.EBUSY
    told: list[Outcome] = []
    assert run(machine, "a", "c", "b", "a", told=told) == 1
    assert machine.loaded == ["c"]
    assert [(outcome.module, outcome.result, outcome.errno) for outcome in told] == [
        ("c", "not_removed", errno.EBUSY), ("b", "removed", 0), ("a", "removed", 0),
    ]  # fmt: skip


def test_a_kernel_that_cannot_unload(machine: FakeMachine, capfd: pytest.CaptureFixture[str]) -> None:
    (machine.root / "proc/modules").write_text("a 1 - - Live 0x0\n")
    assert run(machine, "a") == 1
    assert capfd.readouterr().err == "rmmod: ERROR: Module unloading is not supported\n"


@pytest.mark.parametrize("line", ["a 1 -1 - Unloading 0x0", "a 1 -1 - Live 0x0", "a 1 0 - Unloading 0x0"])
def test_a_module_that_is_being_unloaded(line: str, machine: FakeMachine, capfd: pytest.CaptureFixture[str]) -> None:
    """The count is -1 from the moment at which the kernel decides to unload a module, before its state changes."""
    (machine.root / "proc/modules").write_text(f"{line}\n")
    assert run(machine, "a") == 1
    assert capfd.readouterr().err == "rmmod: ERROR: Module a is being unloaded\n"
    assert machine.loaded == ["a"], "the kernel was not asked"


def test_without_proc_nothing_is_loaded(machine: FakeMachine, capfd: pytest.CaptureFixture[str]) -> None:
    (machine.root / "proc/modules").unlink()
    assert run(machine, "a") == 1
    assert capfd.readouterr().err == "rmmod: ERROR: Module a is not currently loaded\n"
