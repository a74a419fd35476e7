"""When sysfs is read again, and what the uevents that the daemon itself asks devices for count as."""

from __future__ import annotations

from kmodd.engine.events import DevicesFound
from kmodd.planning.record import OVERRUN
from tests.world import World


def asked_uevent(world: World) -> None:
    """The uevent of a device without a `modalias` file, which the daemon had it send."""
    world.uevent(b"add@/devices/dev0\0SUBSYSTEM=mmc\0MODALIAS=pci:v2\0SYNTH_UUID=ours\0")


def test_lost_uevents_are_recorded_and_have_devices_replayed(world: World) -> None:
    world.advance()
    assert world.replays == []
    world.lose_uevents()
    world.advance()
    assert world.replays == ["all"]
    assert world.told() == [(OVERRUN[-4:], "")]


def test_uevents_that_the_daemon_asks_for_at_its_start_are_coldplug(world: World) -> None:
    world.handle(DevicesFound(()))
    asked_uevent(world)
    request = world.state.queue.devices.take()
    world.finish_boot()
    asked_uevent(world)
    later = world.state.queue.devices.take()
    assert [each and each.origin for each in (request, later)] == ["coldplug", "reconcile"]
