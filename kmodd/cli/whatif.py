"""`kmodd whatif`: what another kernel, or its initial ramdisk, lacks for the devices of this machine."""

from __future__ import annotations

import json
import os

from kmodd.cli.daemon_tree import tree_for
from kmodd.cli.terminal import Colour, show, table
from kmodd.cli.verb import JSON, ROOT, Option, Verb
from kmodd.dataclass import dataclass
from kmodd.errors import NoTree, ParseError
from kmodd.host.asking_devices import asked_by_devices
from kmodd.host.config_files import read_settings
from kmodd.host.initrd_file import read_initrd_file
from kmodd.host.paths import TREES
from kmodd.host.regular_files import names_in, read_file, read_given
from kmodd.host.tree import Tree
from kmodd.host.udev_names import names_of
from kmodd.host.uses import read_uses
from kmodd.index.catalog import Snapshot
from kmodd.kernel.device_recording import parse
from kmodd.names import module_name
from kmodd.planning.device_requests import wanted
from kmodd.planning.whatif import DeviceChange, Lack, Needs, modules_for, replacements
from kmodd.text import count_of, decode, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kmodd.cli.verb import Given
    from kmodd.kernel.proc_modules import Loaded
    from kmodd.kernel.uevent import Uevent
    from kmodd.modfile.initrd import Initrd
    from kmodd.planning.request import Request

VERB = Verb(
    "whatif",
    "Compare the modules that each device of this machine has now, by the tree of the running kernel, with those that "
    "it would have under another kernel; and name what the disk of the root file system, or the network, needs and "
    "that kernel's tree lacks, and with --initrd what the root file system needs and the image lacks. Nothing is "
    "loaded, and the image is neither unpacked to disk nor run.\n\n"
    "A device is same, changed (other modules come), lost (it would have no driver), new (it has none now), or has no "
    "module in either tree. Lost is also a device whose driver is gone while no other module takes its place.\n\n"
    "Images are those of initramfs-tools, dracut and mkosi: cpio archives, also several, plain or compressed by gzip, "
    "xz, zstd, lzma or bzip2; or unified kernel images with one of these.",
    (
        Option("--kernel", "release of the other kernel", "RELEASE"),
        Option("--tree", "its tree: DIR/lib/modules/RELEASE, by that path or as DIR", "DIR"),
        Option("--initrd", "its initial ramdisk, or a unified kernel image; of several all count", "IMAGE"),
        Option("--devices", "a recording of `kmodd record` in place of this machine's devices", "RECORDING"),
        Option("--lost", "only what is lost; nothing is printed if all is well"), JSON, ROOT,
    ),
    status=(
        (0, "nothing is lost"),
        (1, "a device is lost, or the tree or the image lacks a module"),
        (3, "no module tree, a damaged index, or an image that cannot be read, and nothing else is lost"),
    ),
    examples=(
        ("whatif --kernel 6.12.48+deb13-amd64", "Does the kernel that was just installed have all drivers?"),
        (
            "whatif --kernel 6.12.48+deb13-amd64 --initrd /boot/initrd.img-6.12.48+deb13-amd64",
            "Can its initrd reach the root file system?",
        ),
        ("whatif --tree /mnt --json | jq -r 'select(.state == \"lost\").path'", "What does the kernel in /mnt lose?"),
    ),
)  # fmt: skip

_COLOURS: dict[str, Colour] = {"lost": "red", "changed": "yellow", "new": "green"}
_KEPT = 16
"""Columns of name and modules that stay on a narrow terminal as long as both can be shortened."""


@dataclass(frozen=True, slots=True)
class _Asking:
    """A device that asks for modules."""

    event: Uevent
    requests: Sequence[Request]
    driver: str
    """Module of its driver, or the driver's name as one; empty: it has none."""


@dataclass(frozen=True, slots=True)
class _Device:
    event: Uevent
    change: DeviceChange
    name: str
    """In udev's database; empty: it has none."""


