"""Signals are blocked during a load and delivered afterwards (signal(7), pthread_sigmask(3))."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kmodd.host.signals import SignalsBlocked


def blocked() -> int:
    status = Path("/proc/thread-self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:")), 16)


def test_all_signals_are_blocked_and_the_mask_is_restored() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        before = blocked()
        with SignalsBlocked():
            free = [number for number in signal.valid_signals() if not blocked() >> (number - 1) & 1]
            assert free == [signal.SIGKILL, signal.SIGSTOP]
        assert blocked() == before
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def test_a_blocked_signal_is_delivered_at_the_end() -> None:
    pid = os.fork()
    if not pid:
        with SignalsBlocked():
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(1, b"")  # still here
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_the_mask_is_restored_after_an_error() -> None:
    before = blocked()
    with pytest.raises(ZeroDivisionError), SignalsBlocked():
        raise ZeroDivisionError
    assert blocked() == before
