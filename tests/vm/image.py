"""Build and cache what a guest is made of: a Debian suite alone, by Debian's own tools (where from: `suites.py`).

`ensure_image()` returns an `Image`: a disk (`root.ext4`), the kernel as an ELF file that QEMU starts by PVH, and the
parts of a small initrd. kmodd and whatever a test adds are not in it: they travel in each boot's initrd
(`payload.py`), so changing kmodd never rebuilds an image. An image is cached under a key of what went into it: the
versions of the packages as apt resolves them now, and the recipe below.

Run as a program with a suite, it builds the image if need be and prints its folder.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
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

import zstandard

from tests import emulation, suites, trees
from tests.vm import VmError, say

#: Debian packages that the machine which runs the tests needs, for `apt-get install --no-install-recommends`.
APT_NEEDS: Final = ("qemu-system-x86", "mmdebstrap", "e2fsprogs")

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
    "python3-zstandard",
    "procps",
    "strace",
    "busybox-static",
)

#: Guests that are as people use them (`stock.py`), by kind: mmdebstrap's variant, and packages beside it.
KINDS: Final = {
    "": ("minbase", ""),
    "server": (
        "standard",
        "apparmor btrfs-progs bubblewrap cifs-utils cryptsetup-bin dosfstools ethtool exfatprogs fuse3 "
        "genisoimage ipset iptables iputils-ping libpam-systemd lvm2 mdadm nfs-kernel-server nftables nginx-light "
        "openssh-server openvpn squashfs-tools sshfs sudo systemd-container tcpdump ufw unattended-upgrades "
        "wireguard-tools xfsprogs",
    ),
    "container": (
        "important",
        "apparmor ca-certificates conntrack containerd containernetworking-plugins crun dbus-user-session "
        "docker.io ebtables ethtool fuse-overlayfs ipset iptables iputils-ping ipvsadm libpam-systemd "
        "openssh-server podman runc slirp4netns socat sudo uidmap",
    ),
    "desktop": (
        "important",
        "alsa-utils apparmor avahi-daemon bluez bubblewrap cups dbus-user-session dbus-x11 dosfstools exfatprogs "
        "fuse3 gvfs gvfs-daemons gvfs-fuse iputils-ping libnotify-bin libpam-systemd lightdm lightdm-gtk-greeter "
        "modemmanager network-manager ntfs-3g openssh-server openvpn pipewire pkexec polkitd pulseaudio sudo "
        "thunar udisks2 upower wpasupplicant x11-xserver-utils xdg-user-dirs xfce4-notifyd xfce4-panel "
        "xfce4-session xfce4-terminal xfdesktop4 xfwm4 xinit xscreensaver xserver-xorg-core "
        "xserver-xorg-input-libinput xserver-xorg-video-fbdev",
    ),
}

#: What the initrd must load to reach the disk (ext4 wants a crc32c by name); dependencies come from modules.dep.
INITRD_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")

_RECIPE: Final = 2  # raise it when the code below makes a different image of the same packages
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_DISK_MIB: Final = 2048  # size of the file system, sparse on the host
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Image:
    """A cached image; everything in it is read only."""

    folder: Path
    release: str  # of the kernel, as `uname -r` prints it
    suite: str  # of `suites.SUITES`
    architecture: str = ""  # as in `suites.py`
    kind: str = ""  # of `KINDS`

    @property
    def disk(self) -> Path:
        """Root file system, raw ext4; open it with snapshot=on."""
        return self.folder / "root.ext4"

    @property
    def vmlinux(self) -> Path:
        """The kernel, an ELF file with a PVH entry, or for arm64 what QEMU starts by itself."""
        return self.folder / "vmlinux"

    @property
    def initrd_parts(self) -> Path:
        """Folder with what each initrd starts from: bin/busybox, modules/order and the modules that it names."""
        return self.folder / "initrd"

    @property
    def modules(self) -> Path:
        """The kernel's module tree without the modules: modules.alias, modules.dep, modules.builtin and their like."""
        return self.folder / "modules"


def ensure_image(suite: str = "", architecture: str = "", kind: str = "") -> Image:
    """Return the image of a suite ("": `suites.chosen()`), architecture (as in `suites.py`) and kind, built if need be.

    Takes a second if it is cached, about a minute if not, ten for another architecture. Building needs root or sudo.
    Raises VmError if a tool is missing, the suite has no such package, or a step of the build fails.
    """
    require("apt-cache", "apt")
    try:
        suite = suite or suites.chosen()
        kernel = trees.suite_tree(suite, architecture)
        versions = suites.versions(suite, packages_of(kind), architecture)
    except suites.Unavailable as error:
        raise VmError(f"{error}; apt-get update may help") from error
    versions["kernel"] = kernel.name
    recipe = {"recipe": _RECIPE, "initrd": INITRD_MODULES, "disk": _DISK_MIB, "versions": versions}
    recipe |= {"kind": kind} if kind else {}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    release = trees.release(kernel)
    name = f"{kind}-{suite}" if kind else suite
    image = Image(suites.cache() / "vm" / f"{name}-{release}-{key}", release, suite, architecture, kind)
    if image.disk.exists():
        return image
    image.folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(suites.cache() / "vm"):
        if not image.disk.exists():
            _build_as_root(image, kernel, recipe)
    return image


