"""The loader process: one step a datagram, each answered."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from kmodd.errors import Where
from kmodd.loader import worker
from kmodd.loader.actions import Reply, open_module
from kmodd.loader.pool import Died, Loader
from kmodd.loader.protocol import (
    MAX_STEP,
    InsmodRequest,
    InsmodRunRequest,
    LoaderRequest,
    ProbeRequest,
    RmmodRequest,
    ShellRequest,
    StopRequest,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from kmodd.loader.trusted_paths import Trusted
from kmodd.modfile.decompress import UNPACKED_LIMIT
from tests.fakes import FakeKernel

ROOT = Path(__file__).resolve().parents[3]
WAIT = 30.0
"""Seconds that an answer may take; a hang is a failure, not a wait."""


class Served:
    """A loader in a thread, and the daemon's lane to it."""

    def __init__(self, kernel: FakeKernel, trusted: Trusted) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(WAIT)
        self.lane = Loader(ours)
        self.thread = threading.Thread(target=self._serve, args=(theirs, kernel, trusted))
        self.thread.start()
        assert self.lane.receive() is None
        assert self.lane.pid

    @staticmethod
    def _serve(connection: socket.socket, kernel: FakeKernel, trusted: Trusted) -> None:
        with connection:
            worker.serve(connection.fileno(), kernel, trusted)

    def close(self) -> None:
        self.lane.close()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def do(self, call: InsmodRequest | ShellRequest | ProbeRequest) -> Reply:
        assert self.lane.start(InsmodRunRequest((call,), ("a",)) if isinstance(call, InsmodRequest) else call)
        answer = self.lane.receive()
        assert isinstance(answer, Reply)
        return answer


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def served(kernel: FakeKernel, tmp_path: Path) -> Iterator[Served]:
    """It trusts the test's folder: module files below it, commands from files in it."""
    it = Served(kernel, Trusted((str(tmp_path),), (str(tmp_path),), f"{tmp_path}/sys"))
    yield it
    it.close()


def module(folder: Path, name: str, content: bytes = b"\x7fELF module") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def test_a_plain_file_goes_to_the_kernel_with_its_options(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    answer = served.do(InsmodRequest(module(tmp_path, "a.ko"), 'x=1 y="b c"'))
    assert (answer.errno, answer.stage) == (0, "kernel")
    assert kernel.calls == [("a.ko", 'x=1 y="b c"', 0)]


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENODEV, errno.ENOENT, errno.EPERM, errno.ENOEXEC])
def test_the_kernels_errno_comes_back(served: Served, kernel: FakeKernel, tmp_path: Path, code: int) -> None:
    kernel.refuse["a.ko"] = code
    answer = served.do(InsmodRequest(module(tmp_path, "a.ko"), ""))
    assert (answer.errno, answer.stage) == (code, "kernel")


