"""What the kernel holds, for the tools that ask nothing else: one read of /proc/modules."""

from __future__ import annotations

import os

from kmodd.kernel import proc_modules
from kmodd.kernel.proc_modules import Loaded, LoadedModule
from kmodd.text import decode


def read_loaded(root: str = "") -> Loaded:
    """All modules at one moment. Raises OSError."""
    with open(f"{root}/proc/modules", "rb", buffering=0) as file:
        return proc_modules.parse_modules(decode(file.read()))


def holders(module: LoadedModule, root: str = "") -> tuple[str, ...]:
    """Who uses it, as kmod orders them: as the folder in /sys lists them.

    Where that folder is gone or has others by now, /proc/modules counts, which was read at one moment.
    """
    if len(module.holders) < 2:
        return module.holders
    try:
        names = os.listdir(f"{root}/sys/module/{module.name}/holders")
    except OSError:
        return module.holders
    return tuple(names) if sorted(names) == sorted(module.holders) else module.holders
