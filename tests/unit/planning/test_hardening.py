"""Examples of alias patterns, and lists of module names."""

from __future__ import annotations

import pytest

from kmodd.index.fnmatch import matches
from kmodd.planning.benchmarks import BENCHMARKS, parse
from kmodd.planning.hardening import example_of


@pytest.mark.parametrize(
    "pattern",
    ["fs-hfs", "usb:v0781p*d00[0-3]*dc*", "char-major-10-*", "pci:v????d*", "usb:v1p2d[1-4][0-9]*"],
)
def test_an_example_matches_its_pattern(pattern: str) -> None:
    assert matches(pattern, example_of(pattern))


def test_names_are_spelled_as_the_kernel_has_them_and_sorted() -> None:
    for benchmark in BENCHMARKS.values():
        assert list(benchmark.modules) == sorted(set(benchmark.modules))
        assert all("-" not in name for name in benchmark.modules)
        assert benchmark.source


def test_a_file_has_a_name_a_line() -> None:
    """Control: what is no name is a problem with its line."""
    found, problems = parse("# CIS\nusb-storage\n\ncramfs  # old\nusb_storage\n", "/x")
    assert (found.modules, problems) == (("usb_storage", "cramfs"), [])
    found, problems = parse("a\ninstall b /bin/false\n../c\n" + "d" * 56, "/x")
    assert (found.modules, [problem.at.line for problem in problems]) == (("a",), [2, 3, 4])
