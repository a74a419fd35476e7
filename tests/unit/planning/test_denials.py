"""For whom policy denies what a request of the kernel would load."""

from __future__ import annotations

import pytest

from kmodd.config import modprobe_d, policy_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.planning.denials import ASKERS, denials
from kmodd.planning.policy import PolicyQuery
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, resolve

MODULES = "/lib/modules/6.1.0"
DEPENDENCIES = b"a.ko:\nb.ko: a.ko\nc.ko: b.ko a.ko\nd.ko:\n"
RULES = "/etc/kmodd/policy.d/x.conf"
CONF = "/etc/modprobe.d/x.conf"
ALL = tuple(ASKERS)


def denied(name: str, rules: str, conf: str = "") -> list[tuple[str, str, tuple[str, ...], str]]:
    """Each denial of a request for `name`: module, place of the rule without its file, kinds of processes, why."""
    catalog = Catalog([Layer(MODULES, lambda file: DEPENDENCIES if file == "modules.dep" else None)])
    snapshot = Snapshot(catalog, modprobe_d.parse([ConfFile(CONF, conf)]))
    plan = resolve(Request(name, "operator"), snapshot, NOTHING_LOADED, ProbeOptions(), lambda _: True)
    parsed = policy_d.parse([ConfFile(RULES, rules)])
    assert parsed.problems == ()
    found = denials(plan, parsed.rules, PolicyQuery("request", name, "running"), "enforce")
    return [(each.module, str(each.decision.at).removeprefix(RULES), each.whom, each.because) for each in found]


def test_every_denied_dependency_is_named() -> None:
    """A process needs both; to allow the first would not do."""
    assert denied("c", "deny module=a\ndeny module=b uid=1000-\n") == [
        ("a", ":1", ALL, "dependency of c"),
        ("b", ":2", ("users",), "dependency of c"),
    ]
    assert denied("c", "deny module=a,b\n") == [
        ("a", ":1", ALL, "dependency of c"),
        ("b", ":1", ALL, "dependency of c"),
    ]
    assert denied("a", "deny module=b\n") == []


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_denied_softdep_is_named(place: str) -> None:
    """The module is loaded without it; the control is a softdep that no rule denies."""
    conf = f"softdep c {place}: d\n"
    assert denied("c", "deny module=d\n", conf) == [("d", ":1", ALL, f"softdep of c in {CONF}:1")]
    assert denied("c", "deny module=d\n") == []


def test_a_rule_that_denies_the_module_is_named_once_for_it() -> None:
    assert denied("c", "deny request=c\n") == [("c", ":1", ALL, "")]
    assert denied("c", "deny module=c\ndeny module=a\n") == [("c", ":1", ALL, ""), ("a", ":2", ALL, "dependency of c")]


def test_a_module_that_is_in_the_plan_twice_is_named_once() -> None:
    assert denied("c", "deny module=a\n", "softdep c pre: a\n") == [("a", ":1", ALL, "dependency of c")]
