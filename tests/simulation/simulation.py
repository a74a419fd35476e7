"""A simulated machine with the daemon on it, played by lines of text: a `Simulation`.

A line is a verb and words, such as `plug d1 pci:v2` or `finish b`. A line that makes no sense at its moment does
nothing, so that lines can be left out of a script. `VERBS` lists them.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable

from kmodd.engine.events import Command, Event
from kmodd.kernel.requester import Requester
from kmodd.planning.record import Record
from kmodd.planning.request import RemovalOptions, Request
from tests.simulation.coverage import Coverage
from tests.simulation.daemon import Killed, Run, SimDaemon
from tests.simulation.files import Files, SimMachine
from tests.simulation.invariants import Invariants
from tests.simulation.journald import Journald
from tests.simulation.kernel import OTHERS, Call, Kernel
from tests.simulation.loaders import Loaders
from tests.simulation.short import short
from tests.world import requester

ENDS = {"ok": "returns", "oops": "oopses", "hang": "hangs", "async": "waits"}
"""Word of `init` → Init.ends."""

SOCKET_LIMIT = 64
"""Uevents that the daemon's socket holds."""


class Simulation:
    """A machine from power-on to rest."""

    def __init__(self, coverage: Coverage | None = None) -> None:
        self.now = 1000.0
        self.kernel = Kernel()
        self.files = Files()
        self.machine = SimMachine(self.files, self.kernel)
        self.loaders = Loaders(self.kernel, self.files)
        self.run = Run()
        self.run.journald = Journald()
        self.daemon: SimDaemon | None = None
        self.invariants = Invariants(self, coverage or Coverage())
        self.callers: dict[int, tuple[Request, Call | None]] = {}
        """id → a request that a caller waits for, and the call whose init made it."""
        self.traces = True
        """The requester of a kernel request is known."""
        self.holds_uevents = False
        """Uevents reach the socket late."""
        self.records: list[Record] = []
        self.happened: list[str | tuple[float, Event] | Command] = []
        """Lines, events with their time, and commands."""

    # -- lines -------------------------------------------------------------------------------------------------

    def play(self, lines: Iterable[str]) -> None:
        """Play lines in order. Raises Violation."""
        for line in lines:
            self.do(line)

    def do(self, line: str) -> None:
        """Play one line. Raises Violation."""
        verb, *words = line.split(" ")
        self.happened.append(f"== {line}")
        try:
            VERBS[verb](self, *words)
            self._go_on()
        except Killed:
            self.end_daemon()

    @property
    def log(self) -> list[str]:
        """What has happened, as text: lines and what the engine made of them."""
        found = []
        for what in self.happened:
            if isinstance(what, str):
                found.append(what)
            elif isinstance(what, tuple):
                found.append(f"{what[0]:.2f} {short(what[1])}")
            elif line := short(what):
                found.append(f"      -> {line}")
        return found

    def digest(self) -> str:
        """A hash of everything that has happened."""
        return hashlib.sha256("\n".join(self.log).encode()).hexdigest()[:16]

    def _go_on(self) -> None:
        """What takes no time: uevents reach the socket, inits make their requests."""
        if self.daemon and not self.holds_uevents:
            self.deliver(len(self.kernel.uevents))
        for call in self.kernel.calls:
            if text := self.kernel.next_ask(call):
                if call.is_killed or call.pid == OTHERS or self.daemon is None:
                    call.asked += 1  # the helper does without the daemon
                else:
                    self.ask(text, call)

    def deliver(self, count: int) -> None:
        """The kernel's oldest uevents reach the daemon's socket, or overflow it."""
        if self.daemon is None:
            self.kernel.uevents.clear()  # nothing listens
            return
        moved, self.kernel.uevents = self.kernel.uevents[:count], self.kernel.uevents[count:]
        room = max(0, SOCKET_LIMIT - len(self.daemon.socket))
        self.daemon.socket += moved[:room]
        self.daemon.has_overflowed = self.daemon.has_overflowed or len(moved) > room

    # -- the daemon --------------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """The daemon starts, if none runs."""
        if self.daemon is None:
            self.kernel.uevents.clear()
            self.daemon = SimDaemon(self.machine, self.loaders, self.run, self.invariants)
            self.invariants.daemon_starts(self.daemon.engine)
            self.daemon.start(self.now)

    def end_daemon(self) -> None:
        """The daemon is killed; its callers are let go, its loaders end after their current step."""
        if self.daemon is None:
            return
        self.happened.append("      killed")
        self.daemon = None
        self.invariants.daemon_ends()
        self.loaders.orphan()
        for _, call in self.callers.values():
            if call:
                call.is_blocked = False
        self.callers.clear()

    def round(self) -> None:
        """The daemon's loop goes round once. Raises Killed."""
        if self.daemon:
            self.daemon.round(self.now)
            self.invariants.round_is_over()

    def has_unread(self) -> bool:
        """Whether the daemon has something to read."""
        outboxes = any(loader.outbox for loader in self.loaders.all)
        daemon = self.daemon
        return daemon is not None and bool(daemon.socket or daemon.calls or outboxes or daemon.has_unread_log())

    # -- callers -----------------------------------------------------------------------------------------------

    def ask(self, text: str, call: Call | None, asker: Requester | None = None) -> None:
        """The kernel asks for a module, because of the init of `call` or another process."""
        if call:
            call.asked += 1
            call.is_blocked = True
            asker = requester(call.pid, 0)
        self.call(Request(text, "request", requester=asker if self.traces else None), call)

    def call(self, request: Request, call: Call | None = None) -> None:
        """A caller sends a request to the daemon."""
        if self.daemon:
            self.callers[id(request)] = (request, call)
            self.daemon.calls.append(request)
        elif call:
            call.is_blocked = False  # the helper has become modprobe, and that has ended

    def answer(self, request: Request) -> None:
        """The daemon answers a caller. Raises Violation for a second answer."""
        _, call = self.callers.pop(id(request), (None, None))
        if call:
            call.is_blocked = False

    # -- loaders -----------------------------------------------------------------------------------------------

    def other_call(self, module: str) -> Call | None:
        """A call for `module` by a process that is no loader."""
        return next((call for call in self.kernel.calls if call.module == module and call.pid == OTHERS), None)

    def finish_other(self, call: Call) -> bool:
        """Have such a call return if it can. Returns whether anything has changed."""
        if call.waits_for:
            return self.kernel.settle(call, self.now) is not None or not call.waits_for
        init = self.kernel.init(call.module)
        if init.ends == "oopses" and not call.removes and self.kernel.state(call.module) == "coming":
            self.kernel.crash(call)
            return True
        if self.kernel.waits_for_work(call) and not (call.removes or call.is_blocked or self.kernel.next_ask(call)):
            before = self.kernel.changes
            self.kernel.go_live(call)
            return self.kernel.changes != before
        if self.kernel.can_finish(call):
            self.kernel.finish(call)
            return True
        return False


