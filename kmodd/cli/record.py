"""`kmodd record`: write the devices of this machine in umockdev's device format."""

from __future__ import annotations

from kmodd.cli.terminal import show
from kmodd.cli.verb import ROOT, Option, Verb
from kmodd.host.device_recorder import read_devices
from kmodd.kernel.device_recording import text_of

VERB = Verb(
    "record",
    "Write the devices of this machine, with their uevents, to standard output in umockdev's device format, for "
    "`kmodd whatif --devices` on another machine, a report, or a test.\n\n"
    "Serial numbers and unique identifiers of devices and of the machine are left out, and the digits of hardware "
    "addresses are zeros, unless --serials is given.",
    (Option("--serials", "with serial numbers and hardware addresses, and all properties"), ROOT),
    status=((0, "done"), (1, "no device was found")),
    examples=(("record > laptop.umockdev", "For a report: which devices does this machine have?"),),
)


def main(argv: list[str]) -> int:
    """Write the recording; return 1 if there is no device, else 0."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    root = given.get("root").rstrip("/")
    devices = read_devices(root, serials="serials" in given)
    show(text_of(devices))
    if not devices:
        VERB.complain(f"no device below {root}/sys")
    return 0 if devices else 1
