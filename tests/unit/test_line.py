"""The line from event to record, with real loaders' protocol, a tree on disk, and a kernel that is played."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from kmodd.config.modules_load_d import BootList, BootModule
from kmodd.daemon.engine import Engine
from kmodd.errors import Where
from kmodd.host.tree import Tree
from kmodd.index.catalog import TreeSnapshot
from kmodd.kernel import uevent
from kmodd.planning.record import BAD_INPUT, NO_TREE, OVERRUN, RELOADED
from kmodd.planning.request import Request
from kmodd.state import result_cache
from tests.world import RELEASE, World, loads


def test_a_device_brings_its_module_and_what_that_depends_on(world: World) -> None:
    world.plug("pci:v1d2")
    world.settle()
    assert loads(world) == ["a.ko", "b.ko"]
    records = [dict(record.fields) for record in world.journal.records]
    assert [r["KMODD_MODULE"] for r in records] == ["a", "b"]
    assert records[0]["KMODD_BECAUSE"] == "dependency of b"
    assert records[1]["KMODD_PATTERN"] == "pci:v1*"
    assert records[1]["KMODD_ALIAS"] == "pci:v1d2"
    assert records[1]["KMODD_DEVPATH"] == "/devices/0000:01:00.0"
    assert records[1]["KMODD_BECAUSE"] == "alias matched pci:v1* of modules.alias:1"


def test_a_live_one_is_told_and_not_loaded(world: World) -> None:
    world.live("c")
    world.plug("pci:v2")
    world.settle()
    assert loads(world) == []
    assert world.told() == [("c", "live")]


def test_a_blacklisted_one_is_told_with_its_line(tmp_path: Path) -> None:
    """In the daemon a device's blacklist means what udevd means."""
    world = World(tmp_path)
    (tmp_path / "etc/modprobe.d/x.conf").write_text("\nblacklist c\n")
    world.engine.reload()
    world.plug("pci:v2")
    world.settle()
    assert "blacklisted at /etc/modprobe.d/x.conf:2" in world.journal.records[-1].message
    assert loads(world) == []


def test_one_that_refuses_stops_nothing(world: World) -> None:
    world.kernel.refuse["c.ko"] = errno.ENODEV
    world.plug("pci:v2")
    world.plug("pci:v1", "0000:02:00.0")
    world.settle()
    assert world.told() == [("c", "failed"), ("a", "loaded"), ("b", "loaded")]


