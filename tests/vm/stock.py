"""`make requests`: record what stock systems make their kernels request, as `fixtures/requests/KIND-SUITE.json`.

Each guest is a Debian of a kind (`image.KINDS`) as people use it. It boots with Debian's kmod and with kmodd, which has
no policy; then a user and root log in by ssh, or the user at the display manager, and do what `guest/stock/KIND.user`
and `KIND.root` have, a command a line. kmodd's own records tell who made the kernel ask. The kernel's trace of its
requests is a second witness: a request that the trace has, and kmodd answered without a record, is an error.

All that a guest said stays in the folder for temporary files; given as an argument, it makes the fixture without a
guest. `tests/stock_requests.py` says what a fixture has, and makes the tables of docs/POLICY.md of it.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests import stock_requests, suites
from tests.vm import VmError, say
from tests.vm.image import KINDS, Image, ensure_image
from tests.vm.journal import Record, text
from tests.vm.machine import GuestError, Machine
from tests.vm.payload import Payload, copy_into
from tests.vm.scenario import settle

_STOCK: Final = Path(__file__).resolve().parent / "guest" / "stock"
_PLACE: Final = "/usr/lib/stock"
_LIMIT: Final = float(os.environ.get("KMODD_STOCK_SEC", "900"))
"""Seconds from the guest's start to its end; what is not done then is left out."""
_FOR_SECOND: Final = 0.4
"""Part of that which is left to who comes second, at least."""
_KILLED: Final = 137

_INTERFACES: Final = """\
auto lo
iface lo inet loopback
auto eth0
iface eth0 inet static
  address 10.0.2.15/24
  gateway 10.0.2.2
"""
"""The address that QEMU's DHCP gives, at once: the boot does not wait for it."""
_PATIENT_KMODD: Final = "[Service]\nTimeoutStartSec=10min\nWatchdogSec=10min\n"
_PATIENT_SYSTEMD: Final = "[Manager]\nDefaultTimeoutStartSec=10min\nDefaultTimeoutStopSec=20s\n"
_NOT_NOW: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_reap.service", "man-db.timer",
)  # fmt: skip
"""Upkeep, which asks the kernel for nothing."""
_AUTOSTART: Final = "[Desktop Entry]\nType=Application\nName=stock\nExec=/usr/lib/stock/in-session\n"
_LOGIN: Final = "[Seat:*]\nautologin-user=user\nautologin-user-timeout=0\nuser-session=xfce\n"

_TRACED: Final = re.compile(
    r"^\s*(?P<comm>.+)-\d+\s+\[\d+\]\s+\S+\s+(?P<time>\d+\.\d+): module_request: (?P<name>.*) wait=(?P<wait>\d)",
    re.MULTILINE,
)

_DEVICES: Final = ("-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=")
_DESK: Final = (
    "-device", "VGA", "-device", "intel-hda", "-device", "hda-duplex,audiodev=quiet", "-device", "qemu-xhci,id=usb",
    "-device", "usb-kbd,bus=usb.0", "-device", "usb-tablet,bus=usb.0",
    "-drive", "file={stick},format=raw,if=none,id=stick", "-device", "usb-storage,bus=usb.0,drive=stick,removable=on",
)  # fmt: skip


def main(words: list[str]) -> int:
    """Record the kinds that are named, all without a name; a word with a `/` is the file of an earlier recording.

    Exit status 1 with a sentence if a guest does not do it.
    """
    try:
        for word in words or [kind for kind in KINDS if kind]:
            path = Path(word) if "/" in word else _recorded(ensure_image(kind=word))
            _write_fixture(path)
    except (VmError, suites.Unavailable) as error:
        print(f"requests: {error}", file=sys.stderr)
        return 1
    return 0


def _recorded(image: Image) -> Path:
    """Run the guest; return the file with all that it said, in the folder for temporary files. It stays there."""
    path = Path(tempfile.gettempdir()) / f"kmodd-requests-{image.kind}-{image.suite}.json"
    with tempfile.TemporaryDirectory(prefix="kmodd-stock-") as scratch:
        machine = _machine(image, Path(scratch))
        deadline = time.monotonic() + _LIMIT
        with machine:
            try:
                _await_boot(machine, deadline)
                _act(machine, image.kind, deadline)
                settle(machine)
                machine.mark()
            finally:
                traced = machine.run("busybox cat /sys/kernel/tracing/trace", 120).output
                said = {"kind": image.kind, "suite": image.suite, "records": machine.journal.after(0), "trace": traced}
                path.write_text(json.dumps(said))
                say(f"all records are in {path}")
    return path


def _machine(image: Image, scratch: Path) -> Machine:
    payload = _payload(image, scratch)
    stick = scratch / "stick"
    with stick.open("wb") as file:
        file.truncate(64 << 20)
    desk = [word.format(stick=stick) for word in _DESK] if image.kind == "desktop" else []
    return Machine(
        image,
        payload,
        name=f"a stock {image.kind}",
        append="net.ifnames=0 trace_event=module:module_load,module:module_request trace_buf_size=4M",
        arguments=[*_DEVICES, *desk],
        memory_mib=3072,
        boot_timeout=_LIMIT / 2,
    )


