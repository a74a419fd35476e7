"""Files of several devices in one run: each device fares as if its modules had been loaded alone."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from kmodd.daemon.in_flight import MAX_READY
from kmodd.daemon.scheduler import MAX_FILES_IN_BATCH
from kmodd.kernel import uevent
from kmodd.loader.pool import Loader
from kmodd.planning.request import Request
from tests.unit.test_carrier import wait_inside
from tests.unit.test_line_lanes import GateKernel, at_work, configure, gate, hear, let_time_pass
from tests.world import World, loads

__all__ = ["gate"]


@pytest.fixture
def joined(world: World, gate: GateKernel) -> World:
    """c is in its init; d, then a and b, then e are planned, each for a device of its own."""
    for name in "de":
        (world.modules / f"{name}.ko").write_bytes(b"\x7fELF")
    deps = ["a.ko:", "b.ko: a.ko", "c.ko:", "d.ko:", "e.ko:"]
    world.index(deps, [f"alias pci:v{number}* {name}" for number, name in enumerate("bcde", 1)])
    world.engine.reload()
    world.engine.intake.takes_replay()
    gate.close("c.ko")
    for number in (2, 3, 1, 4):
        world.plug(f"pci:v{number}", f"device{number}")
    world.advance()
    wait_inside(gate, "c.ko")
    return world


def run_of(world: World) -> list[str]:
    (batch,) = world.engine.in_flight.busy()
    return [step.module for step in batch.steps[batch.done :]]


def open_gate(world: World, name: str) -> None:
    assert isinstance(world.kernel, GateKernel)
    world.kernel.gates[name].set()


def told_with_device(world: World) -> list[tuple[str, str, str]]:
    fields = [dict(record.fields) for record in world.journal.records]
    return [(one["KMODD_MODULE"], one["KMODD_RESULT"], one["KMODD_DEVPATH"]) for one in fields if "KMODD_MODULE" in one]


def test_lanes_are_heard_between_two_plans_ahead(world: World, gate: GateKernel) -> None:
    """A plan takes as long as the init of a small module: a lane that is through is not to wait for three more."""
    for name in "de":
        (world.modules / f"{name}.ko").write_bytes(b"\x7fELF")
    world.index(
        ["a.ko:", "c.ko:", "d.ko:", "e.ko:"], [f"alias pci:v{number}* {name}" for number, name in enumerate("acde")]
    )
    world.engine.reload()
    world.engine.intake.takes_replay()
    gate.close("a.ko")
    for number in range(4):
        world.plug(f"pci:v{number}", f"device{number}")
    planned = []
    while world.engine.can_advance:
        world.engine.advance()
        planned.append(len(world.engine.in_flight.ready))
    assert planned == [1, 2, 3]


def test_what_was_planned_meanwhile_goes_to_the_loader_at_once(joined: World) -> None:
    open_gate(joined, "c.ko")
    hear(joined)
    assert run_of(joined) == ["d", "a", "b", "e"]
    assert not joined.engine.in_flight.ready
    hear(joined, 4)
    assert told_with_device(joined) == [
        ("c", "loaded", "/devices/device2"), ("d", "loaded", "/devices/device3"), ("a", "loaded", "/devices/device1"),
        ("b", "loaded", "/devices/device1"), ("e", "loaded", "/devices/device4"),
    ]  # fmt: skip
    assert joined.engine.quiet
    assert len(joined.engine.scheduler.take_ended()) == 4


@pytest.mark.parametrize("failing", ["d", "a", "e"])
def test_what_one_refuses_is_nothing_to_the_others(joined: World, failing: str) -> None:
    joined.kernel.refuse[f"{failing}.ko"] = errno.ENODEV
    open_gate(joined, "c.ko")
    joined.settle()
    expected = ["c.ko", "d.ko", "a.ko", "b.ko", "e.ko"]
    if failing == "a":
        expected.remove("b.ko")
    assert loads(joined) == expected, "each once, in this order"
    results = {module: result for module, result, _ in told_with_device(joined)}
    assert results.pop(failing) == "failed"
    if failing == "a":
        assert results.pop("b") == "not_attempted"
    assert set(results.values()) == {"loaded"}


def test_a_crash_takes_only_its_own_device_along(joined: World) -> None:
    joined.kernel.oops = {"d.ko"}
    open_gate(joined, "c.ko")
    hear(joined)
    (joined.root / "proc/modules").write_text("c 1 0 - Live 0x0\nd 1 1 - Loading 0x0\n")
    (lane,) = joined.engine.in_flight.batches
    joined.loaders.threads[-1].join(30)
    while lane in joined.engine.in_flight.batches:
        joined.engine.scheduler.heard(lane)  # its greeting, its end
    (joined.root / "proc/modules").write_text("c 1 0 - Live 0x0\n")
    joined.settle()
    assert loads(joined) == ["c.ko", "d.ko", "a.ko", "b.ko", "e.ko"]
    told = told_with_device(joined)
    assert ("d", "crashed", "/devices/device3") in told
    assert [module for module, result, _ in told if result == "loaded"] == ["c", "a", "b", "e"]
    assert joined.engine.standing.crashed == {"d"}


def inside_the_run(world: World, name: str) -> Loader:
    assert isinstance(world.kernel, GateKernel)
    world.kernel.close(f"{name}.ko")
    open_gate(world, "c.ko")
    hear(world)
    wait_inside(world.kernel, f"{name}.ko")
    (lane,) = world.engine.in_flight.batches
    return lane


def test_what_hangs_keeps_the_others_of_its_run_for_no_longer_than_itself(joined: World) -> None:
    inside_the_run(joined, "d")
    let_time_pass(joined, 61)
    (joined.root / "proc/modules").write_text("c 1 0 - Live 0x0\nd 1 1 - Loading 0x0\n")
    joined.engine.tick()
    joined.advance()
    assert run_of(joined) == ["a", "b", "e"]
    open_gate(joined, "d.ko")
    joined.settle()
    told = told_with_device(joined)
    assert ("d", "stuck", "/devices/device3") in told
    assert loads(joined).count("a.ko") == loads(joined).count("e.ko") == 1
    assert [module for module, result, _ in told if result == "loaded" and module != "d"] == ["c", "a", "b", "e"]


def three_devices(world: World, gate: GateKernel) -> None:
    """The second one's module, c, is in its init; the third's and the first's are planned."""
    world.engine.reload()
    world.engine.intake.takes_replay()
    gate.close("c.ko")
    for number in (2, 3, 1):
        world.plug(f"pci:v{number}", f"device{number}")
    world.advance()
    wait_inside(gate, "c.ko")