def packages_of(kind: str) -> tuple[str, ...]:
    """Return the packages that guests of a kind have beside what its variant of mmdebstrap has."""
    return tuple(dict.fromkeys((*GUEST_PACKAGES, *KINDS[kind][1].split())))


def require(program: str, package: str) -> None:
    """Raise VmError with the package's name if `program` is not installed."""
    if shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin") is None:
        raise VmError(f"{program} is missing: apt-get install {package}")


# ── the build ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _build_as_root(image: Image, kernel: Path, recipe: object) -> None:
    """Build here if we are root, else run this file by sudo."""
    for program, package in (("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs"), ("dpkg-deb", "dpkg")):
        require(program, package)
    if os.geteuid() != 0:
        require("sudo", "sudo (or run as root)")
        settings = [f"KMODD_CACHE={suites.cache()}", f"PYTHONPATH={_REPOSITORY}", "KMODD_IMAGE_LOCKED=1"]
        words = [sys.executable, "-m", "tests.vm.image", image.suite, image.architecture, image.kind]
        run(["sudo", "env", *settings, *words], "build as root")
        return
    started = time.monotonic()
    say(f"building {image.folder}")
    for rest in image.folder.parent.glob("building-*"):  # of a build that was killed; we hold the lock
        run(["rm", "-rf", "--one-file-system", str(rest)], "removal")  # there may be mounts in it
    with tempfile.TemporaryDirectory(prefix="building-", dir=image.folder.parent) as scratch:
        made = _build(Path(scratch), image, kernel)
        (made / "recipe.json").write_text(json.dumps(recipe, indent=1, sort_keys=True) + "\n")
        owner, group = int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0"))
        for path in [made, *made.rglob("*")]:
            os.chown(path, owner, group, follow_symlinks=False)
        made.rename(image.folder)
    _drop_old(image)
    say(f"built {image.folder} in {time.monotonic() - started:.0f} s")


def _drop_old(image: Image) -> None:
    """Remove images of the suite and architecture that newer ones replaced.

    Two stay, so an upgrade in mid-run does no harm.
    """
    name = f"{image.kind}-{image.suite}" if image.kind else image.suite
    mine = f"{name}-*{image.architecture or suites.own_architecture()}-*/root.ext4"
    images = sorted(image.folder.parent.glob(mine), key=lambda path: path.stat().st_mtime)
    for path in images[:-2]:
        shutil.rmtree(path.parent)


def _build(scratch: Path, image: Image, kernel: Path) -> Path:
    """Make everything below `scratch`; return the folder that becomes the image."""
    tree, made = scratch / "tree", scratch / "image"
    made.mkdir()
    packages = packages_of(image.kind)
    say(f"fetching the base of {image.suite} and " + ", ".join(packages))
    words, text = suites.bootstrap(image.suite, tree, packages, image.architecture, KINDS[image.kind][0])
    with emulation.of(image.architecture):
        run(words, "mmdebstrap", text=text)
    say("depmod, kernel, initrd, disk")
    modules = tree / "usr/lib/modules" / image.release
    # Copied without its owner, so it is root's. The kernel file is not read from the disk.
    shutil.copytree(trees.module_dir(kernel), modules, symlinks=True, ignore=shutil.ignore_patterns("vmlinuz"))
    with emulation.of(image.architecture):
        run(["chroot", str(tree), "/usr/sbin/depmod", image.release], "depmod in the tree")
    data = trees.kernel_image(kernel).read_bytes()
    (made / "vmlinux").write_bytes(data if image.architecture == "arm64" else _vmlinux(data))
    _copy_parts(tree, modules, made)
    _settle_tree(tree)
    disk = made / "root.ext4"
    with disk.open("wb") as file:
        file.truncate(_DISK_MIB << (22 if image.kind else 20))
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
    names = [Path(path).name.removesuffix(".xz") for path in order]
    for path, name in zip(order, names, strict=True):
        data = (modules / path).read_bytes()  # busybox unpacks none
        (parts / "modules" / name).write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
    (parts / "modules/order").write_text("".join(f"{name}\n" for name in names))
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
    packed = bzimage[start : start + length]
    try:
        if packed.startswith(_ZSTD):
            kernel = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
        else:
            kernel = lzma.LZMADecompressor().decompress(packed)
    except (lzma.LZMAError, zstandard.ZstdError) as error:
        raise VmError(f"the kernel image is compressed neither by xz nor by zstd: {error}") from error
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
def locked(place: Path) -> Iterator[None]:
    """One build at a time; a waiting process finds the image finished. The root half of a build runs under our lock."""
    if os.environ.get("KMODD_IMAGE_LOCKED"):
        yield
        return
    with suites.locked(place):
        yield


if __name__ == "__main__":
    try:
        print(ensure_image(*sys.argv[1:4]).folder)
    except VmError as error:
        sys.exit(f"vm: {error}")
