"""Read the users of a machine, and the uids that they may give to programs of theirs: `uid_of`, `subordinate_uids`."""

from __future__ import annotations

import contextlib
import os
import pwd

from kmodd.config.policy_d import MAX_UID
from kmodd.host.regular_files import read_file
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIGITS = 10
"""Of a uid or a number of uids at most."""


def uid_of(text: str, root: str = "") -> int:
    """Return the uid of a user's number or name. Raises ValueError.

    root: prefix of /etc/passwd; empty, or without that file: the users of this machine, also those of a directory
    service (nsswitch.conf(5)).
    """
    try:
        uid = int(text[:18]) if text.isdecimal() else _uid_of_name(text, root)
    except KeyError:
        raise ValueError(f"unknown user {text!r}") from None
    if uid > MAX_UID:
        raise ValueError(f"uid {uid} out of range")
    return uid


def subordinate_uids(uid: int, root: str = "") -> tuple[str, ...]:
    """Return the ranges of /etc/subuid for a user (subuid(5)), as `100000-165535`: a rootless container has such uids.

    root: as of `uid_of`. Lines that are not valid are left out, as by newuidmap(1); and ranges with the uid of another
    user, as root has them for containers (`root:1000:1`): a rule for one would be one for the other.
    """
    owners = {str(uid), *_names_of(uid, root)}
    others = {each for each, _ in _users(root)} - {uid}
    found: dict[str, None] = {}
    for owner, start, count in _fields(f"{root}/etc/subuid", 3):
        if owner in owners and _is_number(start) and _is_number(count):
            first, last = int(start), int(start) + int(count) - 1
            if first <= last <= MAX_UID and not any(first <= other <= last for other in others):
                found[f"{first}-{last}"] = None
    return tuple(found)


def _uid_of_name(name: str, root: str) -> int:
    """Return the uid of a user's name. Raises KeyError."""
    if not _has_users(root):
        return pwd.getpwnam(name).pw_uid
    return {user: uid for uid, user in reversed([*_users(root)])}[name]


def _names_of(uid: int, root: str) -> list[str]:
    names = [name for each, name in _users(root) if each == uid]
    if not _has_users(root):
        with contextlib.suppress(KeyError):
            names.append(pwd.getpwuid(uid).pw_name)  # also of a directory service
    return names


def _has_users(root: str) -> bool:
    """Return whether a root other than this machine's has users of its own."""
    return bool(root) and os.path.isfile(f"{root}/etc/passwd")


def _users(root: str) -> Iterator[tuple[int, str]]:
    """Yield uid and name of each user in /etc/passwd (passwd(5))."""
    for name, _, uid, *_ in _fields(f"{root}/etc/passwd", 7):
        if _is_number(uid):
            yield int(uid), name


def _fields(path: str, count: int) -> Iterator[list[str]]:
    """Yield the fields of each line of a file that has this number of them."""
    for line in decode(read_file(path) or b"").split("\n"):
        if len(fields := line.strip().split(":")) == count:
            yield fields


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS
