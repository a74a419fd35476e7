"""Loads on a time axis: where each stands, what the boot waited for, and what waited meanwhile."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from kmodd.planning.history import entries_of
from kmodd.planning.timeline import Load, Timeline, timeline_of, waited_meanwhile
from tests.boot_records import Loaded, boot
from tests.journal_files import Fields, record

PCI = "/devices/pci0000:00"


def timeline(records: Sequence[Fields]) -> Timeline:
    return timeline_of(entries_of(map(json.dumps, records)))


def loads_of(*loads: Loaded, done: int = 0) -> dict[str, Load]:
    return {load.module: load for load in timeline(boot(loads, done)).loads}


def test_a_load_stands_where_its_record_says() -> None:
    (load,) = timeline(boot([Loaded("ahci", 100, 20, 50, (("libata", 10), ("libahci", 5)), f"{PCI}/a", "X")])).loads
    assert (load.begin, load.start, load.end) == (100_000, 120_000, 170_000)
    assert (load.subject, load.device, load.result) == ('a "X"', f"{PCI}/a", "loaded")
    assert (load.init, load.others) == (35_000, 15_000)
    parts = [(name, part.begin, part.end) for name, part in load.parts]
    assert parts == [("libata", 120_000, 130_000), ("libahci", 130_000, 135_000), ("ahci", 135_000, 170_000)]


def test_a_gap_in_a_load_is_before_the_requested_module() -> None:
    """The duration of a decision is more than that of its loads where one of them waited for another request's."""
    told = boot([Loaded("b", 100, 0, 30, (("a", 10),), f"{PCI}/a")])
    told[1] = {**told[1], "KMODD_DURATION_USEC": "90000"}
    (load,) = timeline(told).loads
    assert [(name, part.begin, part.end) for name, part in load.parts] == [
        ("a", 100_000, 110_000), ("b", 170_000, 190_000),
    ]  # fmt: skip


def test_a_failure_stands_before_its_record() -> None:
    load = loads_of(Loaded("x", 100, 0, 50, device=f"{PCI}/a", result="failed"))["x"]
    assert (load.begin, load.start, load.end, load.result) == (100_000, 100_000, 150_000, "failed")


def test_loads_after_coldplug_are_counted_only() -> None:
    loads = [Loaded("a", 100, 0, 10, device=f"{PCI}/a"), Loaded("b", 500, 0, 10, device=f"{PCI}/b")]
    shown = timeline(boot(loads, done=200))
    assert ([load.module for load in shown.loads], shown.later, shown.done) == (["a"], 1, 200_000)
    whole = timeline(boot(loads))
    assert ([load.module for load in whole.loads], whole.later) == (["a", "b"], 0), "coldplug has not ended"


def test_records_that_are_no_loads_are_left_out() -> None:
    others = [
        record("f10a", 1.0, KMODD_RESULT="nomatch", KMODD_SOURCE="coldplug"),
        record("f102", 1.0, KMODD_RESULT="live", KMODD_SOURCE="request", KMODD_MODULE="x"),
        record("f10c", 1.0, KMODD_RESULT="removed", KMODD_SOURCE="operator", KMODD_MODULE="x"),
        record("f101", 1.0, KMODD_RESULT="loaded", KMODD_MODULE="x", KMODD_REQUEST_ID="1", PRIORITY="7"),
    ]
    assert timeline(others).loads == ()


def test_loads_at_a_time_are_in_lanes() -> None:
    found = loads_of(
        Loaded("a", 0, 0, 100, device=f"{PCI}/a"), Loaded("b", 10, 0, 50, device=f"{PCI}/b"),
        Loaded("c", 20, 0, 10, device=f"{PCI}/c"), Loaded("d", 1, 59, 10, device=f"{PCI}/d"),
        Loaded("e", 100, 0, 10, device=f"{PCI}/e"),
    )  # fmt: skip
    assert {name: load.lane for name, load in found.items()} == {"a": 0, "b": 1, "c": 2, "d": 1, "e": 0}


def awaited(*loads: Loaded, done: int = 0) -> set[str]:
    return {name for name, load in loads_of(*loads, done=done).items() if load.is_awaited}


