"""Detect changes in directories: `Watch`, one descriptor for the event loop.

inotify(7) reports what happens in a directory, but not that another one takes its place by a rename of a parent, a
changed symbolic link or a mount. So each directory on the path is watched too, for the one name that matters there,
and so is the mount table (proc_pid_mountinfo(5)), as merging a system extension is a mount.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat

from kmodd.dataclass import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MOUNTS = "/proc/self/mountinfo"
_MAX_LINKS = 40
"""Symbolic links on one path (path_resolution(7)); more are taken for a loop."""
_ATTEMPTS = 16
"""Attempts of one call of `set` while the directories keep changing."""

_Key = tuple[int, int]
"""Device and inode of a directory; inotify has one watch for each, independent of its path."""


@dataclass(slots=True)
class _Place:
    """What is watched in one directory."""

    path: str
    everything: bool = False
    names: set[str] = field(default_factory=set)
    """The only names that matter unless `everything`: the next components of paths through this directory."""


_Plan = dict[_Key, _Place]


class Watch:
    """Watches directories for changes; opening or reading a file is none."""

    def __init__(self) -> None:
        """Raises OSError if the kernel refuses inotify (EMFILE, ENOSYS), ImportError without inotify_simple."""
        from inotify_simple import INotify, flags

        entries = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
        self._entries = entries | flags.ONLYDIR
        self._all = entries | flags.CLOSE_WRITE | flags.ATTRIB | flags.ONLYDIR
        self._lost = flags.Q_OVERFLOW
        self._gone = flags.UNMOUNT | flags.IGNORED
        self._inotify = INotify()
        # An epoll descriptor, as a change of the mount table is EPOLLPRI, which `selectors` does not support.
        self._epoll = select.epoll()
        self._epoll.register(self._inotify.fileno(), select.EPOLLIN)
        self._mounts = -1
        with contextlib.suppress(OSError):  # without /proc mounts are not detected
            self._mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            self._epoll.register(self._mounts, select.EPOLLPRI)
        self._directories: tuple[str, ...] = ()
        self._plan: _Plan = {}
        self._watched: dict[int, _Place] = {}
        """By watch descriptor; inotify allocates them cyclically, so an old one is not reused."""
        self._stale = True
        """Something has changed since the last call of `set`."""
        self._whole = False
        """All of the directories are watched."""
        self._changes = 0
        self._mounted = False
        """The mount table has changed since the last call of `changed`."""
        # A second descriptor for `state`, as each descriptor of the mount table reports a change only once.
        self._glance = select.poll()
        self._glance.register(self._inotify.fileno(), select.POLLIN)
        self._mounts_too = -1
        with contextlib.suppress(OSError):
            self._mounts_too = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            self._glance.register(self._mounts_too, select.POLLPRI)

    def fileno(self) -> int:
        """Return the descriptor, readable when `changed` should be called."""
        return self._epoll.fileno()

    def set(self, directories: Iterable[str]) -> tuple[OSError, ...]:
        """Watch exactly these absolute paths, which need not exist yet. Call it before reading their files.

        Makes no system call if the paths are the same as before and nothing has changed. Returns an error with its path
        for each directory that cannot be watched (EACCES; ENOSPC: fs.inotify.max_user_watches).
        """
        wanted = tuple(directories)
        if wanted == self._directories and not self._stale:
            return ()
        self._directories = wanted
        self._stale = False
        self._changes += 1
        errors: tuple[OSError, ...] = ()
        # The second look finds changes made before the watches were set; later ones are events.
        for _ in range(_ATTEMPTS):
            plan, errors = _look(wanted)
            errors += self._follow(plan)
            if _look(wanted)[0] == plan:
                break
        self._whole = not errors and self._mounts_too >= 0
        return errors

    def state(self) -> int | None:
        """Return a number that stays the same until something changes; None after a change, until `set` is called.

        The number is current even if the event loop has not run: the system call that makes a change queues its inotify
        event.
        """
        if self._has_events() or self._stale or not self._whole:
            return None
        return self._changes

    def _has_events(self) -> bool:
        """Return whether inotify has events; note a change of the mount table."""
        has_events = False
        for descriptor, _ in self._glance.poll(0):
            if descriptor == self._mounts_too:
                self._mounted = True
                self._changes += 1
            else:
                has_events = True
        return has_events

    def _follow(self, plan: _Plan) -> tuple[OSError, ...]:
        """Make the inotify watches those of `plan`; return the errors."""
        errors = []
        watched: dict[int, _Place] = {}
        for place in plan.values():
            try:
                mask = self._all if place.everything else self._entries
                watched[self._inotify.add_watch(place.path, mask)] = place
            except FileNotFoundError:
                pass  # removed just now: `set` looks again
            except OSError as error:
                errors.append(OSError(error.errno, os.strerror(error.errno or 0), place.path))
        for number in self._watched.keys() - watched.keys():
            with contextlib.suppress(OSError):  # the kernel has removed it with its directory
                self._inotify.rm_watch(number)
        self._plan, self._watched = plan, watched
        return tuple(errors)

    def changed(self) -> bool:
        """Read all events; return whether anything has changed in the directories or their paths. Then call `set`."""
        self._has_events()  # for a change of the mount table
        happened = any(self._counts(event.wd, event.mask, event.name) for event in self._inotify.read(timeout=0))
        # A mount has no inotify event: compare which directories the paths lead to now.
        mounted, self._mounted = self._mounted or self._mounts_too < 0, False
        if happened or (mounted and _look(self._directories)[0] != self._plan):
            self._stale = True
            return True
        return False

    def _counts(self, number: int, mask: int, name: str) -> bool:
        if mask & self._lost:
            return True
        place = self._watched.get(number)  # None: queued before its watch was removed
        return place is not None and (place.everything or name in place.names or bool(mask & self._gone))

    def close(self) -> None:
        """Close all descriptors."""
        self._epoll.close()
        self._inotify.close()
        for mounts in (self._mounts, self._mounts_too):
            if mounts >= 0:
                os.close(mounts)


def _look(directories: tuple[str, ...]) -> tuple[_Plan, tuple[OSError, ...]]:
    """Return what to watch for the directories as they are now, and an error for each that cannot be resolved."""
    plan: _Plan = {}
    errors = []
    for directory in directories:
        try:
            _walk(directory, plan)
        except OSError as error:
            errors.append(error)
    return plan, tuple(errors)


def _walk(path: str, plan: _Plan) -> None:
    """Add each directory on `path` to `plan`, resolving links one by one, up to the first component that is missing."""
    todo = path.split("/")[::-1]
    here, key = "/", _key(os.lstat("/"))
    links = 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            key = _key(os.lstat(here))
            continue
        plan.setdefault(key, _Place(here)).names.add(name)
        there = os.path.join(here, name)
        try:
            status = os.lstat(there)
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISDIR(status.st_mode):
            here, key = there, _key(status)
        elif stat.S_ISLNK(status.st_mode) and links < _MAX_LINKS:
            links += 1
            target = os.readlink(there)
            todo += target.split("/")[::-1]
            if target.startswith("/"):
                here, key = "/", _key(os.lstat("/"))
        else:
            return  # neither a directory nor a link to one
    plan.setdefault(key, _Place(here)).everything = True


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino
