"""`kmodd status`: what an administrator asks, of a daemon that runs, and of one that does not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli import reload, status
from kmodd.cli.daemon_away import not_running, why_away
from kmodd.daemon.status import StatusReport
from kmodd.engine.events import AnyJob
from kmodd.host.sd_notify import Notify
from tests.answering_daemon import daemon_of
from tests.world import RELEASE, World


class Shown(Notify):
    """Keeps the lines of `systemctl status`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def status(self, text: str) -> None:
        self.lines.append(text)


def report_of(world: World) -> StatusReport:
    return StatusReport(world.tree, world.engine, dry_run=False, since=world.now - 125)


def reply_of(world: World, *jobs: AnyJob) -> dict[str, Any]:
    """The state after these jobs."""
    report = report_of(world)
    for job in jobs:
        report.finished(job, world.now - 300)
    return report.reply(world.loaders, ["something is missing"], 0, world.now)


def lines_of(reply: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    with daemon_of(folder, reply) as path:
        assert status.main(["--socket", path]) == 0
    pairs = (line.partition(": ") for line in capsys.readouterr().out.splitlines())
    return {label.strip(): text for label, _, text in pairs}


def test_lanes_are_named_where_their_number_is_not_fixed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Lanes" not in lines_of(reply_of(world), tmp_path, capsys)
    monkeypatch.setattr(world.machine, "processors", 8)
    world.configure("[Kmodd]\nLanes=auto\n")
    world.reload()
    assert lines_of(reply_of(world), tmp_path, capsys)["Lanes"] == "auto: one, and up to 8 while loaders sleep"


def test_what_an_administrator_asks(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.refuse["c"] = 22
    world.set_rules("deny module=a origin=request")
    world.plug("pci:v1")
    world.plug("pci:v2", "0000:02:00.0")
    jobs = world.settle()
    world.live()
    world.ask("a")
    jobs += world.settle()
    os.utime(world.modules / "modules.dep", (time.time() - 3 * 86400 - 60,) * 2)
    lines = lines_of(reply_of(world, *jobs), tmp_path, capsys)
    assert lines["kmodd"].endswith(f", kernel {RELEASE}")
    assert lines["Running"].startswith("since ")
    assert lines["Running"].endswith("; 2min 5s ago")
    assert lines["Now"] == "idle"
    assert "2 loaded" in lines["Modules"]
    assert lines["Failed"].startswith("c failed (EINVAL")
    assert lines["Failed"].endswith(" 5min ago")
    assert lines["Refused"] == "a denied (/etc/kmodd/policy.d/x.conf:1) 5min ago"
    assert lines["Policy"].startswith("rules are enforced, 1 in force")
    assert lines["Index"] == f"{world.modules}, 3 days old"
    assert lines["Problem"] == "something is missing"
    assert "lane" not in " ".join(lines.values())


def test_what_loads_now(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.plug("pci:v2")
    world.advance()
    world.now += 3
    lines = lines_of(reply_of(world), tmp_path, capsys)
    assert lines["Now"] == "loading c for 3s"
    assert (lines["Failed"], lines["Refused"]) == ("nothing", "nothing")


def test_a_line_fits_the_terminal(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "columns_of", lambda _: 40)
    with daemon_of(tmp_path, reply_of(world)) as path:
        assert status.main(["--socket", path]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) == 40


def test_the_line_of_systemctl_status_changes_when_the_daemon_is_idle(world: World) -> None:
    report, shown = report_of(world), Shown()
    report.show(shown, world.now)
    world.plug("pci:v2")
    world.advance()
    report.show(shown, world.now + 1)
    assert shown.lines == ["Idle; 0 modules loaded"], "not for each load of a boot"
    report.show(shown, world.now + 6)
    world.settle()
    report.show(shown, world.now + 7)
    report.show(shown, world.now + 8)
    assert shown.lines[1:] == ["Loading c; 0 modules loaded", "Idle; 1 module loaded"]


INACTIVE = {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "enabled"}


@pytest.mark.parametrize(
    ("unit", "command_line", "reason", "command"),
    [
        ({"LoadState": "not-found"}, "", "not installed", "make install"),
        ({"LoadState": "masked"}, "", "masked", "systemctl unmask kmodd"),
        (INACTIVE, "quiet kmodd=off", "kernel command line", "boot without it"),
        (INACTIVE, "quiet", "stopped", "systemctl start kmodd"),
        (INACTIVE | {"UnitFileState": "disabled"}, "", "disabled", "systemctl enable --now kmodd"),
        (INACTIVE | {"ActiveState": "failed", "Result": "timeout"}, "", "failed (timeout)", "journalctl -u kmodd"),
        (INACTIVE | {"ActiveState": "activating"}, "", "starting", "systemctl status kmodd"),
        (INACTIVE | {"ActiveState": "active"}, "", "does not answer", "systemctl restart kmodd"),
    ],
)
def test_why_the_daemon_is_away(unit: dict[str, str], command_line: str, reason: str, command: str) -> None:
    text = why_away(unit, command_line)
    assert reason in text
    assert command in text
    assert why_away({}, command_line) == "", "the control: without systemd there is no service"


def test_a_socket_of_ones_own_is_no_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "none")
    assert reload.main(["--socket", path]) == 7
    said = f"the daemon is not running: No such file or directory: {path}\n"
    assert capsys.readouterr().err == f"kmodd reload: {said}"
    assert not_running(status.VERB, ValueError("gone"), path) == 7
    assert capsys.readouterr().err == "kmodd status: gone\n"
