"""What must not take requests, the loop or the truth along: missing trees and loaders, hostile callers, old answers."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from kmodd.config.modules_load_d import BootList, BootModule
from kmodd.daemon.control_handler import ControlHandler
from kmodd.errors import Where
from kmodd.host.sd_notify import Notify
from kmodd.host.varlink_server import ControlSocket
from kmodd.loader.pool import Died, Loader, LoaderPool
from kmodd.loader.spawner import Spawner
from kmodd.planning.record import COLDPLUG_DONE, NO_LOADER, NO_TREE, RELOADED
from kmodd.planning.request import Request
from kmodd.state.queue import DeviceQueue
from tests.unit.test_control import Caller
from tests.world import World, loads


@pytest.fixture(autouse=True)
def _replayed(world: World) -> None:
    """Its first replay is over."""
    world.engine.intake.takes_replay()


@pytest.fixture
def callers(world: World, control: ControlSocket) -> ControlHandler:
    return ControlHandler(world.engine, control, Notify(), {"root": str(world.root)})


def send(caller: Caller, callers: ControlHandler, method: str, **parameters: Any) -> None:
    caller.socket.sendall(json.dumps({"method": f"io.kmodd.{method}", "parameters": parameters}).encode() + b"\0")
    caller.control.receive(caller.connection)
    callers.listen()


def ids(world: World) -> list[str]:
    found = [record.message_id for record in world.journal.records]
    world.journal.records.clear()
    return found


# -- the tree goes away and comes back ---------------------------------------------------------------------------


def test_a_tree_that_goes_away_is_told_once_and_nothing_is_said_to_be_read(world: World) -> None:
    hidden = world.modules.rename(world.root / "hidden")
    for number in range(3):
        world.plug("pci:v9", f"device{number}")
        world.settle()
    told = ids(world)
    assert told.count(NO_TREE) == 1
    assert RELOADED not in told
    hidden.rename(world.modules)


def test_a_tree_that_comes_back_serves_an_operator_at_once(
    world: World, control: ControlSocket, callers: ControlHandler
) -> None:
    hidden = world.modules.rename(world.root / "hidden")
    world.plug("pci:v9")
    world.settle()
    caller = Caller(control)
    send(caller, callers, "Load", request="c")
    assert caller.answers()[0]["error"] == "io.kmodd.NoModuleTree"
    hidden.rename(world.modules)
    send(caller, callers, "Load", request="c")
    for job in world.settle():
        callers.ended(job)
    assert caller.answers()[0]["parameters"]["results"][0]["result"] == "loaded"


def test_reload_without_a_tree_does_not_say_that_all_is_well(
    world: World, control: ControlSocket, callers: ControlHandler
) -> None:
    world.modules.rename(world.root / "hidden")
    caller = Caller(control)
    send(caller, callers, "Reload")
    assert caller.answers()[0]["error"] == "io.kmodd.NoModuleTree"
    assert RELOADED not in ids(world)


def test_without_a_tree_nothing_is_settled(tmp_path: Path, control: ControlSocket) -> None:
    world = World(tmp_path / "other")
    world.modules.rename(world.root / "hidden")
    world.engine.reload()
    world.plug("pci:v2")
    world.engine.advance()
    assert not world.engine.quiet
    caller = Caller(control)
    send(caller, ControlHandler(world.engine, control, Notify(), {}), "Settle")
    assert caller.answers()[0]["error"] == "io.kmodd.NoModuleTree"
    assert COLDPLUG_DONE not in ids(world)


def test_a_reload_that_changed_nothing_tells_no_nomatch_again(world: World) -> None:
    """A no-match is recorded once per alias until the index changes."""
    world.plug("pci:v9")
    world.settle()
    world.engine.reload()
    world.plug("pci:v9")
    world.settle()
    assert [result for _, result in world.told()].count("nomatch") == 1


def test_new_entries_of_the_boot_list_are_loaded_on_reload(world: World) -> None:
    world.engine.intake.boot(BootList((BootModule("a", Where("/etc/modules", 1)),)))
    world.settle()
    both = (BootModule("a", Where("/etc/modules", 1)), BootModule("c", Where("/etc/modules", 2)))
    world.engine.intake.boot(BootList(both))
    world.settle()
    assert loads(world) == ["a.ko", "c.ko"]


def test_an_entry_of_the_boot_list_that_joins_a_device_is_answered_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no loader and comes back to find the same wish there; READY waits for the list."""
    real = world.loaders.get

    def none() -> Loader:
        world.plug("c")
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(world.loaders, "get", none)
    world.engine.intake.boot(BootList((BootModule("c", Where("/etc/modules", 1)),)))
    world.engine.advance()
    assert world.engine.intake.boot_left
    monkeypatch.setattr(world.loaders, "get", real)
    monkeypatch.setattr(world.engine.scheduler.dispatcher, "_not_before", 0.0)
    world.settle()
    assert loads(world) == ["c.ko"]
    assert not world.engine.intake.boot_left