def _await_boot(machine: Machine, deadline: float) -> None:
    """Wait until systemd has no job left, for half of the time that is left; then it is enough that sshd runs."""
    try:
        say(f"it is {machine.wait_boot((deadline - time.monotonic()) / 2)}")
    except GuestError as error:
        say(str(error))
        machine.check("systemctl is-active ssh.service")
    failed = machine.run("systemctl --failed --plain --no-legend").output
    say(f"failed units: {failed.strip() or 'none'}")
    if not settle(machine):
        raise VmError("kmodd does not run: " + machine.run("journalctl --no-pager -n 20 -u kmodd").output)


def _write_fixture(path: Path) -> None:
    """Write a fixture of what a guest said. Raises VmError if the kernel's trace has what kmodd's records have not."""
    said = json.loads(path.read_text())
    if missed := _missed(said["records"], said["trace"]):
        raise VmError("the kernel's trace has requests that are not on record: " + ", ".join(missed))
    asked = stock_requests.asked_in(said["records"])
    place = stock_requests.FOLDER / f"{said['kind']}-{said['suite']}.json"
    stock_requests.write(place, asked)
    say(f"{place.name}: {len(asked)} requests")


def _payload(image: Image, scratch: Path) -> Payload:
    payload = Payload.new(scratch / "payload", with_kmod=True)
    payload.install_kmodd(image.suite)
    copy_into(payload, _STOCK, _PLACE)
    (payload.folder / f"{_PLACE[1:]}/run").chmod(0o755)
    payload.write(f"{_PLACE}/hello", "hello\n")
    payload.write("/etc/network/interfaces", _INTERFACES)
    payload.write("/etc/systemd/system/kmodd.service.d/patient.conf", _PATIENT_KMODD)
    payload.write("/etc/systemd/system.conf.d/patient.conf", _PATIENT_SYSTEMD)
    for unit in _NOT_NOW:
        payload.link(f"/etc/systemd/system/{unit}", "/dev/null")
    payload.commands += [
        "useradd -m -u 1000 -s /bin/bash user && usermod -aG sudo user",
        "mkdir -p -m 700 /root/.ssh /home/user/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519",
        "for h in /root /home/user; do cp /root/.ssh/id_ed25519.pub $h/.ssh/authorized_keys; done",
        "chown -R user:user /home/user/.ssh",
    ]
    match image.kind:
        case "container":
            payload.write(f"{_PLACE}/small.tar", _container_image(image))
            payload.link("/etc/cni/net.d/10-bridge.conflist", f"{_PLACE}/10-bridge.conflist")
            payload.commands.append("mkdir -p /opt/cni && ln -s /usr/lib/cni /opt/cni/bin")
        case "desktop":
            payload.write("/etc/lightdm/lightdm.conf.d/10-login.conf", _LOGIN)
            payload.write("/etc/xdg/autostart/stock.desktop", _AUTOSTART)
            (payload.folder / f"{_PLACE[1:]}/in-session").chmod(0o755)
    return payload


def _container_image(image: Image) -> bytes:
    """Return a tar file: busybox, and links into /usr, which the guest lends to containers that need programs."""
    links = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("usr", "proc", "sys", "dev", "etc", "root", "run", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        archive.add(image.initrd_parts / "bin/busybox", "busybox")
    return buffer.getvalue()


def _act(machine: Machine, kind: str, deadline: float) -> None:
    """Do what a user and root do, logged in by ssh; the desktop's user acts by itself once its session is there.

    The user comes first: for what root has had loaded, a user makes no request any more. Only on the desktop, root puts
    a file system on the user's stick.
    """
    ssh = "ssh -q -o BatchMode=yes -o StrictHostKeyChecking=no"
    order = ("root", "user") if kind == "desktop" else ("user", "root")
    for who, kept in zip(order, (_FOR_SECOND * _LIMIT, 30.0), strict=True):
        limit = max(30.0, deadline - time.monotonic() - kept)
        if kind == "desktop" and who == "user":
            _await_session(machine, limit)
        else:
            say(f"{who} of the {kind}, for at most {limit:.0f} s")
            status, output = machine.run(f"{ssh} {who}@127.0.0.1 sh {_PLACE}/run {_PLACE}/{kind}.{who}", limit)
            print(output, end="", flush=True)
            if status not in (0, _KILLED):
                raise VmError(f"{who} could not log in: ssh gave {status}")
            say("not all of it was done in time" if status == _KILLED else "done")


def _await_session(machine: Machine, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while machine.run("test -e /tmp/stock.done").status:
        if time.monotonic() > deadline:
            say("the session has not done all: " + machine.run("loginctl; tail -n 99 /tmp/stock.part").output)
            return
        time.sleep(5)
    print(machine.check("cat /tmp/stock.done; loginctl"), end="")


def _missed(records: Iterable[Record], traced: str) -> list[str]:
    """Return what the kernel's trace has after kmodd's first record of a request, and no record names."""
    asked = [record for record in records if text(record, "KMODD_SOURCE") == "request"]
    names = {text(record, "KMODD_ALIAS") for record in asked}
    since = min((int(text(record, "__MONOTONIC_TIMESTAMP")) / 1e6 for record in asked), default=0.0)
    events = list(_TRACED.finditer(traced))
    early = {event["name"] for event in events if float(event["time"]) < since}
    say(f"names in the trace: {len({event['name'] for event in events})}, on record: {len(names)}")
    say("before the first record: " + (", ".join(sorted(early - names)) or "none"))
    return [f"{event['comm']}: {event['name']}" for event in events if event["name"] not in names | early]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
