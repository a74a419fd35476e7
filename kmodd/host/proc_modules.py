"""Read /proc/modules, for tools that need nothing else."""

from __future__ import annotations

import os

from kmodd.host.regular_files import read_regular
from kmodd.kernel import proc_modules
from kmodd.kernel.proc_modules import Loaded, LoadedModule
from kmodd.text import decode


def read_loaded(root: str = "") -> Loaded:
    """Return all loaded modules, from one read of /proc/modules. Raises OSError."""
    return proc_modules.parse_modules(decode(read_regular(f"{root}/proc/modules")))


def holders(module: LoadedModule, root: str = "") -> tuple[str, ...]:
    """Return the modules that use `module`, in kmod's order: that of its `holders` directory in sysfs.

    If that directory is gone or differs by now, the order of /proc/modules.
    """
    if len(module.holders) < 2:
        return module.holders
    try:
        names = os.listdir(f"{root}/sys/module/{module.name}/holders")
    except OSError:
        return module.holders
    return tuple(names) if sorted(names) == sorted(module.holders) else module.holders
