"""The files that `kmodd deny` and `kmodd allow` edit: locked against each other, replaced as a whole.

The daemon can write below /run/kmodd, and these verbs are outside of its sandbox: there no link is followed, and a file
is read and replaced by the descriptor of its directory, so that a daemon that is taken over leads them nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from kmodd.config.policy_d import LOCAL
from kmodd.dataclass import dataclass
from kmodd.host.atomic_files import replace_all
from kmodd.host.config_files import FLAGS_DIR
from kmodd.host.regular_files import read_regular
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


LOCK = "/run/kmodd-deny.lock"
"""What root's calls lock: a user could hold a lock on the directory, which users can read, and root would wait."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class EditError(Exception):
    """A file that cannot be read or written; the text says which, and why."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A file, and its text before and after."""

    path: str
    """Without root."""
    before: str
    after: str
    """Empty: the file is removed."""


@contextlib.contextmanager
def locked(root: str) -> Iterator[None]:
    """Let one process edit at a time, in a `with` block; the directory of the local file is made. Raises EditError."""
    try:
        os.makedirs(os.path.dirname(root + LOCAL), exist_ok=True)
        fd = open_lock(root)
    except OSError as error:
        named = str(error.filename or os.path.dirname(LOCAL)).removeprefix(root)
        raise EditError(f"Failed to open {named}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def open_lock(root: str, lock: str = LOCK) -> int:
    """Open what calls lock against each other, and return the descriptor. Raises OSError.

    It is a file that only root can open; below another root, for a user, and without /run it is the directory itself.
    """
    if not root and os.geteuid() == 0:
        try:
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EROFS):
                raise  # two calls that lock different things would lose an edit
    return os.open(os.path.dirname(root + LOCAL), _DIRECTORY)


def read_text(root: str, path: str) -> str:
    """Return the text of a file below root; empty: there is none. Raises EditError, for a link too."""
    directory, name = os.path.split(path)
    try:
        with _opened(root, directory) as parent:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                return decode(read_regular(f"/proc/self/fd/{fd}"))
            finally:
                os.close(fd)
    except FileNotFoundError:
        return ""
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        why = "it is a link; edit its target, or remove the link" if is_link else error.strerror
        raise EditError(f"Failed to read {path}: {why}") from None


def write_all(root: str, edits: Sequence[Edit]) -> None:
    """Write the files of all edits below root, or of none. Raises EditError, which names what could not be restored."""
    done: list[Edit] = []
    for edit in edits:
        try:
            _write(root, edit)
        except OSError as error:
            changed = [each.path for each in reversed(done) if not _is_undone(root, each)]
            stays = f"; {' and '.join(changed)} could not be restored" if changed else ""
            raise EditError(f"Failed to write {edit.path}: {error.strerror}{stays}") from None
        done.append(edit)


def _is_undone(root: str, edit: Edit) -> bool:
    try:
        _write(root, Edit(edit.path, edit.after, edit.before))
    except OSError:
        return False
    return True


def _write(root: str, edit: Edit) -> None:
    """Replace or remove a file, which keeps its mode and owner. Raises OSError with nothing changed."""
    if edit.after == edit.before:
        return
    directory, name = os.path.split(edit.path)
    with _opened(root, directory, make=bool(edit.after)) as parent:
        if not edit.after:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            return
        try:
            about = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            about = None
        mode = stat.S_IMODE(about.st_mode) if about else 0o644
        replace_all(f"/proc/self/fd/{parent}", [(name, encode(edit.after))], mode)
        if about and (about.st_uid, about.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(name, about.st_uid, about.st_gid, dir_fd=parent, follow_symlinks=False)


@contextlib.contextmanager
def _opened(root: str, path: str, *, make: bool = False) -> Iterator[int]:
    """Open a directory below root, made with its parents if need be. Raises OSError: ENOTDIR for a link below /run."""
    if not path.startswith("/run/"):
        if make:
            os.makedirs(root + path, exist_ok=True)
        fd = os.open(root + path, _DIRECTORY)
    else:
        fd = os.open(root or "/", _DIRECTORY)
        try:
            for name in path.strip("/").split("/"):
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=fd)
                outer, fd = fd, os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(outer)
        except OSError:
            os.close(fd)
            raise
    try:
        yield fd
    finally:
        os.close(fd)


def set_flag(root: str, name: str) -> None:
    """Set a flag of policy.d, `flag=NAME`. Raises EditError."""
    try:
        with _opened(root, FLAGS_DIR, make=True) as parent:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644, dir_fd=parent))
    except OSError as error:
        raise EditError(f"Failed to set the flag {FLAGS_DIR}/{name}: {error.strerror}") from None
