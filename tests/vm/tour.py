"""`make tour`: write docs/TOUR.md and docs/timeline.svg, the outputs of kmodd's verbs in a real guest.

The guest has a policy, devices at boot, and one that is plugged in; a user makes the kernel ask for a module. Without a
change of kmodd the text differs by times, numbers and versions only.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm import VmError, say
from tests.vm.devices import DEVICES
from tests.vm.image import ensure_image
from tests.vm.machine import Machine
from tests.vm.payload import REPOSITORY, Payload
from tests.vm.scenario import plug, settle
from tests.vm.using import PRESETS, prepare_asking, use

PAGE: Final = REPOSITORY / "docs" / "TOUR.md"
PICTURE: Final = REPOSITORY / "docs" / "timeline.svg"

_AT_BOOT: Final = ("e1000e", "virtio-rng-pci", "qemu-xhci", "nvme")
_STICK: Final = "usb-storage"
_CRYPTO: Final = "socket 38 5 0"  # socket(AF_ALG, SOCK_SEQPACKET, 0): the kernel requests net-pf-38
_PRESET: Final = "50-no-unprivileged-autoload.conf"

_HEAD: Final = """\
# A tour

What kmodd's verbs print on {kernel} with {systemd}, in an emulator, which is ten to forty times slower than a machine.
`make tour` writes this page.
"""


@dataclass(frozen=True)
class Stop:
    """A part of the page: its heading, its text, and the commands whose outputs it shows."""

    heading: str
    text: str
    commands: tuple[str, ...]
    act: str = ""
    """What happens before: `plug` or `ask`."""


STOPS: Final = (
    Stop(
        "The boot",
        "The journal has one record for a decision: a device, with all modules that it brought.",
        ("journalctl -t kmodd -b -o cat",),
    ),
    Stop(
        "A USB stick is plugged in",
        "A line says what, for what, how long, and with what. `-o verbose` shows the fields.",
        ("journalctl -t kmodd -b -o cat -n 3", "kmodd why usb_storage"),
        act="plug",
    ),
    Stop(
        "A user makes the kernel load code",
        "The policy is the preset `no-unprivileged-autoload`. A user opens a socket of the family AF_ALG,\n"
        "for which the kernel requests a module.",
        ("kmodd history --result denied", "kmodd why af_alg"),
        act="ask",
    ),
    Stop(
        "Devices",
        "Each device with its driver, or the reason why it has none.",
        ("kmodd devices --unbound", "kmodd devices | grep ' bound '"),
    ),
    Stop(
        "Where the time went",
        "`kmodd timeline > boot.svg` draws the boot, and on a terminal it is text:\n\n![the boot](timeline.svg)",
        ("kmodd blame",),
    ),
    Stop("The daemon", "", ("kmodd status",)),
    Stop(
        "What would happen",
        "`kmodd explain` plans without loading. It takes a module, an alias, a device or a request of the kernel;\n"
        "what is loaded already needs no step.",
        ("kmodd explain usb_storage", "kmodd explain pci:v00008086d00001521sv*sd*bc02sc00i00", "kmodd lint"),
    ),
    Stop(
        "Is all well?",
        "`kmodd check` plans each request that could bring a module of a hardening benchmark.",
        ("kmodd check --benchmark cis",),
    ),
)


def main() -> int:
    """Boot the guest and write the files. Returns the exit status."""
    try:
        PAGE.write_text(_visit())
    except VmError as error:
        print(f"tour: {error}", file=sys.stderr)
        return 1
    print(f"wrote {PAGE.relative_to(REPOSITORY)} and {PICTURE.relative_to(REPOSITORY)}")
    return 0


def _visit() -> str:
    image = ensure_image()
    with tempfile.TemporaryDirectory(prefix="kmodd-tour-") as scratch:
        payload = Payload.new(Path(scratch, "payload"))
        payload.install_kmodd(image.suite, image.architecture)
        prepare_asking(payload, "Policy=enforce\n")
        payload.link(f"/etc/kmodd/policy.d/{_PRESET}", f"{PRESETS}/{_PRESET}")
        devices = [DEVICES[name] for name in _AT_BOOT]
        with Machine(image, payload, name="the tour's guest", devices=devices) as machine:
            machine.wait_boot(900)
            settle(machine)
            kernel = machine.check("uname -sr").strip()
            systemd = " ".join(machine.check("systemctl --version").split()[:2])
            parts = [_HEAD.format(kernel=kernel, systemd=systemd)]
            parts += [_part(machine, stop) for stop in STOPS]
            PICTURE.write_text(machine.run("kmodd timeline").output)
    return "\n".join(parts)


def _part(machine: Machine, stop: Stop) -> str:
    say(stop.heading)
    match stop.act:
        case "plug":
            plug(machine, DEVICES[_STICK])
        case "ask":
            use(machine, "user", _CRYPTO)
    outputs = (
        f"```\n$ {command}\n{machine.run(f'COLUMNS=120 {command} 2>&1', 120).output}```\n" for command in stop.commands
    )
    return "\n".join((f"## {stop.heading}\n", *([f"{stop.text}\n"] if stop.text else ()), *outputs))


if __name__ == "__main__":
    sys.exit(main())
