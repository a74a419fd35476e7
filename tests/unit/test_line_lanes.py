"""Many lanes: what waits for what, what is left alone, what is tried again, and what somebody's will keeps out."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.daemon import timeouts
from kmodd.daemon.engine import Engine
from kmodd.daemon.quarantine_file import QuarantineFile
from kmodd.host import coldplug
from kmodd.host.config_files import settings_directories, settings_marks
from kmodd.host.tree import Tree
from kmodd.kernel import uevent
from kmodd.kernel.proc_modules import parse_modules
from kmodd.loader.pool import Loader
from kmodd.planning.record import ADOPTED, DRIFT, ERR, INFO
from kmodd.planning.removal import RemovalJob
from kmodd.planning.request import RemovalOptions, Request
from kmodd.state.quarantine import Quarantine, of_text
from tests.fakes import FakeKernel
from tests.world import RELEASE, World, loads


class GateKernel(FakeKernel):
    """An init that lasts until the test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, threading.Event] = {}
        self.inside: dict[str, threading.Event] = {}

    def close(self, name: str) -> None:
        self.gates[name] = threading.Event()
        self.inside[name] = threading.Event()

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name in self.gates:
            self.inside[name].set()
            assert self.gates[name].wait(30)
        super().finit_module(fd, options, flags)


@pytest.fixture
def gate(world: World) -> Iterator[GateKernel]:
    """A world whose kernel has gates."""
    kernel = GateKernel()
    world.kernel = world.loaders.kernel = kernel
    world.engine.intake.takes_replay()
    yield kernel
    for event in kernel.gates.values():
        event.set()


def hear(world: World, count: int = 1) -> None:
    """Wait for `count` answers of loaders, each module that answers well being live from then on."""
    for _ in range(count):
        with selectors.DefaultSelector() as selector:
            for lane in world.engine.in_flight.batches:
                selector.register(lane, selectors.EVENT_READ, lane)
            ready = selector.select(30)
            assert ready, "no loader says anything"
            lane = ready[0][0].data
        assert isinstance(lane, Loader)
        batch = world.engine.in_flight.batches[lane]
        if not lane.pid:
            world.engine.scheduler.heard(lane)  # its greeting
            hear(world)
            continue
        was_begun = b"\0none\0" not in lane.connection.recv(65536, socket.MSG_PEEK)
        if was_begun and f"{batch.module}.ko" not in world.kernel.refuse:
            live = {*world.engine.view.loaded().modules, batch.module}
            world.live(*live)
        world.engine.scheduler.heard(lane)
    world.engine.advance()


def configure(world: World, *words: str) -> None:
    (world.root / "etc/kmodd").mkdir(exist_ok=True)
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\n" + "".join(f"{word}\n" for word in words))
    world.engine.reload()
    world.engine.intake.takes_replay()


def at_work(world: World) -> list[str]:
    return [batch.module for batch in world.engine.in_flight.busy()]


# -- lanes --------------------------------------------------------------------------------------------------------


