"""What came for the kernel's request and nothing uses any more goes again: `Autoclean`, and the line that obeys it."""

from __future__ import annotations

import selectors
import time

import pytest

from kmodd.config.kmodd_conf import Settings
from kmodd.host.tree import Tree
from kmodd.kernel import uevent
from kmodd.kernel.proc_modules import Loaded, parse_modules
from kmodd.planning.outcome import Outcome, Result
from kmodd.planning.plan import Reason
from kmodd.planning.request import Origin, RemovalOptions, Request
from kmodd.state.autoclean import Autoclean
from tests.fakes import FakeKernel
from tests.world import RELEASE, World

SETTINGS = Settings(autoclean=("af-*", "kcm"), autoclean_after=60)


def came(name: str, origin: Origin = "request", result: Result = "loaded") -> Outcome:
    return Outcome(Request(name, origin), name, result, Reason("asked", name))


def kernel(**modules: tuple[int, tuple[str, ...], str]) -> Loaded:
    """Name → reference count, holders, state as /proc/modules has it."""
    lines = [
        f"{name} 4096 {refcnt} {','.join((*holders, '')) if holders else '-'} {state} 0x0"
        for name, (refcnt, holders, state) in modules.items()
    ]
    return parse_modules("".join(f"{line}\n" for line in lines))


IDLE = (0, (), "Live")
"""As `kernel` has it: nobody uses it."""


@pytest.fixture
def autoclean() -> Autoclean:
    it = Autoclean(SETTINGS)
    it.saw(came("xfrm_algo"), 100.0)
    it.saw(came("af_key"), 100.0)
    return it


def due(autoclean: Autoclean, loaded: Loaded, now: float) -> list[str]:
    return [request.text for request in autoclean.due(lambda: loaded, now)]


def test_it_goes_after_its_time_and_takes_what_came_with_it(autoclean: Autoclean) -> None:
    """Named in Autoclean= by a pattern, dashes and underscores being one; what came with it may go too."""
    both = kernel(af_key=IDLE, xfrm_algo=(1, ("af_key",), "Live"))
    assert due(autoclean, both, 159.9) == []
    (request,) = autoclean.due(lambda: both, 166.0)
    assert request == Request(
        "af_key", "request", removing=RemovalOptions(only_deps=("af_key", "xfrm_algo"), idle_sec=60)
    )
    assert autoclean.waiting(166.0) == [("af_key", 60.0)]


@pytest.mark.parametrize("used", [(1, (), "Live"), (0, ("ah4",), "Live"), (0, (), "Loading"), (-1, (), "Live")])
def test_never_one_that_is_used_and_its_time_begins_anew(
    autoclean: Autoclean, used: tuple[int, tuple[str, ...], str]
) -> None:
    """A reference, a holder, an init that goes on; -1: the kernel does not tell."""
    assert due(autoclean, kernel(af_key=used, xfrm_algo=IDLE), 165.0) == []
    assert autoclean.waiting(170.0) == [("af_key", 55.0)]
    assert due(autoclean, kernel(af_key=IDLE, xfrm_algo=IDLE), 224.0) == []
    assert due(autoclean, kernel(af_key=IDLE, xfrm_algo=IDLE), 231.0) == ["af_key"]


def test_a_request_that_finds_it_live_is_a_use(autoclean: Autoclean) -> None:
    autoclean.saw(came("af_key", result="live"), 150.0)
    assert due(autoclean, kernel(af_key=IDLE), 165.0) == []
    assert due(autoclean, kernel(af_key=IDLE), 211.0) == ["af_key"]


@pytest.mark.parametrize("origin", ["operator", "boot", "uevent", "coldplug", "reconcile"])
@pytest.mark.parametrize("result", ["loaded", "live"])
def test_what_anybody_else_wants_stays(autoclean: Autoclean, origin: Origin, result: Result) -> None:
    autoclean.saw(came("af_key", origin, result), 120.0)
    assert due(autoclean, kernel(af_key=IDLE), 1000.0) == []
    autoclean.saw(came("kcm", origin), 120.0)
    autoclean.saw(came("kcm", result="live"), 130.0)
    assert autoclean.waiting(1000.0) == []


