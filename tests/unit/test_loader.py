"""The loader process: one step a datagram, each answered."""

from __future__ import annotations

import errno
import gzip
import lzma
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.errors import Where
from kmodd.host import loader
from kmodd.host.lanes import Died, Lane
from kmodd.host.loader import CommandCall, InsmodCall, Reply
from tests.fakes import FakeKernel

WAIT = 10.0
"""Seconds that an answer may take; a hang is a failure, not a wait."""


class Served:
    """A loader in a thread, and the daemon's lane to it."""

    def __init__(self, kernel: FakeKernel) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(WAIT)
        self.lane = Lane(ours)
        self.thread = threading.Thread(target=self._serve, args=(theirs, kernel))
        self.thread.start()
        assert self.lane.receive() is None
        assert self.lane.pid

    @staticmethod
    def _serve(connection: socket.socket, kernel: FakeKernel) -> None:
        with connection:
            loader.serve(connection, kernel)

    def do(self, call: loader.Call) -> Reply:
        assert self.lane.start(call)
        answer = self.lane.receive()
        assert isinstance(answer, Reply)
        return answer


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def served(kernel: FakeKernel) -> Iterator[Served]:
    it = Served(kernel)
    yield it
    it.lane.close()
    it.thread.join(WAIT)
    assert not it.thread.is_alive()


def module(folder: Path, name: str, content: bytes = b"\x7fELF module") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def test_a_plain_file_goes_to_the_kernel_with_its_options(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    answer = served.do(InsmodCall(module(tmp_path, "a.ko"), 'x=1 y="b c"'))
    assert (answer.errno, answer.stage) == (0, "kernel")
    assert kernel.calls == [("a.ko", 'x=1 y="b c"', 0)]


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENODEV, errno.ENOENT, errno.EPERM, errno.ENOEXEC])
def test_the_kernels_errno_comes_back(served: Served, kernel: FakeKernel, tmp_path: Path, code: int) -> None:
    kernel.refuse["a.ko"] = code
    answer = served.do(InsmodCall(module(tmp_path, "a.ko"), ""))
    assert (answer.errno, answer.stage) == (code, "kernel")


def test_a_missing_file_is_not_an_unknown_symbol(served: Served, tmp_path: Path) -> None:
    """Both are ENOENT: who said it makes the difference."""
    answer = served.do(InsmodCall(str(tmp_path / "none.ko"), ""))
    assert (answer.errno, answer.stage) == (errno.ENOENT, "file")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_what_the_kernel_cannot_unpack_is_unpacked_here(
    served: Served, kernel: FakeKernel, tmp_path: Path, pack: object
) -> None:
    """kmod: in every other case the file is unpacked in memory and given to init_module; the suffix says nothing."""
    if Path("/sys/module/compression").exists():
        pytest.fail("this kernel unpacks modules by itself; the test needs one that does not")
    assert callable(pack)
    answer = served.do(InsmodCall(module(tmp_path, "a.ko", pack(b"image")), "x=1"))
    assert answer.errno == 0
    assert kernel.calls == [("image", "x=1", -1)]


def test_damaged_compressed_data_is_an_error(served: Served, tmp_path: Path) -> None:
    answer = served.do(InsmodCall(module(tmp_path, "a.ko", gzip.compress(b"image")[:-9]), ""))
    assert (answer.errno, answer.stage) == (errno.EINVAL, "file")


def test_a_kernel_without_finit_module_gets_the_bytes(tmp_path: Path) -> None:
    """kmod: ENOSYS is the only errno after which init_module is tried."""
    kernel = FakeKernel(refuse={"a.ko": errno.ENOSYS})
    loader.open_module(module(tmp_path, "a.ko", b"plain bytes"))(kernel, "")
    assert kernel.calls == [("a.ko", "", 0), ("plain bytes", "", -1)]


def install_line(folder: Path, command: str) -> CommandCall:
    conf = folder / "a.conf"
    conf.write_text(f"# first\ninstall foo {command}\n")
    return CommandCall("foo", Where("/etc/modprobe.d/a.conf", 2), str(conf), "x=1 y=2")


def test_an_install_command_is_read_from_its_line_and_run(served: Served, tmp_path: Path) -> None:
    """modprobe.d(5), install: MODPROBE_MODULE is set, $CMDLINE_OPTS replaced."""
    told = tmp_path / "told"
    answer = served.do(install_line(tmp_path, f'echo "$MODPROBE_MODULE:$CMDLINE_OPTS" >{told}'))
    assert (answer.errno, answer.stage, answer.detail) == (0, "command", "")
    assert told.read_text() == "foo:x=1 y=2\n"


def test_a_failing_install_command_says_its_place_and_status(served: Served, tmp_path: Path) -> None:
    answer = served.do(install_line(tmp_path, "exit 3"))
    assert (answer.errno, answer.stage) == (errno.EINVAL, "command")
    assert answer.detail == "install command of /etc/modprobe.d/a.conf:2 exited with status 3"


def test_signals_are_blocked_in_a_step_and_not_in_the_command(served: Served, tmp_path: Path) -> None:
    answer = served.do(install_line(tmp_path, "kill -TERM $$; exit 0"))
    assert answer.detail == "install command of /etc/modprobe.d/a.conf:2 was killed by SIGTERM"


def test_a_line_that_is_no_longer_there_runs_nothing(served: Served, tmp_path: Path) -> None:
    call = install_line(tmp_path, "true")
    answer = served.do(CommandCall(call.module, Where(call.at.file, 1), call.real_file, ""))
    assert "no install command there any more" in answer.detail


@pytest.mark.parametrize("datagram", [b"{}", b"[]", b"nonsense", b'{"do": "format"}', b'{"do": "insmod", "path": 3}'])
def test_what_is_no_step_is_refused_and_the_loader_goes_on(served: Served, tmp_path: Path, datagram: bytes) -> None:
    served.lane.connection.send(datagram)
    answer = served.lane.receive()
    assert isinstance(answer, Reply)
    assert answer.errno == errno.EPROTO
    assert served.do(InsmodCall(module(tmp_path, "a.ko"), "")).errno == 0


def test_a_loader_that_is_gone_is_noticed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lane = Lane(ours)
    theirs.close()
    assert lane.receive() == Died()
    assert not lane.start(InsmodCall("/x", ""))
    lane.close()
