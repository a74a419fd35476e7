"""The spawner: real processes, made by fork, that outlive the daemon."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import ANY

import pytest

from kmodd.cli import loader as program
from kmodd.errors import Where
from kmodd.host.signals import SignalsBlocked
from kmodd.loader import spawner_process
from kmodd.loader.pool import Died, Loader
from kmodd.loader.protocol import CommandRequest, InsmodRequest, InsmodRunRequest, ProbeRequest
from kmodd.loader.spawner import Spawner
from kmodd.loader.syscalls import LinuxKernel
from kmodd.loader.trusted_paths import Trusted
from kmodd.planning.reply import Reply

WAIT = 30.0
"""Seconds that an answer may take; a hang is a failure, not a wait."""


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[Spawner]:
    (tmp_path / "etc/modprobe.d").mkdir(parents=True)
    it = Spawner.of_ours(Trusted.below(str(tmp_path)))
    yield it
    it.close()
    if not select.select([pidfd := os.pidfd_open(it.pid)], [], [], 1.0)[0]:
        os.kill(it.pid, signal.SIGKILL)  # a test that failed has left a loader
    os.close(pidfd)
    os.waitpid(it.pid, 0)


def lane_of(spawner: Spawner) -> Loader:
    """Start a loader; return the connection after its pid arrived."""
    connection = spawner.connect()
    connection.settimeout(WAIT)
    lane = Loader(connection)
    assert lane.receive() is None
    assert lane.pid
    return lane


def runner_of(spawner: Spawner) -> Loader:
    """Start a command runner; return the connection after its pid arrived."""
    connection = spawner.connect_runner()
    connection.settimeout(WAIT)
    runner = Loader(connection)
    assert runner.receive() is None
    assert runner.pid
    return runner


def do(lane: Loader, call: InsmodRunRequest | ProbeRequest | CommandRequest) -> Reply | Died | None:
    assert lane.start(call)
    return lane.receive()


def command(root: Path, text: str) -> CommandRequest:
    """An install command on a line of its own file."""
    path = root / "etc/modprobe.d/a.conf"
    path.write_text(f"install foo {text}\n")
    return CommandRequest("install", "foo", Where("/etc/modprobe.d/a.conf", 1), str(path))


def probe(root: Path) -> ProbeRequest:
    """A step that succeeds; it waits for a reader if its file is a pipe."""
    path = root / "sys/bus/pci/drivers_probe"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()
    return ProbeRequest("pci", "0000:00:1f.2")


def about(pid: int) -> dict[str, str]:
    """Fields of /proc/PID/status."""
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def unblocked(pid: int) -> list[int]:
    """The signals that a process does not block."""
    blocked = int(about(pid)["SigBlk"], 16)
    return [number for number in signal.valid_signals() if not blocked >> number - 1 & 1]


def gone(pid: int) -> bool:
    """Wait until a process that need not be our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(fd) as file:
        return bool(select.select([file], [], [], WAIT)[0])


def ended(spawner: Spawner) -> bool:
    """Wait until the spawner's connection ends."""
    return bool(select.select([spawner], [], [], WAIT)[0])


def test_loaders_are_made_by_fork_and_serve(spawner: Spawner, tmp_path: Path) -> None:
    one, other = lane_of(spawner), lane_of(spawner)
    assert one.pid != other.pid
    for lane in (one, other):
        assert about(lane.pid)["Name"] == "kmodd-loader"
        assert int(about(lane.pid)["PPid"]) == spawner.pid
        assert do(lane, probe(tmp_path)) == Reply(0, "kernel", ANY)
    assert about(spawner.pid)["Name"] == "kmodd-spawner"
    assert os.getsid(spawner.pid) == spawner.pid, "a Ctrl-C for the daemon would reach it"
    one.close()
    other.close()


def test_loaders_trust_the_paths_of_their_spawner(spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"\x7fELF")
    lane = lane_of(spawner)
    answer = do(lane, InsmodRunRequest((InsmodRequest(str(tmp_path / "a.ko"), ""),), ("a",)))
    assert isinstance(answer, Reply)
    assert (answer.errno, answer.stage) == (errno.EACCES, "file")
    assert f"is not below {tmp_path}/lib/modules" in answer.detail
    lane.close()


