"""What the engine asks of a simulated machine (engine/machine.py): tree, configuration and /proc/modules in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kmodd.config import kmodd_conf, modprobe_d, policy_d
from kmodd.config.kmodd_conf import Settings
from kmodd.config.modprobe_d import ConfFile, Config, Extensions
from kmodd.config.modules_load_d import BootList, BootModule
from kmodd.config.policy_d import Parsed
from kmodd.errors import NoTree, Where
from kmodd.index.catalog import Catalog, Mark, Snapshot
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import Loaded, parse_modules
from kmodd.planning.findings import Finding
from kmodd.planning.load_errors import KernelFacts
from tests.simulation.kernel import Kernel

PROCESSORS = 2
"""Of each machine."""

DIRECTORY = "/lib/modules/6.1.0-test"


def path_of(module: str) -> str:
    """The file of a module, as printed."""
    return f"{DIRECTORY}/{module}.ko"


@dataclass
class Files:
    """The files of the machine."""

    version: int = 1
    """Number of changes of all files: what a watch sees."""
    marked: int = 1
    """Number of changes of indexes and configuration: their mark."""
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Module → the modules that it needs, as depmod finds them."""
    aliases: list[tuple[str, str]] = field(default_factory=list)
    """Pattern and module."""
    unindexed: set[str] = field(default_factory=set)
    """Modules that the index does not have yet."""
    missing: set[str] = field(default_factory=set)
    """Modules whose file does not exist."""
    modprobe: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    boot: list[str] = field(default_factory=list)
    overridden: set[str] = field(default_factory=set)
    """Devices with driver_override."""
    firmware: dict[str, int] = field(default_factory=dict)
    """Firmware file → the version at which it was written."""
    was_missing: bool = False
    """A file was missing at some time."""
    was_unindexed: set[str] = field(default_factory=set)
    """Modules that the index did not have at some time."""
    is_hidden: bool = False
    """The module tree is gone."""
    was_hidden: bool = False

    def change(self, *, is_marked: bool = True) -> None:
        """A file was written, made or removed. `is_marked`: an index or a configuration file."""
        self.version += 1
        self.marked += is_marked

    def all_needs(self, name: str) -> list[str]:
        """The dependencies of a module in the order of modules.dep: the last one is loaded first."""
        found: dict[str, None] = {}
        for needed in self.needs.get(name, ()):
            for each in (needed, *self.all_needs(needed)):
                found.pop(each, None)
                found[each] = None
        return list(found)

    def read(self, name: str) -> bytes | None:
        """The content of an index file; None: there is none."""
        match name:
            case "modules.dep":
                known = [module for module in self.needs if module not in self.unindexed]
                needs = {each: [dep for dep in self.all_needs(each) if dep in known] for each in known}
                lines = [f"{each}.ko:{''.join(f' {dep}.ko' for dep in needs[each])}\n" for each in known]
            case "modules.alias":
                lines = [f"alias {alias} {module}\n" for alias, module in self.aliases if module not in self.unindexed]
            case _:
                return None
        return "".join(lines).encode()

    def boot_list(self) -> BootList:
        """What modules-load.d has."""
        listed = (BootModule(name, Where("/etc/modules", line)) for line, name in enumerate(self.boot, 1))
        return BootList(tuple(listed))

    def matches(self, text: str) -> list[str]:
        """The modules that a name or modalias stands for by the files of now; patterns end with `*`."""
        if text in self.needs and text not in self.unindexed:
            return [text]
        found = [module for pattern, module in self.aliases if text.startswith(pattern[:-1])]
        return [module for module in dict.fromkeys(found) if module not in self.unindexed]

    def is_blacklisted(self, module: str) -> bool:
        """Whether modprobe.d keeps devices from loading the module."""
        return f"blacklist {module}" in self.modprobe

    def is_blocked(self, module: str) -> bool:
        """Whether an install command succeeds without the module."""
        return f"install {module} /bin/true" in self.modprobe

    def keeps_out(self, module: str) -> bool:
        """Whether what needs the module is not tried: it is blocked, or its file is missing."""
        return self.is_blocked(module) or module in self.missing


