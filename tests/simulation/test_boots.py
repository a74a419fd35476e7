"""Simulated boots: seeds that follow from the commit, scripts of old failures, and controls of the search itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.coverage import BATCH_TABLE, Coverage, Results
from tests.simulation.draw import (
    MIN_DEVICES,
    MIN_EVENTS,
    MIN_FAULTS,
    MIN_MODULES,
    SCRIPTS,
    play_boot,
    play_lines,
    read_script,
)
from tests.simulation.shrink import shrink

ROOT = Path(__file__).parent.parent.parent
NEW_SEEDS = 240
CHUNKS = 8


def first_seed() -> int:
    """A number that follows from the commit; where there is no repository, 1."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return 1
    return int(done.stdout[:12], 16) if done.returncode == 0 else 1


# Long until a search of 20,000 seeds is clean (docs/RELIABILITY.md).
@pytest.mark.long
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_boots_of_this_commit_keep_all_invariants(chunk: int) -> None:
    """`make simulate SEEDS=N` repeats a seed that is printed here."""
    first = first_seed() + chunk * (NEW_SEEDS // CHUNKS)
    boots = {seed: play_boot(seed)[0] for seed in range(first, first + NEW_SEEDS // CHUNKS)}
    assert [f"seed {seed}: {boot.text}" for seed, boot in boots.items() if boot.kind] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_keeps_all_invariants(path: Path) -> None:
    assert play_lines(read_script(path))[0].text == ""


def test_a_boot_is_large_enough() -> None:
    """At least 12 devices, 20 modules, 200 events and three faults."""
    for seed in range(20):
        boot, sim = play_boot(seed)
        devices = {line.split(" ")[1] for line in boot.lines if line.startswith("plug ")}
        assert len(devices) >= MIN_DEVICES
        assert len(sim.files.needs) >= MIN_MODULES
        assert boot.events >= MIN_EVENTS
        assert len(set(boot.faults)) >= MIN_FAULTS


def test_a_seed_is_the_same_boot_in_another_process() -> None:
    """Whatever the order of sets, which follows from PYTHONHASHSEED."""
    code = "from tests.simulation.draw import play_boot; print(*(play_boot(seed)[1].digest() for seed in range(5)))"
    found = set()
    for number in ("1", "2"):
        environment = {"PYTHONHASHSEED": number, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert found == {" ".join(play_boot(seed)[1].digest() for seed in range(5)) + "\n"}


def test_lines_that_were_drawn_play_the_same_boot() -> None:
    """What shrinking rests on."""
    for seed in range(10):
        boot, sim = play_boot(seed)
        assert play_lines(boot.lines)[1].digest() == sim.digest()


def test_the_search_goes_through_the_tables() -> None:
    """Most rows of the batch's table are seen in 150 boots; a control that faults have an effect."""
    coverage = Coverage()
    for seed in range(150):
        play_boot(seed, coverage)
    assert len(BATCH_TABLE & set(coverage.batch)) >= len(BATCH_TABLE) - 3
    assert len(coverage.startup) == 2
    assert len(coverage.pairs) > 300


@pytest.mark.parametrize(("word", "seen"), [("late", 1), ("now", 0)])
def test_a_loader_that_is_told_late_to_stop_ends_one_more_file(word: str, seen: int) -> None:
    """The batch's row for that. Control: one that gets the request in time does not begin it."""
    coverage = Coverage()
    lines = [
        "module a", "module b a", "module c b", "alias pci:v01* c", "plug d1 pci:v01", "set StuckAfterSec 5", "start",
        "round", "begin a", f"stops {word}", "wait 6", "round", "round", "finish b", "round",
    ]  # fmt: skip
    boot, _ = play_lines(lines, coverage)
    assert boot.text == ""
    assert coverage.batch["detached", "reply", "detached"] == seen


def test_shrinking_leaves_what_fails() -> None:
    lines = [str(number) for number in range(200)]
    assert shrink(lines, lambda part: {"17", "99", "180"} <= set(part)) == ["17", "99", "180"]


def test_results_of_ranges_add_up(tmp_path: Path) -> None:
    path = tmp_path / "build/simulation.json"
    for first, last in ((1, 10), (11, 20)):
        results = Results(path, f"commit {first}", "sources")
        results.read()
        assert not results.has(first, last)
        results.ranges.append((first, last))
        results.coverage.add_boot(["oops", "hang"])
        results.coverage.batch["running", "end", "done"] += 3
        results.write()
    results = Results(path, "commit 21", "sources")
    results.read()
    assert results.ranges == [(1, 20)]
    assert results.has(20, 30)
    assert results.coverage.boots == 2
    assert results.coverage.batch["running", "end", "done"] == 6
    assert results.coverage.pairs["hang + oops"] == 2


def test_results_of_other_sources_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "simulation.json"
    results = Results(path)
    for number, sources in enumerate(("old", "new", "old")):
        results = Results(path, f"commit {number}", sources)
        results.read()
        assert results.coverage.boots == (number == 2)
        assert results.has(1, 1) == (number > 0)
        results.ranges.append((number * 10 + 1, number * 10 + 10))
        results.failed += [(number * 10 + 1, "order")]
        results.coverage.add_boot(["oops"])
        results.write()
    assert results.total() == "3 boots on 2 states of the sources, 3 failed"
    assert results.has(11, 11)
    again = Results(path, "commit 9", "new")
    again.read()
    assert (again.ranges, again.failed, again.coverage.boots) == ([(11, 20)], [(11, "order")], 1)
