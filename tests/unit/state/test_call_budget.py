"""The time that users' calls may take of the loop."""

from __future__ import annotations

import pytest

from kmodd.state.call_budget import BURST, SHARE, CallBudget


def test_a_user_who_has_used_the_burst_waits_until_it_is_paid_back() -> None:
    budget = CallBudget()
    budget.spend(1000, BURST - 0.001, 10.0)
    assert budget.may_call(1000, 10.0)
    budget.spend(1000, 0.011, 10.0)
    assert not budget.may_call(1000, 10.0)
    assert budget.may_call(1001, 10.0)
    free = budget.free_at(1000, 10.0)
    assert free == pytest.approx(10.0 + 0.01 / SHARE)
    assert not budget.may_call(1000, free - 0.01)
    assert budget.may_call(1000, free + 0.01)


def test_root_has_no_limit() -> None:
    budget = CallBudget()
    budget.spend(0, 1000.0, 10.0)
    assert budget.may_call(0, 10.0)
    assert budget.may_call(1000, 10.0)


def test_many_uids_have_no_more_than_four_times_as_much() -> None:
    """A user namespace gives a user thousands of them."""
    budget = CallBudget()
    used, uid = 0.0, 100_000
    while budget.may_call(uid, 10.0):
        budget.spend(uid, BURST / 10, 10.0)
        used, uid = used + BURST / 10, uid + 1
    assert used == pytest.approx(4 * BURST, abs=BURST / 5)
    assert budget.may_call(0, 10.0)


def test_users_are_forgotten() -> None:
    """100,000 uids need no memory: each is paid back soon. The one who has used most is not forgotten."""
    budget = CallBudget()
    budget.spend(7, 1000.0, 0.0)
    for number in range(100_000):
        budget.spend(10 + number, 1e-6, number / 1000)
    assert not budget.may_call(7, 100.0)
    assert len(vars(budget)["_debts"]) < 2000
