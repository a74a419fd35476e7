"""What policy says now: rules, mode, phase, flags, and the marks below /run. `PolicyState`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.config.policy_d import Mode
from kmodd.daemon import policy_state as guards
from kmodd.daemon.policy_state import PolicyState
from kmodd.daemon.reporter import Reporter
from kmodd.dataclass import replace
from kmodd.kernel.requester import Requester
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Reason
from kmodd.planning.policy import SEALED
from kmodd.planning.record import ERR, SEAL, WARNING, record_of
from kmodd.planning.request import Origin, Request
from tests.fakes import ListJournal
from tests.world import World

USER = Requester(812, "sshd", "/usr/sbin/sshd", 1000, None, "", "ssh.service", False)
USERS_ASK = Request("net-pf-38", "request", requester=USER)


class Guarded:
    """A guard with its machine below a folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.marks = {name: root / f"run/kmodd/{name}" for name in ("closed", "sealed")}
        self.marks["closed"].parent.mkdir(parents=True)
        monkeypatch.setattr(guards, "CLOSED", str(self.marks["closed"]))
        monkeypatch.setattr(guards, "SEALED", str(self.marks["sealed"]))
        monkeypatch.setattr(guards, "BOOTED", str(root / "run/kmodd/booted"))
        self.journal = ListJournal()
        self.rules("deny origin=request uid=!0\n")
        self.guard = self.started()

    def started(self) -> PolicyState:
        """A daemon that starts here."""
        return PolicyState(str(self.root), Reporter(self.journal), run=True)

    def rules(self, text: str) -> None:
        file = self.root / "etc/kmodd/policy.d/10-x.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def there(self) -> set[str]:
        """The marks that stand."""
        return {name for name, path in self.marks.items() if path.exists()}


@pytest.fixture
def it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    return Guarded(tmp_path, monkeypatch)


def verdict(guard: PolicyState, request: Request, module: str = "af_alg") -> tuple[bool, bool]:
    """(refused, would be refused)."""
    judge = guard.judge_of(request)
    found = judge(module) if judge else None
    return (found.refused, found.would_be_refused) if found else (False, False)


@pytest.mark.parametrize(
    ("mode", "found"), [("off", (False, False)), ("observe", (False, True)), ("enforce", (True, False))]
)
def test_the_mode_says_what_becomes_of_a_rule(it: Guarded, mode: Mode, found: tuple[bool, bool]) -> None:
    assert it.guard.reload(mode) == ((), True)
    assert verdict(it.guard, USERS_ASK) == found
    root = replace(USERS_ASK, requester=replace(USER, uid=0))
    assert verdict(it.guard, root) == (False, False)


def test_an_unknown_requester_is_not_root(it: Guarded) -> None:
    it.guard.reload("enforce")
    assert verdict(it.guard, replace(USERS_ASK, requester=None)) == (True, False)


def test_broken_rules_keep_the_old_ones(it: Guarded) -> None:
    it.guard.reload("enforce")
    it.rules("allow *\n deny uid=\n")
    problems, changed = it.guard.reload("enforce")
    assert (str(problems[0]).startswith("/etc/kmodd/policy.d/10-x.conf:2:"), changed) == (True, False)
    assert verdict(it.guard, USERS_ASK) == (True, False)
    (record,) = it.journal.records
    assert (record.priority, "earlier rules stay" in record.message) == (ERR, True)
    it.rules("allow *\n")
    assert it.guard.reload("enforce") == ((), True)
    assert verdict(it.guard, USERS_ASK) == (False, False)


@pytest.mark.parametrize(("mode", "marks"), [("off", set()), ("observe", set()), ("enforce", {"closed"})])
def test_the_helper_fails_closed_only_where_the_policy_is_enforced(it: Guarded, mode: Mode, marks: set[str]) -> None:
    it.marks["closed"].touch()
    it.guard.reload(mode)
    assert it.there() == marks


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
def test_a_seal_counts_in_every_mode_and_outlives_the_daemon(it: Guarded, mode: Mode) -> None:
    it.rules("allow module=kcm\n")
    it.guard.reload(mode)
    assert verdict(it.guard, USERS_ASK) == (False, False)
    it.guard.seal(True)
    assert it.there() == {"closed", "sealed"}
    origins: tuple[Origin, ...] = ("request", "uevent", "boot")
    for guard in (it.guard, it.started()):
        guard.reload(mode)
        assert guard.phase == "sealed"
        assert [verdict(guard, Request("x", origin)) for origin in origins] == [(True, False)] * 3
        assert verdict(guard, Request("x", "uevent"), "kcm") == (False, False)
    it.guard.seal(False)
    assert it.there() == ({"closed"} if mode == "enforce" else set())
    assert verdict(it.guard, USERS_ASK) == (False, False)
    assert [record.message_id for record in it.journal.records] == [SEAL] * 2


