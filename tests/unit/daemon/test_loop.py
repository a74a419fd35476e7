"""The daemon's loop around its start: a whole dry run below a folder, until the journal or a round says stop."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from kmodd import __version__
from kmodd.daemon import file_changes, main, policy_marks, startup
from kmodd.daemon.helper_processes import HelperProcesses
from kmodd.daemon.main import Daemon
from kmodd.daemon.options import DaemonOptions
from kmodd.daemon.quarantine_file import QuarantineFile
from kmodd.host.file_watch import Watch
from kmodd.host.helper_socket import RequestSocket
from kmodd.host.process_reader import READY
from kmodd.host.requesters import Requesters
from kmodd.host.sd_notify import Notify
from kmodd.host.tree import Tree
from kmodd.index.catalog import Catalog
from kmodd.kernel.uevent import Uevent
from kmodd.planning.record import RELOADED, STARTED, Record
from tests.fakes import ListJournal
from tests.world import RELEASE

NAMES = 3000
"""Names on the boot list: more than are planned in one round."""


class Journal(ListJournal):
    """Calls back at the record of the start."""

    def __init__(self, at_start: Callable[[], None]) -> None:
        super().__init__()
        self._at_start = at_start

    def write(self, record: Record) -> None:
        super().write(record)
        if record.message_id == STARTED:
            self._at_start()

    def has(self, message_id: str) -> bool:
        return any(record.message_id == message_id for record in self.records)


class Rounds(Notify):
    """Calls back at the end of each round of the loop; if that returns True, the daemon ends."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        super().__init__()
        self._is_over = is_over

    def alive(self, now: float) -> None:
        if self._is_over():
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What the daemon changes in its process is as it was before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    gc.unfreeze()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    modules = tmp_path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("a.ko:\n")
    (modules / "modules.alias").write_text("alias pci:v1* a\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("x 1 0 - Live 0x0\n")
    return tmp_path


def depmod(root: Path) -> None:
    """Replace the index."""
    new = root / "new"
    new.write_text("alias pci:v1* a\nalias pci:v2* a\n")
    new.rename(root / "lib/modules" / RELEASE / "modules.alias")


def change_before_watch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the index once it is read, and just before files are watched."""

    class Late(Watch):
        def __init__(self) -> None:
            depmod(root)
            super().__init__()

    monkeypatch.setattr(file_changes, "Watch", Late)


def run(root: Path, journal: Journal, is_over: Callable[[], bool]) -> None:
    options = DaemonOptions(dry_run=True, control_path=str(root / "socket"), receive_buffer=1 << 20)
    Daemon(Tree(root=str(root), release=RELEASE), journal, Rounds(is_over), options, HelperProcesses()).run()


def test_the_record_of_the_start_has_the_version_and_what_was_loaded(root: Path) -> None:
    """`kmodd why` reads there what kmodd has not loaded."""
    journal = Journal(lambda: None)
    run(root, journal, lambda: journal.has(STARTED))
    (started,) = [record for record in journal.records if record.message_id == STARTED]
    assert started.fields == (("KMODD_VERSION", __version__), ("KMODD_LOADED_BEFORE", "x"))


def test_ready_waits_neither_for_sysfs_nor_for_the_indexes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a boot list; what the list looks up is read before it."""
    seen: list[str] = []
    load = Catalog.load

    class Noting(Rounds):
        def ready(self, status: str) -> None:
            seen.append("ready")

    def loading(catalog: Catalog) -> None:
        seen.append("indexes")
        load(catalog)

    def replay(_: str) -> tuple[Uevent, ...]:
        seen.append("sysfs")
        return ()

    monkeypatch.setattr(Catalog, "load", loading)
    monkeypatch.setattr("kmodd.host.coldplug.replay", replay)
    options = DaemonOptions(dry_run=True, control_path=str(root / "socket"), receive_buffer=1 << 20)
    journal, notify = Journal(lambda: None), Noting(lambda: len(seen) == 3)
    Daemon(Tree(root=str(root), release=RELEASE), journal, notify, options, HelperProcesses()).run()
    assert seen == ["ready", "sysfs", "indexes"]


def test_settle_waits_for_files_that_changed_before_they_were_watched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_before_watch(root, monkeypatch)
    with socket.socket(socket.AF_UNIX) as caller:

        def at_start() -> None:
            caller.connect(str(root / "socket"))
            caller.sendall(json.dumps({"method": "io.kmodd.Settle"}).encode() + b"\0")
            caller.setblocking(False)

        journal = Journal(at_start)
        answers: list[tuple[bytes, bool]] = []

        def is_answered() -> bool:
            try:
                answers.append((caller.recv(4096), journal.has(RELOADED)))
            except BlockingIOError:
                return False
            return True

        run(root, journal, is_answered)
    assert answers == [(b'{"parameters": {}}\0', True)]


def test_settle_is_answered_without_a_watch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are read once more when the watch cannot be opened, and count as read from then on."""

    class Unavailable(Watch):
        def __init__(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(file_changes, "Watch", Unavailable)
    with socket.socket(socket.AF_UNIX) as caller:

        def at_start() -> None:
            caller.connect(str(root / "socket"))
            call = {"method": "io.kmodd.Settle", "parameters": {"timeout_usec": 5_000_000}}
            caller.sendall(json.dumps(call).encode() + b"\0")
            caller.setblocking(False)

        answers: list[bytes] = []

        def is_answered() -> bool:
            with contextlib.suppress(BlockingIOError):
                answers.append(caller.recv(4096))
            return bool(answers)

        run(root, Journal(at_start), is_answered)
    assert answers == [b'{"parameters": {}}\0']


def test_a_monitor_gets_the_decisions_of_the_running_daemon(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as monitor, socket.socket(socket.AF_UNIX) as operator:

        def at_start() -> None:
            calls = (
                (monitor, {"method": "io.kmodd.Monitor", "more": True}),
                (operator, {"method": "io.kmodd.Load", "parameters": {"request": "a"}}),
            )
            for caller, call in calls:
                caller.connect(str(root / "socket"))
                caller.sendall(json.dumps(call).encode() + b"\0")
                caller.setblocking(False)

        replies: list[bytes] = []

        def has_reply() -> bool:
            with contextlib.suppress(BlockingIOError):
                replies.append(monitor.recv(65536))
            return bool(replies)

        run(root, Journal(at_start), has_reply)
    reply = json.loads(replies[0].split(b"\0")[0])
    assert reply["continues"] is True
    assert reply["parameters"]["fields"]["MESSAGE"] == ["Would load a for root"]


def test_files_are_watched_at_once_where_there_is_nothing_to_load(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit out of reach, a loop that slept first would not end."""
    monkeypatch.setattr(startup, "WATCH_LIMIT", 1e6)
    change_before_watch(root, monkeypatch)
    journal = Journal(lambda: None)
    run(root, journal, lambda: journal.has(RELOADED))


@pytest.mark.parametrize(("limit", "is_early"), [(1e6, False), (0.0, True)])
def test_the_watch_is_opened_when_nothing_more_can_be_planned_or_after_the_limit(
    root: Path, monkeypatch: pytest.MonkeyPatch, limit: float, is_early: bool
) -> None:
    """A lane gets its next job before that."""
    monkeypatch.setattr(startup, "BOOT_LIST_LIMIT", 0.0)
    monkeypatch.setattr(startup, "WATCH_LIMIT", limit)
    journal = Journal(lambda: None)
    opened: list[int] = []

    class Counted(Watch):
        def __init__(self) -> None:
            super().__init__()
            opened.append(len(journal.records))

    monkeypatch.setattr(file_changes, "Watch", Counted)
    folder = root / "etc/modules-load.d"
    folder.mkdir(parents=True)
    (folder / "x.conf").write_text("".join(f"unknown{number}\n" for number in range(NAMES)))
    run(root, journal, lambda: len(journal.records) > NAMES and bool(opened))
    assert [count < NAMES for count in opened] == [is_early]


def test_a_warning_is_written_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are watched again when files have changed."""
    asked: list[Iterable[str]] = []

    class Exhausted(Watch):
        def __init__(self) -> None:
            depmod(root)
            super().__init__()

        def set(self, directories: Iterable[str]) -> tuple[OSError, ...]:
            asked.append(directories)
            super().set(directories)
            return (OSError(errno.ENOSPC, "No space left on device", "/x"),)

    monkeypatch.setattr(file_changes, "Watch", Exhausted)
    journal = Journal(lambda: None)
    run(root, journal, lambda: journal.has(RELOADED))
    assert len(asked) > 1
    messages = [record.message for record in journal.records]
    assert [message for message in messages if message.startswith("Failed to watch /x: No space")] == [
        "Failed to watch /x: No space left on device; changes there are noticed late"
    ]


def test_a_daemon_that_is_not_the_machines_own_keeps_no_marks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = root / "marks"
    marks.mkdir()
    for name in ("SEALED", "CLOSED", "BOOTED"):
        monkeypatch.setattr(policy_marks, name, str(marks / name.lower()))
    (marks / "sealed").touch()
    for path, text in (("etc/kmodd/kmodd.conf", "[Kmodd]\nPolicy=enforce\n"), ("etc/modules", "a\n")):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    journal = Journal(lambda: None)
    run(root, journal, lambda: bool(journal.records))
    assert [path.name for path in marks.iterdir()] == ["sealed"]
    results = [dict(record.fields).get("KMODD_RESULT") for record in journal.records]
    assert "not_attempted" in results, "as in any dry run"
    assert "denied" not in results


@pytest.fixture
def own_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's own daemon opens lies below `root`, and it keeps the rights of this process."""

    def no_trace(_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "no tracefs here")

    for name in ("SEALED", "CLOSED", "BOOTED"):
        monkeypatch.setattr(policy_marks, name, str(root / name.lower()))
    monkeypatch.setattr(main, "QuarantineFile", lambda **_: QuarantineFile(str(root / "standing"), str(root)))
    monkeypatch.setattr(main, "RequestSocket", lambda: RequestSocket(str(root / "request")))
    monkeypatch.setattr(main, "is_helper_set", lambda: False)
    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", no_trace)
    monkeypatch.setattr("kmodd.host.stream_sockets.forbid", lambda: "")


@pytest.mark.usefixtures("own_run")
def test_a_lost_reader_of_proc_is_one_warning_and_a_problem_until_it_is_back(root: Path) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    theirs[0].send(READY)
    seen: list[list[str]] = []
    with socket.socket(socket.AF_UNIX) as caller:

        def ask() -> None:
            caller.sendall(json.dumps({"method": "io.kmodd.Status"}).encode() + b"\0")

        def at_start() -> None:
            caller.connect(str(root / "socket"))
            caller.setblocking(False)
            ask()

        def is_over() -> bool:
            try:
                answer = json.loads(caller.recv(1 << 16).rstrip(b"\0"))
            except BlockingIOError:
                return False
            problems = [each for each in answer["parameters"]["problems"] if "/proc: it has ended" in each]
            if problems != (seen[-1] if seen else None):
                seen.append(problems)
                if len(seen) in (1, 3):  # the one that answers ends
                    theirs[len(seen) // 2].close()
                elif len(seen) == 2:
                    theirs[1].send(READY)
            ask()
            return len(seen) == 4

        journal = Journal(at_start)
        options = DaemonOptions(dry_run=True, run=True, control_path=str(root / "socket"), receive_buffer=1 << 20)
        helpers = HelperProcesses(None, Requesters(lambda: ours.pop(0)))
        Daemon(Tree(root=str(root), release=RELEASE), journal, Rounds(is_over), options, helpers).run()
    theirs[2].close()
    lost = ["Failed to ask the reader of /proc: it has ended; requesters are unknown"]
    assert seen == [[], lost, [], lost]
    assert [record.message for record in journal.records if "reader of /proc" in record.message] == lost
    for each in ours:
        each.close()


@pytest.mark.usefixtures("own_run")
@pytest.mark.parametrize(
    ("mode", "is_set", "is_early"), [("enforce", True, True), ("enforce", False, False), ("off", True, False)]
)
def test_requests_are_traced_before_the_boot_list_if_the_kernel_asks_already_and_the_policy_is_enforced(
    root: Path, monkeypatch: pytest.MonkeyPatch, mode: str, is_set: bool, is_early: bool
) -> None:
    """A request of an unknown process may be denied. In any case of an enforced policy it is before READY."""
    seen: list[str] = []

    class Tracer:
        def __init__(self, _: object) -> None:
            seen.append("trace")

        def close(self) -> None:
            pass

    class Noting(Rounds):
        def ready(self, status: str = "") -> None:
            seen.append("ready")

    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", Tracer)
    monkeypatch.setattr(main, "is_helper_set", lambda: is_set)
    (root / "etc/kmodd").mkdir(parents=True)
    (root / "etc/kmodd/kmodd.conf").write_text(f"[Kmodd]\nPolicy={mode}\n")
    journal = Journal(lambda: seen.append("start"))
    options = DaemonOptions(dry_run=True, run=True, control_path=str(root / "socket"), receive_buffer=1 << 20)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    helpers = HelperProcesses(None, Requesters(lambda: ours))
    with theirs:
        notify = Noting(lambda: len(seen) == 3)
        Daemon(Tree(root=str(root), release=RELEASE), journal, notify, options, helpers).run()
    order = ["start", "ready", "trace"] if mode == "off" else ["start", "trace", "ready"]
    assert seen == (["trace", "start", "ready"] if is_early else order)
