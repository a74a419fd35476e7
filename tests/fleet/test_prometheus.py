"""docs/kmodd-alerts.yml and docs/FLEET.md with Debian's Prometheus and node-exporter, on loopback."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kmodd.cli import metrics
from kmodd.daemon.status import StatusReport
from tests import suites, trees
from tests.fleet.network import answer, free_port, serving, wait_for
from tests.world import World

ALERTS = Path(__file__).resolve().parents[2] / "docs" / "kmodd-alerts.yml"
CONFIG = """
global: {scrape_interval: 250ms, evaluation_interval: 250ms}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: node
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""
CASE = """
rule_files: [%s]
tests:
  - interval: 1m
    input_series: [{series: '%s', values: '%s'}]
    alert_rule_test: [{eval_time: %s, alertname: %s, exp_alerts: [%s]}]
"""


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of prometheus, promtool and prometheus-node-exporter of this machine's suite."""
    packages = [trees.newest(name, suites.own(), "") for name in ("prometheus", "prometheus-node-exporter")]

    def fill(root: Path) -> None:
        for package in packages:
            trees.unpack(package, root)

    return trees.cached("-".join(f"{each.name}_{each.version}" for each in packages), fill) / "usr" / "bin"


def counters(world: World, unbound: int) -> str:
    report = StatusReport(world.tree, world.engine, dry_run=False, since=world.now - 10)
    return metrics.render(report.reply(world.loaders, [], 0, world.now), unbound, 1000.0)


@pytest.fixture
def alerts_with(programs: Path, tmp_path: Path, world: World) -> Iterator[Callable[[int], set[str]]]:
    """The names of the alerts that Prometheus fires for a machine with that many devices without a driver."""
    (tmp_path / "alerts.yml").write_text(re.sub(r"for: \w+", "for: 0s", ALERTS.read_text()))
    exporter, prometheus = free_port(), free_port()
    (tmp_path / "prometheus.yml").write_text(CONFIG % exporter)
    (tmp_path / "textfile").mkdir()
    api = f"http://127.0.0.1:{prometheus}/api/v1"

    def fired(unbound: int) -> set[str]:
        (tmp_path / "textfile" / "kmodd.prom").write_text(counters(world, unbound))

        def value() -> object:
            found = answer(f"{api}/query?query=kmodd_unbound_devices")["data"]["result"]
            return found and found[0]["value"][1] == str(unbound)

        def evaluations() -> list[str]:
            groups = answer(f"{api}/rules")["data"]["groups"]
            return [group["lastEvaluation"] for group in groups]

        def changed(before: list[str]) -> bool:
            return evaluations() != before

        wait_for(value)
        for _ in range(2):  # the second one began after the value was there
            wait_for(functools.partial(changed, evaluations()))
        return {each["labels"]["alertname"] for each in answer(f"{api}/alerts")["data"]["alerts"]}

    with ExitStack() as running:
        command = [
            f"{programs}/prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{exporter}",
            "--collector.disable-defaults", "--collector.textfile",
            f"--collector.textfile.directory={tmp_path}/textfile",
        ]  # fmt: skip
        running.enter_context(serving(command, exporter, tmp_path / "exporter.log"))
        command = [
            f"{programs}/prometheus", f"--web.listen-address=127.0.0.1:{prometheus}",
            f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        ]  # fmt: skip
        running.enter_context(serving(command, prometheus, tmp_path / "prometheus.log"))
        yield fired


def test_an_alert_fires_for_a_device_without_a_driver(alerts_with: Callable[[int], set[str]]) -> None:
    """And for nothing else; none without such a device, before and after it."""
    assert alerts_with(0) == set()
    assert alerts_with(1) == {"KmoddDeviceWithoutDriver"}
    assert alerts_with(0) == set()


@pytest.mark.parametrize(
    ("series", "values", "alert"),
    [
        ("kmodd_up", "1 0x12", "KmoddDown"),
        ('node_textfile_mtime_seconds{file="/var/lib/x/kmodd.prom"}', "0x20", "KmoddStale"),
        ("kmodd_unbound_devices", "0 2x5", "KmoddDeviceWithoutDriver"),
        ('kmodd_outcomes_total{source="uevent",result="crashed"}', "1 2x5", "KmoddModuleFailed"),
        ("kmodd_stuck_modules", "0 1x5", "KmoddModuleStuck"),
    ],
)
def test_each_alert_has_its_time(programs: Path, tmp_path: Path, series: str, values: str, alert: str) -> None:
    """promtool evaluates the shipped file in simulated time: late enough it fires, and at first it does not."""

    def judge(minute: str, expected: str) -> int:
        case = tmp_path / "case.yml"
        case.write_text(CASE % (ALERTS, series, values, minute, alert, expected))
        return subprocess.run([f"{programs}/promtool", "test", "rules", str(case)], capture_output=True).returncode

    assert judge("0m", "") == 0
    late = "15m" if alert == "KmoddStale" else "8m" if alert == "KmoddDown" else "4m"
    assert judge(late, "") == 1
