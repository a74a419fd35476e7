"""What the kernel asks for, from its helper's connection to the answer: `KernelRequests` on a line that works."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.daemon.kernel_requests import KernelRequests
from kmodd.dataclass import replace
from kmodd.host.helper_socket import RequestSocket
from kmodd.kernel.requester import Requester
from kmodd.planning.outcome import ASKS_FOR_ITSELF
from kmodd.planning.request import Request
from tests.unit.test_line_lanes import GateKernel, at_work, gate, hear
from tests.world import World, loads

__all__ = ["gate"]

USER = Requester(812, "sshd", "/usr/sbin/sshd", 1000, None, "/system.slice/ssh.service", "ssh.service", False)


class Trace:
    """Knows who asked for what, and how often it was asked."""

    def __init__(self) -> None:
        self.who: dict[str, Requester] = {}
        self.asked: list[str] = []

    def match(self, name: str) -> Requester | None:
        self.asked.append(name)
        return self.who.get(name)

    def close(self) -> None:
        pass


class Kernel:
    """Its helpers, played by this process, and the daemon's side."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.trace = Trace()
        self.socket = RequestSocket(str(folder / "request"))
        self.requests = KernelRequests(world.engine, self.socket, self.trace)  # type: ignore[arg-type]
        self.stack = contextlib.ExitStack()

    def ask(self, name: str, who: Requester | None = None) -> socket.socket:
        """A helper that asks; what it has to hear first is that it is accepted."""
        if who:
            self.trace.who[name] = who
        helper = self.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        helper.settimeout(30)
        helper.connect(self.socket.path)
        helper.send(name.encode())
        self.requests.listen()
        assert helper.recv(2) == b"a"
        return helper

    def go_on(self) -> None:
        """Until the line has nothing to do; each job's end is told."""
        for job in self.world.settle():
            self.requests.ended(job)


@pytest.fixture
def kernel(world: World, tmp_path: Path) -> Iterator[Kernel]:
    world.engine.intake.takes_replay()
    it = Kernel(world, tmp_path)
    yield it
    it.stack.close()
    it.requests.close()


def is_answered(helper: socket.socket) -> bool:
    return bool(select.select([helper], [], [], 0)[0])


def test_what_is_loaded_is_answered_and_told_with_its_requester(kernel: Kernel) -> None:
    helper = kernel.ask("b", USER)
    assert not is_answered(helper), "it is not loaded yet"
    kernel.go_on()
    assert helper.recv(2) == b"0"
    assert loads(kernel.world) == ["a.ko", "b.ko"]
    fields = dict(kernel.world.journal.records[-1].fields)
    told = [fields[f"KMODD_{name}"] for name in ("MODULE", "SOURCE", "REQUESTER_UID", "REQUESTER_UNIT")]
    assert told == ["b", "request", "1000", "ssh.service"]


@pytest.mark.parametrize(
    ("name", "answer"), [("a", b"0"), ("nothing", b"1"), ("c", b"1"), ("pci:v2", b"1"), ("pci:v1", b"0")]
)
def test_the_answer_is_the_exit_status_of_modprobe_q(kernel: Kernel, name: str, answer: bytes) -> None:
    """Live, unknown, refused by its own init, that by an alias, loaded by an alias."""
    kernel.world.live("a")
    kernel.world.engine.view.forget_loaded()
    kernel.world.kernel.refuse["c.ko"] = errno.EINVAL
    helper = kernel.ask(name)
    kernel.go_on()
    assert helper.recv(2) == answer


def test_who_asks_again_for_what_has_just_refused_is_answered_as_well(kernel: Kernel) -> None:
    """Devices are answered from memory then, and nobody waits for that. The kernel's requester would wait for ever."""
    kernel.world.kernel.refuse["c.ko"] = errno.EADDRINUSE
    kernel.world.plug("pci:v2")
    assert len(kernel.world.settle()) == 1
    for _ in range(2):
        helper = kernel.ask("pci:v2")
        kernel.go_on()
        assert is_answered(helper)
        assert helper.recv(2) == b"1"
    assert loads(kernel.world) == ["c.ko"] * 3
    operator = Request("pci:v2", "operator")
    kernel.world.engine.intake.order(operator)
    assert [job.plan.request for job in kernel.world.settle()] == [operator]
    # The control: a device, for which one answer will do.
    kernel.world.plug("pci:v2", synthetic=True)
    assert kernel.world.settle() == []


def test_a_blacklisted_alias_is_no_failure(kernel: Kernel) -> None:
    """modprobe -q -- ALIAS exits 0 then, so the kernel's caller goes on as if it were loaded."""
    (kernel.world.root / "etc/modprobe.d/x.conf").write_text("blacklist c\n")
    kernel.world.engine.reload()
    kernel.world.engine.intake.takes_replay()
    helper = kernel.ask("pci:v2")
    kernel.go_on()
    assert (helper.recv(2), loads(kernel.world)) == (b"0", [])


