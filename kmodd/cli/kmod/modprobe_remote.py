"""modprobe by the running daemon, so that all loads share its loaders and its records; messages are those of kmod.

If the daemon cannot or may not carry out a request, the methods return None and the tool carries it out itself.
"""

from __future__ import annotations

import errno
import os

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.cli.kmod.messages import ERR, Messages
from kmodd.cli.kmod.modprobe_execute import How, log_insertion, log_missing, log_removal
from kmodd.host.file_owner import is_named_below, open_regular
from kmodd.host.kmsg_reader import KernelLog
from kmodd.host.paths import CONTROL_SOCKET, TREES
from kmodd.loader.in_process import must_not_wait
from kmodd.names import module_of_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FAILURES = {
    "failed": errno.EIO, "missing": errno.ENOENT, "crashed": errno.EIO, "not_attempted": errno.EIO,
    "denied": errno.EPERM, "blocked": errno.EPERM, "stuck": errno.EBUSY,
}  # fmt: skip
"""Result of a module that is not loaded → errno if the result has none."""


_TRIES = 3
"""Calls in which files are opened: a link may be replaced meanwhile."""


class _FilesNeeded(Exception):
    """The daemon does not open these files."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths


class _NotOpened(Exception):
    """A file that the daemon does not open cannot be opened here either; the text says why."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(f"{path}: {error.strerror}")
        self.module = module_of_path(path)
        self.code = error.errno or errno.EIO


def _offer(path: str) -> int:
    """Open a module file and return the descriptor of its offer. Raises _NotOpened, PermissionError."""
    from kmodd.loader.foreign_file import offer  # only here: hardly any call needs it

    try:
        fd = open_regular(path)
    except OSError as error:
        raise _NotOpened(path, error) from None
    try:
        return offer(fd)
    finally:
        os.close(fd)


class Daemon:
    """Client of the daemon on the control socket."""

    def __init__(
        self, how: How, messages: Messages, path: str = CONTROL_SOCKET, trees: tuple[str, ...] = TREES
    ) -> None:
        self._how = how
        self._messages = messages
        self._path = path
        self._trees = trees

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
            try:
                reply = self._load(text, params)
            except _NotOpened as error:
                log_insertion(error.module, error.code, (f"kmodd says: {error}",), self._messages)
                return 1
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

    def _load(self, text: str, params: tuple[str, ...]) -> dict[str, Any] | None:
        """Have the daemon load a name; open the files for it that are not root's alone, which it does not touch.

        Only names below the module trees, where a daemon that is taken over cannot put one: an offer says that root
        wants this file loaded. Return the reply, or None as `_call` does. Raises _NotOpened.
        """
        offered: dict[str, int] = {}
        try:
            for _ in range(_TRIES):
                files: dict[str, Any] = {"files": list(offered)} if offered else {}
                try:
                    return self._call("Load", tuple(offered.values()), request=text, parameters=list(params), **files)
                except _FilesNeeded as needed:
                    if not all(is_named_below(path, self._trees) for path in needed.paths):
                        return None
                    for path in needed.paths:
                        offered[path] = _offer(path)
            return None
        except PermissionError:  # of `offer`, without CAP_SYS_ADMIN
            return None
        finally:
            for fd in offered.values():
                os.close(fd)

    def _call(self, method: str, offers: tuple[int, ...] = (), **parameters: Any) -> dict[str, Any] | None:
        """Call the daemon; return the reply, or None if it refused or attempted no step. Raises _FilesNeeded."""
        try:
            reply = call(method, self._path, offers, **parameters)
        except Refused as refused:
            if refused.error == "io.kmodd.FilesNeeded":
                raise _FilesNeeded(refused.parameters["files"]) from None
            return None
        except NotRunning:
            return None
        results = reply["results"]
        left = [result for result in results if result["result"] == "not_attempted"]
        done = [result for result in results if result["result"] not in ("not_attempted", "live", "builtin")]
        return None if left and not done else reply

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
