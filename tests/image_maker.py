"""Initial ramdisks as Debian's own programs make them, in a chroot of a suite with a kernel's module tree."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import suites, trees
from tests.rootfs import Said
from tests.vm import image

PACKAGES = ("initramfs-tools", "kmod", "python3", "python3-pyelftools", "zstd")
"""For a chroot with initramfs-tools, in which kmodd runs."""

_IN_CHROOT = r"""
mount -t proc proc "$1/proc"
mount --bind "$2/boot" "$1/mnt"
mkdir -p "$1/usr/lib/modules"
mount --bind "$2/lib/modules" "$1/usr/lib/modules"
mount -o remount,bind,ro "$1/usr/lib/modules"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C sh -euc "$3"
"""


class ImageMaker:
    """A chroot. Each command has mounts and processes of its own, which end with it."""

    def __init__(self, root: Path, kernel: Path) -> None:
        """Take a chroot that may be changed, and a tree of `trees.py`, whose files of /boot are copied to its own."""
        self.root = root
        self.kernel = kernel
        self.release = trees.release(kernel)
        self.call("cp /mnt/* /boot/")

    def run(self, script: str) -> Said:
        """Run a shell script in the chroot."""
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        words = ["sh", "-euc", _IN_CHROOT, "sh", str(self.root), str(self.kernel), script]
        done = subprocess.run([*unshare, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return Said(done.stdout, done.stderr, done.returncode)

    def call(self, script: str) -> str:
        """Run a shell script that must succeed; return its output."""
        said = self.run(script)
        assert said.status == 0, (script, said)
        return said.out.decode()


@contextmanager
def image_maker(suite: str, kernel: Path, packages: Sequence[str] = PACKAGES) -> Iterator[ImageMaker]:
    """A copy of the chroot of a suite with packages, which ends with the block. Raises suites.Unavailable."""
    with tempfile.TemporaryDirectory(prefix="kmodd-images-") as folder:
        root = Path(folder, "root")
        subprocess.run(["cp", "-a", "--reflink=auto", str(_chroot(suite, packages)), str(root)], check=True)
        yield ImageMaker(root, kernel)


def _chroot(suite: str, packages: Sequence[str]) -> Path:
    """Return the chroot, cached under the versions of its packages."""
    recipe = json.dumps([(name, trees.newest(name, suite, "").version) for name in packages])

    def fill(root: Path) -> None:
        image.require("mmdebstrap", "mmdebstrap")
        words, text = suites.bootstrap(suite, root, packages)
        image.run(words, "mmdebstrap", text=text)

    return trees.cached(f"initramfs-chroot-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}", fill)
