"""The files that `kmodd deny` and `kmodd allow` edit: locked against each other, replaced as a whole."""

from __future__ import annotations

import contextlib
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
    directory = os.path.dirname(root + LOCAL)
    try:
        os.makedirs(directory, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EditError(f"Failed to open {os.path.dirname(LOCAL)}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def read_text(root: str, path: str) -> str:
    """Return the text of a file below root; empty: there is none. Raises EditError, for a link too."""
    if os.path.islink(root + path):
        raise EditError(f"Failed to read {path}: it is a link; edit its target, or remove the link")
    try:
        return decode(read_regular(root + path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise EditError(f"Failed to read {path}: {error.strerror}") from None


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
    path = root + edit.path
    if not edit.after:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    try:
        about = os.stat(path)
    except FileNotFoundError:
        about = None
    replace_all(directory, [(name, encode(edit.after))], stat.S_IMODE(about.st_mode) if about else 0o644)
    if about and (about.st_uid, about.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(path, about.st_uid, about.st_gid)


def set_flag(root: str, name: str) -> None:
    """Set a flag of policy.d, `flag=NAME`. Raises EditError."""
    try:
        os.makedirs(root + FLAGS_DIR, mode=0o755, exist_ok=True)
        os.close(os.open(f"{root}{FLAGS_DIR}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
    except OSError as error:
        raise EditError(f"Failed to set the flag {FLAGS_DIR}/{name}: {error.strerror}") from None
