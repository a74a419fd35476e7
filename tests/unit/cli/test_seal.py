"""`kmodd seal`: the uses that a seal would refuse, what `--permanent` waits for, and the exit statuses."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli import seal
from kmodd.cli.client import NotRunning, Refused
from kmodd.config.kmodd_conf import Settings
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Parsed, parse
from kmodd.host.journalctl import THIS_BOOT, Query
from kmodd.host.tree import Tree
from kmodd.kernel.proc_modules import Loaded, parse_modules
from kmodd.planning.history import Entry, entry_of
from kmodd.planning.policy_history import sealed_asking
from kmodd.planning.record import SEAL
from tests.fakes import ListJournal
from tests.world import RELEASE

LOADED = {"_UID": "0", "SYSLOG_IDENTIFIER": "kmodd", "KMODD_RESULT": "loaded"}
BY_USER = {
    **LOADED, "KMODD_SOURCE": "request", "KMODD_ALIAS": "net-pf-38", "KMODD_MODULE": "af_alg",
    "KMODD_REQUESTER_UID": "1000", "KMODD_REQUESTER_PID": "812", "KMODD_REQUESTER_EXE": "/usr/bin/ssh",
    "KMODD_REQUESTER_UNIT": "ssh.service", "KMODD_REQUESTER_CONTAINER": "no",
}  # fmt: skip
BY_DEVICE = {
    **LOADED, "KMODD_SOURCE": "uevent", "KMODD_ALIAS": "pci:v1", "KMODD_MODULE": "e1000e", "KMODD_SUBSYSTEM": "pci",
    "KMODD_DEVPATH": ["/devices/pci0/1", "/devices/pci0/2"],
}  # fmt: skip


def _entry(record: dict[str, Any]) -> Entry:
    entry = entry_of(record)
    assert entry is not None
    return entry


class Machine:
    """The machine that the program reads."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: list[dict[str, Any]] = []
        self.rules = Parsed()
        self.flags = frozenset[str]()
        self.loaded: Loaded = parse_modules("ext4 1 0 - Live 0x0\nnf_tables 1 0 - Loading 0x0\n")
        self.requires: tuple[str, ...] = ()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None
        self.disabled = folder / "modules_disabled"
        self.disabled.write_text("0\n")
        self.journal = ListJournal()
        for name, value in {
            "journal_records": self._journal_records,
            "read_rules": lambda root: self.rules,
            "read_flags": lambda root: self.flags,
            "read_loaded": lambda: self.loaded,
            "read_settings": lambda root: Settings(seal_requires=self.requires),
            "call_awaited": self._call,
            "MODULES_DISABLED": str(self.disabled),
            "Tree": lambda: Tree(root=str(folder), release=RELEASE),
            "JournalSocket": lambda: self.journal,
        }.items():
            monkeypatch.setattr(seal, name, value)

    def allow(self, text: str) -> None:
        self.rules = parse([ConfFile("/etc/kmodd/policy.d/10-x.conf", text)])

    @contextlib.contextmanager
    def _journal_records(self, query: Query) -> Iterator[Iterable[str]]:
        assert query == THIS_BOOT
        if self.error:
            raise self.error
        yield [json.dumps(record) for record in self.records]

    def _call(self, method: str, _socket: str, **parameters: Any) -> dict[str, Any]:
        self.calls.append((method, parameters))
        if self.error:
            raise self.error
        return {}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = seal.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_rehearsal_counts_uses_that_no_rule_allows(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.records = [BY_USER, BY_DEVICE, BY_DEVICE]
    status, out, err = run(capsys, "--rehearse")
    assert (status, out) == (1, "af_alg by request: net-pf-38\ne1000e by uevent: pci:v1, 2 times\n")
    assert err == "kmodd seal: A seal would have refused 2 different loads since boot\n"
    machine.allow("allow origin=request unit=ssh.service container=no\nallow origin=uevent subsystem=pci\n")
    assert run(capsys, "--rehearse")[:2] == (0, "")
    machine.allow("allow origin=request uid=0\nallow subsystem=usb\nallow flag=maintenance\n")
    assert run(capsys, "--rehearse")[0] == 1
    machine.flags = frozenset(("maintenance",))
    assert run(capsys, "--rehearse")[0] == 0
    assert machine.calls == [], "a rehearsal does not seal"


@pytest.mark.parametrize(
    "change",
    [{"_UID": "1000"}, {"KMODD_RESULT": "live"}, {"KMODD_SOURCE": "nonsense"}, {"KMODD_SOURCE": ["a", "b"]}],
)
def test_only_roots_records_of_loads_count(
    machine: Machine, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    machine.records = [{**BY_USER, **change}]
    assert run(capsys, "--rehearse")[0] == 0


def test_a_record_names_the_requester_and_the_module(machine: Machine) -> None:
    found = sealed_asking(_entry(BY_DEVICE), machine.flags)
    assert found is not None
    ((query,), modules) = found
    assert (query.phase, query.devices, query.requester, modules) == ("sealed", ("/devices/pci0/1",), None, ("e1000e",))
    found = sealed_asking(_entry({**BY_USER, "KMODD_REQUESTER_UID": "me"}), machine.flags)
    assert found is not None
    assert [query.requester for query in found[0]] == [None], "half of a requester is unknown"


def test_broken_rules_and_an_unreadable_journal_are_reported(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.allow("allow unit=\n")
    assert "Ignoring invalid rule: /etc/kmodd/policy.d/10-x.conf:1:" in run(capsys, "--rehearse")[2]
    machine.rules = Parsed()
    machine.error = subprocess.CalledProcessError(1, ["journalctl"])
    assert run(capsys, "--rehearse") == (1, "", f"kmodd seal: {machine.error}\n")


@pytest.mark.parametrize(("argv", "sealed"), [((), True), (("--undo",), False)])
def test_the_daemon_sets_and_removes_the_seal(
    machine: Machine, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], sealed: bool
) -> None:
    assert run(capsys, *argv) == (0, "", "")
    assert machine.calls == [("Seal", {"sealed": sealed})]


@pytest.mark.parametrize(
    ("error", "status"), [(NotRunning("not running"), 7), (Refused("io.kmodd.PermissionDenied", {}), 1)]
)
@pytest.mark.parametrize("argv", [(), ("--permanent",)])
def test_a_daemon_that_cannot_be_called_is_an_error(
    machine: Machine, capsys: pytest.CaptureFixture[str], error: Exception, status: int, argv: tuple[str, ...]
) -> None:
    machine.error = error
    assert run(capsys, *argv) == (status, "", f"kmodd seal: {error}\n")
    assert machine.disabled.read_text() == "0\n"


def test_a_permanent_seal_waits_for_settled_devices_and_needs_the_required_modules_live(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dashes and underscores are one; a module whose init has not returned is not live."""
    machine.requires = ("ext4", "nf-tables", "vfat")
    status, _, err = run(capsys, "--permanent", "--timeout", "3")
    assert (status, err) == (1, "kmodd seal: Failed to seal: required modules not live: nf_tables vfat\n")
    assert (machine.disabled.read_text(), machine.journal.records) == ("0\n", [])
    assert machine.calls == [("Settle", {"timeout_usec": 3_000_000})]
    machine.loaded = parse_modules("".join(f"{name} 1 0 - Live 0x0\n" for name in ("ext4", "nf_tables", "vfat")))
    assert run(capsys, "--permanent") == (0, "", "")
    assert machine.disabled.read_text() == "1"
    assert [record.message_id for record in machine.journal.records] == [SEAL]


def test_a_builtin_module_counts_as_live(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.requires = ("ext4", "fat-core", "vfat")
    modules = tmp_path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("vfat.ko:\n")
    (modules / "modules.builtin").write_text("kernel/fs/fat/fat-core.ko\n")
    status, _, err = run(capsys, "--permanent")
    assert (status, err) == (1, "kmodd seal: Failed to seal: required modules not live: vfat\n")
    (modules / "modules.builtin").write_text("kernel/fs/fat/fat-core.ko\nkernel/fs/fat/vfat.ko\n")
    assert run(capsys, "--permanent")[0] == 0
