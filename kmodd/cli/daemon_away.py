"""Why the daemon does not run, and the command that starts it; calls that wait while it is restarted."""

from __future__ import annotations

import os
import time

from kmodd.cli.client import NotRunning, call
from kmodd.cli.verb import Verb
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.regular_files import read_file
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_STATUS = 7
BOOTED = "/run/systemd/system"
"""Exists where systemd is the init (sd_booted(3))."""
_LIMIT = 10
"""Seconds to wait for systemctl."""
RESTART_LIMIT = 20.0
"""Seconds to wait for a daemon that is being started, as in an upgrade of the package."""
PAUSE = 0.2
"""Seconds between two attempts."""


def call_awaited(method: str, path: str = CONTROL_SOCKET, **parameters: Any) -> dict[str, Any]:
    """Call `io.kmodd.METHOD`, which may be called twice, as `client.call`; wait while systemd restarts the service.

    A parameter `timeout_usec` of the method counts for this wait, too. Raises NotRunning if the daemon does not run and
    is not being started, Refused if the reply is an error.
    """
    until = time.monotonic() + min(RESTART_LIMIT, parameters.get("timeout_usec", RESTART_LIMIT * 1e6) / 1e6)
    while True:
        try:
            return call(method, path, **parameters)
        except NotRunning:
            if path != CONTROL_SOCKET or time.monotonic() >= until or not is_coming(unit_properties()):
                raise
        time.sleep(PAUSE)


def is_coming(unit: Mapping[str, str]) -> bool:
    """Return whether the service is being started, or stopped by a job that may start it again."""
    return unit.get("ActiveState") in ("activating", "reloading") or unit.get("Job", "0") not in ("", "0")


def not_running(verb: Verb, error: Exception, path: str = CONTROL_SOCKET) -> int:
    """Print why a verb has no daemon to call, and return its exit status. path: the socket that was tried."""
    reason = why_away_here() if path == CONTROL_SOCKET else ""
    verb.complain(f"the daemon is not running: {reason}" if reason else str(error))
    return _STATUS


def why_away_here() -> str:
    """Return why the service of this machine does not run, and the command for it; empty without systemd."""
    unit = unit_properties()
    if not unit and os.path.isdir(BOOTED):
        return "systemd does not answer (users other than root need D-Bus for that); see `systemctl status kmodd`"
    return why_away(unit, _command_line())


def mend_here() -> str:
    """Return the command that starts the service of this machine; empty: there is none, or it is starting."""
    unit = unit_properties()
    if not unit and os.path.isdir(BOOTED):
        return "systemctl start kmodd"
    return mend_of(unit, _command_line())


def mend_of(unit: Mapping[str, str], command_line: str) -> str:
    """Return the command for what `why_away` says; empty: there is none."""
    if not unit or unit.get("LoadState") == "not-found" or unit.get("ActiveState") in ("activating", "reloading"):
        return ""
    if unit.get("LoadState") == "masked":
        return "systemctl unmask kmodd && systemctl enable --now kmodd"
    if "kmodd=off" in command_line.split():
        return "editor /etc/default/grub && update-grub && systemctl reboot"
    if unit.get("ActiveState") in ("failed", "active"):
        return "systemctl restart kmodd"
    return "systemctl enable --now kmodd" if unit.get("UnitFileState") == "disabled" else "systemctl start kmodd"


def why_away(unit: Mapping[str, str], command_line: str) -> str:
    """Return why the service does not run, and the command for it; empty without systemd.

    unit: properties of kmodd.service as of `systemctl show`; empty without systemd.
    """
    if not unit:
        return ""
    if unit.get("LoadState") == "not-found":
        return "kmodd.service is not installed; install the package, or run `make install`"
    if unit.get("LoadState") == "masked":
        return "kmodd.service is masked; run `systemctl unmask kmodd`, then `systemctl enable --now kmodd`"
    if "kmodd=off" in command_line.split():
        return "kmodd=off is on the kernel command line; boot without it"
    if unit.get("ActiveState") == "failed":
        result = unit.get("Result", "")
        return f"kmodd.service has failed ({result}); see `journalctl -u kmodd`, then run `systemctl restart kmodd`"
    if unit.get("ActiveState") in ("activating", "reloading"):
        return "kmodd.service is starting; try again, or see `systemctl status kmodd`"
    if unit.get("ActiveState") == "active":
        return "kmodd.service is active, but does not answer; run `systemctl restart kmodd`"
    if unit.get("UnitFileState") == "disabled":
        return "kmodd.service is disabled; run `systemctl enable --now kmodd`"
    return "kmodd.service is stopped; run `systemctl start kmodd`"


def _command_line() -> str:
    from kmodd.config import cmdline  # only where the daemon is away: it brings the parser of modprobe.d

    return decode(read_file(cmdline.PATH) or b"")


def unit_properties() -> dict[str, str]:
    """Return the properties of kmodd.service; empty without systemd, or where it does not answer."""
    if not os.path.isdir(BOOTED):
        return {}
    import subprocess  # only here: hardly any call needs it, and its import takes a fifth of a verb's start

    command = ["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState,Result,Job", "kmodd.service"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT, check=False)
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.partition("=") for line in decode(done.stdout).splitlines())
    return {key: value for key, _, value in pairs}
