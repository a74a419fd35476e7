"""What is in use now: mounted file systems, swap, and interfaces that carry a route, with the drivers below them."""

from __future__ import annotations

import json
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
    ("drbd", "drbd"), ("bcache", "bcache"), ("nullb", "null_blk"), ("ram", "brd"), ("etherd!", "aoe"),
)  # fmt: skip
"""How names of block devices without a driver begin, and the module that makes them."""
_LIMIT = 10
"""Seconds to wait for dmsetup or ip."""
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
_IS_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII).fullmatch


def read_uses(root: str = "", dmsetup: str = "", ip: str = "") -> tuple[Use, ...]:
    """Return what is in use below root. What cannot be read is left out.

    dmsetup: the program that knows the ciphers of encrypted disks. ip: the one that knows the kinds of interfaces.
    Empty: that of this machine, none with root.
    """
    found = (*_mounts(root), *_swaps(root), *_networks(root, ip or ("" if root else "ip")))
    program = dmsetup or ("" if root else "dmsetup")
    if not program or not any("dm_crypt" in use.modules for use in found):
        return found
    aliases = _ciphers(program)
    return tuple(replace(use, aliases=(*use.aliases, *aliases)) if "dm_crypt" in use.modules else use for use in found)


def _ciphers(program: str) -> tuple[str, ...]:
    """Return the names that the kernel requests for the ciphers of all encrypted disks (dmsetup(8))."""
    tables = [line.partition(": ")[2].split() for line in _output(program, "table", "--target", "crypt").splitlines()]
    return tuple(dict.fromkeys(alias for table in tables if len(table) > 3 for alias in cipher_aliases(table[3])))


def _kinds(program: str) -> dict[str, str]:
    """Return interface → the kind by which it was made, as `macvlan` (IFLA_INFO_KIND; ip-link(8))."""
    try:
        links = json.loads(_output(program, "-details", "-json", "link", "show") or "[]")
        return {str(link["ifname"]): str(link["linkinfo"]["info_kind"]) for link in links if _has_kind(link)}
    except (ValueError, LookupError, TypeError):
        return {}


def _has_kind(link: object) -> bool:
    about = link.get("linkinfo") if isinstance(link, dict) else None
    return isinstance(about, dict) and "info_kind" in about


def _output(*command: str) -> str:
    """Return what a command prints; nothing if it fails."""
    try:
        return decode(subprocess.run(command, capture_output=True, timeout=_LIMIT, check=True).stdout)
    except (OSError, subprocess.SubprocessError):
        return ""


def _mounts(root: str) -> Iterator[Use]:
    """Yield the mounted file systems (proc_pid_mountinfo(5))."""
    for line in _lines(f"{root}/proc/self/mountinfo"):
        head, separator, tail = line.partition(" - ")
        words, rest = head.split(), tail.split()
        if not separator or len(words) < 5 or len(rest) < 2:
            continue
        kind, source = rest[0].partition(".")[0], _plain(rest[1])  # the kernel requests no subtype (fs/filesystems.c)
        # A file system of several devices, such as btrfs, has a number of its own; a process names the source of fuse.
        modules = _of_number(root, words[2]) or (_of_node(root, source) if kind != "fuse" else frozenset())
        if kind == "btrfs":
            modules |= _of_btrfs(root, source)
        yield Use("mount", _plain(words[4]), modules, (f"fs-{kind}",))


def _swaps(root: str) -> Iterator[Use]:
    for line in _lines(f"{root}/proc/swaps")[1:]:
        path = _plain(line.split()[0]) if line.split() else ""
        if modules := _of_node(root, path):
            yield Use("swap", path, modules)


def _networks(root: str, ip: str) -> Iterator[Use]:
    """Yield the interfaces with a route; the first word or the last of a line is the interface. ip: empty: none."""
    routes: dict[str, bool] = {}
    for words in map(str.split, _lines(f"{root}/proc/net/route")[1:]):
        if len(words) >= 4:
            routes[words[0]] = routes.get(words[0], False) or words[1] == "00000000"
    for words in map(str.split, _lines(f"{root}/proc/net/ipv6_route")):
        # Link-local and multicast prefixes are there for each interface.
        if len(words) >= 10 and words[9] != "lo" and not words[0].startswith(("fe8", "ff")) and words[1] != "80":
            routes[words[9]] = routes.get(words[9], False) or words[1] == "00"
    kinds: dict[str, str] | None = None
    for name, is_default in routes.items():
        if name == "lo":
            continue
        places = [*_places(root, f"{root}/sys/class/net/{name}")]
        links = [place for place in places if os.path.basename(os.path.dirname(place)) == "net"]
        made = [link for link in links if not os.path.lexists(f"{link}/device")]
        if kinds is None and ip and made:
            kinds = _kinds(ip)
        found = [(kinds or {}).get(os.path.basename(link)) or _type_of(link) for link in made]
        aliases = tuple(dict.fromkeys(f"rtnl-link-{kind}" for kind in found if kind))
        yield Use("network", name, frozenset[str]().union(*map(_modules_at, places)), aliases, is_default)


