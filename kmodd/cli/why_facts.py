"""What the machine says now of modules, devices and processes, for `kmodd why`."""

from __future__ import annotations

import glob
import os

from kmodd.cli.daemon_tree import tree_for
from kmodd.cli.device_paths import asking_path, device_path
from kmodd.cli.explain import question_of
from kmodd.daemon.quarantine_file import STANDING, QuarantineFile
from kmodd.dataclass import replace
from kmodd.errors import Problem, Where
from kmodd.host.config_files import read_boot_list, read_rules
from kmodd.host.regular_files import read_file
from kmodd.index.catalog import Snapshot
from kmodd.names import MODULE_SUFFIXES, module_name, module_of_path
from kmodd.planning.plan import Skip
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve
from kmodd.planning.why import Device, Module
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def __init__(self, root: str) -> None:
        self._root = root
        self._tree = tree_for(root, None)
        self._snapshot: Snapshot | None = None
        self._loaded = self._tree.loaded()
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
            has_broken_rules=bool(self._rule_problems), given=text,
        )  # fmt: skip
        if self._snapshot is None:
            return known
        catalog = self._snapshot.catalog
        is_builtin, line = catalog.is_builtin(name), catalog.dep(name)
        if not is_builtin and line is None:
            from kmodd.cli.similar import hint  # only for a mistake

            return known if state else replace(known, similar=hint(name, catalog.names()))
        return replace(
            known,
            state=state or ("builtin" if is_builtin else ""),
            is_known=True,
            skips=self._skips(name),
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
        request, options, tree = Request(alias, "coldplug"), options_of("coldplug"), self._tree
        plan = resolve(request, self._snapshot, self._loaded, options, tree.present, foreign=tree.foreign)
        return [goal.module for goal in plan.goals]

    def _skips(self, name: str) -> tuple[Skip, ...]:
        """Return why a device's request for a module would not load it, and what else would then be in the way."""
        assert self._snapshot is not None
        found: list[Skip] = []
        usual = options_of("coldplug")
        for options in (usual, replace(usual, blacklist="never")):
            request, tree = Request(name, "coldplug"), self._tree
            plan = resolve(request, self._snapshot, self._loaded, options, tree.present, foreign=tree.foreign)
            own = (skip for skip in plan.skips if skip.module == name and skip.reason not in _THERE)
            found += [skip for skip in own if skip not in found]
        return tuple(found)

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
