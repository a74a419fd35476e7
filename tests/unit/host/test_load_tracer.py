"""The tracefs instance that records loads, played as files. The real one is in tests/vm/test_verify.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.host.load_tracer import LOADS, trace_loads
from tests.pages import HEADER_PAGE


def made(folder: Path, clock: str) -> Path:
    """Have an instance that an earlier daemon left."""
    instance = folder / "instances/kmodd-loads"
    event = "events/module/module_load"
    for name, text in {
        "events/header_page": HEADER_PAGE, f"{event}/format": "", f"{event}/enable": "1", "trace_clock": clock,
        "buffer_size_kb": "1408", "tracing_on": "1",
    }.items():  # fmt: skip
        (instance / name).parent.mkdir(parents=True, exist_ok=True)
        (instance / name).write_text(text)
    return instance


def test_the_clock_is_that_of_the_journal(tmp_path: Path) -> None:
    """Control: one that is right is not written, which would empty the buffer of before a crash."""
    instance = made(tmp_path, "[local] global mono boot")
    trace_loads((str(tmp_path / "nowhere"), str(tmp_path)))
    assert (instance / "trace_clock").read_text().startswith("mono")
    assert (instance / "buffer_size_kb").read_text().startswith("16")
    instance = made(tmp_path, "local global [mono] boot")
    trace_loads((str(tmp_path),))
    assert (instance / "trace_clock").read_text() == "local global [mono] boot"


def test_verify_reads_where_the_daemon_traces() -> None:
    assert LOADS[0] == "/sys/kernel/tracing/instances/kmodd-loads/trace"


def test_without_tracefs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tracefs with instances"):
        trace_loads((str(tmp_path),))