def _type_of(link: str) -> str:
    """Return the DEVTYPE of an interface, which mostly is its kind, as `vlan`; empty: it has none."""
    lines = _lines(f"{link}/uevent")
    return next((line.partition("=")[2] for line in lines if line.startswith("DEVTYPE=")), "")


def _of_node(root: str, path: str) -> frozenset[str]:
    """Return the modules below a block device by its node; none if it is no block device.

    No path but one in /dev is asked for, as it may be on a server or in a process that does not answer.
    """
    if not path.startswith("/dev/"):
        return frozenset()
    try:
        about = os.stat(root + path)
    except (OSError, ValueError):
        return frozenset()
    if not stat.S_ISBLK(about.st_mode):
        return frozenset()
    return _of_number(root, f"{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}")


def _of_btrfs(root: str, path: str) -> frozenset[str]:
    """Return the modules below all disks of the btrfs file system on a device (fs/btrfs/sysfs.c).

    The kernel may name a device that has no node, such as /dev/root: then those of all btrfs file systems.
    """
    own = os.path.basename(os.path.realpath(root + path))
    folders = [f"{root}/sys/fs/btrfs/{uuid}/devices" for uuid in names_in(f"{root}/sys/fs/btrfs")]
    disks = {folder: names_in(folder) for folder in folders}
    chosen = [folder for folder, names in disks.items() if own in names] or folders
    return frozenset[str]().union(*(_below(root, f"{folder}/{name}") for folder in chosen for name in disks[folder]))


def _of_number(root: str, number: str) -> frozenset[str]:
    return _below(root, f"{root}/sys/dev/block/{number}")


def _below(root: str, link: str) -> frozenset[str]:
    """Return the modules of a device: of its driver, of those above it in sysfs, and of those of what it is made of."""
    return frozenset[str]().union(*map(_modules_at, _places(root, link)))


def _places(root: str, link: str) -> Iterator[str]:
    """Yield the directories of a device, of those above it in sysfs, and of what it is made of, each once."""
    top = os.path.realpath(f"{root}/sys/devices")
    seen: set[str] = set()
    waiting = [os.path.realpath(link)] if os.path.exists(link) else []
    while waiting:
        place = waiting.pop()
        if place in seen or not place.startswith(f"{top}/"):
            continue
        seen.add(place)
        yield place
        waiting.append(os.path.dirname(place))
        waiting += [os.path.realpath(f"{place}/slaves/{part}") for part in names_in(f"{place}/slaves")]
        for lower in names_in(place):
            # The paths of an NVMe disk with several are links in its subsystem (drivers/nvme/host/core.c).
            is_path = lower.startswith("nvme") and os.path.islink(f"{place}/{lower}")
            if lower.startswith("lower_") or (is_path and os.path.basename(place).startswith("nvme-subsys")):
                waiting.append(os.path.realpath(f"{place}/{lower}"))


def _modules_at(place: str) -> set[str]:
    """Return the modules of a directory of sysfs: of its driver, or what makes a device that has none."""
    found: set[str] = set()
    for module in ("driver/module", "device/driver/module"):
        if os.path.islink(f"{place}/{module.rpartition('/')[0]}") and os.path.exists(f"{place}/{module}"):
            found.add(module_name(os.path.basename(os.path.realpath(f"{place}/{module}"))))
    above, name = os.path.split(place)
    if os.path.basename(above) == "block":
        found |= {module for start, module in _OF_BLOCK if name.startswith(start)} | _of_stack(place)
    if name.startswith("host"):
        # Hosts of iSCSI have no device with a driver above them (drivers/scsi/scsi_sysfs.c, show_proc_name).
        found.update(map(module_name, filter(_IS_NAME, _lines(f"{place}/scsi_host/{name}/proc_name")[:1])))
    if name.startswith("nvme"):
        # Likewise controllers of NVMe over a network (drivers/nvme/host/sysfs.c).
        transports = filter(_IS_NAME, _lines(f"{place}/transport")[:1])
        found.update(f"nvme_{transport}" for transport in transports if transport != "pcie")
    return found


def _of_stack(place: str) -> set[str]:
    """Return the modules that make a block device of others: a target of dm, a level of md."""
    found: set[str] = set()
    uuid = (_lines(f"{place}/dm/uuid") or [""])[0]
    found.update(next(([module] for start, module in _OF_UUID if uuid.startswith(start)), ()))
    if uuid.startswith("LVM-"):
        found |= _joining(place)
    level = (_lines(f"{place}/md/level") or [""])[0]
    if level:
        found.add("raid456" if level in ("raid4", "raid5", "raid6") else level)
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
