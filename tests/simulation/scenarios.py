"""Scenarios for the simulator and a VM: acts, and the loads and records of each stage; and their comparison.

A text has stages. Lines without indentation are acts, in the order in which they happen; the indented lines after them
are what the stage brings: `loads` with the modules whose init the kernel begins, then records, each `MODULE RESULT
SOURCE` and the name of an errno, where there is one. `>` stands between what happens in this order, `,` between all
else. `MODULE other ERRNO` is the result of another process' finit_module (`ok` for 0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

Chains = tuple[tuple[str, ...], ...]
"""Each chain happens in its order; the chains, in any."""


@dataclass
class Seen:
    """What one stage has brought: modules whose init began, and records, both in their order."""

    loads: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """Acts and what they bring."""

    acts: tuple[str, ...]
    loads: Chains
    records: Chains

    def expected(self) -> Seen:
        """The loads and records in an order that the chains allow."""
        return Seen(*([word for chain in chains for word in chain] for chains in (self.loads, self.records)))


@dataclass(frozen=True)
class Scenario:
    """A machine's modules are those of `fixtures/modules/vm`, as MODULES has them."""

    name: str
    text: str
    since_6_5: bool | None = None
    """On kernels since 6.5 only, or before 6.5 only; None: on all."""

    def runs_on(self, release: str) -> bool:
        """Whether the scenario is for a kernel of this release."""
        return self.since_6_5 is None or self.since_6_5 == shares_results(release)

    def stages(self) -> list[Stage]:
        """Parse the text."""
        stages: list[Stage] = []
        acts: list[str] = []
        brought: list[str] = []
        for line in [line for line in self.text.splitlines() if line.strip()]:
            if line.startswith(" "):
                brought.append(line.strip())
                continue
            if brought:
                stages.append(_stage(acts, brought))
                acts, brought = [], []
            acts.append(line)
        return [*stages, _stage(acts, brought)]


def _stage(acts: Sequence[str], brought: Sequence[str]) -> Stage:
    loads = [line.removeprefix("loads ") for line in brought if line.startswith("loads ")]
    records = [line for line in brought if not line.startswith("loads ") and line != "nothing"]
    return Stage(tuple(acts), _chains(loads), _chains(records))


def _chains(lines: Sequence[str]) -> Chains:
    return tuple(tuple(map(str.strip, part.split(">"))) for line in lines for part in line.split(","))


def shares_results(release: str) -> bool:
    """Whether a second load of a module that is coming gets the result of the first (kernel/module/main.c, 6.5)."""
    return tuple(int(part) for part in release.split(".")[:2]) >= (6, 5)


def differences(scenario: Scenario, one: Sequence[Seen], other: Sequence[Seen]) -> list[str]:
    """Compare what two machines have made of a scenario; empty: the same, in the order that the scenario gives."""
    stages = scenario.stages()
    found = []
    if not len(stages) == len(one) == len(other):
        found.append(f"{len(stages)} stages, seen {len(one)} and {len(other)}")
    for number, (stage, left, right) in enumerate(zip(stages, one, other, strict=False), 1):
        where = f"stage {number} ({'; '.join(stage.acts)})"
        found += [f"{where}: load {each}" for each in _differ(stage.loads, left.loads, right.loads)]
        found += [f"{where}: record {each}" for each in _differ(stage.records, left.records, right.records)]
    return found


def _differ(chains: Chains, one: Sequence[str], other: Sequence[str]) -> list[str]:
    left, right = Counter(one), Counter(other)
    found = [
        f"{word}: {left[word]} times and {right[word]} times" for word in left | right if left[word] != right[word]
    ]
    for chain in chains:
        orders = [[word for word in words if word in chain] for words in (one, other)]
        if not found and orders[0] != orders[1]:
            found.append(f"order: {' > '.join(orders[0])} and {' > '.join(orders[1])}")
    return found


MODULES = (
    "module kt_plain", "module kt_refuse", "module kt_late", "module kt_unknown kt_late", "module kt_self",
    "module kt_slow", "module kt_behind kt_slow", "module kt_oops", "module kt_deep kt_oops", "module kt_async",
    "module kt_chain_d", "module kt_chain_c kt_chain_d", "module kt_chain_b", "module kt_chain_a", "module kt_ten",
    "module kt_asks_oops", "init kt_asks_oops asks kt_plain", "init kt_asks_oops oops",
    "init kt_slow hang", "init kt_oops oops", "init kt_self asks kt_self", "init kt_chain_a asks kt_chain_b",
    "init kt_chain_b asks kt_chain_c", "init kt_async async", "init kt_refuse refuses ENODEV",
)  # fmt: skip
"""The modules of `fixtures/modules/vm` that scenarios use, and their nature, as lines of a simulation.

kt_slow hangs until `let-go kt_slow`, kt_async's work goes on until `let-go kt_async`.
"""

