"""Files of several devices in one batch: the outcomes of each device are those of its modules loaded alone."""

from __future__ import annotations

import errno

import pytest

from kmodd.engine.batches import MAX_FILES_IN_BATCH
from kmodd.engine.events import Tick
from kmodd.engine.in_flight import MAX_READY
from tests.world import World, results


@pytest.fixture
def joined(world: World) -> World:
    """c is being loaded; d, then a and b, then e are planned, each for a device of its own."""
    world.add_files("d", "e")
    deps = ["a.ko:", "b.ko: a.ko", "c.ko:", "d.ko:", "e.ko:"]
    world.index(deps, [f"alias pci:v{number}* {name}" for number, name in enumerate("bcde", 1)])
    world.reload()
    for number in (2, 3, 1, 4):
        world.plug(f"pci:v{number}", f"device{number}")
    world.advance()
    assert world.batch("c").modules == ["c"]
    return world


def plug_three(world: World) -> None:
    """The second device's module, c, is being loaded; the third's and the first's are planned."""
    world.reload()
    for number in (2, 3, 1):
        world.plug(f"pci:v{number}", f"device{number}")
    world.advance()


def put_b_behind_d(world: World, deps: list[str], *first: str) -> None:
    """d is being loaded; b, for the first device, whose modules `first` are, comes after it. a is live."""
    world.add_files("d")
    world.index(deps, [*(f"alias pci:v1* {module}" for module in first), "alias pci:v2* c", "alias pci:v3* d"])
    world.live("a")
    plug_three(world)
    world.finish("c")
    assert world.batch("d").modules == ["d", "b"]


def two_drivers(world: World) -> None:
    """The first device has two, d and b, that need a."""
    world.add_files("d")
    world.index(["a.ko:", "b.ko: a.ko", "c.ko:", "d.ko: a.ko"], ["alias pci:v1* d", "alias pci:v1* b"])
    world.reload()


def remove_while_d_starts(world: World, module: str) -> None:
    world.remove_live(module)
    world.module_event("remove", module)
    world.handle(Tick())
    assert world.batch("d").is_stopping
    world.settle()
    assert world.engine.is_idle


# -- what joins -------------------------------------------------------------------------------------------------------


def test_jobs_planned_meanwhile_go_to_the_loader_at_once(joined: World) -> None:
    joined.finish("c")
    assert joined.batch("d").modules == ["d", "a", "b", "e"]
    assert not joined.state.in_flight.ready
    assert len(joined.settle()) == 4
    assert joined.told_with_device() == [
        ("c", "loaded", "device2"), ("d", "loaded", "device3"), ("a", "loaded", "device1"), ("b", "loaded", "device1"),
        ("e", "loaded", "device4"),
    ]  # fmt: skip
    assert joined.engine.is_idle


def test_a_module_that_two_devices_need_is_in_a_batch_once(world: World) -> None:
    world.index(["a.ko:", "b.ko: a.ko", "c.ko:"], ["alias pci:v1* b", "alias pci:v2* c", "alias pci:v3* a"])
    plug_three(world)
    world.finish("c")
    assert world.batch("a").modules == ["a", "b"]
    world.settle()
    assert world.calls == ["c", "a", "b"]
    assert world.told_with_device() == [
        ("c", "loaded", "device2"), ("a", "loaded", "device3"), ("a", "live", "device1"), ("b", "loaded", "device1"),
    ]  # fmt: skip
    assert world.engine.is_idle


def test_a_process_that_waits_is_given_its_module_alone(joined: World) -> None:
    joined.ask("e")
    joined.advance()
    assert [batch.modules for batch in joined.started.values()] == [["c"], ["e"]]


def test_a_free_lane_takes_jobs_that_wait(joined: World) -> None:
    joined.configure("[Kmodd]\nLanes=2\n")
    joined.reload()
    joined.advance()
    assert [batch.modules for batch in joined.started.values()] == [["c"], ["d"]]
    joined.settle()
    assert sorted(joined.calls) == ["a", "b", "c", "d", "e"]


