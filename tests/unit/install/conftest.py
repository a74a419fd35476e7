"""Installations and kernel helpers, made once for the tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.host.helper_socket import RequestSocket
from tests.installation import make
from tests.request_helper import CROSS, KINDS, PATIENCE, Helper


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed below DESTDIR, as for a package or an image."""
    folder = tmp_path_factory.mktemp("image")
    make("install", f"DESTDIR={folder}", "PREFIX=/usr")
    return folder


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed so that it runs where it lies."""
    folder = tmp_path_factory.mktemp("prefix") / "usr"
    make("install", f"PREFIX={folder}")
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Helper]:
    every = {kind: Helper(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    for helper in every.values():
        helper.build()
    return every


@pytest.fixture
def helpers(built: dict[str, Helper]) -> Iterator[list[Helper]]:
    """All kinds, for tests that wait: they wait together."""
    for helper in built.values():
        helper.reset()
    yield list(built.values())
    for helper in built.values():
        helper.clean()


@pytest.fixture(scope="session")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Helper:
    it = Helper(tmp_path_factory.mktemp(CROSS), CROSS)
    it.build()
    return it


@pytest.fixture(params=[*KINDS, pytest.param(CROSS, marks=pytest.mark.long)])
def helper(built: dict[str, Helper], request: pytest.FixtureRequest) -> Iterator[Helper]:
    it: Helper = request.getfixturevalue("cross") if request.param == CROSS else built[request.param]
    it.reset()
    yield it
    it.clean()


@pytest.fixture
def requests(helper: Helper) -> Iterator[RequestSocket]:
    """The daemon's end, from which the test answers."""
    helper.limit = PATIENCE
    it = RequestSocket(helper.socket)
    yield it
    it.close()
