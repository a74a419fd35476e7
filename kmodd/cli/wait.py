"""`kmodd wait`: wait until a module or device has finished starting, or cannot any more."""

from __future__ import annotations

import json
import os

from kmodd.cli.client import NotRunning, Refused
from kmodd.cli.daemon_away import call_awaited, not_running
from kmodd.cli.device_paths import asking_path, device_path
from kmodd.cli.terminal import show
from kmodd.cli.verb import DEFAULT_TIMEOUT, NOT_RUNNING, SOCKET, TIMEOUT, Option, Verb, seconds_of
from kmodd.dataclass import dataclass
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERB = Verb(
    "wait",
    "Wait until a module has finished starting, or a device has its driver, or cannot get it any more. NAME is a "
    "module, an alias, or a /sys/… or /dev/… path of a device; of a network interface, disk or the like, the device "
    "above it that has a driver counts.",
    (TIMEOUT, Option("--json", "print an object with the result"), SOCKET),
    "NAME",
    (
        (0, "it is there"),
        (1, "it failed or was refused, timed out, or nothing knows the name; the reason is printed"),
        (3, "no module tree"),
        NOT_RUNNING,
    ),
    (
        ("wait nvidia && start-the-job", "Go on when the driver is ready."),
        ("wait --timeout 10 /sys/bus/pci/devices/0000:3b:00.0", "Give the device ten seconds to get its driver."),
        ("wait /dev/sda", "Has the disk's driver finished starting?"),
    ),
)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How the wait has ended."""

    result: str
    """live, builtin, KMODD_RESULT of the last attempt, bound, no_driver, timed_out, unknown, or refused."""
    why: str = ""
    """Message; empty: it is there."""
    status: int = 1
    loading: tuple[str, ...] = ()
    """timed_out: the modules that are being loaded."""


_THERE = ("live", "builtin", "bound")


def main(argv: list[str]) -> int:
    """Return 0 when it is there, 1 if it does not come, 3 without a module tree, 7 if the daemon is not running."""
    given = VERB.parse(argv, 1, 1)
    if isinstance(given, int):
        return given
    name, path = given.operands[0], given.get("socket", CONTROL_SOCKET)
    timeout_usec = seconds_of(given.get("timeout", DEFAULT_TIMEOUT))
    if timeout_usec is None:
        return VERB.refuse(f"invalid --timeout {given.get('timeout')!r}; expected seconds")
    try:
        ended = _wait(name, path, timeout_usec)
    except NotRunning as error:
        return not_running(VERB, error, path)
    if "json" in given:
        show(f"{json.dumps({'name': name, 'result': ended.result, 'loading': list(ended.loading)})}\n")
    if ended.why:
        VERB.complain(ended.why)
    return 0 if ended.result in _THERE else ended.status


def _wait(name: str, path: str, timeout_usec: int) -> _Ended:
    """Wait for a module or device by the daemon that listens at `path`. Raises NotRunning."""
    device = device_path(name) if name.startswith("/") else ""
    if device and not (device.startswith("/devices/") and os.path.isfile(f"/sys{device}/uevent")):
        return _Ended("unknown", f"{name} is no device")
    device = asking_path(device)
    folder = f"/sys{device}"
    if device.startswith("/devices/virtual/") and not any(
        map(os.path.lexists, (f"{folder}/driver", f"{folder}/modalias"))
    ):
        return _Ended("no_driver", f"{name} has no driver and asks for none: it is virtual")
    what: dict[str, Any] = {"device": device} if device else {"module": name}
    try:
        answer = call_awaited("Wait", path, timeout_usec=timeout_usec, **what)
    except Refused as refused:
        return _refused(refused, name, timeout_usec)
    if device:
        is_bound = os.path.islink(f"/sys{device}/driver")
        return _Ended("bound") if is_bound else _Ended("no_driver", f"{name} has no driver; see `kmodd why {name}`")
    module, result = answer["name"], answer["result"]
    there = result in _THERE
    return _Ended(result, "" if there else f"{module}: {result}; see `kmodd why {module}`")


def _refused(refused: Refused, name: str, timeout_usec: int) -> _Ended:
    """Return what an error of the daemon means."""
    match refused.error:
        case "io.kmodd.TimedOut":
            modules = tuple(refused.parameters.get("stuck", ()))
            loading = ", ".join(modules) or "nothing"
            why = f"timed out after {duration(timeout_usec)}: {name} is not there; loading: {loading}"
            return _Ended("timed_out", why, loading=modules)
        case "io.kmodd.UnknownName":
            return _Ended("unknown", f"no module or alias {name!r}; see `kmodd explain {name}`")
        case "io.kmodd.TooManyModules":
            return _Ended("refused", f"too many modules match {name!r}; wait for one of them")
        case "io.kmodd.Busy":
            return _Ended("refused", "too many calls wait already; try again later")
        case "io.kmodd.NoModuleTree":
            return _Ended("refused", str(refused.parameters.get("message", refused)), 3)
        case _:
            return _Ended("refused", str(refused))
