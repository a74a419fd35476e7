"""Who asks is answered, what waits goes on, and what was decided holds: corners in which one of these could fail."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from kmodd.daemon import policy_state
from kmodd.daemon.foreign_loads import _Start
from kmodd.daemon.kernel_requests import KernelRequests
from kmodd.daemon.policy_state import PolicyState
from kmodd.daemon.timeouts import next_look
from kmodd.errors import ParseError
from kmodd.host.config_files import settings_directories
from kmodd.host.driver_override import DriverOverrides
from kmodd.host.helper_socket import RequestSocket
from kmodd.kernel import proc_modules, uevent
from kmodd.loader.pool import Died, Loader
from kmodd.planning.outcome import Outcome
from kmodd.planning.record import NO_LOADER
from kmodd.planning.removal import RemovalJob, plan_removal
from kmodd.planning.request import Origin, RemovalOptions, Request
from tests.unit.test_line_lanes import GateKernel, at_work, gate, hear, module_event
from tests.world import World, loads

__all__ = ["gate"]


@pytest.fixture(autouse=True)
def _replayed(world: World) -> None:
    """Its first replay is over."""
    world.engine.intake.takes_replay()


def results(world: World, request: Request) -> list[tuple[str, str]]:
    """What came of a request that is taken now."""
    assert world.engine.intake.order(request)
    (job,) = world.settle()
    return [(each.module, each.result) for each in job.outcomes]


# -- who waits is answered ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["request", "operator"])
def test_who_waits_for_an_answer_gets_one_also_where_it_is_known(world: World, origin: Origin) -> None:
    """A refusal stands for ten seconds for devices; a process in request_module() would hang for ever."""
    world.kernel.refuse["c.ko"] = errno.ENODEV
    world.engine.intake.backlog.add(Request("c", "boot"))
    world.settle()
    world.engine.scheduler.take_ended()
    for _ in range(2):
        assert results(world, Request("c", origin)) == [("c", "failed")]


def test_what_a_kernels_request_was_refused_is_no_answer_for_a_device(world: World) -> None:
    """Policy may refuse the one and allow the other; the alias of an MDIO device is asked for by both."""
    rules(world, "deny origin=request")
    assert results(world, Request("pci:v2", "request")) == [("c", "denied")]
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert loads(world) == ["c.ko"]


# -- no loader ----------------------------------------------------------------------------------------------------


def test_without_a_loader_and_without_a_wish_nobody_looks_again_and_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that is due and never done would have the daemon's loop run without a pause."""

    def none() -> Loader:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(world.loaders, "get", none)
    assert results(world, Request("c", "operator")) == [("c", "not_attempted")]
    assert world.engine.scheduler.dispatcher.next_look() is not None
    monkeypatch.setattr(world.engine.scheduler.dispatcher, "_not_before", 1.0)  # long ago
    assert not world.engine.can_advance
    assert world.engine.scheduler.dispatcher.next_look() is None


