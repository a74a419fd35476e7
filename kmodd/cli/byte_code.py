"""Byte code of all installed modules in one file, which saves the import system's look at four files for each module.

`make install` writes the file, and the launcher has modules imported from it. A module whose source has another time or
size than at installation is imported as if the file did not exist; so is every module under another version of Python.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib import ModuleSpec  # in memory already; importlib.machinery and importlib.util take 0.5 ms
from _frozen_importlib_external import MAGIC_NUMBER
from marshal import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    Entries = dict[str, tuple[str, int, int, int, int]]
    """Name → source below the folder, its time (seconds) and size, then offset and size of the code. Offsets count from
    the end of the entries; sizes and offsets in bytes."""

HEADER = len(MAGIC_NUMBER) + 8
"""Bytes: the version of the byte code, then the size of the file and that of its entries, big endian."""


class ByteCodeFile:
    """A finder and loader for `sys.meta_path`, which imports the modules of one file."""

    def __init__(self, folder: str, entries: Entries, file: int, start: int) -> None:
        """folder: where the sources are. file: a descriptor that remains open. start: offset of the code, in bytes."""
        self._folder = folder
        self._entries = entries
        self._file = file
        self._start = start
        self._is_pinned = False

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Return how to import a module; None if it is not in the file or its source has changed."""
        if name not in self._entries:
            return None
        source = self._entries[name][0]
        origin = f"{self._folder}/{source}"
        if not self._is_pinned and not self._is_valid(name):
            return None
        spec = ModuleSpec(name, self, origin=origin)  # type: ignore[arg-type]  # a loader by its methods
        spec.has_location = True  # sets __file__
        spec.cached = path_of(self._folder)  # else the import system works out another path
        if source.endswith("__init__.py"):
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def _is_valid(self, name: str) -> bool:
        """Return whether the source of a module has the time and size that it had when the file was written."""
        source, seconds, size, _, _ = self._entries[name]
        try:
            found = os.stat(f"{self._folder}/{source}")
        except OSError:
            return False
        return (int(found.st_mtime), found.st_size) == (seconds, size)

    def pin(self) -> None:
        """Import modules as their sources are now, whatever happens to these later."""
        self._entries = {name: entry for name, entry in self._entries.items() if self._is_valid(name)}
        self._is_pinned = True

    def create_module(self, spec: ModuleSpec) -> None:
        """Have the import system create an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code. Raises OSError, and whatever the code raises."""
        assert module.__spec__
        _, _, _, offset, size = self._entries[module.__spec__.name]
        try:
            code = loads(os.pread(self._file, size, self._start + offset))
        except (ValueError, EOFError, TypeError):  # blocks of zeros, as after a power cut
            origin = str(module.__spec__.origin)
            with open(origin, "rb") as source:
                code = compile(source.read(), origin, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 (root has installed it, as the sources)


def use(folder: str) -> None:
    """Import the modules below `folder` from its file from now on.

    Without a file, with a damaged one, and with one of another Python, nothing changes.
    """
    try:
        file = os.open(path_of(folder), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    if file <= 2:  # the caller has closed a standard stream, which is opened again later (kmodd/cli/streams.py)
        from fcntl import F_DUPFD_CLOEXEC, fcntl

        low, file = file, fcntl(file, F_DUPFD_CLOEXEC, 3)
        os.close(low)
    head = os.read(file, HEADER)
    magic, total, size = head[:-8], int.from_bytes(head[-8:-4]), int.from_bytes(head[-4:])
    try:
        entries = loads(os.read(file, size)) if magic == MAGIC_NUMBER and total == os.fstat(file).st_size else None
    except (ValueError, EOFError, TypeError):
        entries = None
    if isinstance(entries, dict):
        sys.meta_path.insert(0, ByteCodeFile(folder, entries, file, HEADER + size))
    else:
        os.close(file)


def pin() -> None:
    """Import from the present file until the process ends.

    For the daemon and the spawner, which import some modules late: an upgrade may have replaced the sources by then,
    and two versions must not mix.
    """
    for finder in sys.meta_path:
        if isinstance(finder, ByteCodeFile):
            finder.pin()


def stale() -> tuple[str, str] | None:
    """Return the installed file, if only other versions of Python can use it, with what that means and what to do.

    None: this Python has a file, or kmodd runs from sources without one.
    """
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    own = path_of(folder)
    found = sorted(name for name in os.listdir(folder) if name.startswith("byte-code.") and not name.endswith(".new"))
    if not found or os.path.basename(own) in found:
        return None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = f"{sys.executable} -BI {folder}/kmodd/cli/byte_code.py {folder} {folder}"
    text = f"not of Python {version}, so every start of kmodd compiles its sources; run as root: {command}"
    return f"{folder}/{found[0]}", text


def path_of(folder: str) -> str:
    """Return the file of this version of Python."""
    return f"{folder}/byte-code.{sys.implementation.cache_tag}"


def write(folder: Path, installed: str) -> None:
    """Compile all sources below `folder` into its file, and remove other versions'. Raises OSError, SyntaxError.

    installed: the folder's path once it is installed, for tracebacks.
    """
    code = b""
    entries: Entries = {}
    for path in sorted(folder.rglob("*.py")):
        source = str(path.relative_to(folder))
        name = source.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        compiled = dumps(compile(path.read_bytes(), f"{installed}/{source}", "exec", dont_inherit=True))
        found = path.stat()
        entries[name] = (source, int(found.st_mtime), found.st_size, len(code), len(compiled))
        code += compiled
    listed = dumps(entries)
    sizes = (HEADER + len(listed) + len(code), len(listed))
    target = path_of(str(folder))
    with open(f"{target}.new", "wb") as file:
        file.writelines((MAGIC_NUMBER, *(size.to_bytes(4) for size in sizes), listed, code))
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{target}.new", target)
    for other in folder.glob("byte-code.*"):
        if str(other) != target:
            other.unlink()


if __name__ == "__main__":
    from pathlib import Path

    write(Path(sys.argv[1]), sys.argv[2])
