"""Plain calls of modprobe that come by the kernel's helper, beside the tool that makes them through the same daemon."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmodd.engine.events import SealRequested
from kmodd.host.helper_socket import MAX_CALL, MAX_CALLS, RequestSocket
from kmodd.planning.record import Record
from tests import rootfs
from tests.acting import SCENARIOS, Scenario, run_ours, words_of
from tests.fake_machine import FakeMachine
from tests.rootfs import Said
from tests.running_daemon import Running, daemon_on

Capture = pytest.CaptureFixture[bytes]
Front = Callable[[str], Said | None]


def packed(words: list[str]) -> bytes | None:
    """What the helper sends for a plain `modprobe [-q] [-a] NAME…`; None: it sends nothing."""
    tool, *rest = words
    letters = [word[1:] for word in rest if word in ("-q", "-a")]
    names = [word for word in rest if word not in ("-q", "-a")]
    others = [name for name in names if "=" in name or name.startswith(("-", "/", "./"))]
    if tool != "modprobe" or not names or others or (len(names) > 1 and "a" not in letters):
        return None
    return b"\0" + "".join(letters).encode() + b"".join(b"\0" + os.fsencode(name) for name in names)


def called(path: str, data: bytes) -> Said | None:
    """Send a call as the helper does; return what it writes and its status, or None if the full tool is to do it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as helper:
        helper.settimeout(30)
        helper.connect(path)
        helper.send(data)
        with contextlib.suppress(ConnectionResetError):
            if helper.recv(2) != b"a":
                return None
        err = b""
        while (answer := helper.recv(5000)).startswith(b"e"):
            err += answer[1:]
        return Said(b"", err, int(answer[1:])) if answer in (b"x0", b"x1") else None


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return SCENARIOS[0].build(tmp_path / "root")


