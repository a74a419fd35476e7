"""Mistakes in policy.d at boot, at a reload and after a crash: nothing becomes allowed by them. `PolicyState`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.daemon import policy_marks
from kmodd.engine.events import Command, Log, MarkPolicy
from kmodd.engine.policy_state import PolicyState
from kmodd.engine.reporter import Reporter
from kmodd.host.machine import HostMachine
from kmodd.host.tree import Tree
from kmodd.kernel.requester import Requester
from kmodd.planning.record import ERR
from kmodd.planning.request import Request
from tests.world import RELEASE

VALID = "allow origin=request module=fuse\ndeny origin=request uid=!0\n"
ROOT, USER = (Requester(812, "sh", "/bin/sh", uid, None, "", "", False) for uid in (0, 1000))


class Machine:
    """A policy.d with one file of rules and a link to a preset, and daemons that start, reload and crash."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "etc/kmodd/policy.d"
        self.folder.mkdir(parents=True)
        self.preset = root / "usr/share/kmodd/policy.d/50-x.conf"
        self.preset.parent.mkdir(parents=True)
        self.preset.write_text("deny module=sctp uid=!0\n")
        (self.folder / "50-x.conf").symlink_to("/usr/share/kmodd/policy.d/50-x.conf")
        self.rules = self.folder / "10-x.conf"
        self.rules.write_text(VALID)
        self.commands: list[Command] = []
        self.policy = self.start()

    def start(self) -> PolicyState:
        """Start a daemon, the first of the boot or after a crash; it finds what an earlier one has left."""
        machine = HostMachine(Tree(root=str(self._root), release=RELEASE))
        self.policy = PolicyState(machine, Reporter(self._carry_out, machine), policy_marks.read_marks())
        return self.policy

    def _carry_out(self, command: Command) -> None:
        self.commands.append(command)
        if isinstance(command, MarkPolicy):
            assert policy_marks.write_marks(command.marks) == []

    def errors(self) -> list[str]:
        """Messages at level err."""
        records = [command.record for command in self.commands if isinstance(command, Log)]
        return [record.message for record in records if record.priority == ERR]

    def allows(self, module: str, who: Requester | None = USER) -> bool:
        """Whether a kernel request of this process gets the module."""
        return self._judge(Request(module, "request", requester=who), module)

    def allows_device(self, module: str) -> bool:
        """Whether a device gets the module."""
        return self._judge(Request("pci:v1", "uevent", devices=("/devices/x",)), module)

    def _judge(self, request: Request, module: str) -> bool:
        judge = self.policy.judge_of(request)
        return judge is None or not judge(module).refused


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("CLOSED", "SEALED", "BOOTED", "RULES"):
        monkeypatch.setattr(policy_marks, name, str(tmp_path / name.lower()))
    return Machine(tmp_path)


def typo(machine: Machine) -> None:
    machine.rules.write_text("allow *\ndeny orgin=request uid=!0\ndeny module=ax25\n")


def unreadable(machine: Machine) -> None:
    machine.rules.unlink()
    machine.rules.mkdir()
    (machine.folder / "20-y.conf").write_text("allow *\ndeny module=ax25\n")


def nuls(machine: Machine) -> None:
    """As a power cut may leave them: the file has its size and no content, or a line has lost its end."""
    machine.rules.write_bytes(b"\0" * len(VALID))
    (machine.folder / "20-y.conf").write_bytes(b"allow *\ndeny module=ax25\ndeny module=sct\0\n")


def dangling(machine: Machine) -> None:
    """The preset was uninstalled, or its name is mistyped."""
    machine.preset.unlink()
    machine.rules.write_text("allow *\ndeny module=ax25\n")


def no_folder(machine: Machine) -> None:
    """The directory itself is a link that leads to none."""
    (machine.folder.parent.parent.parent / "usr/lib/kmodd/policy.d").mkdir(parents=True)
    (machine.folder.parent.parent.parent / "usr/lib/kmodd/policy.d/20-y.conf").write_text("allow *\ndeny module=ax25\n")
    machine.folder.rename(machine.folder.with_name("elsewhere"))
    machine.folder.symlink_to("/nowhere")


Breaks = Callable[[Machine], None]
MISTAKES = pytest.mark.parametrize("breaks", [typo, dangling, unreadable, nuls, no_folder])


