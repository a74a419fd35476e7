"""Memory does not grow with events, however many, nor with names that others choose."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import World

SIZES = (100_000, pytest.param(1_000_000, marks=pytest.mark.long))
"""Numbers of events; the second one in `make test-long`."""
DEVICES = 2_000
WARM_UP = 20_000
ROOM = 3 * 1024 * 1024
"""Bytes: what the allocator may take more at all events than at a tenth of them."""


def resident() -> int:
    """Bytes of this process's own memory, also those that the kernel has swapped out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def growth(world: World, events: Iterator[bytes]) -> int:
    """Bytes by which memory has grown from WARM_UP to the last event."""
    before = 0
    for number, event in enumerate(events):
        world.uevent(event)
        if number % 1024 == 0:
            world.settle()
            world.pass_time(0)
            world.forget()
        if number == WARM_UP:
            before = resident()
    return resident() - before


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", SIZES)
def test_events_of_the_same_devices(world: World, count: int) -> None:
    """100,000 events of 2,000 devices; one module among theirs refuses each time."""
    world.refuse["c"] = errno.ENODEV
    world.live("a", "b")
    world.pass_time(2)

    def events() -> Iterator[bytes]:
        for number in range(count):
            device = number % DEVICES
            action = ("add", "bind", "change", "remove")[number // DEVICES % 4]
            alias = ("pci:v1", "pci:v2", f"pci:v9d{device}")[device % 3]
            text = f"{action}@/devices/pci/{device}\0SUBSYSTEM=pci\0SEQNUM={number}\0MODALIAS={alias}\0"
            yield text.encode()

    assert growth(world, events()) < ROOM
    assert set(world.calls) <= {"c"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", SIZES)
def test_one_device_with_ever_new_names(world: World, count: int) -> None:
    """The flood that exhausts a small machine's memory: each time another alias and path. The device queue may be full
    both times, and no more than that."""

    def events() -> Iterator[bytes]:
        for number in range(count // 2):
            action = ("add", "remove")[number % 2]
            name = f"{number // 2:08x}"
            yield f"{action}@/devices/usb/{name}\0SUBSYSTEM=usb\0MODALIAS=usb:{name}\0".encode()

    assert growth(world, events()) < ROOM


def test_unbounded_memory_is_seen(world: World) -> None:
    """The negative control: events that are kept exceed the limit."""
    kept: list[bytes] = []

    def events() -> Iterator[bytes]:
        for number in range(2 * WARM_UP):
            event = f"remove@/devices/usb/{number:08x}\0SUBSYSTEM=usb\0".encode()
            kept.append(event + bytes(2000))  # more than the allocator may have left over from what ran before
            yield event

    assert growth(world, events()) > ROOM
