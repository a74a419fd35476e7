"""The compiled kmodd-request in the place of modprobe: plain calls of root go to the daemon, others to the real one.

The machine is this one, and its PID 1 the process of the test: in a sandbox PID 1 may be out of reach.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kmodd.host.helper_socket import MAX_CALL, RequestSocket
from tests import rootfs
from tests.acting import SCENARIOS, run_ours
from tests.fake_machine import FakeMachine
from tests.request_helper import BY_MODPROBE, PATIENCE, SOURCE, Helper
from tests.rootfs import Said
from tests.running_daemon import Running, daemon_on

pytestmark = pytest.mark.root

Capture = pytest.CaptureFixture[bytes]


@pytest.fixture(scope="module", params=["bare", "libc"])
def built(request: pytest.FixtureRequest) -> Iterator[Helper]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # for another user
        it = Helper(Path(folder), request.param, is_process=True)
        it.build()
        yield it


@pytest.fixture
def front(built: Helper) -> Iterator[Helper]:
    built.reset()
    built.init.symlink_to(f"/proc/{os.getpid()}")
    yield built
    built.clean()


def said(front: Helper, *words: bytes | str, below: Sequence[str] = (), **how: Any) -> Said:
    """Run the helper as a process runs modprobe."""
    Path("/proc/self/comm").write_text("pytest")  # a loader in a thread gives its name to this process
    command = [os.fsencode(word) for word in (*below, *front.command, *words)]
    how = {"env": {"PATH": "/usr/sbin:/usr/bin:/bin"}, **how}
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, **how)
    return Said(done.stdout, done.stderr, done.returncode)


def script(front: Helper, text: str) -> Said:
    """Run a shell that has the helper as $0."""
    return said(front, below=["sh", "-c", text])


# ── by the daemon ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    it = SCENARIOS[0].build(tmp_path / "root")
    it.refuse["tun"] = 22
    return it


@pytest.fixture
def running(front: Helper, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    front.limit = PATIENCE
    with daemon_on(machine, monkeypatch, front.folder) as it:
        yield it


@pytest.mark.parametrize(
    "words",
    [
        ["loop"], ["nosuch"], ["tun"], ["-q", "nosuch"], ["-q", "tun"], ["-a", "loop"],
        ["-a", "dummy", "nosuch", "loop"], ["-q", "-a", "dummy", "tun", "loop"], ["--", "loop"],
        ["-a", "-q", "--", "loop", "nosuch"], [b"\xff\n\x1b "],
    ],
    ids=str,
)  # fmt: skip
def test_words_status_and_loads_are_those_of_the_tool(
    front: Helper, running: Running, machine: FakeMachine, capfdbinary: Capture, words: list[bytes | str]
) -> None:
    """First by the helper, then by the tool through the same daemon, on the same machine without the modules."""
    by_front, loaded = said(front, *words), machine.loaded
    assert front.became() == []
    for name in loaded:
        machine.delete_module(name, 0)
    assert by_front == run_ours(machine, ["modprobe", *map(os.fsdecode, words)], {}, capfdbinary)
    assert machine.loaded == loaded


def test_an_install_line_is_for_the_real_modprobe(front: Helper, running: Running, machine: FakeMachine) -> None:
    (machine.root / "etc/modprobe.d/u.conf").write_text("install loop /bin/true\n")
    assert said(front, "-a", "dummy", "loop", "nosuch").status == BY_MODPROBE
    assert front.became()[:4] == ["-a", "dummy", "loop", "nosuch"]
    assert machine.loaded == ["dummy"]


def test_an_enforced_policy_refuses_no_call_of_root(front: Helper, running: Running) -> None:
    front.close()
    assert said(front, "loop") == Said(b"", b"", 0)
    Path(front.socket).unlink()
    assert said(front, "loop").status == BY_MODPROBE


# ── by the real modprobe ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def requests(front: Helper) -> Iterator[RequestSocket]:
    """A daemon that must not be asked, or does not answer."""
    it = RequestSocket(front.socket)
    yield it
    it.close()


OTHER_CALLS = [
    [], [""], ["-a"], ["-q"], ["--"], ["loop", "a=1"], ["loop", "dummy"], ["a=1"], ["-a", "loop", "a=1"],
    ["-r", "loop"], ["-qa", "loop"], ["-v", "loop"], ["--quiet", "loop"], ["--first-time", "loop"], ["loop", "-q"],
    ["/x.ko"], ["./x.ko"], ["-a", "loop", ""], ["--", "-q"], ["-"], ["-a", "x" * 3000, "y" * 3000], ["x" * MAX_CALL],
]  # fmt: skip


@pytest.mark.parametrize("words", OTHER_CALLS, ids=lambda words: str(words)[:30])
def test_another_call_is_the_real_modprobes(front: Helper, requests: RequestSocket, words: list[str]) -> None:
    assert said(front, *words).status == BY_MODPROBE
    assert front.became()[: len(words)] == words
    assert not select.select([requests], [], [], 0)[0], "the daemon was not troubled"


@pytest.mark.parametrize(
    "how",
    [
        {"env": {"MODPROBE_OPTIONS": ""}},
        {"env": {"MODPROBE_OPTIONS": "-q"}},
        {"preexec_fn": lambda: os.setresuid(1000, 1000, 1000)},
        {"preexec_fn": lambda: os.setresuid(1000, 0, 0)},
        {"below": ["setpriv", "--bounding-set", "-sys_module"]},
        {"below": ["unshare", "-m"]},
        {"below": ["unshare", "-U", "-r"]},
        {"below": ["unshare", "-p", "-f"]},
    ],
    ids=["no options", "options", "a user", "of a user", "no right", "mounts", "users", "processes"],
)
def test_another_caller_is_the_real_modprobes(front: Helper, requests: RequestSocket, how: dict[str, Any]) -> None:
    """With options in the environment, not root, without CAP_SYS_MODULE, or in a namespace of its own."""
    os.chmod(front.socket, 0o666)
    front.modprobe(f"exit {BY_MODPROBE}")
    assert said(front, "loop", **how).status == BY_MODPROBE
    assert not select.select([requests], [], [], 0)[0], "the daemon was not troubled"


def test_a_container_that_has_the_socket_is_the_real_modprobes(front: Helper, running: Running) -> None:
    """In its /proc, PID 1 is the container's own; the daemon has no number there."""
    front.init.unlink()
    front.init.symlink_to("/proc/1")
    inside = 'mount -t proc proc /proc && "$0" loop; exit $?'
    assert said(front, below=["unshare", "-m", "-p", "-f", "sh", "-c", inside]).status == BY_MODPROBE
    assert running.calls == 0


