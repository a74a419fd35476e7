"""The line of /proc/PID/stat: that of a real process, and names that look like the fields behind them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.kernel.proc_stat import FLAGS, PARENT, PF_KTHREAD, START, STATE, STIME, UTIME, split_stat

LINE = b" S 3 7 7 0 -1 2129984 1 2 3 4 12 30 0 0 20 0 1 0 99 0\n"


def test_fields_of_this_process() -> None:
    name, fields = split_stat(Path("/proc/self/stat").read_bytes())
    assert name == Path("/proc/self/comm").read_bytes().removesuffix(b"\n")
    assert (fields[STATE], int(fields[PARENT])) == (b"R", os.getppid())
    assert not int(fields[FLAGS]) & PF_KTHREAD
    assert int(fields[START]) > 0


@pytest.mark.parametrize("name", [b"kmodd", b"", b"a b", b") R 1 (", b"(((", b"x) S 1 2\n", b"\xff)"])
def test_a_name_cannot_forge_the_fields(name: bytes) -> None:
    found, fields = split_stat(b"7 (" + name + b")" + LINE)
    assert found == name
    assert [fields[place] for place in (STATE, PARENT, UTIME, STIME, START)] == [b"S", b"3", b"12", b"30", b"99"]
    assert int(fields[FLAGS]) & PF_KTHREAD


@pytest.mark.parametrize("line", [b"", b"7", b"7 (x", b"7 (x)"])
def test_a_line_that_is_cut_off_has_no_fields(line: bytes) -> None:
    assert split_stat(line)[1] == []
