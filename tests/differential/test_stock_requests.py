"""What stock systems made their kernels request (`fixtures/requests`), planned on Debian's trees, against each preset.

The tables of docs/POLICY.md are what this shows; `python -m tests.stock_requests` writes them. So a change of a preset
shows there, with whom it refuses what.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Rule, parse
from kmodd.kernel.requester import Requester
from kmodd.planning.policy import Policy
from tests import stock_requests, trees
from tests.stock_requests import INTENDED, PAGE, Asked, Planner, is_meant, presets, read, refusals

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

SYSTEMS = stock_requests.systems()
ROOT = Requester(0, "", "", 0, None, "", "session-1.scope", False)
USER = Requester(0, "", "", 1000, None, "", "session-1.scope", False)


def planner(suite: str) -> Planner:
    with trees.may_be_away("6.1-" if suite == "bookworm" else suite):
        return stock_requests.planner_of(suite)


@pytest.fixture(params=SYSTEMS, ids=lambda path: path.stem)
def system(request: pytest.FixtureRequest) -> tuple[list[Asked], Planner]:
    path: Path = request.param
    return read(path), planner(suite_of(path))


def suite_of(path: Path) -> str:
    return path.stem.partition("-")[2]


def names(asked: list[Asked]) -> set[str]:
    return {each.name for each in asked}


def with_line(preset: str, line: str) -> dict[str, Policy]:
    """Return the presets, one of them with a line at its start."""
    return presets() | {preset: Policy("enforce", (*rules_of(line), *presets()[preset].rules))}


def rules_of(line: str) -> tuple[Rule, ...]:
    parsed = parse([ConfFile("x.conf", line)])
    assert parsed.problems == ()
    return parsed.rules


def test_there_are_fixtures() -> None:
    assert {path.stem.partition("-")[0] for path in SYSTEMS} == {"server", "container", "desktop"}


# ── what presets refuse ──────────────────────────────────────────────────────────────────────────────────────────────


def test_plans_have_what_was_loaded(system: tuple[list[Asked], Planner]) -> None:
    """The modules on record are in the plan of the same request, and a request without any is not answered."""
    asked, its_planner = system
    loaded = [each for each in asked if each.result == "loaded"]
    assert len(loaded) > 4
    for each in loaded:
        entries = {str(entry.module) for goal in its_planner.plan(each.name).goals for entry in goal.entries}
        assert set(each.modules) <= entries, each
    for each in asked:
        assert each.result != "nomatch" or its_planner.modules(each.name) == [], each


def test_what_presets_refuse_is_meant(system: tuple[list[Asked], Planner]) -> None:
    assert stock_requests.unintended(refusals(*system, presets())) == []


def test_what_presets_are_meant_to_refuse_is_asked_for() -> None:
    """By some system; else the page names what does not occur."""
    refused = [
        (number, each)
        for path in SYSTEMS
        for number, those in refusals(read(path), planner(suite_of(path)), presets()).items()
        for each in those
    ]
    for meant in INTENDED:
        assert [each for number, each in refused if is_meant(number, each, meant)], meant


def test_no_unprivileged_autoload_refuses_nothing_to_root(system: tuple[list[Asked], Planner]) -> None:
    """But in containers, and what is not known to be root's."""
    refused = refusals(*system, presets())["50"]
    assert [each for each in refused if each.whom == "root"] == []


def test_hardware_only_after_boot_refuses_nothing_during_boot(system: tuple[list[Asked], Planner]) -> None:
    asked, its_planner = system
    refused = refusals(asked, its_planner, presets())["40"]
    assert {each.phase for each in refused} == {"running"}
    assert not {each.whom for each in refused} & {"driver being loaded", "thread of the kernel"}
    assert {each.phase for each in asked} == {"boot", "running"}


def test_the_usb_preset_refuses_no_request(system: tuple[list[Asked], Planner]) -> None:
    assert refusals(*system, presets())["20"] == []


def test_the_tables_of_the_page_are_those_of_fixtures_and_presets() -> None:
    for path in SYSTEMS:
        planner(suite_of(path))  # skips where a suite is away
    assert PAGE.read_text() == stock_requests.page(presets())


