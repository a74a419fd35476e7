"""`kmodd metrics`: text that the parser of prometheus-client accepts, with a limited number of series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser as older
from prometheus_client.openmetrics import parser

from kmodd.cli import metrics
from kmodd.daemon.status import StatusReport
from kmodd.planning.outcome import Result
from kmodd.planning.request import ORIGINS
from kmodd.state.tally import BOUNDS_USEC
from tests.answering_daemon import daemon_of
from tests.world import World

RESULTS: tuple[Result, ...] = (
    "loaded", "live", "builtin", "blacklisted", "denied", "blocked", "missing", "failed", "crashed", "stuck", "nomatch",
    "not_attempted", "removed", "in_use", "absent", "not_removed",
)  # fmt: skip


def samples_of(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Name and labels → value, as the parser of OpenMetrics reads them."""
    families = list(parser.text_string_to_metric_families(text))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def reply_of(world: World) -> dict[str, Any]:
    report = StatusReport(world.tree, world.engine, dry_run=False, since=world.now - 10)
    world.refuse["c"] = 22
    world.plug("pci:v1")
    world.plug("pci:v2", "0000:02:00.0")
    for job in world.settle():
        report.finished(job, world.now)
    return report.reply(world.loaders, [], 0, world.now)


def test_the_counters_of_a_daemon(world: World) -> None:
    text = metrics.render(reply_of(world), 3, 1000.0)
    samples = samples_of(text)
    assert samples["kmodd_up", ()] == 1
    assert samples["kmodd_start_time_seconds", ()] == 990
    assert samples["kmodd_outcomes_total", (("result", "loaded"), ("source", "uevent"))] == 2
    assert samples["kmodd_outcomes_total", (("result", "failed"), ("source", "uevent"))] == 1
    assert samples["kmodd_init_seconds_count", ()] == 2
    assert samples["kmodd_init_seconds_bucket", (("le", "+Inf"),)] == 2
    assert samples["kmodd_unbound_devices", ()] == 3
    assert ("kmodd_unbound_devices", ()) not in samples_of(metrics.render(reply_of(world), None, 1000.0))


def test_node_exporter_s_older_format_has_the_same_samples(world: World) -> None:
    text = metrics.render(reply_of(world), 3, 1000.0)
    names = {sample.name for family in older.text_string_to_metric_families(text) for sample in family.samples}
    assert {name for name, _ in samples_of(text)} == names


def test_there_are_at_most_200_series(world: World) -> None:
    """Every source and result, a rule with any name, and more rules than fit: the rest is `other`."""
    outcomes = [
        {"source": source, "result": result, "count": number + 1}
        for number, (source, result) in enumerate((source, result) for source in ORIGINS for result in RESULTS)
    ]
    refusals = {f'/etc/"{number}\\\n\udcff': 1000 - number for number in range(64)} | {"other": 5}
    status = reply_of(world) | {"outcomes": outcomes, "refusals": refusals}
    samples = samples_of(metrics.render(status, 0, 1000.0))
    assert 140 < len(samples) <= 200
    for name, total in (
        ("kmodd_outcomes_total", sum(each["count"] for each in outcomes if isinstance(each["count"], int))),
        ("kmodd_refusals_total", sum(refusals.values())),
    ):
        assert sum(value for (each, _), value in samples.items() if each == name) == total
    assert len(BOUNDS_USEC) + 3 == len([name for name, _ in samples if name.startswith("kmodd_init_seconds")])


def test_the_parser_refuses_a_wrong_text() -> None:
    """The control."""
    with pytest.raises(ValueError, match="EOF"):
        samples_of(metrics.render(None, None, 0.0).replace("# EOF\n", ""))


def test_a_daemon_that_does_not_run_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kmodd.prom"
    assert metrics.main(["--socket", str(tmp_path / "none"), "--output", str(path)]) == 7
    assert samples_of(path.read_text()) == {("kmodd_up", ()): 0}
    assert "the daemon is not running" in capsys.readouterr().err


def test_the_file_is_replaced(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    path = folder / "kmodd.prom"
    path.write_text("old")
    before = path.stat().st_ino
    reply = reply_of(world)
    with daemon_of(tmp_path, reply) as socket:
        assert metrics.main(["--socket", socket, "--output", str(path)]) == 0
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in folder.iterdir()] == ["kmodd.prom"]
    assert samples_of(path.read_text())["kmodd_up", ()] == 1
    with daemon_of(tmp_path, reply) as socket:
        assert metrics.main(["--socket", socket, "--output", f"{folder}/none/x"]) == 1
    assert "No such file or directory" in capsys.readouterr().err
