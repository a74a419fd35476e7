"""Jobs that a loader has begun: what of their plan still holds when files or modules change before their next step."""

from __future__ import annotations

import errno

import pytest

from kmodd.planning.plan import Insmod
from tests.world import World, results


def write_modprobe_d(world: World, line: str) -> None:
    (world.root / "etc/modprobe.d/x.conf").write_text(f"{line}\n")
    world.reload()


def options_of(world: World, module: str) -> str:
    """The options with which a loader is at the module."""
    step = world.batch(module).steps[0]
    assert isinstance(step, Insmod)
    return step.options


def test_a_device_does_not_get_what_was_blacklisted_since_its_job_began(world: World) -> None:
    world.plug("pci:v1")
    world.advance()
    write_modprobe_d(world, "blacklist b")
    world.settle()
    assert world.calls == ["a"]
    assert ("b", "blacklisted") in world.told()


def test_the_rest_of_a_device_s_job_has_the_options_of_now(world: World) -> None:
    world.plug("pci:v1")
    world.advance()
    write_modprobe_d(world, "options b x=1")
    world.finish("a")
    world.advance()
    assert options_of(world, "b") == "x=1 "
    world.settle()
    assert world.calls == ["a", "b"]


def test_a_file_that_was_moved_is_loaded_from_its_new_place(world: World) -> None:
    """As by an upgrade of the module, whose new index is read while its dependency starts."""
    world.plug("pci:v1")
    world.advance()
    (world.modules / "updates").mkdir()
    (world.modules / "b.ko").rename(world.modules / "updates/b.ko")
    world.index(["a.ko:", "updates/b.ko: a.ko", "c.ko:"], ["alias pci:v1* b", "alias pci:v2* c"])
    world.reload()
    world.finish("a")
    world.advance()
    step = world.batch("b").steps[0]
    assert isinstance(step, Insmod)
    assert step.path.endswith("/updates/b.ko")


def test_a_caller_s_job_keeps_the_configuration_that_it_began_with(world: World) -> None:
    """As a modprobe, which reads its files once; and it is answered once, for the whole plan."""
    world.order("b")
    world.advance()
    write_modprobe_d(world, "options b x=1")
    world.finish("a")
    world.advance()
    assert options_of(world, "b") == ""
    assert results(world.settle()) == [("a", "loaded"), ("b", "loaded")]


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_load_that_fails_as_a_dependency_was_removed_meanwhile_is_tried_again(world: World, is_removed: bool) -> None:
    world.plug("pci:v1")
    world.advance()
    world.finish("a")
    if is_removed:
        world.live()
    world.finish("b", errno.ENOENT)
    failed = next(each for each in world.records if "Failed to load b" in each.message)
    assert ("a module that it needs was removed meanwhile" in failed.message) == is_removed
    world.settle()
    world.pass_time(1)
    world.settle()
    assert world.calls == ["a", "b", *(["a", "b"] if is_removed else [])]


def test_a_load_whose_loader_was_killed_is_tried_again(world: World) -> None:
    world.plug("pci:v1")
    world.advance()
    world.die("a")
    world.settle()
    assert world.calls == ["a"]
    world.pass_time(1)
    world.settle()
    assert world.calls == ["a", "a", "b"]


def test_a_result_that_was_found_before_a_new_index_is_not_kept(world: World) -> None:
    """The file of b is missing, then there again, while the device's other module starts."""
    world.index(["b.ko:", "c.ko:"], ["alias pci:v1* b", "alias pci:v1* c"])
    world.reload()
    world.plug("pci:v1")
    world.advance()
    world.finish("b", errno.ENOENT, stage="file")
    assert world.loading == ["c"]
    world.index(["b.ko:", "c.ko:", "a.ko:"], ["alias pci:v1* b", "alias pci:v1* c"])
    world.change_files()
    world.finish("c")
    world.settle()
    world.replay_device("pci:v1", "0000:01:00.0")
    world.settle()
    assert world.calls == ["b", "c", "b"]


def test_a_command_that_has_run_is_not_run_again_though_its_module_is_not_loaded(world: World) -> None:
    write_modprobe_d(world, "install a /bin/load")
    world.plug("pci:v1")
    world.advance()
    world.finish("a", stage="command")
    world.live()
    world.settle()
    assert world.calls == ["a", "b"]


def test_a_later_file_of_a_crashed_batch_is_with_one_loader_at_a_time(world: World) -> None:
    """A request of the kernel has e already, which is allowed: its requester may be an init of the batch."""
    world.add_files("e")
    world.index(["c.ko:", "e.ko:"], ["alias pci:v2* c", "alias pci:v2* e"])
    world.reload()
    world.plug("pci:v2")
    world.advance()
    assert world.batch("c").modules == ["c", "e"]
    world.ask("e")
    world.advance()
    assert world.loading == ["c", "e"]
    world.crash("c")
    world.advance()
    assert world.loading == ["e"]
    world.settle()
    assert world.calls == ["c", "e"]
    assert world.engine.is_idle
