"""Changed indexes and configuration are read before they are needed: all of the new, or all of the old."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.engine.events import CheckFiles, PolicyMarks
from kmodd.host.config_files import settings_directories, settings_marks
from kmodd.host.file_watch import Watch
from kmodd.index.catalog import Catalog
from kmodd.planning.record import ERR, RELOADED
from tests.world import World


def check_files(world: World) -> None:
    world.handle(CheckFiles())
    world.advance()


# -- the start ----------------------------------------------------------------------------------------------------


def test_the_indexes_are_read_after_the_boot_list_and_their_bad_lines_named(tmp_path: Path) -> None:
    """READY waits for the boot list alone."""
    World(tmp_path).index(deps=["a.ko:", "b.ko: a.ko", "c.ko:"], aliases=["alias pci:v2* c", "nonsense"])
    world = World(tmp_path)
    world.boot_list("b")
    world.advance()
    assert world.batch("a").modules == ["a", "b"]
    assert not any("modules.alias:2" in record.message for record in world.records)
    world.settle()
    assert sum("modules.alias:2" in record.message for record in world.records) == 1


def test_a_file_that_was_replaced_before_it_was_read_is_not_blamed(tmp_path: Path) -> None:
    """The first one had a bad line; what counts is the one that is read with all others."""
    World(tmp_path).index(deps=["c.ko:"], aliases=["alias pci:v2* c", "nonsense"])
    world = World(tmp_path)
    load = Catalog.load

    def replaced(catalog: Catalog) -> None:
        load(catalog)
        if world.engine.state.system.is_whole and not world.replays:
            world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "load", replaced)
        world.advance()
    assert world.replays == ["all"]
    assert not any("modules.alias:2" in record.message for record in world.records)


def test_an_index_replaced_after_the_start_is_read_with_all_others(world: World) -> None:
    world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])
    world.advance()
    assert world.replays == ["all"]
    world.plug("pci:v9")
    world.settle()
    assert world.calls == ["c"]
    assert (RELOADED[-4:], "") in world.told()


# -- the index ----------------------------------------------------------------------------------------------------


def test_a_new_index_is_read_before_a_request_has_no_match(world: World) -> None:
    world.plug("pci:v9", synthetic=True)
    world.settle()
    world.told()
    world.index(deps=["a.ko:", "c.ko:"], aliases=["alias pci:v9* c"])
    world.plug("pci:v9", synthetic=True)
    world.settle()
    assert world.calls == ["c"]
    assert (RELOADED[-4:], "") in world.told()


@pytest.mark.usefixtures("watch")
def test_a_new_index_is_read_before_a_watched_request_has_no_match(world: World) -> None:
    """The watch may report the change only later."""
    world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])
    world.plug("pci:v9")
    world.settle()
    assert world.calls == ["c"]


def test_a_changed_index_has_devices_replayed_once(world: World) -> None:
    check_files(world)
    assert world.replays == []
    world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])
    check_files(world)
    world.advance()
    assert world.replays == ["all"]


# -- which files are looked at, and when --------------------------------------------------------------------------


def test_files_are_not_checked_where_the_watch_is_sure(
    world: World, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are where it has reported a change, read or not, and after a second: links lead to unwatched places."""
    system = world.state.system
    checked: list[str] = []

    def marks(root: str) -> object:
        checked.append(root)
        return settings_marks(root)

    monkeypatch.setattr("kmodd.host.machine.settings_marks", marks)
    wanted = [*world.tree.directories(), *settings_directories(str(world.root))]
    watch.set(wanted)
    assert system.check_current()
    checked.clear()
    assert system.check_current()
    assert not checked
    world.state.set_time(world.now + 1.1)
    assert system.check_current()
    assert len(checked) == 1
    kmodd_conf = world.root / "etc/kmodd/kmodd.conf"
    kmodd_conf.parent.mkdir()
    kmodd_conf.write_text("[Kmodd]\nStuckAfterSec=7\n")
    assert not system.check_current()
    assert watch.changed()
    kmodd_conf.unlink()
    assert system.check_current(), "a check remembers nothing of a file that is gone"
    kmodd_conf.write_text("[Kmodd]\nStuckAfterSec=70\n")
    assert not system.check_current(), "the new directory is not watched yet"
    watch.set(wanted)
    assert not system.check_current()
    assert not system.check_current(), "it is watched now, but was not read again"


