"""What is in use now: mounted file systems, swap, and interfaces that carry a route, with the drivers below them."""

from __future__ import annotations

import os
import re
import stat
import subprocess

from kmodd.dataclass import replace
from kmodd.host.regular_files import names_in, read_file
from kmodd.names import module_name
from kmodd.planning.essentials import Use, cipher_aliases
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OF_BLOCK = (
    ("dm-", "dm_mod"), ("md", "md_mod"), ("loop", "loop"), ("zram", "zram"), ("nbd", "nbd"), ("rbd", "rbd"),
    ("drbd", "drbd"), ("bcache", "bcache"), ("nullb", "null_blk"), ("ram", "brd"),
)  # fmt: skip
"""How names of block devices without a driver begin, and the module that makes them."""
_OF_INTERFACE = {"DEVTYPE=bridge": "bridge", "DEVTYPE=bond": "bonding", "DEVTYPE=vlan": "8021q"}
"""A line of the uevent of an interface without a driver, and the module that makes it."""
_LIMIT = 10
"""Seconds to wait for dmsetup."""
_OF_UUID = (
    ("CRYPT-VERITY-", "dm_verity"), ("CRYPT-INTEGRITY-", "dm_integrity"), ("CRYPT-", "dm_crypt"),
    ("mpath-", "dm_multipath"),
)  # fmt: skip
"""How the UUID of a device of dm begins, and the module of its target (cryptsetup, multipath-tools)."""
_OF_PART = re.compile(
    r"_(?:(?P<dm_raid>rmeta_\d+|rimage_\d+)|(?P<dm_mirror>mlog|mimage_\d+)|(?P<dm_thin_pool>tmeta|tdata)|"
    r"(?P<dm_cache>cmeta|cdata|corig|cpool|cvol)|(?P<dm_writecache>wcorig)|(?P<dm_integrity>imeta|iorig))"
)
"""End of the name of a part of a logical volume, and the module of the target that joins the parts (lvmraid(7),
lvmthin(7), lvmcache(7)).
"""
_DEPTH = 16
"""Levels of stacked devices at most."""


def read_uses(root: str = "", dmsetup: str = "") -> tuple[Use, ...]:
    """Return what is in use below root. What cannot be read is left out.

    dmsetup: the program that knows the ciphers of encrypted disks; empty: that of this machine, none with root.
    """
    found = (*_mounts(root), *_swaps(root), *_networks(root))
    program = dmsetup or ("" if root else "dmsetup")
    if not program or not any("dm_crypt" in use.modules for use in found):
        return found
    aliases = _ciphers(program)
    return tuple(replace(use, aliases=(*use.aliases, *aliases)) if "dm_crypt" in use.modules else use for use in found)


