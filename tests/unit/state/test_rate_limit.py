"""A user who has the kernel ask without end does not fill the journal: `RateLimiter`."""

from __future__ import annotations

import pytest

from kmodd.dataclass import replace
from kmodd.kernel.requester import Requester
from kmodd.planning.outcome import Outcome, Result
from kmodd.planning.plan import Reason
from kmodd.planning.request import Origin, Request
from kmodd.state import rate_limit
from kmodd.state.rate_limit import RateLimiter

USER = Requester(812, "sh", "/bin/sh", 1000, None, "", "", False)


def outcome(
    text: str = "net-pf-38", result: Result = "denied", origin: Origin = "request", uid: int | None = 1000
) -> Outcome:
    who = None if uid is None else replace(USER, uid=uid)
    return Outcome(Request(text, origin, requester=who), "af_alg", result, Reason("asked", text))


def test_one_a_minute_and_the_next_has_the_count() -> None:
    it = RateLimiter()
    assert [it.admit(outcome(), now) for now in (0.0, 1.0, 59.0)] == [0, None, None]
    assert it.held_back == 2
    assert [it.admit(outcome(), now) for now in (60.0, 61.0, 120.0, 190.0)] == [2, None, 1, 0]
    assert it.held_back == 0


def test_what_differs_is_told() -> None:
    """Requester, request, result and reason."""
    it = RateLimiter()
    kinds = [
        outcome(), outcome(uid=0), outcome(uid=None), outcome("net-pf-16"), outcome(result="failed"),
        replace(outcome(), rule="deny *"), replace(outcome(), errno=19), replace(outcome(), module="aead"),
    ]  # fmt: skip
    assert [it.admit(each, 0.0) for each in kinds] == [0] * len(kinds)


@pytest.mark.parametrize("each", [outcome(result="loaded"), outcome(origin="uevent", uid=None)])
def test_loads_and_devices_are_always_told(each: Outcome) -> None:
    it = RateLimiter()
    assert [it.admit(each, 0.0) for _ in range(3)] == [0] * 3


def test_memory_is_bounded_and_one_user_does_not_silence_another() -> None:
    it = RateLimiter()
    admitted = [it.admit(outcome(f"fs-{number}"), 0.0) for number in range(1000)]
    assert admitted.count(0) == rate_limit.MAX_KINDS_PER_USER
    assert it.held_back == 1000 - rate_limit.MAX_KINDS_PER_USER
    assert it.admit(outcome(uid=1001), 0.0) == 0
    assert it.admit(outcome("another"), 60.0) == 0, "what is over makes room"
    many = [it.admit(outcome(uid=number), 70.0) for number in range(1500)]
    assert many.count(0) == rate_limit.MAX_KINDS - 1
