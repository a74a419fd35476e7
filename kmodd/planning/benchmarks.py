"""Modules that hardening benchmarks keep out, and the format of a list of one's own.

The names are those of the rules `kernel_module_NAME_disabled` in profiles of scap-security-guide 0.1.65 (Debian:
ssg-debderived, ssg-nondebian; BSD-3-Clause, Copyright 2012-2017 Red Hat, Inc.).
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.errors import Problem, Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9_-]{1,55}", re.ASCII)
"""MODULE_NAME_LEN of the kernel is 56 (include/linux/moduleparam.h)."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The modules that a benchmark keeps out."""

    title: str
    modules: tuple[str, ...]
    source: str = ""
    """Where the names are from; empty: a file of the caller."""
    version: str = ""
    """Version of the source; empty: it has none."""
    licence: str = ""
    """Licence of the source, as SPDX names it; empty: not known."""


_SSG, _LICENCE = "scap-security-guide 0.1.65", "BSD-3-Clause"
BENCHMARKS: Mapping[str, Benchmark] = {
    "cis": Benchmark(
        "CIS Ubuntu 22.04 Level 2 Server",
        (
            "cramfs", "dccp", "freevxfs", "hfs", "hfsplus", "jffs2", "rds", "sctp", "tipc", "udf", "usb_storage",
        ),
        "ssg-ubuntu2204-xccdf.xml, profile cis_level2_server", _SSG, _LICENCE,
    ),
    "stig": Benchmark(
        "DISA STIG for Red Hat Enterprise Linux 8",
        ("atm", "bluetooth", "can", "cramfs", "firewire_core", "sctp", "tipc", "usb_storage"),
        "ssg-rhel8-xccdf.xml, profile stig", _SSG, _LICENCE,
    ),
}  # fmt: skip
"""Name on the command line → benchmark."""


KNOWN_NAMES = frozenset(name for benchmark in BENCHMARKS.values() for name in benchmark.modules) | frozenset((
    "afs", "ceph", "cfg80211", "cifs", "cifs_arc4", "cifs_md4", "exfat", "fat", "floppy", "fscache", "fuse", "gfs2",
    "grace", "iwlmvm", "iwlwifi", "mac80211", "nfs", "nfs_acl", "nfsd", "overlay", "squashfs", "thunderbolt",
    "uvcvideo", "vfat",
))  # fmt: skip
"""Names that hardening rules have and that are of modules, so that a tree without one lacks the module."""
_SPELLED = {
    "overlayfs": ("overlay",),
    "nfs_common": ("grace", "nfs_acl"),
    "smbfs_common": ("cifs_arc4", "cifs_md4"),
}
"""Name in a rule that is of a file system or of a folder of the kernel's source → the modules that it stands for."""


def modules_named(name: str) -> tuple[str, ...]:
    """Return the modules that a name in a rule or a list stands for, with `_`."""
    module = name.replace("-", "_")
    return _SPELLED.get(module, (module,))


def source_of(benchmark: Benchmark) -> str:
    """Return `VERSION, SOURCE; LICENCE`, as far as they are known."""
    parts = ", ".join(filter(None, (benchmark.version, benchmark.source)))
    return f"{parts}; {benchmark.licence}" if benchmark.licence else parts


def parse(text: str, path: str) -> tuple[Benchmark, list[Problem]]:
    """Return the benchmark of a file: a name a line, `#` begins a comment; and a problem for each line without one."""
    names: dict[str, None] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if _NAME.fullmatch(word):
            names.update(dict.fromkeys(modules_named(word)))
        elif word:
            problems.append(Problem(Where(path, number), 0, line, "expected the name of a module"))
    return Benchmark(path, tuple(names)), problems
