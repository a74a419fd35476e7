"""`kmodd settle`: wait until all pending events are handled."""

from __future__ import annotations

from kmodd.cli.client import NotRunning, Refused
from kmodd.cli.daemon_away import call_awaited, not_running
from kmodd.cli.verb import DEFAULT_TIMEOUT, NOT_RUNNING, SOCKET, TIMEOUT, Verb, seconds_of
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import duration

VERB = Verb(
    "settle",
    "Wait until every event that the kernel has sent so far is handled and no module is loading.",
    (TIMEOUT, SOCKET),
    status=((0, "settled"), (1, "timed out; what is loading is printed"), (3, "no module tree"), NOT_RUNNING),
    examples=(
        ("settle && mount /mnt/backup", "Go on when all devices have their drivers."),
        ("settle --timeout 10", "Wait for ten seconds at most."),
    ),
)


def main(argv: list[str]) -> int:
    """Return 0 when settled, 1 on timeout, 3 without a module tree, 7 if the daemon is not running."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    path = given.get("socket", CONTROL_SOCKET)
    timeout_usec = seconds_of(given.get("timeout", DEFAULT_TIMEOUT))
    if timeout_usec is None:
        return VERB.refuse(f"invalid --timeout {given.get('timeout')!r}; expected seconds")
    try:
        call_awaited("Settle", path, timeout_usec=timeout_usec)
    except NotRunning as error:
        return not_running(VERB, error, path)
    except Refused as refused:
        if refused.error != "io.kmodd.TimedOut":
            VERB.complain(f"{refused.parameters.get('message', refused)}")
            return 3
        stuck = ", ".join(refused.parameters.get("stuck", ())) or "none; events keep arriving"
        VERB.complain(f"Timed out after {duration(timeout_usec)}; loading: {stuck}")
        return 1
    return 0
