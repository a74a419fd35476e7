"""Recordings of devices: what is read, what is written, what is wrong in them, and what the planner makes of them."""

from __future__ import annotations

from kmodd.dataclass import replace
from kmodd.engine.events import UeventReceived
from kmodd.kernel.device_recording import MAX_PROBLEMS, RecordedDevice, parse, text_of
from kmodd.planning.device_requests import wanted
from tests.world import World

CAMERA = r"""P: /devices/pci0000:00/usb1/1-1/1-1:1.0
N: bus/usb/001/002
S: camera
E: DEVTYPE=usb_interface
E: MODALIAS=usb:v1
E: SUBSYSTEM=usb
A: modalias=usb:v1\nusb:v2\n
A: text=a\\nb
H: descriptors=12014002
L: driver=../../../../bus/usb/drivers/uvcvideo
"""


def test_the_lines_of_a_device() -> None:
    """A file of umockdev-record: escapes of attributes, aliases of the attribute behind those of the event."""
    (device,), problems = parse(CAMERA, "x")
    assert problems == ()
    assert device.driver == "uvcvideo"
    assert dict(device.attributes)["text"] == r"a\nb"
    assert (device.event.subsystem, device.event.modaliases) == ("usb", ("usb:v1", "usb:v2"))
    assert device.event.get("DEVTYPE") == "usb_interface"


def test_what_is_written_is_read_again() -> None:
    devices = (
        RecordedDevice(
            "/devices/a", (("SUBSYSTEM", "pci"), ("DRIVER", "b=c")), (("x", "a\\n\nb\\"),), (("driver", "../d"),)
        ),
        RecordedDevice("/devices/\udcff", (("MODALIAS", "a b"),)),
    )
    assert parse(text_of(devices), "x") == (devices, ())


def test_each_invalid_line_has_its_place_and_the_others_count() -> None:
    text = "E: A=b\n\nP: /etc/x\nE: A=b\n\nP: /devices/../x\n\nP: /devices/a\nE: b\nQ: x\nE:A=b\nH: a=0\nE: A=b\n"
    devices, problems = parse(text, "f")
    assert [(device.devpath, device.properties) for device in devices] == [("/devices/a", (("A", "b"),))]
    assert [str(problem).partition(", ")[0] for problem in problems] == [
        "f:1: expected a line P: /devices/… before the first of a device",
        "f:3: expected the path of a device",
        "f:6: expected the path of a device",
        "f:9: expected NAME=VALUE",
        "f:10: expected one of P: N: S: E: A: H: L: and a blank",
        "f:11: expected one of P: N: S: E: A: H: L: and a blank",
        "f:12: expected hexadecimal digits",
    ]


def test_a_foreign_file_has_few_problems() -> None:
    _, problems = parse("x\n" * 10_000, "f")
    assert len(problems) == MAX_PROBLEMS + 1
    assert "the rest is not read" in str(problems[-1])


def test_a_recording_is_played_through_the_planner(world: World) -> None:
    """The engine plans for a recorded device what it plans for one that is plugged in; without an alias nothing."""
    text = "P: /devices/one\nE: MODALIAS=pci:v1\nE: SUBSYSTEM=pci\n\nP: /devices/two\nE: SUBSYSTEM=pci\n"
    one, two = (device.event for device in parse(text, "x")[0])
    assert [request.text for request in wanted(one, "coldplug")] == ["pci:v1"]
    assert wanted(two, "coldplug") == ()
    for event in (one, two):
        world.handle(UeventReceived(replace(event, synthetic=False)))
    world.settle()
    assert world.calls == ["a", "b"]
