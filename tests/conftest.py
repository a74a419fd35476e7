"""Seed, order and skips of all tests, and the last line `passed N, failed N, skipped N`."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings

CI = os.environ.get("CI", "") not in ("", "0", "false")
"""In CI nothing is skipped: a test that cannot run there has failed."""

SEED = pytest.StashKey[int]()
COUNTS = pytest.StashKey[dict[str, int]]()
SLOWEST_LAST = ("differential", "root", "vm")
"""Markers in the order in which their tests run, after those with none of them."""

FOREIGN = (
    "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "MODPROBE_OPTIONS",
)  # fmt: skip
"""Variables of a service manager or a user, which a test removes."""

INHERITED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGALRM, signal.SIGCHLD,
    signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
"""Signals that the parent of this process may have ignored."""

# How long it takes to draw cases says more of the machine than of a test.
settings.register_profile("kmodd", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kmodd")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the run's one seed, or take it from KMODD_SEED; hypothesis gets the same."""
    os.umask(0o022)  # a loader takes no file that a group can write, and some users' files are so
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in INHERITED:
        if signal.getsignal(number) is signal.SIG_IGN:  # by nohup, for a job in the background, by a careless runner
            signal.signal(number, lambda *_: None)  # does the same here, and is not handed down to what tests start
    seed = int(os.environ.get("KMODD_SEED") or random.SystemRandom().randrange(2**32))
    os.environ["KMODD_SEED"] = str(seed)  # for the processes of pytest-xdist
    config.stash[SEED] = seed
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(seed)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.stash[SEED]} (KMODD_SEED={config.stash[SEED]} repeats this run's random cases)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run quick tests first; skip those marked root without root."""
    items.sort(key=_turn)
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def _turn(item: pytest.Item) -> tuple[int, bool]:
    turn = max(number if item.get_closest_marker(name) else 0 for number, name in enumerate(SLOWEST_LAST, 1))
    # With several processes the long ones come first: when the first guest boots, the others are through.
    # The files of tests/property take longest: if one of them came last, the other processes would wait for it.
    first = -turn if hasattr(item.config, "workerinput") and not item.get_closest_marker("vm") else turn
    return first, not item.nodeid.startswith("tests/property/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With several processes (`-n 2`) a file is one process's, so that its tests share a guest."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test alone, repeatable by the seed in the header of the run."""
    return random.Random(f"{request.config.stash[SEED]} {request.node.nodeid}")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Count, and in CI let a skip fail the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    stats = reporter.stats if reporter else {}
    counts = {
        "passed": len(stats.get("passed", [])),
        "failed": len(stats.get("failed", [])) + len(stats.get("error", [])),
        "skipped": len(stats.get("skipped", [])) + len(stats.get("xfailed", [])),
    }
    session.config.stash[COUNTS] = counts
    if CI and counts["skipped"] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the minutes of each group, for the table in CONTRIBUTING.md, where more than one group ran."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[_group(report.nodeid)] += report.duration
    if len(seconds) > 1:
        minutes = [f"{group} {total / 60:.1f}" for group, total in sorted(seconds.items())]
        terminalreporter.write_line(f"minutes: {', '.join(minutes)}; all {sum(seconds.values()) / 60:.1f}")


def _group(nodeid: str) -> str:
    """The folder below tests/; in vm the first word of the file's name too, as of all `test_faults_*.py`."""
    _, folder, *rest = nodeid.partition("::")[0].split("/")
    if not rest:
        return "lint"
    return f"vm {rest[0].removesuffix('.py').split('_')[1]}" if folder == "vm" else folder


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The contract's last line, after pytest's own summary (which names each skipped test and why)."""
    counts = config.stash.get(COUNTS, None)
    if counts is not None and not hasattr(config, "workerinput"):
        if CI and counts["skipped"]:
            print("in CI nothing may be skipped")
        if counts["failed"]:
            print(f"KMODD_SEED={config.stash[SEED]} repeats this run's random cases")
        print("passed {passed}, failed {failed}, skipped {skipped}".format(**counts))
        sys.stdout.flush()
