"""Install and remove commands in the engine: their records, and requests that their own processes cause."""

from __future__ import annotations

import pytest

from kmodd.dataclass import replace
from kmodd.engine.events import LoaderReplied
from kmodd.planning.outcome import ASKS_FOR_ITSELF, HAS_PARAMETERS
from kmodd.planning.reply import Reply
from kmodd.planning.request import Request
from tests.world import World, requester, results


def commands(world: World, *modules: str) -> None:
    """Install commands for these modules, each on the line of its number."""
    (world.root / "etc/modprobe.d/x.conf").write_text("".join(f"install {name} /bin/x\n" for name in modules))
    world.reload()


def end(world: World, module: str, reply: Reply) -> dict[str, str]:
    """A command ends with this reply. Returns the fields of the last record."""
    number = world.batch(module).number
    del world.started[number]
    world.handle(LoaderReplied(number, reply))
    world.advance()
    return dict(world.records[-1].fields)


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (Reply(0, "command", 5, "", "0", "out"), "loaded"),
        (Reply(22, "command", 5, "exited with status 3", "3", "out"), "failed"),
        (Reply(22, "signal", 5, "was killed by SIGTERM", "SIGTERM", "out"), "loaded"),
    ],
)
def test_status_output_and_line_are_on_record(world: World, reply: Reply, result: str) -> None:
    commands(world, "c")
    world.plug("pci:v2")
    world.advance()
    fields = end(world, "c", reply)
    assert (fields["KMODD_RESULT"], fields["KMODD_COMMAND_STATUS"]) == (result, reply.status)
    assert fields["KMODD_COMMAND_OUTPUT"] == "out"
    assert (fields["KMODD_FILE"], fields["KMODD_LINE"]) == ("/etc/modprobe.d/x.conf", "1")
    assert reply.detail in world.records[-1].message


def test_a_module_without_a_command_has_no_such_fields(world: World) -> None:
    """The control of the above."""
    world.plug("pci:v2")
    world.advance()
    assert not [name for name in end(world, "c", Reply(0, "kernel", 5)) if name.startswith("KMODD_COMMAND")]


def test_a_command_that_cannot_be_started_holds_up_nothing_else(world: World) -> None:
    """Loaders are there: what failed is not the supply of these."""
    commands(world, "c")
    world.plug("pci:v2")
    world.advance()
    end(world, "c", Reply(2, "command", 0, "Failed to start the install command: no socket"))
    assert world.told() == [("c", "failed")]
    world.plug("pci:v1", "other")
    world.settle()
    assert world.told() == [("a", "loaded"), ("b", "loaded")]


def test_a_command_that_takes_too_long_is_recorded_with_its_line(world: World) -> None:
    commands(world, "c")
    world.plug("pci:v2")
    world.advance()
    world.pass_time(61)
    while world.stacks:
        world.answer_stack()
    world.pass_time(0)
    (record,) = world.records
    assert "the command of /etc/modprobe.d/x.conf:1 is left alone" in record.message
    assert dict(record.fields)["KMODD_LINE"] == "1"
    end(world, "c", Reply(22, "command", 7, "exited with status 3", "3", "at last"))
    assert dict(world.records[-1].fields)["KMODD_COMMAND_OUTPUT"] == "at last"


# -- a process of the command makes the kernel ask -----------------------------------------------------------------


def ask(world: World, text: str, runner: int) -> Request:
    """The kernel asks because of a process of the command that `runner` has started; 0: of none."""
    request = Request(text, "request", requester=replace(requester(), command=runner))
    world.queue(request)
    world.advance()
    return request


def test_a_request_for_the_module_of_the_command_ends_at_once(world: World) -> None:
    """The command waits for its process, the process for the kernel, and the kernel for kmodd."""
    commands(world, "c")
    world.plug("pci:v2")
    world.advance()
    ask(world, "c", world.batch("c").pid)
    assert results(world.pop_finished()) == [("c", "not_attempted")]
    assert ASKS_FOR_ITSELF in world.records[-1].message


def test_a_request_of_another_process_waits_for_the_command(world: World) -> None:
    """The control of the above."""
    commands(world, "c")
    world.plug("pci:v2")
    world.advance()
    asked = ask(world, "c", 0)
    assert world.pop_finished() == []
    world.add_live("c")
    end(world, "c", Reply(0, "command", 5, "", "0"))
    assert [job.plan.request for job in world.pop_finished() if job.plan.request.origin == "request"] == [asked]


def test_commands_within_commands(world: World) -> None:
    """The command of c makes the kernel ask for a, and the command of a for c."""
    commands(world, "c", "a")
    world.plug("pci:v2")
    world.advance()
    ask(world, "a", world.batch("c").pid)
    assert world.loading == ["c", "a"]
    ask(world, "c", world.batch("a").pid)
    assert results(world.pop_finished()) == [("c", "not_attempted")]


# -- parameters ----------------------------------------------------------------------------------------------------


def test_a_command_gets_no_parameters_of_a_call(world: World) -> None:
    """It reads the options itself, from the configuration; modprobe runs the command itself, with parameters."""
    commands(world, "c")
    world.order("c", "x=1")
    world.advance()
    assert results(world.pop_finished()) == [("c", "not_attempted")]
    assert HAS_PARAMETERS in world.records[-1].message
    world.order("c")
    world.advance()
    assert world.loading == ["c"]