def test_no_lane_is_idle_while_jobs_wait_behind_a_slow_init(joined: World) -> None:
    """Lane 1 loads c, lane 2 a: e is for the lane that is free first."""
    joined.configure("[Kmodd]\nLanes=2\n")
    joined.reload()
    joined.advance()
    joined.finish("d")
    assert joined.loading == ["c", "a"]
    assert joined.batch("a").modules == ["a", "b"]
    joined.finish("c")
    assert joined.loading == ["a", "e"]
    joined.settle()
    assert sorted(joined.calls) == ["a", "b", "c", "d", "e"]


def test_as_many_jobs_are_planned_ahead_as_a_new_request_may_wait_for(world: World) -> None:
    names = [f"m{number}" for number in range(MAX_FILES_IN_BATCH)]
    world.add_files(*names)
    deps = ["c.ko:", *(f"{name}.ko:" for name in names)]
    world.index(deps, ["alias pci:v2* c", *(f"alias pci:v9{name}* {name}" for name in names)])
    world.reload()
    world.plug("pci:v2")
    for name in names:
        world.plug(f"pci:v9{name}.", name)
    world.advance()
    assert len(world.state.in_flight.ready) == MAX_READY
    world.finish("c")
    assert world.batch("m0").modules == names[:MAX_READY]
    world.settle()
    assert world.calls == ["c", *names]


def test_a_batch_has_at_most_sixteen_files(world: World) -> None:
    """Each of four devices needs five modules."""
    names = [[f"m{device}{number}" for number in range(5)] for device in range(4)]
    world.add_files(*(name for chain in names for name in chain))
    deps = [f"{chain[0]}.ko: {' '.join(f'{name}.ko' for name in chain[:0:-1])}" for chain in names]
    deps += [f"{name}.ko:" for chain in names for name in chain[1:]]
    world.index(["c.ko:", *deps], ["alias pci:v2* c", *(f"alias pci:v9{chain[0]}* {chain[0]}" for chain in names)])
    world.reload()
    world.plug("pci:v2")
    for chain in names:
        world.plug(f"pci:v9{chain[0]}.", chain[0])
    world.advance()
    world.finish("c")
    assert [len(batch.modules) for batch in world.started.values()] == [15]
    world.settle()
    assert len(world.calls) == len(set(world.calls)) == 21


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["d", "a", "e"])
def test_a_refused_module_fails_its_own_device_only(joined: World, failing: str) -> None:
    joined.refuse[failing] = errno.ENODEV
    joined.settle()
    expected = ["c", "d", "a", "b", "e"]
    if failing == "a":
        expected.remove("b")
    assert joined.calls == expected, "each once, in this order"
    told = {module: result for module, result, _ in joined.told_with_device()}
    assert told.pop(failing) == "failed"
    if failing == "a":
        assert told.pop("b") == "not_attempted"
    assert set(told.values()) == {"loaded"}


def test_a_crash_fails_its_own_device_only(joined: World) -> None:
    joined.oops.add("d")
    joined.settle()
    assert joined.calls == ["c", "d", "a", "b", "e"]
    told = joined.told_with_device()
    assert ("d", "crashed", "device3") in told
    assert [module for module, result, _ in told if result == "loaded"] == ["c", "a", "b", "e"]
    assert joined.state.quarantine.crashed == {"d"}


def test_a_hanging_module_keeps_the_others_of_its_batch_until_it_is_given_up(joined: World) -> None:
    joined.finish("c")
    joined.hang("d")
    joined.advance()
    assert joined.batch("a").modules == ["a", "b", "e"]
    joined.remove_live("d")  # it comes in after all
    joined.settle()
    told = joined.told_with_device()
    assert ("d", "stuck", "device3") in told
    assert sorted(joined.calls) == ["a", "b", "c", "d", "e"], "none of them twice"
    assert [module for module, result, _ in told if result == "loaded" and module != "d"] == ["c", "a", "b", "e"]


