"""Crashed and removed modules in a file below /run, for the next daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.daemon.quarantine_file import QuarantineFile
from kmodd.kernel.proc_modules import parse_modules
from kmodd.state.quarantine import Quarantine, of_text


@pytest.mark.parametrize("text", ["", "[]", '{"crashed": 1, "removed": {}}', '{"crashed": []}', "\0"])
def test_a_damaged_file_is_an_empty_quarantine(text: str, tmp_path: Path) -> None:
    path = tmp_path / "standing"
    path.write_text(text)
    assert QuarantineFile(str(path)).read() == Quarantine()


def test_a_quarantine_is_read_as_it_was_written(tmp_path: Path) -> None:
    file, quarantine = QuarantineFile(str(tmp_path / "standing")), Quarantine()
    quarantine.crash("x")
    quarantine.asks("y", ("/devices/1", "/devices/2"))
    quarantine.remove("y")
    again = of_text(quarantine.to_text())
    assert (again.crashed, again.removed) == ({"x"}, {"y": {"/devices/1", "/devices/2"}})
    file.write(quarantine)
    assert file.read().crashed == {"x"}


def test_the_file_is_written_with_each_change_and_not_without(tmp_path: Path) -> None:
    path = tmp_path / "standing"
    file, quarantine = QuarantineFile(str(path)), Quarantine()
    quarantine.asks("y", ("/devices/1", "/devices/2"))
    file.write(quarantine)
    assert not path.exists()
    live = parse_modules("y 1 0 - Live 0x0\n")
    changes: list[Callable[[], object]] = [
        lambda: quarantine.crash("x"),
        lambda: quarantine.remove("y"),
        lambda: quarantine.leave("/devices/1"),
        lambda: quarantine.arrive("/devices/2"),
        lambda: quarantine.load("y"),
        lambda: quarantine.forgive(live),
    ]
    for change in changes:
        change()
        file.write(quarantine)
        assert of_text(path.read_text()).to_text() == quarantine.to_text()
        path.write_text("as it was")
        quarantine.load("z")
        quarantine.arrive("/devices/3")
        assert not quarantine.has_crashed("z", live)
        file.write(quarantine)
        assert path.read_text() == "as it was"
    assert not quarantine.crashed


def test_a_file_that_cannot_be_written_is_a_problem_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "kmodd"
    warnings: list[str] = []
    file, quarantine = QuarantineFile(str(folder / "standing"), warn=warnings.append), Quarantine()
    file.write(quarantine)
    assert (file.problem, warnings) == ("", []), "there is nothing to write"
    quarantine.crash("x")
    file.write(quarantine)
    assert file.problem == (
        f"Failed to write {folder}/standing: No such file or directory; "
        "the next daemon does not know which modules have crashed or were removed"
    )
    file.write(quarantine)
    assert warnings == [file.problem] * 2
    folder.mkdir()
    file.write(quarantine)
    assert (file.problem, file.read().crashed) == ("", {"x"})


def test_a_device_that_left_while_no_daemon_ran_is_forgotten(tmp_path: Path) -> None:
    """The next one at its place is new, and gets its driver."""
    (tmp_path / "sys/devices/1").mkdir(parents=True)
    file = QuarantineFile(str(tmp_path / "standing"), str(tmp_path))
    quarantine = Quarantine()
    quarantine.asks("y", ("/devices/1", "/devices/2"))
    quarantine.remove("y")
    file.write(quarantine)
    assert file.read().removed == {"y": {"/devices/1"}}
