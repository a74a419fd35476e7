"""The daemon's side of the kernel's requests: `RequestSocket`."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.host.helper_socket import MAX_CONNECTIONS, MAX_NAME, KernelRequest, RequestSocket, is_helper_set


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[RequestSocket]:
    it = RequestSocket(str(tmp_path / "request"))
    yield it
    it.close()


@pytest.fixture
def helpers() -> Iterator[contextlib.ExitStack]:
    """Closes the sockets of a test."""
    with contextlib.ExitStack() as stack:
        yield stack


def connect(requests: RequestSocket, helpers: contextlib.ExitStack, name: bytes | None = None) -> socket.socket:
    """Connect as a helper; send its name if given."""
    helper = helpers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    helper.settimeout(30)
    helper.connect(requests.path)
    if name is not None:
        helper.send(name)
    return helper


def waiting(requests: RequestSocket) -> list[KernelRequest]:
    """Requests that wait for an answer."""
    return list(requests.waiting)


def is_awake(requests: RequestSocket) -> bool:
    """Whether the daemon's loop would be woken."""
    return bool(select.select([requests], [], [], 0)[0])


def test_a_name_is_accepted_at_once_and_answered_later(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    before = time.monotonic_ns()
    assert not is_awake(requests)
    helper = connect(requests, helpers, b"net-pf-9")
    assert is_awake(requests)
    (request,) = requests.receive()
    assert (request.name, request.helper_pid) == ("net-pf-9", os.getpid())
    assert before <= request.arrived_ns <= time.monotonic_ns()
    assert helper.recv(10) == b"a"
    assert waiting(requests) == [request]
    assert not is_awake(requests)
    assert requests.receive() == []
    requests.answer(request, True)
    assert helper.recv(10) == b"0"
    assert helper.recv(10) == b""
    assert waiting(requests) == []
    assert requests.gone() == []


def test_not_found_is_one(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    helper = connect(requests, helpers, b"nothing")
    requests.answer(requests.receive()[0], False)
    assert (helper.recv(10), helper.recv(10)) == (b"a", b"1")


def test_a_request_that_is_turned_away_gets_no_answer(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    """It does without the daemon then; after that there is nothing to answer."""
    helper = connect(requests, helpers, b"net-pf-9")
    (request,) = requests.receive()
    requests.turn_away(request)
    requests.turn_away(request)
    requests.answer(request, True)
    assert (helper.recv(10), helper.recv(10)) == (b"a", b"")
    assert waiting(requests) == []
    assert requests.gone() == []


def test_a_name_may_arrive_after_its_connection(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    helper = connect(requests, helpers)
    assert requests.receive() == []
    assert not is_awake(requests)
    helper.send(b"late")
    assert is_awake(requests)
    assert [request.name for request in requests.receive()] == ["late"]


def test_a_new_connection_gets_a_moment_for_its_name(
    requests: RequestSocket, helpers: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is sent while the daemon waits for it in one call."""
    monkeypatch.setattr("kmodd.host.helper_socket.NAME_TIMEOUT", 20)
    helper = connect(requests, helpers)
    later = threading.Timer(0.1, lambda: helper.send(b"net-pf-9"))
    later.start()
    assert [request.name for request in requests.receive()] == ["net-pf-9"]
    later.join()


def test_an_older_silent_connection_delays_no_other(
    requests: RequestSocket, helpers: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(requests, helpers)
    assert requests.receive() == []
    monkeypatch.setattr("kmodd.host.helper_socket.NAME_TIMEOUT", float("nan"))  # select would raise
    connect(requests, helpers, b"net-pf-9")
    assert [request.name for request in requests.receive()] == ["net-pf-9"]


def test_any_byte_may_stand_in_a_name(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    for name in (b"fs-\xff\n", "fs-\u00e4".encode(), b"x" * MAX_NAME):
        connect(requests, helpers, name)
        assert os.fsencode(requests.receive()[0].name) == name


@pytest.mark.parametrize("name", [b"x" * (MAX_NAME + 1), b"x" * 5000, b"a\0b", b"\0"])
def test_an_invalid_name_is_answered_at_once(
    requests: RequestSocket, helpers: contextlib.ExitStack, name: bytes
) -> None:
    helper = connect(requests, helpers, name)
    assert requests.receive() == []
    assert (helper.recv(10), helper.recv(10), helper.recv(10)) == (b"a", b"1", b"")
    assert waiting(requests) == []


def test_a_helper_that_exits_is_reported_once(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    stays, goes = connect(requests, helpers, b"stays"), connect(requests, helpers, b"goes")
    staying, going = requests.receive()
    goes.close()
    assert is_awake(requests)
    assert requests.receive() == []
    assert requests.gone() == [going]
    assert requests.gone() == []
    assert waiting(requests) == [staying]
    assert not is_awake(requests)
    requests.answer(going, True)  # the helper has exited: nothing happens
    requests.answer(staying, True)
    assert (stays.recv(10), stays.recv(10)) == (b"a", b"0")


def test_answers_to_a_helper_that_exited_are_dropped(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    helper = connect(requests, helpers, b"goes")
    (request,) = requests.receive()
    helper.close()
    requests.answer(request, True)
    requests.answer(request, True)
    assert waiting(requests) == []
    assert not is_awake(requests)


def test_a_helper_that_exits_before_it_is_read_is_ignored(
    requests: RequestSocket, helpers: contextlib.ExitStack
) -> None:
    connect(requests, helpers).close()
    connect(requests, helpers, b"named").close()
    assert requests.receive() == []
    assert requests.gone() == []
    assert not is_awake(requests)


def test_a_new_helper_gets_the_number_of_one_that_went(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    """Descriptors are reused at once: the new connection must not get the state of the old one."""
    first = connect(requests, helpers, b"first")
    requests.receive()
    first.close()
    connect(requests, helpers, b"second")
    assert [request.name for request in requests.receive()] == ["second"]
    assert [request.name for request in requests.gone()] == ["first"]
    assert [request.name for request in requests.waiting] == ["second"]
    assert not is_awake(requests)


def test_a_connection_above_the_limit_is_closed_at_once(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    silent = [connect(requests, helpers) for _ in range(MAX_CONNECTIONS - 1)]
    assert requests.receive() == []
    last = connect(requests, helpers, b"last")
    assert len(requests.receive()) == 1
    extra = connect(requests, helpers, b"extra")
    assert requests.receive() == []
    with contextlib.suppress(ConnectionResetError):  # its name was not even read
        assert extra.recv(10) == b""
    requests.answer(requests.waiting[0], True)
    assert (last.recv(10), last.recv(10)) == (b"a", b"0")
    connect(requests, helpers, b"now there is room")
    assert len(requests.receive()) == 1
    silent[0].send(b"and the silent may still speak")
    assert len(requests.receive()) == 1


def test_as_many_as_may_connect_at_once_are_let_in(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    """The queue holds them all: none has to wait in connect(2)."""
    names = [f"name{number}" for number in range(MAX_CONNECTIONS)]
    for name in names:
        connect(requests, helpers, name.encode())
    came: list[KernelRequest] = []
    while is_awake(requests):
        came += requests.receive()
    assert [request.name for request in came] == names


def test_each_gets_its_own_answer(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    connected = {f"{number}": connect(requests, helpers, f"{number}".encode()) for number in range(50)}
    came = requests.receive()
    for request in reversed(came):
        requests.answer(request, int(request.name) % 3 == 0)
    for name, helper in connected.items():
        assert (helper.recv(10), helper.recv(10)) == (b"a", b"0" if int(name) % 3 == 0 else b"1")


# ── listening ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_root_may_connect(requests: RequestSocket) -> None:
    assert stat.S_IMODE(os.stat(requests.path).st_mode) == 0o600
    assert not os.path.exists(f"{requests.path}.new")


@pytest.mark.root
@pytest.mark.parametrize(("uid", "heard"), [(0, 1), (65534, 0)])
def test_other_users_are_refused_even_if_the_socket_is_open(uid: int, heard: int) -> None:
    client = "import socket, sys; s = socket.socket(1, 5); s.connect(sys.argv[1]); s.send(b'name'); print(s.recv(9))"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        requests = RequestSocket(f"{folder}/request")
        os.chmod(requests.path, 0o666)
        command = ["/usr/bin/python3", "-IS", "-c", client, requests.path]
        with subprocess.Popen(command, user=uid, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            came: list[KernelRequest] = []
            said: list[Any] = [requests, process.stdout]
            while not came and requests in select.select(said, [], [], 30)[0]:
                came += requests.receive()
            out, _ = process.communicate(timeout=30)
        assert len(came) == heard
        assert (out == b"b'a'\n") == bool(heard), out
        requests.close()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "request")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(path)
    (tmp_path / "request.new").touch()
    requests = RequestSocket(path)
    with contextlib.ExitStack() as helpers:
        connect(requests, helpers, b"name")
        assert len(requests.receive()) == 1
    requests.close()
    assert not os.path.exists(path)


def test_two_do_not_serve_one_socket(requests: RequestSocket) -> None:
    with pytest.raises(OSError, match="another kmodd") as caught:
        RequestSocket(requests.path)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_daemon_that_stands_still_blocks_nothing(tmp_path: Path, helpers: contextlib.ExitStack) -> None:
    """Its queue is full: connect(2) would wait. It runs all the same, so its socket is not replaced."""
    path = str(tmp_path / "request")
    listening = helpers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    listening.bind(path)
    listening.listen(0)
    helpers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)).connect(path)
    with pytest.raises(OSError, match="another kmodd"):
        RequestSocket(path)


def test_close_disconnects_all_and_keeps_a_successors_socket(
    requests: RequestSocket, helpers: contextlib.ExitStack
) -> None:
    silent, named = connect(requests, helpers), connect(requests, helpers, b"name")
    requests.receive()
    os.unlink(requests.path)
    successor = RequestSocket(requests.path)
    requests.close()
    assert os.path.exists(successor.path)
    assert silent.recv(10) == b""
    assert (named.recv(10), named.recv(10)) == (b"a", b"")
    successor.close()
    assert not os.path.exists(successor.path)


def test_no_call_blocks(requests: RequestSocket) -> None:
    """Without a connection each call returns: a thread that called them all ends."""

    def calls() -> None:
        requests.receive()
        requests.gone()

    thread = threading.Thread(target=calls, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_a_request_costs_few_system_calls(tmp_path: Path) -> None:
    """accept and its EAGAIN, one look at who speaks, one name, two datagrams (the third is the helper's)."""
    code = (
        "import socket, sys; from kmodd.host.helper_socket import RequestSocket\n"
        "requests = RequestSocket(sys.argv[1])\n"
        "for _ in range(9):\n"
        "    with socket.socket(1, 5) as helper:\n"
        "        helper.connect(sys.argv[1]); helper.send(b'name')\n"
        "        requests.answer(requests.receive()[0], True)\n"
    )
    log = tmp_path / "log"
    command = ["strace", "-c", "-o", str(log), sys.executable, "-c", code, str(tmp_path / "request")]
    subprocess.run(command, check=True, timeout=50)
    counts = {line.split()[-1]: int(line.split()[3]) for line in log.read_text().splitlines()[2:-2]}
    assert counts["accept4"] == 18
    assert counts["sendto"] == 27
    assert counts["recvfrom"] == 9
    assert counts["epoll_wait"] == 9
    assert counts["epoll_ctl"] == 10


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("helper", True), ("modprobe", True), ("other", False), ("missing", False), ("", False), ("a\0b", False)],
)
def test_the_kernel_executes_the_helper_under_each_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, expected: bool
) -> None:
    """The package makes /sbin/modprobe a hard link to it, and kernel.modprobe is not changed."""
    for name in ("helper", "other"):
        (tmp_path / name).write_text(name)
    (tmp_path / "modprobe").hardlink_to(tmp_path / "helper")
    (tmp_path / "setting").write_text(f"{tmp_path / setting if setting else ''}\n")
    monkeypatch.setattr("kmodd.host.helper_socket.HELPER", str(tmp_path / "helper"))
    monkeypatch.setattr("kmodd.host.helper_socket.SETTING", str(tmp_path / "setting"))
    assert is_helper_set() is expected
