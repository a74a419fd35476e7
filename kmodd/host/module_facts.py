"""The facts that depmod needs of all module files: from its cache if a file is unchanged, else from the file."""

from __future__ import annotations

import os
import threading
import time

from kmodd.errors import ParseError
from kmodd.host.atomic_files import write_aside
from kmodd.host.module_reader import is_packed, read_module
from kmodd.host.module_search import Seen
from kmodd.host.regular_files import read_file
from kmodd.modfile import depmod_cache, depmod_graph, elf
from kmodd.modfile.depmod_cache import Entry
from kmodd.modfile.elf import ElfError, Facts, Image, Versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Progress = Callable[[int, int], None]
    """Called with the number of files started and their total."""

FRESH_NS = 50_000_000
"""A file changed within this time before it was read is not cached: timestamps have a granularity of 10 ms, so another
change might not show.
"""
_MAX_THREADS = 8


def cached(path: str, directory: str) -> tuple[dict[str, Entry], str]:
    """Read the cache file at `path`; return its entries for a module directory by path, and why it is invalid.

    The reason is empty if the cache is valid or missing.
    """
    data = read_file(path)
    if data is None:
        return {}, ""
    try:
        return depmod_cache.load(data, directory), ""
    except ParseError as error:
        return {}, str(error)


def write(path: str, directory: str, entries: Sequence[Entry]) -> None:
    """Write the cache file. Raises OSError."""
    write_aside(path, depmod_cache.dump(directory, entries))


def entries(seen: Sequence[Seen], known: dict[str, Entry], root: str, progress: Progress) -> tuple[list[Entry], int]:
    """Return the facts of each file in `seen`, and how many were not in the cache `known` and had to be read.

    root: prefix of each path that is opened.
    """
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
    """Return the entries that can be cached: read without a problem, and not changed just before."""
    newest = time.time_ns() - FRESH_NS
    return [entry for entry in entries if entry.stamp[3] < newest and not entry.facts.problem]


def read_facts(path: str) -> Facts:
    """Return what depmod needs of one file. Raises nothing: Facts.problem is the errno if it cannot be read."""
    try:
        return elf.facts(Image(read_module(path)))
    except ElfError as error:
        return Facts(problem=error.number)
    except OSError as error:
        return Facts(problem=error.errno or 5)


def read_versions(path: str) -> Versions:
    """Return the symbol versions that `depmod -e` needs; empty if the file cannot be read."""
    try:
        return Image(read_module(path)).version_facts()
    except (ElfError, OSError):
        return Versions()


def _in_threads(work: Callable[[int], None], places: Sequence[int], packed: bool, progress: Progress) -> None:
    """Call `work` for all places; on all processors if files are packed, as unpacking releases the interpreter lock."""
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
