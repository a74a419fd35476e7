"""What is tried again: with a cause, and what passes by itself after a pause."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kmodd.engine.events import Advance, NotStarted, StartBatch
from kmodd.planning.record import NOTICE, WARNING
from kmodd.state.queue import DeviceQueue
from tests.world import World


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINTR, errno.ENOMEM])
def test_a_refusal_that_passes_by_itself_is_tried_again_five_times(world: World, code: int) -> None:
    world.refuse["c"] = code
    world.plug("pci:v2")
    world.settle()
    assert world.calls == ["c"]
    for _ in range(8):
        world.pass_time(8.0)
        world.settle()
    assert world.calls == ["c"] * 6
    world.refuse.clear()
    world.plug("pci:v2", "another")
    world.settle()
    assert world.told()[-1] == ("c", "loaded")


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 3), (0.1, 2)])
def test_a_retry_for_one_device_outlives_what_is_kept_out_for_another(world: World, seconds: float, calls: int) -> None:
    """c was removed while the first device was there, not the second one. A retry that is not due yet is a control."""
    world.plug("pci:v2")
    world.settle()
    world.remove_live("c")
    world.module_event("remove", "c")
    world.refuse["c"] = errno.ENOMEM
    world.plug("pci:v2", "another")
    world.settle()
    world.refuse.clear()
    world.replay_device("pci:v2", "0000:01:00.0")
    world.settle()
    assert world.told()[-1] == ("c", "not_attempted")
    world.pass_time(seconds)
    world.settle()
    assert len(world.calls) == calls


@pytest.mark.parametrize(("code", "calls"), [(errno.ENOMEM, ["c", "c"]), (errno.EACCES, ["c"])])
def test_a_loader_without_memory_to_unpack_a_module_tries_again(world: World, code: int, calls: list[str]) -> None:
    """Another error of the file does not pass by itself."""
    world.plug("pci:v2")
    world.advance()
    world.finish("c", code, stage="file")
    world.pass_time(1.0)
    world.settle()
    assert world.calls == calls


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EINVAL, errno.ENOENT, errno.ENOEXEC])
def test_other_refusals_wait_for_a_cause(world: World, code: int) -> None:
    world.refuse["c"] = code
    world.plug("pci:v2")
    world.settle()
    assert world.state.retries.deadline() is None
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.calls == ["c"]
    world.index(deps=["a.ko:", "c.ko:"], aliases=["alias pci:v2* c"])
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.calls == ["c", "c"]


@pytest.fixture
def file(world: World) -> Path:
    """The file of c, in a folder of its own: when it comes or goes, nothing of the index has changed."""
    folder = world.modules / "kernel"
    folder.mkdir()
    file = (world.modules / "c.ko").rename(folder / "c.ko")
    world.index(deps=["kernel/c.ko:"], aliases=["alias pci:v2* c"])
    world.reload()
    world.advance()
    world.replays.clear()
    return file


@pytest.mark.usefixtures("watch")
def test_a_missing_file_is_recorded_once_and_tried_again_when_it_exists(world: World, file: Path) -> None:
    file.rename(world.root / "away")
    world.plug("pci:v2")
    world.settle()
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.told() == [("c", "missing")]
    assert [world.tree.real(path) for path in world.state.retries.missing_paths()] == [str(file)]
    world.change_files()
    world.settle()
    assert world.told() == []
    (world.root / "away").rename(file)
    world.change_files()
    world.settle()
    assert world.told() == [("c", "loaded")]
    assert world.replays == []


@pytest.mark.usefixtures("watch")
def test_each_device_that_lacks_one_missing_file_is_tried_again_when_it_exists(world: World, file: Path) -> None:
    """Two devices of different aliases: one wants the module whose file is missing, the other what needs it."""
    aliases = ["alias pci:v2* c", "alias pci:v3* b"]
    world.index(deps=["kernel/c.ko:", "b.ko: kernel/c.ko"], aliases=aliases)
    world.reload()
    world.advance()
    file.rename(world.root / "away")
    world.plug("pci:v3")
    world.plug("pci:v2")
    world.settle()
    assert ("b", "loaded") not in world.told()
    (world.root / "away").rename(file)
    world.change_files()
    world.settle()
    assert {("c", "loaded"), ("b", "loaded")} <= set(world.told())


@pytest.mark.usefixtures("watch")
def test_what_needs_a_missing_file_is_not_tried_until_it_exists(world: World, file: Path) -> None:
    """b needs c. One warning says so, and no failure of b."""
    world.index(deps=["kernel/c.ko:", "b.ko: kernel/c.ko"], aliases=["alias pci:v1* b"])
    world.reload()
    world.advance()
    world.replays.clear()
    world.records.clear()
    file.rename(world.root / "away")
    world.plug("pci:v1")
    world.settle()
    missing, left = world.records
    assert (missing.priority, missing.message.startswith("Failed to load c for 0000:01:00.0: file /")) == (
        WARNING,
        True,
    )
    assert missing.message.endswith("/kernel/c.ko is missing (dependency of b)")
    assert (left.priority, left.message) == (NOTICE, "Not loading b for 0000:01:00.0: c is missing")
    world.records.clear()
    world.plug("pci:v1", synthetic=True)
    world.settle()
    assert (world.told(), world.calls) == ([], [])
    (world.root / "away").rename(file)
    world.change_files()
    world.settle()
    assert world.calls == ["c", "b"]


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("way", ["soon", "file"])
def test_a_retry_without_room_in_the_queue_has_devices_replayed(world: World, file: Path, way: str) -> None:
    """The replay brings the device again, and its result is not taken from memory."""
    if way == "soon":
        world.refuse["c"] = errno.EBUSY
    else:
        file.rename(world.root / "away")
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.told() in ([("c", "failed")], [("c", "missing")])
    world.refuse.clear()
    world.state.queue.devices = DeviceQueue(limit=0)
    if way == "soon":
        world.pass_time(0.6)
    else:
        (world.root / "away").rename(file)
        world.change_files()
        world.advance()
    assert world.replays == ["all"]
    world.state.queue.devices = DeviceQueue()
    world.replay("pci:v2")
    world.settle()
    assert world.told() == [("c", "loaded")]


def test_a_request_that_no_loader_takes_has_devices_replayed_where_the_queue_is_full(world: World) -> None:
    world.state.queue.devices = DeviceQueue(limit=1)
    world.plug("pci:v2", synthetic=True)
    (start,) = [each for each in world.engine.handle(Advance(), world.now) if isinstance(each, StartBatch)]
    world.plug("pci:v9", "other")  # takes its place before the loader fails
    world.handle(NotStarted(start.batch, "Connection refused"))
    world.pass_time(5.1)
    assert world.replays == ["all"]
    world.replay("pci:v2")
    world.settle()
    assert world.calls == ["c"]
