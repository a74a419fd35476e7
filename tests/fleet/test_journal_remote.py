"""Records of several machines in one journal: docs/FLEET.md with systemd-journal-upload and systemd-journal-remote."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kmodd.host.journalctl import Query, journal_records
from kmodd.planning.history import Entry, Ignored, entries_of
from kmodd.planning.record import KINDS, PREFIX
from tests.fleet.network import free_port, serving, wait_for
from tests.journal_files import REMOTE, Fields, record, write_journal
from tests.world import World

UPLOAD = "/usr/lib/systemd/systemd-journal-upload"


def loads_of(world: World, alias: str, machine: str) -> list[Fields]:
    """The records of a machine on which a device appears, as journald stores them."""
    world.plug(alias)
    world.settle()
    stored: list[Fields] = []
    for number, each in enumerate(world.records):
        fields: dict[str, list[str]] = {}
        for name, value in each.fields:
            fields.setdefault(name, []).append(value)
        message = {"MESSAGE": each.message, "PRIORITY": str(each.priority), "MESSAGE_ID": each.message_id}
        stored.append({**record("f101", number + 1.0, _HOSTNAME=machine), **message, **fields})
    world.forget()
    return stored


def found(folder: Path, message_id: str) -> list[Entry]:
    with journal_records(Query(directory=str(folder), matches=(f"MESSAGE_ID={message_id}",))) as lines:
        return list(entries_of(lines, Ignored()))


def test_a_load_is_found_by_its_message_id_on_the_collecting_machine(world: World, tmp_path: Path) -> None:
    """Every field arrives unchanged; a kind that none of them has recorded is not found."""
    sent = tmp_path / "one", tmp_path / "two"
    write_journal(sent[0], loads_of(world, "pci:v1", "one"))
    write_journal(sent[1], loads_of(world, "pci:v2", "two"))
    collected, port = tmp_path / "remote", free_port()
    collected.mkdir()
    command = [REMOTE, f"--listen-http=127.0.0.1:{port}", "--split-mode=none", f"--output={collected}/all.journal"]
    with serving(command, port, tmp_path / "remote.log"):
        for folder in sent:
            subprocess.run(
                [
                    UPLOAD, f"--url=http://127.0.0.1:{port}", "--follow=no", f"--directory={folder}",
                    f"--save-state={folder}/state",
                ],
                check=True, capture_output=True,
            )  # fmt: skip
        loaded = PREFIX + KINDS["loaded"][0]
        expected = [*found(sent[0], loaded), *found(sent[1], loaded)]
        wait_for(lambda: len(found(collected, loaded)) == len(expected))
        collected_loads = found(collected, loaded)
    assert {(entry.host, entry.module) for entry in expected} >= {("one", "b"), ("two", "c")}
    assert sorted(collected_loads, key=str) == sorted(expected, key=str)
    assert found(collected, PREFIX + KINDS["crashed"][0]) == []