def test_until_the_watch_opens_devices_rely_on_the_last_check_and_callers_do_not(world: World) -> None:
    """The watch has all files checked when it opens, and devices replayed; a process does not ask twice."""
    world.state.system.expect_watch()
    world.plug("pci:v8")
    world.settle()
    world.index(deps=["c.ko:"], aliases=["alias pci:v9* c"])
    world.plug("pci:v9")
    world.settle()
    assert world.calls == []
    world.ask("pci:v9z")
    world.settle()
    assert world.calls == ["c"]


def test_until_the_watch_opens_the_boot_list_does_not_rely_on_the_last_check(world: World) -> None:
    """No later replay asks for its names again."""
    world.state.system.expect_watch()
    world.boot_list("nothing")
    world.settle()
    (world.modules / "new.ko").write_bytes(b"\x7fELF")
    world.index(deps=["new.ko:"], aliases=[])
    world.boot_list("new")
    world.settle()
    assert world.calls == ["new"]


# -- the configuration --------------------------------------------------------------------------------------------


def test_an_invalid_configuration_keeps_the_old_one_and_names_the_line(world: World) -> None:
    world.configure("[Kmodd]\nStuckAfterSec=7\n")
    world.reload()
    world.configure("[Kmodd]\nStuckAfterSec=8\nLanes=none\n")
    world.reload()
    assert world.state.system.settings.stuck_after == 7
    messages = [record.message for record in world.records]
    assert any("keeping all earlier settings" in message for message in messages)
    assert any("/etc/kmodd/kmodd.conf:3" in message and "Lanes= expects an integer" in message for message in messages)
    world.configure("[Kmodd]\nStuckAfterSec=8\nLanes=2\n")
    world.reload()
    assert (world.state.system.settings.stuck_after, world.state.system.settings.lanes) == (8, 2)


@pytest.mark.parametrize(
    ("lines", "closed", "mode"),
    [
        ("[Kmodd]\nPolicy=enforced\n", False, "enforce"),
        ("[Kmodd]\nPolicy enforce\n", False, "enforce"),
        ("[Kmodd]\npolicy=enforce\n", False, "enforce"),
        ("Policy=enforce\n", False, "enforce"),
        ("[Kmodd]\nLanes=none\n", True, "enforce"),
        ("[Kmodd]\nLanes=none\n", False, "off"),
        ("[Kmodd]\nPolicy=observe\n", True, "observe"),
        ("[Other]\nPolicy=enforced\n", False, "off"),
        ("[Kmodd]\nPolicyOfTomorrow=x\n", False, "off"),
    ],
)
def test_an_invalid_policy_at_the_first_start_does_not_fall_open(
    world: World, lines: str, closed: bool, mode: str
) -> None:
    """There are no earlier settings to keep; the mark of an earlier daemon that enforced it is one more sign."""
    world.configure(lines)
    again = World(world.root, marks=PolicyMarks(closed=closed))
    assert again.state.policy.mode == mode
    again.reload()
    assert again.state.policy.mode == mode
    errors = [record.message for record in again.records if record.priority == ERR]
    assert any("enforcing the policy" in message for message in errors) is (mode == "enforce")


@pytest.mark.usefixtures("watch")
def test_edits_of_kmodd_conf_and_rules_are_noticed_where_files_are_watched(world: World) -> None:
    world.configure("[Kmodd]\nStuckAfterSec=7\n")
    world.reload()
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nStuckAfterSec=70\nPolicy=enforce\n")
    check_files(world)
    assert (world.state.system.settings.stuck_after, world.state.policy.mode) == (70, "enforce")
    (world.root / "etc/kmodd/policy.d").mkdir()
    (world.root / "etc/kmodd/policy.d/x.conf").write_text("deny module=c\n")
    check_files(world)
    world.plug("pci:v2")
    world.settle()
    assert world.told()[-1] == ("c", "denied")