# -- verbs: the machine before or while it runs ------------------------------------------------------------------------


def _kernel(sim: Simulation, version: str) -> None:
    sim.kernel.shares_results = tuple(map(int, version.split("."))) >= (6, 5)


def _module(sim: Simulation, name: str, *needs: str) -> None:
    if all(need in sim.files.needs for need in needs):
        sim.files.needs[name] = sim.kernel.needs[name] = needs
        sim.files.change()


def _alias(sim: Simulation, pattern: str, module: str) -> None:
    sim.files.aliases.append((pattern, module))
    sim.files.change()


def _config(sim: Simulation, *words: str) -> None:
    sim.files.modprobe.append(" ".join(words))
    sim.files.change()


def _unconfig(sim: Simulation, *words: str) -> None:
    if " ".join(words) in sim.files.modprobe:
        sim.files.modprobe.remove(" ".join(words))
        sim.files.change()


def _set(sim: Simulation, key: str, value: str) -> None:
    sim.files.settings[key] = value
    sim.files.change()


def _rule(sim: Simulation, *words: str) -> None:
    sim.files.rules.append(" ".join(words))
    sim.files.change()


def _no_rules(sim: Simulation) -> None:
    sim.files.rules.clear()
    sim.files.change()


def _boot(sim: Simulation, name: str) -> None:
    sim.files.boot.append(name)


