"""Answer why a module, device or process is as it is, from the records of one boot: `Answer`.

The records say what happened; what the kernel has now, and what a plan would skip, say why a module is not there.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.errors import Where
from kmodd.planning import remedies
from kmodd.planning.explain import effect_of
from kmodd.planning.history import Entry, Filter, as_object, subject_of_entry
from kmodd.planning.policy import SEALED
from kmodd.planning.remedies import Remedy
from kmodd.text import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal

    from kmodd.planning.denials import Denial
    from kmodd.planning.plan import Install, Skip

    Kind = Literal["module", "device", "process", "alias"]
else:
    Kind = str

_NO_REMOVAL = ("in_use", "absent", "not_removed")
"""Results of removals that changed nothing."""
_TROUBLES = ("denied", "blocked", "blacklisted", "missing", "failed", "crashed", "stuck")
_DECIDED = (*_TROUBLES, "removed", "not_attempted", "nomatch")
"""Results after which the kernel does not have the module."""
_SEE_KERNEL = Remedy("see the kernel's messages", "journalctl -k")
_UNREADABLE = "the journal cannot be read, which would say more"


@dataclass(frozen=True, slots=True)
class Module:
    """What is known of a module now, beside the records."""

    name: str
    state: str = ""
    """`live`, `coming`, `going`, `builtin`; empty: the kernel does not have it."""
    is_known: bool = True
    """The module tree has it."""
    skips: tuple[Skip, ...] = ()
    """Why a request for it would not load it; none: it would."""
    has_file: bool = True
    is_kept_out: bool = False
    """An administrator removed it while its device was there."""
    suspects: tuple[str, ...] = ()
    """Who can have loaded it before kmodd."""
    rules: frozenset[tuple[Where, str]] = frozenset()
    """Place and text of each rule of policy.d that is in force."""
    has_broken_rules: bool = False
    given: str = ""
    """How it was spelled."""
    loading: int | None = None
    """For how long a loader of kmodd has been loading it, in µs; None: none is."""
    has_daemon: bool = False
    """kmodd runs, and says what its loaders do."""
    is_sealed: bool = False
    commands: tuple[Install, ...] = ()
    """Install commands that loading it would run."""
    denied: tuple[Denial, ...] = ()
    """What the rules deny to processes that make the kernel request it."""
    similar: str = ""
    """`; did you mean …?` for a name that nothing knows."""


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of a device now."""

    path: str
    """`/devices/…`."""
    shown: str
    """As it is called in the answer."""
    is_there: bool
    aliases: tuple[str, ...] = ()
    driver: str = ""
    """Empty: none."""
    driver_module: str = ""
    """Empty: the driver is part of the kernel image."""
    modules: tuple[Module, ...] = ()
    """Those that match its aliases."""
    override: str = ""
    """driver_override; empty: not set."""
    bus: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    subject: str
    kind: Kind
    code: str
    """A value of KMODD_RESULT, or another word of docs/JOURNAL.md."""
    sentence: str
    module: str = ""
    """The module whose way is shown; empty: none."""
    entry: Entry | None = None
    """The record of the decision."""
    start: Entry | None = None
    """That of the start of the kmodd that decided."""
    needed: tuple[tuple[str, str], ...] = ()
    """From the module to the requested one: each module on the way, and why it came: `dependency of uas`."""
    suspects: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    lines: tuple[tuple[Where, str], ...] = ()
    """The lines that decide now, and what they say, if no record has them."""
    notes: tuple[str, ...] = ()
    """What the next request for the module meets, in the words of `kmodd explain`."""


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one boot."""

    entries: tuple[Entry, ...]
    is_past: bool = False
    """Not the current boot: nothing is known beside them."""
    is_readable: bool = True
    """The journal can be read; else there are none, whatever happened."""

    @property
    def starts(self) -> tuple[Entry, ...]:
        """The starts of the daemon."""
        return tuple(entry for entry in self.entries if entry.kind == "f122")

    @property
    def decisions(self) -> tuple[Entry, ...]:
        """The records of requests."""
        return tuple(entry for entry in self.entries if entry.is_decision)

    def of_module(self, name: str) -> tuple[Entry, ...]:
        """Return the decisions about a module, as a dependency too."""
        wanted = Filter(module=name)
        return tuple(entry for entry in self.decisions if wanted.admits(entry))

    def beside(self, entry: Entry) -> tuple[Entry, ...]:
        """Return the other records of an entry's request that say what went wrong."""
        if not entry.request_id:
            return ()
        key = (entry.request_id, entry.pid, entry.boot)
        others = (each for each in self.decisions if each is not entry and each.result in _TROUBLES)
        return tuple(each for each in others if (each.request_id, each.pid, each.boot) == key)

    def start_of(self, entry: Entry) -> Entry | None:
        """Return the start of the daemon that wrote an entry; None: a tool wrote it, or it is not recorded."""
        mine = [each for each in self.starts if (each.pid, each.boot) == (entry.pid, entry.boot)]
        return mine[-1] if mine else None


