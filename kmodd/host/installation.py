"""Find what is wrong with kmodd's installation on this machine: `read_installation`.

It is complete if kmodd is the only program that loads modules for devices and for the kernel's requests.
"""

from __future__ import annotations

import os

from kmodd.host.helper_socket import SETTING
from kmodd.host.kernel_facts import read_facts
from kmodd.host.regular_files import read_file
from kmodd.planning.check import Result
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HELPERS = ("/usr/lib/kmodd/kmodd-request", "/usr/local/lib/kmodd/kmodd-request")
MANIFESTS = ("/usr/lib/kmodd/manifest", "/usr/local/lib/kmodd/manifest")
"""Lists of the files that `make install` placed."""
RULE = "80-drivers.rules"
"""udevd's rule that loads modules for devices."""
_MASK = f"/run/udev/rules.d/{RULE}"
_OVERRIDE = f"/etc/udev/rules.d/{RULE}"
DIVERSIONS = "/var/lib/dpkg/diversions"
MODPROBES = ("/sbin/modprobe", "/usr/sbin/modprobe")


def read_installation(root: str = "", *, is_running: bool, has_helper: bool = True) -> tuple[Result, ...]:
    """Return what was checked. is_running: the daemon is; what it sets while it runs is checked then only.

    has_helper: KernelRequests= is on.
    """
    found = [
        *(_helper(root, is_running) if has_helper else ()),
        *_udev_rule(root, is_running),
        *_kernel(root),
        *_diversions(root),
    ]
    if all(os.path.exists(root + path) for path in MANIFESTS):
        text = "kmodd is installed in /usr and in /usr/local, whose units come first"
        found.append(Result("installation", "two-installations", text, command="make uninstall PREFIX=/usr/local"))
    return tuple(found)


def _helper(root: str, is_running: bool) -> Iterator[Result]:
    program = decode(read_file(root + SETTING) or b"").strip()
    if not program:
        text = f"kernel.modprobe is empty or cannot be read: the kernel's requests load nothing ({SETTING})"
        yield Result("installation", "helper", text, command="sysctl kernel.modprobe=/sbin/modprobe")
    elif is_running and not any(_is_same(root + program, root + helper) for helper in HELPERS):
        text = f"the kernel executes {program}, which is not kmodd's helper: policy and records miss its requests"
        yield Result("installation", "helper", text, command="systemctl restart kmodd")
    elif is_running:
        yield Result("installation", "helper", f"the kernel executes kmodd's helper, {program}", is_met=True)


def _udev_rule(root: str, is_running: bool) -> Iterator[Result]:
    if not is_running:
        return
    override = root + _OVERRIDE
    if os.path.lexists(override) and not (os.path.islink(override) and os.readlink(override) == "/dev/null"):
        text = f"{_OVERRIDE} keeps udevd's own rule: udevd loads modules, too"
        yield Result("installation", "two-loaders", text, command=f"rm {_OVERRIDE}")
    elif not os.path.lexists(root + _MASK) and not os.path.lexists(override):
        text = f"{_MASK} is missing: udevd loads modules, too"
        yield Result("installation", "two-loaders", text, command="systemctl restart kmodd")
    else:
        yield Result("installation", "two-loaders", "udevd leaves modules to kmodd", is_met=True)


def _kernel(root: str) -> Iterator[Result]:
    mounts = decode(read_file(f"{root}/proc/mounts") or b"").splitlines()
    if any(line.split()[2:3] in (["tracefs"], ["debugfs"]) for line in mounts):
        yield Result("installation", "tracefs", "tracefs is mounted", is_met=True)
    else:
        text = "tracefs is not mounted: the processes that make the kernel ask stay unknown"
        yield Result("installation", "tracefs", text, command="systemctl start sys-kernel-tracing.mount")
    if read_facts(root).modules_disabled:
        text = "kernel.modules_disabled=1: nothing can be loaded until the next boot"
        yield Result("installation", "modules-disabled", text, is_met=True)


def _diversions(root: str) -> Iterator[Result]:
    """Yield what other programs have put in the place of modprobe, by the database of dpkg-divert(1)."""
    lines = decode(read_file(root + DIVERSIONS) or b"").splitlines()
    for path, _, package in zip(lines[::3], lines[1::3], lines[2::3], strict=False):
        if path not in MODPROBES:
            continue
        if package != "kmodd":
            owner = "the administrator" if package == ":" else package
            text = f"{path} is diverted by {owner}: kmodd's package cannot take its place"
            yield Result("installation", "diversion", text, command=f"dpkg-divert --rename --remove {path}")
        elif not any(_is_same(root + path, root + helper) for helper in HELPERS):
            text = f"{path} is diverted for kmodd, but is not kmodd's helper"
            yield Result("installation", "diversion", text, command="dpkg-reconfigure kmodd")


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
