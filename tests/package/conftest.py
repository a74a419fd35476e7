"""The package and machines for it, made once for each suite and file of tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import suites
from tests.package.chroots import BARE, BUILD, Machine, build_script, copy_sources, system


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test a parameter for its suite; other suites than the machine's own are long, unless marked `suites`."""
    own = any("suite" in mark.args for mark in metafunc.definition.iter_markers("parametrize"))
    if own or "suite" not in metafunc.fixturenames:
        return
    everywhere = metafunc.definition.get_closest_marker("suites") is not None
    marks = [] if everywhere else [pytest.mark.long]
    others = [pytest.param(suite, marks=marks) for suite in suites.SUITES if suite != suites.own()]
    metafunc.parametrize("suite", [suites.own(), *others], indirect=True, scope="module")


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest) -> str:
    """The parameter's suite."""
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
