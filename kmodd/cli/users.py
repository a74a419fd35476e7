"""A user on the command line: a number or a name."""

from __future__ import annotations

import pwd

from kmodd.config.policy_d import MAX_UID


def uid_of(text: str) -> int:
    """Return the uid of a user's number or name. Raises ValueError."""
    try:
        uid = int(text[:18]) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ValueError(f"unknown user {text!r}") from None
    if uid > MAX_UID:
        raise ValueError(f"uid {uid} out of range")
    return uid
