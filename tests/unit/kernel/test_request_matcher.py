"""Which open request a helper stands for: a truth or "unknown", never a guess."""

from __future__ import annotations

from kmodd.dataclass import replace
from kmodd.kernel.ftrace import ModuleRequested
from kmodd.kernel.request_matcher import LATEST_NS, MAX_CANDIDATES, MAX_REQUESTS, PROMPT_NS, OpenRequests
from kmodd.kernel.requester import Requester

ALICE = Requester(100, "sh", "/usr/bin/sh", 1000, 1000, "/user.slice/s", "session-1.scope", False)
ROOT = Requester(200, "sh", "/usr/bin/sh", 0, None, "/system.slice/x.service", "x.service", False)
NOW = 10 * LATEST_NS


def opened(*who: Requester | None, name: str = "net-pf-9", wait: bool = True) -> OpenRequests:
    requests = OpenRequests()
    add(requests, *who, name=name, wait=wait)
    return requests


def add(requests: OpenRequests, *who: Requester | None, name: str = "net-pf-9", wait: bool = True) -> None:
    for number, one in enumerate(who):
        requests.add(ModuleRequested(NOW + number, one.pid if one else 1, name, wait), one, NOW)


def test_one_request_is_its_helper_s_and_over_then() -> None:
    requests = opened(ALICE)
    assert requests.match("net-pf-9", NOW) == ALICE
    assert requests.match("net-pf-9", NOW) is None
    assert len(requests) == 0


def test_a_name_is_matched_whole_and_others_stay_open() -> None:
    requests = opened(ALICE)
    add(requests, ROOT, name="net-pf-9\n")
    assert requests.match("net-pf", NOW) is None
    assert requests.match("net-pf-9\n", NOW) == ROOT
    assert requests.match("net-pf-9", NOW) == ALICE


def test_equal_requesters_are_matched_in_order() -> None:
    other = replace(ALICE, pid=101, comm="bash")
    requests = opened(ALICE, other)
    assert [requests.match("net-pf-9", NOW) for _ in range(3)] == [ALICE, other, None]


def test_the_candidates_are_those_that_differ_if_all_are_known() -> None:
    other = replace(ALICE, pid=101, comm="bash")
    requests = opened(ALICE, ROOT, other)
    for _ in range(2):  # one of them is over then, but which?
        assert requests.match("net-pf-9", NOW) is None
        assert requests.candidates == (ALICE, ROOT)
    add(requests, None)
    assert no_candidates(requests)
    assert no_candidates(opened(ALICE, ROOT, wait=False))
    lost = opened(ALICE, ROOT)
    lost.lost(NOW)
    assert no_candidates(lost)
    assert no_candidates(opened(*(replace(ALICE, uid=number) for number in range(MAX_CANDIDATES + 1))))
    assert not no_candidates(opened(*(replace(ALICE, uid=number) for number in range(MAX_CANDIDATES))))


def no_candidates(requests: OpenRequests) -> bool:
    assert requests.match("net-pf-9", NOW) is None
    return requests.candidates == ()


def test_different_requesters_of_one_name_are_unknown_until_all_helpers_arrive() -> None:
    for difference in (
        {"uid": 0}, {"container": True}, {"unit": "y.service"}, {"exe": "/x"}, {"loginuid": None}, {"cgroup": "/"},
    ):  # fmt: skip
        other = replace(ALICE, **difference)
        requests = opened(ALICE, other)
        assert requests.match("net-pf-9", NOW) is None
        # One of the two is over, but which? A third that is alike does not clear it up.
        add(requests, ALICE)
        assert [requests.match("net-pf-9", NOW) for _ in range(2)] == [None, None]
        add(requests, ROOT)
        assert requests.match("net-pf-9", NOW) == ROOT


def test_an_unknown_requester_is_ambiguous_only_if_others_asked_for_the_name() -> None:
    requests = opened(ALICE, ROOT)
    found = []
    for _ in range(3):
        found.append((requests.match("net-pf-9", NOW), requests.was_ambiguous))
    assert found == [(None, True), (None, True), (None, False)]
    add(requests, None)
    assert (requests.match("net-pf-9", NOW), requests.was_ambiguous) == (None, False)
    add(requests, ROOT)
    assert (requests.match("net-pf-9", NOW), requests.was_ambiguous) == (ROOT, False)


def test_a_dead_or_unwaiting_requester_is_unknown() -> None:
    for requests in (opened(None), opened(ROOT, wait=False)):
        assert requests.match("net-pf-9", NOW) is None
        add(requests, ALICE)
        assert requests.match("net-pf-9", NOW) == ALICE


def test_a_dead_requester_makes_the_other_unknown() -> None:
    requests = opened(ROOT, None)
    assert [requests.match("net-pf-9", NOW) for _ in range(2)] == [None, None]
    requests = opened(ROOT)
    add(requests, ROOT, wait=False)
    assert [requests.match("net-pf-9", NOW) for _ in range(2)] == [None, None]


def test_a_request_without_a_helper_is_forgotten() -> None:
    requests = opened(ROOT)
    later = NOW + LATEST_NS
    requests.add(ModuleRequested(later, 100, "net-pf-9", True), ALICE, later)
    assert requests.match("net-pf-9", later) == ALICE
    assert len(requests) == 0


def test_a_missing_helper_keeps_the_count_of_the_others() -> None:
    requests = opened(ROOT)
    later = NOW + LATEST_NS
    requests.add(ModuleRequested(later, 100, "net-pf-9", True), ALICE, later - 1)
    assert requests.match("net-pf-9", later - 1) is None  # ALICE's helper, in truth
    requests.add(ModuleRequested(later + 1, 100, "net-pf-9", True), ALICE, later)
    assert requests.match("net-pf-9", later) is None  # 2 are open, 1 helper was told "unknown"
    requests.add(ModuleRequested(later + 2, 200, "net-pf-9", True), ROOT, later)
    assert requests.match("net-pf-9", later) == ROOT


def test_lost_events_make_all_unknown_while_their_helpers_may_arrive() -> None:
    requests = opened(ALICE)
    requests.lost(NOW)
    requests.lost(NOW - 1)
    assert requests.match("net-pf-9", NOW + LATEST_NS - 1) is None
    assert len(requests) == 0
    later = NOW + LATEST_NS
    requests.add(ModuleRequested(later, 200, "net-pf-9", True), ROOT, later)
    assert requests.match("net-pf-9", later) == ROOT


def test_records_beyond_the_limit_count_as_lost() -> None:
    requests = opened(*[ALICE] * MAX_REQUESTS)
    assert requests.match("net-pf-9", NOW) == ALICE
    add(requests, ALICE)
    assert len(requests) == MAX_REQUESTS
    add(requests, ALICE)
    assert len(requests) == 1
    assert requests.match("net-pf-9", NOW) is None


def test_helpers_at_the_begin_of_the_trace_are_unknown_for_a_moment() -> None:
    """They may belong to requests before it; later ones are known."""
    requests = opened(ALICE)
    requests.began(NOW)
    assert requests.match("net-pf-9", NOW + PROMPT_NS - 1) is None
    add(requests, ALICE)
    assert requests.match("net-pf-9", NOW + PROMPT_NS) == ALICE
