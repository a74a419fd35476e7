"""Asking for a loader's kernel stack: the script behind the socket, the spawner, and the question itself."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from kmodd.loader import pool
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.pool import Loader, LoaderPool
from kmodd.loader.spawner import Spawner
from kmodd.loader.trusted_paths import Trusted

SCRIPT = Path(__file__).parents[3] / "systemd/stack"
WAIT = 30.0
"""Seconds that an answer may take; a hang is a failure, not a wait."""


def whole(question: StackQuestion) -> tuple[str, ...]:
    """Wait until the answer is all there."""
    while (answer := question.answer()) is None:
        assert select.select([question], [], [], WAIT)[0]
    question.close()
    return answer


# ── the script ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with a loader, 12, and another process, 13."""
    for pid, comm in (("12", "kmodd-loader"), ("13", "bash")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{comm}\n")
        (tmp_path / pid / "stack").write_text("[<0>] msleep+0x2d/0x40\n[<0>] slow_init+0x25/0x1000 [kt_slow]\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/comm").write_text("kmodd-loader\n")
    (tmp_path / "secret/stack").write_text("secret\n")
    return tmp_path


def script(proc: Path, told: bytes) -> tuple[int, bytes]:
    """Status and output."""
    done = subprocess.run(
        [SCRIPT], input=told, stdout=subprocess.PIPE, env={"KMODD_PROC": str(proc)}, timeout=WAIT
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_script_prints_the_stack_of_a_loader(proc: Path) -> None:
    status, out = script(proc, b"12\n")
    assert (status, out.splitlines()[0]) == (0, b"[<0>] msleep+0x2d/0x40")


@pytest.mark.parametrize("told", [b"13\n", b"14\n", b"\n", b""])
def test_the_script_refuses_other_processes(proc: Path, told: bytes) -> None:
    assert script(proc, told) == (0, b"")


@pytest.mark.parametrize("told", [b"secret\n", b"../x/12\n", b"12/../secret\n", b"-1\n", b"1 2\n", b"$(id)\n"])
def test_the_script_takes_numbers_only(proc: Path, told: bytes) -> None:
    assert script(proc, told) == (2, b"")


# ── the question ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """In systemd's place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as it:
        it.bind(str(tmp_path / "stack"))
        it.listen(1)
        it.settimeout(WAIT)
        yield it


def test_an_answer_is_complete_at_its_end(listener: socket.socket, proc: Path) -> None:
    question = StackQuestion(12, None, listener.getsockname())
    assert question.answer() is None, "the question is not accepted yet"
    asked = listener.accept()[0]
    with asked:
        at = asked.fileno()
        subprocess.run([SCRIPT], stdin=at, stdout=at, env={"KMODD_PROC": str(proc)}, timeout=WAIT, check=True)
        assert question.answer() is None, "there may be more"
    assert whole(question) == ("msleep+0x2d/0x40", "slow_init+0x25/0x1000 [kt_slow]")


def test_a_closed_connection_gets_no_answer(listener: socket.socket) -> None:
    question = StackQuestion(12, None, listener.getsockname())
    listener.accept()[0].close()
    assert whole(question) == ()


def test_an_answer_without_end_is_cut(listener: socket.socket) -> None:
    question = StackQuestion(12, None, listener.getsockname())
    asked = listener.accept()[0]
    asked.setblocking(False)
    answer = None
    with asked:
        for _ in range(1000):
            if answer := question.answer():
                break
            select.select([], [asked], [], WAIT)
            asked.send(b"[<0>] x+0/0\n" * 1000)
    assert answer
    assert len(answer) < 7000
    question.close()


def test_a_missing_service_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StackQuestion(1, None, str(tmp_path / "none"))


def test_a_full_socket_is_an_error_and_nothing_waits(listener: socket.socket) -> None:
    """connect(2): EAGAIN where the queue of a non-blocking unix socket is full."""
    asked: list[StackQuestion] = []
    refused = None
    while refused is None and len(asked) < 100:
        try:
            asked.append(StackQuestion(1, None, listener.getsockname()))
        except BlockingIOError as error:
            refused = error
    assert refused
    for each in asked:
        each.close()


# ── the spawner ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    it = Spawner.of_ours(Trusted())
    yield it
    it.close()
    os.kill(it.pid, signal.SIGKILL)  # a test that failed may have left a loader, with which it would stay
    os.waitpid(it.pid, 0)


@pytest.mark.root
def test_the_spawner_prints_the_stack_of_its_own_loaders_alone(spawner: Spawner) -> None:
    connection = spawner.connect()
    connection.settimeout(WAIT)
    lane = Loader(connection)
    assert lane.receive() is None
    deadline = time.monotonic() + WAIT
    while Path(f"/proc/{lane.pid}/stat").read_text().rpartition(") ")[2][0] != "S":  # it waits for a step then
        assert time.monotonic() < deadline
        os.sched_yield()
    try:
        expected = Path(f"/proc/{lane.pid}/stack").read_text()
    except OSError:
        expected = ""  # a kernel without CONFIG_STACKTRACE, a container without CAP_SYS_ADMIN
    frames = whole(StackQuestion(lane.pid, spawner))
    assert len(frames) == len(expected.splitlines())
    if frames:
        assert any("unix" in frame for frame in frames), frames
    for pid in (1, os.getpid(), spawner.pid):
        assert whole(StackQuestion(pid, spawner)) == ()
    os.kill(lane.pid, signal.SIGKILL)
    lane.receive()
    lane.close()


def test_a_dead_spawner_cannot_be_asked(spawner: Spawner) -> None:
    os.kill(spawner.pid, signal.SIGKILL)
    assert select.select([spawner], [], [], WAIT)[0]
    with pytest.raises(BrokenPipeError):
        StackQuestion(1, spawner)


@pytest.mark.parametrize(("pid", "is_asked"), [(0, False), (7, True)])
def test_a_spawner_of_systemds_is_not_asked(pid: int, is_asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sandbox has no CAP_SYS_ADMIN, and there is kmodd-stack@.service."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spawner = Spawner(ours, pid)
    question = Mock()
    monkeypatch.setattr(pool, "StackQuestion", question)
    loaders = LoaderPool(spawner)
    assert loaders.ask_stack(1) is question.return_value
    question.assert_called_once_with(1, spawner if is_asked else None)
    loaders.close()
    theirs.close()
