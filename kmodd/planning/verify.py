"""Judge a loaded module by its file, the journal and the kernel's trace, for `kmodd verify`: `judge`."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import assert_never
from kmodd.names import module_name
from kmodd.planning.why import Module, Records, of_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from kmodd.kernel.load_trace import ModuleLoad

    Code = Literal[
        "unreadable", "hidden", "no-file", "build-id", "srcversion", "replaced", "other-file", "not-kmodd", "owner",
        "unrecorded", "link", "forced", "signature", "taint",
    ]  # fmt: skip
    Weight = Literal["finding", "information", "detail"]
else:
    Code = Weight = str

LOADER = "kmodd-loader"
"""Name of the threads of kmodd's loaders (TASK_COMM in proc_pid_comm(5))."""

_STARTING = 60_000_000
"""Time (µs) before the first start of kmodd on record that its trace may begin at the most."""

_SETTLE = 2_000_000
"""Age of a load by a loader of kmodd (µs) from which the record of its request is missed."""

LETTERS = {
    "P": "proprietary", "F": "loaded by force", "C": "staging", "O": "out of the kernel's tree", "E": "unsigned",
    "X": "supported by the distributor", "K": "live patch", "N": "of a test", "T": "built with randomized structures",
}  # fmt: skip
"""Letters of /sys/module/NAME/taint (Documentation/admin-guide/tainted-kernels.rst)."""


# ── what is known ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Live:
    """A module as the kernel shows it."""

    name: str
    build_id: bytes = b""
    """Empty: the module has none, or the kernel does not show it."""
    srcversion: str = ""
    taint: str = ""
    """Letters of its taint file."""
    is_listed: bool = True
    """It is in /proc/modules."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What cannot be read of a module."""

    name: str
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class File:
    """The file of a module in the tree."""

    path: str
    changed: int
    """When content or owner changed last (st_ctime, µs since 1970): a package sets st_mtime to that of its build."""
    born: int = 0
    """When it was made (stx_btime, µs since 1970); 0: the file system does not tell."""
    build_id: bytes = b""
    srcversion: str = ""
    signer: str = ""
    """Empty: it is not signed, or names none."""
    is_intree: bool = False
    foreign: str = ""
    """Why it is not root's alone, as a predicate; empty: it is."""
    target: str = ""
    """Where it is, if it is a link that leads out of the tree."""
    is_read: bool = True
    """False: it was not opened, as its file system may not answer; the facts of its content are not known."""

    @property
    def came(self) -> int:
        """When it came into the tree, as far as is known (µs since 1970)."""
        return self.born or self.changed


@dataclass(frozen=True, slots=True)
class NoFile:
    """The tree has no file of a module."""

    path: str = ""
    """The one that modules.dep names; empty: none."""


OnDisk = File | NoFile | Unreadable


@dataclass(frozen=True, slots=True)
class ByKmodd:
    """The journal has a record of the load."""

    since: int
    """When it began (µs since 1970)."""
    written: int
    """When the record was written (CLOCK_MONOTONIC, µs)."""
    program: str
    pid: int
    path: str = ""
    """The file that was loaded; empty: not recorded, as for a dependency."""
    build_id: bytes = b""
    """Of the code that was loaded; empty: not recorded."""


@dataclass(frozen=True, slots=True)
class Before:
    """The module was there when kmodd started."""

    until: int
    """When kmodd had started (µs since 1970)."""
    written: int
    """As that of `ByKmodd`."""


@dataclass(frozen=True, slots=True)
class ByAnother:
    """The module came after kmodd had started, and the journal has no record of its load."""


@dataclass(frozen=True, slots=True)
class NotRecorded:
    """A thread with the name of kmodd's loaders, or one that is not known, has loaded it, and there is no record."""


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """The journal does not say what was there when kmodd started."""


History = ByKmodd | Before | ByAnother | NotRecorded | Unrecorded


def history_of(name: str, records: Records) -> History:
    """Return how the records of this boot say that a module came."""
    if records.is_past:
        return Unrecorded()
    answer = of_module(Module(name, "live", is_known=True), records)
    if answer.code == "before" and answer.start:
        return Before(answer.start.realtime, answer.start.monotonic)
    if answer.code == "elsewhere":
        return ByAnother()
    entry = answer.entry
    if entry is None:
        return Unrecorded()
    path = entry.path if module_name(entry.module) == name else ""
    build_id = _bytes_of(dict(entry.build_ids).get(name, ""))
    return ByKmodd(entry.realtime - entry.duration, entry.monotonic, entry.comm, entry.pid, path, build_id)


