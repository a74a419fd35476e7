"""Notify the service manager of readiness, reloads and the watchdog (sd_notify(3))."""

from __future__ import annotations

import os
import time


class Notify:
    """The notification socket of systemd; without it, every method does nothing."""

    def __init__(self) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from the environment."""
        self.under_systemd = "NOTIFY_SOCKET" in os.environ
        watchdog = os.environ.get("WATCHDOG_USEC", "")
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_interval = int(watchdog) / 2e6 if watchdog.isdigit() and for_us else None
        """Seconds between two `alive` calls, half of WATCHDOG_USEC; None without a watchdog."""
        self._next_alive = 0.0
        if self.under_systemd:
            import systemd.daemon  # here: takes 5 ms, and only a service needs it

            self._send = systemd.daemon.notify

    def ready(self, status: str) -> None:
        """Report that starting or reloading is complete."""
        self._notify(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Report that a reload begins, with MONOTONIC_USEC (notify-reload in systemd.service(5))."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """Set the status line of `systemctl status`."""
        self._notify(f"STATUS={text}")

    def stopping(self) -> None:
        """Report that the daemon is shutting down."""
        self._notify("STOPPING=1")

    def alive(self, now: float) -> None:
        """Feed the watchdog at `now` (time.monotonic), no more often than needed."""
        if self.watchdog_interval is not None and now >= self._next_alive:
            self._next_alive = now + self.watchdog_interval / 2
            self._notify("WATCHDOG=1")

    def _notify(self, message: str) -> None:
        if self.under_systemd:
            self._send(message)
