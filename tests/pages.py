"""Pages of the kernel's trace, written by its rules, beside recorded ones."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from kmodd.kernel.ftrace import ByteOrder, TraceEvent

HEADER_PAGE: Final = """\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;
"""
FORMAT: Final = """\
name: module_request
ID: 443
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned long ip;\toffset:8;\tsize:8;\tsigned:0;
\tfield:bool wait;\toffset:16;\tsize:1;\tsigned:0;
\tfield:__data_loc char[] name;\toffset:20;\tsize:4;\tsigned:0;

print fmt: "%s wait=%d call_site=%ps", __get_str(name), (int)REC->wait, (void *)REC->ip
"""
EXEC_FORMAT: Final = """\
name: sched_process_exec
ID: 310
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:1;
\tfield:pid_t pid;\toffset:12;\tsize:4;\tsigned:1;
\tfield:pid_t old_pid;\toffset:16;\tsize:4;\tsigned:1;

print fmt: "filename=%s pid=%d old_pid=%d", __get_str(filename), REC->pid, REC->old_pid
"""
MISSED: Final = 1 << 31
STORED: Final = 1 << 30
PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31


def head(kind: int, delta: int, order: ByteOrder = "little") -> bytes:
    """The word that begins an event."""
    return (kind | delta << 5 if order == "little" else kind << 27 | delta).to_bytes(4, order)


def word(number: int, order: ByteOrder = "little") -> bytes:
    return number.to_bytes(4, order)


def page(stamp: int, body: bytes, flags: int = 0, order: ByteOrder = "little", length: int | None = None) -> bytes:
    """A whole page, as read; `length`: what its header says, if not the truth."""
    commit = (len(body) if length is None else length) | flags
    return (stamp.to_bytes(8, order) + commit.to_bytes(8, order) + body).ljust(4096, b"\0")


def written(stamp: int, events: Iterable[TraceEvent], order: ByteOrder = "little") -> bytes:
    """A page with these events, each written as the kernel writes one of its size and distance."""
    body = b""
    for event in events:
        delta, stamp = event.timestamp_ns - stamp, event.timestamp_ns
        if delta >= 1 << 27:
            body += head(TIME_EXTEND, delta & (1 << 27) - 1, order) + word(delta >> 27, order)
            delta = 0
        size = len(event.data)
        if size <= 112:
            body += head(size // 4, delta, order) + event.data
        else:
            body += head(0, delta, order) + word(size + 4, order) + event.data
    return body


def request_event(tid: int, name: bytes, wait: bool = True, kind: int = 443, order: ByteOrder = "little") -> bytes:
    """The data of a module_request event."""
    mark = "<" if order == "little" else ">"
    text = name + b"\0"
    data = struct.pack(f"{mark}HBBiQ?3xI", kind, 0, 0, tid, 0xFFFFFFFF81000000, wait, len(text) << 16 | 24) + text
    return data + b"\0" * (-len(data) % 4)


def exec_event(pid: int, old_pid: int, kind: int = 310) -> bytes:
    """The data of a sched_process_exec event."""
    text = b"/usr/bin/sudo\0"
    data = struct.pack("<HBBiIii", kind, 0, 0, pid, len(text) << 16 | 20, pid, old_pid) + text
    return data + b"\0" * (-len(data) % 4)