@pytest.fixture
def running(machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with daemon_on(machine, monkeypatch, tmp_path) as it:
        yield it


@pytest.fixture
def front(running: Running) -> Front:
    """Makes a plain call by the helper's socket."""

    def call(command: str) -> Said | None:
        data = packed(shlex.split(command))
        assert data
        return called(running.helpers.path, data)

    return call


def steady(record: Record) -> object:
    """A record without durations."""
    fields = [(name, "" if name.endswith("_USEC") else value) for name, value in record.fields]
    return record.message_id, record.priority, re.sub(r"\d+(\.\d+)?(us|ms|s)", "T", record.message), fields


PLAIN = [each for each in SCENARIOS if any(packed(shlex.split(command)) for command in each.commands)]


@pytest.mark.parametrize("scenario", PLAIN, ids=lambda scenario: scenario.name)
def test_words_status_loads_and_records_are_those_of_the_tool(
    scenario: Scenario, tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each plain command by the helper's socket on one machine, and by the tool through the daemon on another."""
    transcripts = []
    for way in ("tool", "front"):
        (tmp_path / way).mkdir()
        machine = scenario.build(tmp_path / way / "root")
        lines: list[object] = []
        with daemon_on(machine, monkeypatch, tmp_path / way) as running:
            for command in scenario.commands:
                words = words_of(command, machine)
                data = packed(words) if way == "front" and "MODPROBE_OPTIONS" not in scenario.env else None
                said = called(running.helpers.path, data) if data else None
                said = said or run_ours(machine, words, scenario.env, capfdbinary)
                lines += [command, said.status, said.out, said.err.replace(bytes(tmp_path / way), b""), *machine.calls]
                machine.calls.clear()
            lines += [*machine.loaded, *map(steady, running.records)]
        transcripts.append(lines)
    assert transcripts[0] == transcripts[1]


def test_the_record_is_that_of_an_operator(front: Front, running: Running) -> None:
    assert front("modprobe loop") == Said(b"", b"", 0)
    (record,) = running.records
    fields = dict(record.fields)
    assert (fields["KMODD_MODULE"], fields["KMODD_SOURCE"], fields["KMODD_RESULT"]) == ("loop", "operator", "loaded")


def test_a_failing_name_in_the_middle_ends_nothing(front: Front, machine: FakeMachine) -> None:
    """-a goes on with the next name, and the status is 1; not found is a WARNING, FATAL for a single name."""
    said = front("modprobe -a loop nosuch dummy")
    directory = f"/lib/modules/{rootfs.RELEASE}"
    assert said == Said(b"", f"modprobe: WARNING: Module nosuch not found in directory {directory}\n".encode(), 1)
    assert machine.loaded == ["dummy", "loop"]
    assert front("modprobe -a loop dummy") == Said(b"", b"", 0)
    said = front("modprobe nosuch")
    assert said == Said(b"", f"modprobe: FATAL: Module nosuch not found in directory {directory}\n".encode(), 1)


def test_quiet_has_no_messages_and_the_same_status(front: Front, machine: FakeMachine) -> None:
    machine.refuse["loop"] = errno.EINVAL
    assert front("modprobe -q nosuch") == Said(b"", b"", 1)
    assert front("modprobe -q loop") == Said(b"", b"", 1)
    assert front("modprobe loop") == Said(b"", b"modprobe: ERROR: could not insert 'loop': Invalid argument\n", 1)
    assert front("modprobe -q -a loop dummy") == Said(b"", b"", 1)
    assert machine.loaded == ["dummy"]


def test_a_seal_refuses_as_for_the_tool(
    front: Front, running: Running, machine: FakeMachine, capfdbinary: Capture
) -> None:
    running.handle(SealRequested(True))
    said = front("modprobe loop")
    assert said is not None
    assert said.status == 1
    assert said == run_ours(machine, ["modprobe", "loop"], {}, capfdbinary)
    assert machine.loaded == []


def configured(machine: FakeMachine, text: str) -> None:
    (machine.root / "etc/modprobe.d/u.conf").write_text(text)


@pytest.mark.parametrize(
    ("config", "command", "is_left"),
    [
        ("install loop /bin/true\n", "modprobe loop", True),
        ("install loop /bin/true\n", "modprobe -a dummy loop", True),
        ("install loop /bin/true\n", "modprobe dummy", False),
        ("softdep dummy pre: loop\ninstall loop /bin/true\n", "modprobe dummy", True),
        ("nonsense\n", "modprobe dummy", True),
        ("", "modprobe dummy", False),
    ],
)
def test_what_needs_the_callers_process_is_left_to_the_full_tool(
    front: Front, machine: FakeMachine, config: str, command: str, is_left: bool
) -> None:
    """Commands of modprobe.d, and lines that kmod complains about."""
    configured(machine, config)
    assert (front(command) is None) == is_left
    assert "loop" not in machine.loaded


def test_a_command_is_left_to_the_tool_whatever_the_policy_says(
    front: Front, running: Running, machine: FakeMachine
) -> None:
    """The tool does not ask the daemon, either: the kernel checks the rights of what the command executes."""
    configured(machine, "install loop /bin/true\n")
    running.handle(SealRequested(True))
    assert front("modprobe loop") is None
    assert front("modprobe dummy") is not None


@pytest.mark.root
def test_another_users_file_is_left_to_the_full_tool(front: Front, machine: FakeMachine) -> None:
    os.chown(next(machine.root.rglob("loop.ko")), 1234, 1234)
    assert front("modprobe loop") is None
    assert front("modprobe dummy") == Said(b"", b"", 0)
    assert machine.loaded == ["dummy"]


def test_a_dry_daemon_leaves_it_to_the_full_tool(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon_on(machine, monkeypatch, tmp_path, dry_run=True) as running:
        assert called(running.helpers.path, b"\0\0loop") is None


def test_a_path_is_left_to_the_full_tool(running: Running) -> None:
    """The helper sends none."""
    for name in (b"/lib/modules/x.ko", b"./x.ko"):
        assert called(running.helpers.path, b"\0\0" + name) is None


# ── the socket ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[RequestSocket]:
    it = RequestSocket(str(tmp_path / "request"))
    yield it
    it.close()


@pytest.fixture
def helpers() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def connect(requests: RequestSocket, helpers: contextlib.ExitStack, data: bytes) -> socket.socket:
    helper = helpers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    helper.settimeout(30)
    helper.connect(requests.path)
    helper.send(data)
    return helper


def test_a_call_is_no_request_of_the_kernel(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    helper = connect(requests, helpers, b"\0aq\0x\0\xffy")
    assert requests.receive() == []
    assert requests.waiting == ()
    call = requests.pop_call()
    assert call
    assert (call.names, call.is_quiet, call.is_all) == (("x", "\udcffy"), True, True)
    assert requests.pop_call() is None
    requests.reply(call, 1, b"words\n" * 2000)
    assert helper.recv(10) == b"a"
    chunks = [helper.recv(5000) for _ in range(4)]
    assert {chunk[:1] for chunk in chunks[:-1]} == {b"e"}
    assert b"".join(chunk[1:] for chunk in chunks[:-1]) == b"words\n" * 2000
    assert (chunks[-1], helper.recv(10)) == (b"x1", b"")
    requests.reply(call, 0, b"")


@pytest.mark.parametrize(
    "data", [b"\0", b"\0\0", b"\0a\0", b"\0a\0x\0", b"\0\0x\0y", b"\0q\0x\0y", b"\0\0" + b"x" * MAX_CALL]
)
def test_an_invalid_call_is_no_call(requests: RequestSocket, helpers: contextlib.ExitStack, data: bytes) -> None:
    """It is answered as an invalid name of the kernel, which the helper does not take for an exit status."""
    helper = connect(requests, helpers, data)
    assert requests.receive() == []
    assert requests.pop_call() is None
    assert (helper.recv(10), helper.recv(10), helper.recv(10)) == (b"a", b"1", b"")


def test_calls_have_a_limit_of_their_own_beside_the_kernels(
    requests: RequestSocket, helpers: contextlib.ExitStack
) -> None:
    for _ in range(MAX_CALLS):
        connect(requests, helpers, b"\0\0x")
    extra = connect(requests, helpers, b"\0\0x")
    kernels = connect(requests, helpers, b"net-pf-9")
    assert [request.name for request in requests.receive()] == ["net-pf-9"]
    assert (kernels.recv(10), extra.recv(10)) == (b"a", b"")
    call = requests.pop_call()
    assert call
    requests.leave(call)
    assert not requests.is_waiting(call)
    connect(requests, helpers, b"\0\0x")
    requests.receive()
    popped = 0
    while requests.pop_call():
        popped += 1
    assert popped == MAX_CALLS


def test_a_helper_that_has_ended_is_forgotten(requests: RequestSocket, helpers: contextlib.ExitStack) -> None:
    helper = connect(requests, helpers, b"\0\0x")
    requests.receive()
    call = requests.pop_call()
    assert call
    assert requests.is_waiting(call)
    helper.close()
    assert requests.receive() == []
    assert not requests.is_waiting(call)
    assert requests.gone() == []
    requests.reply(call, 0, b"")
