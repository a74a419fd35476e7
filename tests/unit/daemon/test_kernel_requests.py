"""The kernel's own requests, from its helper's connection to the answer: `KernelRequests` beside a working engine."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmodd.daemon.kernel_requests import KernelRequests
from kmodd.dataclass import replace
from kmodd.engine.events import Requested
from kmodd.errors import ParseError
from kmodd.host.helper_socket import RequestSocket
from kmodd.host.requesters import Requesters
from kmodd.kernel.requester import Requester
from kmodd.planning.outcome import ASKS_FOR_ITSELF
from tests.world import World

USER = Requester(812, "sshd", "/usr/sbin/sshd", 1000, None, "/system.slice/ssh.service", "ssh.service", False)


class Trace:
    """Knows who asked for what, and counts the questions."""

    def __init__(self) -> None:
        self.who: dict[str, Requester] = {}
        self.asked: list[str] = []
        self.was_ambiguous = False
        self.candidates: tuple[Requester, ...] = ()

    def match(self, name: str) -> Requester | None:
        self.asked.append(name)
        return self.who.get(name)

    def close(self) -> None:
        pass


class Kernel:
    """The kernel's helpers, played by this process, and the daemon's side."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.trace = Trace()
        self.socket = RequestSocket(str(folder / "request"))
        self.requests = KernelRequests(self.socket, self.trace)  # type: ignore[arg-type]
        world.listeners.append(self.requests)
        self.stack = contextlib.ExitStack()

    def ask(self, name: str, who: Requester | None = None) -> socket.socket:
        """A helper that asks, and was accepted."""
        if who:
            self.trace.who[name] = who
        helper = self.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        helper.settimeout(30)
        helper.connect(self.socket.path)
        helper.send(name.encode())
        self.receive()
        assert helper.recv(2) == b"a"
        return helper

    def receive(self) -> None:
        """As the daemon's loop does when the socket is readable."""
        for request in self.requests.receive():
            self.world.handle(Requested(request))

    def start(self, name: str, who: Requester | None = None) -> tuple[socket.socket, int]:
        """A request whose module is in its init now. Returns the helper, and the loader's process number."""
        helper = self.ask(name, who)
        self.world.advance()
        return helper, self.world.batch(name).pid


@pytest.fixture
def kernel(world: World, tmp_path: Path) -> Iterator[Kernel]:
    it = Kernel(world, tmp_path)
    yield it
    it.stack.close()
    it.requests.close()


def is_answered(helper: socket.socket) -> bool:
    return bool(select.select([helper], [], [], 0)[0])


def of_loader(pid: int) -> Requester:
    """A loader in whose process a module's init makes the kernel ask."""
    return replace(USER, pid=pid, comm="kmodd-loader", uid=0, unit=f"kmodd-loader@{pid}.service")


def test_a_loaded_module_is_answered_and_recorded_with_its_requester(kernel: Kernel) -> None:
    helper = kernel.ask("b", USER)
    assert not is_answered(helper), "it is not loaded yet"
    kernel.world.settle()
    assert helper.recv(2) == b"0"
    assert kernel.world.calls == ["a", "b"]
    fields = dict(kernel.world.records[-1].fields)
    told = [fields[f"KMODD_{name}"] for name in ("MODULE", "SOURCE", "REQUESTER_UID", "REQUESTER_UNIT")]
    assert told == ["b", "request", "1000", "ssh.service"]


@pytest.mark.parametrize(
    ("name", "answer"), [("a", b"0"), ("nothing", b"1"), ("c", b"1"), ("pci:v2", b"1"), ("pci:v1", b"0")]
)
def test_the_answer_is_the_exit_status_of_modprobe_q(kernel: Kernel, name: str, answer: bytes) -> None:
    """Live, unknown, refused by its own init, that by an alias, loaded by an alias."""
    kernel.world.live("a")
    kernel.world.pass_time(2)
    kernel.world.refuse["c"] = errno.EINVAL
    helper = kernel.ask(name)
    kernel.world.settle()
    assert helper.recv(2) == answer