def main(argv: list[str]) -> int:
    """Print the comparison; return 1 if something is lost, 3 if that is not known, else 0."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    if "kernel" not in given and "tree" not in given:
        return VERB.refuse("--kernel or --tree is missing")
    if "initrd" in given and "devices" in given:
        return VERB.refuse("--initrd and --devices exclude each other, as a recording does not tell the root disk")
    root = given.get("root").rstrip("/")
    other = _other_tree(given, root)
    if isinstance(other, str):
        return VERB.refuse(other)
    try:
        other.check()
    except NoTree as error:
        VERB.complain(str(error))
        return 3
    then, (tree, now) = other.quick_snapshot(), _running(root)
    images = [(path, _image(path)) for path in given.values.get("initrd", ())]
    is_unread = any(image is None for _, image in images)
    loaded = tree.loaded()
    running = (tree, now) if now else None
    asking = _recorded(given.get("devices")) if "devices" in given else _present(root)
    if asking is None:
        return 3
    found = [(each.event, _change(each, running, (other, then), loaded)) for each in asking]
    names = {} if root or "devices" in given else names_of([f"/sys{event.devpath}" for event, _ in found])
    devices = [_Device(event, change, names.get(f"/sys{event.devpath}", "")) for event, change in found]
    uses = () if "devices" in given else read_uses(root)
    needs = Needs(uses, then, replacements(device.change for device in devices))
    lacks = [(f"The module tree of {other.release}", lack) for lack in needs.not_in_tree(now, loaded)]
    read = [(path, image) for path, image in images if image is not None]
    if images and not is_unread:
        inside = frozenset[str]().union(*(image.of(other.release) for _, image in read))
        lacks += [(" with ".join(path for path, _ in read), lack) for lack in needs.not_in_image(inside)]
    is_lost = bool(lacks) or any(device.change.state == "lost" for device in devices)
    if "lost" in given:
        devices = [device for device in devices if device.change.state == "lost"]
    if "json" in given:
        show("".join(f"{json.dumps(line)}\n" for line in (*map(_object, devices), *map(_lack_object, lacks))))
    elif is_lost or "lost" not in given:
        _print(devices, lacks, other.release)
    for path, image in read if lacks else ():
        _explain_image(image, path, other.release)
    damaged = [snapshot for snapshot in (now, then) if snapshot is not None and snapshot.catalog.is_damaged]
    for problem in [*then.catalog.problems, *(now.catalog.problems if now else ())]:
        VERB.complain(str(problem))
    return 1 if is_lost else 3 if damaged or is_unread else 0


def _other_tree(given: Given, root: str) -> Tree | str:
    """Return the tree that the options name, with the configuration of this machine; a text: why there is none."""
    extensions, release = read_settings(root).extensions, given.get("kernel") or None
    if "tree" not in given:
        return Tree(root, release, extensions=extensions)
    directory = os.path.normpath(given.get("tree"))
    if not root:
        directory = os.path.abspath(directory)
    for tree in TREES:
        if os.path.dirname(directory).endswith(tree):
            own = os.path.basename(directory)
            if release not in (None, own):
                return f"--tree is that of kernel {own}, not {release}"
            return Tree(root, own, os.path.dirname(directory).removesuffix(tree), extensions=extensions)
    if release is None:
        found = sorted({name for tree in TREES for name in names_in(f"{root}{directory}{tree}")})
        if len(found) != 1:
            what = f"kernels {', '.join(found)}; choose one by --kernel" if found else "no lib/modules/RELEASE"
            return f"--tree {directory} has {what}"
        release = found[0]
    return Tree(root, release, directory if directory != "/" else None, extensions=extensions)


def _running(root: str) -> tuple[Tree, Snapshot | None]:
    """Return the tree of the running kernel and what is in it; None, after a message: there is no tree."""
    release = decode(read_file(f"{root}/proc/sys/kernel/osrelease") or b"").strip() if root else ""
    tree = tree_for(root, release or None)
    try:
        tree.check()
    except NoTree as error:
        VERB.complain(f"{error}; only the drivers that are bound now are known")
        return tree, None
    return tree, tree.quick_snapshot()


def _image(path: str) -> Initrd | None:
    """Return the modules in an image; None, after a message: it cannot be read."""
    try:
        image = read_initrd_file(path)
    except ParseError as error:
        VERB.complain(f"Failed to read the image, what it lacks is not known: {error}")
        return None
    if image.nested:
        VERB.complain(f"{path}: its files are in {image.nested}, which is not read; what it lacks is not known")
        return None
    return image


def _present(root: str) -> list[_Asking]:
    """Return the devices of this machine."""
    found = []
    for event, requests in asked_by_devices(root):
        link = f"{root}/sys{event.devpath}/driver/module"
        driver = module_name(os.path.basename(os.path.realpath(link))) if os.path.exists(link) else ""
        found.append(_Asking(event, requests, driver))
    return found


def _recorded(path: str) -> list[_Asking] | None:
    """Return the devices of a recording; None, after a message: it cannot be read, or has none."""
    try:
        devices, problems = parse(decode(read_given(path)), path)
    except (OSError, ValueError) as error:
        VERB.complain(f"Failed to read {path}: {error.strerror if isinstance(error, OSError) else error}")
        return None
    if not devices:
        known = "a recording of `kmodd record` or umockdev-record"
        VERB.complain(f"{problems[0]}: not {known}" if problems else f"{path}: expected {known}, found no device")
        return None
    for problem in problems:
        VERB.complain(str(problem))
    found = [_Asking(device.event, wanted(device.event, "coldplug"), module_name(device.driver)) for device in devices]
    return sorted((each for each in found if each.requests), key=lambda each: each.event.devpath)


def _change(
    asking: _Asking,
    running: tuple[Tree, Snapshot] | None,
    other: tuple[Tree, Snapshot],
    loaded: Loaded,
) -> DeviceChange:
    """Return a device's modules now and then."""
    driver, requests = asking.driver, asking.requests
    now = {driver: ""} if driver else {}
    if running is not None:
        now = modules_for(requests, running[1], loaded, running[0].present, running[0].foreign)
    then = modules_for(requests, other[1], loaded, other[0].present)  # --tree may be a user's, who installs it later
    for module in now:
        if module not in then and other[1].catalog.is_builtin(module):
            then[module] = "builtin"  # of an old kernel that does not list the aliases of such modules
    return DeviceChange(driver, now, then)


