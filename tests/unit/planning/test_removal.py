"""Removal as a plan and as a job: modules, order, effect of a failure."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kmodd.host.tree import Tree
from kmodd.kernel.proc_modules import Loaded, parse_modules
from kmodd.planning.load_errors import of_removal
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import RemovalStep, RemoveCommand, Rmmod
from kmodd.planning.record import record_of
from kmodd.planning.removal import MAX_DEPTH, RemovalJob, RemovalPlan, plan_removal
from kmodd.planning.request import RemovalOptions, Request
from tests import rootfs


class Played:
    """A plan that is carried out on nothing: a step succeeds, or fails with the errno that a test gives."""

    def __init__(self, root: Path, config: str, loaded: Mapping[str, tuple[int, str]]) -> None:
        """`loaded`: module → its use count and who uses it, with commas."""
        rootfs.build("names", root)
        (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
        (root / "etc/modprobe.d/t.conf").write_text(config)
        self.tree = Tree(root=str(root), release=rootfs.RELEASE)
        self.loaded = dict(loaded)

    def look(self) -> Loaded:
        lines = (f"{name} 1 {count} {users or '-'} Live 0x0" for name, (count, users) in self.loaded.items())
        return parse_modules("\n".join(lines))

    def plan(self, text: str, removing: RemovalOptions) -> RemovalPlan:
        request = Request(text, "operator", removing=removing)
        return plan_removal(request, self.tree.quick_snapshot(), self.look(), self.tree.present)

    def run(self, text: str, refuse: Mapping[str, int] | None = None, **how: Any) -> RemovalJob:
        job = RemovalJob(self.plan(text, RemovalOptions(**how)), self.look)
        while step := job.next_step():
            assert job.next_step() is step, "it stays the next one until it is finished"
            job.finish(self._outcome(job, step, (refuse or {}).get(step.module, 0)))
        return job

    def _outcome(self, job: RemovalJob, step: RemovalStep, code: int) -> Outcome:
        if not code:
            self.loaded.pop(step.module, None)
            for name, (count, users) in self.loaded.items():
                if f"{step.module}," in users:
                    self.loaded[name] = (count - 1, users.replace(f"{step.module},", ""))
        at = step.at if isinstance(step, RemoveCommand) else None
        return Outcome(
            job.plan.request, step.module, "not_removed" if code else "removed", step.because, "", code, 7, at,
            load_error=of_removal(code, None) if code else None,
        )  # fmt: skip


def said(job: RemovalJob) -> list[tuple[str, str]]:
    return [(outcome.module, outcome.result) for outcome in job.outcomes]


KVM = {"kvm_intel": (0, ""), "kvm": (1, "kvm_intel,"), "irqbypass": (2, "kvm,kvm_intel,")}


def test_dependencies_without_users_are_removed_too(tmp_path: Path) -> None:
    job = Played(tmp_path / "r", "", KVM).run("kvm-intel")
    # each once, in the order of loading: kvm still uses irqbypass then
    assert said(job) == [("kvm_intel", "removed"), ("kvm", "removed")]
    assert [str(outcome.because) for outcome in job.outcomes] == ["asked for", "dependency of kvm_intel"]
    assert not job.failed


def test_a_module_in_use_stays(tmp_path: Path) -> None:
    job = Played(tmp_path / "r", "", KVM | {"kvm": (2, "kvm_intel,")}).run("kvm_intel")
    assert said(job) == [("kvm_intel", "removed")]


def test_in_use_is_a_failure_without_a_step(tmp_path: Path) -> None:
    played = Played(tmp_path / "r", "", KVM)
    job = played.run("kvm")
    assert (said(job), job.failed) == ([("kvm", "in_use")], True)
    assert said(played.run("kvm", waits=True, refuse={"kvm": errno.EAGAIN})) == [("kvm", "not_removed")]


def test_holders_go_first(tmp_path: Path) -> None:
    job = Played(tmp_path / "r", "", KVM).run("irqbypass", holders=True)
    assert said(job) == [("kvm_intel", "removed"), ("kvm", "removed"), ("irqbypass", "removed")] or said(job) == [
        ("kvm", "in_use"),
    ]


CHAIN = {"loop": (1, "tun,"), "tun": (1, "fuse,"), "fuse": (0, "")}


def test_holders_of_holders_go_before_them(tmp_path: Path) -> None:
    job = Played(tmp_path / "r", "", CHAIN).run("loop", holders=True)
    assert said(job) == [("fuse", "removed"), ("tun", "removed"), ("loop", "removed")]
    control = Played(tmp_path / "control", "", CHAIN).run("loop")
    assert said(control) == [("loop", "in_use")]


def test_a_holder_in_use_by_a_program_keeps_the_rest(tmp_path: Path) -> None:
    job = Played(tmp_path / "r", "", CHAIN | {"tun": (2, "fuse,")}).run("loop", holders=True)
    assert (said(job), job.failed) == ([("fuse", "removed"), ("tun", "in_use")], True)


def test_holders_of_softdeps_stay(tmp_path: Path) -> None:
    loaded = {"crc16": (0, ""), **CHAIN}
    job = Played(tmp_path / "r", "softdep crc16 post: loop\n", loaded).run("crc16", holders=True, ends_at_failure=False)
    assert said(job) == [("loop", "in_use"), ("crc16", "removed")]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ("alias x nosuch\nalias x none\n", [("nosuch", "nomatch")]),
        ("alias x nosuch\nalias x crc16\n", []),
        ("alias x nosuch\nremove nosuch true\n", [("nosuch", "removed")]),
        ("alias x gone\n", [("gone", "removed")]),
    ],
)
def test_an_alias_to_nothing_is_not_found(tmp_path: Path, config: str, found: list[tuple[str, str]]) -> None:
    """Neither in the tree nor loaded, and no remove command; crc16 is in the tree, `gone` only in the kernel."""
    job = Played(tmp_path / "r", config, {"gone": (0, "")}).run("x")
    assert (said(job), job.failed) == (found, found == [("nosuch", "nomatch")])


def test_a_holder_that_stays_keeps_it(tmp_path: Path) -> None:
    loaded = {"loop": (1, "tun,"), "tun": (0, "")}
    job = Played(tmp_path / "r", "", loaded).run("loop", refuse={"tun": errno.EBUSY}, holders=True)
    assert (said(job), job.failed) == ([("tun", "not_removed")], True)


SOFTDEPS = "softdep loop pre: dummy fuse post: tun crc16\n"
FIVE = dict.fromkeys(("loop", "dummy", "fuse", "tun", "crc16"), (0, ""))


def test_softdeps_go_around_it_and_may_fail(tmp_path: Path) -> None:
    played = Played(tmp_path / "r", SOFTDEPS, FIVE)
    job = played.run("loop", refuse={"crc16": errno.EBUSY, "fuse": errno.EBUSY})
    assert [module for module, _ in said(job)] == ["crc16", "tun", "loop", "fuse", "dummy"]
    assert not job.failed
    assert str(job.outcomes[0].because) == "softdep of loop in /etc/modprobe.d/t.conf:1"


def test_ignoring_commands_ignores_softdeps(tmp_path: Path) -> None:
    played = Played(tmp_path / "r", SOFTDEPS + "remove loop false\n", FIVE)
    assert said(played.run("loop", ignore_commands=True)) == [("loop", "removed")]


def test_a_command_stands_for_the_module_and_its_dependencies(tmp_path: Path) -> None:
    played = Played(tmp_path / "r", "remove kvm* echo $CMDLINE_OPTS\n", KVM)
    (target,) = played.plan("kvm_intel", RemovalOptions()).targets
    assert target.command is not None
    assert said(played.run("kvm_intel")) == [("kvm_intel", "removed")]
    (outcome,) = played.run("kvm_intel", refuse={"kvm_intel": 3}).outcomes
    assert (outcome.result, str(outcome.at)) == ("not_removed", "/etc/modprobe.d/t.conf:1")


@pytest.mark.parametrize("ends", [True, False])
def test_a_failure_ends_all_or_not(tmp_path: Path, ends: bool) -> None:
    """FATAL ends modprobe even where a softdep is in use; with -a or -q nothing is FATAL."""
    job = Played(tmp_path / "r", SOFTDEPS, FIVE | {"tun": (1, "")}).run("loop", ends_at_failure=ends)
    assert job.failed is ends
    assert [module for module, _ in said(job)][:2] == ["crc16", "tun"]
    assert (("loop", "removed") in said(job)) is not ends


def test_not_there_not_found_builtin(tmp_path: Path) -> None:
    none: dict[str, bool] = {}
    played = Played(tmp_path / "r", "softdep tun pre: crypto_algapi\n", {"tun": (0, "")})
    for text, how, results, failed in (
        ("loop", none, [], False),
        ("loop", {"first_time": True}, [("loop", "absent")], True),
        ("loop", {"ignore_loaded": True}, [("loop", "removed")], False),
        ("nosuch", none, [("nosuch", "nomatch")], True),
        ("a[b", none, [], True),
        ("crypto_algapi", none, [("crypto_algapi", "builtin")], True),
        ("tun", none, [("tun", "removed")], False),
    ):
        job = played.run(text, None, **how)
        assert (said(job), job.failed) == (results, failed), (text, how)


def test_softdeps_in_a_ring_or_in_a_long_chain_end(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(3 * MAX_DEPTH)]
    lines = [
        f"softdep {one} post: {other}\nremove {one} true\n"
        for one, other in zip(names, names[1:] + names[:1], strict=True)
    ]
    job = Played(tmp_path / "r", "".join(lines), {}).run("m0")
    assert job.outcomes[-1].module == "m0"
    assert len(job.outcomes) == MAX_DEPTH + 1


def test_abandoned_it_says_so_once(tmp_path: Path) -> None:
    played = Played(tmp_path / "r", "", KVM)
    job = RemovalJob(played.plan("kvm_intel", RemovalOptions()), played.look)
    job.abandon("no loader")
    assert said(job) == [("kvm_intel", "not_attempted")]
    assert (job.next_step(), job.failed, len(job.pop_outcomes()), len(job.pop_outcomes())) == (None, True, 1, 0)
    assert record_of(job.outcomes[0]).message == "Not removing kvm_intel: no loader"


@pytest.mark.parametrize(
    ("result", "code", "message"),
    [
        ("removed", 0, "Removed kvm_intel in 7us"),
        ("not_removed", errno.EAGAIN, "Failed to remove kvm_intel: EAGAIN, the module is in use"),
    ],
)
def test_the_record_of_a_removal(tmp_path: Path, result: str, code: int, message: str) -> None:
    played = Played(tmp_path / "r", "", {"kvm_intel": (0, "")})
    (outcome,) = played.run("kvm_intel", refuse={"kvm_intel": code}).outcomes
    told = record_of(outcome)
    fields = dict(told.fields)
    assert (told.message, fields["KMODD_RESULT"], fields["KMODD_SOURCE"]) == (message, result, "operator")
    assert fields["KMODD_DURATION_USEC"] == "7"


def test_steps_are_values(tmp_path: Path) -> None:
    played = Played(tmp_path / "r", "", KVM)
    assert played.plan("kvm", RemovalOptions()) == played.plan("kvm", RemovalOptions())
    (target,) = played.plan("kvm", RemovalOptions()).targets
    assert hash(target) == hash(target)
    assert isinstance(RemovalJob(played.plan("kvm_intel", RemovalOptions()), played.look).next_step(), Rmmod)
