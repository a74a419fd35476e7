"""`kmodd reload`: reload indexes and configuration of the daemon."""

from __future__ import annotations

from kmodd.cli.client import NotRunning, Refused
from kmodd.cli.daemon_away import call_awaited, not_running
from kmodd.cli.verb import NOT_RUNNING, SOCKET, Verb
from kmodd.host.paths import CONTROL_SOCKET

VERB = Verb(
    "reload",
    "Reload indexes and configuration of the daemon, and wait until this is done. Lines that could not be used are "
    "printed; the rest is in effect. `systemctl reload kmodd` does the same.",
    (SOCKET,),
    status=((0, "reloaded"), (1, "refused"), (3, "no module tree"), NOT_RUNNING),
    examples=(("reload", "After a change of the boot list; other changes are noticed without it."),),
)


def main(argv: list[str]) -> int:
    """Return 0 when reloaded, 1 if the daemon refuses, 3 without a module tree, 7 if the daemon is not running."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    path = given.get("socket", CONTROL_SOCKET)
    try:
        problems = call_awaited("Reload", path)["problems"]
    except NotRunning as error:
        return not_running(VERB, error, path)
    except Refused as refused:
        VERB.complain(f"{refused.parameters.get('message', refused)}")
        return 3 if refused.error == "io.kmodd.NoModuleTree" else 1
    for problem in problems:
        VERB.complain(f"Ignored: {problem}")
    return 0
