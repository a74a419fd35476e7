"""Why the service does not run, and calls that wait while systemd restarts it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from kmodd.cli import daemon_away
from kmodd.cli.client import NotRunning
from kmodd.cli.daemon_away import call_awaited, is_coming, mend_here, why_away_here


@pytest.mark.parametrize(
    ("unit", "coming"),
    [
        ({"ActiveState": "activating"}, True),
        ({"ActiveState": "reloading"}, True),
        ({"ActiveState": "inactive", "Job": "71"}, True),  # between the two halves of a restart
        ({"ActiveState": "deactivating", "Job": "71"}, True),
        ({"ActiveState": "inactive", "Job": ""}, False),
        ({"ActiveState": "inactive", "Job": "0"}, False),
        ({"ActiveState": "failed"}, False),
        ({"ActiveState": "active"}, False),
        ({}, False),
    ],
)
def test_a_service_is_coming_while_it_starts_or_has_a_job(unit: dict[str, str], coming: bool) -> None:
    assert is_coming(unit) == coming


def test_a_call_waits_for_a_daemon_that_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From unpack to restart every verb works or waits. Control: a service without a job is not waited for."""
    path = str(tmp_path / "io.kmodd")
    monkeypatch.setattr(daemon_away, "CONTROL_SOCKET", path)
    monkeypatch.setattr(daemon_away, "PAUSE", 0.01)
    looks: list[int] = []
    listening = socket.socket(socket.AF_UNIX)

    def answer() -> None:
        connection, _ = listening.accept()
        connection.recv(4096)
        connection.close()  # as a daemon that ends
        connection, _ = listening.accept()
        connection.recv(4096)
        connection.sendall(b'{"parameters":{"uptime_usec":1}}\0')
        connection.close()

    served = threading.Thread(target=answer)

    def unit() -> dict[str, str]:
        looks.append(1)
        if len(looks) == 3:
            listening.bind(path)
            listening.listen()
            served.start()
        return {"ActiveState": "inactive", "Job": "7"}

    monkeypatch.setattr(daemon_away, "unit_properties", unit)
    assert call_awaited("Status", path) == {"uptime_usec": 1}
    served.join()
    listening.close()
    assert len(looks) == 4, "three without a socket, one without a reply"

    monkeypatch.setattr(daemon_away, "unit_properties", lambda: {"ActiveState": "inactive"})
    with pytest.raises(NotRunning):
        call_awaited("Status", path)


def test_another_socket_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_away, "unit_properties", lambda: pytest.fail("systemd knows nothing of it"))
    with pytest.raises(NotRunning):
        call_awaited("Status", str(tmp_path / "io.kmodd"))


def test_the_time_limit_of_a_call_counts_for_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kmodd settle --timeout=0` ends at once while the service starts; the control waits as long as it may."""
    path = str(tmp_path / "io.kmodd")
    looks: list[int] = []
    monkeypatch.setattr(daemon_away, "CONTROL_SOCKET", path)
    monkeypatch.setattr(daemon_away, "PAUSE", 0.001)
    monkeypatch.setattr(daemon_away, "RESTART_LIMIT", 0.05)

    def unit() -> dict[str, str]:
        looks.append(1)
        return {"ActiveState": "activating"}

    monkeypatch.setattr(daemon_away, "unit_properties", unit)
    for limit, waits in (({"timeout_usec": 0}, False), ({"timeout_usec": 10_000_000}, True), ({}, True)):
        looks.clear()
        with pytest.raises(NotRunning):
            call_awaited("Settle", path, **limit)
        assert bool(looks) == waits


def test_a_systemd_that_does_not_answer_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without D-Bus, which other users than root need. Control: without systemd there is no service to start."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(daemon_away, "BOOTED", str(tmp_path / "none"))
    assert (why_away_here(), mend_here()) == ("", "")
    monkeypatch.setattr(daemon_away, "BOOTED", str(tmp_path))
    assert why_away_here().startswith("systemd does not answer (")
    assert mend_here() == "systemctl start kmodd"