# ── modules ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_module(module: Module, records: Records) -> Answer:
    """Return why a module is loaded, or why it is not."""
    name = module.name
    entries = [entry for entry in records.of_module(name) if entry.result not in _NO_REMOVAL]
    if records.is_past:
        return _recorded(name, entries[-1], records) if entries else _unrecorded(name, "module", records)
    if module.state == "builtin":
        return Answer(name, "module", "builtin", f"{name} is part of the kernel image", name)
    if module.state == "going":
        return Answer(name, "module", "going", f"{name} is being removed", name)
    is_stuck = bool(entries) and entries[-1].result == "stuck"
    if module.state != "live" and module.loading is not None and not is_stuck:
        sentence = f"{name} is being loaded by kmodd, for {duration(module.loading)} until now"
        wait = remedies.for_module("wait until it has started", "kmodd wait", name)
        return Answer(name, "module", "loading", sentence, name, remedies=(wait,))
    if not module.state:
        answer = _absent(module, entries, records)
        return replace(answer, notes=_notes(module, is_denied=answer.code == "denied"))
    changes = [entry for entry in entries if name in entry.changed]
    if changes and changes[-1].result != "removed":
        return _loaded(module, changes[-1], records)
    if module.state == "coming" and entries:
        return _recorded(name, entries[-1], records, module)
    if module.state == "coming" and module.has_daemon:
        return Answer(name, "module", "loading", f"{name} is being loaded by another program", name)
    return _not_by_kmodd(module, records, is_again=bool(changes))


def _loaded(module: Module, entry: Entry, records: Records) -> Answer:
    state = "loaded" if module.state == "live" else "being loaded"
    needed = needed_by(module.name, entry)
    whom = f" for {subject}" if (subject := subject_of_entry(entry)) else ""
    how = f", as a {needed[0][1]}," if needed else ""
    sentence = f"{module.name} is {state}{how}{whom}".rstrip(",")
    return Answer(module.name, "module", "loaded", sentence, module.name, entry, records.start_of(entry), needed)


def _not_by_kmodd(module: Module, records: Records, *, is_again: bool) -> Answer:
    """Return the answer for a module that is in the kernel, and that no record says kmodd has loaded.

    is_again: it was removed in between.
    """
    name, first = module.name, next(iter(records.starts), None)
    if not records.is_readable:
        sentence = f"{name} is loaded; for what, the journal says, which cannot be read"
        return Answer(name, "module", "unknown", sentence, name)
    if first is None or not first.loaded_before:
        sentence = f"{name} is loaded; the journal has no record of that, nor of what was there when kmodd started"
        return Answer(name, "module", "unknown", sentence, name, suspects=module.suspects)
    if name in first.loaded_before and not is_again:
        sentence = f"{name} was loaded before kmodd started"
        return Answer(name, "module", "before", sentence, name, None, first, suspects=module.suspects)
    sentence = f"{name} was loaded after kmodd started, by another program: insmod, or kmod's modprobe"
    return Answer(name, "module", "elsewhere", sentence, name, None, first)


