"""The kernel's side of a simulated machine: modules, calls to load and remove them, inits, devices and uevents.

A call does not return by itself: `settle` tells whether it can, and `finish` has it return. So each order of returns
can be played. The rules are those of kernel/module/main.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from typing import Literal

from kmodd.kernel.kmsg import KernelLine

DEPENDENCY_WAIT = 30.0
"""Seconds that a call waits for a dependency in state coming (main.c, resolve_symbol_wait)."""

OTHERS = 0
"""In place of a process number: a process that is no loader."""

State = Literal["coming", "live", "going"]
_WORDS: dict[State, str] = {"coming": "Loading", "live": "Live", "going": "Unloading"}


@dataclass(frozen=True)
class Init:
    """What the init function of a module does."""

    asks: tuple[str, ...] = ()
    """Names that it requests (request_module), one after the other; it waits for each answer."""
    devices: tuple[tuple[str, str], ...] = ()
    """Devices that appear with it: name and modalias."""
    errno: int = 0
    """Its result."""
    ends: Literal["returns", "oopses", "hangs", "waits"] = "returns"
    """waits: the module is live, but the call waits for asynchronous work (async_synchronize_full)."""
    pace: Literal["runs", "sleeps", "turns"] = "runs"
    """What a look at its task sees: on a processor; asleep all the time; asleep, but it has run since the last look."""


@dataclass(eq=False)
class Call:
    """A call that has not returned."""

    pid: int
    """Process number of the loader; OTHERS: another process."""
    module: str
    removes: bool = False
    waits_for: str = ""
    """The module whose load, by another call, must end first; empty: the call is in the init."""
    since: float = 0.0
    """Start of that wait (s)."""
    asked: int = 0
    """Number of names that the init has requested."""
    is_blocked: bool = False
    """The last of these requests is not answered."""
    is_killed: bool = False
    """Its process ends when it returns."""


@dataclass(eq=False)
class Module:
    """A module in the kernel."""

    state: State
    needs: tuple[str, ...]
    call: Call | None = None
    """The call that loads or removes it."""
    is_crashed: bool = False
    """Its init has oopsed: it stays in state coming."""


@dataclass
class Kernel:
    """Modules, calls and devices."""

    shares_results: bool = False
    """6.5 and later: a second load of the same file gets the result of the first (idempotent_init_module)."""
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Module → the modules whose symbols it uses."""
    inits: dict[str, Init] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)
    """Device → its modalias."""
    uevents: list[str] = field(default_factory=list)
    """Datagrams that nothing has read: `ACTION@PATH` NUL, KEY=VALUE NUL, …"""
    results: dict[str, int] = field(default_factory=dict)
    """Module → errno of its last load."""
    lacks: dict[str, str] = field(default_factory=dict)
    """Device → the firmware file for want of which its last probe failed."""
    log: list[KernelLine] = field(default_factory=list)
    """What the kernel says about firmware; a daemon reads it from the beginning."""
    changes: int = 0
    """Number of changes of the list of modules."""
    begun: list[str] = field(default_factory=list)
    """Modules whose init has begun, in order (trace event module:module_load)."""
    returned: list[tuple[int, str, int]] = field(default_factory=list)
    """Process number, module and errno of each finit_module that has returned."""

    # -- what can be read --------------------------------------------------------------------------------------

    def state(self, name: str) -> State | None:
        """The state of a module; None: the kernel does not have it."""
        return self.modules[name].state if name in self.modules else None

    def holders(self, name: str) -> list[str]:
        """The modules that use `name`."""
        return [other for other, module in self.modules.items() if name in module.needs and not module.is_crashed]

    def _is_called(self, name: str) -> bool:
        """Whether the call that loads the module has not returned: it holds a reference."""
        return any(call.module == name and not call.waits_for and not call.removes for call in self.calls)

    def proc_modules(self) -> str:
        """The text of /proc/modules."""
        lines = []
        for name, module in self.modules.items():
            holders = self.holders(name)
            count = len(holders) + (module.state == "coming" or self._is_called(name))
            users = "".join(f"{holder}," for holder in holders) or "-"
            lines.append(f"{name} 16384 {count} {users} {_WORDS[module.state]} 0x0\n")
        return "".join(lines)

    def init(self, name: str) -> Init:
        """What the init of `name` does."""
        return self.inits.get(name, Init())

    # -- calls -------------------------------------------------------------------------------------------------

    def load(self, name: str, pid: int, now: float) -> Call | int:
        """Call finit_module. Returns the call, or its errno where it returns at once."""
        if (module := self.modules.get(name)) and module.state != "coming":
            self.returned.append((pid, name, errno.EEXIST if module.state == "live" else errno.EBUSY))
            return self.returned[-1][2]
        call = Call(pid, name, waits_for=name if module else "", since=now)
        self.calls.append(call)
        return call if module or (code := self._resolve(call, now)) is None else self._fail(call, code)

    def _resolve(self, call: Call, now: float) -> int | None:
        """Find the symbols that the module needs, then begin its init. Returns the errno of a failure."""
        for needed in self.needs.get(call.module, ()):
            state = self.state(needed)
            if state == "coming":
                call.waits_for, call.since = needed, now
                return None
            if state != "live":
                return errno.ENOENT
        call.waits_for = ""
        if call.module in self.modules:  # another call was faster while this one waited for a dependency
            call.waits_for = call.module
            return None
        self.modules[call.module] = Module("coming", self.needs.get(call.module, ()), call)
        self.begun.append(call.module)
        self.changes += 1
        return None

    def settle(self, call: Call, now: float) -> int | None:
        """Go on with a call that waits for another load. Returns the errno of its failure; None: it is not over."""
        waits_for, state = call.waits_for, self.state(call.waits_for) if call.waits_for else None
        if not waits_for:
            return None
        if waits_for == call.module:
            if state == "coming":
                return None
            if self.shares_results and call.module in self.results:
                return self._fail(call, self.results[call.module])
            return self._fail(call, errno.EEXIST if state == "live" else errno.EBUSY)
        if state == "coming" and now - call.since <= DEPENDENCY_WAIT:
            return None
        code = errno.EBUSY if state == "coming" else self._resolve(call, now)
        return None if code is None else self._fail(call, code)

    def next_ask(self, call: Call) -> str:
        """The next name that the init of the call requests; empty: none, or it does not run."""
        asks = self.init(call.module).asks
        if call.removes or call.waits_for or call.is_blocked or call.asked >= len(asks):
            return ""
        return asks[call.asked]

    def can_finish(self, call: Call) -> bool:
        """Whether the call can return now."""
        if call.removes:
            return True
        init = self.init(call.module)
        hangs = init.ends == "hangs" or (init.ends == "oopses" and self.state(call.module) == "coming")
        return not (call.waits_for or call.is_blocked or hangs or self.waits_for_work(call) or self.next_ask(call))

    def waits_for_work(self, call: Call) -> bool:
        """Whether the call waits for asynchronous work, of any module, when its init succeeds (do_init_module)."""
        init = self.init(call.module)
        works = [each for each in self.calls if self.init(each.module).ends == "waits" and not each.removes]
        is_held = any(each is call or self.state(each.module) == "live" for each in works)
        return is_held and init.ends in ("returns", "waits") and not init.errno

    def finish(self, call: Call) -> int:
        """Have a call return. Returns its errno."""
        if call.removes:
            self._drop(call.module)
            return self._fail(call, 0)
        init = self.init(call.module)
        code = 0 if self.state(call.module) == "live" else init.errno  # its init was over before
        self.results[call.module] = code
        if code:
            self._drop(call.module)
        else:
            self._go_live(call, init)
        return self._fail(call, code)

    def go_live(self, call: Call) -> None:
        """The init is over, but the call waits for asynchronous work."""
        if self.state(call.module) == "coming":
            self._go_live(call, self.init(call.module))

    def _go_live(self, call: Call, init: Init) -> None:
        module = self.modules[call.module]
        if module.state == "live":
            return
        module.state, module.call = "live", None
        self.changes += 1
        self.uevents.append(f"add@/module/{call.module}\0SUBSYSTEM=module\0")
        for device, alias in init.devices:
            self.plug(device, alias)

    def crash(self, call: Call) -> None:
        """The init oopses: its module stays in state coming, its process ends."""
        module = self.modules[call.module]
        module.call, module.is_crashed = None, True
        self.calls.remove(call)

    def kill(self, call: Call, *, ends_init: bool) -> bool:
        """The process of the call is killed. Returns whether the call has returned.

        `ends_init`: the init fails with EINTR; else it, and any exit function, goes on to its end.
        """
        if call.waits_for:
            self._fail(call, errno.EINTR)
            return True
        if ends_init and not call.removes and self.state(call.module) == "coming":
            self.results[call.module] = errno.EINTR
            self._drop(call.module)
            self._fail(call, errno.EINTR)
            return True
        call.is_killed, call.is_blocked = True, False
        call.asked = len(self.init(call.module).asks)
        return False

    def remove(self, name: str, pid: int) -> Call | int:
        """Call delete_module with O_NONBLOCK. Returns the call, or its errno where it returns at once."""
        module = self.modules.get(name)
        if module is None:
            return errno.ENOENT
        if self.holders(name) or (module.state == "live" and self._is_called(name)):
            return errno.EAGAIN
        if module.state != "live":
            return errno.EBUSY
        module.state = "going"
        self.changes += 1
        call = Call(pid, name, removes=True)
        self.calls.append(call)
        return call

    def _fail(self, call: Call, code: int) -> int:
        self.calls.remove(call)
        if not call.removes:
            self.returned.append((call.pid, call.module, code))
        return code

    def _drop(self, name: str) -> None:
        module = self.modules.pop(name)
        self.changes += 1
        if module.state == "going":
            self.uevents.append(f"remove@/module/{name}\0SUBSYSTEM=module\0")

    # -- without a call ----------------------------------------------------------------------------------------

    def set_live(self, name: str) -> None:
        """The module was loaded before, or by an install command."""
        if name not in self.modules and all(self.state(needed) == "live" for needed in self.needs.get(name, ())):
            self.modules[name] = Module("live", self.needs.get(name, ()))
            self.begun.append(name)
            self.changes += 1
            self.uevents.append(f"add@/module/{name}\0SUBSYSTEM=module\0")

    def change_init(self, name: str, **changes: object) -> None:
        """Have the init of `name` do something else from now on."""
        self.inits[name] = replace(self.init(name), **changes)  # type: ignore[arg-type]

    # -- devices -----------------------------------------------------------------------------------------------

    def plug(self, device: str, alias: str) -> None:
        """A device appears; nothing happens where it is there."""
        if device not in self.devices:
            self.devices[device] = alias
            self.uevents.append(_device_event("add", device, alias))

    def unplug(self, device: str) -> None:
        """A device disappears."""
        if device in self.devices:
            self.uevents.append(_device_event("remove", device, self.devices.pop(device)))
            self.lacks.pop(device, None)

    def probe(self, device: str, firmware: str, *, exists: bool) -> None:
        """The driver of a device probes it, and needs the file."""
        if device not in self.devices:
            return
        self.lacks.pop(device, None)
        if not exists:
            self.lacks[device] = firmware
            text = f"drv {device}: Direct firmware load for {firmware} failed with error -2"
            self.log.append(KernelLine(4, len(self.log), 0, text, "pci", f"+pci:{device}"))

    def trigger(self, device: str) -> None:
        """A process writes to the device's uevent file."""
        if device in self.devices:
            self.uevents.append(_device_event("add", device, self.devices[device]) + "SYNTH_UUID=0\0")


def _device_event(action: str, device: str, alias: str) -> str:
    return f"{action}@/devices/{device}\0SUBSYSTEM=pci\0MODALIAS={alias}\0"
