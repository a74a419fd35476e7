"""One record for a decision: a device, or a request, with all that it brought."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from kmodd.engine.events import DevicesFound
from kmodd.kernel import uevent
from kmodd.planning.history import entries_of
from kmodd.planning.policy import PolicyQuery
from kmodd.planning.policy_history import read, sealed_asking, suggest
from kmodd.planning.record import DEBUG, ERR, INFO, NOTICE, Record
from tests.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With the level of records that is the default."""
    return World(tmp_path, log_level=INFO)


def values(record: Record, name: str) -> list[str]:
    return [value for field, value in record.fields if field == name]


def messages(world: World) -> list[str]:
    return [record.message for record in world.records]


def test_a_device_is_one_record_with_all_that_it_brought_in_load_order(world: World) -> None:
    """`KMODD_MODULES` (repeated: all that it brought, in load order, the goal included)."""
    world.plug("pci:v1", "0000:01:00.0")
    world.settle()
    (record,) = world.records
    assert record.message == "Loaded b for 0000:01:00.0 in 14us, with a"
    assert record.priority == INFO
    assert values(record, "KMODD_MODULE") == ["b"]
    assert values(record, "KMODD_MODULES") == ["a", "b"]
    assert values(record, "KMODD_INIT_USEC") == ["a:7", "b:7"]
    assert values(record, "KMODD_REASON") == ["a:dependency of b"]
    assert values(record, "KMODD_REQUEST_ID") == ["1"]


def test_the_times_of_a_decision_are_those_of_its_queue_and_its_loads(world: World) -> None:
    """`KMODD_BEGIN_MONOTONIC_USEC`, `KMODD_WAIT_USEC` (until a loader had it), `KMODD_DURATION_USEC`."""
    world.plug("pci:v2", "first")
    world.plug("pci:v1", "second")
    world.advance()
    world.pass_time(3)
    world.finish("c", usec=2_000_000)
    world.pass_time(1)
    world.finish("a", usec=500_000)
    world.pass_time(2)
    world.finish("b", usec=2_000_000)
    second = world.records[-1]
    assert values(second, "KMODD_MODULE") == ["b"]
    assert values(second, "KMODD_BEGIN_MONOTONIC_USEC") == ["1000000000"]
    assert values(second, "KMODD_WAIT_USEC") == ["3500000"]
    assert values(second, "KMODD_DURATION_USEC") == ["2500000"]
    assert values(second, "KMODD_INIT_USEC") == ["a:500000", "b:2000000"]


def test_replies_that_are_read_late_make_no_load_shorter(world: World) -> None:
    """`KMODD_DURATION_USEC` is at least the sum of `KMODD_INIT_USEC`."""
    world.plug("pci:v1")
    world.advance()
    world.pass_time(3)
    world.finish("a", usec=2_000_000)
    world.finish("b", usec=1_000_000)
    assert values(world.records[-1], "KMODD_DURATION_USEC") == ["3000000"]


def test_debug_has_a_record_for_each_module_and_the_decision_once(tmp_path: Path) -> None:
    """`KMODD_REQUEST_ID` is the same on a decision and its debug records."""
    world = World(tmp_path, log_level=DEBUG)
    world.plug("pci:v1")
    world.settle()
    detail, decision = world.records
    assert (detail.priority, decision.priority) == (DEBUG, INFO)
    assert values(detail, "KMODD_REQUEST_ID") == values(decision, "KMODD_REQUEST_ID") == ["1"]
    assert world.told() == [("a", "loaded"), ("b", "loaded")]


def test_what_is_there_already_is_no_record(world: World) -> None:
    world.live("c")
    world.pass_time(1.1)  # until the list of modules is read again
    world.plug("pci:v2")
    world.settle()
    assert world.records == []


def test_a_request_of_the_kernel_is_always_one_record_at_info(world: World) -> None:
    """A request of the kernel is always one record at info with its result, also live."""
    world.live("c")
    world.pass_time(1.1)  # until the list of modules is read again
    for name in ("c", "pci:v1", "nothing"):
        world.ask(name, pid=7)
        world.settle()
    assert messages(world) == [
        "c for asker[7] uid 1000 is loaded already",
        "Loaded b for asker[7] uid 1000 in 14us, with a",
        "No module for nothing, asked for by asker[7] uid 1000",
    ]
    assert {record.priority for record in world.records} == {INFO}


def test_a_plugged_device_without_a_driver_is_a_notice_and_one_of_a_replay_is_none(world: World) -> None:
    folder = world.root / "sys/devices/1-4:1.0"
    folder.mkdir(parents=True)
    world.plug("usb:v0BDApB832", "1-4:1.0")
    world.settle()
    (record,) = world.records
    assert record.message == "No driver for 1-4:1.0: nothing matches usb:v0BDApB832"
    assert record.priority == NOTICE
    world.records.clear()
    (folder / "driver").symlink_to("/")
    world.plug("usb:v0BDApB833", "1-4:1.0")
    replayed = uevent.parse(b"add@/devices/x\0SUBSYSTEM=pci\0MODALIAS=pci:v9\0SYNTH_UUID=0\0")
    world.handle(DevicesFound((replayed,)))
    world.settle()
    assert world.records == [], "a driver that is built in has it; a replay is no news"


