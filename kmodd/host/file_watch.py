"""Noticing that files of some directories change: `Watch`, one descriptor that wakes the loop.

inotify(7) says what happens in a directory, but not that another takes its place: by a rename further up, another link,
a mount. So each directory on the way is watched too, for the one name that counts there, and so is the table of mounts
(proc_pid_mountinfo(5)): merging a system extension is nothing but a mount.
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
"""Symbolic links on one path (path_resolution(7)); more are a loop."""
_ATTEMPTS = 16
"""How often one call of `set` starts again because the directories change meanwhile."""

_Key = tuple[int, int]
"""Device and inode of a directory: inotify has one watch for each, whatever path leads there."""


@dataclass(slots=True)
class _Place:
    """What is awaited in one directory."""

    path: str
    everything: bool = False
    names: set[str] = field(default_factory=set)
    """Else only these count: the next directories on the way to others."""


_Plan = dict[_Key, _Place]


class Watch:
    """Watches directories. Reads and opens never wake it."""

    def __init__(self) -> None:
        """Raises OSError where the kernel gives no inotify (EMFILE, ENOSYS), ImportError without the library."""
        from inotify_simple import INotify, flags

        entries = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
        self._entries = entries | flags.ONLYDIR
        self._all = entries | flags.CLOSE_WRITE | flags.ATTRIB | flags.ONLYDIR
        self._lost = flags.Q_OVERFLOW
        self._gone = flags.UNMOUNT | flags.IGNORED
        self._inotify = INotify()
        # A descriptor of its own, because the mounts speak up by EPOLLPRI, which `selectors` cannot ask for.
        self._epoll = select.epoll()
        self._epoll.register(self._inotify.fileno(), select.EPOLLIN)
        self._mounts = -1
        with contextlib.suppress(OSError):  # no /proc: mounts are not noticed
            self._mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            self._epoll.register(self._mounts, select.EPOLLPRI)
        self._directories: tuple[str, ...] = ()
        self._plan: _Plan = {}
        self._watched: dict[int, _Place] = {}
        """By watch descriptor; the kernel never gives a number twice."""
        self._stale = True
        """What has changed has to be looked at by `set`."""
        self._whole = False
        """All of it is watched."""
        self._changes = 0
        self._mounted = False
        """Something was mounted somewhere, or taken off, and `changed` was not asked since."""
        # Apart from the epoll, for each descriptor of the table of mounts is told of a change but once.
        self._glance = select.poll()
        self._glance.register(self._inotify.fileno(), select.POLLIN)
        self._mounts_too = -1
        with contextlib.suppress(OSError):
            self._mounts_too = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            self._glance.register(self._mounts_too, select.POLLPRI)

    def fileno(self) -> int:
        """Readable when `changed` should be asked."""
        return self._epoll.fileno()

    def set(self, directories: Iterable[str]) -> tuple[OSError, ...]:
        """Watch exactly these absolute paths, whether they are there yet or not. Call it before their files are read.

        The answer: what could not be watched (ENOSPC: fs.inotify.max_user_watches; EACCES), with the path. Nothing is
        asked of the kernel where the paths are the same as before and nothing has changed.
        """
        wanted = tuple(directories)
        if wanted == self._directories and not self._stale:
            return ()
        self._directories = wanted
        self._stale = False
        self._changes += 1
        errors: tuple[OSError, ...] = ()
        # What changes before its watch stands is seen by looking again; what changes later wakes us.
        for _ in range(_ATTEMPTS):
            plan, errors = _look(wanted)
            errors += self._follow(plan)
            if _look(wanted)[0] == plan:
                break
        self._whole = not errors and self._mounts_too >= 0
        return errors

    def state(self) -> int | None:
        """A number that stays the same as long as nothing changes there; None: something has, and `set` was not called.

        It is up to date when it is given, whether or not the loop was woken: inotify knows of a change when the call
        that makes it returns.
        """
        if self._has_events() or self._stale or not self._whole:
            return None
        return self._changes

    def _has_events(self) -> bool:
        """There is something to be read; notes that there was a mount."""
        has_events = False
        for descriptor, _ in self._glance.poll(0):
            if descriptor == self._mounts_too:
                self._mounted = True
                self._changes += 1
            else:
                has_events = True
        return has_events

    def _follow(self, plan: _Plan) -> tuple[OSError, ...]:
        """Have the kernel watch just the places of `plan`."""
        errors = []
        watched: dict[int, _Place] = {}
        for place in plan.values():
            try:
                mask = self._all if place.everything else self._entries
                watched[self._inotify.add_watch(place.path, mask)] = place
            except FileNotFoundError:
                pass  # it went this moment: `set` looks again
            except OSError as error:
                errors.append(OSError(error.errno, os.strerror(error.errno or 0), place.path))
        for number in self._watched.keys() - watched.keys():
            with contextlib.suppress(OSError):  # the kernel has dropped it with its directory
                self._inotify.rm_watch(number)
        self._plan, self._watched = plan, watched
        return tuple(errors)

    def changed(self) -> bool:
        """Empty the queue: whether anything has happened in the directories, or to them. Then call `set` again."""
        self._has_events()  # a mount may be all that there is
        happened = any(self._counts(event.wd, event.mask, event.name) for event in self._inotify.read(timeout=0))
        # No event tells of what a mount has changed: another directory stands there now.
        mounted, self._mounted = self._mounted or self._mounts_too < 0, False
        if happened or (mounted and _look(self._directories)[0] != self._plan):
            self._stale = True
            return True
        return False

    def _counts(self, number: int, mask: int, name: str) -> bool:
        if mask & self._lost:
            return True
        place = self._watched.get(number)  # None: said before its watch was taken off
        return place is not None and (place.everything or name in place.names or bool(mask & self._gone))

    def close(self) -> None:
        """Let go of everything."""
        self._epoll.close()
        self._inotify.close()
        for mounts in (self._mounts, self._mounts_too):
            if mounts >= 0:
                os.close(mounts)


def _look(directories: tuple[str, ...]) -> tuple[_Plan, tuple[OSError, ...]]:
    """Where something has to be awaited, as the directories stand now; and what could not be looked at."""
    plan: _Plan = {}
    errors = []
    for directory in directories:
        try:
            _walk(directory, plan)
        except OSError as error:
            errors.append(error)
    return plan, tuple(errors)


def _walk(path: str, plan: _Plan) -> None:
    """Enter each directory on the way to `path`, links followed one by one, as far as there is a way."""
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
            return  # something else has taken its place
    plan.setdefault(key, _Place(here)).everything = True


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino
