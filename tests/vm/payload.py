"""What one guest gets beside the cached image: kmodd, unit files, modprobe.d files, fixture modules.

A payload is copied over the guest's root before systemd starts, on a disk whose changes are thrown away at the end.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests import chroots, suites
from tests.vm import VmError, say
from tests.vm.image import Image
from tests.vm.newc import Archive

REPOSITORY: Final = Path(__file__).resolve().parents[2]

#: Debian's loader and its names; a guest that is to prove that kmodd loaded something has none of them.
KMOD_FILES: Final = (
    "/usr/bin/kmod",
    *(f"/usr/sbin/{name}" for name in ("modprobe", "depmod", "insmod", "rmmod", "modinfo", "lsmod")),
    "/usr/bin/lsmod",
)

#: Of the root shell and of the journal, by architecture.
SERIAL_LINES: Final = {"": ("ttyS1", "ttyS2"), "arm64": ("ttyS0", "ttyS1")}

_INIT: Final = """\
#!/bin/busybox sh
b=/bin/busybox
fail() { echo "initrd: $*"; $b sleep 1; $b poweroff -f; }
$b mkdir -p /proc /sys /dev /root
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
$b mount -t tracefs tracefs /sys/kernel/tracing
for m in $($b cat /modules/order); do $b insmod /modules/$m || fail "insmod $m"; done
n=0
until [ -b /dev/vda ]; do n=$((n+1)); [ $n -lt 300 ] || fail "no disk"; $b usleep 100000; done
$b mount -t ext4 /dev/vda /root || fail "mount"
for d in proc sys dev; do $b mount -o move /$d /root/$d; done
root=/root
. /settle
exec $b switch_root /root /sbin/init
"""

# With root's disk at $root, and proc, sys and dev in it.
_SETTLE: Final = """\
while IFS= read -r p; do $b rm -rf "$root$p"; done </remove
$b cp -a /payload/. $root/ || fail "payload"
[ ! -e /no-kernel-helper ] || echo >$root/proc/sys/kernel/modprobe
while IFS= read -r c; do $b chroot $root /bin/sh -c "$c" || fail "$c"; done </commands
echo switch_root >$root/sys/kernel/tracing/trace_marker
"""

# In an image of Debian's own programs, when root's disk is mounted: at /root in those of initramfs-tools, which run it
# from init-bottom (initramfs-tools(7)), at /sysroot in those of dracut, where systemd runs the unit below (bootup(7)).
_OTHER_IMAGE: Final = """\
b=/vm/busybox
fail() { echo "initrd: $*"; $b sleep 1; $b poweroff -f; }
root=/root
[ ! -d /sysroot ] || root=/sysroot
$b mount -t tracefs tracefs /sys/kernel/tracing
for d in proc sys dev; do $b mount -o bind /$d $root/$d; done
$b mount -o bind /sys/kernel/tracing $root/sys/kernel/tracing
. /settle
for d in sys/kernel/tracing proc sys dev; do $b umount $root/$d; done
"""

_OTHER_UNIT: Final = """\
[Unit]
DefaultDependencies=no
After=initrd-root-fs.target initrd-parse-etc.service dracut-pre-pivot.service
Before=initrd-cleanup.service
[Service]
Type=oneshot
StandardOutput=tty
TimeoutStartSec=infinity
ExecStart=/vm/busybox sh /vm/settle
"""

# The shell, on the serial line SHELL, reads `D chunk` (base64, appended to the command) and answers `+`; at `R seconds`
# it runs the command and answers a line `= status bytes`, then the output. Each chunk is acknowledged because a serial
# line loses input that is read too late. Everything is busybox, static: dynamic linking is what an emulated machine is
# slowest at.
_SHELL: Final = """\
#!/bin/busybox sh
b=/bin/busybox
exec </dev/SHELL >/dev/SHELL
$b stty raw -echo
$b mkdir -p /run/vm
cd /root
echo ready
: >/run/vm/command
while read -r verb rest; do
  case $verb in
  D) echo "$rest" | $b base64 -d >>/run/vm/command; echo + ;;
  R) $b timeout -s KILL "$rest" /bin/sh /run/vm/command </dev/null >/run/vm/output 2>&1
     echo "= $? $($b stat -c %s /run/vm/output)"
     $b cat /run/vm/output
     : >/run/vm/command ;;
  esac
done
"""

_UNIT: Final = """\
[Unit]
DefaultDependencies=no
{unit}
[Service]
{service}
Restart=on-failure
SendSIGHUP=yes
"""


@dataclass
class Payload:
    """The files of one guest.

    `remove`: paths deleted from Debian's root first. `commands`: shell commands run in the guest's root just before
    systemd starts (enabling units, say). `kernel_helper`: False leaves kernel.modprobe empty from the start.
    """

    folder: Path
    remove: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    kernel_helper: bool = False

    @classmethod
    def new(cls, folder: Path, with_kmod: bool = False) -> Payload:
        """Make an empty payload in `folder` (created). `with_kmod` keeps Debian's modprobe and kernel.modprobe."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, remove=[] if with_kmod else list(KMOD_FILES), kernel_helper=with_kmod)

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """Put a file at the guest's absolute `path`."""
        target = self.folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        target.chmod(mode)

    def link(self, path: str, target: str) -> None:
        """Put a symbolic link at the guest's absolute `path`."""
        place = self.folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def install_kmodd(self, suite: str, architecture: str = "") -> None:
        """Add kmodd by its own `make install` on the suite, and enable its service as an administrator would."""
        shutil.copytree(_installed(suite, architecture), self.folder, symlinks=True, dirs_exist_ok=True)
        self.commands.append("systemctl enable kmodd.service")


