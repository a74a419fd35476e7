"""Modules loaded for the kernel's requests are removed once nothing uses them: `Autoclean`."""

from __future__ import annotations

import pytest

from kmodd.config.kmodd_conf import Settings
from kmodd.kernel.proc_modules import Loaded, parse_modules
from kmodd.planning.outcome import Outcome, Result
from kmodd.planning.plan import Reason
from kmodd.planning.request import Origin, RemovalOptions, Request
from kmodd.state.autoclean import Autoclean

SETTINGS = Settings(autoclean=("af-*", "kcm"), autoclean_after=60)


def outcome(name: str, origin: Origin = "request", result: Result = "loaded") -> Outcome:
    return Outcome(Request(name, origin), name, result, Reason("asked", name))


def kernel(**modules: tuple[int, tuple[str, ...], str]) -> Loaded:
    """Name → reference count, holders, state as /proc/modules has it."""
    lines = [
        f"{name} 4096 {refcnt} {','.join((*holders, '')) if holders else '-'} {state} 0x0"
        for name, (refcnt, holders, state) in modules.items()
    ]
    return parse_modules("".join(f"{line}\n" for line in lines))


IDLE = (0, (), "Live")
"""As `kernel` has it: not used."""


@pytest.fixture
def autoclean() -> Autoclean:
    it = Autoclean()
    it.saw(outcome("xfrm_algo"), SETTINGS, 100.0)
    it.saw(outcome("af_key"), SETTINGS, 100.0)
    return it


def due(autoclean: Autoclean, loaded: Loaded, now: float) -> list[str]:
    return [request.text for request in autoclean.due(lambda: loaded, SETTINGS, now)]


def test_an_idle_module_is_removed_after_its_time_with_its_dependencies(autoclean: Autoclean) -> None:
    """Named in Autoclean= by a pattern, dashes and underscores being one; its dependencies may be removed, too."""
    both = kernel(af_key=IDLE, xfrm_algo=(1, ("af_key",), "Live"))
    assert due(autoclean, both, 159.9) == []
    (request,) = autoclean.due(lambda: both, SETTINGS, 166.0)
    assert request == Request(
        "af_key", "request", removing=RemovalOptions(only_deps=("af_key", "xfrm_algo"), idle_sec=60)
    )
    assert autoclean.waiting(SETTINGS, 166.0) == [("af_key", 60.0)]


@pytest.mark.parametrize("used", [(1, (), "Live"), (0, ("ah4",), "Live"), (0, (), "Loading"), (-1, (), "Live")])
def test_a_used_module_stays_and_its_time_begins_again(
    autoclean: Autoclean, used: tuple[int, tuple[str, ...], str]
) -> None:
    """A reference, a holder, an init that has not returned; -1: the kernel does not tell."""
    assert due(autoclean, kernel(af_key=used, xfrm_algo=IDLE), 165.0) == []
    assert autoclean.waiting(SETTINGS, 170.0) == [("af_key", 55.0)]
    assert due(autoclean, kernel(af_key=IDLE, xfrm_algo=IDLE), 224.0) == []
    assert due(autoclean, kernel(af_key=IDLE, xfrm_algo=IDLE), 231.0) == ["af_key"]


def test_a_request_for_a_live_module_is_a_use(autoclean: Autoclean) -> None:
    autoclean.saw(outcome("af_key", result="live"), SETTINGS, 150.0)
    assert due(autoclean, kernel(af_key=IDLE), 165.0) == []
    assert due(autoclean, kernel(af_key=IDLE), 211.0) == ["af_key"]


@pytest.mark.parametrize("origin", ["operator", "boot", "uevent", "coldplug", "reconcile"])
@pytest.mark.parametrize("result", ["loaded", "live"])
def test_a_module_requested_otherwise_stays(autoclean: Autoclean, origin: Origin, result: Result) -> None:
    autoclean.saw(outcome("af_key", origin, result), SETTINGS, 120.0)
    assert due(autoclean, kernel(af_key=IDLE), 1000.0) == []
    autoclean.saw(outcome("kcm", origin), SETTINGS, 120.0)
    autoclean.saw(outcome("kcm", result="live"), SETTINGS, 130.0)
    assert autoclean.waiting(SETTINGS, 1000.0) == []


def test_a_dependency_requested_by_an_operator_stays(autoclean: Autoclean) -> None:
    autoclean.saw(outcome("xfrm_algo", "operator", "live"), SETTINGS, 120.0)
    (request,) = autoclean.due(lambda: kernel(af_key=IDLE, xfrm_algo=(1, ("af_key",), "Live")), SETTINGS, 166.0)
    assert request.removing is not None
    assert request.removing.only_deps == ("af_key",)


def test_a_module_that_is_not_named_or_not_loaded_does_not_wait(autoclean: Autoclean) -> None:
    autoclean.saw(outcome("phonet"), SETTINGS, 100.0)
    autoclean.saw(outcome("kcm", result="failed"), SETTINGS, 100.0)
    assert [name for name, _ in autoclean.waiting(SETTINGS, 100.0)] == ["af_key"]


def test_a_removed_module_is_forgotten(autoclean: Autoclean) -> None:
    """Another process removed it; a later module of that name is not for autoclean."""
    assert due(autoclean, kernel(xfrm_algo=IDLE), 165.0) == []
    assert autoclean.deadline() is None
    assert due(autoclean, kernel(af_key=IDLE), 1000.0) == []
