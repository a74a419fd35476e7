"""`Wait`: answered when, and only when, a module or device has finished starting, or cannot any more."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kmodd.daemon.waits import LOOK_EVERY, MAX_WAITS
from kmodd.host.varlink_server import Connection, ControlSocket
from tests.control_server import ControlServer, is_answered
from tests.varlink_caller import Caller
from tests.world import World

PATH = "/devices/0000:01:00.0"


def answer_of(server: ControlServer, caller: Caller) -> Any:
    """Let the daemon look after its callers, and read the answer."""
    server.handler.expire()
    assert is_answered(caller)
    (answer,) = caller.answers()
    return answer.get("parameters") if "error" not in answer else answer["error"].removeprefix("io.kmodd.")


def waits(server: ControlServer, caller: Caller) -> bool:
    server.handler.expire()
    return not is_answered(caller)


def test_a_module_that_is_there_is_answered_at_once(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    world.live("a")
    world.state.system.drop_loaded()
    caller = Caller(control)
    server.send(caller, "Wait", module="a")
    assert answer_of(server, caller) == {"name": "a", "result": "live"}


def test_a_module_is_waited_for_until_it_is_live(world: World, control: ControlSocket, server: ControlServer) -> None:
    caller = Caller(control)
    server.send(caller, "Wait", module="c")
    assert waits(server, caller), "its device may still be plugged in"
    world.plug("pci:v2")
    world.advance()
    assert waits(server, caller)
    world.settle()
    world.add_live("c")
    world.state.system.drop_loaded()
    assert answer_of(server, caller) == {"name": "c", "result": "live"}
    assert server.handler.deadline(time.monotonic()) is None


def test_a_load_by_another_program_is_noticed(world: World, control: ControlSocket, server: ControlServer) -> None:
    """No event of the kernel tells that an init has ended: the daemon looks again."""
    caller = Caller(control)
    world.write_modules({"c": "Loading"})
    server.send(caller, "Wait", module="c")
    assert waits(server, caller)
    due = server.handler.deadline(time.monotonic())
    assert due is not None
    world.live("c")
    world.pass_time(LOOK_EVERY + 0.1)
    assert answer_of(server, caller) == {"name": "c", "result": "live"}


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_a_module_that_fails_ends_the_wait(
    world: World, control: ControlSocket, server: ControlServer, when: str
) -> None:
    caller = Caller(control)
    world.refuse["c"] = 22
    world.plug("pci:v2")
    if when == "before":
        world.settle()
    server.send(caller, "Wait", module="c")
    world.settle()
    assert answer_of(server, caller) == {"name": "c", "result": "failed"}


def test_a_module_that_crashed_does_not_come(world: World, control: ControlSocket, server: ControlServer) -> None:
    world.oops.add("c")
    world.plug("pci:v2")
    world.settle()
    caller = Caller(control)
    server.send(caller, "Wait", module="c")
    assert answer_of(server, caller) == {"name": "c", "result": "crashed"}


def test_a_name_that_nothing_knows_fails_at_once(world: World, control: ControlSocket, server: ControlServer) -> None:
    caller = Caller(control)
    server.send(caller, "Wait", module="nosuch")
    assert caller.answers() == [{"error": "io.kmodd.UnknownName", "parameters": {}}]
    server.send(caller, "Wait", module="pci:v2")
    assert waits(server, caller), "the control: an alias is known"


def test_a_wait_ends_at_its_timeout(world: World, control: ControlSocket, server: ControlServer) -> None:
    caller = Caller(control)
    server.send(caller, "Wait", module="c", timeout_usec=0)
    assert answer_of(server, caller) == "TimedOut"


def test_a_device_is_waited_for_until_its_requests_have_ended(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    caller, other = Caller(control), Caller(control)
    world.plug("pci:v2")
    for each, device in ((caller, PATH), (other, "/devices/0000:02:00.0")):
        server.send(each, "Wait", device=device)
    assert answer_of(server, other) == {"name": "/devices/0000:02:00.0", "result": "answered"}
    assert waits(server, caller), "its request is queued"
    world.advance()
    assert waits(server, caller), "a loader is at it"
    world.settle()
    assert answer_of(server, caller) == {"name": PATH, "result": "answered"}


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({}, "module"),
        ({"module": "a", "device": PATH}, "module"),
        ({"device": "/dev/sda"}, "device"),
        ({"module": "/root/x.ko"}, "module"),
        ({"module": "x" * 5000}, "request"),
        ({"module": "a", "timeout_usec": -1}, "timeout_usec"),
    ],
)
def test_wrong_parameters_are_refused(
    control: ControlSocket, server: ControlServer, parameters: dict[str, Any], wrong: str
) -> None:
    caller = Caller(control)
    server.send(caller, "Wait", **parameters)
    (answer,) = caller.answers()
    assert answer == {"error": "org.varlink.service.InvalidParameter", "parameters": {"parameter": wrong}}


def test_users_leave_places_for_others(control: ControlSocket, server: ControlServer) -> None:
    def user() -> Caller:
        caller = Caller(control)
        index = control.connections.index(caller.connection)
        control.connections[index] = caller.connection = Connection(caller.connection.socket, 1000)
        return caller

    users = [user() for _ in range(MAX_WAITS + 1)]
    for caller in users:
        server.send(caller, "Wait", module="c")
    assert [is_answered(caller) for caller in users] == [False] * MAX_WAITS + [True]
    assert users[-1].answers() == [{"error": "io.kmodd.Busy", "parameters": {}}]
    control.drop(users[0].connection)
    server.handler.expire()
    server.send(users[-1], "Wait", module="c")
    assert waits(server, users[-1]), "a caller that is gone has no place"