def test_a_chroot_that_has_the_socket_is_the_real_modprobes(front: Helper, running: Running, tmp_path: Path) -> None:
    """The root is another mount of the same file system. The control: the same without chroot."""
    (tmp_path / "new").mkdir()
    for chroot, status, calls in (("", 0, 1), (f"chroot {tmp_path}/new", BY_MODPROBE, 1)):
        inside = f'mount --rbind / {tmp_path}/new && ln -sfn /proc/$$ {front.init} && {chroot} "$0" loop; exit $?'
        assert said(front, below=["unshare", "-m", "sh", "-c", inside]).status == status
        assert running.calls == calls


def test_what_a_loader_or_command_waits_for_is_the_real_modprobes(front: Helper, running: Running) -> None:
    """The daemon serves one operator at a time, and its command has not ended. The control: another name."""
    below = """>/proc/self/comm; (sh -c '"$0" loop; exit $?' "$0")"""
    for name in ("kmodd-command", "kmodd-loader", "kthreadd"):
        assert script(front, f"printf '{name}' {below}").status == BY_MODPROBE
    assert running.calls == 0
    for name in (") S 1 (", "kmodd-other"):
        assert script(front, f"printf '{name}' {below}").status == 0
    assert running.calls == 2


def test_without_standard_error_the_connection_is_not_written_to(front: Helper, running: Running) -> None:
    """A new descriptor would take its number."""
    assert script(front, '"$0" nosuch 2>&-').status == BY_MODPROBE
    assert script(front, '"$0" loop <&- >&-').status == 0


@pytest.mark.parametrize(
    "answers",
    [
        None, [], [b"x0"], [b"a"], [b"a", b"1"], [b"a", b"0"], [b"a", b"x2"], [b"a", b"x"], [b"a", b"x00"], [b"a", b""],
        [b"a", b"e"], [b"a", b"f", b"x0"], [b"aa", b"x0"],
    ],
    ids=str,
)  # fmt: skip
def test_a_daemon_that_ends_or_answers_nonsense_is_done_without(front: Helper, answers: list[bytes] | None) -> None:
    """None: no daemon listens. `0` and `1` are the answers of an earlier daemon to a name that is none."""
    with contextlib.ExitStack() as stack:
        if answers is not None:
            stack.enter_context(serving(front.socket, *answers))
        assert said(front, "-a", "loop", "dummy") == Said(b"", b"", BY_MODPROBE)
    assert front.became()[:3] == ["-a", "loop", "dummy"]


def test_a_daemon_that_stands_still_is_given_up(front: Helper, requests: RequestSocket) -> None:
    assert said(front, "loop").status == BY_MODPROBE


def test_a_daemon_that_dies_after_words_is_done_without(front: Helper) -> None:
    """The words are written as they come. The control: the same with a status."""
    with serving(front.socket, b"a", b"eone\n", b"e" + b"t" * 4095):
        assert said(front, "loop") == Said(b"", b"one\n" + b"t" * 4095, BY_MODPROBE)
    Path(front.socket).unlink()
    with serving(front.socket, b"a", b"eone\n", b"e" + b"t" * 4095, b"x1"):
        assert said(front, "loop") == Said(b"", b"one\n" + b"t" * 4095, 1)


@contextlib.contextmanager
def serving(path: str, *answers: bytes) -> Iterator[None]:
    """A daemon that takes one call, sends these answers and ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen(8)
        listening.settimeout(30)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(MAX_CALL)
                for answer in answers:
                    connection.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(30)


def test_the_helper_and_the_daemon_have_one_limit() -> None:
    assert f"#define MAX_CALL {MAX_CALL} " in SOURCE.read_text()


def test_the_directory_is_that_of_the_daemon(front: Helper, running: Running) -> None:
    err = f"modprobe: FATAL: Module nosuch not found in directory /lib/modules/{rootfs.RELEASE}\n"
    assert said(front, "nosuch") == Said(b"", err.encode(), 1)
