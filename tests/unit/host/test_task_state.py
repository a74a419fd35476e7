"""Whether a process is asleep, and how much it has run: real processes, and lines of /proc/PID/stat."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmodd.host.task_state import TaskState, task_state


def test_a_process_that_waits_is_asleep_and_takes_no_time() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        end = time.monotonic() + 30
        while not ((first := task_state(process.pid)) and first.is_asleep) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.05)
        assert task_state(process.pid) == first
        process.kill()


def test_a_process_that_computes_is_not_asleep() -> None:
    """Control: itself, which is on a processor while it reads."""
    found = task_state(os.getpid())
    assert found is not None
    assert not found.is_asleep
    code = "while True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        end = time.monotonic() + 60
        while not ((seen := task_state(process.pid)) and seen.ticks > 20) and time.monotonic() < end:
            time.sleep(0.05)
        assert seen is not None
        assert seen.ticks > 20
        process.kill()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"7 (a) S (b) R) D 1 7 7 0 -1 64 1 0 0 0 12 30 0 0 20 0 1 0 5\n", TaskState(is_asleep=True, ticks=42)),
        (b"7 (x) S 1 7 7 0 -1 64 1 0 0 0 1 0 0 0 20 0 1 0 5\n", TaskState(is_asleep=True, ticks=1)),
        (b"7 (x) R 1 7 7 0 -1 64 1 0 0 0 1 0 0 0 20 0 1 0 5\n", TaskState(is_asleep=False, ticks=1)),
        (b"7 (x) T 1 7 7 0 -1 64 1 0 0 0 1 0 0 0 20 0 1 0 5\n", TaskState(is_asleep=False, ticks=1)),
        (b"7 (x) S 1\n", None),
        (b"", None),
    ],
)
def test_a_line_of_the_kernel(tmp_path: Path, text: bytes, expected: TaskState | None) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_bytes(text)
    assert task_state(7, str(tmp_path)) == expected


def test_a_process_that_has_ended_has_no_state(tmp_path: Path) -> None:
    assert task_state(8, str(tmp_path)) is None
