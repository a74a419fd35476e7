"""modprobe through the running daemon: one lane and one record for everybody, and the caller hears kmod's words.

Whatever the daemon cannot or may not do is `None`: then the tool does it itself.
"""

from __future__ import annotations

import errno
import os

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.cli.kmod.messages import ERR, Messages
from kmodd.cli.kmod.modprobe_execute import How, tell_insertion, tell_missing, tell_removal
from kmodd.host.kmsg_reader import KernelLog
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.loader.in_process import must_not_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FAILURES = {
    "failed": errno.EIO, "missing": errno.ENOENT, "crashed": errno.EIO, "not_attempted": errno.EIO,
    "denied": errno.EPERM, "stuck": errno.EBUSY,
}  # fmt: skip
"""What keeps a module from being there → its errno where it has none of its own."""


class Daemon:
    """The daemon at the control socket."""

    def __init__(self, how: How, messages: Messages, path: str = CONTROL_SOCKET) -> None:
        self._how = how
        self._messages = messages
        self._path = path

    @classmethod
    def within_reach(cls, how: How, messages: Messages, path: str = CONTROL_SOCKET) -> Daemon | None:
        """It, or None where there is none, or where a loader of it may be waiting for us."""
        if not os.path.exists(path) or must_not_wait():
            return None
        return cls(how, messages, path)

    def insert(self, text: str, params: tuple[str, ...], not_found: Callable[[], int]) -> int | None:
        """Have a name loaded: the status, or None where the daemon did nothing. `not_found` says that nothing fits."""
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
                tell_insertion(goal["module"], code, self._reasons(results, log) if code else (), self._messages)
                status = 1 if code else 0
            return status

    def _reasons(self, results: list[dict[str, Any]], log: KernelLog) -> list[str]:
        """What the kernel has logged about the modules that failed; what no errno says, the daemon does."""
        failed = [result for result in results if result["result"] in ("failed", "crashed", "denied", "stuck")]
        lines = [f"the kernel says: {line}" for line in log.about(*(result["module"] for result in failed))]
        # EACCES: the loader's, whose words say which rule the file breaks. EFBIG: its limit for a compressed file.
        own = (0, errno.EACCES, errno.EFBIG)
        lines += [f"kmodd says: {result['message']}" for result in failed if result["errno"] in own]
        return lines

    def remove(self, text: str) -> int | None:
        """Have a name removed, likewise."""
        how = self._how.removing(self._messages)
        reply = self._call("Unload", request=text, first_time=how.first_time, go_on=not how.ends_at_failure)
        if reply is None:
            return None
        for complaint in reply["complaints"]:
            self._messages.log(ERR, complaint)
        for result in reply["results"]:
            self._show([result])
            tell_removal(result["module"], result["result"], result["errno"], False, self._how, self._messages)
        return 1 if reply["failed"] else 0

    def _call(self, method: str, **parameters: Any) -> dict[str, Any] | None:
        """The answer; None where there is none, or nothing could be tried."""
        try:
            reply = call(method, self._path, **parameters)
        except (NotRunning, Refused):
            return None
        tried = [result for result in reply["results"] if result["result"] == "not_attempted"]
        return None if tried and len(tried) == len(reply["results"]) else reply

    def _show(self, results: list[dict[str, Any]]) -> None:
        for result in results:
            if self._how.shown and result["action"]:
                self._messages.show(result["action"])
            if result["result"] == "missing" and not result["action"]:
                tell_missing(result["module"], self._messages)

    def _failure(self, module: str, results: list[dict[str, Any]]) -> int:
        """The errno with which a goal ends, 0 for success; the like of modprobe_execute.failure."""
        for result in results:
            if result["result"] in ("live", "builtin") and self._how.first_time and result["module"] == module:
                return errno.EEXIST
            if result["required"] and result["result"] in _FAILURES:
                code: int = result["errno"]
                return code or _FAILURES[result["result"]]
        return 0
