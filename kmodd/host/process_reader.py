"""Serve a daemon that asks which process waits for a module: `serve`, in a process with CAP_SYS_PTRACE.

The daemon does not have this capability, with which it could write into any process. A question is one packet on a
SOCK_SEQPACKET connection, four numbers; so is the answer: the first of these numbers, and the words of `Requester` or
nothing. This process opens nothing for writing.
"""

from __future__ import annotations

import contextlib
import os

from kmodd.kernel.requester import Requester
from kmodd.text import decode, encode

READY = b"0 ready"
"""The first packet, sent once questions can be answered at once: the answer to question 0, which is not sent."""
UNKNOWN = b"-"
"""The answer if there is no such process."""
MAX_BYTES = 65536
"""Bytes of a packet; the longest parts of an answer are two paths."""


def serve(connection: int, proc: str = "/proc") -> None:
    """Answer the questions of a connection until it ends.

    connection: its descriptor. proc: in place of /proc, for tests. Raises OSError: EACCES without CAP_SYS_PTRACE.
    """
    from kmodd.host.process import initial_namespaces, requester_of  # only here: the daemon does without

    initial = initial_namespaces(proc)
    with contextlib.suppress(ConnectionError):  # the daemon has ended
        os.write(connection, READY)
        while question := os.read(connection, MAX_BYTES):
            number, tid, asked_ns, until_ns = map(int, question.split())
            who = requester_of(tid, asked_ns, initial, proc, until_ns / 1e9)
            os.write(connection, numbered(number, pack(who) if who else UNKNOWN))


def question(number: int, tid: int, asked_ns: int, until: float) -> bytes:
    """Return the packet that asks for the requester; the arguments after the first are those of `requester_of`.

    number: from 1 on; that of the answer.
    """
    return b"%d %d %d %d" % (number, tid, asked_ns, until * 1e9)


def numbered(number: int, answer: bytes) -> bytes:
    """Return the packet that answers a question."""
    return b"%d %b" % (number, answer)


def number_of(packet: bytes) -> tuple[int, bytes]:
    """Return the number of the question that a packet answers, and the answer. Raises ValueError."""
    number, _, answer = packet.partition(b" ")
    return int(number), answer


def pack(who: Requester) -> bytes:
    """Return a requester as a packet: its fields in order, none of which can contain a NUL."""
    fields = (
        str(who.pid), who.comm, who.exe, str(who.uid), "" if who.loginuid is None else str(who.loginuid),
        who.cgroup, who.unit, "yes" if who.container else "no", str(who.command),
        "yes" if who.is_kernel else "no",
    )  # fmt: skip
    return b"\0".join(map(encode, fields))


def unpack(answer: bytes) -> Requester | None:
    """Return the requester of an answer; None: unknown, or no answer of `serve`."""
    try:
        pid, comm, exe, uid, loginuid, cgroup, unit, container, command, kernel = map(decode, answer.split(b"\0"))
        login = int(loginuid) if loginuid else None
        return Requester(
            int(pid), comm, exe, int(uid), login, cgroup, unit, container != "no", int(command), kernel != "no"
        )
    except ValueError:
        return None