def _bytes_of(digits: str) -> bytes:
    """Return the bytes of hexadecimal digits; empty: it is something else."""
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def of_gone(name: str, load: ModuleLoad | None, records: Records, since: int) -> Result | None:
    """Return what is to be said of a module that was loaded after `since`, and is gone; None: kmodd has loaded it.

    since: CLOCK_MONOTONIC, µs. load: as of `judge`.
    """
    if load and load.monotonic < since:
        load = None
    recorded = (entry for entry in records.of_module(name) if name in entry.changed and entry.result != "removed")
    if (load and load.comm == LOADER) or any(entry.monotonic >= since for entry in recorded):
        return None
    return Result("not-kmodd", f"was loaded {_by(load)}, and not by kmodd, and was removed again")


# ── what is found ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that is said of a module."""

    code: Code
    text: str
    weight: Weight = "finding"


@dataclass(frozen=True, slots=True)
class Kernel:
    """What all modules of a machine say together."""

    shows_build_ids: bool = True
    """A module without one has none; else the kernel shows none (without CONFIG_KALLSYMS)."""
    trusted: frozenset[str] = frozenset()
    """Signers of modules that the kernel did not take as unsigned."""


def kernel_of(modules: list[tuple[Live, OnDisk]]) -> Kernel:
    """Return what these modules say together."""
    signed = (disk.signer for live, disk in modules if isinstance(disk, File) and "E" not in live.taint)
    return Kernel(any(live.build_id for live, _ in modules), frozenset(signer for signer in signed if signer))


def is_compared(live: Live, disk: OnDisk, kernel: Kernel) -> bool:
    """Return whether a module has something by which its code can be compared with that of a file."""
    if not isinstance(disk, File) or not disk.is_read:
        return True  # which is said, or may not be known
    return kernel.shows_build_ids or bool(live.srcversion or disk.srcversion)


def judge(
    live: Live, disk: OnDisk, history: History, load: ModuleLoad | None, kernel: Kernel, now: int, when: str = ""
) -> tuple[Result, ...]:
    """Return what is to be said of a module.

    load: its last load in the kernel's trace; None: the trace does not have it. now: CLOCK_MONOTONIC, µs. when: time
    at which the file came into the tree, for a message.
    """
    history = corrected(history, load)
    return (*_of_kernel(live), *_of_disk(live, disk, history, kernel, when), *_of_history(disk, history, load, now))


def corrected(history: History, load: ModuleLoad | None) -> History:
    """Return the history as the trace has it, which knows of later loads, and of those before the first record."""
    if load is None:
        return history
    is_known = load.comm not in ("", LOADER)
    match history:
        case ByKmodd() | Before() if load.monotonic > history.written:
            return ByAnother() if is_known else NotRecorded()
        case Before() if is_known and load.monotonic < history.written - _STARTING:
            return ByAnother()  # only an earlier start, which the journal has lost, can have begun the trace
        case ByAnother() if load.comm == LOADER:
            return NotRecorded()
        case Unrecorded() if is_known:
            return ByAnother()
        case _:
            return history


def of_record(history: History, live: Live | Unreadable, kernel: Kernel) -> History:
    """Return the history as the code in the kernel has it: what kmodd has loaded is gone where that is other code."""
    if isinstance(history, ByKmodd) and history.build_id and isinstance(live, Live) and kernel.shows_build_ids:
        return history if live.build_id == history.build_id else ByAnother()
    return history


def _of_kernel(live: Live) -> Iterator[Result]:
    if not live.is_listed:
        yield Result("hidden", "is in /sys/module, and /proc/modules does not list it: it hides itself")
    if "F" in live.taint:
        yield Result("forced", "was loaded by force: its version or format is not the kernel's (taint F)")
    if live.taint:
        meaning = ", ".join(f"{LETTERS.get(letter, 'not known to kmodd')} ({letter})" for letter in live.taint)
        yield Result("taint", f"taints the kernel: {meaning}", "detail")


