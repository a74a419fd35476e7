"""Examples of alias patterns, and lists of module names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kmodd.config.modprobe_d import Config
from kmodd.config.policy_d import Phase
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.fnmatch import matches
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.planning.benchmarks import BENCHMARKS, parse
from kmodd.planning.hardening import Known, example_of, judge
from kmodd.planning.plan import Plan
from kmodd.planning.policy import Policy, PolicyQuery
from kmodd.planning.request import Origin, Request
from kmodd.planning.resolve import options_of, resolve

if TYPE_CHECKING:
    from kmodd.planning.hardening import Planner


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


def test_a_sealed_daemon_keeps_out_what_no_rule_allows() -> None:
    """It says that this ends. The control is a daemon without a seal."""
    snapshot = Snapshot(Catalog([Layer("/lib/modules/6.1.0", {"modules.dep": b"hfs.ko:\n"}.get)]), Config())

    def planner(phase: Phase) -> Planner:
        def plan(name: str, origin: Origin, _: str) -> Plan:
            query = PolicyQuery(origin, name, phase)
            return resolve(
                Request(name, origin), snapshot, NOTHING_LOADED, options_of(origin), lambda _: True,
                lambda module: Policy("off", ()).judge(query, module),
            )  # fmt: skip

        return plan

    known = Known("hfs", "", True)
    assert judge(known, planner("running")).text == "can be loaded by root (modprobe hfs)"
    sealed = judge(known, planner("running"), planner("sealed"))
    assert (sealed.is_met, sealed.text) == (
        True,
        "sealed until the next boot or `kmodd seal --undo`; else it can be loaded by root (modprobe hfs)",
    )
