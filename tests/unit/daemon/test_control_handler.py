"""Calls that wait: each is answered when, and only when, what it waits for has ended."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli import lookup
from kmodd.daemon.waits import MAX_GOALS
from kmodd.host.varlink_server import ControlSocket
from kmodd.planning.plan import Rmmod
from kmodd.planning.record import COLDPLUG_DONE, RELOADED
from tests.control_server import ControlServer, is_answered
from tests.varlink_caller import Caller
from tests.world import World


def test_settle_waits_and_times_out_naming_what_it_waits_for(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    """Exit 1 on timeout, modules named."""
    patient, hasty = Caller(control), Caller(control)
    world.plug("pci:v2")
    world.advance()
    server.send(patient, "Settle")
    server.send(hasty, "Settle", timeout_usec=0)
    assert server.handler.deadline(time.monotonic()) is not None
    server.handler.expire()
    assert hasty.answers() == [{"error": "io.kmodd.TimedOut", "parameters": {"stuck": ["c"]}}]
    assert server.handler.deadline(time.monotonic()) is None
    world.settle()
    server.handler.settled(None, None)
    assert patient.answers() == [{"parameters": {}}]


def test_settle_waits_for_requests_before_it_and_not_for_later_ones(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    """Processes may make the kernel ask without end."""
    caller = Caller(control)
    world.ask("c")
    server.send(caller, "Settle")
    world.ask("c", pid=813)
    server.handler.settled(None, None)
    assert not is_answered(caller)
    world.advance()  # the first is with a loader, the second waits for it
    server.handler.settled(None, None)
    assert not is_answered(caller)
    world.settle()
    world.ask("nothing")
    server.handler.settled(None, None)
    assert caller.answers() == [{"parameters": {}}]


def test_settle_waits_for_files_that_changed_before_it(control: ControlSocket, server: ControlServer) -> None:
    caller = Caller(control)
    before = time.monotonic()
    server.send(caller, "Settle")
    server.handler.settled(None, before)
    assert not is_answered(caller)
    server.handler.settled(None, time.monotonic() + 1)
    assert caller.answers() == [{"parameters": {}}]


def test_load_is_answered_with_every_module_it_took(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    first, second = Caller(control), Caller(control)
    for caller in (first, second):
        server.send(caller, "Load", request="b")
    assert len(world.state.queue) == 2
    world.settle()
    results = [[(r["module"], r["result"]) for r in c.answers()[0]["parameters"]["results"]] for c in (first, second)]
    assert results == [[("a", "loaded"), ("b", "loaded")], [("b", "live")]]


@pytest.mark.parametrize(("parameters", "is_run"), [(["x=1"], False), ([], True)])
def test_a_command_that_would_need_parameters_is_refused_before_its_dependencies(
    world: World, control: ControlSocket, server: ControlServer, parameters: list[str], is_run: bool
) -> None:
    """b needs a. The command gets none of the daemon's parameters: modprobe runs it itself. Control: without any."""
    (world.root / "etc/modprobe.d/x.conf").write_text("install b /sbin/modprobe -i b $CMDLINE_OPTS\n")
    world.reload()
    caller = Caller(control)
    server.send(caller, "Load", request="b", parameters=parameters)
    world.settle()
    assert world.calls == (["a", "b"] if is_run else [])
    results = [result["result"] for result in caller.answers()[0]["parameters"]["results"]]
    assert (set(results) == {"not_attempted"}) is not is_run


def test_an_unload_waits_for_the_load_before_it(world: World, control: ControlSocket, server: ControlServer) -> None:
    """A removal is a request of its own kind, and is answered by itself."""
    first, second = Caller(control), Caller(control)
    server.send(first, "Load", request="c", parameters=["x=1"])
    server.send(second, "Unload", request="c")
    assert len(world.state.queue) == 2
    world.advance()
    assert world.loading == ["c"]
    world.finish("c")
    world.advance()
    assert [type(step) for step in world.batch("c").steps] == [Rmmod]
    world.settle()
    loaded, removed = (caller.answers()[0]["parameters"] for caller in (first, second))
    assert [result["action"].split()[-1] for result in loaded["results"]] == ["x=1"]
    assert loaded["goals"] == [{"module": "c", "complaints": []}]
    assert [(r["module"], r["result"], r["action"]) for r in removed["results"]] == [("c", "removed", "rmmod c")]
    assert removed["failed"] is False


def test_callers_that_have_disconnected_are_forgotten(control: ControlSocket, server: ControlServer) -> None:
    caller = Caller(control)
    server.send(caller, "Settle", timeout_usec=99999999)
    caller.socket.close()
    control.receive(caller.connection)
    server.handler.settled(None, None)
    server.handler.expire()
    assert server.handler.deadline(time.monotonic()) is None
    assert control.connections == []


def test_status_names_what_a_loader_has(world: World, control: ControlSocket, server: ControlServer) -> None:
    world.plug("pci:v2")
    world.advance()
    caller = Caller(control)
    server.send(caller, "Status")
    status = caller.answers()[0]["parameters"]
    assert [lane["module"] for lane in status["lanes"]] == ["c"]
    assert (status["release"], status["waiting"], status["problems"]) == ("6.1.0-test", 0, [])


