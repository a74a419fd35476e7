"""What may happen to a run of files under way: a crash, a stop, a loader that ends, other rules, other lanes."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from pathlib import Path

import pytest

from kmodd.daemon.control_handler import _Settling
from kmodd.daemon.main import Daemon, DaemonOptions
from kmodd.daemon.poller import Poller
from kmodd.host.sd_notify import Notify
from kmodd.host.tree import Tree
from kmodd.kernel import uevent
from kmodd.loader import worker
from kmodd.loader.pool import Died, Loader, loader_on
from kmodd.loader.protocol import InsmodRequest, InsmodRunRequest, encode_reply
from kmodd.loader.trusted_paths import Trusted
from kmodd.planning.reply import Reply
from kmodd.planning.request import RemovalOptions, Request
from tests.fakes import FakeKernel, ListJournal
from tests.unit.test_carrier import hear_alone, wait_inside
from tests.unit.test_line_lanes import GateKernel, at_work, configure, gate, hear, let_time_pass
from tests.world import RELEASE, World, loads

__all__ = ["gate"]


def with_a_loader(world: World, gate: GateKernel, module: str, alias: str) -> Loader:
    """The lane of a run whose first file's init has been entered."""
    gate.close(f"{module}.ko")
    world.plug(alias)
    world.engine.advance()
    wait_inside(gate, f"{module}.ko")
    (lane,) = world.engine.in_flight.batches
    world.engine.scheduler.heard(lane)  # its greeting
    return lane


def hear_one(world: World, lane: Loader) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(lane, selectors.EVENT_READ)
        assert selector.select(30)
    world.engine.scheduler.heard(lane)


# -- a loader that dies ---------------------------------------------------------------------------------------------


def run_of_two() -> tuple[Loader, socket.socket]:
    """A lane, and a loader that has read its run."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    lane = Loader(ours, pid=7)
    lane.start(InsmodRunRequest((InsmodRequest("/a", ""), InsmodRequest("/b", "")), ("a", "b")))
    theirs.recv(65536)
    return lane, theirs


def test_what_lies_unread_may_be_the_stop_and_not_the_call() -> None:
    """unix(7): the peer's end with data unread is ECONNRESET here, whatever the data was."""
    lane, theirs = run_of_two()
    lane.stop()
    theirs.close()
    assert lane.receive() == Died(begun=True)
    lane.close()


def test_an_answer_before_the_death_is_not_lost() -> None:
    lane, theirs = run_of_two()
    theirs.send(encode_reply(Reply(0, "kernel", 5)))
    lane.stop()
    theirs.close()
    assert lane.receive() == Reply(0, "kernel", 5)
    assert lane.receive() == Died(begun=True)
    lane.close()


def test_a_crash_is_told_though_the_run_was_stopped(world: World, gate: GateKernel) -> None:
    gate.oops = {"a.ko"}
    lane = with_a_loader(world, gate, "a", "pci:v1")
    world.engine.seal(True)
    world.engine.seal(False)
    (world.root / "proc/modules").write_text("a 1 1 - Loading 0x0\n")
    gate.gates["a.ko"].set()
    world.loaders.threads[0].join()
    world.engine.scheduler.heard(lane)
    assert "a" in world.engine.standing.crashed
    assert ("a", "crashed") in world.told()


def test_what_was_given_up_and_crashes_then_is_told(world: World, gate: GateKernel) -> None:
    gate.oops = {"c.ko"}
    lane = with_a_loader(world, gate, "c", "pci:v2")
    let_time_pass(world, 61)
    world.engine.in_flight.batches[lane].answer_by = 0.0
    world.engine.tick()
    assert world.told() == [("c", "stuck")]
    (world.root / "proc/modules").write_text("c 1 1 - Loading 0x0\n")
    gate.gates["c.ko"].set()
    world.loaders.threads[0].join()
    world.engine.scheduler.heard(lane)
    assert world.told() == [("c", "crashed")]
    assert "c" in world.engine.standing.crashed


