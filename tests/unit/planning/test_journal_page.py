"""The page of the journal's formats, the catalogue and the code name the same kinds and fields."""

from __future__ import annotations

import re
from pathlib import Path

from kmodd.planning import record

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs/JOURNAL.md").read_text()


def kinds_of_the_code() -> dict[str, str]:
    """Last digits of each MESSAGE_ID → KMODD_RESULT; empty: it is no outcome's."""
    others = {
        value.removeprefix(record.PREFIX)
        for value in vars(record).values()
        if isinstance(value, str) and re.fullmatch(f"{record.PREFIX}[0-9a-f]{{4}}", value)
    }
    return dict.fromkeys(others, "") | {digits: result for result, (digits, _) in record.KINDS.items()}


def test_the_page_has_each_kind_with_its_result() -> None:
    rows = re.findall(r"^\| (f1[0-9a-f]{2}) \| (?:`(\w+)`)? ?\|", PAGE, re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    assert dict(rows) == kinds_of_the_code()


def test_the_catalogue_explains_each_kind() -> None:
    catalogue = (REPOSITORY / "systemd/kmodd.catalog").read_text()
    explained = re.findall(rf"^-- {record.PREFIX}([0-9a-f]{{4}})$", catalogue, re.MULTILINE)
    assert sorted(explained) == sorted(kinds_of_the_code())


def test_the_page_has_each_field() -> None:
    used = set()
    for path in (REPOSITORY / "kmodd").rglob("*.py"):
        used |= set(re.findall(r'"(KMODD_[A-Z_]+)"', path.read_text()))
    used.discard("KMODD_REQUEST")  # not a field: environment of the kernel's helper
    assert set(re.findall(r"`(KMODD_[A-Z_]+)`", PAGE.split("## Fields")[1])) == used
