"""Build and cache what a guest is made of: Debian alone, by Debian's own tools, from this machine's own apt sources.

`ensure_image()` returns an `Image`: a disk (`root.ext4`), the kernel as an ELF file that QEMU starts by PVH, and the
parts of a small initrd. kmodd and whatever a test adds are not in it: they travel in each boot's initrd
(`payload.py`), so changing kmodd never rebuilds an image. An image is cached under a key of what went into it: the
versions of the packages as apt resolves them now, and the recipe below.

Run as a program, it builds the image if need be and prints its folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm import VmError, say

#: Debian packages that the machine which runs the tests needs, for `apt-get install --no-install-recommends`.
APT_NEEDS: Final = ("qemu-system-x86", "mmdebstrap", "e2fsprogs")

KERNEL: Final = "linux-image-amd64"

#: What the guest holds beside Debian's minimal base.
GUEST_PACKAGES: Final = (
    "systemd-sysv",
    "udev",
    "kmod",
    "libkmod2",
    "python3",
    "python3-systemd",
    "python3-pyudev",
    "python3-pyelftools",
    "procps",
    "strace",
    "busybox-static",
)

#: What the initrd must load to reach the disk (ext4 wants a crc32c by name); dependencies come from modules.dep.
INITRD_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")

_RECIPE: Final = 1  # raise it when the code below makes a different image of the same packages
_DISK_MIB: Final = 2048  # size of the file system, sparse on the host
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Image:
    """A cached image; everything in it is read only."""

    folder: Path
    release: str  # of the kernel, as `uname -r` prints it

    @property
    def disk(self) -> Path:
        """Root file system, raw ext4; open it with snapshot=on."""
        return self.folder / "root.ext4"

    @property
    def vmlinux(self) -> Path:
        """The kernel, an ELF file with a PVH entry."""
        return self.folder / "vmlinux"

    @property
    def initrd_parts(self) -> Path:
        """Folder with what each initrd starts from: bin/busybox, modules/order and the modules that it names."""
        return self.folder / "initrd"

    @property
    def modules(self) -> Path:
        """The kernel's module tree without the modules: modules.alias, modules.dep, modules.builtin and their like."""
        return self.folder / "modules"


def cache_folder() -> Path:
    """Where images lie: `$KMODD_CACHE`, or `.cache` in the repository."""
    return Path(os.environ.get("KMODD_CACHE") or _REPOSITORY / ".cache").absolute()


def ensure_image(kernel: str = KERNEL) -> Image:
    """Return the image for `kernel` (a Debian package, real or one that depends on the real one), built if need be.

    Takes half a second if it is cached, about a minute if not. Building needs root or sudo.
    Raises VmError if a tool is missing, apt knows no such package, or a step of the build fails.
    """
    require("apt-cache", "apt")
    resolved, versions = _resolve(kernel)
    recipe = {"recipe": _RECIPE, "initrd": INITRD_MODULES, "disk": _DISK_MIB, "versions": versions}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / "vm" / f"{resolved}-{key}"
    image = Image(folder, resolved.removeprefix("linux-image-").removesuffix("-unsigned"))
    if image.disk.exists():
        return image
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / "lock"):
        if not image.disk.exists():
            _build_as_root(kernel, image, recipe)
    return image


def require(program: str, package: str) -> None:
    """Raise VmError with the package's name if `program` is not installed."""
    if shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin") is None:
        raise VmError(f"{program} is missing: apt-get install {package}")


# ── what apt says ──────────────────────────────────────────────────────────────────────────────────────────────────


