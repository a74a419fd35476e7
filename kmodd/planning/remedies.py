"""What changes the answer: for each reason why a module is not loaded, a command that an administrator can run.

Names come from users and devices. A command has only names of plain characters, and quotes paths; for any other name
there is none.
"""

from __future__ import annotations

import errno as errors
import re
import shlex

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.planning.policy import SEALED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kmodd.kernel.requester import Requester
    from kmodd.planning.plan import Skip

_SHIPPED = ("/usr/", "/lib/")
"""Where packages keep their files, which their next version replaces."""
_LOCAL = ("10-local.conf", "00-local.conf")
"""Files for rules of the administrator; the first rule that matches decides, and files are sorted by name."""
_RULES = "/etc/kmodd/policy.d"
_UNSIGNED = (errors.EKEYREJECTED, errors.ENOKEY, errors.ENODATA, errors.ENOPKG)
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:.+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Remedy:
    """What changes an answer."""

    text: str
    command: str = ""
    """For a shell of root; empty: there is none."""


def is_plain(text: str) -> bool:
    """Return whether a shell takes a text as one word, and a program not as an option."""
    return _PLAIN.fullmatch(text) is not None


def for_module(text: str, command: str, name: str, more: str = "") -> Remedy:
    """Return the remedy that runs a command with a name; without a command, if the name is not plain."""
    return Remedy(text, f"{command} {name}{more}" if is_plain(name) else "")


def to_load(name: str) -> Remedy:
    """Return the remedy for a module that nothing keeps out."""
    return for_module("load it", "modprobe", name)


def past_skips(name: str, skips: tuple[Skip, ...]) -> Iterator[Remedy]:
    """Yield what gets a module past the lines that keep it out now."""
    reasons = {skip.reason for skip in skips}
    refused = next((skip.rule for skip in skips if skip.rule.startswith("module_blacklist=")), "")
    if refused:
        yield Remedy(f"boot without {refused} on the kernel command line")
    elif "blocked" in reasons:
        yield for_module("load it all the same", "modprobe --ignore-install", name)
    elif "blacklisted" in reasons:
        yield for_module("load it all the same", "modprobe", name)
    for skip in skips:
        if skip.reason in ("blacklisted", "blocked") and not skip.rule.startswith("module_blacklist="):
            yield from _without_line(skip.at)
    if "missing" in reasons:
        yield _FIND_FILE
    if "depends" in reasons:
        needed = next((skip.of for skip in skips if skip.of), "")
        yield for_module(f"it needs {needed}; why that is blocked", "kmodd why", needed)


_FIND_FILE = Remedy("write the index for the files that are there, or install the package of the file again", "depmod")


def after(result: str, name: str, errno: int = 0) -> Iterator[Remedy]:
    """Yield what can be done after a request with this result. errno: of the kernel."""
    match result:
        case "missing":
            yield _FIND_FILE
        case "failed":
            yield from _after_failure(name, errno)
        case "crashed":
            yield Remedy("it is not loaded again in this boot", "systemctl reboot")
            yield Remedy("the kernel's messages", "journalctl -k")
        case "stuck":
            yield Remedy("where its init stands", "journalctl -t kmodd -o verbose KMODD_RESULT=stuck")
        case "nomatch":
            yield Remedy("if its driver was installed after the index was written", "depmod")
        case "removed" | "not_attempted":
            yield to_load(name)


def _without_line(at: Where | None) -> Iterator[Remedy]:
    """Yield how to take a line of modprobe.d, or a parameter of the kernel, out of force."""
    if at is None or not at.line:
        return
    if at.file == "/proc/cmdline":
        yield Remedy("boot without it on the kernel command line")
    elif not at.file.isprintable():
        return
    elif at.file.startswith(_SHIPPED):
        copy = shlex.quote(f"/etc/modprobe.d/{at.file.rpartition('/')[2]}")
        command = f"cp {shlex.quote(at.file)} {copy} && sed -i '{at.line}s/^/#/' {copy}"
        yield Remedy(f"without {at}", command)
    else:
        yield Remedy(f"without {at}", f"sed -i '{at.line}s/^/#/' {shlex.quote(at.file)}")


def of_denial(alias: str, at: Where | None, rule: str, requester: Requester | None) -> Iterator[Remedy]:
    """Yield what makes the policy allow a request. at, rule: the rule that denied it."""
    if rule == SEALED:
        yield Remedy("lift the seal", "kmodd seal --undo")
    if rule.startswith("ForeignModules="):
        return  # the rule says what to do
    whose = f" uid={requester.uid}" if requester else ""
    line = shlex.quote(f"allow request={_pattern(alias)}{whose}")
    file = next((name for name in _LOCAL if at is None or name < at.file.rpartition("/")[2]), None)
    if file is not None:
        yield Remedy("allow it", f"mkdir -p {_RULES} && echo {line} >> {_RULES}/{file} && kmodd reload")
    elif at is not None and at.file.isprintable():
        yield Remedy("allow it", f"sed -i '{at.line}i '{line} {shlex.quote(at.file)} && kmodd reload")
    if requester and is_plain(alias):
        yield Remedy("see the rules decide", f"kmodd policy test {alias} --as {requester.uid}")


BROKEN_RULES = Remedy("the rules have mistakes, and no change is in force until they are mended", "kmodd policy check")


def of_override(path: str, override: str, bus: str) -> Iterator[Remedy]:
    """Yield what gets a device a driver that has driver_override set. path: /sys/… of the device."""
    if not (path.isprintable() and bus):
        return
    file, probe = shlex.quote(f"{path}/driver_override"), shlex.quote(f"/sys/bus/{bus}/drivers_probe")
    bind = f"echo {shlex.quote(path.rpartition('/')[2])} > {probe}"
    if is_plain(override):
        yield Remedy("load the driver that it names", f"modprobe {override} && {bind}")
    yield Remedy("let any driver bind", f"echo > {file} && {bind}")


def _pattern(alias: str) -> str:
    """Return a request as a pattern of a rule: each character that is not plain becomes `?`."""
    return "".join(char if is_plain(f"x{char}") else "?" for char in alias)


def _after_failure(name: str, errno: int) -> Iterator[Remedy]:
    if errno == errors.ENODEV:
        yield for_module("there is no such hardware; try again", "modprobe", name)
    elif errno in _UNSIGNED:
        yield Remedy("sign the module, and have the firmware trust the key", "mokutil --import KEY.der")
    elif errno == errors.ENOEXEC:
        yield for_module("see which kernel it was built for", "modinfo -F vermagic", name)
    elif errno == errors.EINVAL:
        yield for_module("see the options that it gets", "kmodd explain", name)
    else:
        yield Remedy("see the kernel's messages", "journalctl -k")
        yield for_module("try again", "modprobe", name)
