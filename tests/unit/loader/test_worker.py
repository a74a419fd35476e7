"""A loader process: one request a datagram, one reply for each step."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest
import zstandard

from kmodd.loader.actions import open_module
from kmodd.loader.pool import Died, Loader
from kmodd.loader.protocol import (
    MAX_STEP,
    InsmodRequest,
    InsmodRunRequest,
    ProbeRequest,
    decode_reply,
    encode_request,
)
from kmodd.loader.trusted_paths import Trusted
from kmodd.modfile.decompress import UNPACKED_LIMIT
from kmodd.planning.reply import Reply
from tests.fakes import FakeKernel
from tests.loader_harness import WAIT, Served, module

ROOT = Path(__file__).resolve().parents[3]


def test_a_plain_file_is_loaded_with_its_options(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    answer = served.do(InsmodRequest(module(tmp_path, "a.ko"), 'x=1 y="b c"'))
    assert (answer.errno, answer.stage) == (0, "kernel")
    assert kernel.calls == [("a.ko", 'x=1 y="b c"', 0)]


def test_the_reply_has_the_build_id_that_the_kernel_shows(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    """Of a module that was loaded. Control: one that the kernel refuses, and one of which it shows none."""
    call = InsmodRequest(module(tmp_path, "a.ko"), "")
    assert served.do(call).build_id == ""
    notes = tmp_path / "sys/module/a/notes/.note.gnu.build-id"
    notes.parent.mkdir(parents=True)
    notes.write_bytes(pack("=3I", 4, 3, 3) + b"GNU\0\x0a\x1b\x2c\0")
    assert served.do(call).build_id == "0a1b2c"
    kernel.refuse["a.ko"] = errno.EEXIST
    assert served.do(call).build_id == ""


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENODEV, errno.ENOENT, errno.EPERM, errno.ENOEXEC])
def test_the_kernels_errno_is_returned(served: Served, kernel: FakeKernel, tmp_path: Path, code: int) -> None:
    kernel.refuse["a.ko"] = code
    answer = served.do(InsmodRequest(module(tmp_path, "a.ko"), ""))
    assert (answer.errno, answer.stage) == (code, "kernel")


class _Exhausted(FakeKernel):
    """As where the memory for the image of a module is missing."""

    def init_module(self, image: bytes, options: str) -> None:
        raise MemoryError


def test_a_lack_of_memory_is_an_errno_and_the_loader_goes_on(tmp_path: Path) -> None:
    kernel = _Exhausted()
    served = Served(kernel, Trusted((str(tmp_path),)))
    answer = served.do(InsmodRequest(module(tmp_path, "a.ko", gzip.compress(b"image")), ""))
    assert (answer.errno, answer.stage) == (errno.ENOMEM, "kernel")
    assert served.do(InsmodRequest(module(tmp_path, "b.ko"), "")).errno == 0
    served.close()


def test_a_missing_file_is_not_an_unknown_symbol(served: Served, tmp_path: Path) -> None:
    """Both are ENOENT; the stage tells them apart."""
    answer = served.do(InsmodRequest(str(tmp_path / "none.ko"), ""))
    assert (answer.errno, answer.stage) == (errno.ENOENT, "file")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_file_the_kernel_cannot_unpack_is_unpacked_by_the_loader(
    served: Served, kernel: FakeKernel, tmp_path: Path, pack: object
) -> None:
    """kmod: in every other case the file is unpacked in memory and given to init_module; the suffix says nothing."""
    if Path("/sys/module/compression").exists():
        pytest.fail("this kernel unpacks modules by itself; the test needs one that does not")
    assert callable(pack)
    answer = served.do(InsmodRequest(module(tmp_path, "a.ko", pack(b"image")), "x=1"))
    assert answer.errno == 0
    assert kernel.calls == [("image", "x=1", -1)]


def test_damaged_compressed_data_is_an_error(served: Served, tmp_path: Path) -> None:
    answer = served.do(InsmodRequest(module(tmp_path, "a.ko", gzip.compress(b"image")[:-9]), ""))
    assert (answer.errno, answer.stage) == (errno.EINVAL, "file")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_a_compressed_file_has_a_limit(
    served: Served, kernel: FakeKernel, tmp_path: Path, pack: Callable[[bytes], bytes], limit: int
) -> None:
    """An image of the limit goes to the kernel; one byte more is an error that names the file, and the limit."""
    assert served.do(InsmodRequest(module(tmp_path, "a.ko", pack(b"a" * limit)), "")).errno == 0
    path = module(tmp_path, "b.ko", pack(b"b" * (limit + 1)))
    answer = served.do(InsmodRequest(path, ""))
    assert (answer.errno, answer.stage) == (errno.EFBIG, "file")
    assert answer.detail.startswith(f"{path}: unpacked size exceeds ")
    assert kernel.calls == [("a" * limit, "", -1)]


def test_a_plain_file_has_no_limit(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    path = module(tmp_path, "a.ko")
    os.truncate(path, UNPACKED_LIMIT + 1)
    assert served.do(InsmodRequest(path, "")).errno == 0
    assert kernel.calls == [("a.ko", "", 0)]


def test_a_kernel_without_finit_module_gets_the_bytes(tmp_path: Path) -> None:
    """kmod: ENOSYS is the only errno after which init_module is tried."""
    kernel = FakeKernel(refuse={"a.ko": errno.ENOSYS})
    open_module(module(tmp_path, "a.ko", b"plain bytes"))(kernel, "")
    assert kernel.calls == [("a.ko", "", 0), ("plain bytes", "", -1)]
    kernel.calls.clear()
    open_module(module(tmp_path, "a.ko", b"plain bytes"), 3)(kernel, "")
    assert kernel.calls == [("a.ko", "", 3), ("plain bytes", "", -1)], "it has no flags, so the load is not forced"


@pytest.mark.parametrize(
    "datagram",
    [b"\0", b"\xff", b"format\0a", b"insmod", b"insmod\0/a\0", b"insmod\0/a\0\0a\0/b", b"install\0a\0/b\x002\0/b\0",
     b"probe\0pci\0a\0"],
)  # fmt: skip
def test_an_invalid_request_is_refused_and_the_loader_continues(
    served: Served, tmp_path: Path, datagram: bytes
) -> None:
    served.lane.connection.send(datagram)
    answer = served.lane.receive()
    assert isinstance(answer, Reply)
    assert answer.errno == errno.EPROTO
    assert served.do(InsmodRequest(module(tmp_path, "a.ko"), "")).errno == 0


def run(folder: Path, *names: str) -> InsmodRunRequest:
    """Files of these names, with as many modules."""
    return InsmodRunRequest(tuple(InsmodRequest(module(folder, f"{name}.ko"), "") for name in names), names)


def replies(served: Served, count: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for _ in range(count):
        reply = served.lane.receive()
        assert isinstance(reply, Reply)
        found.append((reply.errno, reply.stage))
    return found


def test_each_file_of_a_run_is_answered_in_order(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    assert served.lane.start(run(tmp_path, "a", "b", "c"))
    assert replies(served, 3) == [(0, "kernel")] * 3
    assert [name for name, _, _ in kernel.calls] == ["a.ko", "b.ko", "c.ko"]


def test_a_run_ends_at_the_first_failure(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.refuse["b.ko"] = errno.ENODEV
    assert served.lane.start(run(tmp_path, "a", "b", "c"))
    assert replies(served, 2) == [(0, "kernel"), (errno.ENODEV, "kernel")]
    assert served.do(InsmodRequest(module(tmp_path, "d.ko"), "")).errno == 0  # and nothing of c is said or done
    assert [name for name, _, _ in kernel.calls] == ["a.ko", "b.ko", "d.ko"]


def test_a_run_ends_before_a_module_that_is_loaded_elsewhere(
    served: Served, kernel: FakeKernel, tmp_path: Path
) -> None:
    (tmp_path / "sys/module/b").mkdir(parents=True)
    (tmp_path / "sys/module/b/initstate").write_text("coming\n")
    (tmp_path / "sys/module/c").mkdir()  # builtin: it has parameters there, and no state
    assert served.lane.start(run(tmp_path, "a", "b"))
    assert replies(served, 2) == [(0, "kernel"), (errno.ECANCELED, "none")]
    assert served.lane.start(run(tmp_path, "a", "c"))
    assert replies(served, 2) == [(0, "kernel")] * 2
    assert [name for name, _, _ in kernel.calls] == ["a.ko", "a.ko", "c.ko"]


def test_a_run_can_be_stopped_and_a_late_stop_does_nothing(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()
    load = kernel.finit_module

    def slow(fd: int, options: str, flags: int) -> None:
        load(fd, options, flags)
        entered.set()
        assert go_on.wait(WAIT)

    kernel.finit_module = slow  # type: ignore[method-assign]
    assert served.lane.start(run(tmp_path, "a", "b"))
    assert entered.wait(WAIT)
    served.lane.stop()
    go_on.set()
    assert replies(served, 2) == [(0, "kernel"), (errno.ECANCELED, "none")]
    served.lane.stop()
    assert served.lane.start(run(tmp_path, "c", "d"))
    assert replies(served, 2) == [(0, "kernel")] * 2
    assert [name for name, _, _ in kernel.calls] == ["a.ko", "c.ko", "d.ko"]


def test_a_device_is_probed_by_its_name(served: Served, tmp_path: Path) -> None:
    """Documentation/ABI/testing/sysfs-bus: writing a device's name to drivers_probe."""
    probe = tmp_path / "sys/bus/pci/drivers_probe"
    probe.parent.mkdir(parents=True)
    probe.touch()
    answer = served.do(ProbeRequest("pci", "0000:00:1f.2"))
    assert (answer.errno, answer.stage, probe.read_text()) == (0, "kernel", "0000:00:1f.2")
    assert served.do(ProbeRequest("usb", "1-1:1.0")).errno == errno.ENOENT