def test_a_dependency_that_fails_has_a_record_of_its_own(world: World) -> None:
    world.refuse["a"] = errno.EIO
    world.plug("pci:v1", "0000:01:00.0")
    world.settle()
    own, decision = world.records
    assert own.priority == ERR
    assert own.message.startswith("Failed to load a for 0000:01:00.0: EIO, ")
    assert own.message.endswith(" (dependency of b)")
    assert (decision.message, decision.priority) == ("Not loading b for 0000:01:00.0: a failed", NOTICE)


def test_the_goals_of_one_alias_are_one_record(world: World) -> None:
    """`Loaded kvm_amd and 9 more for the processor`: without a name, and the number of the rest."""
    names = [f"m{number}" for number in range(5)]
    world.add_files(*names)
    world.index(deps=[f"{name}.ko:" for name in names], aliases=[f"alias cpu:type* {name}" for name in names])
    world.reload()
    world.records.clear()
    world.handle(
        DevicesFound((uevent.parse(b"add@/devices/system/cpu\0SUBSYSTEM=cpu\0MODALIAS=cpu:type\0SYNTH_UUID=0\0"),))
    )
    world.refuse["m3"] = errno.ENODEV
    world.settle()
    world.finish_boot()
    decision, summary = world.records
    assert decision.message.startswith("Loaded m0 and 3 more for the processor in ")
    assert values(decision, "KMODD_MODULES") == ["m0", "m1", "m2", "m4"]
    assert summary.message.startswith("Coldplug done in ")
    assert ": 1 device, 4 modules, slowest m0 7us; 1 found no hardware" in summary.message


@pytest.mark.parametrize(("alias", "modules"), [("pci:v1", [["a"]]), ("pci:v2", [])])
def test_what_came_with_a_driver_without_hardware_is_on_record(
    world: World, alias: str, modules: list[list[str]]
) -> None:
    """At boot a driver that finds no hardware is only counted. Its dependency stays loaded, and that is on record."""
    world.refuse |= {"b": errno.ENODEV, "c": errno.ENODEV}
    device = f"add@/devices/x\0SUBSYSTEM=pci\0MODALIAS={alias}\0SYNTH_UUID=0\0"
    world.handle(DevicesFound((uevent.parse(device.encode()),)))
    world.settle()
    assert world.state.reporter.counters.results["failed"] == 1
    told = [record for record in world.records if "KMODD_RESULT" in dict(record.fields)]
    assert [(values(record, "KMODD_MODULES"), record.priority) for record in told] == [(x, INFO) for x in modules]


def test_what_a_job_loaded_before_it_is_planned_again_is_on_record(world: World) -> None:
    """Its dependency came by the first plan, the module itself by the second: each is in one record."""
    world.plug("pci:v1", "0000:01:00.0")
    world.advance()
    world.index(deps=["a.ko:", "b.ko: a.ko", "c.ko:"], aliases=["alias pci:v1* b", "alias pci:v9* c"])
    world.reload()
    world.finish("a")
    world.settle()
    told = [record for record in world.records if values(record, "KMODD_MODULES")]
    assert [values(record, "KMODD_MODULES") for record in told] == [["a"], ["b"]]
    assert told[0].message == "Loaded a for 0000:01:00.0 in 7us (dependency of b)"


def test_a_removal_is_one_record(world: World) -> None:
    world.write_modules({"c": "Live"})
    world.order_removal("c")
    world.settle()
    assert messages(world) == ["Removed c in 7us"]


def history(tmp_path: Path, level: int) -> tuple[str, set[tuple[PolicyQuery, str]]]:
    """What `policy suggest` and the rehearsal of a seal make of the records of some loads."""
    world = World(tmp_path / str(level), log_level=level)
    world.plug("pci:v2", "0000:01:00.0")
    for name in ("pci:v1", "c", "nothing", "b"):
        world.ask(name)
        world.settle()
    lines = []
    for record in world.records:
        fields: dict[str, list[str]] = {}
        for name, value in record.fields:
            fields.setdefault(name, []).append(value)
        trusted = {"_UID": "0", "SYSLOG_IDENTIFIER": "kmodd", "PRIORITY": str(record.priority)}
        line: dict[str, object] = {name: found if len(found) > 1 else found[0] for name, found in fields.items()}
        lines.append({**line, **trusted})
    texts = [json.dumps(line) for line in lines]
    asked = [found for entry in entries_of(texts) if (found := sealed_asking(entry, frozenset()))]
    return suggest(read(texts).uses), {(query, name) for queries, names in asked for query in queries for name in names}


def test_the_history_of_use_is_the_same_at_info_and_at_debug(tmp_path: Path) -> None:
    """`policy suggest` and a seal's rehearsal give the same at info and at debug. Control: not at err."""
    info, debug = history(tmp_path, INFO), history(tmp_path, DEBUG)
    assert info == debug
    assert {module for _, module in info[1]} == {"a", "b", "c"}
    for name in ("pci:v1", "c", "b"):
        assert name in info[0]
    assert "nothing" not in info[0]
    assert history(tmp_path, ERR) != info


def test_the_level_of_kmodd_conf_counts_until_another_is_set(tmp_path: Path) -> None:
    """`LogLevel=`, and at run time `SetLogLevel`."""
    world = World(tmp_path, log_level=None)
    world.configure("[Kmodd]\nLogLevel=debug\n")
    world.reload()
    assert world.state.reporter.level == DEBUG
    world.configure("[Kmodd]\nLogLevel=err\n")
    world.reload()
    assert world.state.reporter.level == ERR
    world.engine.set_log_level(INFO)
    world.reload()
    assert world.state.reporter.level == INFO