def b_behind_d(world: World, gate: GateKernel, deps: list[str], *first: str) -> None:
    """d is in its init; b, for the first device, whose modules `first` are, comes after it. a is live."""
    (world.modules / "d.ko").write_bytes(b"\x7fELF")
    aliases = [*(f"alias pci:v1* {module}" for module in first), "alias pci:v2* c", "alias pci:v3* d"]
    world.index(deps, aliases)
    world.live("a")
    three_devices(world, gate)
    inside_the_run(world, "d")
    assert run_of(world) == ["d", "b"]


def a_goes_while_d_starts(world: World) -> None:
    world.engine.intake.take(uevent.parse(b"remove@/module/a\0SUBSYSTEM=module\0"), "uevent")
    world.engine.tick()
    open_gate(world, "d.ko")
    world.settle()
    assert world.engine.quiet


def two_drivers(world: World) -> None:
    """The first device has two, d and b, that need a."""
    (world.modules / "d.ko").write_bytes(b"\x7fELF")
    world.index(["a.ko:", "b.ko: a.ko", "c.ko:", "d.ko: a.ko"], ["alias pci:v1* d", "alias pci:v1* b"])
    world.engine.reload()
    world.engine.intake.takes_replay()


def test_what_is_not_begun_when_a_module_goes_is_planned_anew(world: World, gate: GateKernel) -> None:
    """a was live when b was planned, behind d in the run: b alone would fail."""
    b_behind_d(world, gate, ["a.ko:", "b.ko: a.ko", "c.ko:", "d.ko:"], "b")
    world.live("c")
    a_goes_while_d_starts(world)
    assert loads(world) == ["c.ko", "d.ko", "a.ko", "b.ko"]


