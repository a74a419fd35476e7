"""The removal of denied modules: its order, and what is said of it."""

from __future__ import annotations

from kmodd.kernel.proc_modules import parse_modules
from kmodd.planning.essentials import Use
from kmodd.planning.unload import Unload, Unloaded, plan_sentences, removal_as_object, removal_order, result_sentences


def test_modules_are_removed_behind_those_that_use_them() -> None:
    lines = ["a 1 2 b,c, Live 0x0", "b 1 1 c, Live 0x0", "c 1 0 - Live 0x0", "d 1 0 - Live 0x0"]
    loaded = parse_modules("".join(f"{line}\n" for line in lines))
    assert removal_order(["a"], loaded) == ("c", "b", "a")
    assert removal_order(["b", "d", "gone"], loaded) == ("c", "b", "d")
    assert removal_order(["gone"], loaded) == ()


def test_a_plan_names_modules_and_devices() -> None:
    plan = Unload(("c", "a"), ("z",), (("a", "/sys/devices/1"), ("c", "/sys/devices/2")))
    assert plan_sentences(plan) == [
        "z cannot be removed: it is built into the kernel",
        "Modules to remove, in this order: c, a",
        "Devices that lose their driver: /sys/devices/1, /sys/devices/2",
    ]
    assert plan_sentences(Unload()) == ["Nothing to remove: none of the modules is loaded"]


def test_a_result_names_what_was_removed_and_what_stayed() -> None:
    """Only devices of removed modules lost their driver."""
    plan = Unload(("c", "a"), (), (("a", "/sys/devices/1"), ("c", "/sys/devices/2")), (Use("swap", "x", frozenset()),))
    result = Unloaded(("c",), (("a", "it is in use"),))
    assert result_sentences(plan, result) == [
        "Removed c", "a stays: it is in use", "Devices that lost their driver: /sys/devices/2",
    ]  # fmt: skip
    assert removal_as_object(plan, result) == {
        "modules": ["c", "a"],
        "devices": [{"module": "a", "device": "/sys/devices/1"}, {"module": "c", "device": "/sys/devices/2"}],
        "in_use": ["the swap on x"],
        "references": [],
        "removed": ["c"],
        "stayed": [{"module": "a", "why": "it is in use"}],
    }
    assert removal_as_object(plan, None)["removed"] is None
    assert result_sentences(Unload(), Unloaded((), ())) == ["Nothing to remove: none of the modules is loaded"]
