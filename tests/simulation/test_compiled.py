"""The compiled copy of the simulator plays the same boots as Python."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.simulation.compiled import ROOT, build, prepared, sources

SEEDS = range(1, 9)

PLAY = """
import kmodd.engine.engine
from tests.simulation.draw import play_boot
print(kmodd.engine.engine.__file__.rpartition(".")[2])
for seed in range({first}, {end}):
    boot, sim = play_boot(seed)
    print(seed, sim.digest(), sim.invariants.events, boot.kind)
"""


def played(folder: Path) -> Sequence[str]:
    """The ending of the engine's file and the result of each seed, by the sources in a folder."""
    command = [sys.executable, "-c", PLAY.format(first=SEEDS.start, end=SEEDS.stop)]
    env = {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_compiled_boot_is_the_same_to_the_step() -> None:
    """The engine's file shows that one of them is compiled and the other is not."""
    plain, compiled = played(ROOT), played(build())
    assert (plain[0], compiled[0]) == ("py", "so")
    assert compiled[1:] == plain[1:]


def test_engine_planning_and_machine_are_compiled() -> None:
    found = sources()
    for path in ("kmodd/engine/engine.py", "kmodd/planning/resolve.py", "tests/simulation/kernel.py"):
        assert path in found
    assert not any(path.startswith(("kmodd/cli/", "kmodd/loader/")) for path in found)


def test_a_source_is_prepared_for_mypyc() -> None:
    text = """from __future__ import annotations
from kmodd.dataclass import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Word = Literal["one", "two"]
else:
    Word = str


@dataclass(frozen=True, slots=True)
class One:
    word: Word


@dataclass(slots=True, eq=False)
class Other:
    word: Word


print(One.__match_args__)
"""
    assert prepared(text).splitlines()[1:] == [
        "from dataclasses import dataclass, field",
        "",
        "",
        "from typing import Literal",
        "",
        'Word = Literal["one", "two"]',
        "",
        "",
        "@dataclass(unsafe_hash=True)",
        "class One:",
        "    word: Word",
        "",
        "",
        "@dataclass(eq=False)",
        "class Other:",
        "    word: Word",
        "",
        "",
        'print(getattr(One, "__match_args__"))',
    ]


def test_what_mypyc_takes_is_left_alone() -> None:
    text = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from typing import Literal\n"
    assert prepared(text) == text