@MISTAKES
def test_at_a_boot_only_requests_known_as_roots_are_allowed(machine: Machine, breaks: Breaks) -> None:
    """There are no earlier rules: valid deny rules hold, `allow *` does not, and hardware goes on."""
    breaks(machine)
    machine.policy.reload("enforce")
    assert not machine.allows("fuse")
    assert not machine.allows("kcm", None)
    assert machine.allows("kcm", ROOT)
    assert machine.allows_device("e1000e")
    assert not machine.allows("ax25", ROOT)
    assert not machine.allows_device("ax25")
    assert len(machine.errors()) == 1
    assert machine.policy.broken


@MISTAKES
@pytest.mark.parametrize("crashes", [False, True], ids=["reload", "crash"])
def test_later_the_last_valid_rules_hold_with_the_valid_deny_rules(
    machine: Machine, breaks: Breaks, crashes: bool
) -> None:
    machine.policy.reload("enforce")
    assert machine.allows("ax25", ROOT)
    assert machine.errors() == []
    breaks(machine)
    if crashes:
        machine.start()
    machine.policy.reload("enforce")
    assert machine.allows("fuse")  # the last valid rules allow it
    assert not machine.allows("kcm")
    assert not machine.allows("kcm", None)
    assert machine.allows("kcm", ROOT)
    assert machine.allows_device("e1000e")
    assert not machine.allows("ax25", ROOT)  # new, and readable
    assert len(machine.errors()) == 1
    assert machine.policy.broken


@MISTAKES
def test_mended_rules_replace_the_earlier_ones(machine: Machine, breaks: Breaks) -> None:
    breaks(machine)
    machine.policy.reload("enforce")
    for path in (machine.folder, machine.rules):
        if path.is_symlink():
            path.unlink()
        if path.is_dir() and path != machine.folder:
            path.rmdir()
    machine.folder.mkdir(exist_ok=True)
    for path in (*machine.folder.glob("*-y.conf"), *machine.folder.glob("50*")):
        path.unlink()
    machine.rules.write_text("deny module=kcm\n")
    for path in machine.folder.parent.parent.parent.glob("usr/lib/kmodd/policy.d/*"):
        path.unlink()
    machine.policy.reload("enforce")
    assert machine.policy.broken == ""
    assert (machine.allows("kcm"), machine.allows("ax25"), machine.allows("fuse")) == (False, True, True)
    typo(machine)
    machine.start().reload("enforce")  # and they are the ones that are kept
    assert (machine.allows("kcm"), machine.allows("ax25"), machine.allows("fuse")) == (False, False, True)


def test_the_same_mistake_is_recorded_once(machine: Machine) -> None:
    typo(machine)
    for _ in range(3):
        machine.policy.reload("enforce")
    assert len(machine.errors()) == 1
    machine.rules.write_text("nonsense\n")
    machine.policy.reload("enforce")
    assert len(machine.errors()) == 2


def test_rules_are_not_applied_while_the_policy_is_off(machine: Machine) -> None:
    typo(machine)
    machine.policy.reload("off")
    assert machine.allows("ax25")
    assert (machine.errors(), machine.policy.broken) == ([], "")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0" * 100,
        b"rules",
        b"rules\0/x\0",
        b"rules\0/x\x001\0alow *\0",
        b"rules\0/x\0" + b"1" * 5000 + b"\0deny *\0",
    ],
)
def test_damaged_kept_rules_are_none(machine: Machine, damage: bytes) -> None:
    machine.policy.reload("enforce")
    Path(policy_marks.RULES).write_bytes(damage)
    typo(machine)
    machine.start().reload("enforce")
    assert (machine.allows("kcm"), machine.allows("kcm", ROOT)) == (False, True)


def test_kept_rules_have_their_places_and_are_roots_alone(machine: Machine) -> None:
    odd = machine.folder / os.fsdecode(b"a \xff\n.conf")
    odd.write_bytes(b'\n deny request="a\xff b"  # why\n')
    machine.policy.reload("enforce")
    kept = policy_marks.read_marks().rules
    assert kept is not None
    assert [(rule.at.file.rpartition("/")[2], rule.at.line, rule.text) for rule in kept] == [
        ("10-x.conf", 1, "allow origin=request module=fuse"),
        ("10-x.conf", 2, "deny origin=request uid=!0"),
        ("50-x.conf", 1, "deny module=sctp uid=!0"),
        ("a \udcff\n.conf", 2, 'deny request="a\udcff b"'),
    ]
    assert os.stat(policy_marks.RULES).st_mode & 0o077 == 0
    Path(policy_marks.RULES).unlink()
    machine.start()
    for path in machine.folder.iterdir():
        path.unlink()
    machine.policy.reload("enforce")
    assert policy_marks.read_marks().rules == ()
