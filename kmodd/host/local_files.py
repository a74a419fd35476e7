"""The files that `kmodd deny` and `kmodd allow` edit: locked against each other, replaced as a whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from kmodd.config.policy_d import LOCAL
from kmodd.dataclass import dataclass
from kmodd.host.atomic_files import replace_all
from kmodd.host.config_files import FLAGS_DIR
from kmodd.host.regular_files import read_regular
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


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
    """Let one process edit at a time, in a `with` block; the directory of the local file is made. Raises OSError."""
    directory = os.path.dirname(root + LOCAL)
    os.makedirs(directory, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def read_text(root: str, path: str) -> str:
    """Return the text of a file below root; empty: there is none. Raises OSError, ELOOP for a link."""
    if os.path.islink(root + path):
        raise OSError(errno.ELOOP, "it is a link; edit its target, or remove the link", path)
    try:
        return decode(read_regular(root + path))
    except FileNotFoundError:
        return ""


def write(root: str, edit: Edit) -> None:
    """Replace or remove the file of an edit below root; directories are made. Raises OSError with nothing changed."""
    if edit.after == edit.before:
        return
    path = root + edit.path
    if not edit.after:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    replace_all(directory, [(name, encode(edit.after))])


def set_flag(root: str, name: str) -> None:
    """Set a flag of policy.d, `flag=NAME`. Raises OSError."""
    os.makedirs(root + FLAGS_DIR, mode=0o755, exist_ok=True)
    fd = os.open(f"{root}{FLAGS_DIR}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    os.close(fd)
