"""Runs in the guest, in kmodd.service's sandbox: a `ModuleRequests` that matches on demand.

Usage: listener.py SOCKET. Each datagram is a line `match BASE64`, `drain` or `close`; the answer is JSON.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import time

sys.path.insert(0, "/usr/lib/kmodd")

from kmodd.host.request_tracer import ModuleRequests
from kmodd.host.requesters import Requesters
from kmodd.host.sd_notify import Notify

INSTANCE = "listener"
"""Beside that of the daemon, which listens in this guest as well."""


def main() -> None:
    before = time.perf_counter()
    requests = ModuleRequests(Requesters.of_systemd().requester_of, instance=INSTANCE)
    opened = time.perf_counter() - before
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(sys.argv[1])
        listening.listen()
        Notify().ready("listening")
        connection, _ = listening.accept()
    with connection:
        connection.send(json.dumps({"open_us": round(opened * 1e6)}).encode())
        while words := connection.recv(65536).decode().split():
            before = time.perf_counter()
            match words:
                case ["match", name]:
                    who = requests.match(os.fsdecode(base64.b64decode(name)))
                    told = who and {name: getattr(who, name) for name in who.__match_args__}
                    answer: dict[str, object] = {"who": told}
                case ["drain"]:
                    requests.drain()
                    answer = {}
                case _:
                    requests.close()
                    answer = {"left": os.path.exists("/sys/kernel/tracing/instances/" + INSTANCE)}
            answer["us"] = round((time.perf_counter() - before) * 1e6)
            connection.send(json.dumps(answer).encode())


main()
