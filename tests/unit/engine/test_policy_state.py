"""The policy of now: rules, mode, phase, flags, and the marks that outlive the daemon. `PolicyState`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kmodd.config.policy_d import Mode
from kmodd.dataclass import replace
from kmodd.engine.events import Command, Log, MarkPolicy, PolicyMarks
from kmodd.engine.policy_state import PolicyState
from kmodd.engine.reporter import Reporter
from kmodd.host.machine import HostMachine
from kmodd.host.tree import Tree
from kmodd.kernel.requester import Requester
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Reason
from kmodd.planning.policy import SEALED
from kmodd.planning.record import ERR, SEAL, Record, record_of
from kmodd.planning.request import Origin, Request
from tests.world import RELEASE, World

USER = Requester(812, "sshd", "/usr/sbin/sshd", 1000, None, "", "ssh.service", False)
USERS_REQUEST = Request("net-pf-38", "request", requester=USER)


class Kept:
    """A policy state with its machine below a folder, and what it has written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[Command] = []
        self.rules("deny origin=request uid=!0\n")
        self.policy = self.start(PolicyMarks())

    def start(self, marks: PolicyMarks) -> PolicyState:
        """A daemon starts here and finds these marks."""
        machine = HostMachine(Tree(root=str(self.root), release=RELEASE))
        return PolicyState(machine, Reporter(self.commands.append, machine), marks)

    def rules(self, text: str) -> None:
        file = self.root / "etc/kmodd/policy.d/10-x.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    @property
    def records(self) -> list[Record]:
        return [command.record for command in self.commands if isinstance(command, Log)]

    @property
    def marks(self) -> PolicyMarks:
        """The latest."""
        return next(command.marks for command in reversed(self.commands) if isinstance(command, MarkPolicy))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def verdict(policy: PolicyState, request: Request, module: str = "af_alg") -> tuple[bool, bool]:
    """(refused, would be refused)."""
    judge = policy.judge_of(request)
    found = judge(module) if judge else None
    return (found.refused, found.would_be_refused) if found else (False, False)


@pytest.mark.parametrize(
    ("mode", "found"), [("off", (False, False)), ("observe", (False, True)), ("enforce", (True, False))]
)
def test_the_mode_decides_whether_a_rule_refuses(kept: Kept, mode: Mode, found: tuple[bool, bool]) -> None:
    assert kept.policy.reload(mode) == ((), True)
    assert verdict(kept.policy, USERS_REQUEST) == found
    root = replace(USERS_REQUEST, requester=replace(USER, uid=0))
    assert verdict(kept.policy, root) == (False, False)


def test_an_unknown_requester_is_not_root(kept: Kept) -> None:
    kept.policy.reload("enforce")
    assert verdict(kept.policy, replace(USERS_REQUEST, requester=None)) == (True, False)


def test_broken_rules_keep_the_earlier_ones(kept: Kept) -> None:
    kept.policy.reload("enforce")
    kept.rules("allow *\n deny uid=\n")
    problems, changed = kept.policy.reload("enforce")
    assert (str(problems[0]).startswith("/etc/kmodd/policy.d/10-x.conf:2:"), changed) == (True, False)
    assert verdict(kept.policy, USERS_REQUEST) == (True, False)
    (record,) = kept.records
    assert (record.priority, "keeping all earlier rules" in record.message) == (ERR, True)
    kept.rules("allow *\n")
    assert kept.policy.reload("enforce") == ((), True)
    assert verdict(kept.policy, USERS_REQUEST) == (False, False)


@pytest.mark.parametrize(("mode", "closed"), [("off", False), ("observe", False), ("enforce", True)])
def test_the_helper_fails_closed_only_where_the_policy_is_enforced(kept: Kept, mode: Mode, closed: bool) -> None:
    kept.start(PolicyMarks(closed=True)).reload(mode)
    assert replace(kept.marks, rules=None) == PolicyMarks(closed=closed)


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
def test_a_seal_counts_in_every_mode_and_outlives_the_daemon(kept: Kept, mode: Mode) -> None:
    kept.rules("allow module=kcm\n")
    kept.policy.reload(mode)
    assert verdict(kept.policy, USERS_REQUEST) == (False, False)
    kept.policy.seal(True)
    assert replace(kept.marks, rules=None) == PolicyMarks(closed=True, sealed=True)
    origins: tuple[Origin, ...] = ("request", "uevent", "boot")
    for policy in (kept.policy, kept.start(kept.marks)):
        policy.reload(mode)
        assert policy.phase == "sealed"
        assert [verdict(policy, Request("x", origin)) for origin in origins] == [(True, False)] * 3
        assert verdict(policy, Request("x", "uevent"), "kcm") == (False, False)
    kept.policy.seal(False)
    assert replace(kept.marks, rules=None) == PolicyMarks(closed=mode == "enforce")
    assert verdict(kept.policy, USERS_REQUEST) == (False, False)
    assert [record.message_id for record in kept.records] == [SEAL] * 2


