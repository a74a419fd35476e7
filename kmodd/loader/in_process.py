"""Carry out steps in this process: what a tool does without the daemon, with the rights of its caller.

It uses the loader's functions (`actions`), but accepts any file, as kmod does: the kernel requires CAP_SYS_MODULE of
the caller. Signals are blocked while a module's init may run, as an init that is killed leaves hardware half set up;
they are delivered after it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from kmodd.dataclass import dataclass, replace
from kmodd.errors import assert_never
from kmodd.host.file_owner import open_regular
from kmodd.host.signals import SignalsBlocked
from kmodd.kernel.proc_stat import PARENT, split_stat
from kmodd.loader.actions import open_module, run_command
from kmodd.loader.syscalls import IGNORE_MODVERSIONS, IGNORE_VERMAGIC, Kernel, LinuxKernel
from kmodd.names import ModuleName, module_of_path
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Insmod, Install, Reason, RemovalStep, RemoveCommand, Rmmod, Step
from kmodd.planning.record import record_of
from kmodd.planning.reply import Reply, Stage, outcome_of
from kmodd.planning.request import RemovalOptions, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BY_HAND = Reason("asked", "")

_NO_SHELL = 127
"""Exit status of a command whose shell does not start (system(3))."""

COMMAND_UNIT = b"/kmodd-command@"
"""Part of the cgroup of a command under systemd, as systemd spells it."""

WAITS_FOR_CHILDREN = (b"kmodd-command", b"kmodd-loader", b"kthreadd")
"""Processes that may wait for a modprobe below them. kmodd-loader: of an earlier version, which ran commands itself."""

SHORTEST = 6
"""Bytes of the shortest file that kmod accepts as a module (libkmod-file.c)."""


@dataclass(frozen=True, slots=True)
class InsertOptions:
    """The options of modprobe, insmod and rmmod that change how a step is carried out."""

    force_modversion: bool = False
    force_vermagic: bool = False
    force_removal: bool = False
    wait_msec: int = 0
    """Milliseconds for which the removal of a module in use is retried."""

    @property
    def load_flags(self) -> int:
        """Flags of finit_module for these options."""
        return IGNORE_MODVERSIONS * self.force_modversion | IGNORE_VERMAGIC * self.force_vermagic


class Machine:
    """The kernel, the shell and the journal for a tool."""

    def __init__(self, kernel: Kernel | None = None, tell: Callable[[Outcome], None] | None = None) -> None:
        """Use `kernel`, None for the running one, and log with `tell`, None for journald if it runs."""
        self._kernel = kernel
        self._tell = tell or _to_journal
        self.env: Mapping[str, str] = os.environ
        """Environment of install and remove commands."""

    @property
    def kernel(self) -> Kernel:
        """The kernel, opened at first use, as ctypes costs as much as the rest of a tool. Raises OSError (ENOSYS)."""
        if self._kernel is None:
            self._kernel = LinuxKernel()
        return self._kernel

    def carry_out(self, step: Step | RemovalStep, insert_options: InsertOptions, real: Callable[[str], str]) -> Reply:
        """Carry out one step and return its reply. `real`: maps a printed path to the path to open."""
        begin = time.monotonic_ns()
        match step:
            case Insmod():
                flags = insert_options.load_flags
                code, stage, detail = self.insert(real(step.path), step.options, flags, not step.foreign)
            case Rmmod():
                code, stage, detail = self.remove(step.module, insert_options), "kernel", ""
            case Install():
                code, stage, detail = self._command(step.command, step.options, step.module)
            case RemoveCommand():
                code, stage, detail = self._command(step.command, "", step.module)
            case _:
                assert_never(step)
        usec = (time.monotonic_ns() - begin) // 1000
        if code or not isinstance(step, Insmod):
            return Reply(code, stage, usec, detail)
        from kmodd.host.build_id import read_build_id  # only here: a modprobe that asks the daemon needs it not

        return Reply(code, stage, usec, detail, build_id=read_build_id(step.module))

    def _command(self, command: str, options: str, module: str) -> tuple[int, Stage, str]:
        """Run a command; return EINVAL or 0, the stage, and the exit status as text."""
        try:
            with SignalsBlocked():
                status = run_command(command, options, module, self.env)
        except OSError:  # E2BIG for more than 128 KiB of options
            status = _NO_SHELL
        # Only an exit status counts, not death by a signal (libkmod-module.c, command_do).
        return (errno.EINVAL if status > 0 else 0), "command", str(max(status, 0))

    def insert(self, path: str, options: str, flags: int, is_roots: bool = True) -> tuple[int, Stage, str]:
        """Load one module file; return errno (0 on success), its stage, and a reason if errno says too little.

        flags: of finit_module. is_roots: False for a file that must be a regular one, and is opened without waiting.
        """
        try:
            give = open_module(path, flags, None if is_roots else lambda path, _: open_regular(path))
            if os.path.getsize(path) < SHORTEST:
                return errno.EINVAL, "file", f"{path}: too short for a module"
        except OSError as error:
            return error.errno or errno.EIO, "file", f"{path}: {error.strerror}"
        try:
            with SignalsBlocked():
                give(self.kernel, options)
        except OSError as error:
            return error.errno or errno.EIO, "kernel", ""
        return 0, "kernel", ""

    def remove(self, name: str, insert_options: InsertOptions) -> int:
        """Remove one module, retrying while it is in use for `wait_msec`. Return 0 or errno."""
        flags = os.O_NONBLOCK | (os.O_TRUNC if insert_options.force_removal else 0)
        deadline = time.monotonic() + insert_options.wait_msec / 1000
        pause = 0.001
        while True:
            try:
                with SignalsBlocked():
                    self.kernel.delete_module(name, flags)
            except OSError as error:
                left = deadline - time.monotonic()
                if error.errno != errno.EAGAIN or left <= 0:
                    return error.errno or errno.EIO
                time.sleep(min(pause, left))
                pause *= 2
            else:
                return 0

    def insert_file(self, path: str, options: str, insert_options: InsertOptions) -> Reply:
        """Load a module file for insmod and log the outcome."""
        step = Insmod(module_of_path(path), path, options, _BY_HAND)
        reply = self.carry_out(step, insert_options, str)
        with contextlib.suppress(OSError):  # the working directory is gone
            step = replace(step, path=os.path.abspath(path))
        self.tell(outcome_of(Request(path, "operator"), step, reply))
        return reply

    def remove_module(self, name: ModuleName, insert_options: InsertOptions) -> int:
        """Remove a module for rmmod and log the outcome. Return 0 or errno."""
        step = Rmmod(name, _BY_HAND)
        reply = self.carry_out(step, insert_options, str)
        self.tell(outcome_of(Request(name, "operator", removing=RemovalOptions()), step, reply))
        return reply.errno

    def tell(self, outcome: Outcome) -> None:
        """Write one record of `outcome` to the journal, as the daemon does. Never blocks and never fails."""
        self._tell(outcome)


def _to_journal(outcome: Outcome) -> None:
    if not os.path.exists("/run/systemd/journal/socket"):
        return
    from kmodd.host.journal import JournalSocket

    with contextlib.suppress(OSError):
        journal = JournalSocket()
        journal.write(record_of(outcome))
        journal.close()


def must_not_wait() -> bool:
    """Return whether a loader or command may be waiting for this process, which must then not wait for the daemon.

    True in an install or remove command that the daemon has started: its runner is among the ancestors, as it takes in
    the orphans of the command (`command_runner`), or, from a PID namespace of its own, in the cgroup. Neither depends
    on the environment. True below kthreadd (pid 2), where the kernel runs modprobe: the request may come from a
    module's init in a loader.
    """
    with contextlib.suppress(OSError), open("/proc/self/cgroup", "rb") as file:
        if COMMAND_UNIT in file.read():
            return True
    pid = "self"  # not getppid(2): it is 0 in a PID namespace of its own, even with the host's /proc
    while pid not in ("0", "1"):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                name, fields = split_stat(file.read())
        except OSError:
            return False
        if name in WAITS_FOR_CHILDREN and pid != "self":
            return True
        pid = fields[PARENT].decode()
    return False