def _print(devices: Sequence[_Device], lacks: Sequence[tuple[str, Lack]], release: str) -> None:
    rows = [_row(device) for device in devices]
    colours = [_COLOURS.get(device.change.state, "") for device in devices]
    if rows:
        show(table(("DEVICE", "NAME", "STATE", "NOW", "THEN"), rows, (1, 4, 3), colours, kept=_KEPT) + "\n")
    states = [device.change.state for device in devices]
    counts = ", ".join(
        f"{count_of(states.count(state), 'device')} {what}"
        for state, what in (("lost", "lost"), ("changed", "changed"), ("new", "new"))
        if state in states
    )
    lines = [f"Kernel {release}: {counts or 'each device has the same modules'}"]
    for where, lack in lacks:
        use = f"{lack.use}," if "," in str(lack.use) else lack.use
        lines.append(f"{where} lacks {', '.join(lack.modules)}, on which {use} hangs")
    show("".join(f"{printable(line)}\n" for line in lines))


def _explain_image(image: Initrd, path: str, release: str) -> None:
    """Say why an image has none of a kernel's modules."""
    if release not in image.modules:
        others = ", ".join(sorted(image.modules))
        VERB.complain(f"{path} has no modules of kernel {release}{f', but of {others}' if others else ''}")
    elif release not in image.indexed:
        VERB.complain(f"{path} has no modules.dep of kernel {release}, without which modprobe finds no module")


def _row(device: _Device) -> tuple[str, ...]:
    where = f"{device.event.subsystem} {device.event.sysname}"
    now, then = (
        ", ".join(f"{module} ({why})" if why else module for module, why in modules.items())
        for modules in (device.change.now, device.change.then)
    )
    return where, device.name or "-", device.change.state, now or "-", then or "-"


def _object(device: _Device) -> dict[str, Any]:
    now, then = (
        [{"module": module, "why": why or None} for module, why in modules.items()]
        for modules in (device.change.now, device.change.then)
    )
    return {
        "path": f"/sys{device.event.devpath}",
        "subsystem": device.event.subsystem,
        "name": device.name or None,
        "modaliases": list(device.event.modaliases),
        "driver": device.change.driver or None,
        "state": device.change.state,
        "now": now,
        "then": then,
    }


def _lack_object(lack: tuple[str, Lack]) -> dict[str, Any]:
    return {"needed_by": str(lack[1].use), "lacking": list(lack[1].modules), "where": lack[0]}
