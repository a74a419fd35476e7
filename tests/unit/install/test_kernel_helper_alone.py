"""kmodd-request without an answer: it becomes the real modprobe, or refuses under an enforced policy."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmodd.host.helper_socket import RequestSocket
from tests.request_helper import AS_KERNEL, BY_MODPROBE, KINDS, Helper, come

Stack = contextlib.ExitStack
Way = Callable[[str, Stack], None]
"""Prepares a socket without an answering daemon; the stack closes what it opens."""


def _socket(stack: Stack, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    return stack.enter_context(socket.socket(socket.AF_UNIX, kind))


def no_socket(path: str, stack: Stack) -> None:
    Path(path).touch()


def dead(path: str, stack: Stack) -> None:
    _socket(stack).bind(path)


def says(*answers: bytes, hears: bool = True) -> Way:
    """A daemon that reads the name if it `hears`, sends these answers and closes."""

    def way(path: str, stack: Stack) -> None:
        listening = _socket(stack)
        listening.bind(path)
        listening.listen(8)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                if hears:
                    connection.recv(4096)
                for answer in answers:
                    connection.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join, 30)

    return way


WAYS: dict[str, Way] = {
    "absent": lambda path, stack: None,
    "a file is there": no_socket,
    "dead": dead,
    "sends it away": says(hears=False),
    "ends before accepted": says(),
    "ends after accepted": says(b"a"),
    "answers before it accepts": says(b"0"),
    "accepts nonsense": says(b"x", b"0"),
    "accepts with more than a byte": says(b"aa", b"0"),
    "accepts with nothing": says(b"", b"0"),
    "answers nonsense": says(b"a", b"2"),
    "answers a NUL": says(b"a", b"\0"),
    "answers with more than a byte": says(b"a", b"00"),
    "accepts twice": says(b"a", b"a"),
}


@pytest.fixture(params=WAYS)
def no_daemon(request: pytest.FixtureRequest, helper: Helper) -> Iterator[str]:
    """A machine on which the daemon does not answer, in each way."""
    with contextlib.ExitStack() as stack:
        WAYS[request.param](helper.socket, stack)
        yield request.param


OF_THE_LIBRARY = 0b11 << 31
"""Signals 32 and 33 are glibc's own; its posix_spawn, as make uses it, leaves them ignored."""


def test_the_real_modprobe_takes_over(helper: Helper, no_daemon: str) -> None:
    """With the kernel's arguments and surroundings, our mark, and no signal ignored."""
    assert helper.status("-q", "--", "net-pf-9") == BY_MODPROBE
    assert helper.became()[:3] == ["-q", "--", "net-pf-9"]
    *surroundings, ignored = helper.became()[3:]
    assert surroundings == ["gave-up", "/", AS_KERNEL["PATH"]]
    assert int(ignored.removeprefix("SigIgn:\t"), 16) & ~OF_THE_LIBRARY == 0, ignored
    assert helper.log.read_bytes() == b""


def test_a_daemon_that_hangs_up_before_the_name_is_sent(helper: Helper) -> None:
    """strace holds the helper up, so that send(2) fails; a signal that ended it would look like an answer."""
    traced = helper.folder / "traced"
    for seconds in (0.1, 0.5, 2, 8):  # until the daemon's end was closed first
        with contextlib.ExitStack() as stack:
            says(hears=False)(helper.socket, stack)
            strace = ["strace", "-D", "-o", str(traced), "-e", f"inject=sendto:delay_enter={seconds}s"]
            assert helper.status("-q", "--", "net-pf-9", below=strace) == BY_MODPROBE
        Path(helper.socket).unlink()
        if "EPIPE" in traced.read_text():
            return
    pytest.fail(traced.read_text())


@pytest.mark.parametrize("closed", [False, pytest.param(True, marks=pytest.mark.root)])
def test_a_daemon_that_stands_still_is_given_up(helpers: list[Helper], closed: bool) -> None:
    """The first helper waits for the answer, the second for a place in the queue: connect(2) has the same limit."""
    with contextlib.ExitStack() as stack:
        processes = []
        for helper in helpers:
            if closed:
                helper.close()
            listening = _socket(stack)
            listening.bind(helper.socket)
            listening.listen(0)
            processes.append(stack.enter_context(helper.start("-q", "--", "net-pf-9")))
            assert select.select([listening], [], [], 30)[0]
            full = [
                _socket(stack, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK).connect_ex(helper.socket) for _ in "ab"
            ]
            assert full[-1] == errno.EAGAIN
            processes.append(stack.enter_context(helper.start("-q", "--", "net-pf-9")))
        expected = 1 if closed else BY_MODPROBE
        assert [process.wait(30) for process in processes] == [expected] * 2 * len(KINDS)
    for helper in helpers:
        assert bool(helper.became()) != closed
        said = b"<4>kmodd-request: net-pf-9 refused: the daemon does not answer and the policy is enforced\n"
        assert helper.log.read_bytes() == (said if closed else b""), "a log file of a test holds the last record"


@pytest.mark.root
def test_under_an_enforced_policy_the_request_is_refused_and_logged(helper: Helper, no_daemon: str) -> None:
    helper.close()
    assert helper.status("-q", "--", b"fs-x\n<0>evil\x1b[0m\xc2\x9b") == 1
    assert helper.became() == []
    assert helper.log.read_bytes() == (
        b"<4>kmodd-request: fs-x?<0>evil?[0m?? refused: the daemon does not answer and the policy is enforced\n"
    )


@pytest.mark.root
def test_under_an_enforced_policy_the_daemons_answer_counts(helper: Helper, requests: RequestSocket) -> None:
    helper.close()
    with helper.start("-q", "--", "net-pf-9") as process:
        requests.answer(come(requests)[0], True)
        assert process.wait(30) == 0
    assert helper.log.read_bytes() == b""


@pytest.mark.root
def test_a_long_name_is_shown_in_part(helper: Helper) -> None:
    """devkmsg_write refuses a record of more than 1024 bytes."""
    helper.close()
    assert helper.status("-q", "--", "x" * 5000) == 1
    assert helper.log.read_bytes().startswith(b"<4>kmodd-request: " + b"x" * 255 + b" refused: the daemon")


# ── the flag ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_another_user(flag: Path) -> None:
    flag.touch()
    os.chown(flag, 65534, 65534)


def _instead_of_its_folder(flag: Path) -> None:
    flag.parent.rmdir()
    flag.parent.touch()


def _link_to_a_file_of_roots(flag: Path) -> None:
    flag.symlink_to("/etc/passwd")


@pytest.mark.root
@pytest.mark.parametrize(
    ("make", "closes"),
    [
        (Path.touch, True),
        (_instead_of_its_folder, True),  # not to be told: no error may open the way
        (_of_another_user, False),
        (Path.mkdir, False),
        (_link_to_a_file_of_roots, False),
        (lambda flag: None, False),
        (lambda flag: flag.parent.rmdir(), False),
    ],
)
def test_the_flag_is_a_file_of_roots(helper: Helper, make: Callable[[Path], object], closes: bool) -> None:
    make(helper.flag)
    assert helper.status("-q", "--", "net-pf-9") == (1 if closes else BY_MODPROBE)
    assert bool(helper.became()) != closes
    assert bool(helper.log.read_bytes()) == closes


@pytest.mark.root
def test_it_refuses_also_where_the_log_cannot_be_written(helper: Helper) -> None:
    helper.close()
    helper.log.unlink()
    assert helper.status("-q", "--", "net-pf-9") == 1
    assert helper.became() == []
