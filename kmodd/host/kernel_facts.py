"""What the running kernel says about itself that decides whether it takes modules."""

from __future__ import annotations

from kmodd.config import cmdline
from kmodd.host.tree import read_file
from kmodd.planning.load_errors import KernelFacts, Lockdown
from kmodd.text import decode

MODULES_DISABLED = "/proc/sys/kernel/modules_disabled"
PANIC_ON_OOPS = "/proc/sys/kernel/panic_on_oops"
LOCKDOWN = "/sys/kernel/security/lockdown"
SIG_ENFORCE = "/sys/module/module/parameters/sig_enforce"

_LOCKDOWN: dict[str, Lockdown] = {"none": "none", "integrity": "integrity", "confidentiality": "confidentiality"}


def read_facts(root: str = "") -> KernelFacts:
    """Now, for some of it changes while the kernel runs. What cannot be read does not stand in the way."""
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
    """A switch: numbers in /proc/sys, `Y` and `N` for a parameter."""
    return _text(path).strip() not in ("", "0", "N")


def _text(path: str) -> str:
    return decode(read_file(path) or b"")
