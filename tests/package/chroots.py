"""Machines of a Debian suite without a kernel of their own, on which packages are built, installed and removed.

The system is made by mmdebstrap and cached under the versions of its packages; what a machine changes lies in an
overlay that the test throws away.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import suites, trees
from tests.installation import ROOT

BUILD = ("build-essential", "debhelper", "dh-python", "python3", "lintian")
BARE = ("systemd-sysv", "udev", "kmod", "initramfs-tools", "python3-minimal", "strace")
SOURCES = "Makefile README.md CHANGELOG.md LICENSE kmodd helper systemd data docs vendor debian"
LISTED = """
snapshot() {
    find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /mnt \\
        -o -path /root -o -path '/var/log/*' -o -path '/var/cache/*' -o -path '/var/lib/apt/*' \\
        -o -path '/var/lib/dpkg/*' \\) -prune -o -printf '%p %y %l %m\\n' | LC_ALL=C sort
    cat /var/lib/dpkg/diversions
}
"""
"""A shell function: every file but those of apt and dpkg, with kind, link and mode; then all diversions."""
CALLING = """
( while [ ! -e /tmp/stop ]; do
    if /sbin/modprobe --version >/tmp/said 2>&1; then echo >>/tmp/called; else cat /tmp/said >>/tmp/failed; fi
done ) & renice -n 19 $! >/dev/null
until [ -e /tmp/called ]; do sleep 0.1; done
called() { touch /tmp/stop; wait; wc -l </tmp/called; ! cat /tmp/failed 2>/dev/null; }
"""
"""Shell: call modprobe again and again; `called` prints how often, and fails if one call has failed."""
INSTALL = "dpkg --install /mnt/kmodd.deb >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }\n"

_ENTER = """
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
mount -t tmpfs tmpfs "$2/root/run"
mount --bind "$3" "$2/root/mnt"
exec chroot "$2/root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root \\
    DEBIAN_FRONTEND=noninteractive DPKG_FORCE=unsafe-io sh -euc "$4"
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A system; its changes and mount points lie in `folder`. `shared` is its /mnt."""

    system: Path
    folder: Path
    shared: Path

    def run(self, script: str, expect: int = 0) -> str:
        """Run a shell script as root; its output with errors."""
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", _ENTER, "sh"]
        done = subprocess.run(
            [*unshare, str(self.system), str(self.folder), str(self.shared), script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        assert done.returncode == expect, f"{script}\n{done.stdout}"
        return done.stdout


def system(suite: str, packages: Sequence[str]) -> Path:
    """Return the root of a suite's minimal base with `packages`, made if need be. Raises suites.Unavailable."""
    found = [trees.newest(name, suite, "") for name in packages]
    recipe = json.dumps([(package.name, package.version) for package in found])

    def fill(folder: Path) -> None:
        words, text = suites.bootstrap(suite, folder / "root", packages)
        done = subprocess.run(words, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise suites.Unavailable(f"{' '.join(words)}: {done.stdout}")

    return trees.cached(f"package-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}", fill) / "root"


def build_script(name: str) -> str:
    """Return shell commands that build the package of /mnt/source; it becomes /mnt/NAME.deb."""
    return f"""
        mkdir -p /tmp/build && cd /tmp/build && rm -rf -- * && (cd /mnt/source && tar -cf - {SOURCES}) | tar -xf -
        make deb >/tmp/log 2>&1 || {{ cat /tmp/log; exit 1; }}
        mv dist/kmodd_*.deb /mnt/{name}.deb
    """


def copy_sources(target: Path) -> None:
    """Copy the checkout's sources of a package."""
    target.mkdir()
    pack = f"tar --exclude=__pycache__ -cf - {SOURCES} | tar -C {target} -xf -"
    subprocess.run(["sh", "-euc", pack], cwd=ROOT, check=True)
