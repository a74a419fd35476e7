"""A device that failed for want of firmware is probed again when that comes, and not without end."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from kmodd.daemon import firmware_retry
from kmodd.daemon.firmware_retry import FirmwareRetry
from kmodd.daemon.reporter import Reporter
from kmodd.kernel import kmsg
from kmodd.loader.pool import Loader, LoaderPool
from kmodd.loader.protocol import ProbeRequest, decode_request, encode_reply
from kmodd.planning.reply import Reply
from tests.fakes import ListJournal

RELEASE = "6.1.0-test"
MISSING = kmsg.parse(
    b"4,1,2,-;r8169 0000:01:00.0: Direct firmware load for nic/x.fw failed with error -2\n"
    b" SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n"
)


class Probers(LoaderPool):
    """Loaders whose far ends a test holds."""

    def __init__(self) -> None:
        super().__init__(None)
        self.theirs: list[socket.socket] = []

    def open(self) -> Loader:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.theirs.append(theirs)
        return Loader(ours, pid=1)

    def close(self) -> None:
        super().close()
        for their in self.theirs:
            their.close()


def look(it: FirmwareRetry) -> None:
    """As the daemon does with what the kernel has logged."""
    assert MISSING
    if it.heard_kernel([MISSING]):
        it.files_may_have_come()


def probes(it: FirmwareRetry) -> int:
    return len(it.lanes)


def end_probe(it: FirmwareRetry, loaders: Probers) -> None:
    """The probe is over; how it went, the kernel's log says."""
    (lane,) = it.lanes
    assert decode_request(loaders.theirs[-1].recv(65536)) == ProbeRequest("pci", "0000:01:00.0")
    loaders.theirs[-1].send(encode_reply(Reply(0, "kernel", 1)))
    it.heard(lane)


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_a_file_that_the_kernel_cannot_use_is_tried_once(tmp_path: Path, suffix: str) -> None:
    """A kernel without CONFIG_FW_LOADER_COMPRESS passes `x.fw.xz` over, and says again that x.fw is missing."""
    loaders = Probers()
    it = FirmwareRetry(str(tmp_path), RELEASE, Reporter(ListJournal()), loaders)
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time.monotonic says."""
    now = [1000.0]
    monkeypatch.setattr("kmodd.daemon.firmware_retry.time.monotonic", lambda: now[0])
    return now


def let_the_time_come(it: FirmwareRetry, clock: list[float]) -> bool:
    """As the daemon does when it is due; False: it never is."""
    at = it.next_tick()
    if at is None:
        return False
    assert at > clock[0]
    it.tick()
    assert it.next_tick() == at, "it is too early"
    clock[0] = at
    it.tick()
    return True


def firmware_is_there(folder: Path) -> None:
    (folder / "lib/firmware/nic").mkdir(parents=True)
    (folder / "lib/firmware/nic/x.fw").write_bytes(b"1")


def test_a_probe_that_no_loader_has_begun_is_tried_again_a_few_times(tmp_path: Path, clock: list[float]) -> None:
    """A loader that ends before it reads the call has probed nothing (unix(7), ECONNRESET)."""
    firmware_is_there(tmp_path)
    loaders = Probers()
    it = FirmwareRetry(str(tmp_path), RELEASE, Reporter(ListJournal()), loaders)
    look(it)
    tries = 0
    while probes(it):
        tries += 1
        (lane,) = it.lanes
        loaders.theirs[-1].close()
        it.heard(lane)
        assert not probes(it), "not at once"
        if not let_the_time_come(it, clock):
            break
    assert tries == 1 + len(firmware_retry.PAUSES)
    it.files_may_have_come()
    assert probes(it) == 1
    end_probe(it, loaders)
    loaders.close()


def test_a_probe_waits_for_a_loader_and_not_for_a_file(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware_is_there(tmp_path)
    loaders = Probers()
    it = FirmwareRetry(str(tmp_path), RELEASE, Reporter(ListJournal()), loaders)

    def none() -> Loader:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(loaders, "get", none)
        look(it)
        assert let_the_time_come(it, clock)
        assert not probes(it)
    assert let_the_time_come(it, clock)
    assert probes(it) == 1
    end_probe(it, loaders)
    assert it.next_tick() is None
    loaders.close()
