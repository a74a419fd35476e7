"""`kmodd seal --rehearse`: what a seal would have refused, out of the journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kmodd.cli import seal
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Parsed, parse

FIELDS = {
    "_UID": "0", "SYSLOG_IDENTIFIER": "kmodd", "KMODD_RESULT": "loaded", "KMODD_SOURCE": "uevent",
    "KMODD_ALIAS": "pci:v1", "KMODD_MODULE": "c",
}  # fmt: skip
LOADED = json.dumps(FIELDS)
Capture = pytest.CaptureFixture[str]


def journal(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A journalctl that does this."""
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(seal, "read_rules", lambda _: Parsed())


def test_uses_without_a_rule_are_listed_with_a_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    journal(tmp_path, monkeypatch, f"printf '%s\\n' '{LOADED}' '{LOADED}'")
    assert seal.main(["--rehearse"]) == 1
    assert capsys.readouterr().out == "c by uevent: pci:v1, 2 times\n"


def test_a_journal_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """journalctl says why, and there is no traceback; nor for a line that is none of its records."""
    journal(tmp_path, monkeypatch, "echo 'No journal files were found.' >&2; exit 1")
    assert seal.main(["--rehearse"]) == 1
    assert "would have been refused" not in capsys.readouterr().err
    journal(tmp_path, monkeypatch, f"printf '%s\\n' nonsense [] '{LOADED}'")
    assert seal.main(["--rehearse"]) == 1
    said = capsys.readouterr()
    assert said.out == "c by uevent: pci:v1\n"
    assert "Ignoring 2 lines without a JSON record" in said.err


@pytest.mark.parametrize(
    ("processes", "is_refused"),
    [
        (("uid=0 container=no unit=- exe=/a",) * 2, False),
        (("uid=0 container=no unit=- exe=/a", "uid=1000 container=no unit=- exe=/a"), True),
        (("uid=0 container=no unit=- exe=/a", "uid=0 container=no unit=- kernel=yes exe="), True),
        ((), True),
    ],
)
def test_a_load_for_one_of_several_processes_is_allowed_if_it_is_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, processes: tuple[str, ...], is_refused: bool
) -> None:
    """Without them on record the process is unknown, which no allow rule admits; so is a thread for ciphers."""
    asked = {"KMODD_SOURCE": "request", "KMODD_ALIAS": "crypto-x", "KMODD_REQUESTER_CANDIDATE": processes}
    record = json.dumps({**FIELDS, **asked})
    journal(tmp_path, monkeypatch, f"printf '%s\\n' '{record}'")
    rules = parse([ConfFile("a", "allow uid=0")])
    monkeypatch.setattr(seal, "read_rules", lambda _: rules)
    assert seal.main(["--rehearse"]) == int(is_refused)
    assert capsys.readouterr().out == ("c by request: crypto-x\n" if is_refused else "")
