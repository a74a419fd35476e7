"""In the guest: write `add` to the uevent files of all devices repeatedly, then wait until all events are handled.

    flood.py (kmodd|udevd) EVENTS

At most CHUNK events are pending at a time, so that no receive buffer overflows. Prints a JSON object: events sent by
the kernel, devices that send events, and the seconds of writing and in total.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

CHUNK = 60_000


def seqnum() -> int:
    """Return the number of events that the kernel has sent since boot."""
    with open("/sys/kernel/uevent_seqnum") as file:
        return int(file.read())


def quiet(loader: str) -> None:
    """Wait until all events are handled."""
    if loader == "udevd":
        subprocess.run(["udevadm", "settle", "--timeout=900"], check=True)
    else:
        call("Settle", timeout_usec=900_000_000)


def taken(loader: str) -> int:
    """Return the number of events that kmodd has read; udevd does not count them. Exits if kmodd has lost events."""
    if loader == "udevd":
        return seqnum()
    status = call("Status")
    if status["overruns"]:
        sys.exit(f"flood: {status['overruns']} overruns: this measures a replay, not the events")
    return int(status["events"])


def call(method: str, **parameters: object) -> dict[str, Any]:
    """Call a Varlink method of the daemon and return the reply's parameters. Exits on an error."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect("/run/kmodd/io.kmodd")
        caller.sendall(json.dumps({"method": f"io.kmodd.{method}", "parameters": parameters}).encode() + b"\0")
        answer = b""
        while not answer.endswith(b"\0"):
            data = caller.recv(4096)
            if not data:
                sys.exit("flood: kmodd closed the connection")
            answer += data
    reply = json.loads(answer[:-1])
    if "error" in reply:
        sys.exit(f"flood: {method}: {reply}")
    found: dict[str, Any] = reply["parameters"]
    return found


def main() -> None:
    """Flood, wait, and print the figures."""
    loader, wanted = sys.argv[1], int(sys.argv[2])
    files = []
    for folder, _, names in os.walk("/sys/devices"):
        if "uevent" in names:
            files.append(os.open(f"{folder}/uevent", os.O_WRONLY))
    quiet(loader)
    known = taken(loader)
    first = before = seqnum()
    writing = 0.0
    begin = time.monotonic()
    devices = 0
    while seqnum() - first < wanted:
        start = time.monotonic()
        while (now := seqnum()) - before < CHUNK and now - first < wanted:
            for fd in files:
                os.write(fd, b"add")
            devices = devices or seqnum() - now
        writing += time.monotonic() - start
        before = seqnum()
        quiet(loader)
    wall = time.monotonic() - begin
    sent, read = seqnum() - first, taken(loader) - known
    if read < sent:
        sys.exit(f"flood: {sent} events were sent, {loader} has read {read} and reports that all are handled")
    print(json.dumps({"events": sent, "devices": devices, "writing": writing, "all": wall}))


main()