def test_a_loader_told_to_end_during_an_init_does_all_that_it_was_given(world: World) -> None:
    """SIGTERM while a is in its init: b, which was not begun, must not be taken for lost."""

    class Ending(FakeKernel):
        def finit_module(self, fd: int, options: str, flags: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        worker.serve(theirs.fileno(), Ending(), Trusted.below(str(world.root)))
        os._exit(0)
    theirs.close()
    lane = loader_on(ours)
    world.loaders.get = lambda: lane  # type: ignore[method-assign]
    world.plug("pci:v1")
    world.engine.advance()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    for _ in range(3):  # the greeting, a, b
        world.engine.scheduler.heard(lane)
    assert world.told() == [("a", "loaded"), ("b", "loaded")]


# -- what hangs -----------------------------------------------------------------------------------------------------


def test_what_comes_after_a_file_that_hung_is_not_called_stuck(world: World, gate: GateKernel) -> None:
    """Until the loader has said that it did not begin b, b is neither in flight nor stuck."""
    configure(world, "Lanes=2")
    lane = with_a_loader(world, gate, "a", "pci:v1")
    let_time_pass(world, 61)
    world.engine.in_flight.batches[lane].answer_by = 0.0
    (world.root / "proc/modules").write_text("a 1 1 - Loading 0x0\n")
    world.engine.tick()
    world.engine.advance()
    world.told()
    gate.gates["a.ko"].set()
    world.live("a")
    hear_one(world, lane)  # a, late; that b was not begun is the next datagram
    assert world.engine.scheduler.stuck() == []
    world.plug("pci:v1", "other")
    world.engine.advance()
    assert ("b", "stuck") not in world.told()
    text = b"add@/devices/0000:01:00.0\0SUBSYSTEM=pci\0MODALIAS=pci:v1\0SYNTH_UUID=0\0"
    world.engine.intake.take(uevent.parse(text), "reconcile")
    hear_one(world, lane)
    world.settle()
    assert "b.ko" in loads(world)


# -- other rules meanwhile ------------------------------------------------------------------------------------------


def rules(world: World, line: str) -> None:
    (world.root / "etc/kmodd/policy.d").mkdir(parents=True)
    (world.root / "etc/kmodd/policy.d/x.conf").write_text(f"{line}\n")
    configure(world, "Policy=enforce")


def test_a_flag_that_comes_counts_for_the_rest_of_a_run(world: World, gate: GateKernel) -> None:
    rules(world, "deny flag=locked module=b")
    with_a_loader(world, gate, "a", "pci:v1")
    folder = world.root / "run/kmodd/flags"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "locked").touch(mode=0o644)
    world.engine.refresh()
    world.engine.files_may_have_come()  # what the daemon does when the folder changes
    gate.gates["a.ko"].set()
    hear(world, 2)
    assert loads(world) == ["a.ko"]


def test_the_end_of_the_boot_counts_for_the_rest_of_a_run(world: World, gate: GateKernel) -> None:
    rules(world, "deny phase=running module=b")
    gate.close("a.ko")
    world.engine.intake.order(Request("b", "operator"))
    world.engine.advance()
    wait_inside(gate, "a.ko")
    world.engine.boot_is_over()
    gate.gates["a.ko"].set()
    hear(world, 2)
    assert loads(world) == ["a.ko"]


def test_a_removal_outdates_what_was_planned_ahead(world: World, gate: GateKernel) -> None:
    world.live("a")
    gate.close("c.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")  # b alone: its a is live
    world.engine.advance()
    wait_inside(gate, "c.ko")
    world.engine.intake.order(Request("a", "operator", removing=RemovalOptions()))
    world.engine.advance()
    age = world.engine.view.age
    hear_alone(world)
    assert world.engine.view.age > age


# -- limits ---------------------------------------------------------------------------------------------------------


