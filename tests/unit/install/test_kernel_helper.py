"""What the kernel runs in place of modprobe: kmodd-request, compiled both ways and in Python, against real sockets.

It is started as the kernel starts it: with the kernel's environment and without one open file
(kernel/umh.c, call_usermodehelper_exec_async; kernel/module/kmod.c, call_modprobe).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmodd.cli import request as in_python
from kmodd.host.helper_socket import REQUEST_SOCKET, KernelRequest, RequestSocket

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "helper" / "kmodd-request.c"
AS_KERNEL = {"HOME": "/", "TERM": "linux", "PATH": "/sbin:/usr/sbin:/bin:/usr/bin"}
BY_MODPROBE = 7
"""The exit status of our "real" modprobe."""
LIMIT = 1
"""Seconds that a helper waits for "accepted" where no answer comes."""
PATIENCE = 60
"""The same where the test answers."""
KINDS = ("bare", "libc", "python")


@dataclass
class Helper:
    """One kind of kmodd-request, with paths of its own below `folder`."""

    folder: Path
    kind: str
    limit: int = LIMIT

    @property
    def socket(self) -> str:
        return str(self.folder / "request")

    @property
    def flag(self) -> Path:
        return self.folder / "run" / "closed"

    @property
    def log(self) -> Path:
        return self.folder / "kmsg"

    @property
    def modprobes(self) -> tuple[Path, Path]:
        return self.folder / "first-modprobe", self.folder / "modprobe"

    @property
    def command(self) -> list[str]:
        if self.kind != "python":
            return [str(self.folder / f"kmodd-request-{self.limit}")]
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kmodd.cli import request as it\n"
            f"it.SOCKET, it.FLAG, it.KERNEL_LOG = {self.socket!r}, {str(self.flag)!r}, {str(self.log)!r}\n"
            f"it.MODPROBES, it.ACCEPT_LIMIT = {tuple(map(str, self.modprobes))!r}, {self.limit}\n"
            "sys.exit(it.main(sys.argv[1:]))"
        )
        return [sys.executable, "-BISXutf8", "-c", code]

    def build(self) -> None:
        """Compile it as the Makefile does, but with its own paths."""
        if self.kind == "python":
            return
        makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
        lines = re.findall(r"^(HELPER_FLAGS|BARE) = (.*)$", makefile, re.MULTILINE)
        flags = {name: value.split() for name, value in lines}
        paths = {"SOCKET": self.socket, "FLAG": self.flag, "KERNEL_LOG": self.log}
        own = [f'-D{name}="{path}"' for name, path in paths.items()]
        own.append("-DMODPROBES=" + ", ".join(f'"{path}"' for path in self.modprobes))
        bare = flags["BARE"] if self.kind == "bare" else []
        command = ["gcc", *flags["HELPER_FLAGS"], "-Wextra", "-Werror", *bare, *own, str(SOURCE)]
        for self.limit in (PATIENCE, LIMIT):
            subprocess.run([*command, f"-DACCEPT_LIMIT={self.limit}", "-o", *self.command], check=True)

    def reset(self) -> None:
        """As on a machine without kmodd: a modprobe, a kernel log."""
        self.flag.parent.mkdir(exist_ok=True)
        self.log.write_bytes(b"")
        called = self.folder / "called"
        self.modprobe(f'printf "%s\\n" "$@" "$KMODD_REQUEST" "$HOME" "$PATH" >{called}\n'
                      f"grep SigIgn /proc/self/status >>{called}\nexit {BY_MODPROBE}\n")  # fmt: skip

    def modprobe(self, script: str) -> None:
        """From now on this is the real modprobe."""
        path = self.modprobes[1]
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)

    def start(self, *words: bytes | str, below: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Run it as the kernel does, or `below` another program."""
        command = [os.fsencode(word) for word in (*below, *self.command, *words)]
        return subprocess.Popen(command, env=AS_KERNEL, cwd="/", preexec_fn=lambda: os.closerange(0, 3))

    def status(self, *words: bytes | str, below: Sequence[str] = ()) -> int:
        """Run it to its end."""
        with self.start(*words, below=below) as process:
            return process.wait(30)

    def became(self) -> list[str]:
        """The arguments and surroundings of the modprobe that it has become; empty: it has not."""
        called = self.folder / "called"
        return called.read_text(errors="surrogateescape").splitlines() if called.exists() else []

    def close(self) -> None:
        """The policy is enforced."""
        self.flag.touch()

    def clean(self) -> None:
        """Remove what a test left."""
        self.limit = LIMIT
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif not path.name.startswith("kmodd-request-"):
                path.unlink()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Helper]:
    every = {kind: Helper(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    for helper in every.values():
        helper.build()
    return every


@pytest.fixture
def helpers(built: dict[str, Helper]) -> Iterator[list[Helper]]:
    """All kinds, for tests that wait: they wait together."""
    for helper in built.values():
        helper.reset()
    yield list(built.values())
    for helper in built.values():
        helper.clean()


@pytest.fixture(params=KINDS)
def helper(built: dict[str, Helper], request: pytest.FixtureRequest) -> Iterator[Helper]:
    it = built[request.param]
    it.reset()
    yield it
    it.clean()


@pytest.fixture
def requests(helper: Helper) -> Iterator[RequestSocket]:
    """The daemon's end, from which the test answers."""
    helper.limit = PATIENCE
    it = RequestSocket(helper.socket)
    yield it
    it.close()


def come(requests: RequestSocket, count: int = 1) -> list[KernelRequest]:
    """Wait until so many names have come."""
    came: list[KernelRequest] = []
    while len(came) < count:
        assert select.select([requests], [], [], 30)[0], f"only {len(came)} came"
        came += requests.receive()
    return came


# ── answered ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("found", "status"), [(True, 0), (False, 1)])
def test_the_daemons_answer_is_the_exit_status(
    helper: Helper, requests: RequestSocket, found: bool, status: int
) -> None:
    with helper.start("-q", "--", "net-pf-9") as process:
        (request,) = come(requests)
        assert (request.name, request.helper_pid) == ("net-pf-9", process.pid)
        requests.answer(request, found)
        assert process.wait(30) == status
    assert helper.became() == []
    assert helper.log.read_bytes() == b""


def test_a_name_comes_as_it_was_given(helper: Helper, requests: RequestSocket) -> None:
    for name in (b"fs-a\nb\xff ", b"--", b"-q", b"x" * 255, "fs-\u00e4".encode()):
        with helper.start("-q", "--", name) as process:
            (request,) = come(requests)
            assert os.fsencode(request.name) == name
            requests.answer(request, True)
            assert process.wait(30) == 0


def test_once_accepted_it_waits_without_limit(helpers: list[Helper]) -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(RequestSocket(helper.socket))) for helper in helpers]
        processes = [stack.enter_context(helper.start("-q", "--", "slow")) for helper in helpers]
        came = [come(requests)[0] for requests in sockets]
        with pytest.raises(subprocess.TimeoutExpired):
            processes[-1].wait(LIMIT + 0.5)
        assert [process.poll() for process in processes] == [None] * len(KINDS)
        for requests, request in zip(sockets, came, strict=True):
            requests.answer(request, True)
        assert [process.wait(30) for process in processes] == [0] * len(KINDS)
    assert [helper.became() for helper in helpers] == [[]] * len(KINDS)


