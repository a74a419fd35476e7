"""One virtual machine: boot it, run commands as root, read its journal, plug devices, end it.

    image = ensure_image()
    payload = Payload.new(scratch / "payload", with_kmod=True)
    with Machine(image, payload) as machine:
        machine.check("udevadm settle")
        machine.plug(DEVICES["e1000e"])

Emulated (`-accel tcg`), so it runs wherever QEMU does, ten to forty times slower than the host. systemd is PID 1.
Three serial lines, all built into the kernel: the console (kept in a file), a root shell, the journal.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from tests.vm import VmError, say
from tests.vm.devices import AUDIO, Device
from tests.vm.image import Image, require
from tests.vm.journal import Journal, Record, text
from tests.vm.payload import Payload, write_initrd
from tests.vm.qmp import Qmp
from tests.vm.trace import KERNEL_ARGUMENTS, TRACE_FILE, ModuleLoad, module_loads

#: Root ports that devices are plugged into, functions of one slot of the root bus.
PORTS: Final = tuple(f"port{number}" for number in range(8))
_PORT_SLOT: Final = 0x10
_CHUNK: Final = 2048  # bytes of base64 in one line to the shell; its terminal buffers 4096
_PR_SET_PDEATHSIG: Final = 1


class _Kind(NamedTuple):
    """What QEMU is to emulate for an architecture."""

    program: tuple[str, str]  # and its Debian package
    model: tuple[str, ...]
    append: str  # to the kernel's command line
    more_lines: tuple[str, ...]  # for the root shell and the journal; a virt machine has a single line on board


# no_timer_check: on a busy host the emulated timer may be late, of which the kernel makes a panic.
_PC: Final = _Kind(
    ("qemu-system-x86_64", "qemu-system-x86"), ("-cpu", "max", "-M", "q35"), "console=ttyS0,115200 no_timer_check",
    ("-serial", "chardev:shell", "-serial", "chardev:journal"),
)  # fmt: skip
_MACHINES: Final = {
    "": _PC,
    "amd64": _PC,
    "arm64": _Kind(
        ("qemu-system-aarch64", "qemu-system-arm"), ("-cpu", "cortex-a72", "-M", "virt"), "console=ttyAMA0,115200",
        ("-device", "pci-serial,chardev=shell", "-device", "pci-serial,chardev=journal"),
    ),
}  # fmt: skip


class GuestError(VmError):
    """The guest did not do what it was told: a command failed or took too long, the machine died."""


class Ran(NamedTuple):
    """Result of a command: exit status as a shell has it (137: it took too long), its output and errors."""

    status: int
    output: str  # bytes that are not UTF-8 are kept by surrogateescape


class Machine:
    """A guest, from `__enter__` (which waits for its shell) to `__exit__` (which always ends QEMU)."""

    def __init__(
        self,
        image: Image,
        payload: Payload,
        *,
        name: str = "guest",
        devices: Sequence[Device] = (),
        append: str = "",
        journal: str = "-t kmodd",
        on_record: Callable[[Record], None] | None = None,
        memory_mib: int = 2048,
        boot_timeout: float = 300.0,
        cpus: int = 2,
        arguments: Sequence[str] = (),
        initrd: Path | None = None,
    ) -> None:
        """Describe a machine; nothing runs yet.

        `devices` are there at boot (at most one port each); `append` goes to the kernel's command line; `journal`:
        arguments for the guest's journalctl, "" for everything; `on_record` is called for each record, in a thread.
        `arguments`: more words for QEMU's command line, for devices that need no port (`-device`, on pcie.0).
        `initrd`: an image of initramfs-tools or dracut, which brings root's disk in place of the harness's own initrd.
        """
        self.image, self.payload, self.name = image, payload, name
        self._devices, self._append, self._matches = devices, append, journal
        self._memory_mib, self._boot_timeout = memory_mib, boot_timeout
        self._cpus, self._arguments, self._initrd = cpus, arguments, initrd
        self._ends: list[socket.socket] = []
        self._qmp: Qmp | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._free_ports = list(PORTS)
        self._plugged: dict[str, str] = {}  # device name → port
        self._back_ends: set[str] = set()
        self._folder = Path()
        self._buffer = b""
        self.journal = Journal(on_record)
        self.boot_seconds = 0.0

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Machine:
        """Boot. Returns when the root shell answers, early in the boot; VmError if it does not in time."""
        require(*_MACHINES[self.image.architecture].program)
        say(f"booting {self.name}: Linux {self.image.release}, {self._memory_mib} MiB, emulated")
        started = time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="kmodd-vm-"))
        try:
            self._start()
            self._shell.settimeout(self._boot_timeout)
            self._line_after(b"ready", self._boot_timeout)
        except BaseException as error:
            tail = self._last_words()
            self.close()
            if isinstance(error, VmError | OSError):
                raise VmError(f"{self.name} did not boot: {error}\n{tail}") from error
            raise
        self.boot_seconds = time.monotonic() - started
        say(f"{self.name} has a shell after {self.boot_seconds:.1f} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End QEMU; whatever the guest wrote to its disk is gone."""
        if isinstance(error, GuestError):
            error.add_note(self._last_words())
        self.close()

    def close(self) -> None:
        """End QEMU by its process and wait for it; may be called twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._qmp is not None:
            self._qmp.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.journal.close()
        if self._folder.name:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        initrd = self._folder / "initrd"
        write_initrd(self.image, self.payload, self._matches, initrd, self._initrd)
        pairs = [socket.socketpair() for _ in range(3)]
        self._ends = [ours for ours, _ in pairs]
        theirs = [end.fileno() for _, end in pairs]
        command = self._command(initrd, theirs)
        with (self._folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=theirs, preexec_fn=_die_with_parent
            )
        for _, end in pairs:
            end.close()
        control, self._shell, stream = self._ends
        self.journal.start(stream)
        self._qmp = Qmp(control)
        for device in self._devices:  # the machine waits for `cont`, so these are there when the kernel starts
            self.plug(device)
        self.qmp.execute("cont")

    def _command(self, initrd: Path, sockets: Sequence[int]) -> list[str]:
        """QEMU's command line; `sockets`: inherited descriptors for QMP, shell and journal."""
        kind = _MACHINES[self.image.architecture]
        kernel = f"{kind.append} quiet loglevel=4 systemd.getty_auto=no panic=-1 {KERNEL_ARGUMENTS}"
        command = [kind.program[0], "-accel", "tcg,thread=multi", *kind.model]
        command += ["-smp", str(self._cpus), "-m", str(self._memory_mib)]
        command += ["-nodefaults", "-display", "none", "-no-reboot", "-S"]
        command += ["-kernel", str(self.image.vmlinux), "-initrd", str(initrd)]
        command += ["-append", f"{kernel} {self._append}".strip()]
        command += ["-drive", f"file={self.image.disk},format=raw,if=none,id=root,snapshot=on"]
        command += ["-device", "virtio-blk-pci,drive=root", "-audiodev", f"none,id={AUDIO}"]
        command += ["-chardev", f"file,id=console,path={self._folder}/console.log", "-serial", "chardev:console"]
        for name, number in zip(("qmp", "shell", "journal"), sockets, strict=True):
            command += ["-chardev", f"socket,id={name},fd={number}"]
        command += [*kind.more_lines, "-mon", "chardev=qmp,mode=control"]
        for number, port in enumerate(PORTS):
            place = f"addr={_PORT_SLOT:#x}.{number:x},multifunction=on,chassis={number + 1},io-reserve=4096"
            command += ["-device", f"pcie-root-port,id={port},bus=pcie.0,{place}"]
        return command + list(self._arguments)

    def _last_words(self) -> str:
        """The end of what QEMU and the console said, for error messages."""
        words = []
        for path in (self._folder / "qemu.log", self._folder / "console.log"):
            if path.exists() and path.stat().st_size:
                lines = path.read_text(errors="replace").splitlines()[-30:]
                words.append(f"── {path.name}\n" + "\n".join(lines))
        return "\n".join(words) or "── nothing was said on the console"

    # ── the root shell ─────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, command: str, timeout: float = 60.0) -> Ran:
        """Run a shell command as root in the guest; standard error is part of the output, in order.

        After `timeout` seconds the guest kills it (status 137). GuestError if even the shell does not answer.
        """
        if timeout < 1:
            raise ValueError("a command needs a second at least")
        text = base64.b64encode(command.encode("utf-8", "surrogateescape"))
        for start in range(0, len(text), _CHUNK):
            self._send(b"D " + text[start : start + _CHUNK])
            self._line_after(b"+", 60.0)
        self._send(b"R %d" % timeout)
        status, size = self._line_after(b"= ", timeout + 60.0).split()
        output = self._bytes(int(size), 60.0 + int(size) / 10_000)
        return Ran(int(status), output.decode("utf-8", "surrogateescape"))

    def check(self, command: str, timeout: float = 60.0) -> str:
        """Like `run`, for a command that must succeed; returns its output. GuestError if its status is not 0."""
        status, output = self.run(command, timeout)
        if status != 0:
            raise GuestError(f"{self.name}: `{command}` gave {status}\n{output}")
        return output

    def wait_boot(self, timeout: float = 300.0) -> str:
        """Wait until systemd has no job left; returns its state (`running`, or `degraded` if a unit failed)."""
        deadline = time.monotonic() + timeout
        while (state := self.run("systemctl is-system-running").output.strip()) not in ("running", "degraded"):
            if time.monotonic() > deadline:
                jobs = self.run("systemctl list-jobs --no-pager").output
                raise GuestError(f"{self.name} is still {state} after {timeout:.0f} s\n{jobs}")
            time.sleep(0.5)
        return state

    def modules(self) -> dict[str, str]:
        """/proc/modules: name → the line's rest, in the kernel's order (newest first)."""
        lines = self.check("busybox cat /proc/modules").splitlines()
        return {name: rest for name, _, rest in (line.partition(" ") for line in lines)}

    def remove_module(self, *names: str) -> None:
        """Unload modules in the order given, without kmod. GuestError if one is in use or not there."""
        self.check("".join(f"busybox rmmod {name} &&" for name in names) + " true")

    def mark(self) -> int:
        """A place in `journal` behind every record that the guest has by now; `journal.mark()`: behind what has come.

        Only for a stream that keeps up: it waits for the guest's latest record.
        """
        latest = f"journalctl --sync && journalctl -b -n 1 -o json --output-fields=MESSAGE {self._matches}"
        cursor = json.loads(self.check(latest))["__CURSOR"]
        self.journal.wait_for(lambda record: text(record, "__CURSOR") == cursor, 60.0)
        return self.journal.mark()

    def module_loads(self) -> list[ModuleLoad]:
        """Every module load since the kernel started, and by which task (see trace.py)."""
        return module_loads(self.check(f"busybox cat {TRACE_FILE}"))

    def _send(self, line: bytes) -> None:
        try:
            self._shell.sendall(line + b"\n")
        except OSError as error:
            raise GuestError(f"{self.name} has gone: {error}") from error

    def _line_after(self, start: bytes, timeout: float) -> bytes:
        """The rest of the next line that begins with `start`; lines before it are dropped."""
        deadline = time.monotonic() + timeout
        while True:
            found = re.search(rb"^" + re.escape(start) + rb"([^\n]*)\n", self._buffer, re.MULTILINE)
            if found:
                self._buffer = self._buffer[found.end() :]
                return found[1]
            self._receive(deadline)

    def _bytes(self, count: int, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while len(self._buffer) < count:
            self._receive(deadline)
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def _receive(self, deadline: float) -> None:
        self._shell.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            data = self._shell.recv(65536)
        except TimeoutError as error:
            raise GuestError(f"{self.name}: the shell does not answer") from error
        except OSError as error:
            raise GuestError(f"{self.name} has gone: {error}") from error
        if not data:
            raise GuestError(f"{self.name} has gone")
        self._buffer += data

    @property
    def qmp(self) -> Qmp:
        """QEMU's control protocol, while the machine runs."""
        if self._qmp is None:
            raise VmError(f"{self.name} does not run")
        return self._qmp

    # ── devices ────────────────────────────────────────────────────────────────────────────────────────────────────

    def plug(self, device: Device) -> None:
        """Plug a device (its back ends are made once) into a free port, or onto the xHCI. Returns at once."""
        for command, arguments in device.back_ends:
            if str(arguments) not in self._back_ends:
                self.qmp.execute(command, **arguments)
                self._back_ends.add(str(arguments))
        options: Mapping[str, object] = {**device.options, "id": device.name}
        if device.bus == "pci":
            if not self._free_ports:
                raise VmError(f"no root port is left for {device.name}")
            self._plugged[device.name] = self._free_ports.pop(0)
            options = {**options, "bus": self._plugged[device.name]}
        else:
            options = {**options, "bus": device.bus}
        self.qmp.device_add(options)

    def unplug(self, device: Device, timeout: float = 90.0) -> None:
        """Unplug a device and wait until the guest let go of it; VmError if it does not in `timeout` seconds."""
        self.qmp.device_del(device.name, timeout)
        if device.bus == "pci":
            self._free_ports.insert(0, self._plugged.pop(device.name))


def _die_with_parent() -> None:
    """In the child, before QEMU starts: be killed when the tests die, however they die."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()  # a terminal's ctrl-C ends the tests, and they end QEMU
