"""Where events come from, without and with the real kernel of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import pyudev

from kmodd.host import coldplug, netlink
from kmodd.host.coldplug import replay, trigger
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


def device(root: Path, path: str, bus: str, modalias: str | None, kind: str = "bus") -> None:
    folder = root / "sys/devices" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "uevent").write_text("")
    if modalias is not None:
        (folder / "modalias").write_text(modalias)
    links = root / f"sys/{kind}/{bus}" / ("devices" if kind == "bus" else "")
    links.mkdir(parents=True, exist_ok=True)
    (links / folder.name).symlink_to(os.path.relpath(folder, links))


def test_replay_reads_each_modalias_file_parents_first(tmp_path: Path) -> None:
    device(tmp_path, "pci0/0000:00:01.0/usb1/1-1/1-1:1.0", "usb", "usb:v1\n")
    device(tmp_path, "pci0/0000:00:01.0", "pci", "pci:v1\n")
    device(tmp_path, "virtual/dmi/id", "dmi", "dmi:bvn'Q\"$(x)\n", kind="class")
    device(tmp_path, "acpi0", "acpi", "acpi:PRP0001:\nof:NledT(null)Cgpio-leds\n")
    device(tmp_path, "tty0", "tty", None, kind="class")
    found = [(e.devpath, e.subsystem, e.modaliases, e.action, e.synthetic) for e in replay(str(tmp_path))]
    assert found == [
        ("/devices/acpi0", "acpi", ("acpi:PRP0001:", "of:NledT(null)Cgpio-leds"), "add", True),
        ("/devices/pci0/0000:00:01.0", "pci", ("pci:v1",), "add", True),
        ("/devices/pci0/0000:00:01.0/usb1/1-1/1-1:1.0", "usb", ("usb:v1",), "add", True),
        ("/devices/virtual/dmi/id", "dmi", ("dmi:bvn'Q\"$(x)",), "add", True),
    ]


def test_replay_never_opens_a_uevent_file(tmp_path: Path) -> None:
    """Reading it takes the device's lock and hangs behind a slow probe."""
    device(tmp_path, "pci0", "pci", "pci:v1\n")
    uevent_file = tmp_path / "sys/devices/pci0/uevent"
    uevent_file.unlink()
    os.mkfifo(uevent_file)  # opening it for reading would wait for ever
    assert len(list(replay(str(tmp_path)))) == 1


def test_devices_without_a_modalias_file_are_made_to_speak(tmp_path: Path) -> None:
    """An MMC card has its MODALIAS in the event alone (drivers/mmc/core/bus.c)."""
    device(tmp_path, "mmc0/mmc0:0001", "mmc", None)
    device(tmp_path, "pci0", "pci", "pci:v1\n")
    assert trigger(str(tmp_path), UUID) == []
    assert (tmp_path / "sys/devices/mmc0/mmc0:0001/uevent").read_text() == f"add {UUID}"
    assert (tmp_path / "sys/devices/pci0/uevent").read_text() == ""


def test_a_kernel_that_takes_no_uuid_is_told_add_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device(tmp_path, "mmc0/mmc0:0001", "mmc", None)
    write, said = os.write, []

    def old(fd: int, text: bytes) -> int:
        said.append(text)
        if text != b"add":
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(fd, text)

    monkeypatch.setattr(os, "write", old)
    assert trigger(str(tmp_path), UUID) == []
    assert said == [f"add {UUID}".encode(), b"add"]


def test_replay_finds_what_a_walk_over_all_of_sysfs_finds() -> None:
    """On this machine: nothing with a `modalias` stands outside of the buses and classes."""
    walked = {
        os.path.join(folder, "modalias")[4:-9]
        for folder, _, files in os.walk("/sys/devices")
        if "modalias" in files and Path(folder, "modalias").read_bytes().strip()
    }
    assert {event.devpath for event in replay("")} == walked
    assert walked


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
    """What is there, once something is. A real device may speak up between at any time."""
    assert select.select([events], [], [], 30)[0]
    return list(events.receive(1000))


@pytest.mark.root
def test_a_write_of_add_comes_in_as_an_event(events: KernelEvents) -> None:
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
    """Documentation/ABI/testing/sysfs-uevent: SYNTH_UUID tells whose event it is."""
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
def test_libudev_hears_the_same(events: KernelEvents) -> None:
    """pyudev's monitor beside ours: the same events, in the same order, with the same properties."""
    witness = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    witness.start()
    devices = speaking_devices()[:20]
    for event in devices:
        poke(event)
    # Devices of other tests may speak up between; ours are there in full.
    heard = [device for _ in devices if (device := witness.poll(30)) is not None]
    got = receive(events)
    assert len(heard) == len(devices)
    ours = {event.seqnum: event for event in got if isinstance(event, Uevent)}
    for device in heard:
        event = ours[device.sequence_number]
        assert (event.action, event.devpath) == (device.action, device.device_path)
        assert event.get("SUBSYSTEM") == device.subsystem
        assert event.get("MODALIAS") == device.properties.get("MODALIAS")


def test_libudev_finds_the_same_devices() -> None:
    """pyudev lists what sends events; the root of a subsystem does not, but may have the processors' alias."""
    found = {
        device.device_path: device.subsystem
        for device in pyudev.Context().list_devices()
        if (device.attributes.get("modalias") or b"").strip()
    }
    ours = {event.devpath: event.subsystem for event in replay("") if not event.devpath.startswith("/devices/system/")}
    assert ours == {path: name for path, name in found.items() if not path.startswith("/devices/system/")}
    assert ours


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