def _resolve(kernel: str) -> tuple[str, dict[str, str]]:
    """Ask apt once: the real package behind `kernel`, and package → version of all that an image holds.

    linux-image-amd64 depends on today's kernel and bears its version; a real kernel package stands for itself.
    """
    packages = (kernel, *GUEST_PACKAGES)
    text = output(
        ["apt-cache", "show", "--no-all-versions", *packages], "is the list of packages there? apt-get update"
    )
    stanzas = {}
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Depends): (.+)", stanza, re.MULTILINE))
        stanzas[fields.get("Package", "")] = fields
    missing = sorted(set(packages) - set(stanzas))
    if missing:
        raise VmError(f"apt knows no package {', '.join(missing)}: apt-get update")
    found = re.search(r"linux-image-\d\S*", kernel + " " + stanzas[kernel].get("Depends", ""))
    if found is None:
        raise VmError(f"{kernel} depends on no kernel image")
    return found[0], {name: stanzas[name]["Version"] for name in packages}


def sources() -> str:
    """The machine's Debian sources, one `deb` line each; other vendors' sources stay out of the guest."""
    line = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    text = output(["apt-get", "indextargets", "--format", line, "Created-By: Packages", "Origin: Debian"], "")
    lines = sorted(set(text.splitlines()))
    if not lines:
        raise VmError("apt has no list of Debian packages: apt-get update")
    return "\n".join(lines) + "\n"


def _codename() -> str:
    text = output(["apt-get", "indextargets", "--format", "$(CODENAME)", "Created-By: Packages", "Origin: Debian"], "")
    return sorted(text.split(), key=len)[0]  # `bookworm`, not `bookworm-updates`


# ── the build ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _build_as_root(kernel: str, image: Image, recipe: object) -> None:
    """Build here if we are root, else run this file by sudo."""
    for program, package in (("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs"), ("dpkg-deb", "dpkg")):
        require(program, package)
    if os.geteuid() != 0:
        require("sudo", "sudo (or run as root)")
        settings = [f"KMODD_CACHE={cache_folder()}", f"PYTHONPATH={_REPOSITORY}", "KMODD_IMAGE_LOCKED=1"]
        run(["sudo", "env", *settings, sys.executable, "-m", "tests.vm.image", kernel], "build as root")
        return
    started = time.monotonic()
    say(f"building {image.folder}")
    for rest in image.folder.parent.glob("building-*"):  # of a build that was killed; we hold the lock
        shutil.rmtree(rest)
    with tempfile.TemporaryDirectory(prefix="building-", dir=image.folder.parent) as scratch:
        made = _build(Path(scratch), image.release, image.folder.name.rpartition("-")[0])
        (made / "recipe.json").write_text(json.dumps(recipe, indent=1, sort_keys=True) + "\n")
        owner, group = int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0"))
        for path in [made, *made.rglob("*")]:
            os.chown(path, owner, group, follow_symlinks=False)
        made.rename(image.folder)
    _drop_old(image)
    say(f"built {image.folder} in {time.monotonic() - started:.0f} s")