@functools.cache
def _installed(suite: str, architecture: str) -> Path:
    """What `make install` makes on a suite; once for all guests of this process (some seconds), removed at its end.

    For another suite than the machine's it is run in that suite's chroot, so that the byte code is of its Python. All
    but the helper is the same on every architecture.
    """
    say(f"make install for the guests of {suite}")
    folder = Path(tempfile.mkdtemp(prefix="kmodd-installed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tree = folder / "tree"  # the folder itself is for its owner alone, and the guest's root takes this one's mode
    compiler = " CC=aarch64-linux-gnu-gcc" if architecture == "arm64" else ""
    command = f"make -C {{}} install DESTDIR={{}} PREFIX=/usr{compiler}"
    if suite == suites.own():
        words = command.format(REPOSITORY, tree).split()
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        status, output = done.returncode, done.stdout
    else:
        tree.mkdir(mode=0o755)
        owner = f"chown -R {os.getuid()}:{os.getgid()} /tree"
        script = f"{command.format('/kmodd', '/tree')}; {owner}"
        status, output = chroots.run(chroots.chroot(suite), script, {REPOSITORY: "/kmodd", tree: "/tree"})
    if status != 0:
        raise VmError(f"{command} gave {status}\n{output}")
    return tree


def write_initrd(image: Image, payload: Payload, journal: str, target: Path, base: Path | None = None) -> None:
    """Write one boot's initrd to `target`. `journal`: arguments for the guest's journalctl (matches).

    `base`: an image of initramfs-tools or dracut, which comes first and brings root's disk; None: the harness's own.
    """
    archive = Archive()
    start = b""
    if base is None:
        archive.add_tree(image.initrd_parts, "")
        archive.add("init", _INIT.encode(), stat.S_IFREG | 0o755)
    else:
        start = base.read_bytes()
        archive.add("vm/busybox", (image.initrd_parts / "bin/busybox").read_bytes(), stat.S_IFREG | 0o755)
        archive.add("vm/settle", _OTHER_IMAGE.encode())
        archive.add("scripts/init-bottom/ORDER", b"/vm/busybox sh /vm/settle\n/scripts/init-bottom/udev\n")
        unit = "etc/systemd/system/vm-settle.service"
        archive.add(unit, _OTHER_UNIT.encode())
        wants = "etc/systemd/system/initrd.target.wants/vm-settle.service"
        archive.add(wants, f"/{unit}".encode(), stat.S_IFLNK | 0o777)
    archive.add("settle", _SETTLE.encode())
    archive.add("remove", "".join(f"{path}\n" for path in payload.remove).encode())
    archive.add("commands", "".join(f"{command}\n" for command in payload.commands).encode())
    if not payload.kernel_helper:
        archive.add("no-kernel-helper")
    _add_harness(archive, journal, *SERIAL_LINES.get(image.architecture, SERIAL_LINES[""]))
    archive.add_tree(payload.folder, "payload", merged_usr=True)
    target.write_bytes(start + bytes(-len(start) % 4) + archive.finish())


def _add_harness(archive: Archive, journal: str, shell_line: str, journal_line: str) -> None:
    """The two units by which the harness talks with the guest, a root shell and the journal, each on a serial line."""
    follow = f"exec journalctl --follow --no-tail --output=json --all {journal}"
    units = {
        "vm-shell": ("", "ExecStart=/usr/lib/vm-shell"),
        "vm-journal": ("After=systemd-journald.service", "ExecStart=/usr/lib/vm-journal"),
    }
    device = f"/dev/{journal_line}"
    script = f"#!/bin/busybox sh\nexec >{device}\n/bin/busybox stty -F {device} raw -echo\n{follow}\n"
    shell = _SHELL.replace("SHELL", shell_line)
    archive.add("payload/usr/lib/vm-shell", shell.encode(), stat.S_IFREG | 0o755)
    archive.add("payload/usr/lib/vm-journal", script.encode(), stat.S_IFREG | 0o755)
    for name, (unit, service) in units.items():
        text = _UNIT.format(unit=unit, service=service)
        archive.add(f"payload/etc/systemd/system/{name}.service", text.encode())
        wants = f"payload/etc/systemd/system/sysinit.target.wants/{name}.service"
        archive.add(wants, f"../{name}.service".encode(), stat.S_IFLNK | 0o777)
    volatile = "[Journal]\nStorage=volatile\n"
    archive.add("payload/etc/systemd/journald.conf.d/vm.conf", volatile.encode())


def copy_into(payload: Payload, source: Path, path: str) -> None:
    """Copy a file or folder of the host to the guest's absolute `path`, times kept."""
    target = payload.folder / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