def _absent(module: Module, entries: Sequence[Entry], records: Records) -> Answer:
    """Return the answer for a module that the kernel does not have."""
    name, load = module.name, (remedies.to_load(module.name),)
    last = entries[-1] if entries else None
    if last and last.result in _DECIDED and (last.result == "removed" or name not in last.changed):
        return _refused(module, last, records)
    if module.is_kept_out:
        kept = f"{name} is not loaded: it was removed while its device was there, and is not loaded for it again"
        return Answer(name, "module", "kept_out", kept, name, last, remedies=load)
    if last and (name in last.changed or last.result == "live"):
        gone = f"{name} was loaded, and was removed by another program: rmmod, or kmod's modprobe -r"
        return Answer(name, "module", "gone", gone, name, last, records.start_of(last), needed_by(name, last), (), load)
    if not module.is_known and not module.skips:
        sentence = f"no module, alias or device {module.given or name!r} is known{module.similar}"
        return Answer(name, "module", "unknown", sentence)
    if module.skips:
        return _skipped(module)
    first = next(iter(records.starts), None)
    if first and name in first.loaded_before:
        gone = f"{name} was loaded before kmodd started, and was removed by another program"
        return Answer(name, "module", "gone", gone, name, None, first, remedies=load)
    why = "no record of a request for it in this boot" if records.is_readable else _UNREADABLE
    return Answer(name, "module", "not_asked", f"{name} is not loaded: {why}", name, remedies=load)


def _notes(module: Module, *, is_denied: bool) -> tuple[str, ...]:
    """Return what the next request meets beside the lines that a device's request does.

    is_denied: the answer is a rule that denies it, and others say no more.
    """
    commands = (
        f"runs {step.command.strip()} for {step.module}, by install at {step.at}; {effect_of(step)}"
        for step in module.commands
    )
    return (*commands, *(() if is_denied else map(str, module.denied)))


def _skipped(module: Module) -> Answer:
    """Return the answer for a module that lines of the configuration keep out now."""
    name, first = module.name, module.skips[0]
    sentence = f"{name} is not loaded: {'; '.join(skip.why() for skip in module.skips)}"
    lines = tuple((skip.at, skip.rule) for skip in module.skips if skip.at)
    given = tuple(remedies.past_skips(name, module.skips))
    return Answer(name, "module", first.reason, sentence, name, remedies=given, lines=lines)


def _refused(module: Module, entry: Entry, records: Records) -> Answer:
    """Return the answer for a module that is not there, by the last record about it and what holds now."""
    answer = _recorded(module.name, entry, records, module)
    if _holds(entry, module):
        return answer
    if module.skips:
        return _skipped(module)
    by = f" by {entry.at}, which no longer says so" if entry.at else ", which no longer is so"
    if entry.rule == SEALED:
        by = " by the seal, which is lifted since then"
    sentence = f"{module.name} is not loaded; the last request was refused{by}"
    return replace(answer, code="not_asked", sentence=sentence, remedies=(remedies.to_load(module.name),))


def _holds(entry: Entry, module: Module) -> bool:
    """Return whether what a record says is true of the next request, too, as far as that is known."""
    match entry.result:
        case "blacklisted" | "blocked":
            return any(skip.at == entry.at and skip.reason == entry.result for skip in module.skips)
        case "missing":
            return not module.has_file or not module.is_known
        case "denied" if entry.rule == SEALED:
            return module.is_sealed
        case "denied" if entry.at:
            return (entry.at, entry.rule) in module.rules
    return True


def _unrecorded(name: str, kind: Kind, records: Records) -> Answer:
    boot = "that boot" if records.is_past else "this boot"
    why = f"the journal of {boot} has no record of {name}" if records.is_readable else f"{name}: {_UNREADABLE}"
    return Answer(name, kind, "unknown", why)


def _recorded(name: str, entry: Entry, records: Records, module: Module | None = None) -> Answer:
    """Return the answer that a record is. module: what is known now of it; None: nothing."""
    given = _remedies_of(entry, module, records) if module and not records.is_past else ()
    return Answer(
        name, "module", entry.result, entry.message, name, entry, records.start_of(entry), needed_by(name, entry),
        remedies=given,
    )  # fmt: skip


