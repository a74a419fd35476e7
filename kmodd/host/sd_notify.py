"""Telling the service manager: readiness, reload, the watchdog (sd_notify(3))."""

from __future__ import annotations

import os
import time


class Notify:
    """Speaks to systemd where it started us, else says nothing."""

    def __init__(self) -> None:
        self.under_systemd = "NOTIFY_SOCKET" in os.environ
        watchdog = os.environ.get("WATCHDOG_USEC", "")
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_interval = int(watchdog) / 2e6 if watchdog.isdigit() and for_us else None
        """Seconds between two `alive` calls: half of what the manager waits; None: no watchdog."""
        self._next_alive = 0.0
        if self.under_systemd:
            import systemd.daemon  # 5 ms that only a service pays

            self._send = systemd.daemon.notify

    def ready(self, status: str) -> None:
        """Started, or done with reloading."""
        self._tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """MONOTONIC_USEC must stand in the same message (systemd.service(5), notify-reload)."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        """Going down on purpose."""
        self._tell("STOPPING=1")

    def alive(self, now: float) -> None:
        """The loop goes round at `now` (time.monotonic); said no more often than the manager needs it."""
        if self.watchdog_interval is not None and now >= self._next_alive:
            self._next_alive = now + self.watchdog_interval / 2
            self._tell("WATCHDOG=1")

    def _tell(self, message: str) -> None:
        if self.under_systemd:
            self._send(message)