def test_a_hanging_module_finds_the_modules_before_it_live(world: World) -> None:
    """a came for another device of the batch."""
    world.index(["a.ko:", "b.ko: a.ko", "c.ko:"], ["alias pci:v1* b", "alias pci:v2* c", "alias pci:v3* a"])
    plug_three(world)
    world.finish("c")
    world.finish("a")
    world.hang("b")
    assert world.told_with_device()[-2:] == [("a", "live", "device1"), ("b", "stuck", "device1")]
    assert world.engine.is_idle


@pytest.mark.parametrize(
    ("refused", "given", "told"),
    [
        ("", "adb", ["a loaded", "b loaded", "d loaded"]),
        ("a", "aa", ["a failed", "a failed"]),
        ("d", "adb", ["a loaded", "b loaded", "d failed"]),
        ("b", "adb", ["a loaded", "b failed", "d loaded"]),
    ],
)
def test_two_drivers_of_a_device_are_in_one_batch(world: World, refused: str, given: str, told: list[str]) -> None:
    """An alias with two modules that need a third, as 8139cp and 8139too need mii: the outcomes are those of each."""
    two_drivers(world)
    world.refuse |= {refused: errno.EIO} if refused else {}
    world.plug("pci:v1")
    world.advance()
    assert world.batch("a").modules == ["a", "d", "b"]
    world.settle()
    assert world.calls == list(given)
    outcomes = [f"{module} {result}" for module, result, _ in world.told_with_device()]
    assert sorted(one for one in outcomes if one.split()[1] in ("loaded", "failed")) == told
    assert world.engine.is_idle


def test_a_begun_job_waits_for_a_lane_again_when_the_batch_it_joined_fails(world: World) -> None:
    """The first device's x has no file, so its d comes in another batch, behind f, which fails."""
    world.add_files("d", "e", "f")
    firsts = [f"alias pci:v1* {module}" for module in "exd"]
    others = ["alias pci:v2* c", "alias pci:v3* f", "alias pci:v4* b"]
    world.index([f"{name}.ko:" for name in "abcdef"], [*firsts, *others])
    world.reload()
    world.plug("pci:v4", "device4")
    world.advance()
    world.plug("pci:v1", "device1")
    world.plug("pci:v2", "device2")
    world.advance()
    world.finish("b")
    assert world.batch("e").modules == ["e", "c"]
    world.plug("pci:v3", "device3")
    world.advance()
    world.finish("e")
    world.finish("c")
    assert world.batch("f").modules == ["f", "d"]
    world.refuse["f"] = errno.EIO
    world.settle()
    assert world.calls == ["b", "e", "c", "f", "d"]
    assert world.engine.is_idle


# -- modules that are removed meanwhile -------------------------------------------------------------------------------


def test_a_begun_job_is_not_planned_again(world: World) -> None:
    """The first device's x has no file, so its d waits for a lane once more; meanwhile a module is removed."""
    world.add_files("d", "e")
    firsts = [f"alias pci:v1* {module}" for module in "exd"]
    world.index([f"{name}.ko:" for name in "bcde"], [*firsts, "alias pci:v2* c", "alias pci:v4* b"])
    world.reload()
    world.plug("pci:v4", "device4")
    world.advance()
    world.plug("pci:v1", "device1")
    world.plug("pci:v2", "device2")
    world.advance()
    world.finish("b")
    world.finish("e")
    world.module_event("remove", "y")
    jobs = world.settle()
    assert world.calls == ["b", "e", "c", "d"]
    assert results(job for job in jobs if job.plan.request.text == "pci:v1") == [
        ("e", "loaded"), ("x", "missing"), ("d", "loaded"),
    ]  # fmt: skip


def test_a_job_planned_before_an_install_command_does_not_join_the_rest_of_its_job(world: World) -> None:
    """The command removes a, and the kernel's uevent comes later."""
    world.add_files("e")
    (world.root / "etc/modprobe.d/i.conf").write_text("install c rmmod a\n")
    world.index(["a.ko:", "b.ko: a.ko", "c.ko:", "e.ko: c.ko"], ["alias pci:v1* b", "alias pci:v2* e"])
    world.live("a")
    world.reload()
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    assert world.loading == ["c"]
    world.live()
    world.finish("c", stage="command")
    assert world.batch("e").modules == ["e"]
    world.settle()
    assert world.calls == ["c", "e", "a", "b"]


