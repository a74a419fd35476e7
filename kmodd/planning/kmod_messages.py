"""Messages of kmod's modprobe about a load, from the daemon's answer.

The tool writes them, and the daemon itself where kmodd's helper stands in the tool's place.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

CRIT, ERR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7
"""kmod's log levels, as in syslog(3)."""
WORDS = {CRIT: "FATAL", ERR: "ERROR", WARNING: "WARNING", NOTICE: "NOTICE", INFO: "INFO", DEBUG: "DEBUG"}

_FAILURES = {
    "failed": errno.EIO, "missing": errno.ENOENT, "crashed": errno.EIO, "not_attempted": errno.EIO,
    "denied": errno.EPERM, "blocked": errno.EPERM, "stuck": errno.EBUSY,
}  # fmt: skip
"""Result of a module that is not loaded → errno if the result has none."""


def line_of(program: str, level: int, text: str) -> str:
    """Return a message as a program of kmod writes it to standard error, without the newline (log_printf)."""
    return f"{program}: {WORDS[level]}: {text}"


def ending_level(is_all: bool) -> int:
    """Return the level of messages that end modprobe, unless `-a` has it go on with the next name."""
    return WARNING if is_all else CRIT


def not_found(text: str, directory: str) -> str:
    """Return the message for a name without modules."""
    return f"Module {text} not found in directory {directory}"


def missing(module: str) -> str:
    """Return the error for a module without a file."""
    return f"could not find module by name='{module}'"


def not_inserted(module: str, code: int, reasons: Iterable[str], strerror: Callable[[int], str]) -> list[str]:
    """Return the error for a goal that failed with errno `code`, and its reasons; nothing if `code` is 0."""
    if not code:
        return []
    match code:
        case errno.EEXIST:
            text = "Module already in kernel"
        case errno.ENOENT:
            text = "Unknown symbol in module, or unknown parameter (see dmesg)"
        case _:
            text = strerror(code)
    return [f"could not insert '{module}': {text}", *reasons]


# ── the daemon's answer (`Load` of io.kmodd) ─────────────────────────────────────────────────────────────────────────


def is_undone(reply: dict[str, Any]) -> bool:
    """Return whether the daemon has attempted no step of a load or removal: the tool then does it itself."""
    results = [result["result"] for result in reply["results"]]
    return "not_attempted" in results and set(results) <= {"not_attempted", "live", "builtin"}


def of_goal(
    goal: int,
    reply: dict[str, Any],
    kernel_log: Callable[..., Sequence[str]],
    strerror: Callable[[int], str],
    *,
    first_time: bool = False,
) -> tuple[int, list[str]]:
    """Return the errno of a goal of the answer, 0 for success, and its messages, all of level ERR.

    goal: its number. kernel_log: returns what the kernel has logged about the modules of its arguments.
    """
    module, complaints = reply["goals"][goal]["module"], reply["goals"][goal]["complaints"]
    results = [result for result in reply["results"] if result["goal"] == goal]
    lacking = [missing(each["module"]) for each in results if each["result"] == "missing" and not each["action"]]
    code = _failure(module, results, first_time)
    reasons = _reasons(results, kernel_log) if code else ()
    return code, [*complaints, *lacking, *not_inserted(module, code, reasons, strerror)]


def _reasons(results: Sequence[dict[str, Any]], kernel_log: Callable[..., Sequence[str]]) -> list[str]:
    """Return kernel messages about the failed modules, and the daemon's reasons if the errno is not specific."""
    failed = [result for result in results if result["result"] in ("failed", "crashed", "denied", "stuck")]
    lines = [f"the kernel says: {line}" for line in kernel_log(*(result["module"] for result in failed))]
    # EACCES is the loader's: its message names the violated rule. EFBIG is its limit for compressed files.
    own = (0, errno.EACCES, errno.EFBIG)
    return [*lines, *(f"kmodd says: {result['message']}" for result in failed if result["errno"] in own)]


def _failure(module: str, results: Sequence[dict[str, Any]], first_time: bool) -> int:
    """Return the errno of a goal, 0 for success, as `cli/kmod/modprobe_execute.failure` does."""
    for result in results:
        if result["result"] in ("live", "builtin") and first_time and result["module"] == module:
            return errno.EEXIST
        if result["required"] and result["result"] in _FAILURES:
            code: int = result["errno"]
            return code or _FAILURES[result["result"]]
    return 0
