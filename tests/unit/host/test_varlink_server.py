"""The control socket: Varlink frames, limits, credentials (varlink.org, Interface Definition and Method Call)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kmodd.host.varlink_server import (
    MAX_CONNECTIONS,
    MAX_FRAME,
    MAX_OF_USER,
    MAX_OF_USERS,
    MAX_OFFERS,
    ControlSocket,
    ExplainCall,
    LoadCall,
    LogLevelCall,
    LookupCall,
    MethodCall,
    ReloadCall,
    SettleCall,
    StatusCall,
    UnloadCall,
)  # fmt: skip
from tests.varlink_caller import Caller


def test_each_method_becomes_a_call(control: ControlSocket) -> None:
    wishes: dict[str, tuple[dict[str, Any], MethodCall]] = {
        "Status": ({}, StatusCall()),
        "Explain": ({"request": "pci:v1"}, ExplainCall("pci:v1")),
        "Lookup": ({"names": ["pci:v1", "c"]}, LookupCall(("pci:v1", "c"))),
        "Load": ({"request": "dummy", "parameters": ["numdummies=2"]}, LoadCall("dummy", ("numdummies=2",))),
        "Unload": ({"request": "dummy", "go_on": True}, UnloadCall("dummy", False, True)),
        "Settle": ({"timeout_usec": 5}, SettleCall(5)),
        "Reload": ({}, ReloadCall()),
    }
    for method, (parameters, call) in wishes.items():
        caller = Caller(control)
        assert caller.call(f"io.kmodd.{method}", **parameters) == call
        control.answer(caller.connection, {"done": method})
        assert caller.answers() == [{"parameters": {"done": method}}]


def test_optional_parameters_may_be_left_out(control: ControlSocket) -> None:
    assert Caller(control).call("io.kmodd.Load", request="dummy") == LoadCall("dummy", ())
    assert Caller(control).call("io.kmodd.Unload", request="dummy") == UnloadCall("dummy", False, False)
    assert Caller(control).call("io.kmodd.Settle") == SettleCall(None)


@pytest.mark.parametrize(
    ("method", "parameters", "error"),
    [
        ("io.kmodd.Nothing", {}, "org.varlink.service.MethodNotFound"),
        ("io.other.Status", {}, "org.varlink.service.InterfaceNotFound"),
        ("io.kmodd.Explain", {}, "org.varlink.service.InvalidParameter"),
        ("io.kmodd.Explain", {"request": 3}, "org.varlink.service.InvalidParameter"),
        ("io.kmodd.Status", {"more": 1}, "org.varlink.service.InvalidParameter"),
    ],
)
def test_wrong_calls_are_answered_with_the_standard_errors(
    control: ControlSocket, method: str, parameters: dict[str, Any], error: str
) -> None:
    caller = Caller(control)
    assert caller.call(method, **parameters) is None
    assert caller.answers()[0]["error"] == error


def test_a_varlink_client_gets_the_interface_description(control: ControlSocket) -> None:
    caller = Caller(control)
    assert caller.call("org.varlink.service.GetInfo") is None
    assert "io.kmodd" in caller.answers()[0]["parameters"]["interfaces"]
    assert caller.call("org.varlink.service.GetInterfaceDescription", interface="io.kmodd") is None
    assert "method Settle" in caller.answers()[0]["parameters"]["description"]


@pytest.mark.parametrize("level", [None, 0, 7])
def test_root_sets_the_log_level_by_the_interface_of_systemd(control: ControlSocket, level: int | None) -> None:
    assert Caller(control).call("io.systemd.service.SetLogLevel", level=level) == LogLevelCall(level)


def test_others_do_not_set_the_log_level(control: ControlSocket) -> None:
    caller = Caller(control)
    caller.connection.uid = 65534
    assert caller.call("io.systemd.service.SetLogLevel", level=7) is None
    assert caller.answers() == [{"error": "org.varlink.service.PermissionDenied", "parameters": {}}]


@pytest.mark.parametrize("level", [-1, 8, 2**70, "debug", []])
def test_a_log_level_that_is_none_is_refused(control: ControlSocket, level: object) -> None:
    caller = Caller(control)
    assert caller.call("io.systemd.service.SetLogLevel", level=level) is None
    (answer,) = caller.answers()
    assert answer["error"] == "org.varlink.service.InvalidParameter"
    assert answer["parameters"]["parameter"].endswith("level")


def test_a_caller_that_has_gone_leaves_its_place(control: ControlSocket) -> None:
    """Also while its call waits; one that only sends no more still gets its reply."""
    gone, quiet = Caller(control), Caller(control)
    for caller in (gone, quiet):
        assert caller.call("io.kmodd.Settle") == SettleCall(None)
    gone.socket.close()
    quiet.socket.shutdown(socket.SHUT_WR)
    for caller in (gone, quiet):
        control.receive(caller.connection)
    assert control.connections == [quiet.connection]
    control.answer(quiet.connection, {})
    assert quiet.answers() == [{"parameters": {}}]


def test_one_call_after_the_other_on_a_connection(control: ControlSocket) -> None:
    caller = Caller(control)
    first = b'{"method":"io.kmodd.Status"}\0'
    assert caller.send(first * 3) == StatusCall()
    assert control.next_call(caller.connection) is None
    control.answer(caller.connection, {})
    assert control.next_call(caller.connection) == StatusCall()


def test_a_call_may_arrive_in_pieces(control: ControlSocket) -> None:
    caller = Caller(control)
    assert caller.send(b'{"method":"io.kmodd') is None
    assert caller.send(b'.Status"}\0') == StatusCall()


@pytest.mark.parametrize("garbage", [b"nonsense\0", b"[]\0", b"\xff\0", b"3\0", b"x" * (MAX_FRAME + 1)])
def test_garbage_closes_its_connection_only(control: ControlSocket, garbage: bytes) -> None:
    bad, good = Caller(control), Caller(control)
    bad.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        bad.socket.sendall(garbage)
    for _ in range(8):
        if bad.connection in control.connections:
            control.receive(bad.connection)
            assert control.next_call(bad.connection) is None
    assert bad.connection not in control.connections
    assert good.call("io.kmodd.Status") == StatusCall()


@pytest.mark.root
def test_descriptors_of_root_come_with_the_call_and_those_of_others_do_not(control: ControlSocket) -> None:
    frame = b'{"method": "io.kmodd.Load", "parameters": {"request": "dummy", "files": ["/a.ko"]}}\0'
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull, "rb") as file:
        root, other = Caller(control), Caller(control)
        other.connection.uid = 65534
        for caller in (root, other):
            socket.send_fds(caller.socket, [frame], [file.fileno()])
            control.receive(caller.connection)
        call = control.next_call(root.connection)
        assert isinstance(call, LoadCall)
        assert (call.files, len(call.offers)) == (("/a.ko",), 1)
        assert os.path.sameopenfile(call.offers[0], file.fileno())
        os.close(call.offers[0])
        assert control.next_call(other.connection) is None
        assert other.answers()[0]["error"] == "io.kmodd.NotPermitted"
    for caller in (root, other):
        control.drop(caller.connection)
        caller.socket.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_descriptors_without_use_are_closed(control: ControlSocket) -> None:
    """More or fewer than files, with another call, or without end."""
    caller = Caller(control)
    before = len(os.listdir("/proc/self/fd"))
    for method, parameters in (
        ("Load", {"request": "dummy", "files": ["/a.ko", "/b.ko"]}),
        ("Load", {"request": "dummy", "files": []}),
        ("Status", {}),
    ):
        frame = json.dumps({"method": f"io.kmodd.{method}", "parameters": parameters}).encode() + b"\0"
        with open(os.devnull, "rb") as file:
            socket.send_fds(caller.socket, [frame], [file.fileno()])
        control.receive(caller.connection)
        call = control.next_call(caller.connection)
        assert not isinstance(call, LoadCall) or call.offers == ()
        if call:
            control.answer(caller.connection, {})
        caller.answers()
        assert len(os.listdir("/proc/self/fd")) == before
    with open(os.devnull, "rb") as file:
        for _ in range(MAX_OFFERS + 1):
            socket.send_fds(caller.socket, [b"{"], [file.fileno()])
            control.receive(caller.connection)
    assert caller.connection not in control.connections
    assert len(os.listdir("/proc/self/fd")) < before


def test_all_users_may_read_and_root_may_change(control: ControlSocket) -> None:
    """The peer's uid is that of SO_PEERCRED."""
    assert stat.S_IMODE(os.stat(control.path).st_mode) == 0o666
    caller = Caller(control)
    assert caller.connection.uid == os.getuid()
    caller.connection.uid = 65534
    for method, parameters in (("Load", {"request": "dummy"}), ("Reload", {})):
        assert caller.call(f"io.kmodd.{method}", **parameters) is None
        assert caller.answers()[0]["error"] == "io.kmodd.NotPermitted"
    assert caller.call("io.kmodd.Status") == StatusCall()