@pytest.mark.usefixtures("still")
def test_loaders_that_end_before_their_first_word_are_not_made_without_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd accepts a connection and closes it where it cannot start the loader, or where there are too many."""
    theirs: list[socket.socket] = []

    def pair() -> Loader:
        ours, their = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.append(their)
        return Loader(ours)

    monkeypatch.setattr(world.loaders, "get", pair)
    world.plug("pci:v2")
    world.engine.intake.order(Request("a", "request"))
    world.engine.advance()
    for _ in range(100):
        for their in theirs:
            their.close()
        for batch in world.engine.in_flight.busy():
            world.engine.scheduler.heard(batch.lane)
        world.engine.advance()
    assert len(theirs) <= 8
    assert [record.message_id for record in world.journal.records].count(NO_LOADER) == 1
    assert not world.engine.devices_answered, "the device waits"
    # the process does without us
    assert [job.plan.request.text for job in world.engine.scheduler.take_ended()] == ["a"]
    monkeypatch.undo()
    world.engine.scheduler.dispatcher._not_before = 0.0
    world.settle()
    assert loads(world) == ["c.ko"]


@pytest.mark.parametrize("said", [b"nonsense", b"\0", b"0\0kernel\0x\0", b"0\0kernels\0001\0"])
def test_a_loader_that_talks_nonsense_is_one_that_is_gone(said: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with theirs:
        for pid in (0, 7):
            theirs.send(said)
            assert Loader(ours, pid=pid).receive() == Died()
    ours.close()


# -- what was decided holds ---------------------------------------------------------------------------------------


def rules(world: World, *lines: str) -> None:
    (world.root / "etc/kmodd/policy.d").mkdir(parents=True, exist_ok=True)
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    (world.root / "etc/kmodd/policy.d/x.conf").write_text("".join(f"{line}\n" for line in lines))
    world.engine.reload()
    world.engine.intake.takes_replay()


def test_a_seal_holds_for_what_was_planned_before_it(world: World, gate: GateKernel) -> None:
    """It is planned and waits for a load in flight; then comes the seal."""
    gate.close("a.ko")
    world.plug("pci:v1")
    world.engine.advance()
    world.engine.intake.order(Request("b", "request"))
    world.engine.advance()
    assert at_work(world) == ["a"]
    world.engine.seal(True)
    gate.gates["a.ko"].set()
    hear(world, 2)  # a is there, and b, the rest of the run, was not begun
    assert loads(world) == ["a.ko"]
    ended = {
        job.plan.request.origin: [each.result for each in job.outcomes] for job in world.engine.scheduler.take_ended()
    }
    assert ended == {"uevent": ["loaded", "denied"], "request": ["live", "denied"]}
    assert not any(" at None" in record.message for record in world.journal.records)


def test_new_rules_hold_for_what_was_planned_under_the_old_ones(world: World, gate: GateKernel) -> None:
    rules(world)
    gate.close("a.ko")
    world.engine.intake.order(Request("b", "request"))
    world.engine.advance()
    rules(world, "deny origin=request module=b")
    gate.gates["a.ko"].set()
    hear(world, 2)  # a is there, and b, the rest of the run, was not begun
    assert loads(world) == ["a.ko"]
    assert "denied by deny origin=request module=b" in world.journal.records[-1].message


def test_each_of_many_devices_is_judged_and_sixteen_are_recorded(world: World) -> None:
    """docs/POLICY.md: what one of them may have is loaded."""
    rules(world, "allow device=/devices/cpu99", "deny *")
    for number in range(100):
        world.plug("pci:v2", f"cpu{number}")
    world.settle()
    assert loads(world) == ["c.ko"]
    fields = [name for name, _ in world.journal.records[-1].fields]
    assert fields.count("KMODD_DEVPATH") == 16
    assert dict(world.journal.records[-1].fields)["KMODD_DEVICES_COUNT"] == "100"
    for number in range(99):
        world.plug("pci:v1", f"cpu{number}")
    world.settle()
    assert loads(world) == ["c.ko"]


def test_many_devices_that_are_put_back_are_all_known_and_counted_once(world: World) -> None:
    for number in range(100):
        world.plug("pci:v2", f"cpu{number}")
    backlog = world.engine.intake.backlog
    first = backlog.take()
    assert first is not None
    backlog.put_back(first)
    assert backlog.take() == first
    assert (len(first.devices), len(first.all_devices), first.device_count) == (16, 100, 100)


def test_what_the_seal_kept_out_is_looked_at_again_once_it_is_taken_back(world: World) -> None:
    world.engine.seal(True)
    world.plug("pci:v2")
    world.settle()
    assert loads(world) == []
    world.engine.seal(False)
    assert world.engine.intake.takes_replay() == "all"


def test_processes_that_ask_without_end_do_not_make_the_boot_last(world: World, gate: GateKernel) -> None:
    """Else whoever keeps a load under way would never see the rules for a machine that is up."""
    gate.close("c.ko")
    world.engine.intake.order(Request("c", "request"))
    world.engine.advance()
    assert not world.engine.quiet
    answered = [world.engine.devices_answered]
    world.plug("pci:v1")
    answered.append(world.engine.devices_answered)
    world.engine.advance()
    answered.append(world.engine.devices_answered)
    hear(world, 2)
    assert [*answered, world.engine.devices_answered] == [True, False, False, True]


def test_the_boot_is_not_repeated_by_a_restart(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a restart of the daemon would be a way round the rules for a machine that is up."""
    for name in ("CLOSED", "SEALED", "BOOTED"):
        monkeypatch.setattr(policy_state, name, str(tmp_path / name))
    first = PolicyState(str(world.root), world.engine.report, run=True)
    phases = [first.phase]
    first.boot_is_over()
    assert [*phases, first.phase] == ["boot", "running"]
    assert PolicyState(str(world.root), world.engine.report, run=True).phase == "running"
    assert PolicyState(str(world.root), world.engine.report).phase == "boot"


@pytest.mark.parametrize("sealed", [False, True])
def test_a_flag_that_goes_lets_a_trigger_load_what_it_kept_out(world: World, sealed: bool) -> None:
    """As the preset for a locked screen says: `udevadm trigger --action=add` after unlocking."""
    flags = world.root / "run/kmodd/flags"
    assert str(flags) in settings_directories(str(world.root))  # watched
    flags.mkdir(parents=True)
    (flags / "locked").touch()
    if sealed:
        rules(world, "allow flag=!locked")
        (world.root / "etc/kmodd/kmodd.conf").unlink()
        world.engine.reload()
        world.engine.seal(True)
    else:
        rules(world, "deny flag=locked")
    for _ in range(2):
        world.plug("pci:v2", synthetic=True)
        world.settle()
    assert loads(world) == []
    (flags / "locked").unlink()
    world.engine.files_may_have_come()
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert loads(world) == ["c.ko"]


# -- what is stuck or crashed -------------------------------------------------------------------------------------