def test_a_dependency_that_somebody_loads_by_hand_stays(autoclean: Autoclean) -> None:
    autoclean.saw(came("xfrm_algo", "operator", "live"), 120.0)
    (request,) = autoclean.due(lambda: kernel(af_key=IDLE, xfrm_algo=(1, ("af_key",), "Live")), 166.0)
    assert request.removing is not None
    assert request.removing.only_deps == ("af_key",)


def test_what_is_not_named_or_not_loaded_does_not_wait(autoclean: Autoclean) -> None:
    autoclean.saw(came("phonet"), 100.0)
    autoclean.saw(came("kcm", result="failed"), 100.0)
    assert [name for name, _ in autoclean.waiting(100.0)] == ["af_key"]


def test_what_is_gone_is_forgotten(autoclean: Autoclean) -> None:
    """Removed by somebody else; what has the name later is somebody else's."""
    assert due(autoclean, kernel(xfrm_algo=IDLE), 165.0) == []
    assert autoclean.next_look() is None
    assert due(autoclean, kernel(af_key=IDLE), 1000.0) == []


class Stacked(FakeKernel):
    """Keeps /proc/modules: b uses a."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._live: set[str] = set()
        world.kernel = world.loaders.kernel = self

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        super().finit_module(fd, options, flags)
        self._keep(self._live | {self.calls[-1][0].removesuffix(".ko")})

    def delete_module(self, name: str, flags: int) -> None:
        super().delete_module(name, flags)
        self._keep(self._live - {name})

    def _keep(self, live: set[str]) -> None:
        self._live = live
        held = "1 b," if "b" in live else "0 -"
        lines = [f"{name} 1 {held if name == 'a' else '0 -'} Live 0x0\n" for name in sorted(live)]
        (self._world.root / "proc/modules").write_text("".join(lines))


@pytest.fixture
def stacked(world: World) -> World:
    """b is there because the kernel asked for it, and a because b needs it; b is named in Autoclean=."""
    Stacked(world)
    (world.root / "etc/kmodd").mkdir()
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nAutoclean=b\nAutocleanSec=1\n")
    world.engine.reload()
    world.engine.intake.takes_replay()
    world.engine.intake.order(Request("b", "request"))
    go_on(world)
    assert calls(world) == ["a.ko", "b.ko"]
    return world


def go_on(world: World) -> None:
    """Until the line has nothing to do."""
    world.engine.advance()
    while not world.engine.idle:
        with selectors.DefaultSelector() as selector:
            for lane in world.engine.in_flight.batches:
                selector.register(lane, selectors.EVENT_READ, lane)
            for key, _ in selector.select(30):
                world.engine.scheduler.heard(key.data)
        world.engine.advance()


def calls(world: World) -> list[str]:
    """What the kernel was asked to take in (NAME.ko) or out."""
    found = [call[0] for call in world.kernel.calls]
    world.kernel.calls.clear()
    return found


def later(world: World) -> None:
    """Two seconds later, as far as autoclean knows."""
    for request in world.engine.autoclean.due(Tree(str(world.root), RELEASE).loaded, time.monotonic() + 2):
        world.engine.intake.order(request)
    go_on(world)


def test_the_line_removes_it_with_its_dependency(stacked: World) -> None:
    stacked.told()
    later(stacked)
    assert calls(stacked) == ["b", "a"]
    assert stacked.told() == [("b", "removed"), ("a", "removed")]
    assert stacked.engine.autoclean.next_look() is None


@pytest.mark.parametrize(("gone", "removed"), [("b", []), ("a", ["b"])])
def test_what_was_taken_out_and_put_in_by_hand_between_two_looks_stays(
    stacked: World, gone: str, removed: list[str]
) -> None:
    """The kernel's event says so, though nothing is different at the next look."""
    for action in ("remove", "add"):
        event = f"{action}@/module/{gone}\0ACTION={action}\0DEVPATH=/module/{gone}\0SUBSYSTEM=module\0SEQNUM=9\0"
        stacked.engine.intake.take(uevent.parse(event.encode()), "uevent")
    later(stacked)
    assert calls(stacked) == removed
