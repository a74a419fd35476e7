"""Read all that `kmodd lint` checks: the configuration, and the files beside it that are not read."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shlex
import stat

from kmodd.config import depmod_d, modprobe_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.dataclass import dataclass
from kmodd.errors import Problem, Where
from kmodd.host.config_files import BOOT_DIRS, CONF_DIRS, read_boot_list, read_rules, read_settings
from kmodd.host.module_reader import is_packed, read_module
from kmodd.host.paths import CONFIG_DIRS, DEPMOD_DIRS, SOFTDEP_FILES
from kmodd.host.regular_files import names_in, open_regular, read_file
from kmodd.host.tree import Tree
from kmodd.index.catalog import Snapshot
from kmodd.index.layer import INDEXES, TEXT_OF
from kmodd.modfile import modinfo
from kmodd.modfile.elf import ElfError
from kmodd.planning.findings import Finding, error, warning
from kmodd.planning.lint import Setup, shadowed
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DPKG_STATUS = "/var/lib/dpkg/status"
_CONFFILE = re.compile(rb"^ (/etc/(?:modprobe|modules-load|depmod)\.d/\S+|/etc/modules) ([0-9a-f]{32})", re.MULTILINE)

_LEFTOVER = re.compile(r".*(~|\.bak|\.old|\.orig|\.save|\.swp|\.disabled|\.off|\.dpkg-\w+|\.ucf-\w+|\.rpm\w+)")
"""Names of copies that editors, packages and people make of a file that is not to be read."""

_COMPLAINT = re.compile(r"(.*):(\d+): (ignoring bad line .*)", re.DOTALL)
"""A complaint of depmod: the name of a file may have colons and blanks, too."""

_PARAMETER = re.compile(rb"__param_str_(\w+)\0")
"""The symbol of a parameter. One that is set by a function (module_param_call) has no line in .modinfo."""

_PLAIN_LIMIT = 8 << 20
"""Bytes of the largest module that the daemon reads for its parameters, if it is not compressed."""

_LOCAL = ("/usr/", "/bin/", "/sbin/", "/lib/", "/etc/")
"""Directories of programs that the daemon looks for: others may be on a server that does not answer, or automounted."""

_ABANDONED = {
    "/etc/modprobe.conf": "move it to /etc/modprobe.d/local.conf",
    "/etc/modprobe.conf.local": "move it to /etc/modprobe.d/local.conf",
    "/etc/modules.conf": "convert it by `kmodd convert-config`",
    "/etc/conf.modules": "convert it by `kmodd convert-config`",
}
"""Files that older tools read → what to do with them."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """The directories of one format, highest priority first, and how its files end."""

    directories: tuple[str, ...]
    suffixes: tuple[str, ...] = (".conf",)


_KINDS = (
    _Kind(CONFIG_DIRS, modprobe_d.SUFFIXES),
    _Kind(BOOT_DIRS),
    _Kind(DEPMOD_DIRS),
    _Kind(tuple(f"{directory}/kmodd.conf.d" for directory in CONF_DIRS)),
    _Kind(tuple(f"{directory}/policy.d" for directory in CONF_DIRS)),
)


def read_setup(tree: Tree, snapshot: Snapshot, packed_budget: int | None = None) -> Setup:
    """Return what there is to check below the root of `tree`. Raises nothing; a file that cannot be read is a finding.

    packed_budget: bytes of compressed module files that may be unpacked to read their parameters; None: no limit.
    """
    root = tree.root
    files = [finding for kind in _KINDS for finding in _check_kind(root, kind)]
    files += [_unread(path, f"no program reads it any more: {advice}") for path, advice in _ABANDONED.items()
              if os.path.lexists(root + path)]  # fmt: skip
    named = {problem.at.file for problem in snapshot.config.problems}
    files += [finding for finding in _unreadable(root, _single_files(tree)) if finding.at.file not in named]
    known = {finding.at.file for finding in files}
    settings = read_settings(root)
    problems = (*settings.problems, *read_rules(root).problems, *_depmod_problems(root, tree.release))
    return Setup(
        snapshot,
        read_boot_list(root),
        tuple(files),
        tuple(problem for problem in problems if problem.at.line or problem.at.file not in known),
        _ParameterReader(tree, packed_budget).of_file,
        # In the daemon's loop, the status of thousands of files would take too long.
        (lambda _: "") if settings.foreign_modules or packed_budget is not None else tree.foreign,
        lambda path: (packed_budget is not None and not path.startswith(_LOCAL)) or tree.present(path),
        lambda: _shipped(root),
    )


# ── files that are not read ──────────────────────────────────────────────────────────────────────────────────────────


def _check_kind(root: str, kind: _Kind) -> Iterator[Finding]:
    """Find what is not read in the directories of one format."""
    places: list[tuple[str, Sequence[str]]] = []
    seen = set()
    for directory in kind.directories:
        real = os.path.realpath(root + directory)  # with a merged /usr, two of them are the same
        if real in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(real), key=os.fsencode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as reason:
            yield error(Where(directory, 0), "unreadable", f"Failed to read the directory: {reason.strerror}")
            continue
        readable = []
        for name in names:
            finding = _check_entry(root, f"{directory}/{name}", kind.suffixes)
            if finding:
                yield finding
            elif name.endswith(kind.suffixes):
                readable.append(name)
        places.append((directory, readable))
    for path, by in shadowed(places, kind.suffixes):
        if _is_nonempty(root + by):
            yield warning(Where(path, 0), "not-read", f"not read: {by} has the same name and takes precedence")


def _check_entry(root: str, path: str, suffixes: tuple[str, ...]) -> Finding | None:
    """Return why a directory entry is not read, or None if it is, or is none of a person's making."""
    name = path.rpartition("/")[2]
    if name.startswith(".") and not name.endswith(suffixes):
        return None
    try:
        mode = os.stat(root + path).st_mode
    except OSError as reason:
        if os.path.islink(root + path) and reason.errno in (errno.ENOENT, errno.ELOOP):
            return _unread(path, f"it is a link to {os.readlink(root + path)}, which leads to no file")
        return _failed(path, reason)
    if stat.S_ISDIR(mode):
        return _unread(path, "it is a directory, and files in it are not read; move them one level up")
    if name.startswith("."):
        return _unread(path, "its name begins with a dot")
    if not name.endswith(suffixes):
        base = re.sub(r"\.conf$", "", name, flags=re.IGNORECASE)
        renamed = f"its name does not end in .conf; rename it to {base.partition('~')[0] or 'NAME'}.conf"
        return _leftover(path) if _LEFTOVER.fullmatch(name) else _unread(path, renamed)
    if os.path.realpath(root + path) == os.devnull:
        return None
    if not stat.S_ISREG(mode):
        return _unread(path, "it is no regular file")
    return next(_unreadable(root, [path]), None)


