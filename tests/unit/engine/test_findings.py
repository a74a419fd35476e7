"""Mistakes in the configuration are in the log, each once, when the devices are answered."""

from __future__ import annotations

import pytest

from kmodd.engine.reporter import MAX_FINDINGS
from kmodd.planning.record import BAD_INPUT, NOTICE, WARNING
from tests.world import World


def said(world: World) -> list[str]:
    """The mistakes written since the last call."""
    messages = [record.message for record in world.records if record.message_id == BAD_INPUT]
    world.records.clear()
    return messages


def configure(world: World, text: str, name: str = "etc/modprobe.d/x.conf") -> None:
    """Write a file and have everything read again."""
    path = world.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    world.reload()


def test_a_mistake_is_written_once(world: World) -> None:
    world.finish_boot()
    assert said(world) == []
    configure(world, "options c x = 1\n")
    assert said(world) == []  # devices may wait
    world.finish_boot()
    text = "/etc/modprobe.d/x.conf:1: blanks around `=` in the options of c: expected `x=1` [blank]"
    assert said(world) == [text]
    world.finish_boot()
    world.reload()
    world.finish_boot()
    assert said(world) == []
    configure(world, "options c x=1\n")
    world.finish_boot()
    assert said(world) == []
    configure(world, "options c x = 1\n")
    world.finish_boot()
    assert said(world) == [text]


def test_an_invalid_line_is_not_written_again(world: World) -> None:
    """It is a warning of the reload itself."""
    configure(world, "frob\n")
    world.finish_boot()
    (message,) = said(world)
    assert message.startswith("/etc/modprobe.d/x.conf:1:1: expected alias")


def test_files_and_levels(world: World) -> None:
    configure(world, "blacklist c\n", "etc/modprobe.d/blacklist-c")
    configure(world, "nosuch\n", "etc/modules-load.d/x.conf")
    configure(world, "blacklist nosuch\n", "etc/modprobe.d/x.conf")
    configure(world, "blacklist nosuch\n", "usr/lib/modprobe.d/y.conf")
    world.records.clear()
    world.finish_boot()
    levels = {record.message.partition(": ")[0]: record.priority for record in world.records}
    assert levels == {
        "/etc/modprobe.d/blacklist-c": WARNING,
        "/etc/modprobe.d/x.conf:1": NOTICE,
        "/etc/modules-load.d/x.conf:1": WARNING,
    }


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("nosuch", "", "No module for nosuch, listed at /etc/modules:1"),
        ("c", "blacklist c\n", "Not loading c for the boot list: blacklisted at "),
        ("c", "install c /bin/false\n", "Blocked c for the boot list: install /bin/false at "),
        ("b", "install a /bin/false\n", "Not loading b for the boot list: a is blocked"),
    ],
)
def test_a_name_of_the_boot_list_is_one_message(world: World, name: str, text: str, says: str) -> None:
    """The record of the boot says it; the check of the configuration does not repeat it. Control: the name below."""
    configure(world, f"{name}\nother\n", "etc/modules")
    configure(world, text)
    world.settle()
    world.records.clear()
    world.boot_list(name)
    world.settle()
    world.finish_boot()
    messages = [record.message for record in world.records]
    (ours,) = [each for each in messages if each.startswith((says, "/etc/modules:1: "))]
    assert ours.startswith(says)
    assert "no such module or alias other" in " ".join(record.message for record in world.records)


@pytest.mark.parametrize(("more", "says"), [(1, "1 more mistake"), (1000, "1000 more mistakes")])
def test_a_thousand_mistakes_are_bounded(world: World, more: int, says: str) -> None:
    configure(world, "options nosuch x=1\n" * (MAX_FINDINGS + more))
    world.finish_boot()
    messages = said(world)
    assert len(messages) == MAX_FINDINGS + 1
    assert messages[-1] == f"{says} in the configuration: see `kmodd lint`"
