"""Modules kept out by an install command or `module_blacklist=`: no failure, but one notice for each."""

from __future__ import annotations

import pytest

from kmodd.planning.record import DEBUG, ERR, INFO, NOTICE, Record
from tests.world import World


def configure(world: World, text: str = "", line: str = "") -> None:
    """Replace modprobe.d and the kernel command line."""
    (world.root / "etc/modprobe.d/x.conf").write_text(text)
    (world.root / "proc/cmdline").write_text(line)
    world.reload()
    world.settle()
    world.records.clear()


def plug(world: World, alias: str, name: str) -> list[Record]:
    """The records of a new device."""
    world.records.clear()
    world.plug(alias, name)
    world.settle()
    return world.records


def results(records: list[Record]) -> list[str]:
    return [dict(record.fields)["KMODD_RESULT"] for record in records]


@pytest.mark.parametrize("command", ["/bin/false", "/bin/true", "/usr/bin/false", "exit 1", ":", "/bin/true # CVE-1"])
def test_an_install_command_that_loads_nothing_is_one_notice(world: World, command: str) -> None:
    configure(world, f"install c {command}\n")
    (first,) = plug(world, "pci:v2", "a")
    assert (first.priority, results([first])) == (NOTICE, ["blocked"])
    assert first.message.startswith("Blocked c for a: install ")
    assert "/etc/modprobe.d/x.conf:1" in first.message
    (second,) = plug(world, "pci:v2", "b")
    assert (second.priority, results([second])) == (INFO, ["blocked"])
    assert not world.calls
    assert not world.started


@pytest.mark.parametrize("command", ["/sbin/modprobe -i c; false", "/opt/bin/false", "true && echo", "exit $X"])
def test_another_command_is_run(world: World, command: str) -> None:
    configure(world, f"install c {command}\n")
    world.plug("pci:v2")
    world.settle()
    assert world.calls == ["c"]


def test_an_operator_gets_what_modprobe_does(world: World) -> None:
    """The command is run, and its failure is that of modprobe."""
    configure(world, "install c /bin/false\n")
    world.refuse["c"] = 22
    world.order("c")
    world.settle()
    assert world.calls == ["c"]


def test_module_blacklist(world: World) -> None:
    """What needs the module is not tried, and says why; b needs a."""
    configure(world, line="module_blacklist=a,c")
    (record,) = plug(world, "pci:v2", "x")
    assert (record.priority, results([record])) == (NOTICE, ["blocked"])
    assert record.message.endswith(": module_blacklist=c at /proc/cmdline:1")
    blocked, left = plug(world, "pci:v1", "y")
    assert (blocked.priority, left.priority) == (NOTICE, NOTICE)
    assert results([blocked, left]) == ["blocked", "not_attempted"]
    assert left.message.startswith("Not loading b for y: a is blocked")
    assert not world.calls


@pytest.mark.parametrize("line", ["module_blacklist=a", "module_blacklist=b", ""])
def test_a_replay_of_what_is_blocked_is_answered_from_the_cache(world: World, line: str) -> None:
    """Also where a dependency is blocked, or the module has one; each replay would repeat the records."""
    configure(world, "" if line else "install a /bin/false\n", line)
    assert plug(world, "pci:v1", "x")
    world.records.clear()
    world.replay("pci:v1")
    world.settle()
    assert world.records == []


@pytest.mark.parametrize("digits", [3, 4, 5000])
def test_an_exit_status_of_any_length(world: World, digits: int) -> None:
    configure(world, f"install c exit {'1' * digits}\n")
    plug(world, "pci:v2", "a")
    assert world.calls == ([] if digits == 3 else ["c"])


def test_module_blacklist_with_dashes_blocks_nothing(world: World) -> None:
    configure(world, line="module_blacklist=snd-c")
    (record,) = plug(world, "pci:v2", "x")
    assert results([record]) == ["loaded"]
    assert record.priority not in (ERR, DEBUG)


def test_an_operator_is_refused_by_the_kernel_itself(world: World) -> None:
    configure(world, line="module_blacklist=c")
    world.order("c")
    world.settle()
    assert world.calls == ["c"]
