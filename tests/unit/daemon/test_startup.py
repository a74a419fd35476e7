"""The phases of the daemon's start, row by row of the table in daemon/startup.py."""

from __future__ import annotations

from kmodd.daemon.startup import BOOT_LIST_LIMIT, WATCH_LIMIT, Startup


def begun() -> Startup:
    startup = Startup()
    startup.begin(1000.0)
    return startup


def ready() -> Startup:
    startup = begun()
    assert startup.finish_boot_list(1001.0, is_answered=True)
    return startup


def test_ready_waits_for_the_boot_list() -> None:
    startup = begun()
    assert not startup.finish_boot_list(1001.0, is_answered=False)
    assert (startup.phase, startup.deadline()) == ("boot_list", 1000.0 + BOOT_LIST_LIMIT)
    assert startup.finish_boot_list(1002.0, is_answered=True)
    assert (startup.phase, startup.deadline()) == ("late_opens", 1002.0 + WATCH_LIMIT)


def test_ready_does_not_wait_longer_than_the_limit() -> None:
    startup = begun()
    assert not startup.finish_boot_list(1000.0 + BOOT_LIST_LIMIT - 0.01, is_answered=False)
    assert startup.finish_boot_list(1000.0 + BOOT_LIST_LIMIT, is_answered=False)


def test_ready_is_reported_once() -> None:
    assert not ready().finish_boot_list(1002.0, is_answered=True)


def test_nothing_is_opened_late_before_ready() -> None:
    assert not begun().can_open(1000.0 + BOOT_LIST_LIMIT, devices_answered=True)


def test_late_opens_wait_for_devices_but_not_longer_than_the_limit() -> None:
    startup = ready()
    assert not startup.can_open(1001.0 + WATCH_LIMIT - 0.01, devices_answered=False)
    assert startup.can_open(1001.0 + WATCH_LIMIT, devices_answered=False)
    assert startup.can_open(1002.0, devices_answered=True)


def test_a_start_that_has_ended_opens_nothing_more() -> None:
    startup = ready()
    startup.finish()
    assert (startup.phase, startup.deadline()) == ("running", None)
    assert not startup.can_open(1001.0 + WATCH_LIMIT, devices_answered=True)
