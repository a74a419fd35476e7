"""What this machine needs to run: which modules its disks and networks hang on, and what is lost without them."""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.index.catalog import lookup_or_nothing
from kmodd.names import module_of_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

    from kmodd.index.catalog import Snapshot

ROOTS = ("/", "/usr")
"""Mount points without which the machine does not boot."""
_NETWORK_NAMES = frozenset(f"fs-{kind}" for kind in ("nfs", "nfs4", "cifs", "smb3", "ceph", "afs"))
_NETWORK_DISKS = frozenset(("iscsi_tcp", "nbd", "rbd", "nvme_tcp", "aoe"))


@dataclass(frozen=True, slots=True)
class Use:
    """Something that is in use now, and what it hangs on."""

    kind: Literal["mount", "swap", "network"]
    name: str
    """The mount point, the device of the swap, or the interface."""
    modules: frozenset[str]
    """Modules of its devices' drivers, upwards."""
    aliases: tuple[str, ...] = ()
    """Names that the kernel requests for it, such as `fs-ext4`."""
    is_default: bool = False
    """network: whether it carries a default route."""

    def __str__(self) -> str:
        """Return `the file system at /`, `the swap on /dev/sda2` or `the interface eth0, which carries a route`."""
        match self.kind:
            case "mount":
                return f"the file system at {self.name}"
            case "swap":
                return f"the swap on {self.name}"
            case "network":
                return f"the interface {self.name}, which carries a route"


def is_of_network(use: Use) -> bool:
    """Return whether a file system is on a server, or on a disk that the network brings."""
    return not (_NETWORK_NAMES.isdisjoint(use.aliases) and _NETWORK_DISKS.isdisjoint(use.modules))


def needed_interfaces(uses: Sequence[Use]) -> tuple[Use, ...]:
    """Return the interfaces of which one must work: those with a default route; without one, those with any route."""
    interfaces = tuple(use for use in uses if use.kind == "network")
    return tuple(use for use in interfaces if use.is_default) or interfaces


def lost_without(modules: Iterable[str], uses: Sequence[Use], snapshot: Snapshot) -> tuple[Use, ...]:
    """Return what needs one of the modules: as a driver, by its name, or as a dependency of one of these."""
    gone = frozenset(modules)
    if not gone:
        return ()
    # Hundreds of mounts have the same few types.
    ended = {alias for alias in {alias for use in uses for alias in use.aliases} if _is_lost(alias, gone, snapshot)}
    fails = {name for name in {name for use in uses for name in use.modules} if _fails(name, gone, snapshot)}
    return tuple(use for use in uses if ended.intersection(use.aliases) or fails & use.modules)


def _is_lost(alias: str, gone: frozenset[str], snapshot: Snapshot) -> bool:
    """Return whether a name brought modules, and brings none without those that are gone."""
    if snapshot.catalog.builtin_aliases(alias.replace("-", "_")):
        return False
    hits = lookup_or_nothing(alias, snapshot)
    return bool(hits) and all(not hit.builtin and _fails(hit.module, gone, snapshot) for hit in hits)


def _fails(module: str, gone: frozenset[str], snapshot: Snapshot) -> bool:
    """Return whether a module or one of its dependencies is gone."""
    line = snapshot.catalog.dep(module)
    return bool(gone.intersection((module, *(map(module_of_path, line.deps) if line else ()))))


def cipher_aliases(cipher: str) -> tuple[str, ...]:
    """Return the names that the kernel requests for a cipher of dm-crypt, such as `aes-xts-plain64`.

    Source: Documentation/admin-guide/device-mapper/dm-crypt.rst: CIPHER[:KEYCOUNT]-MODE-IV[:OPTIONS], or
    capi:API-IV[:OPTIONS], as in `capi:xts(aes)-plain64`.
    """
    text = cipher.removeprefix("capi:").replace(":", "-")
    words = [word for word in re.split(r"[-(),]+", text) if word and not word.isdecimal()]
    return tuple(f"crypto-{word}" for word in dict.fromkeys(words) if word not in _NO_CIPHERS)


_NO_CIPHERS = ("plain", "plain64", "plain64be", "null", "benbi", "random", "eboiv", "lmk", "tcw", "elephant")
"""Ways to make an IV that dm-crypt has itself."""


def vital_without(modules: Iterable[str], uses: Sequence[Use], snapshot: Snapshot) -> tuple[Use, ...]:
    """Return what the machine does not come up without: root's disk, and the only network, if they hang on modules.

    Of several interfaces with a default route, all must hang on them; without a default route, all with any route.
    """
    lost = lost_without(modules, uses, snapshot)
    roots = tuple(use for use in lost if use.kind == "mount" and use.name in ROOTS)
    needed = needed_interfaces(uses)
    return roots + (needed if all(use in lost for use in needed) else ())
