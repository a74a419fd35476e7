"""A chroot of a suite with what compiling and testing need: its compiler, its Python, its systemd.

Making and entering one needs root or sudo. It is cached under the versions of its packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests import suites, trees

_REPOSITORY = Path(__file__).resolve().parent.parent

_NOT_NEEDED = ("qemu-system-x86", "mmdebstrap")
_MORE = ("pahole", "ca-certificates", "git")
"""pahole is for the kernel's headers."""

_ENTER = """
root=$1; script=$2; shift 2
mount --bind "$root" "$root"
while [ $# -gt 0 ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"  # without one, the journald of systemd 257 ends
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root sh -euc "$script"
"""


class Ran(NamedTuple):
    """Result of a script: its status, and its output with errors."""

    status: int
    output: str


def packages() -> list[str]:
    """What a chroot holds beside the minimal base: the packages that the Makefile lists, without those for guests."""
    text = (_REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"^NEEDS = (.*)$", text, re.MULTILINE)
    assert found, "the Makefile lists no packages"
    return sorted({*found[1].split(), *_MORE} - {*_NOT_NEEDED})


def chroot(suite: str) -> Path:
    """The root of a suite's chroot, made if need be, in a minute or two. Raises suites.Unavailable."""
    recipe = json.dumps(suites.versions(suite, packages()), sort_keys=True)

    def fill(folder: Path) -> None:
        words, text = suites.bootstrap(suite, folder / "root", packages())
        _sudo(words, text)

    return trees.cached(f"chroot-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}", fill) / "root"


def run(root: Path, script: str, binds: Mapping[Path, str] | None = None) -> Ran:
    """Run a shell script in a chroot, with mounts and processes of its own.

    `binds`: folders of the machine and where they lie in the chroot.
    """
    places = [str(word) for bind in (binds or {}).items() for word in bind]
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", _ENTER, "sh"]
    done = subprocess.run(
        [*_SUDO, *unshare, str(root), script, *places],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout)


_SUDO = [] if os.geteuid() == 0 else ["sudo"]


def _sudo(words: list[str], text: str = "") -> None:
    done = subprocess.run(
        [*_SUDO, *words], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
    )
    if done.returncode:
        raise suites.Unavailable(f"{' '.join(words)} gave {done.returncode}\n{done.stdout}")


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", "LC_ALL": "C"}
