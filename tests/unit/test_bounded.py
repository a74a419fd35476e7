"""Memory does not grow with events, however many, nor with names that others choose."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.kernel import uevent
from kmodd.planning.record import Record
from tests.world import World, loads

EVENTS = 1_000_000
DEVICES = 10_000
WARM_UP = 100_000
ROOM = 3 * 1024 * 1024
"""Bytes: what the allocator may take more at a million events than at a tenth of that."""


def resident() -> int:
    """Bytes of this process in memory that are its own, also those that the kernel has swapped out; what it has read of
    files the kernel may drop and bring back at any moment."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def growth(world: World, events: Iterator[bytes]) -> int:
    """Bytes by which memory has grown from WARM_UP to the last event."""
    world.journal.write = _forget  # type: ignore[method-assign]
    world.watch()
    before = 0
    for number, event in enumerate(events):
        world.engine.intake.take(uevent.parse(event), "uevent")
        if number % 1024 == 0:
            world.engine.advance()
            while world.engine.in_flight.busy():
                for batch in world.engine.in_flight.busy():
                    world.engine.scheduler.heard(batch.lane)
                world.engine.advance()
            world.engine.tick()
            world.engine.scheduler.take_ended()
        if number == WARM_UP:
            before = resident()
    return resident() - before


def _forget(record: Record) -> None:
    del record


@pytest.mark.timeout(300)
def test_a_million_events_of_ten_thousand_devices(world: World) -> None:
    """1,000,000 events of 10,000 devices; one module among theirs refuses each time."""
    world.kernel.refuse["c.ko"] = errno.ENODEV
    world.live("a", "b")

    def events() -> Iterator[bytes]:
        for number in range(EVENTS):
            device = number % DEVICES
            action = ("add", "bind", "change", "remove")[number // DEVICES % 4]
            alias = ("pci:v1", "pci:v2", f"pci:v9d{device}")[device % 3]
            text = f"{action}@/devices/pci/{device}\0SUBSYSTEM=pci\0SEQNUM={number}\0MODALIAS={alias}\0"
            yield text.encode()

    assert growth(world, events()) < ROOM
    assert loads(world) == ["c.ko"]


@pytest.mark.timeout(300)
def test_an_endless_add_and_remove_of_one_device_with_ever_new_names(world: World) -> None:
    """The flood that exhausts a small machine's memory, each time with another alias and path: the backlog may be full
    both times, and no more than that."""

    def events() -> Iterator[bytes]:
        for number in range(EVENTS // 4):
            action = ("add", "remove")[number % 2]
            name = f"{number // 2:08x}"
            yield f"{action}@/devices/usb/{name}\0SUBSYSTEM=usb\0MODALIAS=usb:{name}\0".encode()

    assert growth(world, events()) < ROOM


def test_without_bounds_it_would_be_seen(world: World) -> None:
    """The negative control: who keeps what came is over the limit."""
    kept: list[bytes] = []

    def events() -> Iterator[bytes]:
        for number in range(2 * WARM_UP):
            event = f"remove@/devices/usb/{number:08x}\0SUBSYSTEM=usb\0".encode()
            kept.append(event + bytes(400))  # more than the allocator may have left over from what ran before
            yield event

    assert growth(world, events()) > ROOM
