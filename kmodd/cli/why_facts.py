"""What the machine says now of modules, devices and processes, for `kmodd why`."""

from __future__ import annotations

import glob
import os

from kmodd.cli.daemon_tree import tree_of
from kmodd.cli.device_paths import asking_path, device_path
from kmodd.cli.explain import Question, Rules, question_of
from kmodd.cli.journal_options import query_of, read_entries
from kmodd.daemon.policy_marks import SEALED
from kmodd.daemon.quarantine_file import STANDING, QuarantineFile
from kmodd.dataclass import replace
from kmodd.errors import Problem, Where
from kmodd.host.config_files import read_boot_list, read_rules, read_settings
from kmodd.host.regular_files import read_file
from kmodd.host.tree import Tree
from kmodd.index.catalog import Snapshot
from kmodd.names import MODULE_SUFFIXES, module_name, module_of_path
from kmodd.planning.plan import Install, Plan, Skip
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, options_of, resolve
from kmodd.planning.why import Device, Module, Records
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Literal

    from kmodd.cli.verb import Given, Verb
    from kmodd.planning.denials import Denial

_OF_PID_1 = frozenset(
    "autofs4 ipv6 virtio_rng virtio_console vmw_vsock_virtio_transport vsock_loopback vmw_vsock_vmci_transport hv_sock "
    "virtiofs virtio_pci qemu_fw_cfg dmi_sysfs tpm ip_tables unix efivarfs".split()
)
"""Modules that systemd loads itself before any unit (systemd, src/shared/kmod-setup.c), of all its versions."""
_INITRD = "/run/initramfs"
"""A directory that initramfs-tools and dracut leave."""
_INITRD_LISTS = ("/etc/initramfs-tools/modules", "/usr/share/initramfs-tools/modules")
_THERE = ("live", "builtin")