def test_what_somebody_elses_load_kept_out_is_tried_once_that_has_failed(world: World) -> None:
    (world.root / "proc/modules").write_text("c 1 1 - Loading 0x0\n")
    world.engine.others.adopt()
    for start in world.engine.others._starts.values():
        start.since -= 61
    world.engine.tick()
    world.plug("pci:v2")
    world.settle()
    assert ("c", "stuck") in world.told()
    world.live()
    world.engine.others._next_look = 0.0
    world.engine.tick()
    assert world.engine.intake.takes_replay() == "all"
    world.plug("pci:v2", synthetic=True)  # as the replay would
    world.settle()
    assert loads(world) == ["c.ko"]


def test_a_name_that_the_kernel_does_not_have_any_more_has_not_crashed(world: World) -> None:
    """A loader was killed while somebody else started the same module: it only looked like an oops.

    After an oops the name is there for ever.
    """
    (world.root / "proc/modules").write_text("c 1 1 - Loading 0x0\n")
    world.engine.view.forget_loaded()
    world.engine.standing.crash("c")
    world.plug("pci:v2")
    world.settle()
    assert loads(world) == []
    world.live("a")
    world.engine.view.forget_loaded()
    world.plug("pci:v2")
    world.settle()
    assert loads(world) == ["c.ko"]
    assert world.engine.standing.crashed == set()


def test_a_longer_patience_does_not_have_the_loop_run_without_a_pause(world: World, gate: GateKernel) -> None:
    """StuckAfterSec= is raised while the kernel is being asked where it hangs."""
    gate.close("c.ko")
    world.plug("pci:v2")
    world.engine.advance()
    (batch,) = world.engine.in_flight.busy()
    batch.since, batch.answer_by = 939.0, 100.0  # of one clock with the call below, not the machine's
    at = next_look(world.engine.in_flight, 600.0, 1000.0)
    assert at is not None
    assert at > 1500


# -- somebody's will ----------------------------------------------------------------------------------------------


def test_what_a_removed_module_needed_does_not_come_back_without_it(world: World) -> None:
    world.plug("pci:v1", "dev0")
    world.settle()
    world.live()
    for name in "ba":
        module_event(world, "remove", name)
    event = uevent.Uevent("add", "/devices/dev0", "pci", ("pci:v1",), 0, synthetic=True)
    for _ in range(2):
        world.engine.intake.take(event, "reconcile")
        world.settle()
    assert loads(world) == ["a.ko", "b.ko"]


def test_autoclean_leaves_softdeps_that_did_not_come_with_it(world: World) -> None:
    """One loaded by hand is never removed."""
    (world.root / "etc/modprobe.d/x.conf").write_text("softdep b pre: c\n")
    world.engine.reload()
    world.engine.intake.takes_replay()
    loaded = proc_modules.parse_modules("".join(f"{name} 1 0 - Live 0x0\n" for name in "abc"))
    request = Request("b", "request", removing=RemovalOptions(only_deps=("a", "b"), idle_sec=60))
    snapshot = world.engine.view.snapshot
    assert snapshot is not None
    job = RemovalJob(plan_removal(request, snapshot, loaded, lambda _: True), lambda: loaded)
    gone = []
    while step := job.next_step():
        gone.append(step.module)
        job.finish(Outcome(request, step.module, "removed", step.because))
    assert gone == ["b", "a"]


# -- the machine gives less ------------------------------------------------------------------------------------


def test_driver_override_that_cannot_be_asked_for_counts_as_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process to be had (TasksMax=, memory): the device is left alone, and the daemon goes on."""
    folder = world.root / "sys/devices/dev0"
    folder.mkdir(parents=True)
    (folder / "driver_override").write_text("(null)\n")

    def none() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    overrides = DriverOverrides(str(world.root))
    assert overrides.of(("/devices/dev0",)) == set()
    monkeypatch.setattr(os, "fork", none)
    assert overrides.of(("/devices/dev0",)) == {"/devices/dev0"}


def test_a_trace_of_another_form_does_not_keep_the_daemon_from_starting(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel whose tracefs is not as we know it: nobody can say who asks, and all else works."""

    def other() -> None:
        raise ParseError("header_page: expected something else")

    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", other)
    it = KernelRequests(world.engine, RequestSocket(str(tmp_path / "request")))
    it.open_trace()
    said = [record.message for record in world.journal.records]
    assert said == ["header_page: expected something else: nobody can say who makes the kernel ask for modules"]
    it.close()


def test_the_trace_is_opened_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before READY where the kernel calls already, else after it: a second instance would lose what the first knows."""
    opened: list[object] = []

    class Trace:
        def __init__(self) -> None:
            opened.append(self)

        def close(self) -> None:
            opened.clear()

    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", Trace)
    it = KernelRequests(world.engine, RequestSocket(str(tmp_path / "request")))
    it.open_trace()
    it.open_trace()
    assert len(opened) == 1
    it.close()
    assert opened == []


def test_what_was_not_tried_took_no_time(world: World) -> None:
    world.engine.standing.crash("c")
    world.engine.others._starts["a"] = _Start(0.0, adopted=False, stuck=True)
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.settle()
    crashed, stuck, _ = [record.message for record in world.journal.records]
    assert crashed.startswith("c for 0000:01:00.0 crashed in the kernel before, and is not tried again until")
    assert stuck.startswith("a for other has been starting (since before this was asked for); because ")
