"""What the policy decides holds for every path: plans made before, many devices, flags, restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.engine.events import PolicyMarks
from kmodd.host.config_files import settings_directories
from kmodd.planning.request import Request
from tests.world import World, requester, results


def test_a_seal_holds_for_plans_made_before_it(world: World) -> None:
    """One is with a loader, the other waits for that load; then comes the seal."""
    world.plug("pci:v1")
    world.advance()
    world.ask("b")
    world.advance()
    assert world.loading == ["a"]
    world.seal()
    assert world.batch("a").is_stopping
    world.finish("a")
    world.settle()
    assert world.calls == ["a"]
    assert not any(" at None" in record.message for record in world.records)
    assert [result for module, result in world.told() if module == "b"] == ["denied", "denied"]


def test_new_rules_hold_for_plans_made_under_the_old_ones(world: World) -> None:
    world.set_rules()
    world.ask("b")
    world.advance()
    world.set_rules("deny origin=request module=b")
    world.finish("a")
    world.settle()
    assert world.calls == ["a"]
    assert world.records[-1].message == "Denied b for asker[812] uid 1000: x.conf:1"
    assert ("KMODD_RULE", "deny origin=request module=b") in world.records[-1].fields


@pytest.mark.parametrize(
    ("uids", "rules", "is_loaded"),
    [
        ((0, 0), ["deny uid=!0"], True),
        ((0, 1000), ["deny uid=!0"], False),
        ((1000, 0), ["deny uid=!0"], False),
        ((1000, 1001), ["allow uid=1000", "deny *"], False),
        ((1000, 1001), ["allow uid=1000,1001", "deny *"], True),
        ((), ["deny uid=!0"], False),
    ],
)
def test_one_of_several_processes_may_what_each_of_them_may(
    world: World, uids: tuple[int, ...], rules: list[str], is_loaded: bool
) -> None:
    """Without candidates the process is unknown, which is not root."""
    world.set_rules(*rules)
    candidates = tuple(requester(pid, uid) for pid, uid in enumerate(uids, 400))
    world.queue(Request("c", "request", ambiguous=True, candidates=candidates))
    world.settle()
    assert world.calls == (["c"] if is_loaded else [])
    assert dict(world.records[-1].fields)["KMODD_REQUESTER_AMBIGUOUS"] == "yes"


def test_each_of_many_devices_is_judged_and_sixteen_are_recorded(world: World) -> None:
    """docs/POLICY.md: a module is loaded if one of the devices may have it."""
    world.set_rules("allow device=/devices/cpu99", "deny *")
    for number in range(100):
        world.plug("pci:v2", f"cpu{number}")
    world.settle()
    assert world.calls == ["c"]
    fields = [name for name, _ in world.records[-1].fields]
    assert fields.count("KMODD_DEVPATH") == 16
    assert dict(world.records[-1].fields)["KMODD_DEVICES_COUNT"] == "100"
    for number in range(99):
        world.plug("pci:v1", f"cpu{number}")
    world.settle()
    assert world.calls == ["c"]


def test_a_removed_seal_replays_all_devices(world: World) -> None:
    world.seal()
    world.plug("pci:v2")
    world.settle()
    assert world.calls == []
    world.seal(False)
    world.advance()
    assert world.replays == ["all"]


def test_requests_of_processes_do_not_prolong_the_boot(world: World) -> None:
    """Otherwise a process that keeps a load under way would keep the rules for phase=running from holding."""
    world.ask("c")
    world.advance()
    assert not world.engine.is_idle
    answered = [world.engine.devices_answered]
    world.plug("pci:v1")
    answered.append(world.engine.devices_answered)
    world.advance()
    answered.append(world.engine.devices_answered)
    world.settle()
    assert [*answered, world.engine.devices_answered] == [True, False, False, True]


def test_the_boot_is_not_repeated_by_a_restart(tmp_path: Path) -> None:
    """Otherwise a restart of the daemon would circumvent the rules for phase=running."""
    first = World(tmp_path / "first")
    phases = [first.state.policy.phase]
    first.finish_boot()
    assert [*phases, first.state.policy.phase] == ["boot", "running"]
    assert first.marks == PolicyMarks(sealed=False, closed=False, booted=True, rules=())
    assert World(tmp_path / "second", marks=first.marks).state.policy.phase == "running"


@pytest.mark.parametrize("sealed", [False, True])
def test_a_removed_flag_lets_a_trigger_load_what_it_kept_out(world: World, sealed: bool) -> None:
    """As the preset for a locked screen says: `udevadm trigger --action=add` after unlocking."""
    flags = world.root / "run/kmodd/flags"
    assert str(flags) in settings_directories(str(world.root))  # watched
    flags.mkdir(parents=True)
    (flags / "locked").touch()
    if sealed:
        world.set_rules("allow flag=!locked")
        (world.root / "etc/kmodd/kmodd.conf").unlink()
        world.reload()
        world.seal()
    else:
        world.set_rules("deny flag=locked")
    for _ in range(2):
        world.plug("pci:v2", synthetic=True)
        world.settle()
    assert world.calls == []
    (flags / "locked").unlink()
    world.change_files()
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.calls == ["c"]


def test_a_removed_module_and_what_it_needed_stay_out(world: World) -> None:
    """A replay loads neither the module nor its dependencies."""
    world.plug("pci:v1", "dev0")
    world.settle()
    world.live()
    for name in "ba":
        world.module_event("remove", name)
    for _ in range(2):
        world.replay_device("pci:v1", "dev0")
        world.settle()
    assert world.calls == ["a", "b"]
    assert results(world.pop_finished()) == []


@pytest.mark.parametrize(("flag", "loads"), [("once-c", 1), ("other", 2)])
def test_a_single_load_is_allowed_once(world: World, flag: str, loads: int) -> None:
    """The flag that its rule names is removed by the load; the control has another name, and stays."""
    path = world.root / "run/kmodd/flags" / flag
    path.parent.mkdir(parents=True)
    path.touch()
    local = world.root / "etc/kmodd/policy.d/05-local.conf"
    local.parent.mkdir(parents=True)
    local.write_text(f"allow module=c flag={flag}\ndeny module=c\n")
    world.reload()
    for _ in range(2):
        world.order("c")
        world.settle()
        world.remove_live("c")
        world.pass_time(2.0)
    assert world.calls == ["c"] * loads
    assert path.exists() == (flag == "other")
    local.unlink()
    world.reload()
    world.order("c")
    world.settle()
    assert world.calls == ["c"] * (loads + 1)
