"""Rules of `kmodd deny` and `kmodd allow`: in force in each mode, for a time, and before their lines in modprobe.d."""

from __future__ import annotations

import pytest

from kmodd.config import modprobe_d, policy_d
from kmodd.config.modprobe_d import DENY_FILE, ConfFile
from kmodd.config.policy_d import LOCAL, TEMPORARY, Mode
from kmodd.dataclass import replace
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.kernel.requester import Requester
from kmodd.planning.denials import denials
from kmodd.planning.plan import Plan
from kmodd.planning.policy import Policy, PolicyQuery, rules_in_force
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve

OTHER = "/etc/kmodd/policy.d/50-x.conf"
USER = Requester(0, "", "", 1000, None, "", "session-1.scope", container=False)
ASKED = PolicyQuery("request", "net-pf-38", "running", requester=USER)


def policy(mode: Mode, *files: tuple[str, str]) -> Policy:
    parsed = policy_d.parse([ConfFile(path, text) for path, text in files])
    assert parsed.problems == ()
    return Policy(mode, parsed.rules)


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
@pytest.mark.parametrize("path", [LOCAL, TEMPORARY])
def test_a_local_deny_is_enforced_in_each_mode(mode: Mode, path: str) -> None:
    rules = policy(mode, (path, "deny module=af_alg\n"))
    assert rules.judge(ASKED, "af_alg").refused
    assert not rules.judge(ASKED, "algif_aead").refused


@pytest.mark.parametrize(("mode", "would"), [("off", False), ("observe", True)])
def test_other_rules_keep_the_mode(mode: Mode, would: bool) -> None:
    """Also where an allow rule of another file is the first that matches: it is not enforced either."""
    rules = policy(mode, (LOCAL, "deny module=af_alg\n"), (OTHER, "deny module=sctp\n"))
    decision = rules.judge(ASKED, "sctp")
    assert (decision.refused, decision.would_be_refused) == (False, would)
    rules = policy(mode, ("/etc/kmodd/policy.d/01-x.conf", "allow *\n"), (LOCAL, "deny module=af_alg\n"))
    assert rules.judge(ASKED, "af_alg").refused


def test_in_mode_enforce_the_first_rule_decides_whatever_its_file() -> None:
    rules = policy("enforce", ("/etc/kmodd/policy.d/01-x.conf", "allow *\n"), (LOCAL, "deny module=af_alg\n"))
    assert not rules.judge(ASKED, "af_alg").refused


@pytest.mark.parametrize(("mode", "refused"), [("off", False), ("observe", False), ("enforce", True)])
def test_a_mistake_in_the_local_file_refuses_other_modules_in_mode_enforce_only(mode: Mode, refused: bool) -> None:
    """The control is the valid deny rule of the same file."""
    parsed = policy_d.parse([ConfFile(LOCAL, "denyy module=x\ndeny module=af_alg\n")])
    rules = Policy(mode, rules_in_force(parsed, None))
    assert rules.judge(ASKED, "sctp").refused == refused
    assert rules.judge(ASKED, "af_alg").refused


@pytest.mark.parametrize(("uptime", "refused"), [(0.0, False), (99.9, False), (100.0, True), (1e6, True)])
def test_a_rule_with_until_ends(uptime: float, refused: bool) -> None:
    rules = policy("off", (TEMPORARY, "allow module=af_alg until=100\n"), (LOCAL, "deny module=af_alg\n"))
    assert rules.judge(replace(ASKED, uptime=uptime), "af_alg").refused == refused


@pytest.mark.parametrize(("uptime", "refused"), [(99.9, False), (100.0, True)])
def test_a_rule_with_until_and_an_exclamation_mark_begins(uptime: float, refused: bool) -> None:
    rules = policy("off", (LOCAL, "deny module=af_alg until=!100\n"))
    assert rules.judge(replace(ASKED, uptime=uptime), "af_alg").refused == refused


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("deny module=a\n", False),
        ("deny module=a uid=33\n", True),
        ("allow module=a uid=33\ndeny module=a\n", False),
        ("deny module=a unit=x.service\n", True),
    ],
)
def test_only_a_deny_for_some_needs_to_know_who_asks(text: str, needs: bool) -> None:
    assert policy("off", (LOCAL, text)).needs_requester == needs
    assert not policy("off", (OTHER, text)).needs_requester
    assert policy("enforce", (OTHER, text)).needs_requester


def plan(rules: str, local: bool = True, conf: str = "") -> Plan:
    """The plan for a: denied by the lines that `kmodd deny` writes, by root's request with these rules."""
    index = {"modules.dep": b"a.ko:\nb.ko: a.ko\nc.ko:\n", "modules.alias": b"alias net-pf-38 a\n"}
    own = "softdep a pre:\ninstall a /bin/false\nblacklist a\n"
    config = modprobe_d.parse([ConfFile(DENY_FILE, own), ConfFile("/etc/modprobe.d/x.conf", conf)])
    snapshot = Snapshot(Catalog([Layer("/lib/modules/6.1.0", index.get)]), config)
    policy_of = policy("off", (LOCAL if local else OTHER, rules))
    query = PolicyQuery("request", "net-pf-38", "running", requester=replace(USER, uid=0))
    request = Request("net-pf-38", "request")
    return resolve(
        request, snapshot, NOTHING_LOADED, options_of("request"), lambda _: True, lambda m: policy_of.judge(query, m)
    )


def reasons(found: Plan) -> list[tuple[str, str]]:
    return [(skip.module, skip.reason) for skip in found.skips]


def test_where_a_rule_decides_its_lines_in_modprobe_d_do_not_count() -> None:
    """So the record names the rule, and a rule can allow the module to some; else the lines hold."""
    assert reasons(plan("deny module=a\n")) == [("a", "denied")]
    assert [step.module for step in plan("allow module=a uid=0\ndeny module=a\n").steps] == ["a"]
    assert reasons(plan("deny module=c\n")) == [("a", "blacklisted")]
    assert reasons(plan("allow module=a\n", local=False)) == [("a", "blacklisted")]


def test_lines_of_other_files_count_all_the_same() -> None:
    assert reasons(plan("allow module=a\n", conf="blacklist a\n")) == [("a", "blacklisted")]
    assert reasons(plan("allow module=a\n", conf="install a /bin/true\n")) == [("a", "blocked")]
    assert [step.module for step in plan("allow module=a\n", conf="softdep a pre: c\n").steps] == ["c", "a"]


def test_a_denial_by_a_local_rule_is_enforced_in_each_mode() -> None:
    parsed = policy_d.parse([ConfFile(LOCAL, "deny module=a uid=1000-\n"), ConfFile(OTHER, "deny module=a\n")])
    found = denials(plan("allow module=a\n"), parsed.rules, PolicyQuery("request", "a", "running"), "off")
    assert [(str(each.decision.at), each.whom, each.mode) for each in found] == [
        (f"{OTHER}:1", ("root", "services", "containers"), "off"),
        (f"{LOCAL}:1", ("users",), "enforce"),
    ]