@pytest.mark.usefixtures("still")
def test_the_boot_list_has_room_and_is_answered_from_memory_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No replay would bring it again, and READY waits for it."""
    world.kernel.refuse["c.ko"] = errno.ENODEV
    world.plug("c")
    world.settle()
    monkeypatch.setattr(world.engine.intake.backlog, "_limit", 0)
    names = [BootModule(name, Where("/etc/modules", 1)) for name in ("c", "a")]
    world.engine.intake.boot(BootList(tuple(names)))
    world.settle()
    assert loads(world) == ["c.ko", "a.ko"]
    assert not world.engine.intake.boot_left


# -- loaders ------------------------------------------------------------------------------------------------------


def test_requests_wait_for_a_loader_and_nobody_is_turned_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = world.loaders.get

    def none() -> Loader:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(world.loaders, "get", none)
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.engine.advance()
    world.engine.advance()
    assert ids(world) == [NO_LOADER]
    assert len(world.engine.intake) == 2
    assert not world.engine.can_advance
    assert not world.engine.quiet
    monkeypatch.setattr(world.loaders, "get", real)
    monkeypatch.setattr(world.engine.scheduler.dispatcher, "_not_before", 0.0)
    world.settle()
    assert loads(world) == ["c.ko", "a.ko", "b.ko"]


def test_the_one_that_was_put_back_comes_first() -> None:
    backlog = DeviceQueue()
    for name in "ab":
        backlog.add(Request(name, "uevent", (f"/devices/{name}",), 1))
    first = backlog.take()
    assert first is not None
    backlog.put_back(first)
    assert backlog.take() == first


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """The far ends of the spawners that systemd was asked for."""
    asked: list[socket.socket] = []

    def of_systemd() -> Spawner:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked.append(theirs)
        return Spawner(ours)

    monkeypatch.setattr(Spawner, "of_systemd", of_systemd)
    yield asked
    for theirs in asked:
        theirs.close()


@pytest.mark.usefixtures("still")
def test_loaders_that_die_at_birth_are_not_started_without_end(asked: list[socket.socket]) -> None:
    """Systemd takes the connection, and starts nothing that could read from it."""
    loaders = LoaderPool()
    for _ in range(100):
        loaders.keep_spare()
        for theirs in asked:
            theirs.close()
        for lane in list(loaders.idle):
            assert lane.receive() == Died()
            loaders.lost(lane)
    assert len(asked) == 1
    loaders.close()


def test_a_spawner_of_systemds_that_is_gone_is_replaced(asked: list[socket.socket]) -> None:
    """It was killed, or an administrator has stopped its unit: the next loader is another one's."""
    loaders = LoaderPool()
    first = loaders.open()
    asked[0].close()
    assert first.receive() == Died()
    second = loaders.open()
    message, (passed,), *_ = socket.recv_fds(asked[1], 64, 1)
    assert message == b"loader"
    with socket.socket(fileno=passed) as loader:
        loader.send(b"7")
    assert second.receive() is None
    assert second.pid == 7
    assert len(asked) == 2
    first.close()
    second.close()
    loaders.close()


