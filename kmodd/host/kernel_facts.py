"""Settings of the running kernel that decide whether it accepts modules."""

from __future__ import annotations

from kmodd.config import cmdline
from kmodd.host.regular_files import read_file
from kmodd.planning.load_errors import KernelFacts, Lockdown
from kmodd.text import decode

MODULES_DISABLED = "/proc/sys/kernel/modules_disabled"
PANIC_ON_OOPS = "/proc/sys/kernel/panic_on_oops"
LOCKDOWN = "/sys/kernel/security/lockdown"
SIG_ENFORCE = "/sys/module/module/parameters/sig_enforce"

_LOCKDOWN: dict[str, Lockdown] = {"none": "none", "integrity": "integrity", "confidentiality": "confidentiality"}


def read_facts(root: str = "") -> KernelFacts:
    """Read the current settings, some of which change at run time. One that cannot be read counts as off."""
    # `none [integrity] confidentiality` (security/lockdown/lockdown.c)
    lockdown = _text(root + LOCKDOWN).partition("[")[2].partition("]")[0]
    return KernelFacts(
        modules_disabled=_is_on(root + MODULES_DISABLED),
        lockdown=_LOCKDOWN.get(lockdown, ""),
        sig_enforce=_is_on(root + SIG_ENFORCE),
        module_blacklist=cmdline.parse(_text(root + cmdline.PATH)).module_blacklist,
        panic_on_oops=_is_on(root + PANIC_ON_OOPS),
    )


def _is_on(path: str) -> bool:
    """Return whether a switch is on: a number in /proc/sys, `Y` or `N` for a module parameter."""
    return _text(path).strip() not in ("", "0", "N")


def _text(path: str) -> str:
    return decode(read_file(path) or b"")