def test_a_request_for_what_has_just_refused_is_tried_and_answered(kernel: Kernel) -> None:
    """Requests of devices are answered from the cache then; the kernel's requester would wait for ever."""
    world = kernel.world
    world.refuse["c"] = errno.EADDRINUSE
    world.plug("pci:v2")
    assert len(world.settle()) == 1
    for _ in range(2):
        helper = kernel.ask("pci:v2")
        world.settle()
        assert is_answered(helper)
        assert helper.recv(2) == b"1"
    assert world.calls == ["c"] * 3
    operator = world.order("pci:v2")
    assert [job.plan.request for job in world.settle()] == [operator]
    # The control: a device, whose request is answered from the cache.
    world.plug("pci:v2", synthetic=True)
    assert world.settle() == []


def test_a_blacklisted_alias_is_no_failure(kernel: Kernel) -> None:
    """modprobe -q -- ALIAS exits 0 then, so the kernel's caller goes on as if the module were loaded."""
    (kernel.world.root / "etc/modprobe.d/x.conf").write_text("blacklist c\n")
    kernel.world.pass_time(2)
    helper = kernel.ask("pci:v2")
    kernel.world.settle()
    assert (helper.recv(2), kernel.world.calls) == (b"0", [])


def test_the_requester_is_looked_up_once_for_each_helper(kernel: Kernel) -> None:
    """At the moment it asks: later it may be gone, and each look-up uses up one open request of the trace."""
    kernel.ask("a")
    kernel.ask("a")
    assert kernel.trace.asked == ["a", "a"]
    kernel.receive()
    kernel.world.settle()
    assert kernel.trace.asked == ["a", "a"]


def test_two_helpers_that_ask_for_one_name_are_both_answered(kernel: Kernel) -> None:
    first, second = kernel.ask("c"), kernel.ask("c")
    kernel.world.settle()
    assert (first.recv(2), second.recv(2), kernel.world.calls) == (b"0", b"0", ["c"])


def test_without_a_tree_the_helper_does_without_the_daemon(kernel: Kernel) -> None:
    kernel.world.modules.rename(kernel.world.modules.with_name("gone"))
    kernel.world.reload()
    helper = kernel.ask("a")
    assert helper.recv(2) == b""


def test_without_a_loader_the_helper_does_without_the_daemon(kernel: Kernel) -> None:
    """Not "unknown": the real modprobe may still load it."""
    kernel.world.no_loader = "no loader: connection refused"
    helper = kernel.ask("a")
    kernel.world.settle()
    assert helper.recv(2) == b""


def test_a_killed_helper_leaves_nothing_behind(kernel: Kernel) -> None:
    """Its load goes on, the next request is answered, and its loader is free again."""
    helper, _ = kernel.start("c")
    helper.close()
    kernel.receive()
    assert kernel.socket.waiting == ()
    kernel.world.finish("c")
    assert (kernel.world.loading, kernel.world.engine.is_idle) == ([], True)
    after = kernel.ask("a")
    kernel.world.settle()
    assert after.recv(2) == b"0"


def test_an_init_that_asks_for_its_own_module_is_answered_at_once(kernel: Kernel) -> None:
    """It would wait for its own end: the answer is no, and its start goes on."""
    outer, pid = kernel.start("c", USER)
    inner = kernel.ask("c", of_loader(pid))
    kernel.world.advance()
    assert inner.recv(2) == b"1"
    assert ASKS_FOR_ITSELF in kernel.world.records[-1].message
    assert not is_answered(outer)
    # The control: another process that asks for it waits.
    other = kernel.ask("c", replace(USER, pid=1))
    kernel.world.pop_finished()
    kernel.world.advance()
    assert (kernel.world.pop_finished(), is_answered(other)) == ([], False)


def test_a_circle_of_inits_that_ask_for_each_other_is_broken(kernel: Kernel) -> None:
    """c's init asks for a, and a's for c."""
    _, pid_of_c = kernel.start("c", USER)
    a, pid_of_a = kernel.start("a", of_loader(pid_of_c))
    inner = kernel.ask("c", of_loader(pid_of_a))
    kernel.world.advance()
    assert (inner.recv(2), is_answered(a)) == (b"1", False)


