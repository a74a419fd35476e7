"""A module that was loaded and removed again before `kmodd verify --follow` could look: who did it."""

from __future__ import annotations

from typing import Any

from kmodd.kernel.load_trace import ModuleLoad
from kmodd.planning.history import entry_of
from kmodd.planning.verify import of_gone
from kmodd.planning.why import Records
from tests.journal_files import record

SINCE = 50_000_000


def said(load: ModuleLoad | None, *records: dict[str, Any]) -> str:
    found = of_gone("m", load, Records(tuple(filter(None, map(entry_of, records)))), SINCE)
    return found.text if found else ""


def by(comm: str, second: int = 60) -> ModuleLoad:
    return ModuleLoad("m", comm, 812, second * 1_000_000)


def recorded(second: float, result: str = "loaded") -> dict[str, Any]:
    return record("f101", second, KMODD_RESULT=result, KMODD_SOURCE="operator", KMODD_MODULE="m", KMODD_MODULES="m")


def test_who_loaded_what_is_gone() -> None:
    """Control: kmodd, by its record or by its loader, whose record is yet to come."""
    assert said(by("insmod")) == "was loaded by insmod[812], and not by kmodd, and was removed again"
    assert said(None) == "was loaded by another program, which is not known, and not by kmodd, and was removed again"
    assert said(None, recorded(60)) == ""
    assert said(by("kmodd-loader")) == ""


def test_an_earlier_load_does_not_count() -> None:
    """Neither a record of one, nor one of the trace. Control: the records of now, in the test above."""
    assert "another program" in said(None, recorded(40))
    assert "another program" in said(by("kmodd-loader", 40))
    assert "another program" in said(None, recorded(60, "removed"))