def test_a_module_that_goes_during_a_run_is_there_again_for_its_later_files(world: World, gate: GateKernel) -> None:
    two_drivers(world)
    gate.close("d.ko")
    world.plug("pci:v1")
    world.advance()
    hear(world)
    wait_inside(gate, "d.ko")
    world.live()
    a_goes_while_d_starts(world)
    assert loads(world) == ["a.ko", "d.ko", "a.ko", "b.ko"]


def test_what_has_begun_waits_for_a_lane_again_when_the_run_it_joined_fails(world: World, gate: GateKernel) -> None:
    """The first device's x has no file, so its d comes in another run, behind f, which fails."""
    for name in "def":
        (world.modules / f"{name}.ko").write_bytes(b"\x7fELF")
    firsts = [f"alias pci:v1* {module}" for module in "exd"]
    others = ["alias pci:v2* c", "alias pci:v3* f", "alias pci:v4* b"]
    world.index(["a.ko:", "b.ko:", "c.ko:", "d.ko:", "e.ko:", "f.ko:"], [*firsts, *others])
    world.engine.reload()
    world.engine.intake.takes_replay()
    for name in "bec":
        gate.close(f"{name}.ko")
    world.plug("pci:v4", "device4")
    world.advance()
    wait_inside(gate, "b.ko")
    world.plug("pci:v1", "device1")
    world.plug("pci:v2", "device2")
    world.advance()
    open_gate(world, "b.ko")
    hear(world)
    assert run_of(world) == ["e", "c"]
    world.plug("pci:v3", "device3")
    world.advance()
    open_gate(world, "e.ko")
    hear(world)
    world.kernel.refuse["f.ko"] = errno.EIO
    open_gate(world, "c.ko")
    hear(world)
    assert run_of(world) == ["f", "d"]
    world.settle()
    assert loads(world) == ["b.ko", "e.ko", "c.ko", "f.ko", "d.ko"]
    assert world.engine.quiet


def test_a_seal_ends_the_run_and_what_it_left_is_refused(joined: World) -> None:
    inside_the_run(joined, "d")
    joined.engine.seal(True)
    open_gate(joined, "d.ko")
    joined.settle()
    assert loads(joined) == ["c.ko", "d.ko"]
    results = {module: result for module, result, _ in told_with_device(joined)}
    assert results == {"c": "loaded", "d": "loaded", "a": "denied", "b": "denied", "e": "denied"}


def test_a_module_that_two_devices_need_is_in_a_run_once(world: World, gate: GateKernel) -> None:
    world.index(["a.ko:", "b.ko: a.ko", "c.ko:"], ["alias pci:v1* b", "alias pci:v2* c", "alias pci:v3* a"])
    three_devices(world, gate)
    open_gate(world, "c.ko")
    hear(world)
    assert run_of(world) == ["a", "b"]
    world.settle()
    assert loads(world) == ["c.ko", "a.ko", "b.ko"]
    assert told_with_device(world) == [
        ("c", "loaded", "/devices/device2"), ("a", "loaded", "/devices/device3"),
        ("a", "live", "/devices/device1"), ("b", "loaded", "/devices/device1"),
    ]  # fmt: skip
    assert world.engine.quiet


