"""A loader for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.loader.trusted_paths import Trusted
from tests.fakes import FakeKernel
from tests.loader_harness import Served


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def served(kernel: FakeKernel, tmp_path: Path) -> Iterator[Served]:
    """A loader that trusts module files below the test's folder and commands from files in it."""
    it = Served(kernel, Trusted((str(tmp_path),), (str(tmp_path),), f"{tmp_path}/sys"))
    yield it
    it.close()
