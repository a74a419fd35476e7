"""`Lanes=auto`: a further lane opens once every loader in use has slept for a few milliseconds and a job waits."""

from __future__ import annotations

import pytest

from kmodd.engine.events import LoaderLook, LoadersSeen
from tests.world import World

NAMES = [f"m{number}" for number in range(8)]


@pytest.fixture
def auto(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two processors; device N wants module mN."""
    monkeypatch.setattr(world.machine, "processors", 2)
    world.index([f"{name}.ko:" for name in NAMES], [f"alias pci:n{number}* m{number}" for number in range(8)])
    world.add_files(*NAMES)
    world.configure("[Kmodd]\nLanes=auto\n")
    world.reload()
    world.state.queue.cancel_replay()
    return world


def plug(world: World, *numbers: int) -> None:
    for number in numbers:
        world.plug(f"pci:n{number}", f"0000:0{number}:00.0")
    world.advance()


def look(world: World, seconds: float = 0.004, *, awake: tuple[str, ...] = (), ticks: int = 3) -> int:
    """Let time pass until the daemon looks. Returns the number of looks; all loaders but `awake` sleep."""
    world.looks.clear()
    world.pass_time(seconds)
    for command in world.looks:
        modules = {batch.number: batch.module for batch in world.started.values()}
        looks = (LoaderLook(batch, modules[batch] not in awake, ticks) for batch, _ in command.loaders)
        world.handle(LoadersSeen(tuple(looks)))
    world.advance()
    return len(world.looks)


def test_one_lane_as_long_as_its_loader_is_on_a_processor(auto: World) -> None:
    plug(auto, 0, 1)
    assert [look(auto, awake=("m0",)) for _ in range(10)] == [1] * 10
    assert auto.loading == ["m0"]
    auto.finish("m0")
    auto.advance()
    assert auto.loading == ["m1"]


def test_a_further_lane_opens_when_the_loader_was_seen_asleep_twice(auto: World) -> None:
    plug(auto, 0, 1)
    look(auto)
    assert auto.loading == ["m0"]
    look(auto)
    assert auto.loading == ["m0", "m1"]


def test_a_loader_that_has_run_between_two_looks_has_not_slept(auto: World) -> None:
    """Control: with the same processor time twice, it has."""
    plug(auto, 0, 1)
    for ticks in range(20):
        look(auto, ticks=ticks)
    assert auto.loading == ["m0"]
    for _ in range(3):
        look(auto, 0.02, ticks=19)
    assert auto.loading == ["m0", "m1"]


def test_all_loaders_in_use_must_sleep_up_to_the_limit(auto: World) -> None:
    """Four lanes with two processors; then nothing is looked at."""
    plug(auto, *range(7))
    for _ in range(2):
        look(auto)
    assert auto.loading == ["m0", "m1"]
    for _ in range(4):
        look(auto, awake=("m1",))
    assert auto.loading == ["m0", "m1"]
    for _ in range(6):
        look(auto)
    assert auto.loading == ["m0", "m1", "m2", "m3"]
    assert look(auto) == 0


def test_there_may_be_as_many_lanes_as_processors(auto: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto.machine, "processors", 6)
    plug(auto, *range(8))
    for _ in range(20):
        look(auto)
    assert len(auto.loading) == 6


def test_a_loader_that_goes_on_with_its_next_module_has_not_slept(auto: World) -> None:
    """m0 needs m7: what was seen of the loader in the one's init says nothing of the other's."""
    names = ["m0.ko: m7.ko", *(f"{name}.ko:" for name in NAMES[1:])]
    auto.index(names, [f"alias pci:n{number}* m{number}" for number in range(8)])
    auto.reload()
    auto.state.queue.cancel_replay()
    plug(auto, 0, 1)
    look(auto)
    auto.finish("m7")
    look(auto)
    assert auto.loading == ["m0"]
    look(auto)
    assert auto.loading == ["m0", "m1"]


def test_an_old_look_does_not_open_a_lane(auto: World) -> None:
    """m0 slept when m1 began; a second later that is not known."""
    plug(auto, 0, 1)
    for _ in range(2):
        look(auto)
    auto.finish("m1")
    auto.now += 1
    plug(auto, 2)
    assert auto.loading == ["m0"]
    look(auto)
    assert auto.loading == ["m0", "m2"]


def test_a_loader_for_a_caller_that_works_keeps_lanes_closed(auto: World) -> None:
    """The lane's init may sleep because it waits for just that request."""
    plug(auto, 0, 1)
    auto.ask("m5")
    auto.advance()
    for _ in range(4):
        look(auto, awake=("m5",))
    assert auto.loading == ["m0", "m5"]
    for _ in range(2):
        look(auto)
    assert auto.loading == ["m0", "m5", "m1"]


def test_a_command_keeps_lanes_closed_without_a_look(auto: World) -> None:
    """The runner of an install command always waits for it."""
    (auto.root / "etc/modprobe.d/x.conf").write_text("install m0 /bin/load\n")
    auto.reload()
    plug(auto, 0, 1)
    assert [look(auto) for _ in range(5)] == [0] * 5
    assert auto.loading == ["m0"]


def test_a_long_load_on_a_processor_is_looked_at_ever_more_seldom(auto: World) -> None:
    """In 20 seconds some hundred times."""
    plug(auto, 0, 1)
    assert 50 < sum(look(auto, 0.01, awake=("m0",)) for _ in range(2_000)) < 120


def test_nothing_is_looked_at_while_no_job_waits(auto: World) -> None:
    """Control: with one that waits, it is."""
    plug(auto, 0)
    assert [look(auto) for _ in range(5)] == [0] * 5
    deadline = auto.engine.deadline(auto.now)
    assert deadline is None or deadline > auto.now + 1
    plug(auto, 1)
    assert look(auto) == 1


@pytest.mark.parametrize("lanes", ["1", "2"])
def test_a_fixed_number_of_lanes_needs_no_look(auto: World, lanes: str) -> None:
    auto.configure(f"[Kmodd]\nLanes={lanes}\n")
    auto.reload()
    plug(auto, 0, 1, 2)
    assert [look(auto) for _ in range(10)] == [0] * 10
    assert len(auto.loading) == int(lanes)


def test_the_boot_list_keeps_its_order_while_a_device_overtakes_it(auto: World) -> None:
    auto.boot_list("m0", "m1")
    plug(auto, 2)
    for _ in range(4):
        look(auto)
    assert auto.loading == ["m0", "m2"]
    auto.finish("m0")
    for _ in range(2):
        look(auto)
    assert auto.loading == ["m2", "m1"]


def test_further_loaders_are_kept_while_devices_wait(auto: World) -> None:
    assert auto.engine.idle_loaders == 2
    plug(auto, 0, 1)
    assert auto.engine.idle_loaders == 5
    auto.settle()
    auto.state.queue.cancel_replay()
    assert auto.engine.idle_loaders == 2