def test_it_knows_whether_a_daemon_before_it_enforced(it: Guarded) -> None:
    assert it.guard.was_closed is False
    it.guard.reload("enforce")
    assert it.started().was_closed is True
    assert PolicyState(str(it.root), Reporter(it.journal)).was_closed is False


def test_a_daemon_that_is_not_the_machine_s_own_keeps_no_marks(it: Guarded) -> None:
    """A dry run, say."""
    it.marks["sealed"].touch()
    other = PolicyState(str(it.root), Reporter(it.journal))
    other.reload("enforce")
    assert (other.phase, it.there()) == ("boot", {"sealed"})


def test_a_mark_that_cannot_be_made_is_complained_of(it: Guarded) -> None:
    """Without it a dead daemon would be a way round the policy."""
    it.marks["closed"].parent.rmdir()
    it.guard.reload("enforce")
    it.guard.reload("enforce")
    (record,) = it.journal.records
    assert str(it.marks["closed"]) in record.message
    assert record.priority == WARNING


def test_rules_may_ask_for_the_phase_and_for_flags(it: Guarded) -> None:
    it.rules("deny phase=running module=a\ndeny flag=locked module=b\n")
    it.guard.reload("enforce")
    device = Request("pci:v1", "uevent")
    assert verdict(it.guard, device, "a") == (False, False)
    it.guard.booting = False
    assert verdict(it.guard, device, "a") == (True, False)
    flags = it.root / "run/kmodd/flags"
    flags.mkdir(mode=0o755)
    assert verdict(it.guard, device, "b") == (False, False)
    (flags / "locked").touch()
    os.chmod(flags, 0o755)
    assert verdict(it.guard, device, "b") == (True, False)


def test_what_is_only_observed_is_in_the_record(it: Guarded) -> None:
    """KMODD_VERDICT, the rule and its place; what is allowed carries nothing."""
    it.guard.reload("observe")
    loaded = Outcome(USERS_ASK, "af_alg", "loaded", Reason("asked", "net-pf-38"))
    record = record_of(it.guard.note(loaded))
    fields = dict(record.fields)
    told = [fields[f"KMODD_{name}"] for name in ("VERDICT", "RULE", "FILE", "LINE")]
    assert told == ["would_deny", "deny origin=request uid=!0", "/etc/kmodd/policy.d/10-x.conf", "1"]
    assert "policy would have refused it" in record.message
    root = replace(loaded, request=Request("net-pf-38", "request", requester=replace(USER, uid=0)))
    assert it.guard.note(root) == root
    it.rules("log origin=request\n")
    it.guard.reload("enforce")
    assert dict(record_of(it.guard.note(loaded)).fields)["KMODD_VERDICT"] == "log"


def test_the_line_loads_nothing_that_is_refused(world: World) -> None:
    """Neither the module nor what it needs; the record names rule, place and user. A seal stops devices as well."""
    folder = world.root / "etc/kmodd/policy.d"
    folder.mkdir(parents=True)
    (folder / "10-x.conf").write_text("deny origin=request uid=!0 module=a\n")
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    world.engine.reload()
    world.engine.intake.takes_replay()
    world.engine.intake.order(Request("b", "request", requester=USER))
    world.settle()
    fields = [dict(record.fields) for record in world.journal.records]
    told = [(each["KMODD_MODULE"], each["KMODD_RESULT"], each["KMODD_RULE"]) for each in fields]
    rule = "deny origin=request uid=!0 module=a"
    assert told == [("a", "denied", rule), ("b", "denied", f"{rule} (for a)")]
    assert {each["KMODD_REQUESTER_EXE"] for each in fields} == {"/usr/sbin/sshd"}
    assert world.kernel.calls == []
    world.plug("pci:v1")
    world.settle()
    assert [call[0] for call in world.kernel.calls] == ["a.ko", "b.ko"]
    world.told()
    world.engine.seal(True)
    world.plug("pci:v2", "other")
    world.settle()
    assert dict(world.journal.records[-1].fields)["KMODD_RULE"] == SEALED
    assert len(world.kernel.calls) == 2