def test_a_connection_above_the_limit_is_closed(control: ControlSocket) -> None:
    callers = [Caller(control) for _ in range(MAX_CONNECTIONS)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as extra:
        extra.settimeout(30)
        extra.connect(control.path)
        control.accept()
        assert extra.recv(1) == b""
    assert callers[0].call("io.kmodd.Status") == StatusCall()


def test_a_caller_that_reads_nothing_is_disconnected(control: ControlSocket) -> None:
    caller = Caller(control)
    for _ in range(100):
        if caller.connection in control.connections:
            control.answer(caller.connection, {"x": "y" * 100_000})
    assert caller.connection not in control.connections


def test_a_stale_socket_is_replaced_and_removed_at_close(tmp_path: Path) -> None:
    path = str(tmp_path / "io.kmodd")
    first = ControlSocket(path)
    os.link(path, f"{path}.kept")
    first.close()
    os.rename(f"{path}.kept", path)
    second = ControlSocket(path)
    caller = Caller(second)
    assert caller.call("io.kmodd.Status") == StatusCall()
    caller.socket.close()
    second.close()
    assert not os.path.exists(path)


# -- many calls of one user -------------------------------------------------------------------------------------------

STATUS = b'{"method":"io.kmodd.Status"}\0'


def users_caller(control: ControlSocket, uid: int = 65534) -> Caller:
    caller = Caller(control)
    caller.connection.uid = uid
    return caller


@pytest.mark.parametrize("frame", [b"\0" * 1000, STATUS + b"\0", b"[]\0" + STATUS])
def test_an_empty_or_invalid_frame_ends_the_connection(control: ControlSocket, frame: bytes) -> None:
    """Splitting thousands of empty frames took seconds. Control: a valid call before one is taken."""
    caller = Caller(control)
    call = caller.send(frame)
    assert call == (StatusCall() if frame.startswith(STATUS) else None)
    if call:
        control.answer(caller.connection, {})
        assert control.next_call(caller.connection) is None
    assert caller.connection not in control.connections


def test_one_frame_is_taken_at_a_time_in_turn_and_those_of_root_first(control: ControlSocket) -> None:
    one, two, root = users_caller(control), users_caller(control), Caller(control)
    bad = b'{"method":"io.kmodd.Nothing"}\0'
    for caller in (one, two):
        caller.socket.sendall(bad * 3)
        control.receive(caller.connection)
    order = []
    for number in range(7):
        if number == 3:
            root.socket.sendall(bad)
            control.receive(root.connection)
        next_one = control.ready()[0]
        order.append(next_one)
        assert control.next_call(next_one) is None
    first, second = one.connection, two.connection
    assert order == [first, second, first, root.connection, second, first, second]
    assert control.ready() == []


@pytest.mark.parametrize("method", ["Status", "Explain", "Lookup", "Settle"])
def test_a_read_without_a_reply_does_nothing(control: ControlSocket, method: str) -> None:
    """Its cost would have no limit, as no reply has to be read. Control: a Reload is done."""
    caller = Caller(control)
    given: dict[str, dict[str, object]] = {"Explain": {"request": "c"}, "Lookup": {"names": ["c"]}}
    call = {"method": f"io.kmodd.{method}", "parameters": given.get(method, {}), "oneway": True}
    frame = json.dumps(call).encode() + b"\0"
    assert caller.send(frame) is None
    assert caller.connection in control.connections
    assert caller.send(b'{"method": "io.kmodd.Reload", "oneway": true}\0') == ReloadCall()


@pytest.mark.root
def test_users_leave_places_to_each_other_and_to_root() -> None:
    """A user's calls may wait for ever, as Settle does."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o755)
        control = ControlSocket(f"{folder}/io.kmodd")
        stack.callback(control.close)
        for uid in (*[1000] * 20, *[1001] * 20, *range(2000, 2040), *[0] * 20):
            caller = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            os.seteuid(uid)
            try:
                caller.connect(control.path)
            finally:
                os.seteuid(0)
            control.accept()
        uids = [connection.uid for connection in control.connections]
        assert uids.count(1000) == uids.count(1001) == MAX_OF_USER
        assert len(uids) - uids.count(0) == MAX_OF_USERS
        assert len(uids) == MAX_CONNECTIONS