def test_two_chains_that_wait_for_each_other_are_broken(kernel: Kernel) -> None:
    """Neither init was asked for by the other one: c's asks for a, which is starting, and a's then for c."""
    _, pid_of_c = kernel.start("c", USER)
    _, pid_of_a = kernel.start("a", USER)
    first = kernel.ask("a", of_loader(pid_of_c))
    kernel.world.advance()
    assert not is_answered(first), "a is worth waiting for"
    second = kernel.ask("c", of_loader(pid_of_a))
    kernel.world.advance()
    assert second.recv(2) == b"1"


@pytest.fixture
def requesters() -> Iterator[Requesters]:
    """With a process to ask, that says nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    it = Requesters(lambda: ours)
    with theirs:
        yield it
    it.close()


def test_the_trace_is_opened_while_there_is_no_process_that_reads_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requesters are known as soon as there is one."""
    asked: list[Callable[[int, int, float], Requester | None]] = []

    class Tracer:
        def __init__(self, requester_of: Callable[[int, int, float], Requester | None]) -> None:
            asked.append(requester_of)

        def close(self) -> None:
            pass

    def connect() -> socket.socket:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", Tracer)
    absent = Requesters(connect)
    requests = KernelRequests(RequestSocket(str(tmp_path / "request")), requesters=absent)
    assert requests.open_trace() == ""
    assert [requester_of(1, 1, 0.0) for requester_of in asked] == [None]
    requests.close()
    absent.close()


def test_a_trace_of_another_format_leaves_the_requester_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requesters: Requesters
) -> None:
    """A kernel whose tracefs differs: all else works. It is tried twice, before READY and after it."""

    def other(_: object) -> None:
        raise ParseError("header_page: expected something else")

    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", other)
    requests = KernelRequests(RequestSocket(str(tmp_path / "request")), requesters=requesters)
    why = "Failed to trace module requests: header_page: expected something else; the requester stays unknown"
    assert [requests.open_late() for _ in range(4)] == [why, why, "", ""]
    assert not requests.needs_trace
    requests.close()


def test_the_trace_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requesters: Requesters) -> None:
    """Before READY where the kernel asks already, else after it: a second instance would lose what the first knows."""
    opened: list[object] = []

    class Tracer:
        def __init__(self, _: object) -> None:
            opened.append(self)

        def close(self) -> None:
            opened.clear()

    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", Tracer)
    requests = KernelRequests(RequestSocket(str(tmp_path / "request")), requesters=requesters)
    requests.open_trace()
    requests.open_trace()
    assert len(opened) == 1
    requests.close()
    assert opened == []


def test_loads_are_traced_after_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requesters: Requesters
) -> None:
    """One trace a call, as each takes time; that of loads outlives the daemon. Control: where it fails, the reason."""
    opened: list[str] = []

    class Opened:
        def __init__(self, name: str) -> None:
            self.name = name
            opened.append(name)

        def close(self) -> None:
            opened.remove(self.name)

    def missing() -> Opened:
        raise FileNotFoundError(errno.ENOENT, "no tracefs with instances", "/x")

    monkeypatch.setattr("kmodd.host.request_tracer.ModuleRequests", lambda _: Opened("requests"))
    for trace_loads, why in ((lambda: Opened("loads"), ""), (missing, "Failed to trace loads of modules")):
        monkeypatch.setattr("kmodd.host.load_tracer.trace_loads", trace_loads)
        requests = KernelRequests(RequestSocket(str(tmp_path / "request")), requesters=requesters)
        assert (requests.needs_trace, requests.open_late(), opened) == (True, "", ["requests"])
        assert requests.needs_trace
        assert requests.open_late().startswith(why)
        assert (requests.needs_trace, opened) == (False, ["requests"] if why else ["requests", "loads"])
        requests.close()
        assert opened == ([] if why else ["loads"])
        opened.clear()
