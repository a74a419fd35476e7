"""Plays a scenario of the simulator on a guest: each act is a shell command, what it brings is read from outside."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from shlex import quote
from typing import Final

from tests.simulation.scenarios import Scenario, Seen
from tests.simulation.scripted import word_of
from tests.vm.faults import MODPROBE, prepare_faults, without_udevd
from tests.vm.fixture_modules import indexes
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload, copy_into

_GUEST: Final = Path(__file__).resolve().parent / "guest"
_BUS: Final = "/sys/module/kt_bus/parameters"
_CONFIG: Final = "/etc/modprobe.d/scenario.conf"
_SETTINGS: Final = "/etc/kmodd/kmodd.conf"
_RULES: Final = "/etc/kmodd/policy.d/scenario.conf"
_BOOT: Final = "/etc/modules-load.d/scenario.conf"
_UNIT: Final = "/run/systemd/system/kmodd.service.d/buffer.conf"
_OTHERS: Final = "/run/scenario.others"
_NATURE: Final = {"kt_slow": "seconds=300", "kt_async": "seconds=300"}
_STANDING: Final = "/run/kmodd/standing"
_MARKS: Final = "/run/kmodd/closed /run/kmodd/sealed /run/kmodd/booted"
_TENTHS: Final = 600
"""Tenths of a second that a guest waits for a state of a module."""


def prepare_scenarios(payload: Payload, image: Image) -> None:
    """Put all modules of ours into a guest, where the kernel asks, udevd loads nothing and kmodd starts on demand."""
    prepare_faults(payload, image)
    without_udevd(payload)
    payload.kernel_helper = True
    copy_into(payload, indexes(image), "/root/full")
    copy_into(payload, indexes(image, without=("kt_late",)), "/root/without-kt_late")
    load = f"#!/bin/sh\nexec busybox insmod /usr/lib/modules/{image.release}/updates/$1.ko\n"
    payload.write("/usr/bin/load", load, mode=0o755)
    for script in ("finit.py", "using.py"):
        payload.write(f"/usr/lib/using/{script}", (_GUEST / script).read_bytes())
    nature = "".join(f"options {name} {options}\n" for name, options in _NATURE.items())
    payload.write("/etc/modprobe.d/nature.conf", nature)
    payload.write("/etc/systemd/system/kmodd.service.d/scenario.conf", "[Service]\nRestart=no\nTimeoutStartSec=120\n")


class GuestPlayer:
    """Plays acts on a guest, and notes what they bring."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tree = f"/usr/lib/modules/{machine.image.release}"
        self._mark = 0
        self._loads = 0
        self._options: dict[str, str] = {}

    def play(self, scenario: Scenario, simulated: list[Seen]) -> list[Seen]:
        """Play a scenario. `simulated`: what the simulator says; its number of records is waited for, at most 60 s."""
        self._reset()
        return [self._stage(stage.acts, expected) for stage, expected in zip(scenario.stages(), simulated, strict=True)]

    def _reset(self) -> None:
        """Take everything of earlier scenarios away. A module that crashed remains, and what kmodd knows of it."""
        machine, self._options = self._machine, {}
        machine.check(
            f"for m in {' '.join(_NATURE)}; do echo 0 >/sys/module/$m/parameters/seconds; done 2>/dev/null;"
            f"[ ! -d {self._tree}.away ] || mv {self._tree}.away {self._tree};"
            f"mv /root/away/*.ko {self._tree}/updates/ 2>/dev/null; mkdir -p /root/away;"
            f"systemctl stop kmodd; systemctl reset-failed kmodd;"
            f"rm -f {_CONFIG} {_SETTINGS} {_RULES} {_BOOT} {_UNIT} {_OTHERS} {_MARKS}; mkdir -p /etc/kmodd/policy.d;"
            f"grep -q '^kt_.*Loading' /proc/modules || rm -f {_STANDING};"
            f"for f in /root/full/*; do cp -a $f {self._tree}/; done; systemctl daemon-reload;"
            "for d in $(ls /sys/bus/platform/devices | grep -E '^(kt|no)_' | sed 's/[.].*//' | sort -u); do"
            f" echo $d >{_BUS}/remove; done;"
            "ours() { grep '^kt_.*Live' /proc/modules | grep -v '^kt_bus' | cut -d ' ' -f 1; };"
            'n=0; while [ $n -lt 50 ] && [ "$(ours)" ]; do n=$((n+1));'
            ' for m in $(ours); do busybox rmmod $m; done 2>/dev/null; busybox usleep 100000; done; [ ! "$(ours)" ]',
            120,
        )
        self._mark = machine.mark()
        self._loads = len(machine.module_loads())

    def _stage(self, acts: tuple[str, ...], expected: Seen) -> Seen:
        machine = self._machine
        # An oops ends all tracing (kernel/panic.c, oops_enter).
        commands = ["echo 1 >/sys/kernel/tracing/tracing_on", *map(self._command, acts)]
        machine.check("set -e\n" + "\n".join(commands), 150)
        others = sum(" other " in word for word in expected.records)
        deadline = time.monotonic() + 60
        while (
            len(self._records()) < len(expected.records) - others or len(self._others()) < others
        ) and time.monotonic() < deadline:
            time.sleep(0.2)
        machine.run("kmodd settle -t 30", 60)
        mark = machine.mark()
        seen = Seen(self._begun(), [*self._records(mark), *self._others()])
        self._mark = mark
        machine.check(f"rm -f {_OTHERS}")
        return seen

    def _records(self, end: int | None = None) -> list[str]:
        found = []
        count = None if end is None else end - self._mark
        for record in self._machine.journal.after(self._mark)[:count]:
            found.append(word_of({name: text(record, name) for name in record}))
        return [word for word in found if word]

    def _begun(self) -> list[str]:
        loads = [load.module for load in self._machine.module_loads()]
        new, self._loads = loads[self._loads :], len(loads)
        return [name for name in new if name.startswith("kt_") and name != "kt_bus"]

    def _others(self) -> list[str]:
        lines = self._machine.run(f"cat {_OTHERS} 2>/dev/null").output.splitlines()
        ended = [line.split() for line in lines]
        return [f"{name} other {errno.errorcode[int(code)] if code != '0' else 'ok'}" for name, code in ended]

    # -- acts --------------------------------------------------------------------------------------------------

    def _command(self, act: str) -> str:
        """The shell command for an act."""
        tree = self._tree
        match act.split(" "):
            case ["start"]:
                # At most 10 s for coldplug, which may have to wait for an init that hangs.
                return "systemctl reset-failed kmodd; systemctl start kmodd; kmodd settle -t 10 >/dev/null 2>&1 || :"
            case ["kill-daemon"]:
                return (
                    "systemctl kill --signal=KILL --kill-who=main kmodd;"
                    "while systemctl is-active -q kmodd; do busybox usleep 100000; done"
                )
            case ["begin", name]:
                return _wait(f"grep -q '^{name} .*Loading' /proc/modules", act)
            case ["finish", name]:
                return _wait(f"grep -q '^{name} .*Live' /proc/modules", act)
            case ["let-go", name]:
                return f"echo 0 >/sys/module/{name}/parameters/seconds"
            case ["wait", seconds]:
                return f"busybox sleep {seconds}"
            case ["no-file", name]:
                return f"mv {tree}/updates/{name}.ko /root/away/"
            case ["file", name]:
                return f"mv /root/away/{name}.ko {tree}/updates/"
            case ["unindex", name]:
                return _replace(f"/root/without-{name}", tree)
            case ["index", _]:
                return _replace("/root/full", tree)
            case ["hide"]:
                return f"mv {tree} {tree}.away"
            case ["unhide"]:
                return f"mv {tree}.away {tree}"
            case _:
                return self._device(act) or self._configuration(act) or self._caller(act)

    def _device(self, act: str) -> str:
        match act.split(" "):
            case ["plug", name]:
                return f"echo {name} 1 >{_BUS}/add"
            case ["quiet", name, *override]:
                return f"echo {name} 1 {' '.join(override)} >{_BUS}/add_quietly"
            case ["unplug", name]:
                return f"echo {name} >{_BUS}/remove"
            case ["trigger", name]:
                return f"for d in /sys/bus/platform/devices/{name}.*; do echo add >$d/uevent; done"
            case ["overflow", name]:
                return (
                    "systemctl kill --signal=STOP --kill-who=main kmodd;"
                    f"echo no_module_matches 1000 >{_BUS}/add; echo {name} 1 >{_BUS}/add;"
                    "systemctl kill --signal=CONT --kill-who=main kmodd"
                )
            case _:
                return ""

    def _configuration(self, act: str) -> str:
        verb, _, rest = act.partition(" ")
        match verb:
            case "config":
                return f"echo {quote(rest)} >>{_CONFIG}"
            case "unconfig":
                return f"sed -i {quote(f'/^{rest}$/d')} {_CONFIG}"
            case "quick":
                self._options[rest] = "seconds=0"
                return f"echo options {rest} seconds=0 >>{_CONFIG}"
            case "refuse":
                name, word = rest.split(" ")
                self._options[name] = f"errno={getattr(errno, word, 0)}"
                return f"echo options {name} {self._options[name]} >>{_CONFIG}"
            case "set":
                return f"[ -e {_SETTINGS} ] || echo '[Kmodd]' >{_SETTINGS}; echo {rest.replace(' ', '=')} >>{_SETTINGS}"
            case "rule":
                return f"echo {quote(rest)} >>{_RULES}"
            case "no-rules":
                return f"rm {_RULES}"
            case "boot":
                return f"echo {rest} >>{_BOOT}"
            case "small-buffer":
                unit = "[Service]\\nCapabilityBoundingSet=\\n"
                folder = _UNIT.rpartition("/")[0]
                return f"mkdir -p {folder}; printf '{unit}' >{_UNIT}; systemctl daemon-reload"
            case _:
                return ""

    def _caller(self, act: str) -> str:
        match act.split(" "):
            case ["order", name]:
                return f"{MODPROBE} {name} >/dev/null 2>&1 &"
            case ["remove", name]:
                return f"{MODPROBE} -r {name} >/dev/null 2>&1 &"
            case ["ask", name]:
                family = name.rpartition("-")[2]
                return f"/usr/bin/python3 -IS /usr/lib/using/using.py 'socket {family} 2 0' >/dev/null 2>&1 &"
            case ["tell", "reload"]:
                return "kmodd reload"
            case ["tell", "seal"]:
                return "kmodd seal"
            case ["tell", "unseal"]:
                return "kmodd seal --undo"
            case ["other-load", name]:
                options = f"{_NATURE.get(name, '')} {self._options.get(name, '')}"
                script = f"/usr/bin/python3 -IS /usr/lib/using/finit.py {self._tree}/updates/{name}.ko {quote(options)}"
                in_kernel = "grep -q '^313 ' /proc/$p/syscall"
                return f"{script} {_OTHERS} & p=$!; {_wait(f'! [ -e /proc/$p ] || {in_kernel}', act)}"
            case ["other-remove", name]:
                return f"busybox rmmod {name}"
            case _:
                raise ValueError(f"{act}: not an act for a guest")


def _wait(condition: str, act: str) -> str:
    return (
        f"n=0; until {{ {condition}; }} 2>/dev/null; do n=$((n+1));"
        f" [ $n -lt {_TENTHS} ] || {{ echo {quote(act)}: in vain; exit 1; }}; busybox usleep 100000; done"
    )


def _replace(folder: str, tree: str) -> str:
    """Rename one index after the other, as depmod does."""
    return f"for f in {folder}/*; do cp -a $f {tree}/.new; mv {tree}/.new {tree}/${{f##*/}}; done"