def test_a_refusal_is_not_asked_for_again_by_hand_but_by_a_new_device(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENODEV never by itself: synthetic events are repeats, a device that comes later is a cause."""
    world.kernel.refuse["c.ko"] = errno.ENODEV
    world.plug("pci:v2")
    world.settle()
    for _ in range(100):
        world.plug("pci:v2", synthetic=True)
        world.settle()
    assert loads(world) == ["c.ko"]
    assert world.engine.report.counters.repeats == 100
    monkeypatch.setattr(result_cache, "REFUSAL_STANDS", 0.0)
    world.plug("pci:v2", "0000:03:00.0")
    world.settle()
    assert loads(world) == ["c.ko", "c.ko"]


@pytest.mark.usefixtures("still")
def test_a_module_that_refuses_for_each_of_1536_processors_is_one_try_one_record_and_a_count(world: World) -> None:
    world.kernel.refuse["c.ko"] = errno.ENODEV
    for number in range(1536):
        world.plug("pci:v2", f"cpu{number}")
        world.settle()
    assert loads(world) == ["c.ko"]
    assert world.told() == [("c", "failed")]
    assert world.engine.report.counters.repeats == 1535


def test_a_module_that_refused_is_not_tried_for_another_alias_of_the_replay(world: World) -> None:
    """Three aliases of one processor name acpi_cpufreq: one try, and the others say why not."""
    world.index(deps=["c.ko:"], aliases=["alias cpu:x* c", "alias acpi:y* c"])
    world.kernel.refuse["c.ko"] = errno.ENODEV
    world.plug("cpu:x1", synthetic=True)
    world.plug("acpi:y1", synthetic=True)
    world.settle()
    assert loads(world) == ["c.ko"]
    assert "it has refused with ENODEV" in world.journal.records[-1].message


def test_a_removed_module_is_loaded_again_on_trigger(world: World) -> None:
    world.plug("pci:v2")
    world.settle()
    world.live()
    world.engine.intake.take(uevent.parse(b"remove@/module/c\0SUBSYSTEM=module\0"), "uevent")
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert loads(world) == ["c.ko", "c.ko"]


def test_a_missing_file_is_told_as_missing(world: World) -> None:
    (world.modules / "c.ko").unlink()
    world.plug("pci:v2")
    world.settle()
    assert ("c", "missing") in world.told()


def test_no_match_is_told_once_until_the_index_changes(world: World) -> None:
    world.plug("pci:v9")
    world.plug("pci:v9", "other")
    world.settle()
    world.plug("pci:v9")
    world.settle()
    assert world.told() == [("f10a", "nomatch")]
    world.index(deps=["c.ko:"], aliases=["alias pci:v2* c"])
    world.plug("pci:v9")
    world.settle()
    assert ("f10a", "nomatch") in world.told()


def test_a_new_index_is_seen_before_no_match_is_said(world: World) -> None:
    """Stale data is never served: the index is checked against the files before a "no match" is said."""
    world.plug("pci:v9", synthetic=True)
    world.settle()
    world.told()
    world.index(deps=["a.ko:", "c.ko:"], aliases=["alias pci:v9* c"])
    world.plug("pci:v9", synthetic=True)
    world.settle()
    assert loads(world) == ["c.ko"]
    assert (RELOADED[-4:], "") in world.told()


def test_an_index_that_changed_asks_for_a_replay(world: World) -> None:
    assert world.engine.intake.takes_replay()
    assert not world.engine.intake.takes_replay()
    world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])
    world.engine.refresh()
    assert world.engine.intake.takes_replay()


def test_lost_events_are_told_and_ask_for_a_replay(world: World) -> None:
    assert world.engine.intake.takes_replay()
    world.engine.intake.events_were_lost()
    assert world.engine.intake.takes_replay()
    assert world.told() == [(OVERRUN[-4:], "")]


def test_a_killed_loader_costs_one_module_and_the_line_goes_on(world: World) -> None:
    world.kernel.oops.add("c.ko")
    world.plug("pci:v2")
    world.settle()
    assert "its loader was killed" in world.journal.records[-1].message
    assert world.told() == [("c", "failed")]
    world.plug("pci:v1")
    world.settle()
    assert world.told() == [("a", "loaded"), ("b", "loaded")]


@pytest.mark.parametrize(("state", "result"), [("Live", "loaded"), ("Loading", "crashed")])
def test_a_loader_that_died_is_judged_by_the_kernel(world: World, state: str, result: str) -> None:
    """An oops leaves the name in state coming; a kill after init leaves it live."""
    world.kernel.oops.add("c.ko")
    world.plug("pci:v2")
    world.engine.advance()
    (world.root / "proc/modules").write_text(f"c 1 1 - {state} 0x0\n")
    world.settle()
    assert world.told() == [("c", result)]


def test_no_tree_is_said_once_and_heals(tmp_path: Path) -> None:
    world = World(tmp_path)
    hidden = tmp_path / "hidden"
    world.modules.rename(hidden)
    world.engine.reload()
    world.plug("pci:v2")
    world.settle()
    world.engine.advance()
    assert world.told() == [(NO_TREE[-4:], "")]
    assert world.engine.view.no_tree
    hidden.rename(world.modules)
    world.settle()
    assert loads(world) == ["c.ko"]
    world.engine.close()


@pytest.mark.parametrize("origin", ["operator", "uevent"])
def test_a_tree_that_goes_while_it_is_read_loses_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    world = World(tmp_path)
    world.engine.reload()
    world.engine.intake.takes_replay()
    hidden, alias = tmp_path / "hidden", world.modules / "modules.alias"
    alias.write_text(alias.read_text() + "alias x y\n")  # so it is read anew
    read = Tree._read

    def goes(tree: Tree, *args: Any) -> TreeSnapshot:
        if world.modules.exists():
            world.modules.rename(hidden)
        return read(tree, *args)

    monkeypatch.setattr(Tree, "_read", goes)
    request = Request("nobody", origin)  # type: ignore[arg-type]
    assert world.engine.intake.order(request) if origin == "operator" else world.engine.intake.backlog.add(request)
    ended = world.settle()
    assert [job.plan.request.text for job in ended] == ["nobody"]
    monkeypatch.undo()
    world.plug("pci:v2")
    world.settle()
    assert world.engine.view.no_tree
    hidden.rename(world.modules)
    world.plug("pci:v2", "another")
    world.settle()
    assert loads(world) == ["c.ko"]
    assert world.engine.intake.takes_replay() == "all", "the first device is to be asked again"
    world.engine.close()


def test_an_operator_gets_the_parameters_through(world: World) -> None:
    world.engine.intake.order(Request("c", "operator", params=("x=1",)))
    world.settle()
    assert world.kernel.calls == [("c.ko", "x=1", 0)]


def test_a_dry_run_hands_nothing_to_anybody(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.engine = Engine(Tree(root=str(tmp_path), release=RELEASE), world.journal, None)
    world.engine.reload()
    world.plug("pci:v1")
    world.settle()
    assert world.told() == [("a", "not_attempted"), ("b", "not_attempted")]
    assert loads(world) == []


def test_what_was_there_before_us_is_one_record(world: World) -> None:
    """What an initramfs had loaded already is one summary record."""
    world.live("c", "a", "b")
    event = uevent.parse(b"add@/devices/x\0SUBSYSTEM=pci\0MODALIAS=pci:v1\0MODALIAS=pci:v2\0")
    world.engine.intake.coldplug([event])
    world.settle()
    world.engine.report.end_coldplug()
    assert world.journal.records[0].message == "2 modules were loaded before kmodd started: b c"
    assert world.journal.records[1].message.startswith("Coldplug is done: 1 devices, 0 modules loaded, ")
    world.engine.report.end_coldplug()
    assert len(world.journal.records) == 2


def test_the_boot_list_is_loaded_through_the_same_line(world: World) -> None:
    """Issue: loaded at start through the same line, reported like the rest."""
    listed = BootList((BootModule("b", Where("/etc/modules", 3)), BootModule("nothing", Where("/etc/modules", 4))))
    world.engine.intake.boot(listed)
    assert world.engine.intake.boot_left == {"b", "nothing"}
    world.settle()
    assert not world.engine.intake.boot_left
    assert loads(world) == ["a.ko", "b.ko"]
    fields = next(dict(each.fields) for each in world.journal.records if each.message.startswith("Loaded b"))
    assert (fields["KMODD_SOURCE"], fields["KMODD_BECAUSE"]) == ("boot", "listed in /etc/modules:3")
    assert ("f10a", "nomatch") in world.told()


# -- bad input: a clear record, and the rest works -----------------------------------------------------------------


def complaints(world: World) -> list[str]:
    return [record.message for record in world.journal.records if record.message_id == BAD_INPUT]


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        (["alias pci:v2* c", "alias pci:v9*"], "modules.alias:2"),
        (["alias pci:v2* c", "alias pci:v[9* a"], "modules.alias:2"),
        (["alias pci:v2* c", "nonsense"], "modules.alias:2"),
    ],
)
def test_a_bad_line_of_the_index_is_named_and_the_rest_counts(world: World, aliases: list[str], expected: str) -> None:
    world.index(deps=["a.ko:", "c.ko:"], aliases=aliases)
    world.plug("pci:v2")
    world.settle()
    assert loads(world) == ["c.ko"]
    assert any(expected in message for message in complaints(world)), complaints(world)


def test_a_truncated_index_serves_what_it_has(world: World) -> None:
    path = world.modules / "modules.alias"
    path.write_bytes(b"alias pci:v2* c\nalias pci:v1*")
    world.plug("pci:v2")
    world.plug("pci:v1")
    world.settle()
    assert loads(world) == ["c.ko"]
    assert any("modules.alias:2" in message for message in complaints(world))


def test_a_bad_line_of_the_configuration_is_named(world: World) -> None:
    (world.root / "etc/modprobe.d/x.conf").write_text("blacklist\noptions c x=1\n")
    world.plug("pci:v2")
    world.settle()
    assert world.kernel.calls == [("c.ko", "x=1 ", 0)]  # with the blank that kmod puts before an operator's own
    assert any("/etc/modprobe.d/x.conf:1" in message for message in complaints(world))


def test_a_modalias_of_two_thousand_characters_with_shell_in_it(world: World, tmp_path: Path) -> None:
    """systemd issue 24715: no shell-like parser anywhere on its way."""
    proof = tmp_path / "proof"
    odd = "pci:v2" + f"'\"`touch {proof}`$(touch {proof});" + "x" * 2000
    world.plug(odd)
    world.settle()
    assert loads(world) == ["c.ko"]
    assert not proof.exists()
    assert dict(world.journal.records[-1].fields)["KMODD_ALIAS"] == odd


def test_a_name_with_a_bracket_too_many_is_a_no_match(world: World) -> None:
    world.plug("pci:v2[")
    world.plug("pci:v2", "fine")
    world.settle()
    assert loads(world) == ["c.ko"]
