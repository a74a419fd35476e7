"""`depmod`: output and exit status of kmod 34.2; docs/COMPAT.md lists differences.

Either all index files are replaced or none. Module files that have not changed since the last run are not read again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

from kmodd.cli.kmod.depmod_options import DepmodOptions, absolute, complain, fatal, read_options, reason, say
from kmodd.cli.kmod.messages import Stop
from kmodd.cli.progress import Bar
from kmodd.cli.streams import output_is_incidental
from kmodd.config.depmod_d import PLAIN, DepmodConfig, parse
from kmodd.host import module_facts as cache_file
from kmodd.host.atomic_files import replace_all
from kmodd.host.module_reader import is_module_file
from kmodd.host.module_search import Search, Seen, stamp_of
from kmodd.host.paths import DEPMOD_DIRS
from kmodd.host.regular_files import read_given, read_regular
from kmodd.modfile import depmod_cache, depmod_graph, depmod_output
from kmodd.modfile.depmod_cache import Entry
from kmodd.modfile.depmod_graph import Complaint, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


DAEMON_SOCKET = "/run/kmodd/io.kmodd"
"""host.paths.CONTROL_SOCKET, repeated here to save the import."""


def main(argv: list[str]) -> int:
    """Run depmod and return 0 or 1.

    argv: the command line without the program's name.
    """
    try:
        return _run(read_options(argv))
    except Stop as stop:
        return stop.status
    except Unusable as error:
        complain(error.complaints)
        return 1


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(options: DepmodOptions) -> int:
    is_all = not options.files or bool(options.flags & {"a", "A"})
    if "A" in options.flags and (options.is_dry or _is_current(options)):
        return 0
    kernel = _kernel_symbols(options)
    seen = _all_modules(options) if is_all else _named_modules(options)
    order = _order(options)
    file = f"{options.directory}/modules.order"
    members, complaints = depmod_graph.arranged([each.member for each in seen], order, file)
    complain(complaints)
    by_path = {each.member.path: each for each in seen}
    seen = [by_path[each.path] for each in members]

    known, keep = _cached(options, is_all)
    with Bar("depmod") as bar:
        entries, count = cache_file.entries(seen, known, options.root, bar.show)
    problems = {entry.path: entry.facts.problem for entry in entries if entry.facts.problem}
    for path, problem in problems.items():
        say("ERROR", f"failed to load symbols from {path}: {os.strerror(problem)}")
    if errno.ENOSYS in problems.values():
        say("ERROR", "modules are compressed with zstd; install python3-zstandard to read them")
    if errno.EFBIG in problems.values():
        say("ERROR", "size, unpacked, exceeds 1 GiB, the limit for a module: damaged or no module")
    index = depmod_graph.resolve(members, [entry.facts for entry in entries], kernel, options.prefix)
    if "e" in options.flags:
        versions = [cache_file.read_versions(options.root + each.path) for each in members]
        complain(depmod_graph.unsatisfied(index, versions, kernel, "E" in options.values))
    if options.verbosity:
        if not options.is_dry:
            output_is_incidental()
        _print(line + "\n" for line in depmod_graph.needs_shown(index))
    dep_lines = depmod_graph.dep_lines(index)
    symbols = depmod_output.symbols(index, [entry.buckets for entry in entries])
    if options.is_dry:
        _show(index, dep_lines, symbols)
        return 0
    status = _write(options, index, dep_lines, symbols)
    if keep and (count or len(known) != len(entries)):
        _keep(options, entries)
    if status == 0:
        _reload_daemon(options)
    return status


def _reload_daemon(options: DepmodOptions) -> None:
    """Have the running daemon reload the index at once and retry devices without a driver; failures are ignored."""
    is_running_kernels = options.root + options.directory == f"/lib/modules/{os.uname().release}"
    if is_running_kernels and os.geteuid() == 0 and os.path.exists(DAEMON_SOCKET):
        from kmodd.cli.client import NotRunning, Refused, call  # needed only if the daemon runs

        with contextlib.suppress(NotRunning, Refused):
            call("Reload", DAEMON_SOCKET)


def _all_modules(options: DepmodOptions) -> list[Seen]:
    search = Search(options.directory, _config(options), options.root)
    try:
        return search.run()
    except OSError as error:
        complain(search.complaints)
        search.complaints.clear()
        raise fatal(f"could not search modules: {reason(error)}") from None
    finally:
        complain(search.complaints)


def _named_modules(options: DepmodOptions) -> list[Seen]:
    """Return the modules of the files on the command line. Raises Stop after an error message."""
    found: dict[str, Seen] = {}
    for path in options.files:
        if not path.startswith("/"):
            raise fatal(f"{path}: not absolute path.")
        try:
            status = os.stat(options.root + path)
        except OSError as error:
            raise fatal(f"could not create module {path}: {reason(error)}") from None
        member = depmod_graph.member(path, options.directory)
        rival = found.get(member.name)
        if rival is not None and rival.member.path == path:
            say("ERROR", f"hash_add_unique {member.name}: File exists")
            raise fatal(f"could not add module {path}: File exists")
        if rival is not None:
            what = f"kmod_module '{member.name}' already exists with different path"
            where = f"new-path='{path}' old-path='{rival.member.path}'"
            say("ERROR", f"{what}: {where}")
            raise fatal(f"could not create module {path}: File exists")
        found[member.name] = Seen(member, stamp_of(status))
    return list(found.values())


def _kernel_symbols(options: DepmodOptions) -> dict[bytes, int]:
    """Return the kernel's symbols and their CRCs by the file of -E or -F; without either, none.

    Raises Stop if the file cannot be read. -e has no effect without -E or -F and is dropped with a warning.
    """
    for code, parsed in (("E", depmod_graph.symvers), ("F", depmod_graph.system_map)):
        if code not in options.values:
            continue
        path = options.values[code]
        try:
            symbols, complaints = parsed(read_given(options.root + path), path, options.prefix)
        except OSError as error:
            raise fatal(f"could not load {path}: {reason(error)}") from None
        complain(complaints)
        return symbols
    if "e" in options.flags:
        say("WARNING", "-e needs -E or -F")
        options.flags.discard("e")
    return {}


# ── configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


def _config(options: DepmodOptions) -> DepmodConfig:
    """Return the configuration of depmod.d(5), or of the paths of -C."""
    places: list[tuple[str, list[str]] | str] = []
    seen = set()
    for path in options.config_paths or DEPMOD_DIRS:
        try:
            status = os.stat(options.root + path)
        except OSError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            places.append(path)
        elif options.config_paths or (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            if names := _config_names(
                path, options.root
            ):  # empty as kmod 34 ships them: nothing to import a parser for
                places.append((path, names))
    if not places:
        return PLAIN
    from kmodd.config.modprobe_d import ConfFile, ordered

    files = []
    for path in ordered(places, (".conf",)):
        try:
            read = read_given if path in options.config_paths else read_regular
            files.append(ConfFile(path, os.fsdecode(read(options.root + path))))
        except OSError as error:
            say("ERROR", f"file parse {path}: {reason(error)}")
    config = parse(files, options.release)
    complain(Complaint("ERROR", text) for text in config.complaints)
    return config


def _config_names(path: str, root: str) -> list[str]:
    try:
        names = sorted(os.listdir(root + path), key=os.fsencode)
    except OSError as error:
        say("ERROR", f"files list {path}: {reason(error)}")
        return []
    found = []
    for name in names:
        if name.startswith(".") or not name.endswith(".conf"):
            continue
        if os.path.isdir(f"{root}{path}/{name}"):
            say("ERROR", f"Directories inside directories are not supported: {path}/{name}")
            continue
        found.append(name)
    return found


# ── -A ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_current(options: DepmodOptions) -> bool:
    """Return whether no module file is newer than modules.dep; removed files go unnoticed (kmod depfile_up_to_date)."""
    directory = options.root + options.directory
    try:
        os.scandir(directory).close()
    except OSError as error:
        say("ERROR", f"could not open directory {options.directory}: {reason(error)}")
        return False
    try:
        limit = os.stat(f"{directory}/modules.dep").st_mtime_ns // 1000
    except OSError as error:
        say("ERROR", f"could not fstatat({options.directory}, modules.dep): {reason(error)}")
        return False
    return not any(
        is_module_file(name) and _microseconds(f"{folder}/{name}") > limit
        for folder, _, names in _walk(directory)
        for name in names
    )


def _walk(directory: str) -> Iterable[tuple[str, list[str], list[str]]]:
    for folder, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if name not in ("build", "source")]
        yield folder, folders, names


def _microseconds(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns // 1000
    except OSError:
        return 0


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open(name: str, options: DepmodOptions) -> bytes | None:
    """Return the content of a file of the kernel build, or None after a warning."""
    try:
        return read_regular(f"{options.root}{options.directory}/{name}")
    except OSError as error:
        say("WARNING", f"could not open {name} at {options.directory}: {reason(error)}")
        return None


def _order(options: DepmodOptions) -> bytes | None:
    """Return the content of modules.order, or None after a warning."""
    try:
        os.scandir(options.root + options.directory).close()
    except OSError as error:
        say("WARNING", f"could not open directory {options.directory}: {reason(error)}")
        return None
    return _open("modules.order", options)


def _print(texts: Iterable[str | bytes]) -> None:
    sys.stdout.flush()
    for text in texts:
        sys.stdout.buffer.write(text if isinstance(text, bytes) else os.fsencode(text))
    sys.stdout.buffer.flush()


def _show(index: depmod_graph.Index, dep_lines: list[bytes], symbols: list[bytes]) -> None:
    """Print all text files one after another (-n)."""
    files, complaints = depmod_output.texts(index, dep_lines, symbols)
    _print(data for _, data in files)
    complain(complaints)


def _write(options: DepmodOptions, index: depmod_graph.Index, dep_lines: list[bytes], symbols: list[bytes]) -> int:
    """Build all index files, then replace them together; return 0. Raises Stop after an error message.

    The module directory is never made: files named on the command line do not make a tree of a release that is gone.
    """
    try:
        os.scandir(options.root + options.directory).close()
    except OSError as error:
        raise fatal(f"could not open directory {options.directory}: {reason(error)}") from None
    binaries, complaints = depmod_output.binaries(index, dep_lines, symbols, "w" in options.flags)
    complain(complaints)
    for source, make in (
        ("modules.builtin", depmod_output.builtin_names),
        ("modules.builtin.modinfo", depmod_output.builtin_aliases),
    ):
        data = _open(source, options)
        name = "modules.builtin.bin" if source == "modules.builtin" else "modules.builtin.alias.bin"
        files, complaints = make(data) if data is not None else ([(name, b"")], [])
        complain(complaints)
        binaries += files
    texts, complaints = depmod_output.texts(index, dep_lines, symbols)
    complain(complaints)
    directory = options.root + options.out_directory
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
    except OSError as error:
        raise fatal(f"could not create directory {options.out_directory}: {reason(error)}") from None
    try:
        replace_all(directory, depmod_output.in_order(texts + binaries))
    except OSError as error:
        raise fatal(f"could not write the index in {options.out_directory}: {reason(error)}") from None
    return 0


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cached(options: DepmodOptions, is_all: bool) -> tuple[dict[str, Entry], bool]:
    """Return the cached facts of module files by path, and whether to write the cache after this run.

    Runs over single files, and runs for an initramfs being built (which has /init), neither read nor write a cache.
    """
    base = options.root + (absolute(options.values["b"]) if "b" in options.values else "")
    if not is_all or "no-cache" in options.flags or (base and os.path.lexists(f"{base}/init")):
        return {}, False
    path = f"{options.root}{options.out_directory}/{depmod_cache.NAME}"
    known, why_not = cache_file.cached(path, options.directory)
    if why_not and options.verbosity:
        say("NOTICE", f"{path}: {why_not}; all modules are read")
    return known, not options.is_dry


def _keep(options: DepmodOptions, entries: list[Entry]) -> None:
    """Write the cache for the next run; without it, the next run reads all modules."""
    path = f"{options.root}{options.out_directory}/{depmod_cache.NAME}"
    try:
        cache_file.write(path, options.directory, cache_file.keepable(entries))
    except OSError as error:
        if options.verbosity:
            say("NOTICE", f"{path}: {reason(error)}")
