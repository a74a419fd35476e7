"""What `kmodd deny` reads of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kmodd.cli.deny_facts import Askers, read_askers


def journalctl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_journal_that_is_not_read_in_time_is_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is one that ends in time."""
    fields = {
        "MESSAGE_ID": "0" * 28 + "0001", "MESSAGE": "x", "PRIORITY": "6", "_UID": "0", "_COMM": "kmodd",
        "SYSLOG_IDENTIFIER": "kmodd", "KMODD_RESULT": "loaded", "KMODD_SOURCE": "request", "KMODD_MODULE": "a",
        "KMODD_MODULES": "a", "KMODD_REQUESTER_PID": "7", "KMODD_REQUESTER_UID": "33", "KMODD_REQUESTER_COMM": "x",
        "KMODD_REQUESTER_UNIT": "x.service", "KMODD_REQUESTER_CONTAINER": "no",
    }  # fmt: skip
    (tmp_path / "line").write_text(json.dumps(fields) + "\n")
    journalctl(tmp_path, f"cat {tmp_path}/line; exec sleep 1000", monkeypatch)
    assert read_askers(["a"], "", 0.3) == Askers({}, "the history was not read within 0.3s")
    journalctl(tmp_path, f"exec cat {tmp_path}/line", monkeypatch)
    assert read_askers(["a"], "", 200) == Askers({"a": (("x.service", 1),)})
    journalctl(tmp_path, "exit 1", monkeypatch)
    assert read_askers(["a"], "").unknown == "the journal cannot be read"
