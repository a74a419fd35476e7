"""`kmodd wait`: wait until a module or device has finished starting, or cannot any more."""

from __future__ import annotations

import os

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.cli.daemon_away import not_running
from kmodd.cli.verb import DEFAULT_TIMEOUT, NOT_RUNNING, SOCKET, TIMEOUT, Verb, seconds_of
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERB = Verb(
    "wait",
    "Wait until a module has finished starting, or a device has its driver, or cannot get it any more. NAME is a "
    "module, an alias, or a /sys/… path of a device.",
    (TIMEOUT, SOCKET),
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
    ),
)


def main(argv: list[str]) -> int:
    """Return 0 when it is there, 1 if it does not come, 3 without a module tree, 7 if the daemon is not running."""
    given = VERB.parse(argv, 1, 1)
    if isinstance(given, int):
        return given
    name, path = given.operands[0], given.get("socket", CONTROL_SOCKET)
    timeout_usec = seconds_of(given.get("timeout", DEFAULT_TIMEOUT))
    if timeout_usec is None:
        return VERB.refuse(f"invalid --timeout {given.get('timeout')!r}; expected seconds")
    device = ""
    if name.startswith("/"):
        device = os.path.realpath(name)
        if not name.startswith("/sys/") or not os.path.isfile(f"{device}/uevent"):
            VERB.complain(f"{name} is no device")
            return 1
    what: dict[str, Any] = {"device": device.removeprefix("/sys")} if device else {"module": name}
    try:
        answer = call("Wait", path, timeout_usec=timeout_usec, **what)
    except NotRunning as error:
        return not_running(VERB, error, path)
    except Refused as refused:
        return _refused(refused, name, timeout_usec)
    if device:
        if os.path.islink(f"{device}/driver"):
            return 0
        VERB.complain(f"{name} has no driver; see `kmodd explain {name}`")
        return 1
    if answer["result"] in ("live", "builtin"):
        return 0
    VERB.complain(f"{answer['name']}: {answer['result']}; see `journalctl KMODD_MODULE={answer['name']}`")
    return 1


def _refused(refused: Refused, name: str, timeout_usec: int) -> int:
    """Print why there is no answer, and return the exit status."""
    match refused.error:
        case "io.kmodd.TimedOut":
            loading = ", ".join(refused.parameters.get("stuck", ())) or "nothing"
            VERB.complain(f"timed out after {duration(timeout_usec)}: {name} is not there; loading: {loading}")
        case "io.kmodd.UnknownName":
            VERB.complain(f"no module or alias {name!r}; see `kmodd explain {name}`")
        case "io.kmodd.Busy":
            VERB.complain("too many calls wait already; try again later")
        case "io.kmodd.NoModuleTree":
            VERB.complain(str(refused.parameters.get("message", refused)))
            return 3
        case _:
            VERB.complain(str(refused))
    return 1