class Machine:
    """This machine, or one below a root directory."""

    def __init__(self, root: str, status: dict[str, Any] | None = None) -> None:
        """Store the root directory and the daemon's answer to `Status`; None: it is not running."""
        self._root = root
        self._tree = (tree_of(status) if status else None) or Tree(root)
        lanes = status["lanes"] if status else ()
        self._loading: dict[str, int] = {lane["module"]: lane["since_usec"] for lane in lanes if lane.get("module")}
        self._is_running = status is not None
        self._snapshot: Snapshot | None = None
        self._loaded = self._tree.loaded()
        self._policy = Rules(self._tree, read_settings(root))
        parsed = read_rules(root)
        self._rules: frozenset[tuple[Where, str]] = frozenset((rule.at, rule.text) for rule in parsed.rules)
        self._rule_problems = parsed.problems

    def problems(self) -> tuple[Problem, ...]:
        """Return the lines and files of the configuration that cannot be used, or not by this user."""
        return (*(self._snapshot.problems if self._snapshot else ()), *self._rule_problems)

    def check(self) -> None:
        """Read the module tree. Raises NoTree; modules are then unknown, unless they are loaded."""
        self._tree.check()
        self._snapshot = self._tree.quick_snapshot()

    def comm(self, pid: int) -> str:
        """Return the name of a process; empty: there is none."""
        return decode(read_file(f"{self._root}/proc/{pid}/comm") or b"").rstrip("\n")

    def module(self, text: str) -> Module:
        """Return what is known of a module, by its name, its file, or its directory in /sys/module."""
        if text.endswith(MODULE_SUFFIXES):
            name = module_of_path(text)
        else:
            name = module_name(text.removeprefix("/sys/module/").rstrip("/"))
        state = self._loaded.state(name) or ""
        known = Module(
            name, state, is_known=False, suspects=tuple(self._suspects(name)) if state else (), rules=self._rules,
            has_broken_rules=bool(self._rule_problems), given=text, loading=self._loading.get(name),
            has_daemon=self._is_running, is_sealed=os.path.exists(self._root + SEALED),
        )  # fmt: skip
        if self._snapshot is None:
            return known
        catalog = self._snapshot.catalog
        is_builtin, line = catalog.is_builtin(name), catalog.dep(name)
        if not is_builtin and line is None:
            from kmodd.cli.similar import hint  # only for a mistake

            return known if state else replace(known, similar=hint(name, catalog.names()))
        commands, denied = ((), ()) if state or is_builtin else self._on_request(name)
        return replace(
            known,
            state=state or ("builtin" if is_builtin else ""),
            is_known=True,
            skips=self._skips(name),
            commands=commands,
            denied=denied,
            has_file=line is None or self._tree.present(line.path),
            is_kept_out=bool(QuarantineFile(self._root + STANDING, self._root).read().removed.get(name)),
        )

    def matching(self, alias: str) -> list[Module]:
        """Return the modules that an alias matches."""
        return [self.module(name) for name in self._goals(alias)]

    def path_of(self, name: str) -> str:
        """Return the path /sys/… of a device by the kernel's name for it; empty: there is none."""
        if "/" in name or name in (".", ".."):
            return ""
        escaped = glob.escape(name)
        places = (f"bus/*/devices/{escaped}", f"class/*/{escaped}")
        found = next((path for place in places for path in sorted(glob.glob(f"{self._root}/sys/{place}"))), "")
        return found.removeprefix(self._root)

    def device(self, text: str) -> Device:
        """Return what is known of a device: of the nearest one upwards that has a driver or an alias."""
        path = device_path(text, self._root)
        shown = f"/sys{path}" if path.startswith("/devices/") else path
        there = os.path.isdir(f"{self._root}/sys{path}") and path.startswith("/devices/")
        if not there:
            return Device(path, shown, is_there=False)
        path = asking_path(path, self._root)
        sys_path = f"{self._root}/sys{path}"
        names = question_of(f"/sys{path}", self._tree, self._snapshot).names if self._snapshot else ()
        modules = dict.fromkeys(name for alias in names for name in self._goals(alias))
        driver = _target(f"{sys_path}/driver")
        override = decode(read_file(f"{sys_path}/driver_override") or b"").strip()
        return Device(
            path, self._shown(text, path), True, names, driver,
            module_name(_target(f"{sys_path}/driver/module")), tuple(map(self.module, modules)),
            "" if override == "(null)" else override, _target(f"{sys_path}/subsystem"),
        )  # fmt: skip

    def _shown(self, text: str, path: str) -> str:
        """Return how a device is called: subsystem and the kernel's name; behind the text if that is another one."""
        subsystem = _target(f"{self._root}/sys{path}/subsystem")
        name = path.rpartition("/")[2]
        own = f"{subsystem} {name}" if subsystem else name
        last = text.rstrip("/").rpartition("/")[2]
        return own if last == name else f"{text} ({own})"

    def _goals(self, alias: str) -> list[str]:
        if self._snapshot is None:
            return []
        return [goal.module for goal in self._plan(alias, options_of("coldplug")).goals]

    def _skips(self, name: str) -> tuple[Skip, ...]:
        """Return why a device's request for a module would not load it, and what else would then be in the way."""
        found: list[Skip] = []
        always: Literal["always", "never"] = "always"
        for blacklist in (always, "never"):
            plan = self._plan(name, replace(options_of("coldplug"), blacklist=blacklist))
            own = (skip for skip in plan.skips if skip.module == name and skip.reason not in _THERE)
            found += [skip for skip in own if skip not in found]
        return tuple(found)

    def _plan(self, name: str, options: ProbeOptions) -> Plan:
        assert self._snapshot is not None
        request, tree = Request(name, "coldplug"), self._tree
        return resolve(request, self._snapshot, self._loaded, options, tree.present, foreign=tree.foreign)

    def _on_request(self, name: str) -> tuple[tuple[Install, ...], tuple[Denial, ...]]:
        """Return the commands that `modprobe NAME` would run, and what the policy denies to processes."""
        plan = self._plan(name, replace(options_of("operator"), blocked=True))
        question = Question(name, "module", (name,), "operator")
        commands = tuple(step for step in plan.steps if isinstance(step, Install))
        return commands, self._policy.denials_of(question, plan)

    def names_of_node(self, path: str) -> tuple[str, ...]:
        """Return the names that the kernel requests when a device node is opened; none: that is not known."""
        return question_of(path, self._tree, self._snapshot).names if self._snapshot else ()

    def _suspects(self, name: str) -> Iterator[str]:
        """Yield who can have loaded a module before kmodd, the likeliest first."""
        module = self._loaded.modules.get(module_name(name))
        if module and module.holders:
            yield f"whatever loaded {' '.join(module.holders)}, which need it"
        for entry in read_boot_list(self._root).modules:
            if module_name(entry.name) == name:
                yield f"systemd-modules-load in the initrd, by {entry.at}"
        for path in _INITRD_LISTS:
            lines = decode(read_file(self._root + path) or b"").splitlines()
            for number, line in enumerate(lines, 1):
                if module_name(next(iter(line.split()), "")) == name:
                    yield f"the initrd, by {path}:{number}"
        if name in _OF_PID_1:
            yield "systemd itself, which loads it before any unit"
        if os.path.isdir(self._root + _INITRD):
            yield "the initrd, whose udevd or scripts load modules"
        yield "a program that ran before kmodd, such as modprobe of a unit"


def read_records(verb: Verb, given: Given) -> Records:
    """Return the records of the boot that the options name, by default the current one, after messages if there are
    none."""
    query = query_of(given, boot="0")
    entries = read_entries(verb, query)
    here = boot_id(given.get("root").rstrip("/"))
    boots = {entry.boot for entry in entries or ()}
    is_past = boots != {here} if boots else query.boot not in ("0", "-0", here)
    return Records(tuple(entries or ()), is_past, entries is not None)


def boot_id(root: str) -> str:
    """Return the id of the current boot as journald writes it; empty: it is not known."""
    data = read_file(f"{root}/proc/sys/kernel/random/boot_id") or b""
    return decode(data).strip().replace("-", "")


def _target(link: str) -> str:
    """Return the last part of a link's target; empty: there is none."""
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return ""