def _drop_old(image: Image) -> None:
    """Remove images that newer ones replaced; three stay, so two flavours and an upgrade in mid-run do no harm."""
    images = sorted(image.folder.parent.glob("linux-image-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in images[3:]:
        shutil.rmtree(path)


def _build(scratch: Path, release: str, package: str) -> Path:
    """Make everything below `scratch`; return the folder that becomes the image."""
    tree, made = scratch / "tree", scratch / "image"
    made.mkdir()
    say("fetching Debian's base and " + ", ".join(GUEST_PACKAGES))
    mmdebstrap = ["mmdebstrap", "--variant=minbase", f"--include={','.join(GUEST_PACKAGES)}"]
    quiet = ["--quiet", "--aptopt=APT::Install-Recommends false"]
    run([*mmdebstrap, *quiet, _codename(), str(tree), "-"], "mmdebstrap", text=sources())
    say(f"fetching {package}")
    run(["apt-get", "download", "-q", package], "download; apt-get update may help", cwd=scratch)
    (archive,) = scratch.glob("linux-image-*.deb")
    run(["dpkg-deb", "-x", str(archive), str(scratch / "kernel")], "unpack")
    shutil.move(scratch / "kernel/lib/modules" / release, tree / "usr/lib/modules" / release)
    say("depmod, kernel, initrd, disk")
    run(["chroot", str(tree), "/usr/sbin/depmod", release], "depmod in the tree")
    (made / "vmlinux").write_bytes(_vmlinux((scratch / "kernel/boot" / f"vmlinuz-{release}").read_bytes()))
    _copy_parts(tree, tree / "usr/lib/modules" / release, made)
    _settle_tree(tree)
    disk = made / "root.ext4"
    with disk.open("wb") as file:
        file.truncate(_DISK_MIB << 20)
    run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-d", str(tree), str(disk)], "file system")
    return made


def _settle_tree(tree: Path) -> None:
    """What a first boot would ask for: an identity, a name. Without a machine-id systemd would apply its presets."""
    (tree / "etc/machine-id").write_text(hashlib.sha256(b"kmodd guest").hexdigest()[:32] + "\n")
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/fstab").write_text("")


def _copy_parts(tree: Path, modules: Path, made: Path) -> None:
    """Keep the start of every initrd, and the indexes that tests on the host read."""
    parts = made / "initrd"
    (parts / "bin").mkdir(parents=True)
    (parts / "modules").mkdir()
    shutil.copy2(tree / "bin/busybox", parts / "bin/busybox")
    order = _load_order((modules / "modules.dep").read_text(), INITRD_MODULES)
    for path in order:
        shutil.copy2(modules / path, parts / "modules")
    (parts / "modules/order").write_text("".join(f"{Path(path).name}\n" for path in order))
    (made / "modules").mkdir()
    for index in modules.glob("modules.*"):
        shutil.copy2(index, made / "modules")


def _load_order(dep: str, wanted: Sequence[str]) -> list[str]:
    """modules.dep → paths of `wanted` and of what they need, in an order that insmod can follow."""
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in dep.splitlines())}
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in wanted:
        if name not in by_name:
            continue  # built into this kernel
        for path in [*reversed(needs[by_name[name]]), by_name[name]]:
            if path not in order:
                order.append(path)
    return order


def _vmlinux(bzimage: bytes) -> bytes:
    """The ELF kernel inside a bzImage: unpacking it once here saves several seconds of every emulated boot."""
    setup_sectors = bzimage[0x1F1]
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    try:
        kernel = lzma.LZMADecompressor().decompress(bzimage[start : start + length])
    except lzma.LZMAError as error:
        raise VmError(f"the kernel image is not compressed by xz: {error}") from error
    if kernel[:4] != b"\x7fELF":
        raise VmError("the kernel image holds no ELF file")
    return kernel


# ── running programs ───────────────────────────────────────────────────────────────────────────────────────────────


def run(command: Sequence[str], what: str, text: str | None = None, cwd: Path | None = None) -> None:
    """Run a step of a build; its output is shown only if it fails, in a VmError. `text`: its standard input."""
    environment = os.environ | {"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", "LC_ALL": "C"}
    show = sys.stderr if command[0] == "sudo" else subprocess.STDOUT
    out = sys.stderr if command[0] == "sudo" else subprocess.PIPE
    done = subprocess.run(command, input=text, stdout=out, stderr=show, text=True, cwd=cwd, env=environment)
    if done.returncode != 0:
        raise VmError(f"{what} failed: {' '.join(command)} gave {done.returncode}\n{done.stdout or ''}")


def output(command: Sequence[str], hint: str) -> str:
    """Return what a program prints; VmError with `hint` if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    if done.returncode != 0:
        raise VmError(f"{' '.join(command)} gave {done.returncode}; {hint}\n{done.stderr}")
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One build at a time; a waiting process finds the image finished. The root half of a build runs under our lock."""
    if os.environ.get("KMODD_IMAGE_LOCKED"):
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(ensure_image(*sys.argv[1:2]).folder)
    except VmError as error:
        sys.exit(f"vm: {error}")
