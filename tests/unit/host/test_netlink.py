"""Uevents over netlink: faked messages, and the real kernel's."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import pyudev

from kmodd.host import netlink
from kmodd.host.coldplug import replay
from kmodd.host.netlink import KernelEvents, Overrun, Refused
from kmodd.kernel.uevent import Uevent

NETLINK_KOBJECT_UEVENT = 15
"""include/uapi/linux/netlink.h; the socket module has no name for it."""
UUID = "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed"


def ucred(uid: int) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", 0, uid, 0))]


@pytest.mark.parametrize(
    ("sender", "ancillary", "flags", "expected"),
    [
        ((0, 1), ucred(0), 0, ""),
        ((0, 1), ucred(65534), 0, "uid 65534"),
        ((4711, 1), ucred(0), 0, "port 4711"),
        ((0, 2), ucred(0), 0, "group 2"),
        ((0, 1), [], 0, "sent without credentials"),
        ((0, 1), ucred(0), socket.MSG_TRUNC, "longer than"),
    ],
)
def test_a_message_is_accepted_from_the_kernel_alone(
    sender: tuple[int, int],
    ancillary: list[tuple[int, int, bytes]],
    flags: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0"
    with contextlib.closing(KernelEvents()) as events:
        monkeypatch.setattr(socket.socket, "recvmsg", lambda *_: (message, ancillary, flags, sender))
        (received,) = events.receive(1)
    if expected:
        assert isinstance(received, Refused)
        assert expected in received.why
    else:
        assert isinstance(received, Uevent)


# -- the kernel's own events -----------------------------------------------------------------------------------


def speaking_devices() -> list[Uevent]:
    """Devices of this machine that send events; the root of a subsystem does not."""
    return [event for event in replay("") if not event.devpath.startswith("/devices/system/")]


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root"):
        request.getfixturevalue("alone_with_devices")


def poke(event: Uevent) -> None:
    Path(f"/sys{event.devpath}/uevent").write_text("add")


@pytest.fixture
def events() -> Iterator[KernelEvents]:
    it = KernelEvents()
    yield it
    it.close()


def receive(events: KernelEvents) -> list[netlink.Received]:
    """Wait for an event and read all. A real device may send one at any time."""
    assert select.select([events], [], [], 30)[0]
    return list(events.receive(1000))


@pytest.mark.root
def test_writing_add_sends_an_event(events: KernelEvents) -> None:
    """Documentation/ABI/testing/sysfs-uevent: writing an action sends that event to user space."""
    for event in speaking_devices():
        poke(event)
        got = [e for e in receive(events) if isinstance(e, Uevent) and e.devpath == event.devpath]
        assert got
        assert got[0].action == "add"
        assert got[0].synthetic
        assert set(got[0].modaliases) <= set(event.modaliases)
        assert got[0].seqnum > 0


@pytest.mark.root
def test_the_kernel_gives_back_the_uuid_that_was_written(events: KernelEvents) -> None:
    """Documentation/ABI/testing/sysfs-uevent: SYNTH_UUID names the writer of the event."""
    event = speaking_devices()[0]
    fd = os.open(f"/sys{event.devpath}/uevent", os.O_WRONLY)
    os.write(fd, f"add {UUID}".encode())
    os.close(fd)
    got = [each for each in receive(events) if isinstance(each, Uevent) and each.devpath == event.devpath]
    assert UUID in [each.get("SYNTH_UUID") for each in got]


@pytest.mark.root
def test_a_message_of_another_process_is_refused(events: KernelEvents) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as forger:
        forger.bind((0, 0))
        forger.sendto(b"add@/devices/evil\0ACTION=add\0DEVPATH=/devices/evil\0MODALIAS=pci:v1\0", (0, 1))
        got = receive(events)
    assert any(isinstance(thing, Refused) for thing in got)
    assert not any(isinstance(thing, Uevent) and thing.devpath == "/devices/evil" for thing in got)


@pytest.mark.root
def test_the_buffer_is_as_large_as_asked_for() -> None:
    """More than net.core.rmem_max allows; the kernel doubles it (socket(7))."""
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    for size in (4096, 2 * allowed):
        events = KernelEvents(buffer_bytes=size)
        assert events.buffer_forced
        with socket.socket(fileno=os.dup(events.fileno())) as same:
            assert same.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * size
        events.close()


@pytest.mark.root
def test_libudev_receives_the_same_events(events: KernelEvents) -> None:
    """pyudev's monitor beside ours: the same events, in the same order, with the same properties."""
    witness = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    witness.start()
    devices = speaking_devices()[:20]
    for event in devices:
        poke(event)
    # Other devices may send events between; all of ours arrive.
    heard = [device for _ in devices if (device := witness.poll(30)) is not None]
    got = receive(events)
    assert len(heard) == len(devices)
    ours = {event.seqnum: event for event in got if isinstance(event, Uevent)}
    for device in heard:
        event = ours[device.sequence_number]
        assert (event.action, event.devpath) == (device.action, device.device_path)
        assert event.get("SUBSYSTEM") == device.subsystem
        assert event.get("MODALIAS") == device.properties.get("MODALIAS")


@pytest.mark.root
def test_a_full_buffer_is_an_overrun_each_time_and_ends_by_itself() -> None:
    """pyudev issue 194: with Monitor.poll nothing would ever be read again. Several times, also while draining."""
    devices = speaking_devices()
    events = KernelEvents(buffer_bytes=4096)
    try:
        for _ in range(5):
            for _ in range(400):
                poke(devices[0])
            first = list(events.receive(2))
            for _ in range(400):  # and again, half drained
                poke(devices[0])
            rest = list(events.receive(10_000))
            assert any(isinstance(thing, Overrun) for thing in first + rest)
            assert list(events.receive(10)) == []
            poke(devices[-1])
            assert any(isinstance(thing, Uevent) for thing in receive(events))
    finally:
        events.close()
