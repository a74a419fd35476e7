"""The marks below /run that the kernel's helper and the next daemon read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.config.policy_d import parse_rule
from kmodd.daemon import policy_marks
from kmodd.daemon.policy_marks import read_marks, write_marks
from kmodd.dataclass import replace
from kmodd.engine.events import PolicyMarks
from kmodd.errors import Where

MARKS = [
    PolicyMarks(),
    PolicyMarks(closed=True),
    PolicyMarks(booted=True),
    PolicyMarks(sealed=True, closed=True, booted=True),
    PolicyMarks(rules=(parse_rule("deny uid=!0", Where("/etc/kmodd/policy.d/x.conf", 3)),)),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /run/kmodd."""
    for name in ("CLOSED", "SEALED", "BOOTED", "RULES"):
        monkeypatch.setattr(policy_marks, name, str(tmp_path / name.lower()))
    return tmp_path


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("before", MARKS)
def test_marks_are_read_as_they_were_written_last(run: Path, before: PolicyMarks, marks: PolicyMarks) -> None:
    """The rules stay until others are valid."""
    assert write_marks(before) == []
    assert write_marks(marks) == []
    assert read_marks() == replace(marks, rules=before.rules if marks.rules is None else marks.rules)
    assert {path.name for path in run.iterdir()} == {
        *(name for name in ("sealed", "closed", "booted") if getattr(marks, name)),
        *(["rules"] if before.rules is not None or marks.rules is not None else []),
    }


def test_a_mark_that_cannot_be_made_is_named(run: Path) -> None:
    """Without it a dead daemon would circumvent the policy."""
    run.rmdir()
    (message,) = write_marks(PolicyMarks(closed=True))
    assert message.startswith(f"Failed to create {run}/closed: No such file or directory")


@pytest.mark.parametrize("there", [True, False])
def test_a_mark_that_is_a_fifo_is_not_opened(run: Path, there: bool) -> None:
    """Opening it would wait for a reader. Control: without it the mark is a file."""
    if there:
        os.mkfifo(run / "sealed")
    assert write_marks(PolicyMarks(sealed=True)) == []
    assert (run / "sealed").is_fifo() is there
    assert read_marks() == PolicyMarks(sealed=True)