def test_a_loader_holds_no_descriptor_but_its_own_connection(spawner: Spawner) -> None:
    """Else a lane would not end with its connection, nor the spawner with its."""
    lanes = [lane_of(spawner) for _ in range(3)]
    for lane in lanes:
        held = [os.readlink(f"/proc/{lane.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{lane.pid}/fd")]
        # Files and pipes may be inherited from the parent of the tests.
        assert [kind for name in held if (kind := name.partition(":")[0]) in ("socket", "anon_inode")] == ["socket"]
    for lane in lanes:
        lane.close()
        assert gone(lane.pid)


def test_a_command_that_signals_its_group_reaches_no_other_loader(spawner: Spawner, tmp_path: Path) -> None:
    lane, other = runner_of(spawner), lane_of(spawner)
    assert about(lane.pid)["Name"] == "kmodd-command"
    answer = do(lane, command(tmp_path, "trap '' TERM; kill 0"))
    assert isinstance(answer, Reply)
    assert answer.errno == 0
    assert do(other, probe(tmp_path)) == Reply(0, "kernel", ANY)
    lane.close()
    other.close()


def descriptors(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{at_rest(pid)}/fd")]


def at_rest(pid: int) -> int:
    """Wait until this process has done all that it was asked for, and sleeps: a new loader speaks before the spawner
    has let go of what it was passed."""
    deadline = time.monotonic() + WAIT
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "S":
        assert time.monotonic() < deadline
        os.sched_yield()
    return pid


def connection_of(spawner: Spawner) -> socket.socket:
    """The daemon's end of the connection, once more."""
    return socket.socket(fileno=os.dup(spawner.fileno()))


def leave_free(pid: int, count: int) -> None:
    """Limit a process to `count` further descriptors."""
    numbers = (number for number in range(1000) if number not in descriptors(pid))
    limit = next(itertools.islice(numbers, count, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, 1000))


def test_too_many_descriptors_in_a_message_are_not_kept(spawner: Spawner) -> None:
    lane = lane_of(spawner)
    held = len(descriptors(spawner.pid))
    for _ in range(3):
        ours, theirs = socket.socketpair()
        with ours, theirs, connection_of(spawner) as connection:
            socket.send_fds(connection, [b"x"], [theirs.fileno(), theirs.fileno()])
    other = lane_of(spawner)
    assert len(descriptors(spawner.pid)) == held + 1, "the one that tells the end of the other loader"
    lane.close()
    other.close()


def test_a_spawner_without_free_descriptors_continues(spawner: Spawner) -> None:
    """Room for the passed descriptor, not for the pidfd: the loader is reaped all the same."""
    first = lane_of(spawner)
    held = len(descriptors(spawner.pid))
    leave_free(spawner.pid, 1)
    lanes = [lane_of(spawner) for _ in range(2)]
    assert len(descriptors(spawner.pid)) == held
    leave_free(spawner.pid, 0)
    lanes.append(Loader(spawner.connect()))
    assert lanes[-1].receive() == Died(), "not even for that: the connection ends"
    leave_free(spawner.pid, 3)
    for lane in lanes:
        lane.close()
    deadline = time.monotonic() + WAIT
    while any(os.path.exists(f"/proc/{lane.pid}") for lane in lanes if lane.pid):
        assert time.monotonic() < deadline, "it was not reaped"
        time.sleep(0.1)
    first.close()


def test_loaders_that_have_ended_are_reaped(spawner: Spawner) -> None:
    """A zombie would keep its pid, and /proc/PID with it."""
    pids = []
    for _ in range(5):
        lane = lane_of(spawner)
        pids.append(lane.pid)
        os.kill(lane.pid, signal.SIGKILL)
        assert lane.receive() == Died()
        lane.close()
    last = lane_of(spawner)  # asked for after the last of them has ended
    deadline = time.monotonic() + WAIT
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        os.sched_yield()
    last.close()


def test_a_stop_signal_ends_an_idle_loader_and_not_the_spawner(spawner: Spawner) -> None:
    lane = lane_of(spawner)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(spawner.pid, number)
    other = lane_of(spawner)
    os.kill(lane.pid, signal.SIGTERM)
    assert lane.receive() == Died()
    lane.close()
    other.close()


def test_a_loader_at_work_outlives_the_spawner_and_every_signal_but_kill(spawner: Spawner, tmp_path: Path) -> None:
    lane = lane_of(spawner)
    call = probe(tmp_path)
    pipe = tmp_path / "sys/bus/pci/drivers_probe"
    pipe.unlink()
    os.mkfifo(pipe)
    assert lane.start(call)
    deadline = time.monotonic() + WAIT
    while unblocked(lane.pid) != [signal.SIGKILL, signal.SIGSTOP]:
        assert time.monotonic() < deadline
        os.sched_yield()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(lane.pid, number)
    os.kill(spawner.pid, signal.SIGKILL)
    assert ended(spawner)
    assert pipe.read_text() == call.device
    answer = lane.receive()
    assert isinstance(answer, Reply)
    assert answer.errno == 0
    assert gone(lane.pid), "what waited counts when the step is over"
    lane.close()


def test_a_command_outlives_the_daemon_the_spawner_and_stop_signals(spawner: Spawner, tmp_path: Path) -> None:
    """Those reach all processes of the daemon where no unit separates them; the command itself can be terminated."""
    lane = runner_of(spawner)
    os.mkfifo(tmp_path / "begun")
    os.mkfifo(tmp_path / "go")
    text = f"echo $$ $PPID >{tmp_path}/begun; read line <{tmp_path}/go; echo $line >{tmp_path}/told"
    assert lane.start(command(tmp_path, text))
    shell, runner = map(int, (tmp_path / "begun").read_text().split())
    assert runner == lane.pid
    assert unblocked(runner) == [signal.SIGKILL, signal.SIGSTOP]
    assert signal.SIGTERM in unblocked(shell)
    assert os.getsid(shell) == runner
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(runner, number)
    os.kill(spawner.pid, signal.SIGKILL)
    lane.close()
    (tmp_path / "go").write_text("on\n")
    assert gone(runner)
    assert (tmp_path / "told").read_text() == "on\n"


def test_a_spawner_of_systemd_runs_no_commands(tmp_path: Path) -> None:
    """It is in a sandbox, and kmodd-command.socket has a runner that is not."""
    for blocked, answers in ((SignalsBlocked(), True), (None, False)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            try:
                ours.close()
                spawner_process.run(theirs.detach(), LinuxKernel(), Trusted.below(str(tmp_path)), blocked)
            finally:
                os._exit(0)
        theirs.close()
        connection = Spawner(ours).connect_runner()
        connection.settimeout(WAIT)
        assert bool(connection.recv(64)) == answers
        connection.close()
        ours.close()
        os.waitpid(pid, 0)


def test_loaders_end_with_their_connections_and_it_with_its_own_and_the_last_of_them(
    spawner: Spawner, tmp_path: Path
) -> None:
    """Under systemd it is the main process of a unit, which lasts as long as any of them."""
    lane, other = lane_of(spawner), lane_of(spawner)
    spawner.close()
    other.close()
    assert gone(other.pid)
    assert do(lane, ProbeRequest("usb", "1-1")) == Reply(errno.ENOENT, "kernel", ANY)
    assert os.path.exists(f"/proc/{spawner.pid}/exe"), "it has not ended"
    lane.close()
    assert gone(lane.pid)
    assert gone(spawner.pid)


def test_a_dead_spawner_is_noticed(spawner: Spawner) -> None:
    assert not select.select([spawner], [], [], 0)[0]
    os.kill(spawner.pid, signal.SIGKILL)
    assert ended(spawner)
    with pytest.raises(OSError, match=os.strerror(errno.EPIPE)):
        spawner.connect()


def test_asking_never_waits(spawner: Spawner) -> None:
    """A spawner that does not answer leaves an error, not a daemon that hangs."""
    with connection_of(spawner) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    os.kill(spawner.pid, signal.SIGSTOP)
    asked: list[socket.socket] = []
    refused = None
    while refused is None and len(asked) < 1000:
        try:
            asked.append(spawner.connect())
        except BlockingIOError as error:
            refused = error
    assert refused
    for each in asked:
        each.close()
    os.kill(spawner.pid, signal.SIGCONT)
    assert select.select([], [spawner], [], WAIT)[1]
    lane_of(spawner).close()


def test_an_invalid_message_changes_nothing(spawner: Spawner) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, connection_of(spawner) as connection:
            connection.send(b"loader")  # without a descriptor
            for message in (b"x", b"stack", b"stack 1", b"stack ../1", b"stack -1", b"stack \xff", b"stack 1 1"):
                socket.send_fds(connection, [message], [theirs.fileno()])
        ours.settimeout(WAIT)
        assert ours.recv(100) == b"", "the only answer is the end"
    lane_of(spawner).close()


@pytest.mark.parametrize(
    "argv", [["--fd"], ["--fd", "x"], ["--fd", "-1"], ["--what", "3"], ["--fd", "3", "--tree"], []]
)
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(argv) == 2
    assert "usage: kmodd loader [--fd N]" in capsys.readouterr().err