def test_the_requester_is_looked_up_once_for_each_helper_at_the_moment_it_asks(kernel: Kernel) -> None:
    """Later it may be gone; and each look-up ends one of the open requests."""
    kernel.ask("a")
    kernel.ask("a")
    assert kernel.trace.asked == ["a", "a"]
    kernel.requests.listen()
    kernel.go_on()
    assert kernel.trace.asked == ["a", "a"]


def test_two_that_ask_for_one_name_are_both_answered(kernel: Kernel) -> None:
    first, second = kernel.ask("c"), kernel.ask("c")
    kernel.go_on()
    assert (first.recv(2), second.recv(2), loads(kernel.world)) == (b"0", b"0", ["c.ko"])


def test_where_there_is_no_tree_the_helper_does_without_us(kernel: Kernel) -> None:
    kernel.world.modules.rename(kernel.world.modules.with_name("gone"))
    kernel.world.engine.reload()
    helper = kernel.ask("a")
    assert helper.recv(2) == b""


def test_where_there_is_no_loader_the_helper_does_without_us(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "unknown": the real modprobe may still load it."""

    def none() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "no loader")

    monkeypatch.setattr(kernel.world.loaders, "get", none)
    helper = kernel.ask("a")
    kernel.go_on()
    assert helper.recv(2) == b""


def test_a_helper_that_is_killed_leaves_nothing_behind(kernel: Kernel, gate: GateKernel) -> None:
    """Its load goes on; the next request is answered; its lane is free."""
    gate.close("c.ko")
    line = kernel.world.engine
    helper = kernel.ask("c")
    line.advance()
    assert at_work(kernel.world) == ["c"]
    helper.close()
    kernel.requests.listen()
    assert kernel.socket.waiting == ()
    gate.gates["c.ko"].set()
    hear(kernel.world)
    for job in line.scheduler.take_ended():
        kernel.requests.ended(job)
    assert (at_work(kernel.world), len(line.intake), line.idle) == ([], 0, True)
    assert kernel.requests._asked == []
    after = kernel.ask("a")
    kernel.go_on()
    assert after.recv(2) == b"0"


def _start(kernel: Kernel, gate: GateKernel, name: str, pid: int, who: Requester | None = None) -> socket.socket:
    """A request whose module is in its init now, in a loader that has this number."""
    gate.close(f"{name}.ko")
    helper = kernel.ask(name, who)
    kernel.world.engine.advance()
    assert gate.inside[f"{name}.ko"].wait(30)
    (batch,) = (batch for batch in kernel.world.engine.in_flight.busy() if batch.module == name)
    batch.lane.pid = pid
    return helper


def _loader(pid: int) -> Requester:
    return replace(USER, pid=pid, comm="kmodd-loader", uid=0, unit=f"kmodd-loader@{pid}.service")


def test_an_init_that_asks_for_itself_is_answered(kernel: Kernel, gate: GateKernel) -> None:
    """It would wait for its own end: the answer is no, at once, and its start goes on."""
    outer = _start(kernel, gate, "c", 4711, USER)
    inner = kernel.ask("c", _loader(4711))
    kernel.world.engine.advance()
    for job in kernel.world.engine.scheduler.take_ended():
        kernel.requests.ended(job)
    assert inner.recv(2) == b"1"
    assert ASKS_FOR_ITSELF in kernel.world.journal.records[-1].message
    assert not is_answered(outer)
    # The control: anybody else who asks for it waits.
    other = kernel.ask("c", replace(USER, pid=4712))
    kernel.world.engine.advance()
    assert (kernel.world.engine.scheduler.take_ended(), is_answered(other)) == ([], False)


def test_a_ring_of_inits_that_ask_for_each_other_is_broken(kernel: Kernel, gate: GateKernel) -> None:
    """c's init asks for a, and a's for c."""
    _start(kernel, gate, "c", 4711, USER)
    a = _start(kernel, gate, "a", 4712, _loader(4711))
    inner = kernel.ask("c", _loader(4712))
    kernel.world.engine.advance()
    for job in kernel.world.engine.scheduler.take_ended():
        kernel.requests.ended(job)
    assert (inner.recv(2), is_answered(a)) == (b"1", False)


def test_two_chains_that_wait_for_each_other_are_not_left_so(kernel: Kernel, gate: GateKernel) -> None:
    """Neither's init was asked for by the other's: c's asks for a, which is starting, and that one's then for c."""
    _start(kernel, gate, "c", 4711, USER)
    _start(kernel, gate, "a", 4712, USER)
    first = kernel.ask("a", _loader(4711))
    kernel.world.engine.advance()
    assert not is_answered(first), "a is worth waiting for"
    kernel.trace.who["c"] = _loader(4712)
    second = kernel.ask("c")
    kernel.world.engine.advance()
    for job in kernel.world.engine.scheduler.take_ended():
        kernel.requests.ended(job)
    assert second.recv(2) == b"1"
