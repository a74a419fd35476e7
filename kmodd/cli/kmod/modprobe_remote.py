"""modprobe by the running daemon, so that all loads share its loaders and its records; messages are those of kmod.

If the daemon cannot or may not carry out a request, the methods return None and the tool carries it out itself.
"""

from __future__ import annotations

import errno
import os

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.cli.kmod.messages import ERR, Messages
from kmodd.cli.kmod.modprobe_execute import How, log_insertion, log_missing, log_removal
from kmodd.host.kmsg_reader import KernelLog
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.loader.in_process import must_not_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FAILURES = {
    "failed": errno.EIO, "missing": errno.ENOENT, "crashed": errno.EIO, "not_attempted": errno.EIO,
    "denied": errno.EPERM, "blocked": errno.EPERM, "stuck": errno.EBUSY,
}  # fmt: skip
"""Result of a module that is not loaded → errno if the result has none."""


class Daemon:
    """Client of the daemon on the control socket."""

    def __init__(self, how: How, messages: Messages, path: str = CONTROL_SOCKET) -> None:
        self._how = how
        self._messages = messages
        self._path = path

    @classmethod
    def within_reach(cls, how: How, messages: Messages, path: str = CONTROL_SOCKET) -> Daemon | None:
        """Return a client, or None if there is no daemon or one of its loaders may be waiting for this process."""
        if not os.path.exists(path) or must_not_wait():
            return None
        return cls(how, messages, path)

    def insert(self, text: str, params: tuple[str, ...], not_found: Callable[[], int]) -> int | None:
        """Load a name; return the status, or None if the daemon did nothing.

        not_found: prints the error for a name without modules, and returns the status.
        """
        with KernelLog() as log:
            reply = self._call("Load", request=text, parameters=list(params))
            if reply is None:
                return None
            for complaint in reply["complaints"]:
                self._messages.log(ERR, complaint)
            if not reply["goals"]:
                return not_found()
            status = 0
            for number, goal in enumerate(reply["goals"]):
                for complaint in goal["complaints"]:
                    self._messages.log(ERR, complaint)
                results = [result for result in reply["results"] if result["goal"] == number]
                self._show(results)
                code = self._failure(goal["module"], results)
                log_insertion(goal["module"], code, self._reasons(results, log) if code else (), self._messages)
                status = 1 if code else 0
            return status

    def _reasons(self, results: list[dict[str, Any]], log: KernelLog) -> list[str]:
        """Return kernel messages about the failed modules, and the daemon's reasons if the errno is not specific."""
        failed = [result for result in results if result["result"] in ("failed", "crashed", "denied", "stuck")]
        lines = [f"the kernel says: {line}" for line in log.about(*(result["module"] for result in failed))]
        # EACCES is the loader's: its message names the violated rule. EFBIG is its limit for compressed files.
        own = (0, errno.EACCES, errno.EFBIG)
        lines += [f"kmodd says: {result['message']}" for result in failed if result["errno"] in own]
        return lines

    def remove(self, text: str) -> int | None:
        """Remove a name; return the status, or None if the daemon did nothing."""
        how = self._how.removing(self._messages)
        reply = self._call("Unload", request=text, first_time=how.first_time, go_on=not how.ends_at_failure)
        if reply is None:
            return None
        for complaint in reply["complaints"]:
            self._messages.log(ERR, complaint)
        for result in reply["results"]:
            self._show([result])
            log_removal(result["module"], result["result"], result["errno"], False, self._how, self._messages)
        return 1 if reply["failed"] else 0

    def _call(self, method: str, **parameters: Any) -> dict[str, Any] | None:
        """Call the daemon; return the reply, or None if it refused or attempted no step."""
        try:
            reply = call(method, self._path, **parameters)
        except (NotRunning, Refused):
            return None
        results = reply["results"]
        attempted = [result for result in results if result["result"] != "not_attempted"]
        return None if results and not attempted else reply

    def _show(self, results: list[dict[str, Any]]) -> None:
        for result in results:
            if self._how.shown and result["action"]:
                self._messages.show(result["action"])
            if result["result"] == "missing" and not result["action"]:
                log_missing(result["module"], self._messages)

    def _failure(self, module: str, results: list[dict[str, Any]]) -> int:
        """Return the errno of a goal, 0 for success, as `modprobe_execute.failure` does."""
        for result in results:
            if result["result"] in ("live", "builtin") and self._how.first_time and result["module"] == module:
                return errno.EEXIST
            if result["required"] and result["result"] in _FAILURES:
                code: int = result["errno"]
                return code or _FAILURES[result["result"]]
        return 0