# ── controls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_replay_tells_refused_from_allowed() -> None:
    """Requests of an exploit, by a user, and the same by root."""
    its_planner = planner("bookworm")
    by_user = [Asked("running", name, "loaded", (), (USER,)) for name in ("net-pf-38", "net-pf-2-proto-132")]
    refused = refusals(by_user, its_planner, presets())
    assert names(refused["50"]) == {"net-pf-38", "net-pf-2-proto-132"}
    assert names(refused["30"]) == {"net-pf-2-proto-132"}
    at_boot, by_root = (Asked("boot", "net-pf-38", "loaded", (), (who,)) for who in (USER, ROOT))
    assert refusals([at_boot], its_planner, presets())["40"] == []
    assert refusals([by_root], its_planner, presets())["50"] == []


@pytest.mark.parametrize("preset", ["20", "30", "50"])
def test_a_deny_too_many_changes_the_tables(system: tuple[list[Asked], Planner], preset: str) -> None:
    """For each request of a system that a preset allows."""
    asked, its_planner = system
    allowed = [each for each in asked if its_planner.modules(each.name)]
    refused = refusals(allowed, its_planner, presets())[preset]
    allowed = [each for each in allowed if each not in refused]
    assert allowed
    for each in allowed:
        planted = with_line(preset, f'deny origin=request request="{each.name}"')
        assert refusals([each], its_planner, planted)[preset] == [each]
        assert stock_requests.unintended(refusals([each], its_planner, planted))


def test_a_line_too_few_refuses_what_is_not_meant() -> None:
    """`ss` of a user asks for it, and a rule of preset 50 allows it."""
    its_planner = planner("bookworm")
    rules = presets()["50"].rules
    asked = [Asked("running", "net-pf-16-proto-4-type-2-6", "loaded", (), (USER,))]
    assert refusals(asked, its_planner, presets())["50"] == []
    fewer = Policy("enforce", [rule for rule in rules if "net-pf-16-proto-4-type-2-6" not in rule.text])
    refused = refusals(asked, its_planner, presets() | {"50": fewer})
    assert stock_requests.unintended(refused) == [("50", "net-pf-16-proto-4-type-2-6")]


def test_requests_are_of_one_kind_if_rules_do_not_tell_them_apart() -> None:
    """And without what differs from one run to the next."""
    common: dict[str, object] = {"SYSLOG_IDENTIFIER": "kmodd", "_UID": "0", "KMODD_SOURCE": "request", "PRIORITY": "6"}
    scope, by_root = "docker-" + "a1" * 32 + ".scope", {"KMODD_REQUESTER_UID": "0", "KMODD_REQUESTER_CONTAINER": "yes"}
    asked = common | by_root | {"KMODD_ALIAS": "nft-chain-1-nat", "KMODD_RESULT": "live"}
    records = [
        asked | {"KMODD_REQUESTER_UNIT": scope, "KMODD_RESULT": "nomatch", "KMODD_REQUESTER_EXE": "/usr/sbin/nft"},
        asked | {"KMODD_REQUESTER_UNIT": scope.replace("a1", "b2"), "KMODD_RESULT": "loaded", "KMODD_MODULES": ["nft"]},
        common | {"MESSAGE": "Coldplug done: 3 devices", "KMODD_SOURCE": ""},
        asked | {"KMODD_REQUESTER_UNIT": scope, "KMODD_REPEATED": "4"},
        asked | {"KMODD_REQUESTER_UNIT": scope, "_UID": "1000"},
        asked | {"KMODD_SOURCE": "uevent"},
    ]
    who = Requester(0, "", "", 0, None, "", "docker-0.scope", True)
    assert stock_requests.asked_in(records) == [
        Asked("boot", "nft-chain-1-nat", "loaded", ("nft",), (who,), 2),
        Asked("running", "nft-chain-1-nat", "live", (), (who,), 5),
    ]


def test_a_fixture_is_read_as_it_was_written(tmp_path: Path) -> None:
    kernel = Requester(0, "", "", 0, None, "", "", False, is_kernel=True)
    inside = Requester(0, "", "", 100000, None, "", "docker-0.scope", True)
    asked = [
        Asked("boot", "crypto-xts(serpent)", "loaded", ("xts", "serpent"), (kernel,), 3),
        Asked("running", "net-pf-38", "nomatch", (), (None,)),
        Asked("running", "fs-é", "live", (), (ROOT, inside)),
    ]
    stock_requests.write(tmp_path / "x", asked)
    assert stock_requests.read(tmp_path / "x") == asked
