"""In the guest: write `add` to every device's uevent file again and again, then wait until the loader is quiet.

    flood.py (kmodd|udevd) EVENTS

At most CHUNK events are under way at a time, so that no listener's buffer overflows. Prints one JSON object: events
that the kernel sent, devices that send some, seconds of writing and in all.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

CHUNK = 60_000
SETTLE = b'{"method":"io.kmodd.Settle","parameters":{"timeout_usec":900000000}}\0'


def seqnum() -> int:
    """How many events the kernel has sent since it started."""
    with open("/sys/kernel/uevent_seqnum") as file:
        return int(file.read())


def quiet(loader: str) -> None:
    """Return when nothing is left to be done."""
    if loader == "udevd":
        subprocess.run(["udevadm", "settle", "--timeout=900"], check=True)
        return
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect("/run/kmodd/io.kmodd")
        caller.sendall(SETTLE)
        answer = b""
        while not answer.endswith(b"\0"):
            data = caller.recv(4096)
            if not data:
                sys.exit("flood: kmodd closed the connection")
            answer += data
    if b'"error"' in answer:
        sys.exit(f"flood: {answer!r}")


def main() -> None:
    """Flood, wait, print."""
    loader, wanted = sys.argv[1], int(sys.argv[2])
    files = []
    for folder, _, names in os.walk("/sys/devices"):
        if "uevent" in names:
            files.append(os.open(f"{folder}/uevent", os.O_WRONLY))
    quiet(loader)
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
    found = {"events": seqnum() - first, "devices": devices, "writing": writing, "all": time.monotonic() - begin}
    print(json.dumps(found))


main()
