"""What the tests of the kernel's requests share: a guest in which the kernel asks, and processes that make it ask.

`WAYS` are words that run a command as root, as an ordinary user, and in a container: a user, pid, mount and network
namespace of its own, below a cgroup that is no unit's.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.fixture_modules import add_all
from tests.vm.image import Image
from tests.vm.journal import Record, text
from tests.vm.machine import Machine
from tests.vm.payload import Payload

CONF: Final = "/etc/kmodd/kmodd.conf"
OURS: Final = "/usr/lib/kmodd/kmodd-request"
STOCK: Final = "/sbin/modprobe"
SETTING: Final = "/proc/sys/kernel/modprobe"
PRESETS: Final = "/usr/share/kmodd/policy.d"
NOBODY: Final = 65534

_SCRIPT: Final = "/usr/lib/using/using.py"
_GUEST: Final = Path(__file__).resolve().parent / "guest"
_CGROUP: Final = "/kt-pod/inner"
_DROP: Final = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
_PYTHON: Final = "/usr/bin/python3 -IS"

WAYS: Final = {
    "root": "",
    "user": _DROP,
    "container": f"sh -c 'mkdir -p /sys/fs/cgroup{_CGROUP}; echo $$ >/sys/fs/cgroup{_CGROUP}/cgroup.procs; "
    f'exec {_DROP} unshare --user --map-root-user --mount --net --pid --fork "$@"\' sh',
}
"""Who runs a command → the words before it."""
USERS: Final = {who: f"{words} {_PYTHON} {_SCRIPT}".strip() for who, words in WAYS.items()}

WHO: Final = {
    "root": {"UID": "0", "CONTAINER": "no", "UNIT": "vm-shell.service", "CGROUP": "/system.slice/vm-shell.service"},
    "user": {
        "UID": str(NOBODY), "CONTAINER": "no", "UNIT": "vm-shell.service", "CGROUP": "/system.slice/vm-shell.service",
    },
    "container": {"UID": str(NOBODY), "CONTAINER": "yes", "UNIT": "", "CGROUP": _CGROUP},
}  # fmt: skip
"""What a record must say of each: KMODD_REQUESTER_…"""


def prepare_using(payload: Payload, image: Image, *, conf: str = "", aliases: Sequence[str] = ()) -> None:
    """The kernel asks, as on a stock machine; every module of ours is there. `aliases`: `NAME MODULE` each.

    A guest without kmod has no /sbin/modprobe: a request without kmodd's answer fails.
    """
    prepare_asking(payload, conf)
    add_all(payload, image)
    payload.write("/etc/modprobe.d/using.conf", "".join(f"alias {each}\n" for each in aliases))


def prepare_asking(payload: Payload, conf: str) -> None:
    """The kernel asks, and there is the script that makes it. `conf`: lines of kmodd.conf."""
    payload.kernel_helper = True
    payload.write(_SCRIPT, (_GUEST / "using.py").read_bytes())
    payload.write(CONF, f"[Kmodd]\n{conf}")


@dataclass(frozen=True)
class Used:
    """What a process saw: its number, and errno (0: none) and seconds of each use."""

    pid: int
    errno: dict[str, int]
    seconds: dict[str, float]

    @property
    def only(self) -> int:
        """The errno of the one use that there was."""
        (errno,) = self.errno.values()
        return errno


def command_of(who: str, uses: Iterable[str]) -> str:
    """A shell command that makes the kernel ask; its output is for `used_of`."""
    return f"{USERS[who]} {shlex.join(uses)}"


def used_of(output: str) -> Used:
    """What the script has written."""
    answer = json.loads(output)
    uses = answer["uses"]
    seconds = {use: each[1] for use, each in uses.items()}
    return Used(answer["pid"], {use: each[0] for use, each in uses.items()}, seconds)


def use(machine: Machine, who: str, *uses: str, timeout: float = 120.0) -> Used:
    """Make the kernel ask, one use after the other."""
    return used_of(machine.check(command_of(who, uses), timeout))


def asked(machine: Machine, module: str, result: str, since: int, timeout: float = 60.0) -> Record:
    """Wait for the record of `module` for the kernel's request."""

    def wanted(record: Record) -> bool:
        fields = [text(record, f"KMODD_{name}") for name in ("SOURCE", "MODULE", "RESULT")]
        return fields == ["request", module, result]

    return machine.journal.wait_for(wanted, timeout, since)


def wrong_requester(record: Record, who: str, pid: int | None) -> list[str]:
    """What the record tells of its requester and is not so. `pid` None: not compared."""
    expected = {**WHO[who], "COMM": "python3", "LOGINUID": ""}
    if pid is not None:
        expected["PID"] = str(pid)
    told = {name: text(record, f"KMODD_REQUESTER_{name}") for name in expected}
    wrong = [f"{name}={told[name]!r}, not {value!r}" for name, value in expected.items() if told[name] != value]
    exe = text(record, "KMODD_REQUESTER_EXE")
    return wrong if exe.startswith("/usr/bin/python3") else [*wrong, f"EXE={exe!r}"]


def configure(machine: Machine, *lines: str) -> None:
    """Give kmodd these lines of [Kmodd], have it read them, and wait until it has looked at all devices again.

    On a slow machine that takes longer than the kernel's helper waits for an answer.
    """
    words = "\\n".join(("[Kmodd]", *lines))
    machine.check(f"printf '{words}\\n' >{CONF} && kmodd reload && kmodd settle", 120)


def unload(machine: Machine, before: Iterable[str]) -> list[str]:
    """Take out, as far as the kernel lets go, what was not there `before`; the answer: what is left."""
    kept, left, in_vain = set(before), -1, 0
    while in_vain < 3:  # a network namespace that is over holds its modules for a moment
        new = [module for module in machine.modules() if module not in kept]
        if not new:
            return []
        in_vain, left = (in_vain + 1 if len(new) == left else 0), len(new)
        machine.run("".join(f"busybox rmmod {module} 2>/dev/null;" for module in new))
    return [module for module in machine.modules() if module not in kept]
