"""The form of a kernel event: lib/kobject_uevent.c, and Documentation/ABI/testing/sysfs-uevent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.errors import ParseError
from kmodd.kernel import uevent

PLUGGED = (
    b"add@/devices/pci0000:00/0000:00:1c.0/0000:01:00.0\0ACTION=add\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:1c.0/0000:01:00.0\0SUBSYSTEM=pci\0PCI_CLASS=20000\0"
    b"MODALIAS=pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00\0SEQNUM=1718\0"
)


def test_every_part_of_a_plugged_card() -> None:
    event = uevent.parse(PLUGGED)
    assert (event.action, event.subsystem, event.seqnum, event.synthetic) == ("add", "pci", 1718, False)
    assert event.devpath == "/devices/pci0000:00/0000:00:1c.0/0000:01:00.0"
    assert event.sysname == "0000:01:00.0"
    assert event.modaliases == ("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00",)
    assert event.get("PCI_CLASS") == "20000"
    assert event.get("DRIVER") == ""


def test_all_values_of_a_repeated_modalias_count() -> None:
    """Older kernels sent two for PRP0001 devices, and udev's table kept only the last."""
    event = uevent.parse(b"add@/x\0MODALIAS=acpi:PRP0001:\0MODALIAS=of:NledT(null)Cgpio-leds\0")
    assert event.modaliases == ("acpi:PRP0001:", "of:NledT(null)Cgpio-leds")


def test_a_write_to_a_uevent_file_is_synthetic() -> None:
    """The kernel adds SYNTH_UUID to a synthetic event (since 4.13)."""
    assert uevent.parse(b"add@/x\0SYNTH_UUID=0\0").synthetic


def test_quotes_dollars_and_length_are_nothing_special() -> None:
    """systemd issue 24715: a DMI text with an apostrophe was broken by a shell-like parser."""
    odd = 'dmi:bvn"MICRO-STARINT\'L":$(reboot)`x`' + "y" * 2000
    assert uevent.parse(b"add@/x\0MODALIAS=" + odd.encode() + b"\0").modaliases == (odd,)


def test_bytes_that_are_not_utf8_survive() -> None:
    event = uevent.parse(b"add@/x\0MODALIAS=dmi:\xff\xfe\0")
    assert event.modaliases[0].encode("utf-8", "surrogateescape") == b"dmi:\xff\xfe"


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (b"", "no NUL"),
        (b"add@/devices/x", "no NUL"),
        (b"libudev\0\xfe\xed\xca\xfe", "ACTION@/DEVPATH"),
        (b"add@devices\0A=1\0", "ACTION@/DEVPATH"),
        (b"@/devices\0A=1\0", "ACTION@/DEVPATH"),
        (b"add@/x\0MODALIAS=pci:v1", "truncated"),
        (b"add@/x\0nonsense\0", "KEY=VALUE"),
        (b"add@/x\0=value\0", "KEY=VALUE"),
        (b"add@/x\0SEQNUM=-1\0", "decimal"),
        (b"add@/x\0SEQNUM=" + b"1" * 5000 + b"\0", "decimal"),
        (b"add@/x\0SEQNUM=\xb2\0", "decimal"),
    ],
)
def test_an_invalid_event_is_refused_with_a_reason(datagram: bytes, expected: str) -> None:
    with pytest.raises(ParseError, match=expected):
        uevent.parse(datagram)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_refused(data: bytes) -> None:
    try:
        event = uevent.parse(data)
    except ParseError:
        return
    assert event.devpath.startswith("/")


@given(st.binary(max_size=40), st.integers(0, len(PLUGGED)))
def test_a_damaged_event_is_an_event_or_refused(noise: bytes, at: int) -> None:
    head, tail = PLUGGED[:at], PLUGGED[at:]
    for damaged in (head, head + noise + tail, head + noise + tail[len(noise) :]):
        try:
            uevent.parse(damaged)
        except ParseError:
            continue
