"""Each fault and each unusual system in docs/RELIABILITY.md names the tests that show what happens; they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "RELIABILITY.md"
TABLES = ("One fault at a time", "Unusual systems")


def rows(heading: str) -> dict[str, str]:
    """First cell → last cell of the rows of the first table below a heading, without its head."""
    table = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n#")[0]
    cells = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {first.strip(): last.strip() for first, *_, last in cells[2:]}


@pytest.mark.parametrize("heading", TABLES)
def test_every_row_names_its_tests(heading: str) -> None:
    found = rows(heading)
    assert len(found) > 10
    for row, tests in found.items():
        assert named(tests), row
        assert missing(tests) == [], row


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def missing(cell: str) -> list[str]:
    return [name for name in named(cell) if not (ROOT / name).is_file()]


def test_control_what_does_not_exist() -> None:
    assert rows("Scale of nothing") == {}
    assert missing("`tests/vm/test_nothing.py`, `tests/vm/test_chaos.py`") == ["tests/vm/test_nothing.py"]
