"""The package and machines for it, made once for each suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import suites
from tests.package.chroots import BARE, BUILD, Machine, build_script, copy_sources, system

OTHERS = [suite for suite in suites.SUITES if suite != suites.own()]


@pytest.fixture(scope="module", params=[suites.own(), *(pytest.param(each, marks=pytest.mark.long) for each in OTHERS)])
def suite(request: pytest.FixtureRequest) -> str:
    """The machine's own suite; the others in `make test-long`."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sources and packages, /mnt of all machines."""
    folder = tmp_path_factory.mktemp("shared")
    copy_sources(folder / "source")
    return folder


@pytest.fixture(scope="module")
def builder(suite: str, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine on which /mnt/kmodd.deb has been built."""
    machine = Machine(system(suite, BUILD), tmp_path_factory.mktemp("builder"), shared)
    machine.run(build_script("kmodd"))
    return machine


@pytest.fixture(scope="module")
def bare(suite: str, builder: Machine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Machine]:
    """Make a machine of the suite that has what kmodd depends on, and no kmodd."""
    made: list[Path] = []

    def make() -> Machine:
        lower = system(suite, [*BARE, "python3-systemd", "python3-pyudev", "python3-pyelftools"])
        made.append(tmp_path_factory.mktemp("machine"))
        return Machine(lower, made[-1], builder.shared)

    return make
