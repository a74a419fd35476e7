"""Journal files with records of a test's choice, written by systemd-journal-remote."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodd.planning.record import PREFIX, Record

REMOTE = "/usr/lib/systemd/systemd-journal-remote"
BOOTS = ("11111111111111111111111111111111", "22222222222222222222222222222222")
"""Ids of the boots, the older one first."""
BEGIN = 1_700_000_000_000_000
"""When the first boot began (µs since 1970); the second one did a day later."""
DAY = 86_400_000_000

Fields = Mapping[str, "str | Sequence[str]"]


def record(
    kind: str, second: float = 1.0, boot: int = 1, **fields: str | Sequence[str]
) -> dict[str, str | Sequence[str]]:
    """A record of kmodd that root wrote. kind: the last digits of MESSAGE_ID. second: after the begin of its boot."""
    usec = round(second * 1e6)
    return {
        "__REALTIME_TIMESTAMP": str(BEGIN + boot * DAY + usec), "__MONOTONIC_TIMESTAMP": str(usec),
        "_BOOT_ID": BOOTS[boot], "_UID": "0", "_PID": "333", "_COMM": "kmodd", "_HOSTNAME": "m",
        "SYSLOG_IDENTIFIER": "kmodd", "PRIORITY": "6", "MESSAGE": "x", "MESSAGE_ID": f"{PREFIX}{kind}", **fields,
    }  # fmt: skip


def written(each: Record, second: float = 1.0, boot: int = 1) -> dict[str, str | Sequence[str]]:
    """A record of the engine as journald keeps it. second: when it was written, after the begin of its boot."""
    fields: dict[str, list[str]] = {}
    for name, value in each.fields:
        fields.setdefault(name, []).append(value)
    kind = each.message_id.removeprefix(PREFIX)
    return record(kind, second, boot, MESSAGE=each.message, PRIORITY=str(each.priority), **fields)


def write_journal(folder: Path, records: Sequence[Fields], exported: bytes = b"") -> str:
    """Write a journal file with these records to a folder, in place of one before; return that for `--directory`.

    exported: further records, from `journalctl --output=export`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.journal").unlink(missing_ok=True)
    command = [REMOTE, f"--output={folder}/test.journal", "-"]
    subprocess.run(command, input=exported + b"".join(map(_export, records)), check=True, capture_output=True)
    return str(folder)


def _export(fields: Fields) -> bytes:
    """A record in the Journal Export Format (systemd.io/JOURNAL_EXPORT_FORMATS)."""
    data = b""
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            raw = value.encode("utf-8", "surrogateescape")
            if b"\n" not in raw:
                data += f"{name}=".encode() + raw + b"\n"
            else:
                data += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
    return data + b"\n"
