"""Runs of files, and jobs planned while a lane is busy: what saves time must change nothing of what happens."""

from __future__ import annotations

import pytest

from kmodd.kernel import uevent
from kmodd.kernel.uevent import Uevent
from kmodd.planning.request import Request
from tests.unit.test_line_lanes import GateKernel, at_work, configure, gate, hear, let_time_pass
from tests.world import World, loads

__all__ = ["gate"]


def wait_inside(gate: GateKernel, name: str) -> None:
    assert gate.inside[name].wait(30)


def hear_alone(world: World) -> None:
    """One answer, and nothing that the loop does after it."""
    advance = world.engine.advance
    world.engine.advance = lambda: None  # type: ignore[method-assign]
    hear(world)
    world.engine.advance = advance  # type: ignore[method-assign]


def test_a_file_goes_to_the_loader_with_what_it_needs(world: World, gate: GateKernel) -> None:
    """One datagram: nobody has to wake up between the two."""
    gate.close("a.ko")
    world.plug("pci:v1")
    world.advance()
    (batch,) = world.engine.in_flight.batches.values()
    assert [step.module for step in batch.steps] == ["a", "b"]
    gate.gates["a.ko"].set()
    hear_alone(world)
    assert world.told() == [("a", "loaded")], "each is told when it is there"
    hear(world)
    assert world.told() == [("b", "loaded")]


def test_the_next_request_is_planned_meanwhile_and_begun_before_anything_is_told(
    world: World, gate: GateKernel
) -> None:
    gate.close("c.ko")
    gate.close("a.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.plug("pci:v9", "third")
    world.advance()
    wait_inside(gate, "c.ko")
    assert [job.plan.request.text for _, job in world.engine.in_flight.ready] == ["pci:v1"]
    assert not world.engine.devices_answered
    assert world.told() == [("f10a", "nomatch")]
    gate.gates["c.ko"].set()
    hear_alone(world)
    assert at_work(world) == ["a"]
    assert world.told() == [("c", "loaded")]


def test_what_was_planned_ahead_is_planned_anew_when_a_module_has_gone(world: World, gate: GateKernel) -> None:
    """Of a it was known that it is live: a plan without it would fail."""
    world.live("a")
    gate.close("c.ko")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    wait_inside(gate, "c.ko")
    world.live()
    world.engine.intake.take(uevent.parse(b"remove@/module/a\0SUBSYSTEM=module\0"), "uevent")
    gate.gates["c.ko"].set()
    hear(world, 3)
    assert loads(world) == ["c.ko", "a.ko", "b.ko"]


@pytest.mark.parametrize("origin", ["request", "operator"])
def test_an_init_may_ask_for_what_comes_later_in_its_own_run(world: World, gate: GateKernel, origin: str) -> None:
    """To wait for the run would be to wait for the asker. Others can wait."""
    world.index(["a.ko:", "c.ko:", "b.ko: c.ko a.ko"], ["alias pci:v1* b"])
    world.engine.reload()
    world.engine.intake.takes_replay()
    gate.close("a.ko")
    world.plug("pci:v1")
    world.advance()
    wait_inside(gate, "a.ko")
    (batch,) = world.engine.in_flight.batches.values()
    assert [step.module for step in batch.steps] == ["a", "c", "b"]
    world.engine.intake.order(Request("c", origin))  # type: ignore[arg-type]
    world.advance()
    assert at_work(world) == (["a", "c"] if origin == "request" else ["a"])
    if origin == "request":
        hear(world)
        (world.root / "sys/module/c").mkdir(parents=True)
        (world.root / "sys/module/c/initstate").write_text("live\n")
    gate.gates["a.ko"].set()
    hear(world, 3)  # a; then c: not begun, or loaded; b
    assert sorted(loads(world)) == ["a.ko", "b.ko", "c.ko"], "none of them twice"
    assert world.engine.quiet


def test_a_run_that_hangs_does_not_go_on_after_it_was_given_up(world: World, gate: GateKernel) -> None:
    gate.close("a.ko")
    world.plug("pci:v1")
    world.advance()
    wait_inside(gate, "a.ko")
    let_time_pass(world, 61)
    (world.root / "proc/modules").write_text("a 1 1 - Loading 0x0\n")
    world.engine.tick()
    assert world.told() == [("a", "stuck"), ("b", "not_attempted")]
    gate.gates["a.ko"].set()
    hear(world, 2)  # a has come in after all; b was not begun
    assert loads(world) == ["a.ko"]
    assert world.told() == [("a", "loaded")]


def test_with_two_lanes_a_file_of_a_run_is_not_given_to_the_other(world: World, gate: GateKernel) -> None:
    configure(world, "Lanes=2")
    world.index(["a.ko:", "c.ko:", "b.ko: c.ko a.ko"], ["alias pci:v1* b", "alias pci:v2* c"])
    world.engine.reload()
    world.engine.intake.takes_replay()
    gate.close("a.ko")
    world.plug("pci:v1")
    world.plug("pci:v2", "other")
    world.advance()
    wait_inside(gate, "a.ko")
    assert at_work(world) == ["a"]
    gate.gates["a.ko"].set()
    hear(world, 3)
    assert sorted(loads(world)) == ["a.ko", "b.ko", "c.ko"]
    assert world.engine.quiet


@pytest.mark.parametrize("lanes", [1, 2])
def test_coldplug_begins_with_what_others_hang_on(world: World, lanes: int) -> None:
    """A USB host's devices need a second to say who they are; a boot waits for disks, not for the sound.

    The dozen modules of a processor are not left to the end where there is a second lane for them.
    """

    def device(number: int, alias: str, subsystem: str = "pci") -> Uevent:
        path = f"/devices/pci0000:00/0000:00:0{number}.0"
        return Uevent("add", path, subsystem, (alias,), 0, synthetic=True, properties=(("MODALIAS", alias),))

    configure(world, f"Lanes={lanes}")
    network, disk = "pci:v1d1sv1sd1bc02sc00i00", "pci:v3d1sv1sd1bc01sc06i01"
    host, cpu = "pci:v2d1sv1sd1bc0Csc03i30", "cpu:type:x86"
    devices = [device(1, network), device(2, disk), device(3, host), device(4, cpu, "cpu")]
    world.engine.intake.coldplug(devices)
    world.engine.intake.take(uevent.parse(b"add@/devices/usb1\0SUBSYSTEM=usb\0MODALIAS=usb:v1\0"), "uevent")
    taken = iter(world.engine.intake.backlog.take, None)
    rest = [disk, network, cpu] if lanes == 1 else [cpu, disk, network]
    assert [request.text for request in taken] == ["usb:v1", host, *rest], "and what comes now goes before all that"