def test_a_policy_knows_whether_an_earlier_daemon_enforced_it(kept: Kept) -> None:
    assert kept.policy.was_closed is False
    kept.policy.reload("enforce")
    assert kept.start(kept.marks).was_closed is True


def test_rules_may_have_the_phase_and_flags_as_conditions(kept: Kept) -> None:
    kept.rules("deny phase=running module=a\ndeny flag=locked module=b\n")
    kept.policy.reload("enforce")
    device = Request("pci:v1", "uevent")
    assert verdict(kept.policy, device, "a") == (False, False)
    kept.policy.finish_boot()
    assert verdict(kept.policy, device, "a") == (True, False)
    assert kept.marks.booted
    flags = kept.root / "run/kmodd/flags"
    flags.mkdir(parents=True, mode=0o755)
    assert verdict(kept.policy, device, "b") == (False, False)
    (flags / "locked").touch()
    os.chmod(flags, 0o755)
    assert verdict(kept.policy, device, "b") == (True, False)


def test_an_observed_rule_is_in_the_record(kept: Kept) -> None:
    """KMODD_VERDICT, the rule and its place; the record of an allowed module has nothing more."""
    kept.policy.reload("observe")
    loaded = Outcome(USERS_REQUEST, "af_alg", "loaded", Reason("asked", "net-pf-38"))
    record = record_of(kept.policy.note(loaded))
    fields = dict(record.fields)
    told = [fields[f"KMODD_{name}"] for name in ("VERDICT", "RULE", "FILE", "LINE")]
    assert told == ["would_deny", "deny origin=request uid=!0", "/etc/kmodd/policy.d/10-x.conf", "1"]
    assert "the policy would have refused it" in record.message
    root = replace(loaded, request=Request("net-pf-38", "request", requester=replace(USER, uid=0)))
    assert kept.policy.note(root) == root
    kept.rules("log origin=request\n")
    kept.policy.reload("enforce")
    assert dict(record_of(kept.policy.note(loaded)).fields)["KMODD_VERDICT"] == "log"


def test_no_refused_module_is_loaded(world: World) -> None:
    """Neither the module nor what it needs; the record names rule, place and user. A seal stops devices as well."""
    rule = "deny origin=request uid=!0 module=a"
    world.set_rules(rule)
    world.queue(Request("b", "request", requester=USER))
    world.settle()
    fields = [dict(record.fields) for record in world.records]
    told = [(each["KMODD_MODULE"], each["KMODD_RESULT"], each["KMODD_RULE"]) for each in fields]
    assert told == [("a", "denied", rule), ("b", "denied", f"{rule} (for a)")]
    assert {each["KMODD_REQUESTER_EXE"] for each in fields} == {"/usr/sbin/sshd"}
    assert world.calls == []
    world.plug("pci:v1")
    world.settle()
    assert world.calls == ["a", "b"]
    world.told()
    world.seal()
    world.plug("pci:v2", "other")
    world.settle()
    assert dict(world.records[-1].fields)["KMODD_RULE"] == SEALED
    assert world.calls == ["a", "b"]


def test_a_local_rule_is_enforced_while_the_policy_is_off(kept: Kept) -> None:
    """The helper is closed in a crash only for one that depends on who asks; the control has no local rules."""
    kept.policy.reload("off")
    assert (kept.policy.is_on, kept.marks.closed) == (False, False)
    local = kept.root / "etc/kmodd/policy.d/05-local.conf"
    local.write_text("deny module=af_alg\n")
    assert kept.policy.reload("off") == ((), True)
    assert verdict(kept.policy, USERS_REQUEST) == (True, False)
    assert verdict(kept.policy, USERS_REQUEST, "sctp") == (False, False)
    assert (kept.policy.is_on, kept.marks.closed) == (True, False)
    local.write_text("deny module=af_alg uid=33\n")
    kept.policy.reload("off")
    assert kept.marks.closed


def test_a_mistake_in_the_local_file_is_named_while_the_policy_is_off(kept: Kept) -> None:
    """One in another file is not: none of its rules is judged."""
    kept.rules("denyy module=y\n")
    kept.policy.reload("off")
    assert (kept.policy.broken, kept.records) == ("", [])
    (kept.root / "etc/kmodd/policy.d/05-local.conf").write_text("denyy module=x\n")
    kept.policy.reload("off")
    assert kept.policy.broken.startswith("/etc/kmodd/policy.d/05-local.conf:1")
    assert "the line is ignored" in kept.policy.broken
    assert [record.message for record in kept.records] == [
        "The rules in policy.d are invalid; ignoring these lines, and applying its valid deny rules"
    ]


def test_a_time_limit_ends_by_the_clock_that_counts_suspend(kept: Kept) -> None:
    local = kept.root / "etc/kmodd/policy.d/05-local.conf"
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    for end, refused in ((now + 3600, False), (now, True)):
        local.write_text(f"allow module=af_alg until={end}\ndeny module=af_alg\n")
        kept.policy.reload("off")
        assert verdict(kept.policy, USERS_REQUEST) == (refused, False)
