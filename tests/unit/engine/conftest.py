"""What several tests of the engine work on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kmodd.host.file_watch import Watch
from tests.world import World


@pytest.fixture
def watch(world: World) -> Iterator[Watch]:
    """The watch of the world's machine: open, but sure of nothing before its `set`."""
    it = Watch()
    world.machine.set_watch(it)
    yield it
    it.close()