def test_a_stop_of_the_helper_changes_nothing(helper: Helper, requests: RequestSocket) -> None:
    """signal(7): a stop ends a wait that has a time limit in EINTR, and it has one until it is accepted."""
    with helper.start("-q", "--", "stopped") as process:
        assert select.select([requests], [], [], 30)[0]
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()  # it has connected, and after that only recv(2) sleeps
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        process.send_signal(signal.SIGCONT)
        os.waitid(os.P_PID, process.pid, os.WCONTINUED)
        requests.answer(come(requests)[0], True)
        assert process.wait(30) == 0
    assert helper.became() == []


def test_many_at_once_each_get_their_own_answer(helper: Helper, requests: RequestSocket) -> None:
    count = 200 if helper.kind != "python" else 20
    with contextlib.ExitStack() as stack:
        came: list[KernelRequest] = []
        processes = []
        for number in range(count):
            processes.append(stack.enter_context(helper.start("-q", "--", f"name{number}")))
            came += requests.receive()
        came += come(requests, count - len(came))
        assert len(requests.waiting) == count
        for request in reversed(came):
            requests.answer(request, int(request.name.removeprefix("name")) % 2 == 0)
        assert [process.wait(30) for process in processes] == [number % 2 for number in range(count)]
    assert helper.became() == []


