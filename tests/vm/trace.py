"""Who loaded which module: the kernel's own record, tracefs `module:module_load`, read as text.

The kernel starts it from its command line (`KERNEL_ARGUMENTS`), so it covers the initrd too; the initrd leaves a mark
just before it hands over to systemd.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

KERNEL_ARGUMENTS: Final = "trace_event=module:module_load trace_buf_size=256K trace_clock=mono"

#: Added to the command line: what each finit_module said is on record too. The kernel takes the last trace_event=.
CALLS_TOO: Final = "trace_event=module:module_load,syscalls:sys_exit_finit_module"

TRACE_FILE: Final = "/sys/kernel/tracing/trace"

_LINE: Final = re.compile(
    r"^\s*(?P<comm>.+)-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+(?P<time>\d+\.\d+): (?P<event>\w+): (?P<rest>\S+)", re.MULTILINE
)

_ANSWER: Final = re.compile(
    r"^\s*(?P<comm>.+)-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+\d+\.\d+: sys_finit_module -> (?P<value>0x[0-9a-f]+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class ModuleLoad:
    """One module_load event: the name of the task as the kernel has it, its thread's id, seconds since boot."""

    comm: str
    pid: int
    seconds: float
    module: str
    in_initrd: bool


def module_loads(text: str) -> list[ModuleLoad]:
    """Parse the text of tracefs' `trace`, in its own order (by time)."""
    loads: list[ModuleLoad] = []
    in_initrd = True
    for line in _LINE.finditer(text):
        if line["event"] == "tracing_mark_write":
            in_initrd = in_initrd and line["rest"] != "switch_root"
        elif line["event"] == "module_load":
            loads.append(ModuleLoad(line["comm"], int(line["pid"]), float(line["time"]), line["rest"], in_initrd))
    return loads


def strangers(loads: Iterable[ModuleLoad], loader: str = "kmodd-loader") -> list[ModuleLoad]:
    """Loads after switch-root that neither `loader` nor PID 1 (for its own few modules) made."""
    return [load for load in loads if not load.in_initrd and load.comm != loader and load.pid != 1]


def redundant_calls(text: str) -> list[str]:
    """What was given to the kernel in vain after switch-root, one word for each call; nothing if all was well.

    `EEXIST:<task>`: the module was there, or another task was loading it; a module's name: its init was run once more,
    though it had run before. Needs CALLS_TOO. ValueError if the trace holds no answer of the kernel at all.
    """
    answers = [(line["comm"], int(line["value"], 16)) for line in _ANSWER.finditer(text)]
    if not answers:
        raise ValueError(f"no finit_module in the trace; was the machine booted with {CALLS_TOO!r}?")
    again = [f"EEXIST:{comm}" for comm, value in answers if value == 2**64 - errno.EEXIST]
    loads = [load.module for load in module_loads(text) if not load.in_initrd]
    return again + [module for number, module in enumerate(loads) if module in loads[:number]]