@pytest.mark.parametrize(
    ("refused", "given", "told"),
    [
        ("", "adb", ["a loaded", "d loaded", "b loaded"]),
        ("a.ko", "aa", ["a failed", "a failed"]),
        ("d.ko", "adb", ["a loaded", "d failed", "b loaded"]),
        ("b.ko", "adb", ["a loaded", "d loaded", "b failed"]),
    ],
)
def test_two_drivers_of_a_device_go_to_the_loader_at_once(
    world: World, refused: str, given: str, told: list[str]
) -> None:
    """An alias with two modules that need a third, as 8139cp and 8139too need mii: each fares as if it came alone."""
    two_drivers(world)
    world.kernel.refuse |= {refused: errno.EIO} if refused else {}
    world.plug("pci:v1")
    world.advance()
    assert run_of(world) == ["a", "d", "b"]
    world.settle()
    assert loads(world) == [f"{name}.ko" for name in given]
    results = [f"{module} {result}" for module, result, _ in told_with_device(world)]
    assert [one for one in results if one.split()[1] in ("loaded", "failed")] == told
    assert world.engine.quiet


def test_another_lane_takes_what_waits(joined: World) -> None:
    configure(joined, "Lanes=2")
    joined.advance()
    assert sorted(at_work(joined)) == ["c", "d"]
    batches = list(joined.engine.in_flight.batches.values())
    assert [step.module for step in batches[0].steps] == ["c"]
    open_gate(joined, "c.ko")
    joined.settle()
    assert sorted(loads(joined)) == ["a.ko", "b.ko", "c.ko", "d.ko", "e.ko"]


def test_no_lane_stands_idle_while_jobs_wait_behind_a_slow_init(joined: World) -> None:
    """lane 1 is in c, lane 2 in a: d and e are for whichever comes back first."""
    configure(joined, "Lanes=2")
    assert isinstance(joined.kernel, GateKernel)
    joined.kernel.close("a.ko")
    joined.advance()
    while at_work(joined) != ["c", "a"]:
        hear(joined)
    assert run_of_lane(joined, "a") == ["a", "b"]
    open_gate(joined, "c.ko")
    hear(joined)
    assert at_work(joined) == ["a", "e"]
    open_gate(joined, "a.ko")
    joined.settle()
    assert sorted(loads(joined)) == ["a.ko", "b.ko", "c.ko", "d.ko", "e.ko"]


def run_of_lane(world: World, module: str) -> list[str]:
    (batch,) = [batch for batch in world.engine.in_flight.busy() if batch.module == module]
    return [step.module for step in batch.steps[batch.done :]]


def test_an_operator_does_not_wait_for_the_devices_before_his_module(joined: World) -> None:
    inside_the_run(joined, "d")
    joined.engine.intake.order(Request("e", "operator"))
    joined.advance()
    assert at_work(joined) == ["d", "e"]
    hear(joined)
    (joined.root / "sys/module/e").mkdir(parents=True)
    (joined.root / "sys/module/e/initstate").write_text("live\n")
    open_gate(joined, "d.ko")
    hear(joined, 4)  # d, a, b; e was not begun
    assert sorted(loads(joined)) == ["a.ko", "b.ko", "c.ko", "d.ko", "e.ko"], "none of them twice"
    assert joined.engine.quiet


def test_what_was_told_of_a_job_that_is_planned_anew_is_told_once(world: World, gate: GateKernel) -> None:
    """a was live when it was planned behind d; then a module went."""
    b_behind_d(world, gate, ["a.ko:", "b.ko:", "c.ko:", "d.ko:"], "a", "b")
    world.engine.intake.take(uevent.parse(b"remove@/module/x\0SUBSYSTEM=module\0"), "uevent")
    world.engine.tick()
    open_gate(world, "d.ko")
    hear(world, 2)  # d; b was not begun
    hear(world)
    assert told_with_device(world).count(("a", "live", "/devices/device1")) == 1
    assert loads(world) == ["c.ko", "d.ko", "b.ko"]