def _override(sim: Simulation, device: str) -> None:
    sim.files.overridden ^= {device}


def _init(sim: Simulation, name: str, word: str, *values: str) -> None:
    match word:
        case "asks":
            sim.kernel.change_init(name, asks=values)
        case "refuses":
            sim.kernel.change_init(name, errno=getattr(errno, values[0]), ends="returns")
        case "adds":
            sim.kernel.change_init(name, devices=((values[0], values[1]),))
        case "runs" | "sleeps" | "turns":
            sim.kernel.change_init(name, pace=word)
        case "ok":
            sim.kernel.change_init(name, errno=0, ends="returns")
        case _:
            sim.kernel.change_init(name, ends=ENDS[word])


def _live(sim: Simulation, name: str) -> None:
    sim.kernel.set_live(name)


def _no_file(sim: Simulation, name: str) -> None:
    sim.files.missing.add(name)
    sim.files.was_missing = True
    sim.files.change(is_marked=False)


def _file(sim: Simulation, name: str) -> None:
    if name in sim.files.missing:
        sim.files.missing.remove(name)
        sim.files.change(is_marked=False)


def _unindex(sim: Simulation, name: str) -> None:
    sim.files.unindexed.add(name)
    sim.files.was_unindexed.add(name)
    sim.files.change()


def _index(sim: Simulation, name: str) -> None:
    if name in sim.files.unindexed:
        sim.files.unindexed.remove(name)
        sim.files.change()


def _hide(sim: Simulation) -> None:
    sim.files.is_hidden = sim.files.was_hidden = True
    sim.files.change()


def _unhide(sim: Simulation) -> None:
    if sim.files.is_hidden:  # a change would have sysfs replayed, and what was lost found
        sim.files.is_hidden = False
        sim.files.change()


def _firmware(sim: Simulation, name: str) -> None:
    sim.files.change(is_marked=False)
    sim.files.firmware[name] = sim.files.version


def _no_firmware(sim: Simulation, name: str) -> None:
    if sim.files.firmware.pop(name, None):
        sim.files.change(is_marked=False)


def _probe(sim: Simulation, device: str, name: str) -> None:
    """The driver of the device asks for a firmware file."""
    sim.kernel.probe(device, name, exists=name in sim.files.firmware)


# -- verbs: devices, people, processes -------------------------------------------------------------------------------


def _plug(sim: Simulation, device: str, alias: str) -> None:
    sim.kernel.plug(device, alias)


def _unplug(sim: Simulation, device: str) -> None:
    sim.kernel.unplug(device)


def _trigger(sim: Simulation, device: str) -> None:
    sim.kernel.trigger(device)


def _flood(sim: Simulation, count: str) -> None:
    """Write to the uevent files of all devices, again and again."""
    for number in range(int(count)):
        if devices := list(sim.kernel.devices):
            sim.kernel.trigger(devices[number % len(devices)])


def _order(sim: Simulation, text: str) -> None:
    sim.call(Request(text, "operator"))


def _remove(sim: Simulation, text: str, *words: str) -> None:
    options = RemovalOptions(
        first_time="first" in words, ends_at_failure="all" not in words, ignore_commands="ignore" in words,
        holders="holders" in words,
    )  # fmt: skip
    sim.call(Request(text, "operator", removing=options))


def _ask(sim: Simulation, text: str, uid: str = "") -> None:
    sim.ask(text, None, requester(812, int(uid)) if uid else None)


def _ask_in(sim: Simulation, module: str, text: str) -> None:
    """The init of a module asks, though it is not in its nature."""
    loader = sim.loaders.at(module)
    call = loader.call if loader else None
    if call and not (call.waits_for or call.is_blocked or call.removes or call.is_killed):
        sim.ask(text, call)
        call.asked -= 1


def _begin(sim: Simulation, module: str) -> None:
    if loader := sim.loaders.at(module):
        sim.loaders.begin(loader, sim.now)


def _finish(sim: Simulation, module: str) -> None:
    if loader := sim.loaders.at(module):
        sim.loaders.finish(loader, sim.now)
    elif call := sim.other_call(module):
        sim.finish_other(call)