DEVICES = (
    "kt_plain", "kt_refuse", "kt_late", "kt_unknown", "kt_self", "kt_slow", "kt_behind", "kt_oops", "kt_deep",
    "kt_async", "kt_chain_a", "kt_ten", "kt_asks_oops",
)  # fmt: skip
"""Modules with an alias `platform:NAME`; `plug NAME` makes such a device."""

SCENARIOS = (
    Scenario(
        "a device gets its driver, once",
        """
start
plug kt_plain
  loads kt_plain
  kt_plain loaded uevent
plug kt_plain
  kt_plain live uevent
""",
    ),
    Scenario(
        "a dependency comes first",
        """
quick kt_slow
start
plug kt_behind
  loads kt_slow > kt_behind
  kt_slow loaded uevent > kt_behind loaded uevent
""",
    ),
    Scenario(
        "a module that refuses is tried once for synthetic events",
        """
start
plug kt_refuse
  loads kt_refuse
  kt_refuse failed uevent ENODEV
trigger kt_refuse
  nothing
""",
    ),
    Scenario(
        "a module that is busy is tried six times",
        """
refuse kt_refuse EBUSY
start
plug kt_refuse
  loads kt_refuse, kt_refuse, kt_refuse, kt_refuse, kt_refuse, kt_refuse
  kt_refuse failed uevent EBUSY, kt_refuse failed uevent EBUSY, kt_refuse failed uevent EBUSY
  kt_refuse failed uevent EBUSY, kt_refuse failed uevent EBUSY, kt_refuse failed uevent EBUSY
""",
    ),
    Scenario(
        "with one lane a slow init is waited for",
        """
start
plug kt_slow
begin kt_slow
plug kt_plain
let-go kt_slow
  loads kt_slow > kt_plain
  kt_slow loaded uevent > kt_plain loaded uevent
""",
    ),
    Scenario(
        "with two lanes a slow init is overtaken",
        """
set Lanes 2
start
plug kt_slow
begin kt_slow
plug kt_plain
finish kt_plain
let-go kt_slow
  loads kt_slow > kt_plain
  kt_plain loaded uevent > kt_slow loaded uevent
""",
    ),
    Scenario(
        "with auto lanes an init that sleeps is overtaken",
        """
set Lanes auto
start
plug kt_slow
begin kt_slow
plug kt_plain
wait 0.01
wait 0.01
wait 0.01
finish kt_plain
let-go kt_slow
  loads kt_slow > kt_plain
  kt_plain loaded uevent > kt_slow loaded uevent
""",
    ),
    Scenario(
        "an init hangs, and ends late",
        """
set StuckAfterSec 4
start
plug kt_slow
  loads kt_slow
  kt_slow stuck uevent
plug kt_plain
  loads kt_plain
  kt_plain loaded uevent
plug kt_behind
  kt_slow stuck uevent > kt_behind not_attempted uevent
let-go kt_slow
  loads kt_behind
  kt_slow loaded uevent > kt_behind loaded reconcile
""",
    ),
    Scenario(
        "inits ask for other modules, nested",
        """
start
plug kt_chain_a
  loads kt_chain_a > kt_chain_b > kt_chain_d > kt_chain_c
  kt_chain_d loaded request > kt_chain_c loaded request > kt_chain_b loaded request > kt_chain_a loaded uevent
""",
    ),
    Scenario(
        "an init asks for its own module",
        """
start
plug kt_self
  loads kt_self
  kt_self not_attempted request > kt_self loaded uevent
""",
    ),
    Scenario(
        "the kernel asks for processes",
        """
config alias net-pf-18 kt_chain_a
config alias net-pf-22 kt_self
start
ask net-pf-18
  loads kt_chain_a > kt_chain_b > kt_chain_d > kt_chain_c
  kt_chain_d loaded request > kt_chain_c loaded request > kt_chain_b loaded request > kt_chain_a loaded request
ask net-pf-22
  loads kt_self
  kt_self not_attempted request > kt_self loaded request
ask net-pf-9
  net-pf-9 nomatch request
""",
    ),
    Scenario(
        "a blacklist is for devices, not for an operator",
        """
config blacklist kt_plain
start
plug kt_plain
  kt_plain blacklisted uevent
order kt_plain
  loads kt_plain
  kt_plain loaded operator
""",
    ),
    Scenario(
        "a blacklist ends with a reload",
        """
config blacklist kt_plain
start
plug kt_plain
  kt_plain blacklisted uevent
unconfig blacklist kt_plain
tell reload
  loads kt_plain
  kt_plain loaded reconcile
""",
    ),
    Scenario(
        "softdeps come before and after",
        """
config softdep kt_plain pre: kt_late post: kt_chain_d
start
plug kt_plain
  loads kt_late > kt_plain > kt_chain_d
  kt_late loaded uevent > kt_chain_d loaded uevent > kt_plain loaded uevent
""",
    ),
    Scenario(
        "a softdep that refuses keeps nothing out",
        """
config softdep kt_plain pre: kt_refuse
start
plug kt_plain
  loads kt_refuse > kt_plain
  kt_refuse failed uevent ENODEV > kt_plain loaded uevent
""",
    ),
    Scenario(
        "an install command of true blocks a device",
        """
config install kt_plain /bin/true
start
plug kt_plain
  kt_plain blocked uevent
order kt_plain
  kt_plain loaded operator
plug kt_plain
  kt_plain blocked uevent
""",
    ),
    Scenario(
        "an install command of false blocks what needs the module",
        """
config install kt_late /bin/false
start
plug kt_unknown
  kt_late blocked uevent EPERM > kt_unknown not_attempted uevent
""",
    ),
    Scenario(
        "an install command loads its module",
        """
config install kt_plain /bin/load kt_plain
start
plug kt_plain
  loads kt_plain
  kt_plain loaded uevent
""",
    ),
    Scenario(
        "a missing file appears",
        """
no-file kt_plain
start
plug kt_plain
  kt_plain missing uevent ENOENT
file kt_plain
  loads kt_plain
  kt_plain loaded uevent
""",
    ),
    Scenario(
        "the index grows",
        """
unindex kt_late
start
plug kt_late
  kt_late nomatch uevent
plug kt_unknown
  kt_unknown failed uevent ENOENT
index kt_late
  loads kt_late > kt_unknown
  kt_late loaded reconcile > kt_unknown loaded reconcile
""",
    ),
    Scenario(
        "the module tree is gone for a time",
        """
start
hide
wait 3
plug kt_plain
wait 3
  kt_plain missing uevent ENOENT
unhide
  loads kt_plain
  kt_plain loaded reconcile
""",
    ),
    Scenario(
        "what an operator removes stays out",
        """
start
plug kt_plain
  loads kt_plain
  kt_plain loaded uevent
remove kt_plain
  kt_plain removed operator
tell reload
  kt_plain not_attempted reconcile
kill-daemon
start
  kt_plain not_attempted coldplug
unplug kt_plain
plug kt_plain
  loads kt_plain
  kt_plain loaded uevent
""",
    ),
    Scenario(
        "a module that is in use is not removed",
        """
start
order kt_unknown
  loads kt_late > kt_unknown
  kt_late loaded operator > kt_unknown loaded operator
remove kt_late
  kt_late in_use operator EBUSY
remove kt_unknown
  kt_late removed operator > kt_unknown removed operator
""",
    ),
    Scenario(
        "another process removes a module",
        """
start
plug kt_plain
  loads kt_plain
  kt_plain loaded uevent
other-remove kt_plain
tell reload
  kt_plain not_attempted reconcile
""",
    ),
    Scenario(
        "the daemon is killed while a module loads",
        """
start
plug kt_slow
begin kt_slow
kill-daemon
plug kt_plain
start
let-go kt_slow
  loads kt_slow > kt_plain
  kt_plain loaded coldplug, kt_slow loaded coldplug
""",
    ),
    Scenario(
        "devices and a boot list are there before the daemon",
        """
plug kt_plain
quiet kt_ten
plug kt_refuse
boot kt_unknown
start
  loads kt_late > kt_unknown, kt_plain, kt_ten, kt_refuse
  kt_late loaded boot > kt_unknown loaded boot
  kt_plain loaded coldplug, kt_ten loaded coldplug, kt_refuse failed coldplug ENODEV
""",
    ),
    Scenario(
        "a policy denies",
        """
set Policy enforce
rule deny module=kt_plain
rule deny module=kt_late origin=uevent
start
plug kt_plain
  kt_plain denied uevent
plug kt_unknown
  kt_late denied uevent > kt_unknown denied uevent
order kt_unknown
  loads kt_late > kt_unknown
  kt_late loaded operator > kt_unknown loaded operator
no-rules
tell reload
  loads kt_plain
  kt_plain loaded reconcile
""",
    ),
    Scenario(
        "a seal is set and lifted",
        """
start
tell seal
plug kt_plain
  kt_plain denied uevent
order kt_late
  kt_late denied operator
tell unseal
  loads kt_plain
  kt_plain loaded reconcile
""",
    ),
    Scenario(
        "the uevent socket overflows",
        """
small-buffer
start
overflow kt_plain
  loads kt_plain
  kt_plain loaded reconcile
""",
    ),
    Scenario(
        "another process loads a dependency",
        """
start
other-load kt_slow
begin kt_slow
wait 2
plug kt_behind
let-go kt_slow
  loads kt_slow > kt_behind
  kt_slow live uevent > kt_behind loaded uevent, kt_slow other ok
""",
    ),
    Scenario(
        "another process loads what a loader has next",
        """
config softdep kt_plain pre: kt_slow
start
plug kt_plain
begin kt_slow
other-load kt_plain
finish kt_plain
let-go kt_slow
  loads kt_slow > kt_plain
  kt_slow loaded uevent > kt_plain live uevent, kt_plain other ok
""",
    ),
    Scenario(
        "a device goes before its turn",
        """
start
plug kt_slow
begin kt_slow
plug kt_plain
unplug kt_plain
let-go kt_slow
  loads kt_slow > kt_plain
  kt_slow loaded uevent > kt_plain loaded uevent
""",
    ),
    Scenario(
        "a new daemon respects driver_override",
        """
start
quiet kt_plain other_driver
kill-daemon
start
  kt_plain not_attempted coldplug
""",
    ),
    Scenario(
        "asynchronous work holds up every load",
        """
set StuckAfterSec 4
start
plug kt_async
  loads kt_async
  kt_async stuck uevent > kt_async loaded uevent
plug kt_plain
  loads kt_plain
  kt_plain stuck uevent > kt_plain loaded uevent
let-go kt_async
  kt_async live uevent, kt_plain live uevent
""",
    ),
    Scenario(
        "a second load of a module that refuses gets EBUSY",
        """
refuse kt_slow EIO
other-load kt_slow
begin kt_slow
other-load kt_slow
let-go kt_slow
  loads kt_slow
  kt_slow other EIO, kt_slow other EBUSY
""",
        since_6_5=False,
    ),
    Scenario(
        "a second load of a module that comes gets EEXIST",
        """
other-load kt_slow
begin kt_slow
other-load kt_slow
let-go kt_slow
  loads kt_slow
  kt_slow other ok, kt_slow other EEXIST
""",
        since_6_5=False,
    ),
    Scenario(
        "a second load gets the errno of the first",
        """
refuse kt_slow EIO
other-load kt_slow
begin kt_slow
other-load kt_slow
let-go kt_slow
  loads kt_slow
  kt_slow other EIO, kt_slow other EIO
""",
        since_6_5=True,
    ),
    Scenario(
        "a second load gets the success of the first",
        """
other-load kt_slow
begin kt_slow
other-load kt_slow
let-go kt_slow
  loads kt_slow
  kt_slow other ok, kt_slow other ok
""",
        since_6_5=True,
    ),
    Scenario(
        "an init oopses",
        """
start
plug kt_oops
  loads kt_oops
  kt_oops crashed uevent
plug kt_plain
  loads kt_plain
  kt_plain loaded uevent
plug kt_oops
  kt_oops crashed uevent
plug kt_deep
  kt_oops crashed uevent > kt_deep not_attempted uevent
order kt_oops
  kt_oops crashed operator
kill-daemon
start
  kt_oops crashed coldplug, kt_oops crashed coldplug, kt_deep not_attempted coldplug
""",
    ),
    Scenario(
        "an init asks for a module, then oopses",
        """
start
plug kt_asks_oops
  loads kt_asks_oops > kt_plain
  kt_plain loaded request > kt_asks_oops crashed uevent
plug kt_late
  loads kt_late
  kt_late loaded uevent
kill-daemon
start
  kt_asks_oops crashed coldplug
""",
    ),
)
