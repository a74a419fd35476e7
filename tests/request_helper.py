"""kmodd-request, compiled both ways, for arm64 and in Python, started as the kernel starts it.

With the kernel's environment and without one open file (kernel/umh.c, call_usermodehelper_exec_async;
kernel/module/kmod.c, call_modprobe).
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodd.host.helper_socket import KernelRequest, RequestSocket
from tests.installation import ROOT

SOURCE = ROOT / "helper" / "kmodd-request.c"
AS_KERNEL = {"HOME": "/", "TERM": "linux", "PATH": "/sbin:/usr/sbin:/bin:/usr/bin"}
BY_MODPROBE = 7
"""The exit status of our "real" modprobe."""
LIMIT = 1
"""Seconds that a helper waits for "accepted" where no answer comes."""
PATIENCE = 60
"""The same where the test answers."""
KINDS = ("bare", "libc", "python")
KERNEL_THREAD, PROCESS = 0x0420_8060, 0x0040_0000
"""Flags of a kworker and of a shell on Linux 6.1 (PF_KTHREAD is 0x0020_0000)."""
CROSS = "arm64"
"""Compiled like "bare" by a cross compiler, and run by QEMU's user mode emulation."""


@dataclass
class Helper:
    """One kind of kmodd-request, with paths of its own below `folder`."""

    folder: Path
    kind: str
    limit: int = LIMIT

    @property
    def socket(self) -> str:
        return str(self.folder / "request")

    @property
    def flag(self) -> Path:
        return self.folder / "run" / "closed"

    @property
    def log(self) -> Path:
        return self.folder / "kmsg"

    @property
    def modprobes(self) -> tuple[Path, Path]:
        return self.folder / "first-modprobe", self.folder / "modprobe"

    @property
    def parent(self) -> Path:
        """What the helper takes for its parent's folder in /proc."""
        return self.folder / "proc" / str(os.getpid())

    @property
    def command(self) -> list[str]:
        if self.kind != "python":
            return [*(["qemu-aarch64-static"] if self.kind == CROSS else []), self._program]
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kmodd.cli import request as it\n"
            f"it.SOCKET, it.FLAG, it.KERNEL_LOG = {self.socket!r}, {str(self.flag)!r}, {str(self.log)!r}\n"
            f"it.MODPROBES, it.ACCEPT_LIMIT = {tuple(map(str, self.modprobes))!r}, {self.limit}\n"
            f"it.PROC = {str(self.parent.parent)!r}\n"
            "sys.exit(it.main(sys.argv[1:]))"
        )
        return [sys.executable, "-BISXutf8", "-c", code]

    @property
    def _program(self) -> str:
        return str(self.folder / f"kmodd-request-{self.limit}")

    def build(self) -> None:
        """Compile the helper with the Makefile's flags and its own paths."""
        if self.kind == "python":
            return
        makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
        lines = re.findall(r"^(HELPER_FLAGS|BARE) = (.*)$", makefile, re.MULTILINE)
        flags = {name: value.split() for name, value in lines}
        paths = {"SOCKET": self.socket, "FLAG": self.flag, "KERNEL_LOG": self.log, "PROC": self.parent.parent}
        own = [f'-D{name}="{path}"' for name, path in paths.items()]
        own.append("-DMODPROBES=" + ", ".join(f'"{path}"' for path in self.modprobes))
        bare = flags["BARE"] if self.kind in ("bare", CROSS) else []
        compiler = "aarch64-linux-gnu-gcc" if self.kind == CROSS else "gcc"
        command = [compiler, *flags["HELPER_FLAGS"], "-Wextra", "-Werror", *bare, *own, str(SOURCE)]
        for self.limit in (PATIENCE, LIMIT):
            subprocess.run([*command, f"-DACCEPT_LIMIT={self.limit}", "-o", self._program], check=True)

    def reset(self) -> None:
        """As on a machine without kmodd: a modprobe, a kernel log; the helper's parent is a kernel thread."""
        self.flag.parent.mkdir(exist_ok=True)
        self.parent.mkdir(parents=True, exist_ok=True)
        self.by(b"kworker/u8:1-events_unbound", KERNEL_THREAD)
        self.log.write_bytes(b"")
        called = self.folder / "called"
        self.modprobe(f'printf "%s\\n" "$@" "$KMODD_REQUEST" "$HOME" "$PATH" >{called}\n'
                      f"grep SigIgn /proc/self/status >>{called}\nexit {BY_MODPROBE}\n")  # fmt: skip

    def modprobe(self, script: str) -> None:
        """Replace the real modprobe with a shell script."""
        path = self.modprobes[1]
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)

    def by(self, comm: bytes, flags: int) -> None:
        """The helper's parent has this name and these flags, as proc_pid_stat(5) shows them."""
        own = b" I 2 0 0 0 -1 %d 0 0 0 0 0 3 0 0 20 0 1 0 42 0 0 18446744073709551615 0 0" % flags
        (self.parent / "stat").write_bytes(b"%d (%s)%s\n" % (os.getpid(), comm, own))

    def by_a_process(self) -> None:
        """The helper's parent is no kernel thread."""
        self.by(b"sh", PROCESS)

    def by_its_real_parent(self) -> None:
        """/proc is that of this machine."""
        shutil.rmtree(self.parent.parent)
        self.parent.parent.symlink_to("/proc")

    def start(self, *words: bytes | str, below: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start the helper as the kernel does, or `below` another program."""
        command = [os.fsencode(word) for word in (*below, *self.command, *words)]
        return subprocess.Popen(command, env=AS_KERNEL, cwd="/", preexec_fn=lambda: os.closerange(0, 3))

    def status(self, *words: bytes | str, below: Sequence[str] = ()) -> int:
        """Run the helper; return its exit status."""
        with self.start(*words, below=below) as process:
            return process.wait(30)

    def became(self) -> list[str]:
        """Arguments and environment of the modprobe that the helper executed; empty if it did not."""
        called = self.folder / "called"
        return called.read_text(errors="surrogateescape").splitlines() if called.exists() else []

    def close(self) -> None:
        """The policy is enforced."""
        self.flag.touch()

    def clean(self) -> None:
        """Remove what a test left."""
        self.limit = LIMIT
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif not path.name.startswith("kmodd-request-"):
                path.unlink()


def come(requests: RequestSocket, count: int = 1) -> list[KernelRequest]:
    """Wait until so many names have come."""
    came: list[KernelRequest] = []
    while len(came) < count:
        assert select.select([requests], [], [], 30)[0], f"only {len(came)} came"
        came += requests.receive()
    return came