def test_a_missing_file_is_not_an_unknown_symbol(served: Served, tmp_path: Path) -> None:
    """Both are ENOENT: who said it makes the difference."""
    answer = served.do(InsmodRequest(str(tmp_path / "none.ko"), ""))
    assert (answer.errno, answer.stage) == (errno.ENOENT, "file")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_what_the_kernel_cannot_unpack_is_unpacked_here(
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


def install_line(folder: Path, command: str) -> ShellRequest:
    conf = folder / "a.conf"
    conf.write_text(f"# first\ninstall foo {command}\n")
    return ShellRequest("foo", Where("/etc/modprobe.d/a.conf", 2), str(conf), "x=1 y=2")


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
    answer = served.do(ShellRequest(call.module, Where(call.at.file, 1), call.real_file, ""))
    assert "the line is no longer an install or remove command" in answer.detail


@pytest.mark.parametrize(
    "datagram",
    [b"\0", b"\xff", b"format\0a", b"insmod", b"insmod\0/a\0", b"insmod\0/a\0\0a\0/b", b"install\0a\0b\0x\0c\0",
     b"probe\0pci\0a\0"],
)  # fmt: skip
def test_what_is_no_step_is_refused_and_the_loader_goes_on(served: Served, tmp_path: Path, datagram: bytes) -> None:
    served.lane.connection.send(datagram)
    answer = served.lane.receive()
    assert isinstance(answer, Reply)
    assert answer.errno == errno.EPROTO
    assert served.do(InsmodRequest(module(tmp_path, "a.ko"), "")).errno == 0


@pytest.mark.parametrize(
    "call",
    [InsmodRunRequest((InsmodRequest("/é\udcff.ko", "x=a\nb\tc"), InsmodRequest("/b.ko", "")), ("é", "b")),
     RmmodRequest("a"), StopRequest(),
     ShellRequest("foo", Where("/etc/a b.conf", 7), "/real/\udc80", ""), ProbeRequest("pci", "0000:00:1f.2")],
)  # fmt: skip
def test_a_call_is_understood_as_it_was_meant(call: LoaderRequest) -> None:
    """Bytes that are not UTF-8 too, which Python holds as lone surrogates."""
    assert decode_request(encode_request(call)) == call


def test_a_reply_is_understood_as_it_was_meant() -> None:
    for reply in (Reply(0, "kernel", 5), Reply(errno.EACCES, "file", 10**9, "/\udcff.ko: \0 is é")):
        assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize("words", [("/a\0/b", ""), ("/a", "x\0y"), ("/a", "1\x002\x003\0"), ("/a", "x" * MAX_STEP)])
def test_what_no_datagram_can_hold_is_not_sent(words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="loader request "):
        encode_request(InsmodRunRequest((InsmodRequest(*words),), ("a",)))


# ── what a loader takes ──────────────────────────────────────────────────────────────────────────────────────────────


def spoil(path: Path, how: str) -> None:
    """Let somebody else write it."""
    if how == "owner":
        os.chown(path, 65534, -1)
    else:
        path.chmod(path.stat().st_mode | {"group": 0o020, "others": 0o002, "sticky": 0o1002}[how])


def tree(folder: Path) -> Path:
    """A module in the middle of a tree."""
    path = folder / "6.1/kernel/a.ko"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF module")
    return path


AS_ROOT = pytest.param("owner", marks=pytest.mark.root)


@pytest.mark.parametrize("place", ["6.1/kernel/a.ko", "6.1/kernel", "6.1", "."])
@pytest.mark.parametrize("how", ["group", "others", AS_ROOT])
def test_a_module_that_somebody_else_could_have_written_is_refused(
    served: Served, kernel: FakeKernel, tmp_path: Path, place: str, how: str
) -> None:
    path = tree(tmp_path)
    assert served.do(InsmodRequest(str(path), "")).errno == 0
    spoil(tmp_path / place, how)
    answer = served.do(InsmodRequest(str(path), ""))
    assert (answer.errno, answer.stage) == (errno.EACCES, "file")
    words = {"group": "writable by its group", "others": "writable by others", "owner": "owned by uid 65534"}
    assert words[how] in answer.detail
    assert str(path) in answer.detail
    assert (f"lies in {tmp_path / place}, which" in answer.detail) == (place != "6.1/kernel/a.ko")
    assert len(kernel.calls) == 1


def test_a_sticky_directory_is_no_better(served: Served, tmp_path: Path) -> None:
    path = tree(tmp_path)
    spoil(path.parent, "sticky")
    assert "writable by others" in served.do(InsmodRequest(str(path), "")).detail


def test_a_link_within_the_tree_is_followed_and_one_out_of_it_refused(kernel: FakeKernel, tmp_path: Path) -> None:
    """weak-updates links one kernel's module into another's tree; a build folder's module is anybody's."""
    path = tree(tmp_path / "modules")
    outside = tree(tmp_path / "build")
    (path.parent / "weak.ko").symlink_to(path)
    (path.parent / "dkms.ko").symlink_to(outside)
    served = Served(kernel, Trusted((str(tmp_path / "modules"), str(tmp_path / "none"))))
    try:
        assert served.do(InsmodRequest(f"{path.parent}/weak.ko", "")).errno == 0
        for name in (f"{path.parent}/dkms.ko", str(outside), f"{tmp_path}/modules/../build/6.1/kernel/a.ko"):
            answer = served.do(InsmodRequest(name, ""))
            assert (answer.errno, answer.stage) == (errno.EACCES, "file")
            assert answer.detail == f"{name}: is {outside}, which is not below {tmp_path}/modules or {tmp_path}/none"
        assert kernel.calls == [("a.ko", "", 0)]
    finally:
        served.close()


def test_a_tree_may_be_a_link_itself(kernel: FakeKernel, tmp_path: Path) -> None:
    """As /lib is on a merged /usr."""
    tree(tmp_path / "usr/lib/modules")
    (tmp_path / "lib").symlink_to("usr/lib")
    served = Served(kernel, Trusted((f"{tmp_path}/lib/modules",)))
    try:
        assert served.do(InsmodRequest(f"{tmp_path}/lib/modules/6.1/kernel/a.ko", "")).errno == 0
    finally:
        served.close()


def test_a_folder_whose_name_only_begins_like_the_trees_is_outside(kernel: FakeKernel, tmp_path: Path) -> None:
    path = tree(tmp_path / "modules-of-mine")
    served = Served(kernel, Trusted((str(tmp_path / "modules"),)))
    try:
        assert "is not below" in served.do(InsmodRequest(str(path), "")).detail
    finally:
        served.close()


def test_what_is_no_file_is_refused_and_waits_for_nobody(served: Served, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ko", 0o644)
    answer = served.do(InsmodRequest(f"{tmp_path}/pipe.ko", ""))
    assert (answer.errno, answer.stage) == (errno.EACCES, "file")
    assert answer.detail == f"{tmp_path}/pipe.ko: is not a regular file"


@pytest.mark.parametrize("how", ["group", "others", AS_ROOT])
@pytest.mark.parametrize("place", ["a.conf", "."])
def test_a_command_that_somebody_else_could_have_written_is_not_run(
    served: Served, tmp_path: Path, place: str, how: str
) -> None:
    call = install_line(tmp_path, f"touch {tmp_path}/told")
    spoil(tmp_path / place, how)
    answer = served.do(call)
    assert (answer.errno, answer.stage) == (errno.EINVAL, "command")
    assert "writable by" in answer.detail or "owned by uid 65534" in answer.detail
    assert not (tmp_path / "told").exists()


def test_a_command_is_taken_from_the_configuration_only(kernel: FakeKernel, tmp_path: Path) -> None:
    for name in ("etc/modprobe.d", "lib/modules/6.1", "home"):
        (tmp_path / name).mkdir(parents=True)
    served = Served(kernel, Trusted.below(str(tmp_path)))
    try:
        assert served.do(install_line(tmp_path / "etc/modprobe.d", "true")).errno == 0
        answer = served.do(install_line(tmp_path / "home", "true"))
        assert answer.detail.startswith(f"/etc/modprobe.d/a.conf: is not in {tmp_path}/etc/modprobe.d or ")
        softdep = tmp_path / "lib/modules/6.1/modules.softdep"
        softdep.write_text("# by depmod\ninstall foo true\n")
        at = Where("/lib/modules/6.1/modules.softdep", 2)
        assert served.do(ShellRequest("foo", at, str(softdep), "")).errno == 0
        other = softdep.with_name("modules.order")
        softdep.rename(other)
        assert "is not in" in served.do(ShellRequest("foo", at, str(other), "")).detail
    finally:
        served.close()


def test_a_link_out_of_the_configuration_counts_where_the_way_is_roots(tmp_path: Path) -> None:
    """Debian's alternatives: /etc/modprobe.d/nvidia.conf leads to /etc/nvidia. Nobody else may own a step of it."""
    conf = tmp_path / "a-longer-name-than-the-other"
    conf.mkdir()
    (conf / "good.conf").symlink_to("/etc/passwd")
    (conf / "bad.conf").symlink_to(tmp_path / "loose/inner/file")
    (tmp_path / "loose/inner").mkdir(parents=True)
    (tmp_path / "loose/inner/file").touch()
    (tmp_path / "loose").chmod(0o777)
    trusted = Trusted(conf=(str(conf),))
    os.close(trusted.open_config(f"{conf}/good.conf"))
    with pytest.raises(OSError, match=f"lies in {tmp_path}/loose, which is writable by others"):
        trusted.open_config(f"{conf}/bad.conf")
    conf.chmod(0o777)  # then anybody could have made the link
    with pytest.raises(OSError, match=f"lies in {conf}, which is writable by others"):
        trusted.open_config(f"{conf}/good.conf")


def test_places_as_options_say_the_same_again(tmp_path: Path) -> None:
    words = Trusted.below("/x").words()
    assert words[:4] == ["--tree", "/x/lib/modules", "--tree", "/x/usr/lib/modules"]
    assert words[4:6] == ["--conf", "/x/etc/modprobe.d"]
    assert words[-2:] == ["--sys", "/x/sys"]
    assert Trusted.below("") == Trusted()


# ── reading ahead, probing ───────────────────────────────────────────────────────────────────────────────────────────


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


def test_a_run_ends_before_what_somebody_else_has_brought(served: Served, kernel: FakeKernel, tmp_path: Path) -> None:
    (tmp_path / "sys/module/b").mkdir(parents=True)
    (tmp_path / "sys/module/b/initstate").write_text("coming\n")
    (tmp_path / "sys/module/c").mkdir()  # builtin: it has parameters there, and no state
    assert served.lane.start(run(tmp_path, "a", "b"))
    assert replies(served, 2) == [(0, "kernel"), (errno.ECANCELED, "none")]
    assert served.lane.start(run(tmp_path, "a", "c"))
    assert replies(served, 2) == [(0, "kernel")] * 2
    assert [name for name, _, _ in kernel.calls] == ["a.ko", "a.ko", "c.ko"]


def test_a_run_can_be_stopped_and_a_stop_that_comes_too_late_does_nothing(
    served: Served, kernel: FakeKernel, tmp_path: Path
) -> None:
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
def test_what_is_no_name_is_not_probed(served: Served, tmp_path: Path, bus: str, device: str) -> None:
    answer = served.do(ProbeRequest(bus, device))
    assert (answer.errno, answer.detail[:15]) == (errno.EPROTO, "invalid request")


@pytest.mark.parametrize("device", ["Fixed MDIO bus.0", "soc@0:ports,1", "spi-PRP0001:00", "i2c-INT33C3:00", "a!b"])
def test_names_that_devices_have_are_taken(served: Served, tmp_path: Path, device: str) -> None:
    probe = tmp_path / "sys/bus/platform/drivers_probe"
    probe.parent.mkdir(parents=True)
    probe.touch()
    assert served.do(ProbeRequest("platform", device)).errno == 0
    assert probe.read_text() == device


# ── its start and its end ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_loader_imports_only_what_it_needs() -> None:
    """Until it has done a step: the start of a loader, and of what forks it, is time that a boot waits for."""
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
        ours.send(encode_request(InsmodRunRequest((InsmodRequest("/nowhere.ko", ""),), ("nowhere",))))
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


def test_a_loader_that_is_gone_is_noticed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lane = Loader(ours)
    theirs.close()
    assert lane.receive() == Died()
    assert not lane.start(InsmodRunRequest((InsmodRequest("/x", ""),), ("x",)))
    lane.close()