def mend_of(root: str, path: str) -> str:
    """Return the command that mends a file that is not read, or cannot be; empty: none does."""
    place, folder = root + path, os.path.dirname(root + path)
    quoted = shlex.quote(place)
    if path in _ABANDONED:
        target = shlex.quote(f"{root}/etc/modprobe.d/local.conf")
        if _ABANDONED[path].startswith("move"):
            return f"mv {quoted} {target}"
        return f"kmodd convert-config {quoted} >{target} && rm {quoted}"
    if os.path.islink(place) and not os.path.exists(place):
        return f"rm {quoted}"
    if os.path.isdir(place):
        return f"mv {quoted}/* {shlex.quote(folder)} && rmdir {quoted}"
    name = os.path.basename(path)
    stem = re.sub(r"\.conf$", "", name.lstrip("."), flags=re.IGNORECASE).partition("~")[0]
    renamed = f"{stem or 'NAME'}.conf"
    if os.path.isfile(place) and name != renamed:
        return f"mv {quoted} {shlex.quote(f'{folder}/{renamed}')}"
    return ""


def _unread(path: str, why: str) -> Finding:
    return error(Where(path, 0), "not-read", f"not read: {why}")


def _leftover(path: str) -> Finding:
    return warning(Where(path, 0), "not-read", "not read: its name does not end in .conf, as that of a backup copy")