class SimMachine:
    """A `Machine` without a file system."""

    def __init__(self, files: Files, kernel: Kernel) -> None:
        self.files = files
        self.kernel = kernel
        self.waited = 0.0
        self.processors = PROCESSORS
        self.has_watch = False
        self._loaded = (-1, Loaded())
        self._snapshot: tuple[tuple[object, ...], Snapshot] | None = None
        self._rules: tuple[tuple[str, ...], Parsed] = ((), Parsed())
        self.rules_read: tuple[str, ...] = ()
        """The rules that the engine has read last."""
        self.mode_read = "off"
        """The mode that the engine has read last."""

    def check_tree(self) -> None:
        """Raise NoTree where the tree is hidden."""
        if self.files.is_hidden:
            raise NoTree(f"no module tree for kernel 6.1.0-test: {DIRECTORY} does not exist")

    def _marks(self) -> tuple[tuple[str, Mark], ...]:
        version = 0 if self.files.is_hidden else self.files.marked
        return ((DIRECTORY, (1, 1, version, 0, 0)),)

    def read_tree(self, extensions: Extensions, notice_edits: bool, *, whole: bool = True) -> Snapshot:
        """The indexes and configuration of now."""
        key = (self._marks(), extensions)
        if self._snapshot is None or self._snapshot[0] != key:
            self._snapshot = key, self._read(extensions)
        if whole:
            self._snapshot[1].catalog.load()
        return self._snapshot[1]

    def _read(self, extensions: Extensions) -> Snapshot:
        catalog = Catalog([Layer(DIRECTORY, self.files.read)])
        text = "".join(f"{line}\n" for line in self.files.modprobe)
        config: Config = modprobe_d.parse([ConfFile("/etc/modprobe.d/x.conf", text)], extensions)
        return Snapshot(catalog, config, marks=self._marks())

    def is_current(self, snapshot: Snapshot) -> bool:
        """Whether nothing has changed since."""
        return snapshot.marks == self._marks()

    def present(self, path: str) -> bool:
        """Whether a module file exists."""
        name = path.rpartition("/")[2].removesuffix(".ko")
        return not self.files.is_hidden and name in self.files.needs and name not in self.files.missing

    def foreign(self, path: str) -> str:
        """All files are root's."""
        return ""

    def loaded(self) -> Loaded:
        """The modules of now."""
        if self._loaded[0] != self.kernel.changes:
            self._loaded = self.kernel.changes, parse_modules(self.kernel.proc_modules())
        return self._loaded[1]

    def settings(self) -> Settings:
        """The settings of now."""
        lines = "".join(f"{key}={value}\n" for key, value in self.files.settings.items())
        read = kmodd_conf.parse([ConfFile("/etc/kmodd/kmodd.conf", f"[Kmodd]\n{lines}")])
        self.mode_read = read.policy
        return read

    def settings_marks(self) -> tuple[tuple[str, Mark], ...]:
        """The mark of all settings and rules."""
        return (("/etc/kmodd", (1, 2, self.files.marked, 0, 0)),)

    def rules(self) -> Parsed:
        """The rules of now."""
        lines = tuple(self.files.rules)
        if self._rules[0] != lines:
            text = "".join(f"{line}\n" for line in lines)
            self._rules = lines, policy_d.parse([ConfFile("/etc/kmodd/policy.d/x.conf", text)])
        self.rules_read = lines
        return self._rules[1]

    def flags(self) -> frozenset[str]:
        """The flags of now."""
        return frozenset(self.files.flags)

    def uptime(self) -> float:
        """No rule has a time limit."""
        return 0.0

    def findings(self, snapshot: Snapshot) -> Sequence[Finding]:
        """The configuration has no mistakes."""
        return ()

    def facts(self) -> KernelFacts:
        """Nothing keeps the kernel from taking a module."""
        return KernelFacts()

    def device_name(self, devpath: str) -> str:
        """No device has a name."""
        return ""

    def has_driver(self, devpath: str) -> bool:
        """Whether a driver is bound: whether that is so matters for a record's level only."""
        return False

    def overridden(self, devices: Iterable[str]) -> set[str]:
        """The devices with driver_override. Each question takes 20 ms."""
        self.waited += 0.02
        return {device for device in devices if device.rpartition("/")[2] in self.files.overridden}

    @property
    def is_watched(self) -> bool:
        """Whether the watch is open."""
        return self.has_watch

    def watch_state(self) -> int | None:
        """The number of changes; each seventh state is unknown, as after an overflow of the watch's queue."""
        return self.files.version if self.has_watch and self.files.version % 7 else None

    def firmware(self, name: str) -> tuple[Mark, ...]:
        """The mark of the file."""
        return ((1, 3, self.files.firmware[name], 0, 0),) if name in self.files.firmware else ()

    def firmware_directories(self, names: Iterable[str]) -> tuple[str, ...]:
        """The one directory, if there is anything to wait for."""
        return ("/lib/firmware",) if list(names) else ()