def test_a_run_that_is_too_long_for_a_datagram_is_done_in_pieces(world: World) -> None:
    options = f"options a p={'x' * 40000}\noptions b p={'y' * 40000}\n"
    (world.root / "etc/modprobe.d/x.conf").write_text(options)
    world.engine.reload()
    world.engine.intake.takes_replay()
    world.plug("pci:v1")
    world.settle()
    assert loads(world) == ["a.ko", "b.ko"]


def test_no_outcome_is_lost_when_there_are_fewer_lanes(world: World, gate: GateKernel) -> None:
    (world.root / "etc/modprobe.d/i.conf").write_text("install b /bin/true\n")  # so a is no run with b
    configure(world, "Lanes=2")
    gate.close("c.ko")
    gate.close("a.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.engine.advance()
    assert at_work(world) == ["c", "a"]
    configure(world, "Lanes=1")
    world.told()
    gate.gates["a.ko"].set()
    hear(world)
    world.engine.view.outdate()  # any module goes
    gate.gates["c.ko"].set()
    while world.engine.in_flight.batches:
        hear(world)
    assert ("a", "loaded") in world.told()


# -- the loop -------------------------------------------------------------------------------------------------------


def test_a_source_may_have_the_number_of_a_lane_that_was_closed_this_moment() -> None:
    attention = Poller()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lane = loader_on(ours)
    attention.wait((), (lane,), (), time.monotonic(), 0.0)
    number = lane.fileno()
    lane.close()
    with socket.socket(fileno=os.dup2(theirs.fileno(), number)) as new:
        attention.always(new)
    theirs.close()
    attention.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    modules = tmp_path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("a.ko:\n")
    (modules / "modules.alias").write_text("alias pci:v1* a\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("x 1 0 - Live 0x0\n")
    settings = DaemonOptions(dry_run=True, control_path=str(tmp_path / "socket"), receive_buffer=1 << 20)
    return Daemon(Tree(root=str(tmp_path), release=RELEASE), ListJournal(), Notify(), settings)


def leave(daemon: Daemon) -> None:
    for each in (daemon._events, daemon._control, daemon._log, daemon._files, daemon._signals, daemon._wakeup):
        if each is not None:
            each.close()
    daemon._poller.close()


def test_settle_waits_for_files_that_changed_before_they_were_watched(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon._start()
    new = tmp_path / "new"
    new.write_text("alias pci:v1* a\nalias pci:v2* a\n")
    new.rename(tmp_path / "lib/modules" / RELEASE / "modules.alias")  # depmod
    answered: list[bool] = []
    monkeypatch.setattr(daemon._control, "answer", lambda *_: answered.append(daemon._engine.view.is_current()))
    monkeypatch.setattr(daemon._control_handler, "expire", lambda: None)
    waiter = _Settling(object(), None, 0, time.monotonic(), [])  # type: ignore[arg-type]
    daemon._control_handler._settling.append(waiter)
    give_up = time.monotonic() + 30
    while not answered and time.monotonic() < give_up:
        daemon._go_on()
    leave(daemon)
    assert answered == [True]


def test_what_takes_long_is_opened_when_nothing_more_can_be_planned(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane is to have what comes next; but not for ever."""
    daemon._start()
    daemon._get_ready()
    opened: list[float] = []
    monkeypatch.setattr(daemon, "_open_late", opened.append)
    monkeypatch.setattr(type(daemon._engine), "can_advance", True)
    daemon._go_on()
    assert not opened
    daemon._watch_by = time.monotonic()
    daemon._go_on()
    assert len(opened) == 1
    daemon._watch_by += 60
    monkeypatch.setattr(type(daemon._engine), "can_advance", False)
    daemon._go_on()
    assert len(opened) == 2
    leave(daemon)


def test_files_are_watched_at_once_where_there_is_nothing_to_load(daemon: Daemon) -> None:
    daemon._start()
    daemon._go_on()
    assert daemon._engine.devices_answered
    if daemon._files is None:
        list(daemon._events.receive(1024))
        daemon._socket_empty = True
        assert daemon._timeout(time.monotonic()) == 0.0, "the loop would sleep"
    leave(daemon)
