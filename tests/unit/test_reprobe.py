"""A device that failed for want of firmware is probed again when that comes, and not without end."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from kmodd import kernel_line
from kmodd.host.lanes import Lane, Loaders
from kmodd.report import Report
from kmodd.reprobe import Reprobe
from tests.fakes import ListJournal

RELEASE = "6.1.0-test"
MISSING = kernel_line.parse(
    b"4,1,2,-;r8169 0000:01:00.0: Direct firmware load for nic/x.fw failed with error -2\n"
    b" SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n"
)


class Probers(Loaders):
    """Loaders whose far ends a test holds."""

    def __init__(self) -> None:
        super().__init__(None)
        self.theirs: list[socket.socket] = []

    def open(self) -> Lane:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.theirs.append(theirs)
        return Lane(ours, pid=1)

    def close(self) -> None:
        super().close()
        for their in self.theirs:
            their.close()


def look(it: Reprobe) -> None:
    """As the daemon does with what the kernel has logged."""
    assert MISSING
    if it.heard_kernel([MISSING]):
        it.files_may_have_come()


def probes(it: Reprobe) -> int:
    return len(it.lanes)


def end_probe(it: Reprobe, loaders: Probers) -> None:
    """The probe is over; how it went, the kernel's log says."""
    (lane,) = it.lanes
    assert json.loads(loaders.theirs[-1].recv(65536))["device"] == "0000:01:00.0"
    loaders.theirs[-1].send(json.dumps({"errno": 0, "stage": "kernel", "usec": 1, "detail": ""}).encode())
    it.heard(lane)


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_a_file_that_the_kernel_cannot_use_is_tried_once(tmp_path: Path, suffix: str) -> None:
    """A kernel without CONFIG_FW_LOADER_COMPRESS passes `x.fw.xz` over, and says again that x.fw is missing."""
    loaders = Probers()
    it = Reprobe(str(tmp_path), RELEASE, Report(ListJournal()), loaders)
    look(it)
    assert not probes(it)
    folder = tmp_path / "lib/firmware/nic"
    folder.mkdir(parents=True)
    (folder / f"x.fw{suffix}").write_bytes(b"1")
    it.files_may_have_come()
    for _ in range(5):
        end_probe(it, loaders)
        look(it)
        if not probes(it):
            break
    assert not probes(it)
    it.files_may_have_come()
    assert not probes(it)
    assert str(folder) in it.directories()
    (folder / "x.fw").write_bytes(b"another")
    it.files_may_have_come()
    assert probes(it) == 1
    end_probe(it, loaders)
    loaders.close()
