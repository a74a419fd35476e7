"""The presets against real Debian trees: each name and pattern in them is one that a kernel has; none is missing."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Rule, parse
from kmodd.host.tree import Tree
from kmodd.index import fnmatch, text_files
from kmodd.index.catalog import lookup_or_nothing
from kmodd.kernel.requester import Requester
from kmodd.names import module_of_path, underscores
from kmodd.planning.policy import Policy, PolicyQuery
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve
from tests import trees

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

FOLDER = Path(__file__).parents[2] / "data/policy.d"
KERNELS = ("6.1-amd64", "6.12-amd64")
NETWORK = ("kernel/drivers/net/", "kernel/drivers/usb/atm/")


@functools.cache
def tree(flavour: str) -> Tree:
    with trees.may_be_away(flavour):
        root = trees.debian_tree(flavour)
    return Tree(root=str(root), release=trees.release(root))


@functools.cache
def lines(flavour: str, index: str) -> tuple[str, ...]:
    found = tree(flavour)
    return tuple(Path(found.real(f"{found.directory}/{index}")).read_text().splitlines())


def rules() -> list[Rule]:
    return [rule for path in sorted(FOLDER.iterdir()) for rule in parse([ConfFile(path.name, path.read_text())]).rules]


def values(key: str) -> list[str]:
    found = {v for rule in rules() for c in rule.conditions if c.key == key for v in (*c.wanted, *c.unwanted)}
    assert found
    return sorted(found)


def modules(flavour: str) -> set[str]:
    paths = [line.partition(":")[0] for line in lines(flavour, "modules.dep")]
    return {str(module_of_path(path)) for path in (*paths, *lines(flavour, "modules.builtin"))}


def test_every_module_is_one_of_a_debian_kernel() -> None:
    known = modules(KERNELS[0]) | modules(KERNELS[1])
    unknown = [name for name in values("module") if not fnmatch.is_literal(name) or name not in known]
    assert unknown == []
    assert "nosuch" not in known


def test_every_request_finds_something() -> None:
    """In one kernel at least; a pattern has to fit an alias."""
    unknown = []
    for value in values("request"):
        if not any(_is_answered(value, flavour) for flavour in KERNELS):
            unknown.append(value)
    assert unknown == []
    assert not _is_answered("net-pf-99", KERNELS[0])


def _is_answered(value: str, flavour: str) -> bool:
    if fnmatch.is_literal(value):
        return bool(lookup_or_nothing(value, tree(flavour).quick_snapshot()))
    entries, _ = text_files.alias_lines("\n".join(lines(flavour, "modules.alias")).encode(), "modules.alias")
    return any(fnmatch.matches(underscores(value), underscores(e.pattern)) for e in entries if "[" not in e.pattern)


@pytest.mark.parametrize("flavour", KERNELS)
def test_no_usb_network_driver_is_forgotten(flavour: str) -> None:
    """Every driver of a network device with a USB alias is refused while locked."""
    (name,) = [path for path in FOLDER.iterdir() if "usb-network" in path.name]
    policy = Policy("enforce", parse([ConfFile(name.name, name.read_text())]).rules)
    asking = PolicyQuery("uevent", "usb:x", "running", "usb", ("/devices/x",), flags=frozenset({"locked"}))
    usb = {line.split()[2] for line in lines(flavour, "modules.alias") if line.startswith("alias usb:")}
    paths = [line.partition(":")[0] for line in lines(flavour, "modules.dep")]
    drivers = {str(module_of_path(path)) for path in paths if path.startswith(NETWORK)} & usb
    assert len(drivers) > 60
    assert {driver for driver in drivers if not policy.judge(asking, driver).refused} == set()
    others = usb - drivers
    spared = {driver for driver in others if not policy.judge(asking, driver).refused}
    assert {"usb_storage", "usbhid", "btusb"} <= spared
    assert len(spared) > 0.9 * len(others)


@pytest.mark.parametrize("flavour", KERNELS)
def test_what_users_may_still_have_brings_no_rare_protocol(flavour: str) -> None:
    """The list of no-unprivileged-autoload against no-rare-protocols, whole plans."""
    found = tree(flavour)
    snapshot = found.quick_snapshot()
    policy = Policy("enforce", rules())
    user = Requester(1, "", "/bin/x", 1000, 1000, "", "session-1.scope", False)
    for text in ("net-pf-16-proto-4-type-1", "net-pf-16-proto-4-type-2-6", "char-major-116-1", "char-major-10-229"):
        plan = resolve(Request(text, "request"), snapshot, found.loaded(), options_of("request"), found.present)
        asking = PolicyQuery("request", text, "boot", requester=user)
        assert [step.module for step in plan.steps if policy.judge(asking, step.module).refused] == []