def test_jobs_that_have_not_begun_are_planned_again_when_a_module_is_removed(world: World) -> None:
    """a was live when b was planned, behind d in the batch: b alone would fail."""
    put_b_behind_d(world, ["a.ko:", "b.ko: a.ko", "c.ko:", "d.ko:"], "b")
    remove_while_d_starts(world, "a")
    assert world.calls == ["c", "d", "a", "b"]


def test_a_module_removed_during_a_batch_is_loaded_again_for_its_later_files(world: World) -> None:
    two_drivers(world)
    world.plug("pci:v1")
    world.advance()
    world.finish("a")
    remove_while_d_starts(world, "a")
    assert world.calls == ["a", "d", "a", "b"]


def test_a_job_that_is_planned_again_is_recorded_once(world: World) -> None:
    """a was live when it was planned behind d; then another module was removed."""
    put_b_behind_d(world, ["a.ko:", "b.ko:", "c.ko:", "d.ko:"], "a", "b")
    remove_while_d_starts(world, "x")
    assert world.told_with_device().count(("a", "live", "device1")) == 1
    assert world.calls == ["c", "d", "b"]


# -- others meanwhile -------------------------------------------------------------------------------------------------


def test_a_seal_ends_the_batch_and_refuses_the_rest(joined: World) -> None:
    joined.finish("c")
    joined.seal()
    joined.settle()
    assert joined.calls == ["c", "d"]
    told = {module: result for module, result, _ in joined.told_with_device()}
    assert told == {"c": "loaded", "d": "loaded", "a": "denied", "b": "denied", "e": "denied"}


def test_an_operator_does_not_wait_for_the_devices_before_the_module(joined: World) -> None:
    joined.finish("c")
    joined.order("e")
    joined.advance()
    assert joined.loading == ["d", "e"]
    joined.finish("e")
    for module in "dab":
        joined.finish(module)
    joined.skip("e")  # the loader finds it live
    joined.advance()
    assert sorted(joined.calls) == ["a", "b", "c", "d", "e"], "none of them twice"
    assert joined.engine.is_idle


def test_a_job_planned_ahead_does_not_try_another_loader_at_once(world: World) -> None:
    """a has an install command, so its job is in no batch with d."""
    world.add_files("d", "e")
    (world.root / "etc/modprobe.d/i.conf").write_text("install a /sbin/load-a\n")
    deps = ["a.ko:", "b.ko: a.ko", "c.ko:", "d.ko:", "e.ko:"]
    world.index(deps, [f"alias pci:v{number}* {name}" for number, name in enumerate("bcd", 1)])
    plug_three(world)
    world.order("e")
    world.advance()
    assert world.loading == ["c", "e"]
    world.no_loader = "no loader: connection refused"
    before = world.state.next_batch()
    world.die("c")
    world.die("e")
    assert world.state.next_batch() - before - 1 == 1, "batches tried"
    world.no_loader = ""
    world.pass_time(5)
    world.settle()
    assert sorted(world.calls) == ["a", "b", "c", "c", "d", "e"]  # c again: its loader was killed


def test_one_attempt_to_start_a_loader_is_enough(joined: World) -> None:
    joined.no_loader = "no loader: connection refused"
    before = joined.state.next_batch()
    joined.die("c")
    joined.advance()
    assert joined.state.next_batch() - before - 1 == 1, "batches tried"
    joined.no_loader = ""
    joined.pass_time(5)
    joined.settle()
    assert sorted(joined.calls) == ["a", "b", "c", "c", "d", "e"]  # c again: its loader was killed


def test_a_loader_that_has_read_nothing_has_begun_nothing(joined: World) -> None:
    """Its job is planned again like those behind it: a module may have been removed since."""
    joined.finish("c")
    joined.module_event("remove", "x")
    joined.die("d", begun=False)
    assert not joined.started
    joined.settle()
    assert joined.calls == ["c", "d", "a", "b", "e"]
