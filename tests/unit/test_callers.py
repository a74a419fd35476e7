"""Calls that wait: settle and load are answered when, and only when, what they wait for has come."""

from __future__ import annotations

import os
import select
import time

from kmodd.daemon.control_handler import ControlHandler
from kmodd.host.sd_notify import Notify
from kmodd.host.varlink_server import ControlSocket
from kmodd.planning.request import Request
from tests.unit.test_control import Caller
from tests.world import World


def send(caller: Caller, text: str) -> None:
    caller.socket.sendall(text.encode() + b"\0")
    caller.control.receive(caller.connection)


def is_answered(caller: Caller) -> bool:
    return bool(select.select([caller.socket], [], [], 0)[0])


def test_settle_waits_and_gives_up_naming_what_is_stuck(world: World, control: ControlSocket) -> None:
    """Exit 1 on timeout, stuck modules named."""
    callers = ControlHandler(world.engine, control, Notify(), {})
    patient, hasty = Caller(control), Caller(control)
    world.plug("pci:v2")
    world.engine.advance()
    send(patient, '{"method": "io.kmodd.Settle"}')
    send(hasty, '{"method": "io.kmodd.Settle", "parameters": {"timeout_usec": 0}}')
    callers.listen()
    assert callers.next_deadline() is not None
    callers.expire()
    assert hasty.answers() == [{"error": "io.kmodd.TimedOut", "parameters": {"stuck": ["c"]}}]
    assert callers.next_deadline() is None
    world.settle()
    callers.settled(None, None)
    assert patient.answers() == [{"parameters": {}}]


def test_settle_waits_for_what_was_asked_before_it_and_not_for_what_comes_later(
    world: World, control: ControlSocket
) -> None:
    """Processes may have the kernel ask without end."""
    callers = ControlHandler(world.engine, control, Notify(), {})
    caller = Caller(control)
    world.engine.intake.order(Request("c", "request"))
    send(caller, '{"method": "io.kmodd.Settle"}')
    callers.listen()
    world.engine.intake.order(Request("c", "request"))
    callers.settled(None, None)
    assert not is_answered(caller)
    world.engine.advance()  # the one is with a loader, the other waits for it
    callers.settled(None, None)
    assert not is_answered(caller)
    world.settle()
    world.engine.intake.order(Request("nothing", "request"))
    callers.settled(None, None)
    assert caller.answers() == [{"parameters": {}}]


def test_settle_waits_for_files_that_changed_before_it(world: World, control: ControlSocket) -> None:
    callers = ControlHandler(world.engine, control, Notify(), {})
    caller = Caller(control)
    before = time.monotonic()
    send(caller, '{"method": "io.kmodd.Settle"}')
    callers.listen()
    callers.settled(None, before)
    assert not is_answered(caller)
    callers.settled(None, time.monotonic() + 1)
    assert caller.answers() == [{"parameters": {}}]


def test_load_is_answered_with_every_module_it_took(world: World, control: ControlSocket) -> None:
    callers = ControlHandler(world.engine, control, Notify(), {})
    first, second = Caller(control), Caller(control)
    for caller in (first, second):
        send(caller, '{"method": "io.kmodd.Load", "parameters": {"request": "b"}}')
    callers.listen()
    assert len(world.engine.intake) == 2
    for job in world.settle():
        callers.ended(job)
    results = [[(r["module"], r["result"]) for r in c.answers()[0]["parameters"]["results"]] for c in (first, second)]
    assert results == [[("a", "loaded"), ("b", "loaded")], [("b", "live")]]


def test_load_and_unload_wait_for_the_same_lane(world: World, control: ControlSocket) -> None:
    """A removal is a request of its own kind: it takes its turn behind the load, and is answered by itself."""
    callers = ControlHandler(world.engine, control, Notify(), {})
    first, second = Caller(control), Caller(control)
    send(first, '{"method": "io.kmodd.Load", "parameters": {"request": "c", "parameters": ["x=1"]}}')
    callers.listen()
    send(second, '{"method": "io.kmodd.Unload", "parameters": {"request": "c"}}')
    callers.listen()
    assert len(world.engine.intake) == 2
    for job in world.settle():
        callers.ended(job)
    loaded, removed = (caller.answers()[0]["parameters"] for caller in (first, second))
    assert [result["action"].split()[-1] for result in loaded["results"]] == ["x=1"]
    assert loaded["goals"] == [{"module": "c", "complaints": []}]
    assert [(r["module"], r["result"], r["action"]) for r in removed["results"]] == [("c", "removed", "rmmod c")]
    assert removed["failed"] is False
    assert world.kernel.calls[-1] == ("c", "", os.O_NONBLOCK)


def test_callers_that_have_gone_are_forgotten(world: World, control: ControlSocket) -> None:
    callers = ControlHandler(world.engine, control, Notify(), {})
    caller = Caller(control)
    send(caller, '{"method": "io.kmodd.Settle", "parameters": {"timeout_usec": 99999999}}')
    callers.listen()
    caller.socket.close()
    control.receive(caller.connection)
    callers.settled(None, None)
    callers.expire()
    assert callers.next_deadline() is None
    assert control.connections == []


def test_status_names_what_is_with_a_loader(world: World, control: ControlSocket) -> None:
    callers = ControlHandler(world.engine, control, Notify(), {"release": "6", "root": "", "dry_run": False})
    world.plug("pci:v2")
    world.engine.advance()
    caller = Caller(control)
    send(caller, '{"method": "io.kmodd.Status"}')
    callers.listen()
    status = caller.answers()[0]["parameters"]
    assert [lane["module"] for lane in status["lanes"]] == ["c"]
    assert (status["release"], status["waiting"], status["problems"]) == ("6", 0, [])
    world.settle()
