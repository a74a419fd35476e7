"""/proc/modules: what each word means, and lines that have another format."""

from __future__ import annotations

import pytest

from kmodd.kernel.proc_modules import LoadedModule, parse_modules
from kmodd.names import ModuleName


def only(line: str) -> LoadedModule | None:
    return next(iter(parse_modules(line).modules.values()), None)


def test_a_count_that_is_none_differs_from_minus_one() -> None:
    """`-` is a kernel without CONFIG_MODULE_UNLOAD, -1 a module that is being unloaded (kernel/module/procfs.c)."""
    for words, refcnt, state in (("-", None, "live"), ("-1", -1, "going"), ("0", 0, "live"), ("3", 3, "coming")):
        kernel = {"live": "Live", "going": "Unloading", "coming": "Loading"}[state]
        found = only(f"m 4096 {words} - {kernel} 0x0 (OE)\n")
        assert found is not None
        assert (found.refcnt, found.state) == (refcnt, state)


def test_words_in_brackets_are_no_holders() -> None:
    found = only("m 4096 1 x,[permanent], Live 0x0\n")
    assert found is not None
    assert found.holders == (ModuleName("x"),)


@pytest.mark.parametrize("line", ["m", "m 1 0 - Dead 0x0", "m x 0 - Live 0x0", "m 1 x - Live 0x0", "m ² 0 - Live 0x0"])
def test_a_line_in_another_format_is_skipped(line: str) -> None:
    assert only(line) is None
    assert parse_modules(line).state("m") is None
