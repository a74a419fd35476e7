"""Decisions of a policy: first match, requester, unknown fields, modes, seal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import MAX_UID, VERDICTS, Condition, Mode, Parsed, Phase, Rule, parse
from kmodd.dataclass import replace
from kmodd.errors import Problem, Where
from kmodd.kernel.requester import Requester
from kmodd.planning.policy import SEALED, Policy, PolicyDecision, PolicyQuery, asking_of, rules_in_force
from kmodd.planning.request import Request

FILE = "/etc/kmodd/policy.d/10-x.conf"


def policy(text: str, mode: Mode = "enforce") -> Policy:
    found = parse([ConfFile(FILE, text)])
    assert found.problems == ()
    return Policy(mode, found.rules)


def process(uid: int = 1000, container: bool = False, exe: str = "/usr/bin/x", unit: str = "x.service") -> Requester:
    return Requester(7, "x", exe, uid, None, "/system.slice/" + unit, unit, container)


def asked(requester: Requester | None = None, text: str = "net-pf-38") -> PolicyQuery:
    return PolicyQuery("request", text, "running", requester=requester)


def device(*devices: str, subsystem: str = "usb") -> PolicyQuery:
    return PolicyQuery("uevent", "usb:v1234p5678", "running", subsystem, devices)


def verdict(text: str, asking: PolicyQuery, module: str = "af_alg") -> str:
    return policy(text).judge(asking, module).verdict


def test_the_first_rule_that_fits_decides() -> None:
    text = "allow module=af_alg\ndeny request=net-pf-*\nlog *\n"
    assert verdict(text, asked()) == "allow"
    assert verdict(text, asked(), "sctp") == "deny"
    assert verdict(text, asked(text="fs-ext4"), "ext4") == "log"
    judgement = policy(text).judge(asked(), "sctp")
    assert (str(judgement.at), judgement.text, judgement.refused) == (f"{FILE}:2", "deny request=net-pf-*", True)


def test_nothing_fits_is_allowed() -> None:
    assert policy("deny module=x").judge(asked(), "y") == PolicyDecision("allow")


def test_all_conditions_and_any_value() -> None:
    text = "deny request=a*,b* module=x,!b*,x?"
    asking = asked(text="b1")
    assert [verdict(text, asking, module) for module in ("x", "xy", "b", "y", "xyz")] == [
        "deny", "deny", "allow", "allow", "allow",
    ]  # fmt: skip
    assert verdict(text, asked(text="c1"), "x") == "allow"
    assert verdict("deny module=!b*", asking, "x") == "deny"


def test_dashes_and_underscores_are_the_same() -> None:
    """Every look-up takes them for the same: so net_pf_38 is no way round a rule on net-pf-38."""
    for pattern in ("net-pf-38", "net_pf_*", "net-pf-[3-3]8"):
        assert verdict(f"deny request={pattern}", asked(text="net_pf-38")) == "deny"
    assert verdict("deny module=snd-hda-*", asked(), "snd_hda_intel") == "deny"
    assert verdict("deny module=snd_hda_*", asked(), "snd-hda-intel") == "deny"
    assert verdict("deny request=x*", asked(text="x]")) == "deny"


@pytest.mark.parametrize(
    ("condition", "fitting", "others"),
    [
        ("uid=0", process(0), process(1)),
        ("uid=!0", process(1), process(0)),
        ("uid=1-999,5000-", process(5000), process(1000)),
        ("uid=1000-,!1001", process(1000), process(1001)),
        ("container=yes", process(container=True), process()),
        ("container=no", process(), process(container=True)),
        ("exe=/usr/bin/*", process(), process(exe="/tmp/x")),
        ("unit=*.service", process(), process(unit="session-1.scope")),
        ("unit=-", process(unit=""), process()),
    ],
)
def test_the_process_that_asked(condition: str, fitting: Requester, others: Requester) -> None:
    rule = f"deny {condition}"
    assert verdict(rule, asked(fitting)) == "deny"
    assert verdict(rule, asked(others)) == "allow"


@pytest.mark.parametrize(
    ("condition", "denies", "allows"),
    [
        ("uid=0", False, False),
        ("uid=!0", True, True),
        ("uid=1-", True, True),
        ("uid=1-999,1000-", True, True),
        ("uid=0-", True, True),
        ("uid=!1-", False, False),
        ("uid=1000-", True, False),
        ("uid=!33", True, False),
        ("container=yes", True, False),
        ("container=no", True, False),
        ("exe=/usr/bin/x", True, False),
        ("unit=x.service", True, False),
    ],
)
def test_an_unknown_process_is_not_root_and_else_what_counts_against_it(
    condition: str, denies: bool, allows: bool
) -> None:
    """Under enforce an unknown requester counts as not root."""
    assert (verdict(f"deny {condition}", asked()) == "deny") == denies
    assert (verdict(f"allow {condition}\ndeny *", asked()) == "allow") == allows
    assert (verdict(f"log {condition}\ndeny *", asked()) == "log") == allows


def test_a_program_that_cannot_be_read_is_unknown() -> None:
    assert verdict("deny exe=/x", asked(process(exe=""))) == "deny"
    assert verdict("allow exe=*\ndeny *", asked(process(exe=""))) == "deny"


def test_conditions_on_what_is_not_there_do_not_hold() -> None:
    """`deny uid=!0` is about processes: a disk still gets its driver. `deny subsystem=!usb` is about devices alone."""
    for condition in ("uid=!0", "container=yes", "exe=!/x", "unit=!x"):
        for origin in ("uevent", "coldplug", "boot", "reconcile", "operator"):
            assert verdict(f"deny {condition}", replace(device("/devices/x"), origin=origin)) == "allow"
    for condition in ("subsystem=!pci", "device=!/devices/pci*"):
        assert verdict(f"deny {condition}", asked(process())) == "allow"
        assert verdict(f"deny {condition}", device("/devices/x")) == "deny"


def test_an_operators_load_is_allowed_unless_a_rule_denies_it() -> None:
    operator = PolicyQuery("operator", "loop", "running", requester=process(0))
    assert verdict("deny origin=request", operator, "loop") == "allow"
    assert verdict("deny origin=operator uid=0", operator, "loop") == "deny"


def test_devices_that_wait_together_are_judged_one_by_one() -> None:
    """A module allowed for one of the devices is loaded."""
    text = "deny device=/devices/*/usb1/* module=usb_storage\n"
    inside, outside = "/devices/pci0/usb2/2-1", "/devices/pci0/usb1/1-1"
    assert verdict(text, device(outside), "usb_storage") == "deny"
    assert verdict(text, device(outside, inside), "usb_storage") == "allow"
    assert verdict(text, device(outside, outside + "/x"), "usb_storage") == "deny"
    assert verdict(f"deny module=y\nallow device={inside}\ndeny *", device(outside, inside), "x") == "allow"


def test_flags_and_phases() -> None:
    locked = replace(device("/devices/x"), flags=frozenset({"locked"}))
    assert verdict("deny flag=locked subsystem=usb", locked) == "deny"
    assert verdict("deny flag=locked subsystem=usb", device("/devices/x")) == "allow"
    assert verdict("deny flag=!locked", locked) == "allow"
    assert verdict("deny phase=running,sealed", asked()) == "deny"
    assert verdict("deny phase=running,sealed", replace(asked(), phase="boot")) == "allow"


@pytest.mark.parametrize(
    ("mode", "phase", "refused", "would_be"),
    [
        ("off", "running", False, False),
        ("observe", "running", False, True),
        ("enforce", "running", True, False),
        ("off", "sealed", True, False),
        ("observe", "sealed", True, False),
        ("enforce", "sealed", True, False),
    ],
)
def test_modes(mode: Mode, phase: Phase, refused: bool, would_be: bool) -> None:
    judgement = policy("deny module=af_alg", mode).judge(replace(asked(), phase=phase), "af_alg")
    assert (judgement.refused, judgement.would_be_refused) == (refused, would_be)


def test_a_seal_refuses_all_without_a_rule() -> None:
    sealed = replace(asked(), phase="sealed")
    for rules in ("", "deny module=y", "allow module=y"):
        judgement = policy(rules, "off").judge(sealed, "x")
        assert (judgement.refused, judgement.at, judgement.text) == (True, None, SEALED)
    for rules in ("allow module=x", "log module=x"):
        assert not policy(rules, "off").judge(sealed, "x").refused
    two = replace(device("/devices/a", "/devices/b"), phase="sealed")
    assert not policy("allow device=/devices/b").judge(two, "x").refused


def test_a_mistake_is_the_place_of_the_rule_that_stands_for_it() -> None:
    """Without earlier rules; the record of what it denies names the line to correct."""
    rules = rules_in_force(parse([ConfFile(FILE, "allow *\ndenyy *\n")]), None)
    decision = Policy("enforce", rules).judge(asked(), "af_alg")
    assert (decision.refused, str(decision.at)) == (True, f"{FILE}:2")
    assert decision.text == "deny uid=!0 (policy.d is invalid)"


def test_the_asking_of_a_request() -> None:
    request = Request("pci:x", "coldplug", ("/devices/x",), 1, subsystem="pci")
    assert asking_of(request, "boot", frozenset({"locked"})) == PolicyQuery(
        "coldplug", "pci:x", "boot", "pci", ("/devices/x",), None, frozenset({"locked"})
    )
    assert asking_of(Request("x", "request", requester=process()), "running").requester == process()


# ── drawn: Policy against the definition, written out ────────────────────────────────────────────────────────────────

UIDS = ("0", "1-", "1000-", "1-999", "33", "0-4")
NAMES = ("a", "b*", "*", "a_b", "[ab]")


@st.composite
def conditions(draw: st.DrawFn) -> tuple[Condition, ...]:
    found = []
    if wanted := draw(st.lists(st.sampled_from(("request", "uevent", "operator")), max_size=2)):
        found.append(Condition("origin", tuple(wanted)))
    if wanted := draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        found.append(Condition("module", tuple(wanted), tuple(draw(st.lists(st.sampled_from(NAMES), max_size=1)))))
    if wanted := draw(st.lists(st.sampled_from(UIDS), max_size=2)):
        found.append(Condition("uid", tuple(wanted), tuple(draw(st.lists(st.sampled_from(UIDS), max_size=1)))))
    return tuple(found)


@st.composite
def some_rules(draw: st.DrawFn) -> list[Rule]:
    drawn = draw(st.lists(st.tuples(st.sampled_from(VERDICTS), conditions()), max_size=6))
    return [Rule(Where(FILE, number), "", verdict, those) for number, (verdict, those) in enumerate(drawn, 1)]


@given(some_rules(), st.sampled_from(("a", "b1", "a_b", "c")), st.integers(0, 2000))
def test_first_match_decides_whatever_the_rules(those: list[Rule], module: str, uid: int) -> None:
    asking = asked(process(uid))
    alone = [rule for rule in those if Policy("enforce", [rule]).judge(asking, module).rule is rule]
    assert Policy("enforce", those).judge(asking, module).rule is (alone[0] if alone else None)


@given(some_rules(), st.sampled_from(("a", "b1", "a_b", "c")))
def test_unknown_never_gets_more_than_any_user_would(those: list[Rule], module: str) -> None:
    """A refusal for one unprivileged user holds for an unknown one."""
    whole = Policy("enforce", those)
    unknown = whole.judge(asked(), module)
    samples = [1, 4, 5, 32, 33, 34, 999, 1000, MAX_UID]
    known = [whole.judge(asked(process(uid)), module) for uid in samples]
    assert unknown.refused or not any(judgement.refused for judgement in known)


MISTAKE = Problem(Where(FILE, 9), 1, "denyy *", "expected allow, deny or log")


@settings(max_examples=40)
@given(some_rules(), some_rules() | st.none(), st.sampled_from(("a", "b1", "a_b", "c")), st.sampled_from((0, 33, 2000)))
def test_rules_with_a_mistake_allow_no_more_than_the_valid_ones(
    broken: list[Rule], valid: list[Rule] | None, module: str, uid: int
) -> None:
    """And each deny rule of theirs holds, whatever stands before it."""
    for asking in (asked(process(uid)), device("/devices/x")):
        found = Policy("enforce", rules_in_force(Parsed(tuple(broken), (MISTAKE,)), valid)).judge(asking, module)
        before = Policy("enforce", valid or []).judge(asking, module)
        known = {rule.conditions for rule in valid or [] if rule.verdict == "deny"}
        denies = [rule for rule in broken if rule.verdict == "deny" and rule.conditions not in known]
        is_denied = any(Policy("enforce", [rule]).judge(asking, module).refused for rule in denies)
        is_unknown = valid is None and asking.origin == "request" and uid != 0
        assert found.refused == (before.refused or is_denied or is_unknown)
    assert rules_in_force(Parsed(tuple(broken)), valid) == tuple(broken)  # without a mistake


@pytest.mark.parametrize("rule", ["deny uid=!0", "deny uid=1000", "deny container=yes", "deny exe=/usr/bin/x"])
def test_the_kernel_asks_for_parts_of_a_cipher_for_an_unknown_process(rule: str) -> None:
    """Its thread runs as root for any process, also after a denial of the whole cipher (crypto/algboss.c)."""
    thread = Requester(10, "cryptomgr_probe", "", 0, None, "/", "", container=False, is_kernel=True)
    assert verdict(rule, asked(thread, "crypto-serpent"), "serpent_generic") == "deny"
    assert verdict(f"allow uid=0\n{rule}", asked(thread, "crypto-serpent"), "serpent_generic") == "deny"
    assert (
        verdict(f"allow request=crypto-serpent\n{rule}", asked(thread, "crypto-serpent"), "serpent_generic") == "allow"
    )
    if "exe" not in rule:
        assert verdict(rule, asked(thread, "mdio:1"), "realtek") == "allow"