def test_systemds_socket_may_be_away_for_a_while(asked: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its unit is restarted: "kmodd looks again every few seconds"."""
    loaders = LoaderPool()
    first = loaders.open()
    asked[0].close()
    with monkeypatch.context() as away:
        away.setattr(Spawner, "of_systemd", Mock(side_effect=FileNotFoundError))
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                loaders.open()
    loaders.open().close()
    first.close()
    loaders.close()


def test_a_spawner_of_ours_that_is_gone_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has dropped what a new one would need."""
    monkeypatch.setattr(Spawner, "of_systemd", lambda: pytest.fail("there is no systemd"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    loaders = LoaderPool(Spawner(ours, pid=1))
    with pytest.raises(BrokenPipeError):
        loaders.open()
    loaders.close()


def test_the_loader_at_work_and_the_spare_die_in_one_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.index(["a.ko:", "b.ko:", "c.ko:"], ["alias pci:v3* a", "alias pci:v3* b"])
    theirs = []

    def connect(_spawner: Spawner) -> socket.socket:
        ours, their = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.append(their)
        return ours

    monkeypatch.setattr(Spawner, "connect", connect)
    monkeypatch.setattr(Spawner, "of_systemd", lambda: Spawner(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)))
    loaders = LoaderPool()
    monkeypatch.setattr(world.engine.scheduler, "_loaders", loaders)
    monkeypatch.setattr(world.engine.scheduler.dispatcher, "_loaders", loaders)
    world.plug("pci:v3")
    world.engine.advance()
    loaders.keep_spare()
    both = world.engine.scheduler.lanes
    assert len(both) == 2
    theirs[0].recv(65536)
    for their in theirs:
        their.close()
    for lane in both:
        world.engine.scheduler.heard(lane)
    assert ("a", "failed") in world.told()
    theirs[-1].close()
    loaders.close()


def test_a_call_that_was_never_read_is_given_to_the_next_loader(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """unix(7): ECONNRESET is the peer's end with our data unread, so the module was not begun."""
    real = world.loaders.get
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    monkeypatch.setattr(world.loaders, "get", lambda: Loader(ours, pid=1))
    world.plug("pci:v2")
    world.engine.advance()
    theirs.close()
    monkeypatch.setattr(world.loaders, "get", real)
    (batch,) = world.engine.in_flight.busy()
    world.engine.scheduler.heard(batch.lane)
    world.settle()
    assert world.told() == [("c", "loaded")]


def test_a_module_that_crashed_is_not_given_to_the_kernel_again(world: World) -> None:
    """Its name stays `coming`, and a second load blocks for ever."""
    world.kernel.oops.add("c.ko")
    world.plug("pci:v2")
    world.engine.advance()
    (world.root / "proc/modules").write_text("c 1 1 - Loading 0x0\n")
    world.settle()
    world.plug("pci:v2", "another")
    world.settle()
    assert loads(world) == ["c.ko"]
    message = [record.message for record in world.journal.records][1]
    assert message.startswith("c for another crashed in the kernel before, and is not tried again until")


# -- answers that are no longer true ----------------------------------------------------------------------------------


def test_what_an_operators_parameter_caused_does_not_keep_devices_from_it(world: World) -> None:
    world.kernel.refuse["c.ko"] = errno.EINVAL
    world.engine.intake.order(Request("c", "operator", params=("bogus=x",)))
    world.settle()
    world.kernel.refuse.clear()
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.told()[-1] == ("c", "loaded")


def test_a_failed_install_command_is_not_a_drivers_last_word(world: World) -> None:
    ready = world.root / "ready"
    world.kernel.refuse["c.ko"] = errno.ENODEV  # so that the played kernel does not have it live
    (world.root / "etc/modprobe.d/x.conf").write_text(f"install c test -e {ready}\n")
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert ("c", "failed") in world.told()
    ready.touch()
    world.kernel.refuse.clear()
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.told() == [("c", "loaded")]


def test_explain_on_the_socket_never_answers_from_an_old_index(
    world: World, control: ControlSocket, callers: ControlHandler
) -> None:
    world.index(["c.ko:"], ["alias pci:v7* c"])
    caller = Caller(control)
    send(caller, callers, "Explain", request="pci:v7")
    assert [step["module"] for step in caller.answers()[0]["parameters"]["plan"]["steps"]] == ["c"]


# -- callers that mean no good ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("Settle", {"timeout_usec": 10**400}),
        ("Settle", {"timeout_usec": -1}),
        ("Explain", {"request": "symbol:\ud800"}),
        ("Explain", {"request": "x" * 5000}),
        ("Explain", {"request": "a\0b"}),
        ("Explain", {"request": "/etc/shadow"}),
        ("Load", {"request": "\ud800"}),
        ("Load", {"request": "c", "parameters": ["\ud800"]}),
    ],
)
def test_what_cannot_be_meant_is_refused(
    control: ControlSocket, callers: ControlHandler, method: str, parameters: dict[str, Any]
) -> None:
    caller = Caller(control)
    send(caller, callers, method, **parameters)
    assert caller.answers()[0]["error"] == "org.varlink.service.InvalidParameter"


def test_no_room_in_the_backlog_is_an_answer(world: World, control: ControlSocket, callers: ControlHandler) -> None:
    world.engine.intake.turns._limit = 0
    caller = Caller(control)
    send(caller, callers, "Load", request="c")
    assert caller.answers()[0]["error"] == "io.kmodd.Busy"


def test_a_caller_that_says_no_more_still_gets_its_answer(
    world: World, control: ControlSocket, callers: ControlHandler
) -> None:
    caller = Caller(control)
    send(caller, callers, "Load", request="c")
    caller.socket.shutdown(socket.SHUT_WR)
    control.receive(caller.connection)
    for job in world.settle():
        callers.ended(job)
    assert caller.answers()[0]["parameters"]["results"][0]["module"] == "c"
    assert control.connections == []


def test_a_oneway_call_is_done_and_not_answered(world: World, control: ControlSocket, callers: ControlHandler) -> None:
    """varlink.org, Method Call: `oneway`: no reply is sent."""
    caller = Caller(control)
    caller.socket.sendall(b'{"method":"io.kmodd.Load","parameters":{"request":"c"},"oneway":true}\0')
    control.receive(caller.connection)
    callers.listen()
    for job in world.settle():
        callers.ended(job)
    assert loads(world) == ["c.ko"]
    send(caller, callers, "Status")
    assert [sorted(answer) for answer in caller.answers()] == [["parameters"]]


def test_who_asks_much_waits_for_his_answers_and_the_others_get_theirs(
    control: ControlSocket, callers: ControlHandler
) -> None:
    greedy, modest = Caller(control), Caller(control)
    greedy.socket.sendall(b'{"method":"io.kmodd.Status"}\0' * 1000)
    control.receive(greedy.connection)
    send(modest, callers, "Status")
    assert len(greedy.answers()) == 1
    assert len(modest.answers()) == 1


def test_root_gets_in_where_others_hold_all_places(control: ControlSocket) -> None:
    others = [Caller(control) for _ in range(64)]
    for other in others:
        other.connection.uid = 65534
    root = Caller(control)
    assert root.connection in control.connections
    assert len(control.connections) == 64


def test_a_second_daemon_does_not_take_the_socket(control: ControlSocket) -> None:
    with pytest.raises(OSError, match="another kmodd is running"):
        ControlSocket(control.path)
    control.accept()
    assert Path(control.path).exists()


@pytest.mark.parametrize(("words", "result"), [("", "loaded"), ("InstallSignalIsFailure=yes", "failed")])
def test_an_install_command_killed_by_a_signal(world: World, words: str, result: str) -> None:
    """kmod takes it for success; kmodd.conf may say otherwise."""
    (world.root / "etc/kmodd").mkdir()
    (world.root / "etc/kmodd/kmodd.conf").write_text(f"[Kmodd]\n{words}\n")
    (world.root / "etc/modprobe.d/x.conf").write_text("install c kill -TERM $$\n")
    world.engine.reload()
    world.kernel.refuse["c.ko"] = errno.ENODEV  # so that the played kernel does not have it live
    world.plug("pci:v2")
    world.settle()
    assert world.told() == [("c", result)]
