"""Calls of modprobe by root's processes, from the helper's connection to exit status and messages: `ModprobeCalls`.

Each name is a request of an operator, as one of `Load` on the control socket. What needs the caller's environment, its
standard output or another user's file is left to the full tool, which the helper then executes for all names: a module
that is loaded already is no work for it.
"""

from __future__ import annotations

import os
import time

from kmodd.daemon import status
from kmodd.dataclass import dataclass, field
from kmodd.engine.events import AnyJob, CheckFiles, Event, Requested
from kmodd.engine.system_state import SystemState
from kmodd.errors import NoTree
from kmodd.host.helper_socket import ModprobeCall, RequestSocket
from kmodd.host.kmsg_reader import KernelLog
from kmodd.host.tree import Tree
from kmodd.planning.job import Job
from kmodd.planning.kmod_messages import ERR, ending_level, is_undone, line_of, not_found, of_goal
from kmodd.planning.plan import Install
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve
from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(slots=True, eq=False)
class _Work:
    """A call that has begun."""

    call: ModprobeCall
    request: Request
    """Of the current name."""
    log: KernelLog
    """The kernel's messages since this request."""
    left: list[str]
    """The names after it."""
    lines: list[str] = field(default_factory=list)
    """Messages so far."""
    failed: bool = False

    def add(self, level: int, texts: Iterable[str], *, failed: bool = False) -> None:
        """Add messages of the current name, and whether it has failed."""
        self.lines += [line_of("modprobe", level, text) for text in texts]
        self.failed |= failed


class ModprobeCalls:
    """The calls of modprobe that wait for the engine."""

    def __init__(self, socket: RequestSocket, system: SystemState, handle: Callable[[Event], None], tree: Tree) -> None:
        """handle: has the engine handle an event."""
        self._socket = socket
        self._system = system
        self._handle = handle
        self._tree = tree
        self._waiting: list[_Work] = []
        self._due: list[_Work] = []
        """Works whose next name may be requested."""

    @property
    def is_due(self) -> bool:
        """Whether `handle_call` has something to do."""
        return bool(self._due) or self._socket.has_calls

    def handle_call(self) -> bool:
        """Request one name; return whether there was one. The loop serves the kernel between any two names."""
        if self._due:
            work = self._due.pop(0)
            self._begin(work.call, work.left, work)
        elif call := self._socket.pop_call():
            self._begin(call, list(call.names))
        else:
            return False
        return True

    def _begin(self, call: ModprobeCall, names: list[str], before: _Work | None = None) -> None:
        """Request the first of the names, unless the full tool has to load it. before: the work on earlier names."""
        if not self._socket.is_waiting(call):
            return
        request = Request(names[0], "operator", since=time.monotonic())
        self._handle(CheckFiles())
        if not self._is_plain(request):
            self._socket.leave(call)
            return
        lines, failed = (before.lines, before.failed) if before else ([], False)
        self._waiting.append(_Work(call, request, KernelLog(), names[1:], lines, failed))
        self._handle(Requested(request))

    def _is_plain(self, request: Request) -> bool:
        """Return whether the daemon does for a request as it is now all that the full tool would.

        It lacks the caller's environment, for commands, and files that are not root's alone, and does not make kmod's
        complaints about the configuration.
        """
        snapshot = self._system.snapshot
        if snapshot is None or snapshot.problems or snapshot.config.complaints or request.text.startswith(("/", "./")):
            return False
        try:
            steps = self._system.plan(request).steps
        except NoTree:
            return False
        if any(isinstance(step, Install) or step.foreign for step in steps):
            return False
        if not snapshot.config.installs:
            return True
        # The tool runs commands with the rights of its caller: what the policy says of them does not matter.
        plan = resolve(request, snapshot, self._system.loaded(), options_of("operator"), self._system.machine.present)
        return not any(isinstance(step, Install) for step in plan.steps)

    def turned_away(self, request: Request) -> bool:
        """A request is not taken, for whatever reason: leave it to the tool. Return whether it was of a call."""
        work = self._pop(request)
        if work is None:
            return False
        with work.log:
            self._socket.leave(work.call)
        return True

    def finished(self, job: AnyJob) -> bool:
        """A job is complete: go on with the next name, or answer. Return whether it was of a call."""
        work = self._pop(job.plan.request)
        if work is None or not isinstance(job, Job):
            return False
        with work.log:
            is_left = self._report(work, job)
        if is_left:
            self._socket.leave(work.call)
        elif work.left:
            self._due.append(work)
        else:
            text = "" if work.call.is_quiet else "".join(f"{line}\n" for line in work.lines)
            self._socket.reply(work.call, int(work.failed), encode(text))
        return True

    def _report(self, work: _Work, job: Job) -> bool:
        """Add the messages and the status of a name. Return whether nothing was attempted: the tool is to do it."""
        reply = status.loaded(job)
        if is_undone(reply):
            return True
        work.add(ERR, reply["complaints"])
        code = 0
        for number in range(len(reply["goals"])):
            code, lines = of_goal(number, reply, work.log.about, os.strerror)
            work.add(ERR, lines)
        if reply["goals"]:
            work.add(ERR, (), failed=bool(code))  # of the last goal, as in kmod
        else:
            text = not_found(work.request.text, self._tree.directory)
            work.add(ending_level(work.call.is_all), [text], failed=True)
        return False

    def _pop(self, request: Request) -> _Work | None:
        """Take the work that waits for a request, and end its look at the kernel log."""
        for work in self._waiting:
            if work.request is request or work.request == request:
                self._waiting.remove(work)
                return work
        return None