def _remedies_of(entry: Entry, module: Module, records: Records) -> tuple[Remedy, ...]:
    """Return what changes the result of the next request; nothing of lines that have changed since then."""
    if module.state in ("live", "builtin") or not _holds(entry, module):
        return ()
    match entry.result:
        case "blacklisted" | "blocked":
            return tuple(remedies.past_skips(module.name, module.skips))
        case "denied":
            broken = (remedies.BROKEN_RULES,) if module.has_broken_rules and entry.rule != SEALED else ()
            return (*broken, *remedies.of_denial(entry.alias, entry.at, entry.rule, entry.requester))
        case "not_attempted":
            for each in records.beside(entry):
                if found := tuple(remedies.after(each.result, each.module, each.errno)):
                    return found
    return tuple(remedies.after(entry.result, module.name, entry.errno))


def needed_by(name: str, entry: Entry) -> tuple[tuple[str, str], ...]:
    """Return the way from a module to the requested one: each module on it, and why it came.

    Records of an earlier version do not have it.
    """
    reasons = dict(entry.reasons)
    found: list[tuple[str, str]] = []
    while name in reasons and name not in dict(found):
        found.append((name, reasons[name]))
        name = reasons[name].partition(" of ")[2].partition(" in ")[0]
    return tuple(found)


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_device(device: Device, records: Records) -> list[Answer]:
    """Return why a device has its driver, or none; an answer for each of its modules, at least one."""
    own = _decisions_of(device, records)
    if records.is_past or not device.is_there:
        return [_device_record(device, entry, records) for entry in own] or [_silent(device, records)]
    if device.driver:
        return [_driven(device, own, records)]
    if device.override:
        sentence = f"{device.shown} has no driver: driver_override is {device.override!r}"
        given = tuple(remedies.of_override(f"/sys{device.path}", device.override, device.bus))
        return [Answer(device.shown, "device", "kept_out", sentence, remedies=given)]
    answers = [_unbound(module, own, records) for module in device.modules]
    return [_for_device(device, answer) for answer in answers] or [_silent(device, records)]


def _decisions_of(device: Device, records: Records) -> list[Entry]:
    """Return the decisions for a device, the last of each module.

    Those that name it and one of its aliases, as another device may have been there; else those for an alias of it.
    Without an alias of its own, those for what is below it.
    """
    with_devices = [entry for entry in records.decisions if entry.devices]
    named = [entry for entry in with_devices if device.path in entry.devices]
    if device.aliases:
        fitting = [entry for entry in with_devices if entry.alias in device.aliases]
        chosen = [entry for entry in fitting if device.path in entry.devices] or fitting
    else:
        below = [entry for entry in with_devices if any(x.startswith(f"{device.path}/") for x in entry.devices)]
        chosen = named or below
    return list({entry.module: entry for entry in chosen}.values())


def _unbound(module: Module, own: Sequence[Entry], records: Records) -> Answer:
    """Return why a device has no driver although a module matches."""
    if module.state in ("live", "builtin"):
        answer = of_module(module, records)
        sentence = f"{answer.sentence}, but does not bind to it; the kernel's messages may say why"
        return replace(answer, code="unbound", sentence=sentence, remedies=(_SEE_KERNEL,))
    mine = next((entry for entry in own if entry.module == module.name and entry.result in _DECIDED), None)
    if mine and not module.state:
        return _refused(module, mine, records)
    return of_module(module, records)


def _driven(device: Device, own: Sequence[Entry], records: Records) -> Answer:
    """Return the answer for a device that has a driver."""
    name = device.driver_module
    head = f"{device.shown} is driven by {device.driver}"
    if not name:
        return Answer(device.shown, "device", "builtin", f"{head}, which is part of the kernel image")
    load = next((entry for entry in reversed(own) if name in entry.changed and entry.result != "removed"), None)
    if load:
        sentence = f"{head}; {name} was loaded for it" if name != device.driver else f"{head}, which was loaded for it"
        return Answer(
            device.shown, "device", "bound", sentence, name, load, records.start_of(load), needed_by(name, load)
        )
    module = next((each for each in device.modules if each.name == name), Module(name, "live"))
    answer = of_module(module, records)
    return replace(
        answer, subject=device.shown, kind="device", code="bound", sentence=f"{head}; {answer.sentence}", remedies=()
    )