def test_the_boot_waited_for_the_chain_that_ends_last() -> None:
    """Each of it began when the one before had ended, for which it had waited."""
    chain = (Loaded("a", 1, 0, 99, device=f"{PCI}/a"), Loaded("b", 1, 99, 50, device=f"{PCI}/b"),
             Loaded("c", 10, 140, 70, device=f"{PCI}/c"))  # fmt: skip
    beside = Loaded("x", 1, 0, 147, device=f"{PCI}/x")
    short = Loaded("y", 1, 148, 20, device=f"{PCI}/y")
    assert awaited(*chain, beside, short) == {"a", "b", "c"}


def test_a_load_may_begin_before_the_end_of_the_one_before_is_on_record() -> None:
    """On a slow machine, replies are read late: a long load in between was no gap."""
    loads = [
        Loaded("first", 1, 0, 100, device=f"{PCI}/a"), Loaded("long", 1, 100, 1000, device=f"{PCI}/b"),
        Loaded("last", 1, 1080, 50, device=f"{PCI}/c"),
    ]  # fmt: skip
    assert awaited(*loads) == {"first", "long", "last"}
    beside = Loaded("beside", 1, 100, 2000, device=f"{PCI}/d")
    assert awaited(*loads, beside) == {"first", "beside"}, "the control: it ends last"
    assert awaited(*loads[::2], beside, done=1140) == {"first", "last"}, "what goes on for long was not waited for"


def test_a_device_behind_another_one_was_awaited_with_it() -> None:
    """Its event came when the driver of its parent had found it."""
    host = Loaded("xhci_pci", 0, 0, 100, device=f"{PCI}/0000:00:14.0")
    stick = Loaded("usb_storage", 150, 0, 100, device=f"{PCI}/0000:00:14.0/usb1/1-1/1-1:1.0")
    other = Loaded("ahci", 0, 0, 140, device=f"{PCI}/0000:00:1f.2")
    assert awaited(host, stick, other) == {"xhci_pci", "usb_storage"}


def test_the_last_load_alone_was_awaited_if_it_waited_for_none() -> None:
    early, late = Loaded("a", 0, 0, 10, device=f"{PCI}/a"), Loaded("b", 100, 0, 50, device=f"{PCI}/b")
    assert awaited(early, late) == {"b"}


def test_a_load_that_went_on_after_coldplug_was_not_awaited() -> None:
    loads = Loaded("a", 0, 0, 90, device=f"{PCI}/a"), Loaded("stuck", 0, 0, 5000, device=f"{PCI}/b")
    assert awaited(*loads, done=100) == {"a"}


@pytest.mark.parametrize(("source", "waited_for"), [
    ("request", {"nvme"}), ("operator", {"nvme"}), ("", {"nvme", "mount"}), ("uevent", {"nvme", "mount"}),
])  # fmt: skip
def test_coldplug_does_not_wait_for_callers(source: str, waited_for: set[str]) -> None:
    """A request of the kernel or of an operator has a loader beside those of devices."""
    loads = Loaded("nvme", 100, 0, 900, device=f"{PCI}/a"), Loaded("mount", 995, 5, 20, source=source)
    assert awaited(*loads, done=1030) == waited_for


def test_the_load_of_a_caller_is_not_one_that_a_device_waited_for() -> None:
    loads = Loaded("asked", 1, 0, 99, source="request"), Loaded("nvme", 1, 99, 50, device=f"{PCI}/a")
    assert awaited(*loads) == {"nvme"}
    assert awaited(Loaded("listed", 1, 0, 99), loads[1]) == {"listed", "nvme"}, "the control"


@pytest.mark.parametrize(("done", "waited_for", "gap"), [(1110, {"a"}, 0), (60_000, set(), 59_890_000)])
def test_a_load_long_before_the_end_of_coldplug_does_not_explain_it(done: int, waited_for: set[str], gap: int) -> None:
    loads = (Loaded("a", 100, 0, 10, device=f"{PCI}/a"),)
    assert awaited(*loads, done=done) == waited_for
    assert timeline(boot(loads, done)).gap == gap


@pytest.mark.parametrize(("begin", "waited_for", "gap"), [
    (1000, {"host", "disk"}, 0), (9000, {"disk"}, 8_890_000),
])  # fmt: skip
def test_a_driver_long_before_its_device_appears_does_not_explain_it(
    begin: int, waited_for: set[str], gap: int
) -> None:
    loads = Loaded("host", 100, 0, 10, device=f"{PCI}/a"), Loaded("disk", begin, 0, 10, device=f"{PCI}/a/b")
    assert awaited(*loads, done=begin + 20) == waited_for
    assert timeline(boot(loads, begin + 20)).gap == gap