@pytest.mark.parametrize(
    ("bus", "device"),
    [("..", "a"), (".", "a"), ("pci/../../x", "a"), ("", "a"), ("p ci", "a"),
     ("pci", ""), ("pci", "a/b"), ("pci", ".."), ("pci", "a\n"), ("pci", "x" * 256), ("pci", "é")],
)  # fmt: skip
def test_an_invalid_name_is_not_probed(served: Served, tmp_path: Path, bus: str, device: str) -> None:
    answer = served.do(ProbeRequest(bus, device))
    assert (answer.errno, answer.detail[:15]) == (errno.EPROTO, "invalid request")


@pytest.mark.parametrize("device", ["Fixed MDIO bus.0", "soc@0:ports,1", "spi-PRP0001:00", "i2c-INT33C3:00", "a!b"])
def test_names_of_real_devices_are_accepted(served: Served, tmp_path: Path, device: str) -> None:
    probe = tmp_path / "sys/bus/platform/drivers_probe"
    probe.parent.mkdir(parents=True)
    probe.touch()
    assert served.do(ProbeRequest("platform", device)).errno == 0
    assert probe.read_text() == device


def test_a_loader_imports_few_modules() -> None:
    """Until its first step: a boot waits for the start of the spawner and the loader."""
    program = """
import os, sys
from kmodd.cli.__main__ import main
end = os._exit
def tell(status):
    print(*sys.modules, flush=True)
    end(status)
os._exit = tell  # as which a loader ends, being a fork
main()
"""
    spawner, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, spawner, asked:
        ours.send(encode_request(InsmodRunRequest((InsmodRequest("/lib/modules/nowhere.ko", ""),), ("nowhere",))))
        ours.shutdown(socket.SHUT_WR)
        socket.send_fds(spawner, [b"loader"], [theirs.fileno()])
        spawner.shutdown(socket.SHUT_WR)
        words = [sys.executable, "-S", "-c", program, "loader", "--fd", str(asked.fileno())]
        done = subprocess.run(words, cwd=ROOT, env={}, pass_fds=[asked.fileno()], capture_output=True, text=True)
        assert int(ours.recv(MAX_STEP))
        assert decode_reply(ours.recv(MAX_STEP)).errno == errno.ENOENT
    modules = set(done.stdout.split())
    assert "kmodd.loader.worker" in modules
    heavy = {"socket", "json", "re", "enum", "signal", "contextlib", "collections", "kmodd.config.modprobe_d"}
    heavy |= {"zlib", "lzma", "zstandard", "kmodd.modfile.decompress"}
    assert modules & heavy == set()


def test_a_dead_loader_is_noticed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lane = Loader(ours)
    theirs.close()
    assert lane.receive() == Died()
    assert not lane.start(InsmodRunRequest((InsmodRequest("/x", ""),), ("x",)))
    lane.close()