def test_devices_share_one_lane_and_a_request_of_the_kernel_has_its_own(world: World, gate: GateKernel) -> None:
    """A request made while a load is in flight must never wait for the lane that runs that init."""
    gate.close("c.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.engine.advance()
    assert gate.inside["c.ko"].wait(30)
    world.engine.advance()
    assert at_work(world) == ["c"]
    world.engine.intake.order(Request("a", "request"))
    world.engine.advance()
    assert at_work(world) == ["c", "a"]
    hear(world)
    assert [job.plan.request.text for job in world.engine.scheduler.take_ended()] == ["a"]
    gate.gates["c.ko"].set()
    hear(world)
    hear(world)
    assert loads(world) == ["a.ko", "c.ko", "b.ko"]


def test_the_devices_lane_is_as_wide_as_it_is_configured(world: World, gate: GateKernel) -> None:
    configure(world, "Lanes=2")
    for name in ("c.ko", "a.ko"):
        gate.close(name)
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.engine.advance()
    assert at_work(world) == ["c", "a"]
    assert gate.inside["c.ko"].wait(30)
    assert gate.inside["a.ko"].wait(30)


def test_one_load_of_a_name_is_in_flight_and_who_else_wants_it_waits_for_that(world: World, gate: GateKernel) -> None:
    gate.close("a.ko")
    world.plug("pci:v1")  # a, then b
    world.engine.advance()
    world.engine.intake.order(Request("a", "request"))
    world.engine.advance()
    assert at_work(world) == ["a"]
    assert not world.engine.quiet
    gate.gates["a.ko"].set()
    hear(world, 2)
    assert loads(world) == ["a.ko", "b.ko"]
    ended = {
        job.plan.request.origin: [each.result for each in job.outcomes] for job in world.engine.scheduler.take_ended()
    }
    assert ended == {"request": ["live"], "uevent": ["loaded", "loaded"]}


def test_a_dependent_is_not_handed_over_while_its_dependency_is_coming(world: World, gate: GateKernel) -> None:
    """It would wait 30 s there and fail."""
    (world.root / "proc/modules").write_text("a 1 1 - Loading 0x0\n")
    world.engine.view.forget_loaded()
    world.plug("pci:v1")
    world.engine.advance()
    assert at_work(world) == []
    assert world.engine.others.busy() == ["a"]
    world.live("a")
    world.engine.tick()
    world.engine.advance()
    assert at_work(world) == ["b"]
    hear(world)
    assert loads(world) == ["b.ko"]
    del gate


def test_processes_that_wait_for_a_load_do_not_keep_devices_from_theirs(
    world: World, gate: GateKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may have the kernel ask for what is in flight."""
    monkeypatch.setattr("kmodd.daemon.in_flight.MAX_PARKED", 3)
    gate.close("a.ko")
    for _ in range(5):
        world.engine.intake.order(Request("a", "request"))
    world.engine.advance()
    assert len(world.engine.in_flight.parked) == 4
    world.plug("pci:v2")
    world.engine.advance()
    assert at_work(world) == ["a", "c"]


def test_so_many_devices_wait_for_a_load_and_the_others_in_the_backlog(
    world: World, gate: GateKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.daemon.in_flight.MAX_PARKED", 3)
    gate.close("a.ko")
    world.engine.intake.order(Request("a", "request"))
    world.engine.advance()
    for number in range(5):
        world.plug(f"pci:v1x{number}")
    world.engine.advance()
    assert (len(world.engine.in_flight.parked), len(world.engine.intake)) == (3, 2)


def test_operators_see_what_came_of_the_one_before(world: World, gate: GateKernel) -> None:
    gate.close("c.ko")
    world.engine.intake.order(Request("c", "operator"))
    world.engine.intake.order(Request("c", "operator", removing=RemovalOptions()))
    world.engine.advance()
    assert at_work(world) == ["c"]
    gate.gates["c.ko"].set()
    hear(world, 2)
    assert [call[0] for call in world.kernel.calls] == ["c.ko", "c"]


def test_at_most_fifty_requests_of_the_kernel_are_under_way(world: World, gate: GateKernel) -> None:
    names = [f"m{number}" for number in range(60)]
    for name in names:
        (world.modules / f"{name}.ko").write_bytes(b"\x7fELF")
        gate.close(f"{name}.ko")
    world.index([f"{name}.ko:" for name in names], [])
    for name in names:
        assert world.engine.intake.order(Request(name, "request"))
    world.engine.advance()
    assert len(at_work(world)) == 50
    for event in gate.gates.values():
        event.set()
    hear(world, 60)
    assert sorted(loads(world)) == sorted(f"{name}.ko" for name in names)


# -- what hangs, what crashed -------------------------------------------------------------------------------------


def let_time_pass(world: World, seconds: float) -> None:
    for batch in world.engine.in_flight.batches.values():
        batch.since -= seconds


def test_what_hangs_is_told_and_left_and_the_lane_goes_on(world: World, gate: GateKernel) -> None:
    gate.close("c.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.engine.advance()
    assert gate.inside["c.ko"].wait(30)
    world.engine.tick()
    assert at_work(world) == ["c"]
    let_time_pass(world, 61)
    (world.root / "proc/modules").write_text("c 1 1 - Loading 0x0\n")
    world.engine.tick()
    assert world.told() == [("c", "stuck")]
    assert world.engine.scheduler.stuck() == ["c"]
    world.engine.advance()
    assert at_work(world) == ["a"]
    hear(world, 2)
    assert world.engine.quiet
    world.plug("pci:v2", "again")
    world.engine.advance()
    assert world.told()[-1] == ("c", "stuck")  # who asks gets an answer at once
    gate.gates["c.ko"].set()
    hear(world)
    assert world.told() == [("c", "loaded")]  # its late outcome
    assert world.engine.scheduler.stuck() == []
    assert world.engine.intake.takes_replay() == "all"


def test_how_long_is_too_long_is_configured(world: World, gate: GateKernel) -> None:
    configure(world, "StuckAfterSec=5")
    gate.close("c.ko")
    world.plug("pci:v2")
    world.engine.advance()
    let_time_pass(world, 4)
    world.engine.tick()
    assert world.told() == []
    let_time_pass(world, 2)
    world.engine.tick()
    assert world.told() == [("c", "stuck")]


def test_work_on_the_side_is_named_as_what_the_others_wait_for(
    world: World, gate: GateKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unrelated module waits in async_synchronize, its own init over: it is live by then."""
    monkeypatch.setattr(timeouts, "BEHIND_A_STALL", 0.0)
    gate.close("c.ko")
    gate.close("a.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.engine.advance()
    let_time_pass(world, 61)
    world.live("c")
    world.engine.tick()
    record = world.journal.records[0]
    assert "waits for work that some driver does on the side" in record.message
    world.engine.advance()
    assert at_work(world) == ["a"]
    world.live("c", "a")
    world.engine.tick()
    assert "c was the first" in world.journal.records[-2].message
    world.engine.advance()
    assert at_work(world) == ["b"]


def test_what_waited_for_work_on_the_side_is_counted_once(world: World, gate: GateKernel) -> None:
    """It was told as loaded when it was let go; policy has its word there, too."""
    configure(world, "Policy=observe")
    (world.root / "etc/kmodd/policy.d").mkdir()
    (world.root / "etc/kmodd/policy.d/x.conf").write_text("log module=c\n")
    world.engine.reload()
    world.engine.intake.takes_replay()
    gate.close("c.ko")
    world.plug("pci:v2")
    world.engine.advance()
    let_time_pass(world, 61)
    world.live("c")
    world.engine.tick()
    assert dict(world.journal.records[-1].fields)["KMODD_VERDICT"] == "log"
    assert world.told() == [("c", "stuck"), ("c", "loaded")]
    gate.gates["c.ko"].set()
    hear(world)
    (record,) = world.journal.records
    assert (record.priority, "which was reported before, has ended" in record.message) == (INFO, True)
    assert world.told() == [("c", "live")]
    assert world.engine.report.counters.results == {"stuck": 1, "loaded": 1}
    assert world.engine.intake.takes_replay() == ""


def test_a_removal_that_hangs_is_told_as_one(world: World, gate: GateKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, out = threading.Event(), threading.Event()

    def delete_module(_name: str, _flags: int) -> None:
        inside.set()
        assert out.wait(30)

    monkeypatch.setattr(gate, "delete_module", delete_module)
    world.live("c")
    world.engine.intake.order(Request("c", "operator", removing=RemovalOptions()))
    world.engine.advance()
    assert inside.wait(30)
    let_time_pass(world, 61)
    world.engine.tick()
    out.set()
    (record,) = world.journal.records
    assert record.message.startswith("Removing c has been going on for 1min")
    assert "is left alone" in record.message
    (job,) = world.engine.scheduler.take_ended()
    assert isinstance(job, RemovalJob)
    assert job.failed


def test_a_crashed_module_stays_out_for_the_next_daemon_too(world: World, tmp_path: Path) -> None:
    """The kernel keeps the name in state coming; a second load of it blocks."""
    memory = QuarantineFile(str(tmp_path / "standing"))
    standing = memory.read()
    standing.crash("c")
    memory.write(standing)
    (world.root / "proc/modules").write_text("c 1 1 - Loading 0x0\n")
    line = Engine(Tree(root=str(world.root), release=RELEASE), world.journal, world.loaders, memory=memory)
    line.reload()
    line.others.adopt()
    assert line.others.busy() == []
    line.intake.order(Request("c", "request"))
    line.advance()
    (job,) = line.scheduler.take_ended()
    assert [each.result for each in job.outcomes] == ["crashed"]
    assert loads(world) == []


def test_what_needs_a_crashed_module_fails_with_that_reason(world: World) -> None:
    world.engine.standing.crash("a")
    world.plug("pci:v1")
    world.settle()
    assert "a crashed in the kernel; " in world.journal.records[1].message
    assert world.told() == [("a", "crashed"), ("b", "not_attempted")]
    assert loads(world) == []


def test_a_new_daemon_adopts_what_is_in_flight(world: World) -> None:
    (world.root / "proc/modules").write_text("c 1 1 - Loading 0x0\n")
    world.engine.others.adopt()
    assert world.told() == [("c", "")]
    assert not world.engine.quiet
    world.live("c")
    world.engine.tick()
    assert world.told() == [("c", "loaded")]
    assert ADOPTED  # the first of the two records


@pytest.mark.parametrize("text", ["", "[]", '{"crashed": 1, "removed": {}}', '{"crashed": []}', "\0"])
def test_a_damaged_standing_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "standing"
    path.write_text(text)
    assert QuarantineFile(str(path)).read() == Quarantine()


def test_standing_comes_back_as_it_was_written() -> None:
    standing = Quarantine()
    standing.crash("x")
    standing.asks("y", ("/devices/1", "/devices/2"))
    standing.remove("y")
    again = of_text(standing.to_text())
    assert (again.crashed, again.removed) == ({"x"}, {"y": {"/devices/1", "/devices/2"}})


def test_standing_is_written_with_each_change_and_not_without(tmp_path: Path) -> None:
    path = tmp_path / "standing"
    memory, standing = QuarantineFile(str(path)), Quarantine()
    standing.asks("y", ("/devices/1",))
    memory.write(standing)
    assert not path.exists()
    live = parse_modules("y 1 0 - Live 0x0\n")
    for change in (
        lambda: standing.crash("x"), lambda: standing.remove("y"), lambda: standing.leave("/devices/1"),
        lambda: standing.load("y"), lambda: standing.has_crashed("x", live),
    ):  # fmt: skip
        change()
        memory.write(standing)
        assert of_text(path.read_text()).to_text() == standing.to_text()
        path.write_text("as it was")
        standing.load("z")
        assert not standing.has_crashed("z", live)
        memory.write(standing)
        assert path.read_text() == "as it was"
    assert not standing.crashed


def test_a_device_that_left_while_no_daemon_was_there_is_forgotten(tmp_path: Path) -> None:
    """The next one at its place is new, and gets its driver."""
    (tmp_path / "sys/devices/1").mkdir(parents=True)
    memory = QuarantineFile(str(tmp_path / "standing"), str(tmp_path))
    standing = Quarantine()
    standing.asks("y", ("/devices/1", "/devices/2"))
    standing.remove("y")
    memory.write(standing)
    assert memory.read().removed == {"y": {"/devices/1"}}


# -- tried again, with a cause ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINTR])
def test_what_passes_by_itself_is_tried_again_soon_and_a_few_times(
    world: World, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.state.retries.PAUSES", (0.0, 0.0))
    world.kernel.refuse["c.ko"] = code
    world.plug("pci:v2")
    world.settle()
    for _ in range(5):
        world.engine.tick()
        world.settle()
    assert loads(world) == ["c.ko"] * 3
    world.kernel.refuse.clear()
    world.plug("pci:v2", "another")
    world.settle()
    assert world.told()[-1] == ("c", "loaded")


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EINVAL, errno.ENOENT, errno.ENOEXEC])
def test_other_refusals_wait_for_a_cause(world: World, code: int) -> None:
    world.kernel.refuse["c.ko"] = code
    world.plug("pci:v2")
    world.settle()
    assert world.engine.scheduler.retries.next_due() is None
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert loads(world) == ["c.ko"]
    world.index(deps=["a.ko:", "c.ko:"], aliases=["alias pci:v2* c"])
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert loads(world) == ["c.ko", "c.ko"]


def test_a_missing_file_is_told_once_and_tried_again_when_it_comes(world: World) -> None:
    world.watch()  # in this little tree the file's directory is the index's, too
    file = world.modules / "c.ko"
    file.rename(world.root / "away")
    world.plug("pci:v2")
    world.settle()
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.told() == [("c", "missing")]
    assert world.engine.missing_files() == (str(file),)
    world.engine.files_may_have_come()
    world.settle()
    assert world.told() == []
    (world.root / "away").rename(file)
    world.live()
    world.engine.files_may_have_come()
    world.settle()
    assert world.told() == [("c", "loaded")]


@pytest.mark.parametrize("way", ["soon", "file", "loader"])
def test_what_is_to_be_tried_again_is_not_lost_where_there_is_no_room(
    world: World, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay of sysfs brings it, and its answer is not taken from memory."""
    world.watch()
    monkeypatch.setattr("kmodd.state.retries.PAUSES", (0.0,))
    file = world.modules / "c.ko"
    match way:
        case "soon":
            world.kernel.refuse["c.ko"] = errno.EBUSY
        case "file":
            file.rename(world.root / "away")
        case _:
            monkeypatch.setattr(world.loaders, "get", no_loader)
    world.engine.refresh()
    world.engine.intake.takes_replay()
    world.plug("pci:v2", synthetic=True)
    backlog = world.engine.intake.backlog
    if way == "loader":
        take = backlog.take

        def take_last() -> Request | None:
            monkeypatch.setattr(backlog, "_limit", 0)  # its room is gone by the time it is put back
            return take()

        monkeypatch.setattr(backlog, "take", take_last)
    world.settle()
    monkeypatch.setattr(backlog, "_limit", 0)
    assert (world.engine.intake.replay == "all") is (way == "loader")
    if way == "file":
        (world.root / "away").rename(file)
        world.engine.files_may_have_come()
    world.engine.tick()
    assert world.engine.intake.replay == "all"
    assert "pci:v2" not in world.engine._answers._known


def no_loader() -> Loader:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def test_stale_data_is_not_served_where_files_are_watched(world: World) -> None:
    """A check before every "no match", though somebody says when files change."""
    world.watch()
    world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])
    world.plug("pci:v9")
    world.settle()
    assert loads(world) == ["c.ko"]


def test_files_are_not_asked_where_the_watch_is_sure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for when something has changed, be it unread, and when nothing was asked for a while: links lead away."""
    view, watch = world.engine.view, world.watch()
    asked: list[str] = []

    def marks(root: str) -> object:
        asked.append(root)
        return settings_marks(root)

    monkeypatch.setattr("kmodd.daemon.system_state.settings_marks", marks)
    wanted = [*view.tree.directories(), *settings_directories(str(world.root))]
    watch.set(wanted)
    assert view.is_current()
    asked.clear()
    assert view.is_current()
    assert not asked
    monkeypatch.setattr("kmodd.daemon.system_state.ASK_FILES", 0.0)
    assert view.is_current()
    assert len(asked) == 1
    monkeypatch.setattr("kmodd.daemon.system_state.ASK_FILES", 3600.0)
    (world.root / "etc/kmodd/kmodd.conf").parent.mkdir(parents=True, exist_ok=True)
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nStuckAfterSec=7\n")
    assert not view.is_current()
    assert watch.changed()
    (world.root / "etc/kmodd/kmodd.conf").unlink()
    assert view.is_current(), "and nothing of that stands in its memory"
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nStuckAfterSec=70\n")
    assert not view.is_current(), "though what is new here is not watched yet"
    watch.set(wanted)
    assert not view.is_current()


def test_until_files_are_watched_a_device_is_told_by_a_look_of_lately_but_nobody_who_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch, when it comes, asks for all that changed before it (`Daemon._open_watch`); no process comes again."""
    monkeypatch.setattr("kmodd.daemon.system_state.ASK_FILES", 3600.0)
    world.engine.view.watch_comes = True
    world.plug("pci:v8")
    world.settle()
    world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])
    world.plug("pci:v9")
    world.settle()
    assert loads(world) == []
    world.engine.intake.order(Request("pci:v9z", "request"))
    world.settle()
    assert loads(world) == ["c.ko"]


def test_until_files_are_watched_a_name_of_the_boot_list_is_not_answered_by_a_look_of_lately(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later look at the devices asks for it again."""
    monkeypatch.setattr("kmodd.daemon.system_state.ASK_FILES", 3600.0)
    world.engine.view.watch_comes = True
    world.engine.intake.order(Request("nothing", "boot"))
    world.settle()
    (world.modules / "new.ko").write_bytes(b"\x7fELF")
    world.index(deps=["new.ko:"], aliases=[])
    world.engine.intake.order(Request("new", "boot"))
    world.settle()
    assert loads(world) == ["new.ko"]


# -- nobody's will is fought --------------------------------------------------------------------------------------


def device(world: World, alias: str, *, driver: str = "", override: str = "") -> str:
    """A device in the sysfs of this world; its path."""
    folder = world.root / "sys/devices/dev0"
    folder.mkdir(parents=True, exist_ok=True)
    (world.root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
    (folder / "modalias").write_text(f"{alias}\n")
    (folder / "driver_override").write_text(f"{override or '(null)'}\n")
    link = world.root / "sys/bus/pci/devices/dev0"
    if not link.is_symlink():
        link.symlink_to("../../../devices/dev0")
    if driver:
        (folder / "driver").symlink_to(f"../../bus/pci/drivers/{driver}")
    return "/devices/dev0"


def look_for_drift(world: World) -> None:
    for event in coldplug.replay(str(world.root), unbound=True):
        world.engine.intake.take(event, "reconcile", drift=True)
    world.settle()


def test_a_device_without_a_driver_is_drift_told_and_healed(world: World) -> None:
    device(world, "pci:v2")
    look_for_drift(world)
    assert loads(world) == ["c.ko"]
    drift = next(record for record in world.journal.records if record.message_id == DRIFT)
    assert "/devices/dev0 has no driver although pci:v2 matches c" in drift.message


def test_drift_that_is_planned_anew_is_told_once(world: World, gate: GateKernel) -> None:
    """Another device's module is in its init, so it is planned ahead; meanwhile a module goes."""
    gate.close("a.ko")
    world.plug("pci:v1", "other")
    world.engine.advance()
    device(world, "pci:v2")
    for event in coldplug.replay(str(world.root), unbound=True):
        world.engine.intake.take(event, "reconcile", drift=True)
    world.engine.advance()
    assert [job.plan.request.text for _, job in world.engine.in_flight.ready] == ["pci:v2"]
    world.engine.view.outdate()
    gate.gates["a.ko"].set()
    world.settle()
    assert sorted(loads(world)) == ["a.ko", "b.ko", "c.ko"]
    assert [record.message_id for record in world.journal.records].count(DRIFT) == 1


def test_a_device_with_a_driver_is_none(world: World) -> None:
    device(world, "pci:v2", driver="other")
    look_for_drift(world)
    assert loads(world) == []


def test_a_driver_override_is_somebodys_will(world: World) -> None:
    device(world, "pci:v2", override="vfio-pci")
    look_for_drift(world)
    assert loads(world) == []
    assert world.told() == [("c", "not_attempted")]


def test_a_device_whose_lock_is_held_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading driver_override blocks, unkillably, for the whole of a probe: the daemon must not."""
    monkeypatch.setattr("kmodd.host.driver_override.LIMIT", 0.2)
    device(world, "pci:v2")
    path = world.root / "sys/devices/dev0/driver_override"
    path.unlink()
    os.mkfifo(path)
    look_for_drift(world)
    assert loads(world) == []


def test_devices_whose_lock_is_held_cost_a_batch_one_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's socket is looked at in between."""
    monkeypatch.setattr("kmodd.host.driver_override.LIMIT", 0.2)
    for name in ("one", "other"):
        folder = world.root / "sys/devices" / name
        folder.mkdir(parents=True)
        os.mkfifo(folder / "driver_override")
        event = uevent.Uevent("add", f"/devices/{name}", "pci", (f"pci:v2{name}",), 0, synthetic=True)
        world.engine.intake.take(event, "reconcile")
    world.engine.advance()
    assert len(world.engine.intake) == 1
    assert world.engine.can_advance
    world.settle()
    assert world.told() == [("c", "not_attempted")] * 2


def module_event(world: World, action: str, name: str) -> None:
    world.engine.intake.take(uevent.parse(f"{action}@/module/{name}\0SUBSYSTEM=module\0".encode()), "uevent")


def test_what_somebody_removed_is_not_brought_back_by_a_look(world: World) -> None:
    device(world, "pci:v2")
    world.plug("pci:v2", "dev0")
    world.settle()
    world.live()
    module_event(world, "remove", "c")
    look_for_drift(world)
    assert loads(world) == ["c.ko"]
    assert all(record.message_id != DRIFT for record in world.journal.records)
    world.plug("pci:v2", "dev1")  # another device really comes
    world.settle()
    assert loads(world) == ["c.ko", "c.ko"]


def spoken(world: World, uuid: str) -> None:
    """dev0 says its alias because this one had it do so."""
    text = f"add@/devices/dev0\0SUBSYSTEM=mmc\0MODALIAS=pci:v2\0SYNTH_UUID={uuid}\0"
    world.engine.intake.take(uevent.parse(text.encode()), "uevent")


def test_what_we_have_a_device_say_fights_no_operator(world: World) -> None:
    """A device without a `modalias` file is looked at by having it speak; a trigger by hand is a wish."""
    world.plug("pci:v2", "dev0")
    world.settle()
    world.live()
    module_event(world, "remove", "c")
    spoken(world, world.engine.intake.uuid)
    world.settle()
    assert loads(world) == ["c.ko"]
    spoken(world, world.engine.intake.uuid)
    spoken(world, "0")  # joins the one that waits
    world.settle()
    assert loads(world) == ["c.ko", "c.ko"]


def test_what_we_have_a_device_say_at_the_start_is_coldplug(world: World) -> None:
    world.engine.intake.coldplug(())
    spoken(world, world.engine.intake.uuid)
    request = world.engine.intake.backlog.take()
    world.engine.report.end_coldplug()
    spoken(world, world.engine.intake.uuid)
    later = world.engine.intake.backlog.take()
    assert [each and each.origin for each in (request, later)] == ["coldplug", "reconcile"]


def test_what_somebody_removed_and_loaded_again_is_as_before(world: World) -> None:
    device(world, "pci:v2")
    world.plug("pci:v2", "dev0")
    world.settle()
    module_event(world, "remove", "c")
    module_event(world, "add", "c")
    world.live()  # gone in a way that the kernel did not tell
    world.engine.intake.events_were_lost()
    look_for_drift(world)
    assert loads(world) == ["c.ko", "c.ko"]


def test_a_device_that_came_anew_at_the_same_place_is_new(world: World) -> None:
    device(world, "pci:v2")
    world.plug("pci:v2", "dev0")
    world.settle()
    world.live()
    module_event(world, "remove", "c")
    world.engine.intake.take(uevent.parse(b"remove@/devices/dev0\0SUBSYSTEM=pci\0"), "uevent")
    look_for_drift(world)
    assert loads(world) == ["c.ko", "c.ko"]


# -- all of the new, or all of the old ----------------------------------------------------------------------------


def test_a_broken_configuration_keeps_the_old_one_and_says_where(world: World) -> None:
    configure(world, "StuckAfterSec=7")
    configure(world, "StuckAfterSec=8", "Lanes=none")
    assert world.engine.view.settings.stuck_after == 7
    messages = [record.message for record in world.journal.records]
    assert any("all earlier settings stay in force" in message for message in messages)
    assert any(
        "/etc/kmodd/kmodd.conf:3" in message and "Lanes= wants a whole number" in message for message in messages
    )
    configure(world, "StuckAfterSec=8", "Lanes=2")
    assert (world.engine.view.settings.stuck_after, world.engine.view.settings.lanes) == (8, 2)


@pytest.mark.parametrize(
    ("lines", "closed", "mode"),
    [
        ("[Kmodd]\nPolicy=enforced\n", False, "enforce"),
        ("[Kmodd]\nPolicy enforce\n", False, "enforce"),
        ("[Kmodd]\npolicy=enforce\n", False, "enforce"),
        ("Policy=enforce\n", False, "enforce"),
        ("[Kmodd]\nLanes=none\n", True, "enforce"),
        ("[Kmodd]\nLanes=none\n", False, "off"),
        ("[Kmodd]\nPolicy=observe\n", True, "observe"),
        ("[Other]\nPolicy=enforced\n", False, "off"),
        ("[Kmodd]\nPolicyOfTomorrow=x\n", False, "off"),
    ],
)
def test_a_broken_policy_at_the_first_start_does_not_fall_open(
    tmp_path: Path, lines: str, closed: bool, mode: str
) -> None:
    """There are no earlier settings to keep; the mark of an earlier daemon that enforced it is one sign more."""
    world = World(tmp_path)
    world.engine.guard.was_closed = closed
    (world.root / "etc/kmodd").mkdir()
    (world.root / "etc/kmodd/kmodd.conf").write_text(lines)
    for _ in range(2):
        world.engine.reload()
        assert world.engine.guard.mode == mode
    said = [record.message for record in world.journal.records if record.priority == ERR]
    assert any("it is enforced" in message for message in said) is (mode == "enforce")
    world.engine.close()


def test_an_edited_kmodd_conf_or_rule_is_noticed_where_files_are_watched(world: World) -> None:
    configure(world, "StuckAfterSec=7")
    world.watch()
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nStuckAfterSec=70\nPolicy=enforce\n")
    world.engine.refresh()
    assert (world.engine.view.settings.stuck_after, world.engine.guard.mode) == (70, "enforce")
    (world.root / "etc/kmodd/policy.d").mkdir()
    (world.root / "etc/kmodd/policy.d/x.conf").write_text("deny module=c\n")
    world.engine.refresh()
    world.plug("pci:v2")
    world.settle()
    assert world.told()[-1] == ("c", "denied")