def _of_disk(live: Live, disk: OnDisk, history: History, kernel: Kernel, when: str) -> Iterator[Result]:
    match disk:
        case Unreadable():
            yield Result("unreadable", f"Failed to read {disk.path}: {disk.why}, so it is not compared")
        case NoFile():
            missing = f"its file {disk.path} is missing" if disk.path else "no file in the module tree is of this name"
            yield Result("no-file", f"{missing}: it was loaded from elsewhere, as by insmod FILE, or its file is gone")
        case File():
            yield from _of_owner(disk)
            if not disk.is_read:
                return
            code = _of_code(live, disk, history, kernel, when)
            if code:
                yield code
            if code is None or code.weight == "finding":
                yield from _of_signature(live, disk, kernel)
        case _:
            assert_never(disk)


def _of_owner(file: File) -> Iterator[Result]:
    if file.foreign:
        yield Result("owner", f"its file {file.path} {file.foreign}")
    if file.target:
        yield Result("link", f"its file {file.path} is a link to {file.target}, out of the module tree", "information")


def _of_code(live: Live, file: File, history: History, kernel: Kernel, when: str) -> Result | None:
    """Return that the code in the kernel is not that of the file; None: it is, as far as can be told."""
    code: Code
    if kernel.shows_build_ids and live.build_id != file.build_id:
        code, loaded, there = "build-id", live.build_id.hex(), file.build_id.hex()
    elif live.srcversion != file.srcversion:
        code, loaded, there = "srcversion", live.srcversion, file.srcversion
    else:
        return None
    differ = f"{code} {loaded or 'none'} in the kernel, {there or 'none'} in the file"
    match history:
        case ByKmodd(since=load, build_id=recorded, path=path) if (
            recorded and recorded == live.build_id and file.came <= load and (path or file.changed > load)
        ):
            text = f"its file {file.path} is another one since the load: the kernel keeps the code of that ({differ})"
            return Result("replaced", text, "information")
        case ByKmodd(since=load) | Before(until=load) if file.came > load:
            is_same = live.srcversion and live.srcversion == file.srcversion
            what = ", by a build of the same source" if is_same else ""
            text = f"its file {file.path} was replaced at {when}, after the load{what}"
            return Result("replaced", f"{text}: the kernel keeps the earlier code ({differ})", "information")
        case Before():
            why = "; it came before kmodd started: an initrd may have another build (update-initramfs -u)"
        case ByKmodd(since=load) if file.changed > load:
            why = "; the file was written in place or touched after the load, but it is older, so it was not replaced"
        case _:
            why = ""
    return Result(code, f"its code is not that of {file.path}: {differ}{why}")


def _of_signature(live: Live, file: File, kernel: Kernel) -> Iterator[Result]:
    """Yield where the kernel saw another file than the one in the tree, by the taint alone."""
    if "E" in live.taint and file.signer in kernel.trusted:
        text = f"{file.path} is signed by {file.signer}, whom the kernel trusts, but what was loaded was not (taint E)"
        yield Result("signature", text)
    if "O" in live.taint and file.is_intree:
        yield Result("taint", f"{file.path} is of the kernel's own tree, but what was loaded was not (taint O)")


def _of_history(disk: OnDisk, history: History, load: ModuleLoad | None, now: int) -> Iterator[Result]:
    match history:
        case ByAnother():
            yield Result("not-kmodd", f"was loaded after kmodd started, {_by(load)}, and not by kmodd")
        case NotRecorded() if load and now - load.monotonic > _SETTLE:
            who = f"a thread named {load.comm}" if load.comm else "a thread whose name is not known"
            text = f"was loaded by {who} [{load.pid}], and the journal has no record of this load by kmodd"
            yield Result("unrecorded", text, "information")
        case ByKmodd() if history.path and (not isinstance(disk, File) or history.path != disk.path):
            place = f", not from {disk.path}" if isinstance(disk, File) else ""
            yield Result("other-file", f"was loaded from {history.path}{place}, by {history.program}[{history.pid}]")
        case _:
            pass


def _by(load: ModuleLoad | None) -> str:
    return f"by {load.comm}[{load.pid}]" if load and load.comm else "by another program, which is not known"