def _for_device(device: Device, answer: Answer) -> Answer:
    sentence = f"{device.shown} has no driver: {answer.sentence}"
    return replace(answer, subject=device.shown, kind="device", sentence=sentence)


def _device_record(device: Device, entry: Entry, records: Records) -> Answer:
    answer = _recorded(entry.module, entry, records)
    gone = "" if device.is_there or records.is_past else "; the device is not there any more"
    return replace(answer, subject=device.shown, kind="device", sentence=answer.sentence + gone)


def _silent(device: Device, records: Records) -> Answer:
    """Return the answer for a device without a record."""
    if records.is_past or (not device.is_there and not records.is_readable):
        return _unrecorded(device.shown, "device", records)
    if not device.is_there:
        return Answer(device.shown, "device", "unknown", f"no device {device.shown}, and no record of one in this boot")
    if not device.aliases:
        return Answer(device.shown, "device", "nomatch", f"{device.shown} asks for no module: it has no modalias")
    sentence = f"{device.shown} has no driver: no module matches {' or '.join(device.aliases)}"
    return Answer(device.shown, "device", "nomatch", sentence, remedies=tuple(remedies.after("nomatch", "")))


# ── processes and aliases ────────────────────────────────────────────────────────────────────────────────────────────


def of_process(pid: int, name: str, comm: str, records: Records, look: Callable[[str], Module]) -> list[Answer]:
    """Return what a process made the kernel ask for.

    name: that it must have had; empty: any. comm: of the process that has the number now; empty: there is none.
    look: returns what is known of a module.
    """
    asked = [entry for entry in records.decisions if entry.requester and entry.requester.pid == pid]
    own = [entry for entry in asked if entry.requester and name in ("", entry.requester.comm)]
    subject = f"{name or comm}[{pid}]" if name or comm else f"process {pid}"
    if own:
        return [_of_request(subject, "process", entry, records, look) for entry in own]
    if not records.is_readable:
        return [_unrecorded(subject, "process", records)]
    there = "" if comm or records.is_past else "there is none now, and "
    boot = "that boot" if records.is_past else "this boot"
    return [Answer(subject, "process", "unknown", f"{subject}: {there}no request of it is recorded in {boot}")]


def of_alias(alias: str, records: Records, look: Callable[[str], Module]) -> list[Answer]:
    """Return the last decisions about an alias, one for each module. look: returns what is known of a module."""
    last = {entry.module: entry for entry in records.decisions if entry.alias == alias}
    return [_of_request(alias, "alias", entry, records, look) for entry in last.values()]


def _of_request(subject: str, kind: Kind, entry: Entry, records: Records, look: Callable[[str], Module]) -> Answer:
    """Return what was decided on a request, and what would change the next one."""
    module = look(entry.module) if entry.module and not records.is_past else None
    answer = _recorded(entry.module, entry, records, module)
    if not entry.module and not records.is_past:
        answer = replace(answer, remedies=tuple(remedies.after(entry.result, "")))
    return replace(answer, subject=subject, kind=kind, needed=())


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_object(answer: Answer) -> dict[str, object]:
    """Return an answer as JSON values, the format of `kmodd why --json` (docs/JOURNAL.md)."""
    start = answer.start
    lines = answer.lines or ([(answer.entry.at, answer.entry.rule)] if answer.entry and answer.entry.at else ())
    return {
        "subject": answer.subject,
        "kind": answer.kind,
        "answer": answer.code,
        "sentence": answer.sentence,
        "module": answer.module or None,
        "record": as_object(answer.entry) if answer.entry else None,
        "needed_by": [{"module": name, "reason": reason} for name, reason in answer.needed],
        "kmodd": {"version": start.version or None, "pid": start.pid} if start else None,
        "suspects": list(answer.suspects),
        "lines": [{"file": at.file, "line": at.line, "rule": rule or None} for at, rule in lines],
        "notes": list(answer.notes),
        "remedies": [{"text": each.text, "command": each.command or None} for each in answer.remedies],
    }
