"""The facts of all modules: out of the cache where a file looks as it did, else out of the file."""

from __future__ import annotations

import os
import threading
import time

from kmodd.errors import ParseError
from kmodd.host.atomic_files import read_if_there, write_aside
from kmodd.host.module_reader import is_packed, read_module
from kmodd.host.module_search import Seen
from kmodd.modfile import depmod_cache, depmod_graph, elf
from kmodd.modfile.depmod_cache import Entry
from kmodd.modfile.elf import ElfError, Facts, Image, Versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Progress = Callable[[int, int], None]
    """Told now and then how many of how many files are read."""

_FRESH_NS = 50_000_000
"""A file that changed so shortly before it was read may change again and not show it: its clock ticks in 10 ms."""
_MAX_THREADS = 8


def cached(path: str, directory: str) -> tuple[dict[str, Entry], str]:
    """What the cache file at `path` holds for a module directory, and why it holds nothing, if it should."""
    data = read_if_there(path)
    if data is None:
        return {}, ""
    try:
        return depmod_cache.load(data, directory), ""
    except ParseError as error:
        return {}, str(error)


def write(path: str, directory: str, entries: Sequence[Entry]) -> None:
    """Keep the entries for the next time. Raises OSError."""
    write_aside(path, depmod_cache.dump(directory, entries))


def entries(seen: Sequence[Seen], known: dict[str, Entry], root: str, progress: Progress) -> tuple[list[Entry], int]:
    """The facts of each file, and how many had to be read."""
    found: list[Entry | None] = [known.get(each.member.path) for each in seen]
    stale = []
    for place, (each, entry) in enumerate(zip(seen, found, strict=True)):
        if entry is None or entry.stamp != each.stamp:
            stale.append(place)

    def read(place: int) -> None:
        each = seen[place]
        facts = read_facts(root + each.member.path)
        found[place] = Entry(each.member.path, each.stamp, facts, depmod_graph.export_buckets(facts))

    _in_threads(read, stale, any(is_packed(seen[place].member.path) for place in stale), progress)
    return [entry for entry in found if entry is not None], len(stale)


def keepable(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that may be believed the next time."""
    newest = time.time_ns() - _FRESH_NS
    return [entry for entry in entries if entry.stamp[3] < newest and not entry.facts.problem]


def read_facts(path: str) -> Facts:
    """What depmod keeps of one file. Raises nothing: a file that cannot be read has a problem."""
    try:
        return elf.facts(Image(read_module(path)))
    except ElfError as error:
        return Facts(problem=error.number)
    except OSError as error:
        return Facts(problem=error.errno or 5)


def read_versions(path: str) -> Versions:
    """What `depmod -e` wants beyond it; of a file that cannot be read, nothing."""
    try:
        return Image(read_module(path)).version_facts()
    except (ElfError, OSError):
        return Versions()


def _in_threads(work: Callable[[int], None], places: Sequence[int], packed: bool, progress: Progress) -> None:
    """Do the work for all places; where files are to be unpacked, which needs no interpreter, on all processors."""
    waiting: Iterator[int] = iter(places)
    lock = threading.Lock()
    done = 0

    def run(is_main: bool) -> None:
        nonlocal done
        while True:
            with lock:
                place = next(waiting, None)
                if place is None:
                    return
                done += 1
            work(place)
            if is_main:
                progress(done, len(places))

    count = min(len(os.sched_getaffinity(0)), _MAX_THREADS, len(places)) if packed else 1
    others = [threading.Thread(target=run, args=(False,)) for _ in range(count - 1)]
    for thread in others:
        thread.start()
    run(True)
    for thread in others:
        thread.join()