def test_a_load_at_its_side_is_no_gap() -> None:
    """The load of a caller, or one of another device, fills the time before what the boot waited for."""
    loads = [
        Loaded("host", 100, 0, 10, device=f"{PCI}/a"), Loaded("asked", 50, 0, 8900, source="request"),
        Loaded("disk", 9000, 0, 10, device=f"{PCI}/a/b"),
    ]  # fmt: skip
    assert timeline(boot(loads, 9020)).gap == 0
    assert timeline(boot(loads[::2], 9020)).gap == 8_890_000, "the control"


def test_what_waited_meanwhile_and_does_not_need_the_module() -> None:
    found = loads_of(
        Loaded("slow", 1, 0, 99, device=f"{PCI}/a"), Loaded("free", 20, 80, 10, device=f"{PCI}/b"),
        Loaded("needing", 1, 99, 10, device=f"{PCI}/c"), Loaded("quick", 30, 0, 5, device=f"{PCI}/d"),
        Loaded("later", 100, 10, 5, device=f"{PCI}/e"),
    )  # fmt: skip
    slow = found["slow"]
    (_, part) = slow.parts[0]
    others = [load for load in found.values() if load is not slow]

    def needs(name: str) -> frozenset[str]:
        return frozenset({"slow"} if name == "needing" else ())

    waited = waited_meanwhile("slow", part, others, needs)
    assert [(each.load.module, each.usec) for each in waited] == [("free", 80_000)]
    unknown = waited_meanwhile("slow", part, others, lambda _: frozenset())
    assert [each.load.module for each in unknown] == ["needing", "free"], "the control"


@pytest.mark.parametrize("most", [1, 2, 3, 30, None])
def test_some_that_waited_are_the_first_of_all(most: int | None) -> None:
    """Whether they waited throughout, at the begin, at the end or within."""
    loads = [Loaded("slow", 1, 0, 99, device=f"{PCI}/slow")]
    for number in range(20):
        begin, start = (37 * number) % 90, 60 + 3 * number
        loads.append(Loaded(f"m{number}", begin, max(start - begin, 0), 5, device=f"{PCI}/{number}"))
    shown = timeline(boot(loads)).loads
    slow = next(load for load in shown if load.module == "slow")
    ((_, part),) = slow.parts
    whole = waited_meanwhile("slow", part, shown, lambda _: frozenset())
    assert len(whole) > 10
    assert waited_meanwhile("slow", part, shown, lambda _: frozenset(), most) == whole[:most]


@pytest.mark.parametrize(("most", "in_proportion"), [(4, True), (None, False)])
def test_some_that_waited_are_found_without_a_look_at_each_load(most: int | None, in_proportion: bool) -> None:
    """For a list of modules, the comparisons grow with their number, and for all that waited with its square."""
    counts = []
    for number in (100, 400):
        loads = [Loaded(f"m{each}", 1, 10 * each, 10, device=f"{PCI}/{each}") for each in range(number)]
        shown = timeline(boot(loads)).loads
        asked: list[str] = []

        def needs(name: str, asked: list[str] = asked) -> frozenset[str]:
            asked.append(name)
            return frozenset()

        for load in shown:
            for name, part in load.parts:
                waited_meanwhile(name, part, shown, needs, most)
        counts.append(len(asked))
    assert (counts[1] <= 5 * counts[0]) == in_proportion


@pytest.mark.parametrize("number", ["999999999999999999", "0", "-1", "x"])
def test_a_number_that_is_none_moves_nothing_out_of_order(number: str) -> None:
    fields = dict.fromkeys(("KMODD_BEGIN_MONOTONIC_USEC", "KMODD_WAIT_USEC", "KMODD_DURATION_USEC"), number)
    told = record("f101", KMODD_RESULT="loaded", KMODD_MODULE="a", KMODD_INIT_USEC=f"a:{number}")
    shown = timeline([{**told, **fields}])
    for load in shown.loads:
        assert 0 <= load.begin <= load.start <= load.end
        assert all(load.start <= part.begin for _, part in load.parts)
