"""What changes the answer: for each reason why a module is not loaded, the command that an administrator can run."""

from __future__ import annotations

import errno as errors
import shlex

from kmodd.errors import Where
from kmodd.planning.policy import SEALED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kmodd.kernel.requester import Requester

_SHIPPED = ("/usr/", "/lib/")
"""Where packages keep their files, which their next version replaces."""
_LOCAL = ("10-local.conf", "00-local.conf")
"""Files for rules of the administrator; the first rule that matches decides, and files are sorted by name."""
_UNSIGNED = (errors.EKEYREJECTED, errors.ENOKEY, errors.ENODATA, errors.ENOPKG)


def remedies(
    result: str, module: str, alias: str = "", at: Where | None = None, rule: str = "", errno: int = 0,
    requester: Requester | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Return sentences that have a command each, or say that there is none.

    result: as KMODD_RESULT, or `kept_out`, `not_asked`. alias: what was requested. at, rule: the line that decided.
    """
    name = shlex.quote(module)
    return tuple(_remedies(result, name, alias or module, at, rule, errno, requester))


def _remedies(
    result: str, name: str, alias: str, at: Where | None, rule: str, errno: int, requester: Requester | None
) -> Iterator[str]:
    match result:
        case "blacklisted":
            yield f"load it all the same: `modprobe {name}`"
            yield from _without_line(at)
        case "blocked":
            if rule.startswith("module_blacklist="):
                yield f"boot without {rule} on the kernel command line"
            else:
                yield f"load it all the same: `modprobe --ignore-install {name}`"
                yield from _without_line(at)
        case "denied":
            yield from _allow(alias, at, rule, requester)
        case "missing":
            yield "write the index for the files that are there: `depmod`; or install the package of the file again"
        case "failed":
            yield from _after_failure(name, errno)
        case "crashed":
            yield "it is not loaded again in this boot: `systemctl reboot`; the kernel's messages: `journalctl -k`"
        case "stuck":
            yield "its init has not returned; where it stands: `journalctl -t kmodd -o verbose KMODD_RESULT=stuck`"
        case "nomatch" | "no_match":
            yield "if its driver was installed after the index was written: `depmod`"
        case "kept_out" | "not_asked" | "removed" | "not_attempted":
            yield f"load it: `modprobe {name}`"


def _without_line(at: Where | None) -> Iterator[str]:
    """Yield how to take a line of modprobe.d, or a parameter of the kernel, out of force."""
    if at is None:
        return
    if at.file == "/proc/cmdline":
        yield "boot without it on the kernel command line"
        return
    file = shlex.quote(at.file)
    if at.file.startswith(_SHIPPED):
        copy = shlex.quote(f"/etc/modprobe.d/{at.file.rpartition('/')[2]}")
        yield f"without that line: `cp {file} {copy} && sed -i '{at.line}s/^/#/' {copy}`"
    else:
        yield f"without that line: `sed -i '{at.line}s/^/#/' {file}`"


def _allow(alias: str, at: Where | None, rule: str, requester: Requester | None) -> Iterator[str]:
    if rule == SEALED:
        yield "lift the seal: `kmodd seal --undo`"
    if rule.startswith("ForeignModules="):
        return  # the rule says what to do
    whose = f" uid={requester.uid}" if requester else ""
    line = f"allow request={_pattern(alias)}{whose}"
    file = next((name for name in _LOCAL if at is None or name < at.file.rpartition("/")[2]), None)
    if file is not None:
        command = f"echo {shlex.quote(line)} >> /etc/kmodd/policy.d/{file}"
    else:
        assert at is not None
        command = f"sed -i {shlex.quote(f'{at.line}i {line}')} {shlex.quote(at.file)}"
    yield f"allow it: `{command} && kmodd reload`"
    if requester:
        yield f"see the rules decide: `kmodd policy test {shlex.quote(alias)} --as {requester.uid}`"


def _pattern(alias: str) -> str:
    """Return a request as a pattern of a rule: each character that is special or not printable becomes `?`."""
    return "".join(char if char.isprintable() and char not in '*?[]\\",# ' else "?" for char in alias)


def _after_failure(name: str, errno: int) -> Iterator[str]:
    if errno == errors.ENODEV:
        yield f"there is no such hardware; try again: `modprobe {name}`"
    elif errno in _UNSIGNED:
        yield "sign the module, and have the firmware trust the key: `mokutil --import KEY.der`"
    elif errno == errors.ENOEXEC:
        yield f"which kernel it was built for: `modinfo -F vermagic {name}`"
    elif errno == errors.EINVAL:
        yield f"the options that it gets: `kmodd explain {name}`"
    else:
        yield f"the kernel's messages: `journalctl -k`; try again: `modprobe {name}`"
