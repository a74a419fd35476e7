"""A device that failed for want of firmware is probed again when the file exists, and not without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.engine.events import KernelLogged, LoaderDied, LoaderNamed, LoaderReplied, NotStarted, StartProbe, Tick
from kmodd.engine.firmware_retry import PAUSES
from kmodd.kernel import kmsg
from kmodd.planning.record import FIRMWARE
from kmodd.planning.reply import Reply
from tests.world import World

MISSING = kmsg.parse(
    b"4,1,2,-;r8169 0000:01:00.0: Direct firmware load for nic/x.fw failed with error -2\n"
    b" SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n"
)


def miss(world: World) -> None:
    """The kernel log says that the file is missing."""
    assert MISSING
    world.handle(KernelLogged((MISSING,)))


def write(world: World, suffix: str = "", data: bytes = b"1") -> Path:
    """The file exists now. Returns its directory."""
    folder = world.root / "lib/firmware/nic"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"x.fw{suffix}").write_bytes(data)
    return folder


def end_probe(world: World) -> None:
    """The probe has ended; the kernel log tells the result."""
    (probe,) = world.probes
    world.probes.clear()
    assert probe == StartProbe(probe.batch, "pci", "0000:01:00.0")
    world.handle(LoaderNamed(probe.batch, 7))
    world.handle(LoaderReplied(probe.batch, Reply(0, "kernel", 1)))


def wait_for_next_attempt(world: World) -> bool:
    """Let time pass until the next attempt is due. False: it never is."""
    at = world.state.firmware.deadline()
    if at is None:
        return False
    assert at > world.now
    assert world.engine.deadline(world.now) <= at  # type: ignore[operator]
    world.handle(Tick())
    assert world.state.firmware.deadline() == at, "it is too early"
    world.now = at
    world.handle(Tick())
    return True


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_a_file_that_the_kernel_cannot_use_is_tried_once(world: World, suffix: str) -> None:
    """A kernel without CONFIG_FW_LOADER_COMPRESS ignores `x.fw.xz`, and says again that x.fw is missing."""
    miss(world)
    assert not world.probes
    folder = write(world, suffix)
    world.change_files()
    for _ in range(5):
        end_probe(world)
        miss(world)
        if not world.probes:
            break
    assert not world.probes
    world.change_files()
    assert not world.probes
    assert str(folder) in world.state.firmware.directories
    write(world, data=b"another")
    world.change_files()
    end_probe(world)
    assert not world.state.firmware.is_probing


def test_a_missing_file_and_its_probe_are_recorded(world: World) -> None:
    miss(world)
    (record,) = world.records
    assert (record.message_id, dict(record.fields)) == (FIRMWARE, {"KMODD_FIRMWARE": "nic/x.fw"})
    miss(world)
    assert world.ids() == [FIRMWARE], "once"
    write(world)
    world.change_files()
    assert world.ids() == [], "no loader has it yet"
    end_probe(world)
    assert world.ids() == [FIRMWARE]


def test_a_file_that_came_before_the_log_was_read_is_found_at_once(world: World) -> None:
    write(world)
    miss(world)
    end_probe(world)


def test_a_probe_that_no_loader_has_begun_is_tried_again_a_few_times(world: World) -> None:
    """A loader that ends before it reads the request has probed nothing (unix(7), ECONNRESET)."""
    write(world)
    miss(world)
    tries = 0
    while world.probes:
        tries += 1
        world.handle(LoaderDied(world.probes.pop().batch, begun=False))
        assert not world.probes, "not at once"
        if not wait_for_next_attempt(world):
            break
    assert tries == 1 + len(PAUSES)
    world.change_files()
    end_probe(world)


def test_a_probe_whose_loader_was_killed_is_not_tried_again(world: World) -> None:
    """The kernel log tells the result, as after a reply."""
    write(world)
    miss(world)
    world.handle(LoaderDied(world.probes.pop().batch, begun=True))
    assert world.state.firmware.deadline() is None
    assert not world.probes


def test_a_probe_waits_for_a_loader_and_not_for_a_file(world: World) -> None:
    write(world)
    miss(world)
    for _ in range(2):
        world.handle(NotStarted(world.probes.pop().batch, "no loader: connection refused"))
        assert wait_for_next_attempt(world)
    end_probe(world)
    assert world.state.firmware.deadline() is None


def test_a_dry_run_probes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "machine", dry_run=True)
    write(world)
    miss(world)
    world.change_files()
    assert world.ids() == [FIRMWARE]
    assert not world.probes


def test_a_probe_without_a_loader_holds_no_request_back(world: World) -> None:
    """It is tried again by itself; only a failed load has requests wait for a loader."""
    write(world)
    miss(world)
    world.handle(NotStarted(world.probes[0].batch, "no loader: connection refused"))
    world.plug("pci:v2")
    world.advance()
    assert world.loading == ["c"]