def _failed(path: str, reason: OSError) -> Finding:
    return error(Where(path, 0), "unreadable", f"Failed to read: {reason.strerror}; its content is not checked")


def _unreadable(root: str, paths: Sequence[str]) -> Iterator[Finding]:
    """Find existing files that this process may not read, and what is no regular file, which is not opened."""
    for path in paths:
        try:
            os.close(open_regular(root + path))
        except FileNotFoundError:
            continue
        except OSError as reason:
            is_other = reason.errno in (errno.EINVAL, errno.EISDIR)
            yield _unread(path, f"it {reason.strerror}") if is_other else _failed(path, reason)


def _single_files(tree: Tree) -> list[str]:
    """Return the files of fixed name that the answers rest on; some may not exist."""
    indexes = [name for index in INDEXES for name in (TEXT_OF.get(index, index), f"{index}.bin")]
    paths = [f"{tree.directory}/{name}" for name in (*indexes, *SOFTDEP_FILES)]
    return [
        *dict.fromkeys(paths),
        *(f"{directory}/kmodd.conf" for directory in CONF_DIRS),
        "/etc/modules",
        "/proc/cmdline",
    ]


def _is_nonempty(path: str) -> bool:
    """Return whether a file has content: an empty one, or /dev/null, masks others on purpose."""
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


# ── other formats ────────────────────────────────────────────────────────────────────────────────────────────────────


def _depmod_problems(root: str, release: str) -> Iterator[Problem]:
    """Return the invalid lines of depmod.d."""
    places: list[tuple[str, Sequence[str]]] = []
    seen = set()
    for directory in DEPMOD_DIRS:
        real = os.path.realpath(root + directory)
        if real not in seen and os.path.isdir(real):
            seen.add(real)
            places.append((directory, names_in(real)))
    files = []
    for path in modprobe_d.ordered(places, (".conf",)):
        data = read_file(root + path) if os.path.isfile(root + path) else None
        if data:
            files.append(ConfFile(path, decode(data)))
    for complaint in depmod_d.parse(files, release).complaints:
        if found := _COMPLAINT.fullmatch(complaint):
            path, line, text = found.groups()
            yield Problem(Where(path, int(line)), 0, "", text)


# ── modules ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _ParameterReader:
    """Reads the parameters of modules from their files."""

    def __init__(self, tree: Tree, packed_budget: int | None) -> None:
        self._tree = tree
        self._left = packed_budget
        self._found: dict[str, frozenset[str] | None] = {}

    def of_file(self, path: str) -> frozenset[str] | None:
        """Return the names of the parameters of a module file; None if it cannot be read within the budget."""
        if path not in self._found:
            self._found[path] = self._read(path)
        return self._found[path]

    def _read(self, path: str) -> frozenset[str] | None:
        real = self._tree.real(path)
        try:
            found = self._tree.find(path)  # a file system of a user may never answer
            if not found or found.why or not found.status:
                return None
            status = found.status
            if self._left is not None and is_packed(real):
                if status.st_size > self._left:
                    return None
                self._left -= status.st_size
            elif self._left is not None and status.st_size > _PLAIN_LIMIT:
                return None
            image = read_module(real)
            fields = modinfo.info(image).fields
        except (OSError, ElfError):
            return None
        names = {*modinfo.parameters(fields)[0], *_PARAMETER.findall(image)}
        return frozenset(decode(name).replace("-", "_") for name in names)


# ── packages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _shipped(root: str) -> frozenset[str]:
    """Return the configuration files in /etc that dpkg has installed and that were not changed since."""
    try:
        fd = os.open(root + DPKG_STATUS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return frozenset()
    try:
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as text:
            found = [(decode(match[1]), decode(match[2])) for match in _CONFFILE.finditer(text)]
    except (OSError, ValueError):  # empty
        return frozenset()
    finally:
        os.close(fd)
    return frozenset(path for path, digest in found if _digest(root + path) == digest)


def _digest(path: str) -> str:
    from hashlib import md5  # here: it loads libcrypto, 4 MB

    data = read_file(path)
    return "" if data is None else md5(data, usedforsecurity=False).hexdigest()