def test_where_no_loader_is_to_be_had_one_try_is_enough(joined: World) -> None:
    asked = []

    def none() -> Loader:
        asked.append(1)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    get = joined.loaders.get
    joined.loaders.get = none  # type: ignore[method-assign]
    joined.kernel.oops = {"c.ko"}
    open_gate(joined, "c.ko")
    joined.loaders.threads[-1].join(30)
    (lane,) = joined.engine.in_flight.batches
    while lane in joined.engine.in_flight.batches:
        joined.engine.scheduler.heard(lane)
    joined.advance()
    assert len(asked) == 1
    joined.loaders.get = get  # type: ignore[method-assign]
    joined.engine.scheduler.dispatcher._not_before = 0.0
    joined.settle()
    assert sorted(loads(joined)) == ["a.ko", "b.ko", "c.ko", "d.ko", "e.ko"]


def test_a_loader_that_had_read_nothing_has_begun_nothing(joined: World) -> None:
    """Its job is planned anew like those behind it: a module may have gone since."""
    open_gate(joined, "c.ko")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    get = joined.loaders.get
    joined.loaders.get = lambda: Loader(ours, pid=1)  # type: ignore[method-assign]
    hear(joined)
    joined.loaders.get = get  # type: ignore[method-assign]
    (batch,) = joined.engine.in_flight.busy()
    assert batch.lane.connection is ours
    theirs.close()
    joined.engine.view.outdate()
    joined.engine.scheduler.heard(batch.lane)
    assert not joined.engine.in_flight.batches
    joined.settle()
    assert loads(joined) == ["c.ko", "d.ko", "a.ko", "b.ko", "e.ko"]


def test_what_a_plan_found_live_is_told_once_though_its_loader_never_began(world: World) -> None:
    """The loader ends before it has read the call, and a module has gone: the job is planned anew."""
    world.live("a")
    world.index(["a.ko:", "b.ko:"], ["alias pci:v1* a", "alias pci:v1* b"])
    world.engine.reload()
    world.engine.intake.takes_replay()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    get = world.loaders.get
    world.loaders.get = lambda: Loader(ours, pid=1)  # type: ignore[method-assign]
    world.plug("pci:v1", "device1")
    world.advance()
    world.loaders.get = get  # type: ignore[method-assign]
    (lane,) = world.engine.in_flight.batches
    theirs.close()
    world.engine.view.outdate()
    world.engine.scheduler.heard(lane)
    world.advance()
    hear(world)
    assert sorted(told_with_device(world)) == [("a", "live", "/devices/device1"), ("b", "loaded", "/devices/device1")]


def test_a_process_that_waits_is_given_its_module_alone(joined: World) -> None:
    joined.engine.intake.order(Request("d", "request"))
    joined.advance()
    assert [len(batch.steps) for batch in joined.engine.in_flight.busy()] == [1, 1]


def test_no_more_are_planned_ahead_than_may_keep_waiting_what_comes_now(world: World, gate: GateKernel) -> None:
    names = [f"m{number}" for number in range(MAX_FILES_IN_BATCH)]
    for name in names:
        (world.modules / f"{name}.ko").write_bytes(b"\x7fELF")
    world.index(["c.ko:", *(f"{name}.ko:" for name in names)],
                ["alias pci:v2* c", *(f"alias pci:v9{name}* {name}" for name in names)])  # fmt: skip
    world.engine.reload()
    world.engine.intake.takes_replay()
    gate.close("c.ko")
    world.plug("pci:v2")
    for name in names:
        world.plug(f"pci:v9{name}.", name)
    world.advance()
    wait_inside(gate, "c.ko")
    assert len(world.engine.in_flight.ready) == MAX_READY
    open_gate(world, "c.ko")
    hear(world)
    assert len(run_of(world)) == MAX_READY
    world.settle()
    assert loads(world) == ["c.ko", *(f"{name}.ko" for name in names)]


def test_each_file_is_read_ahead_once_and_not_what_the_loader_is_at(
    world: World, gate: GateKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("kmodd.daemon.scheduler.read_ahead", lambda path: asked.append(os.path.basename(path)))
    gate.close("c.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    wait_inside(gate, "c.ko")
    open_gate(world, "c.ko")
    world.settle()
    assert loads(world) == ["c.ko", "a.ko", "b.ko"]
    assert asked == ["a.ko", "b.ko"]
