"""Files that one loader is given together, and jobs planned while it is busy, change nothing of what happens."""

from __future__ import annotations

import errno
from os.path import basename

import pytest

from kmodd.engine.events import Advance, DevicesFound, LoaderReplied, Log, StartBatch
from kmodd.kernel.uevent import Uevent
from kmodd.planning.reply import Reply
from tests.world import World


@pytest.fixture
def late_c(world: World) -> World:
    """b needs a, then c: the batch for b is a, c, b."""
    world.index(deps=["a.ko:", "c.ko:", "b.ko: c.ko a.ko"], aliases=["alias pci:v1* b", "alias pci:v2* c"])
    world.reload()
    world.plug("pci:v1")
    world.advance()
    assert world.batch("a").modules == ["a", "c", "b"]
    return world


# -- one job ----------------------------------------------------------------------------------------------------------


def test_a_file_goes_to_the_loader_with_what_it_needs(world: World) -> None:
    """One datagram: no process has to wake up between the two."""
    world.plug("pci:v1")
    world.advance()
    assert world.batch("a").modules == ["a", "b"]
    world.finish("a")
    assert world.told() == [("a", "loaded")], "each is recorded when it is loaded"
    world.finish("b")
    assert world.told() == [("b", "loaded")]


@pytest.mark.parametrize("origin", ["request", "operator"])
def test_an_init_may_request_a_later_module_of_its_batch(late_c: World, origin: str) -> None:
    """To wait for the batch would be to wait for the asker. An operator can wait."""
    world = late_c
    if origin == "request":
        world.ask("c")
        world.advance()
        assert world.loading == ["a", "c"]
        world.finish("c")
        world.finish("a")
        world.skip("c")
    else:
        world.order("c")
        world.advance()
        assert world.loading == ["a"]
    world.settle()
    assert sorted(world.calls) == ["a", "b", "c"], "none of them twice"
    assert world.engine.is_idle


def test_a_later_file_of_a_batch_is_not_given_to_another_lane(world: World) -> None:
    world.configure("[Kmodd]\nLanes=2\n")
    world.index(deps=["a.ko:", "c.ko:", "b.ko: c.ko a.ko"], aliases=["alias pci:v1* b", "alias pci:v2* c"])
    world.reload()
    world.plug("pci:v1")
    world.plug("pci:v2", "other")
    world.advance()
    assert world.loading == ["a"]
    world.settle()
    assert world.calls == ["a", "c", "b"]
    assert world.engine.is_idle


def test_a_batch_too_long_for_a_datagram_is_done_in_pieces(world: World) -> None:
    options = f"options a p={'x' * 40000}\noptions b p={'y' * 40000}\n"
    (world.root / "etc/modprobe.d/x.conf").write_text(options)
    world.reload()
    world.plug("pci:v1")
    world.advance()
    assert world.batch("a").modules == ["a"]
    world.settle()
    assert world.calls == ["a", "b"]


# -- jobs planned ahead -----------------------------------------------------------------------------------------------


def test_the_next_request_is_planned_meanwhile_and_started_before_a_record_is_written(world: World) -> None:
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.plug("pci:v9", "third")
    world.advance()
    assert [job.plan.request.text for _, job in world.state.in_flight.ready] == ["pci:v1"]
    assert not world.engine.devices_answered
    assert world.told() == [("f10a", "nomatch")]
    world.add_live("c")
    commands = world.handle(LoaderReplied(world.batch("c").number, Reply(0, "kernel", 7)))
    kinds = [type(command) for command in commands]
    assert kinds.index(StartBatch) < kinds.index(Log)
    assert world.batch("a").modules == ["a", "b"]
    assert world.told() == [("c", "loaded")]


def test_a_job_planned_ahead_is_planned_again_when_a_module_was_removed(world: World) -> None:
    """a was live: a plan without it would fail."""
    world.live("a")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    world.remove_live("a")
    world.module_event("remove", "a")
    world.settle()
    assert world.calls == ["c", "a", "b"]


def test_a_job_planned_ahead_is_planned_again_when_an_operator_removes_a_module(world: World) -> None:
    """The kernel's uevent comes later."""
    world.live("a")
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    world.order_removal("a")
    world.advance()
    assert world.loading == ["c", "a"]
    world.finish("a")
    world.settle()
    assert world.calls == ["a", "c", "a", "b"]


def test_no_outcome_is_lost_when_there_are_fewer_lanes(world: World) -> None:
    (world.root / "etc/modprobe.d/i.conf").write_text("install b /bin/x\n")  # no batch of a and b
    world.configure("[Kmodd]\nLanes=2\n")
    world.reload()
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    assert world.loading == ["c", "a"]
    world.configure("[Kmodd]\nLanes=1\n")
    world.reload()
    world.told()
    world.finish("a")
    world.module_event("remove", "x")
    world.settle()
    assert ("a", "loaded") in world.told()


