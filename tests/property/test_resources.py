"""Large configuration, huge files and floods: the result is exact, and memory is at most proportional to the input."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.config import modprobe_d, policy_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.host.helper_socket import MAX_CONNECTIONS, RequestSocket
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.planning.policy import Policy, PolicyQuery
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, resolve

pytestmark = [pytest.mark.property, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def long(count: int) -> Any:
    """The size that an attack has, in `make test-long`."""
    return pytest.param(count, marks=pytest.mark.long)


def memory_of(call: Callable[[], object]) -> int:
    """Return the bytes that Python has held at most during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ── configuration ────────────────────────────────────────────────────────────────────────────────────────────────────

RULE_BYTES = 5_000
"""Memory of a rule with a pattern and a user, read and prepared."""


@pytest.mark.parametrize("count", [3_000, long(100_000)])
def test_many_rules_take_memory_for_each_and_the_last_one_decides(count: int) -> None:
    lines = "".join(f"deny origin=request uid={number} request=fs-{number}*\n" for number in range(count - 1))
    found: list[Policy] = []

    def read() -> None:
        parsed = policy_d.parse([ConfFile("/etc/kmodd/policy.d/a.conf", f"{lines}deny request=net-pf-38\n")])
        assert parsed.problems == ()
        found.append(Policy("enforce", parsed.rules))

    assert count * RULE_BYTES / 4 < memory_of(read) < count * RULE_BYTES
    for request, is_refused in (("net-pf-38", True), ("net-pf-9", False)):
        decision = found[0].judge(PolicyQuery("request", request, "running"), "af_alg")
        assert decision.refused is is_refused


PLAN_BYTES = 3_000
"""Memory of a module of a plan."""


@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.parametrize("count", [1_000, long(10_000)])
def test_a_cycle_of_softdeps_is_gone_round_once(count: int, kind: str) -> None:
    index = "".join(f"kernel/m{number}.ko:\n" for number in range(count)).encode()
    text = "".join(f"softdep m{number} {kind}: m{(number + 1) % count}\n" for number in range(count))
    config = modprobe_d.parse([ConfFile("/etc/modprobe.d/a.conf", text)])
    shot = Snapshot(Catalog([Layer("/m", {"modules.dep": index}.get)]), config)
    names: list[str] = []

    def plan() -> None:
        made = resolve(Request("m0", "operator"), shot, NOTHING_LOADED, ProbeOptions(), lambda _: True)
        names.extend(step.module for step in made.steps)

    assert memory_of(plan) < count * PLAN_BYTES
    assert sorted(names) == sorted(f"m{number}" for number in range(count))


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────

IN_LITTLE_MEMORY = """
import resource, sys
sys.path.insert(0, {root!r})
from kmodd.cli.kmod import depmod, modinfo
from kmodd.modfile import decompress
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
tool = {{"depmod": depmod, "modinfo": modinfo}}[sys.argv[1]]
sys.exit(tool.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("head", [b"", b"\x7fELF\2\1\1"])
@pytest.mark.parametrize("tool", ["modinfo", "depmod"])
def test_a_module_of_2_gib_of_zeros_is_refused_without_memory_for_it(tool: str, head: bytes, tmp_path: Path) -> None:
    """256 MiB of address space are enough; the other modules of the tree go into the index."""
    tree = tmp_path / "lib/modules/6.1.0-test"
    tree.mkdir(parents=True)
    huge = tree / "huge.ko"
    huge.write_bytes(head)
    os.truncate(huge, 2 * GIB)
    arguments = ["-b", str(tmp_path), "6.1.0-test"] if tool == "depmod" else [str(huge)]
    program = IN_LITTLE_MEMORY.format(root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", program, tool, *arguments], capture_output=True, text=True, check=False
    )
    assert "huge" in done.stderr
    assert "MemoryError" not in done.stderr
    assert "Cannot allocate" not in done.stderr
    assert done.returncode == 1 or tool == "depmod"


# ── floods ───────────────────────────────────────────────────────────────────────────────────────────────────────────

FLOOD = 10_000
FLOOD_BYTES = 2 << 20


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[RequestSocket]:
    it = RequestSocket(str(tmp_path / "request"))
    yield it
    it.close()


def helper_of(requests: RequestSocket) -> socket.socket:
    helper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    helper.setblocking(False)
    helper.connect(requests.path)
    return helper


def test_a_flood_of_helpers_holds_no_more_than_the_limit(requests: RequestSocket) -> None:
    """Those beyond it are closed, and do without the daemon. Then one that comes after the flood is served."""
    most = 0

    def flood() -> None:
        nonlocal most
        helpers: list[socket.socket] = []
        for number in range(FLOOD):
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # the queue is full, or it was closed already
                helpers.append(helper_of(requests))
                helpers[-1].send(b"net-pf-%d" % number)
            if number % 200 == 199:
                requests.receive()
                most = max(most, len(requests.waiting))
                for helper in helpers[:-MAX_CONNECTIONS]:
                    helper.close()
                del helpers[:-MAX_CONNECTIONS]
        for helper in helpers:
            helper.close()

    assert memory_of(flood) < FLOOD_BYTES
    assert MAX_CONNECTIONS / 2 < most <= MAX_CONNECTIONS
    requests.receive()
    with helper_of(requests) as last:
        last.send(b"net-pf-9")
        assert "net-pf-9" in [request.name for request in requests.receive()]


def test_a_helper_that_sends_on_and_on_is_dropped(requests: RequestSocket) -> None:
    """It sends its name, and nothing more: the second datagram ends its request."""
    with helper_of(requests) as helper:
        helper.send(b"net-pf-9")
        assert [request.name for request in requests.receive()] == ["net-pf-9"]
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            for _ in range(FLOOD):
                helper.send(b"net-pf-38")
                sent += 1
                if sent % 10 == 0:
                    assert requests.receive() == []
        assert sent <= 10
    assert requests.waiting == ()
