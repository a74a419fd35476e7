"""Answer why a module, device or process is as it is, from the records of one boot: `Answer`.

The records say what happened; what the kernel has now, and what a plan would skip, say why a module is not there.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.errors import Where
from kmodd.planning.history import Entry, Filter, as_object, subject_of_entry
from kmodd.planning.remedies import remedies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from kmodd.planning.plan import Skip

    Kind = Literal["module", "device", "process", "alias"]
else:
    Kind = str

_NO_REMOVAL = ("in_use", "absent", "not_removed")
"""Results of removals that changed nothing."""
_DECIDED = (
    "removed",
    "denied",
    "blocked",
    "blacklisted",
    "missing",
    "failed",
    "crashed",
    "stuck",
    "not_attempted",
    "nomatch",
)
"""Results after which the kernel does not have the module."""


@dataclass(frozen=True, slots=True)
class Module:
    """What is known of a module now, beside the records."""

    name: str
    state: str = ""
    """`live`, `coming`, `going`, `builtin`; empty: the kernel does not have it."""
    is_known: bool = True
    """The module tree has it."""
    skip: Skip | None = None
    """Why a request for it would not load it; None: it would."""
    is_kept_out: bool = False
    """An administrator removed it while its device was there."""
    suspects: tuple[str, ...] = ()
    """Who can have loaded it before kmodd."""
    given: str = ""
    """How it was spelled."""
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
    remedies: tuple[str, ...] = field(default_factory=tuple)
    at: Where | None = None
    """The line that decides now, if no record has it."""


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

    def start_of(self, entry: Entry) -> Entry | None:
        """Return the start of the daemon that wrote an entry; None: a tool wrote it, or it is not recorded."""
        mine = [each for each in self.starts if (each.pid, each.boot) == (entry.pid, entry.boot)]
        return mine[-1] if mine else None


# ── modules ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_module(module: Module, records: Records) -> Answer:
    """Return why a module is loaded, or why it is not."""
    entries = [entry for entry in records.of_module(module.name) if entry.result not in _NO_REMOVAL]
    changes = [entry for entry in entries if module.name in entry.changed]
    if records.is_past:
        return _recorded(module.name, entries[-1], records) if entries else _unrecorded(module.name)
    if module.state == "builtin":
        return Answer(module.name, "module", "builtin", f"{module.name} is part of the kernel image", module.name)
    if module.state == "going":
        return Answer(module.name, "module", "going", f"{module.name} is being removed", module.name)
    if module.state:
        if changes and changes[-1].result != "removed":
            return _loaded(module, changes[-1], records)
        if module.state == "coming" and entries:
            return _recorded(module.name, entries[-1], records)
        return _not_by_kmodd(module, records)
    return _absent(module, entries, records)


def _loaded(module: Module, entry: Entry, records: Records) -> Answer:
    state = "loaded" if module.state == "live" else "being loaded"
    needed = needed_by(module.name, entry)
    whom = f" for {subject}" if (subject := subject_of_entry(entry)) else ""
    how = f", as a {needed[0][1]}," if needed else ""
    sentence = f"{module.name} is {state}{how}{whom}".rstrip(",")
    return Answer(module.name, "module", "loaded", sentence, module.name, entry, records.start_of(entry), needed)


def _not_by_kmodd(module: Module, records: Records) -> Answer:
    """Return the answer for a module that is in the kernel, and that no record says kmodd has loaded."""
    name, starts = module.name, records.starts
    before = next((start for start in starts if name in start.loaded_before), None)
    if before:
        code, sentence = "before", f"{name} was loaded before kmodd started"
    elif starts and any(start.loaded_before for start in starts):
        code, sentence = "elsewhere", f"{name} was loaded after kmodd started, by another program: insmod, or kmod's"
    elif records.is_readable:
        code, sentence = "before", f"{name} is loaded; the journal of this boot has no record of it"
    else:
        code, sentence = "unknown", f"{name} is loaded; for what, the journal says, which cannot be read"
    suspects = module.suspects if code == "before" and not records.is_past else ()
    return Answer(name, "module", code, sentence, name, None, before, suspects=suspects)


def _absent(module: Module, entries: Sequence[Entry], records: Records) -> Answer:
    """Return the answer for a module that the kernel does not have."""
    name = module.name
    last = entries[-1] if entries else None
    if last and last.result in _DECIDED and (last.result == "removed" or name not in last.changed):
        return _recorded(name, last, records)
    if module.is_kept_out:
        kept = f"{name} is not loaded: it was removed while its device was there, and is not loaded for it again"
        return Answer(name, "module", "kept_out", kept, name, last, remedies=remedies("kept_out", name))
    if last and (name in last.changed or last.result == "live"):
        gone = f"{name} was loaded, and was removed by another program: rmmod, or kmod's modprobe -r"
        start = records.start_of(last)
        return Answer(
            name, "module", "gone", gone, name, last, start, needed_by(name, last), remedies=remedies("removed", name)
        )
    if not module.is_known and not module.skip:
        sentence = f"no module, alias or device {module.given or name!r} is known{module.similar}"
        return Answer(name, "module", "unknown", sentence)
    if module.skip:
        return _skipped(name, module.skip)
    asked = "nothing has asked for it in this boot"
    if not records.is_readable:
        asked = "whether it was asked for, the journal says, which cannot be read"
    sentence = f"{name} is not loaded: {asked}"
    return Answer(name, "module", "not_asked", sentence, name, remedies=remedies("not_asked", name))


def _skipped(name: str, skip: Skip) -> Answer:
    sentence = f"{name} is not loaded: {skip.why()}"
    if skip.reason == "no_match":
        sentence = f"no module matches {name}"
    given = remedies(skip.reason, skip.module, "", skip.at, skip.rule)
    return Answer(name, "module", skip.reason, sentence, name, remedies=given, at=skip.at)


def _unrecorded(name: str) -> Answer:
    return Answer(name, "module", "unknown", f"the journal of that boot has no record of {name}")


def _recorded(name: str, entry: Entry, records: Records) -> Answer:
    """Return the answer that the last record about a module is."""
    given: tuple[str, ...] = ()
    if not records.is_past:
        module = entry.module or name
        given = remedies(
            entry.result, module, entry.alias, entry.at, entry.rule, entry.errno, entry.requester
        )  # fmt: skip
    return Answer(
        name, "module", entry.result, entry.message, name, entry, records.start_of(entry), needed_by(name, entry),
        remedies=given,
    )  # fmt: skip


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
        path = f"/sys{device.path}/driver_override"
        return [Answer(device.shown, "device", "kept_out", sentence, remedies=(f"clear it: `echo > {path}`",))]
    if own:
        return [_device_record(device, own[-1], records)]
    answers = [of_module(module, records) for module in device.modules]
    return [_for_device(device, answer) for answer in answers] or [_silent(device, records)]


def _decisions_of(device: Device, records: Records) -> list[Entry]:
    """Return the decisions for a device: those that name it, else those for an alias of it; the last of each module."""
    named = [entry for entry in records.decisions if device.path in entry.devices]
    shared = [entry for entry in records.decisions if entry.devices and entry.alias in device.aliases]
    below = [entry for entry in records.decisions if any(x.startswith(f"{device.path}/") for x in entry.devices)]
    last = {entry.module: entry for entry in named or shared or below}
    return list(last.values())


def _driven(device: Device, own: Sequence[Entry], records: Records) -> Answer:
    """Return the answer for a device that has a driver."""
    name = device.driver_module
    head = f"{device.shown} is driven by {device.driver}"
    if not name:
        return Answer(device.shown, "device", "builtin", f"{head}, which is part of the kernel image")
    load = next((entry for entry in reversed(own) if name in entry.changed), None)
    if load:
        sentence = f"{head}; {name} was loaded for it" if name != device.driver else f"{head}, which was loaded for it"
        return Answer(
            device.shown, "device", "bound", sentence, name, load, records.start_of(load), needed_by(name, load)
        )
    module = next((each for each in device.modules if each.name == name), Module(name, "live"))
    answer = of_module(module, records)
    return Answer(
        device.shown, "device", "bound", f"{head}; {answer.sentence}", name, answer.entry, answer.start, answer.needed,
        answer.suspects,
    )  # fmt: skip


def _for_device(device: Device, answer: Answer) -> Answer:
    sentence = f"{device.shown} has no driver: {answer.sentence}"
    return Answer(
        device.shown, "device", answer.code, sentence, answer.module, answer.entry, answer.start, answer.needed,
        answer.suspects, answer.remedies, answer.at,
    )  # fmt: skip


def _device_record(device: Device, entry: Entry, records: Records) -> Answer:
    answer = _recorded(entry.module, entry, records)
    gone = "" if device.is_there or records.is_past else "; the device is not there any more"
    return Answer(
        device.shown, "device", answer.code, answer.sentence + gone, entry.module, entry, answer.start, answer.needed,
        remedies=answer.remedies,
    )  # fmt: skip


def _silent(device: Device, records: Records) -> Answer:
    """Return the answer for a device without a record."""
    if records.is_past:
        return Answer(device.shown, "device", "unknown", f"the journal of that boot has no record of {device.shown}")
    if not device.is_there:
        return Answer(device.shown, "device", "unknown", f"no device {device.shown}, and no record of one in this boot")
    if not device.aliases:
        return Answer(device.shown, "device", "nomatch", f"{device.shown} asks for no module: it has no modalias")
    sentence = f"{device.shown} has no driver: no module matches {' or '.join(device.aliases)}"
    return Answer(device.shown, "device", "nomatch", sentence, remedies=remedies("nomatch", "", device.aliases[0]))


# ── processes and aliases ────────────────────────────────────────────────────────────────────────────────────────────


def of_process(pid: int, comm: str, records: Records) -> list[Answer]:
    """Return what a process made the kernel ask for. comm: its name; empty: it has ended."""
    own = [entry for entry in records.decisions if entry.requester and entry.requester.pid == pid]
    subject = f"{comm}[{pid}]" if comm else f"process {pid}"
    if own:
        return [
            _of_request(f"{entry.requester.comm}[{pid}]" if entry.requester else subject, entry, records)
            for entry in own
        ]
    there = "" if comm or records.is_past else "there is none now, and "
    boot = "that boot" if records.is_past else "this boot"
    return [Answer(subject, "process", "unknown", f"{subject}: {there}no request of it is recorded in {boot}")]


def of_alias(alias: str, records: Records) -> list[Answer]:
    """Return the last decisions about an alias, one for each module."""
    last = {entry.module: entry for entry in records.decisions if entry.alias == alias}
    return [_of_request(alias, entry, records, "alias") for entry in last.values()]


def _of_request(subject: str, entry: Entry, records: Records, kind: Kind = "process") -> Answer:
    answer = _recorded(entry.module, entry, records)
    return Answer(
        subject, kind, answer.code, answer.sentence, entry.module, entry, answer.start, (), (), answer.remedies
    )


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_object(answer: Answer) -> dict[str, object]:
    """Return an answer as JSON values, the format of `kmodd why --json` (docs/JOURNAL.md)."""
    start = answer.start
    at = answer.at or (answer.entry.at if answer.entry else None)
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
        "file": at.file if at else None,
        "line": at.line if at else None,
        "remedies": list(answer.remedies),
    }