def test_each_file_is_read_ahead_once_except_the_one_being_loaded(world: World) -> None:
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.settle()
    assert world.calls == ["c", "a", "b"]
    assert [basename(path) for path in world.read_ahead] == ["a.ko", "b.ko"]


def test_loaders_are_read_between_two_plans(world: World) -> None:
    """A plan takes as long as the init of a small module: a loader that has finished does not wait for three more."""
    world.add_files("d", "e")
    deps = ["a.ko:", "c.ko:", "d.ko:", "e.ko:"]
    world.index(deps, [f"alias pci:v{number}* {name}" for number, name in enumerate("acde")])
    world.reload()
    world.advance()
    for number in range(4):
        world.plug(f"pci:v{number}", f"device{number}")
    planned = []
    while world.engine.can_advance(world.now):
        world.handle(Advance())
        planned.append(len(world.state.in_flight.ready))
    assert planned == [0, 1, 2, 3]


@pytest.mark.parametrize("lanes", [1, 2])
def test_coldplug_begins_with_devices_that_others_wait_for(world: World, lanes: int) -> None:
    """A USB host's devices need a second to appear; a boot waits for disks, not for sound.

    The dozen modules of a processor are not left to the end where a second lane can load them.
    """

    def found(number: int, alias: str, subsystem: str = "pci") -> Uevent:
        path = f"/devices/pci0000:00/0000:00:0{number}.0"
        return Uevent("add", path, subsystem, (alias,), 0, synthetic=True, properties=(("MODALIAS", alias),))

    world.configure(f"[Kmodd]\nLanes={lanes}\n")
    world.reload()
    network, disk = "pci:v1d1sv1sd1bc02sc00i00", "pci:v3d1sv1sd1bc01sc06i01"
    host, cpu = "pci:v2d1sv1sd1bc0Csc03i30", "cpu:type:x86"
    world.handle(DevicesFound((found(1, network), found(2, disk), found(3, host), found(4, cpu, "cpu"))))
    world.plug("usb:v1")
    taken = iter(world.state.queue.devices.take, None)
    rest = [disk, network, cpu] if lanes == 1 else [cpu, disk, network]
    assert [request.text for request in taken] == ["usb:v1", host, *rest], "a new device goes before all that"


# -- other rules meanwhile --------------------------------------------------------------------------------------------


def test_a_flag_that_is_set_counts_for_the_rest_of_a_batch(world: World) -> None:
    world.set_rules("deny flag=locked module=b")
    world.plug("pci:v1")
    world.advance()
    folder = world.root / "run/kmodd/flags"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "locked").touch(mode=0o644)
    world.change_files()
    world.settle()
    assert world.calls == ["a"]


def test_the_end_of_the_boot_counts_for_the_rest_of_a_batch(world: World) -> None:
    world.set_rules("deny phase=running module=b")
    world.order("b")
    world.advance()
    world.finish_boot()
    world.settle()
    assert world.calls == ["a"]


def test_a_batch_goes_on_where_no_rule_stands_against_the_rest(world: World) -> None:
    world.set_rules("deny phase=running module=c")
    world.order("b")
    world.advance()
    world.finish_boot()
    world.settle()
    assert world.calls == ["a", "b"]


# -- loaders that end -------------------------------------------------------------------------------------------------


def test_a_crash_is_recorded_though_the_batch_was_stopped(world: World) -> None:
    world.plug("pci:v1")
    world.advance()
    world.seal()
    world.seal(False)
    assert world.batch("a").is_stopping
    world.told()
    world.crash("a")
    assert world.state.quarantine.crashed == {"a"}
    assert ("a", "crashed") in world.told()


def test_an_outcome_found_by_a_plan_is_recorded_once_though_its_loader_never_began(world: World) -> None:
    """The loader ends before it has read the batch, and a module was removed: the job is planned again."""
    world.live("a")
    world.index(deps=["a.ko:", "b.ko:"], aliases=["alias pci:v1* a", "alias pci:v1* b"])
    world.reload()
    world.plug("pci:v1", "device1")
    world.advance()
    world.module_event("remove", "x")
    world.die("b", begun=False)
    world.settle()
    assert world.calls == ["b"]
    assert sorted(world.told_with_device()) == [("a", "live", "device1"), ("b", "loaded", "device1")]


def test_a_refused_file_ends_its_batch(world: World) -> None:
    world.refuse["a"] = errno.ENODEV
    world.plug("pci:v1")
    world.settle()
    assert world.calls == ["a"]
    assert world.told() == [("a", "failed"), ("b", "not_attempted")]
