"""`kmodd run` before there is a daemon: the process that makes loaders is asked for at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.loader.pool import LoaderPool
from kmodd.loader.spawner import Spawner

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import sys
from kmodd.cli import run
from kmodd.daemon import helper_processes
def connect():
    print("asked", "kmodd.daemon.main" in sys.modules, "kmodd.engine.engine" in sys.modules)
    raise OSError
helper_processes.Spawner.of_systemd = connect
status = run.main(sys.argv[1:])
print("kmodd.daemon.main" in sys.modules)
sys.exit(status)
"""


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[str]:
    """The control socket of another daemon: one that is started at the same path ends before it does anything."""
    path = str(tmp_path / "io.kmodd")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        yield path


def start(taken: str, *words: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--socket", taken, *words],
        cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "another kmodd is running" in done.stderr
    return done.stdout.splitlines()


def test_a_service_asks_for_a_spawner_before_its_own_imports(taken: str, tmp_path: Path) -> None:
    """Without a spawner the start continues."""
    assert start(taken, NOTIFY_SOCKET=str(tmp_path / "notify")) == ["asked False False", "True"]


@pytest.mark.parametrize("words", [(), ("--dry-run",), ("--here", "fixtures/here")])
def test_who_loads_nothing_or_starts_one_asks_for_none(words: tuple[str, ...], taken: str, tmp_path: Path) -> None:
    under_systemd = {"NOTIFY_SOCKET": str(tmp_path / "notify")} if words else {}
    assert "asked" not in "".join(start(taken, *words, **under_systemd))


def test_the_spawner_that_was_asked_for_makes_the_first_loader() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        loaders = LoaderPool(Spawner(ours))
        loaders.keep_spare()
        message, (passed,), *_ = socket.recv_fds(theirs, 64, 1)
        assert message == b"loader"
        os.close(passed)
        lane = loaders.get()
        assert not lane.connection.getblocking(), "the loop never waits for a loader"
        assert not ours.getblocking(), "nor for the spawner"
        assert not loaders.idle
        lane.close()
        loaders.close()


def test_as_many_loaders_are_made_as_there_are_lanes() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        loaders = LoaderPool(Spawner(ours))
        loaders.keep_spare()
        loaders.keep_spare(3)
        loaders.keep_spare(2)
        assert len(loaders.idle) == 3
        loaders.close()
