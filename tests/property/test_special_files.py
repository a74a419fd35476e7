"""Every file that is read, replaced by every kind of special file: an answer or one message, no hang, little memory."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmodd.cli import check, devices, explain, lint, lookup, policy, static_nodes, whatif
from kmodd.cli.kmod import depmod, lsmod, modinfo, modprobe, rmmod
from kmodd.host.regular_files import LIMIT, read_given, read_regular
from tests import program, rootfs
from tests.rootfs import RELEASE
from tests.tool import Main, ours

pytestmark = [pytest.mark.property, pytest.mark.timeout(180)]

MODULES = f"lib/modules/{RELEASE}"
INDEXES = (
    "dep", "dep.bin", "alias", "alias.bin", "symbols", "symbols.bin", "builtin", "builtin.bin", "builtin.modinfo",
    "builtin.alias.bin", "softdep", "weakdep", "devname", "order", "kmodd-cache",
)  # fmt: skip
PLACES = (
    "etc/modprobe.d/x.conf", "lib/modprobe.d/x.conf", "etc/depmod.d/x.conf", "etc/modules-load.d/x.conf",
    "etc/modules", "etc/kmodd/kmodd.conf", "etc/kmodd/kmodd.conf.d/x.conf", "etc/kmodd/policy.d/x.conf",
    "run/kmodd/flags/x", "proc/modules", "proc/cmdline", "sys/devices/d/modalias", "sys/devices/d/uevent",
    "sys/kernel/uevent_seqnum", "boot/initrd.img",
    f"{MODULES}/kernel/fs/ext4/ext4.ko", f"{MODULES}/index.d/x/modules.dep",
    f"{MODULES}/index.d/x", *(f"{MODULES}/modules.{name}" for name in INDEXES),
)  # fmt: skip

VERBS: dict[str, tuple[Main, str]] = {
    "modprobe -D": (modprobe.main, "-D --root ROOT -S REL ext4"),
    "modprobe -c": (modprobe.main, "-c --root ROOT -S REL"),
    "modprobe -r": (modprobe.main, "-r -n --root ROOT -S REL ext4"),
    "modinfo": (modinfo.main, "--root ROOT -k REL ext4 serio"),
    "lsmod": (lsmod.main, "--root ROOT"),
    "rmmod": (rmmod.main, "--root ROOT nosuch"),
    "depmod": (depmod.main, "--root ROOT -n REL"),
    "explain": (explain.main, "--root ROOT --kernel REL ext4 pci:x symbol:y /sys/devices/d"),
    "lookup": (lookup.main, "--root ROOT --kernel REL ext4 pci:x symbol:y"),
    "devices": (devices.main, "--root ROOT --kernel REL"),
    "whatif": (whatif.main, "--root ROOT --kernel REL --initrd ROOT/boot/initrd.img"),
    "lint": (lint.main, "--root ROOT --kernel REL"),
    "check": (check.main, "--root ROOT --kernel REL --benchmark cis"),
    "policy": (policy.main, "test --root ROOT --kernel REL ext4"),
    "policy check": (policy.main, "check --root ROOT"),
    "static-nodes": (static_nodes.main, "--root ROOT --kernel REL"),
}


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a path of a socket has a limit of 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _linked(path: Path) -> None:
    os.mkfifo(f"{path}.fifo")
    path.symlink_to(f"{path.name}.fifo")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 << 30)


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "directory": Path.mkdir,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a FIFO": _linked,
    "2 GiB": _huge,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = rootfs.build("names", tmp_path / "root")
    (root / MODULES / "kernel/fs/ext4/ext4.ko").write_bytes(b"\x7fELF" + bytes(100))
    (root / "sys/bus/pci/devices").mkdir(parents=True)
    (root / "sys/devices/d").mkdir(parents=True)
    (root / "sys/bus/pci/devices/d").symlink_to("../../../devices/d")
    return root


@contextlib.contextmanager
def replaced(path: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """Put a special file in the place of `path`, and restore what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.parent / (path.name + ".kept")
    if path.exists():
        path.rename(kept)
    make(path)
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        Path(f"{path}.fifo").unlink(missing_ok=True)
        if kept.exists():
            kept.rename(path)


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Half a GiB more than now, so that a file of 2 GiB does not fit."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("kind", KINDS)
def test_every_verb_ends_whatever_lies_in_the_place_of_a_file(kind: str, root: Path) -> None:
    for place in PLACES:
        with replaced(root / place, KINDS[kind]):
            for verb, (main, words) in VERBS.items():
                said = ours(main, words.replace("ROOT", str(root)).replace("REL", RELEASE).split())
                assert said.status in (0, 1, 3), (place, verb, said)
                assert b"Traceback" not in said.err, (place, verb)


@pytest.mark.parametrize("kind", KINDS)
def test_the_daemon_ends_on_sigterm(kind: str, root: Path) -> None:
    """All places at once but the indexes, then the indexes."""
    for places in (
        [path for path in PLACES if "/modules." not in path],
        [path for path in PLACES if "/modules." in path],
    ):
        with contextlib.ExitStack() as stack:
            for place in places:
                stack.enter_context(replaced(root / place, KINDS[kind]))
            words = program.command(
                "run", "--dry-run", "--root", str(root), "--kernel", RELEASE, "--socket", f"{root}/s"
            )
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as daemon:
                assert daemon.stdout
                lines = [daemon.stdout.readline()]
                daemon.send_signal(signal.SIGTERM)
                lines += daemon.stdout.read().splitlines()
                assert daemon.wait(timeout=60) == 0, lines
                assert not any(b"Traceback" in line for line in lines), lines


def test_a_special_file_of_configuration_is_reported(root: Path) -> None:
    argv = ["-c", "--root", str(root), "-S", RELEASE]
    assert ours(modprobe.main, argv).err == b"", "the control"
    with replaced(root / "etc/modprobe.d/x.conf", os.mkfifo):
        assert ours(modprobe.main, argv).err == b"libkmod: ERROR kmodd: ignoring /etc/modprobe.d/x.conf: is a FIFO\n"
    with replaced(root / "etc/modprobe.d/x.conf", lambda path: path.symlink_to("/dev/null")):
        assert ours(modprobe.main, argv).err == b"", "the usual way to mask a file"


def test_a_file_that_grows_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "grows"
    path.write_bytes(b"x" * 1000)
    ended = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while not ended.is_set() and file.tell() < LIMIT:
                file.write(b"x" * 100_000)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with contextlib.suppress(OSError):  # EFBIG, if the writer is faster
            assert len(read_regular(str(path), limit=1 << 20)) <= 1 << 20
    finally:
        ended.set()
        writer.join()
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(OSError, match="has more than 1 MiB"):
        read_regular(str(path), limit=1 << 20)


def test_a_pipe_that_the_user_names_is_read(root: Path) -> None:
    """As in `modprobe -C <(echo …)` of a shell."""
    reader, writer = os.pipe()
    os.write(writer, b"blacklist from_a_pipe\n")
    os.close(writer)
    try:
        said = ours(modprobe.main, ["-c", "-d", str(root), "-S", RELEASE, "-C", f"/proc/self/fd/{reader}"])
    finally:
        os.close(reader)
    assert b"blacklist from_a_pipe\n" in said.out
    with pytest.raises(OSError, match="has more than"):
        read_given("/dev/zero", limit=1 << 20)