# -- the module tree --------------------------------------------------------------------------------------------------


def test_a_tree_that_comes_back_serves_an_operator_at_once(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    hidden = world.modules.rename(world.root / "hidden")
    world.plug("pci:v9")
    world.settle()
    caller = Caller(control)
    server.send(caller, "Load", request="c")
    assert caller.answers()[0]["error"] == "io.kmodd.NoModuleTree"
    hidden.rename(world.modules)
    server.send(caller, "Load", request="c")
    world.settle()
    assert caller.answers()[0]["parameters"]["results"][0]["result"] == "loaded"


def test_reload_without_a_tree_is_an_error(world: World, control: ControlSocket, server: ControlServer) -> None:
    world.modules.rename(world.root / "hidden")
    caller = Caller(control)
    server.send(caller, "Reload")
    assert caller.answers()[0]["error"] == "io.kmodd.NoModuleTree"
    assert RELOADED not in world.ids()


def test_without_a_tree_nothing_is_settled(tmp_path: Path, control: ControlSocket) -> None:
    world = World(tmp_path / "other", has_tree=False)
    server = ControlServer(world, control)
    world.plug("pci:v2")
    world.advance()
    assert not world.engine.is_idle
    caller = Caller(control)
    server.send(caller, "Settle")
    assert caller.answers()[0]["error"] == "io.kmodd.NoModuleTree"
    assert COLDPLUG_DONE not in world.ids()


def test_explain_never_answers_from_an_old_index(world: World, control: ControlSocket, server: ControlServer) -> None:
    world.index(["c.ko:"], ["alias pci:v7* c"])
    caller = Caller(control)
    server.send(caller, "Explain", request="pci:v7")
    assert [step["module"] for step in caller.answers()[0]["parameters"]["plan"]["steps"]] == ["c"]


@pytest.mark.parametrize(("uid", "mode", "is_shown"), [(0, 0o600, True), (1000, 0o600, False), (1000, 0o644, True)])
def test_explain_tells_users_nothing_of_files_that_they_cannot_read(
    world: World, control: ControlSocket, server: ControlServer, uid: int, mode: int, is_shown: bool
) -> None:
    conf = world.root / "etc/modprobe.d/secret.conf"
    conf.write_text("options c key=1234\nalias my-own c\n")
    conf.chmod(mode)
    world.reload()
    caller = Caller(control)
    caller.connection.uid = uid
    for name in ("c", "my-own"):
        server.send(caller, "Explain", request=name)
    answers = [json.dumps(answer) for answer in caller.answers()]
    assert ["1234" in answer for answer in answers] == [is_shown, is_shown]
    assert '"module": "c"' in answers[0]
    assert ("no_match" in answers[1]) is not is_shown


def test_a_look_up_is_that_of_kmodd_lookup(
    world: World, control: ControlSocket, server: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each module once; blacklists are ignored, and what cannot be looked up has none."""
    (world.modules / "modules.builtin").write_text("kernel/d.ko\n")
    (world.root / "etc/modprobe.d/x.conf").write_text("blacklist c\nalias own d\n")
    world.index(["a.ko:", "c.ko:"], ["alias pci:v7* c", "alias pci:v7? c", "alias pci:v* a"])
    names = ["pci:v71", "own", "d", "pci:[", "nothing", ""]
    caller = Caller(control)
    server.send(caller, "Lookup", names=names)
    answer = caller.answers()[0]["parameters"]
    assert lookup.main(["--root", str(world.root), *names[:-1]]) == 1
    printed = [line.split("\t")[1].split() for line in capsys.readouterr().out.splitlines()]
    assert answer == {"modules": [*printed, []], "builtin": ["d"]}
    assert sorted(printed[0]) == ["a", "c"]


def test_a_look_up_without_a_tree_is_an_error(world: World, control: ControlSocket, server: ControlServer) -> None:
    """Also while the indexes are still in memory."""
    world.modules.rename(world.root / "hidden")
    caller = Caller(control)
    server.send(caller, "Lookup", names=[])
    assert caller.answers()[0]["error"] == "io.kmodd.NoModuleTree"


@pytest.mark.parametrize(("uid", "is_shown"), [(0, True), (1000, False)])
def test_explain_tells_users_no_rules(
    world: World, control: ControlSocket, server: ControlServer, uid: int, is_shown: bool
) -> None:
    world.configure("[Kmodd]\nPolicy=enforce\n")
    world.set_rules("deny module=c origin=operator  # because")
    world.reload()
    caller = Caller(control)
    caller.connection.uid = uid
    server.send(caller, "Explain", request="c")
    (skip,) = caller.answers()[0]["parameters"]["plan"]["skips"]
    assert skip["reason"] == "denied"
    assert [key for key in ("rule", "file", "line") if skip[key]] == (["rule", "file", "line"] if is_shown else [])


def test_calls_are_about_so_many_modules_and_no_more(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    """Each module that a caller waits for is work in each round of the loop, in no user's time."""
    names = [f"m{number}" for number in range(MAX_GOALS + 1)]
    world.index([f"{name}.ko:" for name in names], [f"alias pci:v7{'*' * (name != 'm0')} {name}" for name in names])
    world.reload()
    caller = Caller(control)
    server.send(caller, "Explain", request="pci:v71")
    assert len(caller.answers()[0]["parameters"]["plan"]["steps"]) == MAX_GOALS
    server.send(caller, "Explain", request="pci:v7")
    assert caller.answers()[0]["error"] == "io.kmodd.TooManyModules"
    server.send(caller, "Wait", module="pci:v7")
    assert caller.answers()[0]["error"] == "io.kmodd.TooManyModules"
    server.send(caller, "Wait", module="pci:v71")
    server.handler.expire()
    assert not is_answered(caller), "these are waited for"


# -- hostile callers --------------------------------------------------------------------------------------------------


def test_one_call_is_handled_at_a_time_and_those_of_a_user_not_without_end(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    """The loop serves the kernel between any two calls; root's are handled all the same."""
    user, root = Caller(control), Caller(control)
    user.connection.uid = 1000
    call, calls, began = b'{"method":"org.varlink.service.GetInfo"}\0', 0, time.monotonic()
    while calls < 100_000:
        user.socket.sendall(call * 2)
        control.receive(user.connection)
        if not server.handler.handle_call():
            break
        calls += len(user.answers())
        user.connection.unread.clear()
    assert 0 < calls < 100_000
    assert began < (server.handler.deadline(time.monotonic()) or 0.0) < time.monotonic() + 10
    root.socket.sendall(b'{"method":"io.kmodd.Status"}\0' * 2)
    control.receive(root.connection)
    assert server.handler.handle_call()
    assert len(root.answers()) == 1


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("Settle", {"timeout_usec": 10**400}),
        ("Settle", {"timeout_usec": -1}),
        ("Explain", {"request": "symbol:\ud800"}),
        ("Explain", {"request": "x" * 5000}),
        ("Explain", {"request": "a\0b"}),
        ("Explain", {"request": "/etc/shadow"}),
        ("Lookup", {"names": ["c"] * 65}),
        ("Lookup", {"names": ["c" * 2049] * 2}),
        ("Lookup", {"names": ["c", "a\0b"]}),
        ("Lookup", {"names": ["\ud800"]}),
        ("Load", {"request": "\ud800"}),
        ("Load", {"request": "c", "parameters": ["\ud800"]}),
    ],
)
def test_an_impossible_parameter_is_refused(
    control: ControlSocket, server: ControlServer, method: str, parameters: dict[str, Any]
) -> None:
    caller = Caller(control)
    server.send(caller, method, **parameters)
    assert caller.answers()[0]["error"] == "org.varlink.service.InvalidParameter"


def test_a_full_queue_is_an_answer(world: World, control: ControlSocket, server: ControlServer) -> None:
    while world.state.queue.add_interactive(world.request("c")):
        pass
    caller = Caller(control)
    server.send(caller, "Load", request="c")
    assert caller.answers()[0]["error"] == "io.kmodd.Busy"


def test_a_caller_that_sends_no_more_still_gets_its_answer(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    caller = Caller(control)
    server.send(caller, "Load", request="c")
    caller.socket.shutdown(socket.SHUT_WR)
    control.receive(caller.connection)
    world.settle()
    assert caller.answers()[0]["parameters"]["results"][0]["module"] == "c"
    assert control.connections == []


def test_a_oneway_call_is_handled_and_not_answered(world: World, control: ControlSocket, server: ControlServer) -> None:
    """varlink.org, Method Call: `oneway`: no reply is sent."""
    caller = Caller(control)
    server.send_text(caller, '{"method":"io.kmodd.Load","parameters":{"request":"c"},"oneway":true}')
    world.settle()
    assert world.calls == ["c"]
    server.send(caller, "Status")
    assert [sorted(answer) for answer in caller.answers()] == [["parameters"]]


def test_callers_are_served_in_turn(control: ControlSocket, server: ControlServer) -> None:
    greedy, modest = Caller(control), Caller(control)
    for caller, calls in ((greedy, 1000), (modest, 1)):
        caller.socket.sendall(b'{"method":"io.kmodd.Status"}\0' * calls)
        control.receive(caller.connection)
    assert server.handler.handle_call()
    assert server.handler.handle_call()
    assert len(greedy.answers()) == 1
    assert len(modest.answers()) == 1


def test_the_log_level_is_set_until_it_is_set_back(tmp_path: Path) -> None:
    """A reload keeps it; without a level, that of kmodd.conf holds again."""
    world = World(tmp_path / "machine", log_level=None)
    control = ControlSocket(str(tmp_path / "io.kmodd"))
    server = ControlServer(world, control)
    caller = Caller(control)

    def set_level(level: int | None) -> int:
        text = json.dumps({"method": "io.systemd.service.SetLogLevel", "parameters": {"level": level}})
        server.send_text(caller, text)
        assert caller.answers() == [{"parameters": {}}]
        world.reload()
        return world.state.reporter.level

    before = world.state.reporter.level
    assert [set_level(level) for level in (7, 3, None)] == [7, 3, before]
    control.close()
