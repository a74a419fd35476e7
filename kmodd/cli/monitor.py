"""`kmodd monitor`: print each decision of the daemon when it is recorded."""

from __future__ import annotations

import json
import os
import sys
import time

from kmodd.cli.client import Ended, NotRunning, Refused, replies
from kmodd.cli.daemon_away import not_running
from kmodd.cli.streams import output_is_lost
from kmodd.cli.terminal import SEPARATOR, Colour, paint, show
from kmodd.cli.verb import NOT_RUNNING, SOCKET, Option, Verb
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.regular_files import read_file
from kmodd.planning.history import IDENTIFIER, as_object, entry_of
from kmodd.planning.record import ERR, NOTICE
from kmodd.text import count_of, decode, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERB = Verb(
    "monitor",
    "Print a line for each decision of the daemon when it is recorded: what was loaded, for what, how long it took, or "
    "why not. `journalctl -t kmodd` has those of before. Users other than root get no commands and rules of the "
    "configuration, and of the processes of other users only the uid.",
    (Option("--json", "print a JSON text sequence (RFC 7464) of objects as `kmodd history` has them"), SOCKET),
    status=((1, "refused"), (7, "the daemon is not running, or has ended")),
    examples=(
        ("monitor", "What happens when the device is plugged in?"),
        ("monitor --json | jq --seq --unbuffered -r 'select(.result == \"failed\").module'",
         "Names of the modules that fail, as they do."),
    ),
)  # fmt: skip

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def main(argv: list[str]) -> int:
    """Print decisions until the output or the daemon ends. Return 1 if the daemon refuses, 7 if it does not run."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    path = given.get("socket", CONTROL_SOCKET)
    line_of = _sequence if "json" in given else _line
    try:
        for reply in replies("Monitor", path):
            show(line_of(reply))
            if output_is_lost():
                return 1
    except Ended:
        VERB.complain("the daemon has ended, or has disconnected this reader because it was too slow")
        return NOT_RUNNING[0]
    except NotRunning as error:
        return not_running(VERB, error, path)
    except (ValueError, LookupError, TypeError, AttributeError):
        VERB.complain("the daemon's reply is not one of io.kmodd.Monitor; is it of another version? Restart it")
        return 1
    except Refused as refused:
        VERB.complain("too many monitors run already" if refused.error == "io.kmodd.Busy" else str(refused))
        return 1
    return 0


def _line(reply: dict[str, Any]) -> str:
    """Return a record as a line: time of the day, sentence."""
    fields = reply["fields"]
    priority = int(fields["PRIORITY"][0])
    colour: Colour = "red" if priority <= ERR else "yellow" if priority <= NOTICE else ""
    when = time.strftime("%H:%M:%S", time.localtime(reply["realtime_usec"] / 1e6))
    sentence = paint(printable(fields["MESSAGE"][0]), colour, sys.stdout)
    return _missed(reply) + f"{when} {sentence}\n"


def _missed(reply: dict[str, Any]) -> str:
    left_out = count_of(reply["missed"], "record")
    return f"({left_out} left out, as calls of this user take too much time)\n" * bool(reply["missed"])


def _sequence(reply: dict[str, Any]) -> str:
    """Return a record as an object of a sequence."""
    record = {
        **reply["fields"],
        "__REALTIME_TIMESTAMP": str(reply["realtime_usec"]),
        "__MONOTONIC_TIMESTAMP": str(reply["monotonic_usec"]),
        "_BOOT_ID": decode(read_file(BOOT_ID) or b"").strip().replace("-", ""),
        "_HOSTNAME": os.uname().nodename,
        "_COMM": IDENTIFIER,
        "_UID": "0",
    }
    entry = entry_of(record)
    return f"{SEPARATOR}{json.dumps({**as_object(entry), 'missed': reply['missed']})}\n" if entry else ""