def _kill(sim: Simulation, module: str, word: str = "") -> None:
    if loader := sim.loaders.at(module):
        sim.loaders.kill(loader, ends_init=word == "ends")


def _spawner(sim: Simulation, word: str) -> None:
    sim.loaders.why_not = "no loader: fork failed" if word == "off" else ""


def _names(sim: Simulation, word: str) -> None:
    sim.loaders.names_late = word == "late"


def _stops(sim: Simulation, word: str) -> None:
    sim.loaders.stops_late = word == "late"


def _other_load(sim: Simulation, module: str) -> None:
    needs = sim.kernel.needs.get(module)
    if needs is not None and module not in sim.kernel.modules and all(sim.kernel.state(x) == "live" for x in needs):
        sim.kernel.load(module, OTHERS, sim.now)


def _other_remove(sim: Simulation, module: str) -> None:
    if isinstance(call := sim.kernel.remove(module, OTHERS), Call):
        sim.kernel.finish(call)


# -- verbs: the daemon -------------------------------------------------------------------------------------------------


def _start(sim: Simulation) -> None:
    sim.start_daemon()


def _kill_daemon(sim: Simulation, events: str = "0") -> None:
    if sim.daemon:
        sim.daemon.left = int(events)
        sim.round()
        sim.end_daemon()


def _round(sim: Simulation) -> None:
    sim.round()


def _wait(sim: Simulation, seconds: str) -> None:
    sim.now += float(seconds)
    sim.round()


def _tick(sim: Simulation) -> None:
    if sim.daemon and (deadline := sim.daemon.deadline()) is not None:
        sim.now = max(sim.now, deadline)
        sim.round()


def _tell(sim: Simulation, order: str) -> None:
    if sim.daemon:
        sim.daemon.tell(order)


def _hold(sim: Simulation, word: str) -> None:
    sim.holds_uevents = word == "on"


def _deliver(sim: Simulation, count: str) -> None:
    sim.deliver(int(count))


def _lose(sim: Simulation) -> None:
    if sim.daemon:
        sim.daemon.socket.clear()
        sim.daemon.has_overflowed = True


def _stacks(sim: Simulation, word: str) -> None:
    if sim.daemon:
        sim.daemon.has_answered_stacks = word == "on"


def _trace(sim: Simulation, word: str) -> None:
    sim.traces = word == "on"


def _run_full(sim: Simulation, word: str) -> None:
    sim.run.is_full = word == "full"


def _journald(sim: Simulation, word: str) -> None:
    if sim.run.journald:
        sim.run.journald.set_reading(word == "on")


def _memory(sim: Simulation, word: str, events: str = "") -> None:
    """`fails N`: an allocation of the daemon fails, and it ends; `short`: loaders cannot unpack modules; `ok`."""
    if word == "fails":
        if sim.daemon:
            sim.daemon.fails_in = int(events)
        return
    sim.loaders.is_short = word == "short"
    if sim.daemon:
        sim.daemon.fails_in = None


VERBS: dict[str, Callable[..., None]] = {
    "kernel": _kernel, "module": _module, "alias": _alias, "config": _config, "unconfig": _unconfig, "set": _set,
    "rule": _rule, "no-rules": _no_rules, "boot": _boot, "override": _override, "init": _init, "live": _live,
    "no-file": _no_file, "file": _file, "unindex": _unindex, "index": _index, "hide": _hide, "unhide": _unhide,
    "firmware": _firmware, "no-firmware": _no_firmware, "probe": _probe,
    "plug": _plug, "unplug": _unplug, "trigger": _trigger, "flood": _flood, "order": _order, "remove": _remove,
    "ask": _ask, "ask-in": _ask_in, "begin": _begin, "finish": _finish, "kill": _kill, "spawner": _spawner,
    "names": _names, "stops": _stops, "other-load": _other_load, "other-remove": _other_remove, "start": _start,
    "kill-daemon": _kill_daemon, "round": _round, "wait": _wait, "tick": _tick, "tell": _tell, "hold": _hold,
    "deliver": _deliver, "lose": _lose, "stacks": _stacks, "trace": _trace, "run": _run_full, "journald": _journald,
    "memory": _memory,
}  # fmt: skip
"""What a line may begin with."""