def test_a_helper_that_is_killed_is_noticed(helper: Helper, requests: RequestSocket) -> None:
    with helper.start("-q", "--", "killed") as process:
        (request,) = come(requests)
        process.kill()
        assert select.select([requests], [], [], 30)[0]
        assert requests.receive() == []
        assert requests.gone() == [request]
        assert requests.waiting == ()


# ── not answered ───────────────────────────────────────────────────────────────────────────────────────────────────


Stack = contextlib.ExitStack
Way = Callable[[str, Stack], None]
"""Makes the socket's path such that the daemon does not answer; what it opens is closed with the stack."""


def _socket(stack: Stack, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    return stack.enter_context(socket.socket(socket.AF_UNIX, kind))


def no_socket(path: str, stack: Stack) -> None:
    Path(path).touch()


def dead(path: str, stack: Stack) -> None:
    _socket(stack).bind(path)


def says(*answers: bytes, hears: bool = True) -> Way:
    """Reads the name, or does not, says this and closes."""

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
"""Signals 32 and 33 are glibc's own; whoever was started by its posix_spawn, as make starts us, has them ignored."""


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
            strace = ["strace", "-o", str(traced), "-e", f"inject=sendto:delay_enter={seconds}s"]
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
def test_under_an_enforced_policy_it_refuses_and_says_so(helper: Helper, no_daemon: str) -> None:
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


# ── the flag ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_somebody_else(flag: Path) -> None:
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
        (_of_somebody_else, False),
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


# ── other calls, and modprobe ──────────────────────────────────────────────────────────────────────────────────────

OTHER_CALLS = [["-q", "dummy"], ["-r", "--", "dummy"], ["-q", "--", "a", "b"], ["-q", "--", ""], ["-q", "-a", "x"], []]


@pytest.mark.parametrize("words", OTHER_CALLS, ids=str)
def test_what_is_no_call_of_the_kernels_goes_to_modprobe_as_it_is(
    helper: Helper, requests: RequestSocket, words: list[str]
) -> None:
    assert helper.status(*words) == BY_MODPROBE
    assert helper.became()[: len(words) + 1] == [*words, "gave-up"]
    assert not select.select([requests], [], [], 0)[0], "the daemon was not troubled"


@pytest.mark.root
@pytest.mark.parametrize("words", OTHER_CALLS, ids=str)
def test_nor_is_it_a_way_round_the_policy(helper: Helper, words: list[str]) -> None:
    helper.close()
    assert helper.status(*words) == 1
    assert helper.became() == []
    assert helper.log.read_text().endswith(" refused: this is no call of the kernel's and the policy is enforced\n")


def test_the_first_modprobe_that_can_be_executed_is_taken(helper: Helper) -> None:
    first, second = helper.modprobes
    first.write_text("#!/bin/sh\nexit 8\n")
    assert helper.status("-q", "--", "net-pf-9") == BY_MODPROBE  # not executable
    first.chmod(0o755)
    assert helper.status("-q", "--", "net-pf-9") == 8
    first.unlink()
    second.unlink()
    assert helper.status("-q", "--", "net-pf-9") == 1


def test_it_does_not_go_round_where_modprobe_leads_back_to_it(helper: Helper) -> None:
    helper.modprobe(f'echo >>{helper.folder}/rounds\nexec {shlex.join(helper.command)} "$@"\n')
    assert helper.status("-q", "--", "net-pf-9") == 1
    assert (helper.folder / "rounds").read_text() == "\n"


# ── what belongs together ──────────────────────────────────────────────────────────────────────────────────────────


def test_all_of_them_use_the_same_paths() -> None:
    source = SOURCE.read_text()
    defined = dict(re.findall(r"^#define (\w+) (.*?)(?: +/\*.*)?$", source, re.MULTILINE))
    assert defined["SOCKET"] == f'"{in_python.SOCKET}"' == f'"{REQUEST_SOCKET}"'
    assert defined["FLAG"] == f'"{in_python.FLAG}"'
    assert defined["KERNEL_LOG"] == f'"{in_python.KERNEL_LOG}"'
    assert defined["MODPROBES"] == ", ".join(f'"{path}"' for path in in_python.MODPROBES)
    assert int(defined["ACCEPT_LIMIT"]) == in_python.ACCEPT_LIMIT