def _ciphers(program: str) -> tuple[str, ...]:
    """Return the names that the kernel requests for the ciphers of all encrypted disks (dmsetup(8))."""
    try:
        done = subprocess.run([program, "table", "--target", "crypt"], capture_output=True, timeout=_LIMIT, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    tables = [line.partition(": ")[2].split() for line in decode(done.stdout).splitlines()]
    return tuple(dict.fromkeys(alias for table in tables if len(table) > 3 for alias in cipher_aliases(table[3])))


def _mounts(root: str) -> Iterator[Use]:
    """Yield the mounted file systems (proc_pid_mountinfo(5))."""
    for line in _lines(f"{root}/proc/self/mountinfo"):
        head, separator, tail = line.partition(" - ")
        words, rest = head.split(), tail.split()
        if not separator or len(words) < 5 or len(rest) < 2:
            continue
        # A file system of several devices, such as btrfs, has a number of its own.
        modules = _of_number(root, words[2]) or _of_node(root, rest[1])
        if rest[0] == "btrfs":
            modules |= _of_btrfs(root, rest[1])
        yield Use("mount", _plain(words[4]), modules, (f"fs-{rest[0]}",))


def _swaps(root: str) -> Iterator[Use]:
    for line in _lines(f"{root}/proc/swaps")[1:]:
        path = _plain(line.split()[0]) if line.split() else ""
        if modules := _of_node(root, path):
            yield Use("swap", path, modules)


def _networks(root: str) -> Iterator[Use]:
    """Yield the interfaces with a route; the first word or the last of a line is the interface."""
    routes: dict[str, bool] = {}
    for words in map(str.split, _lines(f"{root}/proc/net/route")[1:]):
        if len(words) >= 4:
            routes[words[0]] = routes.get(words[0], False) or words[1] == "00000000"
    for words in map(str.split, _lines(f"{root}/proc/net/ipv6_route")):
        # Link-local and multicast prefixes are there for each interface.
        if len(words) >= 10 and words[9] != "lo" and not words[0].startswith(("fe8", "ff")) and words[1] != "80":
            routes[words[9]] = routes.get(words[9], False) or words[1] == "00"
    for name, is_default in routes.items():
        if name != "lo":
            yield Use("network", name, _of_interface(root, name), is_default=is_default)


def _of_node(root: str, path: str) -> frozenset[str]:
    """Return the modules below a block device by its node; none if it is no block device."""
    try:
        about = os.stat(root + path)
    except (OSError, ValueError):
        return frozenset()
    if not stat.S_ISBLK(about.st_mode):
        return frozenset()
    return _of_number(root, f"{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}")


def _of_btrfs(root: str, path: str) -> frozenset[str]:
    """Return the modules below all disks of the btrfs file system on a device (fs/btrfs/sysfs.c)."""
    own = os.path.basename(os.path.realpath(root + path))
    for uuid in names_in(f"{root}/sys/fs/btrfs"):
        folder = f"{root}/sys/fs/btrfs/{uuid}/devices"
        names = names_in(folder)
        if own in names:
            return frozenset[str]().union(*(_below(root, f"{folder}/{name}") for name in names))
    return frozenset()


def _of_number(root: str, number: str) -> frozenset[str]:
    link = f"{root}/sys/dev/block/{number}"
    return _below(root, link) if os.path.exists(link) else frozenset()


def _of_interface(root: str, name: str) -> frozenset[str]:
    link = f"{root}/sys/class/net/{name}"
    return _below(root, link) if os.path.exists(link) else frozenset()


def _below(root: str, link: str, depth: int = 0) -> frozenset[str]:
    """Return the modules of a device's drivers: its own, those above it in sysfs, and those of what it is made of."""
    place, top = os.path.realpath(link), os.path.realpath(f"{root}/sys/devices")
    found = {module for start, module in _OF_BLOCK if os.path.basename(place).startswith(start)} | _made_by(place)
    while place.startswith(f"{top}/") and depth < _DEPTH:
        for module in ("driver/module", "device/driver/module"):
            if os.path.islink(f"{place}/{module.rpartition('/')[0]}") and os.path.exists(f"{place}/{module}"):
                found.add(module_name(os.path.basename(os.path.realpath(f"{place}/{module}"))))
        for part in names_in(f"{place}/slaves"):
            found |= _below(root, f"{place}/slaves/{part}", depth + 1)
        for lower in names_in(place):
            # The paths of an NVMe disk with several are links in its subsystem (drivers/nvme/host/core.c).
            is_path = lower.startswith("nvme") and os.path.islink(f"{place}/{lower}")
            if lower.startswith("lower_") or (is_path and os.path.basename(place).startswith("nvme-subsys")):
                found |= _below(root, f"{place}/{lower}", depth + 1)
        place = os.path.dirname(place)
    return frozenset(found)


def _made_by(place: str) -> set[str]:
    """Return the modules that make a device without a driver: a target of dm, a level of md, a kind of interface."""
    found: set[str] = set()
    uuid = (_lines(f"{place}/dm/uuid") or [""])[0]
    found.update(next(([module] for start, module in _OF_UUID if uuid.startswith(start)), ()))
    if uuid.startswith("LVM-"):
        found |= _joining(place)
    level = (_lines(f"{place}/md/level") or [""])[0]
    if level:
        found.add("raid456" if level in ("raid4", "raid5", "raid6") else level)
    for line in _lines(f"{place}/uevent"):
        found.update(filter(None, [_OF_INTERFACE.get(line)]))
    return found


def _joining(place: str) -> set[str]:
    """Return the modules of the targets by which a logical volume joins its parts, by the names of these."""
    found: set[str] = set()
    for part in names_in(f"{place}/slaves"):
        name = (_lines(f"{place}/slaves/{part}/dm/name") or [""])[0]
        uuid = (_lines(f"{place}/slaves/{part}/dm/uuid") or [""])[0]
        if match := _OF_PART.search(name):
            found.add(str(match.lastgroup))
        elif uuid.startswith("LVM-") and uuid.endswith(("-tpool", "-pool")):
            found.add("dm_thin_pool")
        elif uuid.startswith("LVM-") and uuid.endswith(("-cow", "-real")):
            found.add("dm_snapshot")
    return found


def _lines(path: str) -> list[str]:
    return decode(read_file(path) or b"").splitlines()


def _plain(text: str) -> str:
    r"""Return a path of /proc/self/mountinfo or /proc/swaps, which write a blank as `\040` (proc_pid_mounts(5))."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
