"""What stock systems request of the kernel, against the presets: fixtures of `make requests`, real plans, real rules.

A fixture, `KIND-SUITE.json`, has a line for each request of each kind of process. Run as a program, this writes the
tables of them into docs/POLICY.md.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Phase, parse
from kmodd.dataclass import replace
from kmodd.host.tree import Tree
from kmodd.kernel.requester import Requester
from kmodd.planning.history import Entry, entries_of
from kmodd.planning.plan import Plan, Skip
from kmodd.planning.policy import Policy, PolicyQuery
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve
from tests import trees

REPOSITORY: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = REPOSITORY / "fixtures" / "requests"
PRESETS: Final = REPOSITORY / "data" / "policy.d"
PAGE: Final = REPOSITORY / "docs" / "POLICY.md"
COLDPLUG_DONE: Final = "Coldplug done"
"""How the record of the end of coldplug begins; then the phase is running."""


class Meant(NamedTuple):
    """Requests on record that a preset is meant to refuse."""

    preset: str
    """Its number."""
    by: str
    """Who asks, as in `Asked.whom`; empty: anyone."""
    patterns: tuple[str, ...]
    """Of requests."""
    why: str


_INSIDE: Final = "what a container sets up for itself; root can have it loaded at boot"
INTENDED: Final = (
    Meant("30", "root", ("net-pf-42",), "modems that are part of a chip of Qualcomm's; the preset has the exception"),
    Meant(
        "40", "", ("*",),
        "it is its purpose, also for services that start late (docker, NetworkManager) and btrfs disks that udevd looks"
        " at; what is needed belongs into modules-load.d",
    ),
    Meant("50", "user", ("algif-*",), "the kernel's ciphers for programs lead users to code that they do not need"),
    Meant(
        "50", "thread of the kernel, for any process", ("crypto-authenc", "crypto-echainiv"),
        "of IPsec, and root's are not told from a user's; the preset has the exception",
    ),
    Meant("50", "root in a container", ("ipt_*", "nft-*", "rtnl-link-*", "char-major-10-200"), _INSIDE),
    Meant("50", "root in a container", ("net-pf-16-proto-4-type-*",), "`ss` then reads /proc/net"),
)  # fmt: skip
_BEGIN: Final = "<!-- requests: written by python -m tests.stock_requests -->\n"
_END: Final = "<!-- end of requests -->\n"
_ANSWERED: Final = ("loaded", "live", "builtin")

_LONG_NAME: Final = re.compile(r"[0-9a-f]{32,}")
_NUMBER: Final = re.compile(r"(session-c?|kmodd-loader@|kmodd-command@|run-u|netdev-(?:veth|br-|tap))[0-9a-f-]+")


@dataclass(frozen=True)
class Asked:
    """A request of the kernel on a stock system."""

    phase: Phase
    name: str
    result: str
    """Of KMODD_RESULT, the best one of `count` records."""
    modules: tuple[str, ...]
    """That it brought."""
    askers: tuple[Requester | None, ...]
    """The process; several if one of them has asked. None: it is unknown."""
    count: int = 1

    @property
    def whom(self) -> str:
        """Who has asked."""
        return " or ".join(dict.fromkeys(who_is(who, self.name) for who in self.askers))


def who_is(who: Requester | None, request: str) -> str:
    """Return the kind of a process that has made a request, as rules tell them apart."""
    if who is None:
        return "unknown"
    if who.is_deputy(request):
        return "thread of the kernel, for any process"
    if who.is_kernel:
        return "thread of the kernel"
    if who.unit.startswith("kmodd-loader@"):
        return "driver being loaded"
    user = "root" if who.uid == 0 else "service" if who.uid < FIRST_USER else "user"
    return f"{user} in a container" if who.container else user


FIRST_USER: Final = 1000
"""Uids below it are those of services."""


# ── fixtures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def systems() -> list[Path]:
    """Return the fixtures: `KIND-SUITE.json` each."""
    return sorted(FOLDER.glob("*.json"))


def asked_in(records: Iterable[Mapping[str, object]]) -> list[Asked]:
    """Return the requests of the kernel in records of the journal, in the order in which each came first.

    Equal ones of a phase are one: same name, same processes, without what differs from one run to the next.
    """
    found: dict[object, Asked] = {}
    phase: Phase = "boot"
    for entry in entries_of(map(json.dumps, records)):
        if entry.message.startswith(COLDPLUG_DONE):
            phase = "running"
        elif entry.source == "request" and not entry.is_detail:
            name, askers = _lasting(entry.alias), tuple(map(_plain, _askers(entry)))
            new = Asked(phase, name, entry.result, entry.modules, askers, 1 + entry.repeated)
            old = found.get((phase, name, askers))
            found[phase, name, askers] = new if old is None else _both(old, new)
    return list(found.values())


def _both(old: Asked, new: Asked) -> Asked:
    best = min(old, new, key=lambda each: (*_ANSWERED, each.result).index(each.result))
    modules = tuple(dict.fromkeys((*old.modules, *new.modules)))
    return replace(old, result=best.result, modules=modules, count=old.count + new.count)


def _askers(entry: Entry) -> tuple[Requester | None, ...]:
    return entry.candidates if entry.requester is None and entry.candidates else (entry.requester,)


def _plain(who: Requester | None) -> Requester | None:
    """Return what the conditions of presets ask of a process."""
    if who is None:
        return None
    return Requester(0, "", "", who.uid, None, "", _lasting(who.unit), who.container, is_kernel=who.is_kernel)


def _lasting(text: str) -> str:
    """Leave out what differs from one run to the next: names of containers, numbers of sessions."""
    return _NUMBER.sub(r"\g<1>0", _LONG_NAME.sub("0", text))


def read(path: Path) -> list[Asked]:
    """Return the requests of a fixture, in order."""
    return [_asked_of(json.loads(line)) for line in path.read_text().splitlines()]


def _asked_of(fields: dict[str, Any]) -> Asked:
    askers = tuple(None if who is None else _requester_of(who) for who in fields["by"])
    modules = tuple(fields.get("modules", ()))
    return Asked(fields["phase"], fields["request"], fields["result"], modules, askers, fields["count"])


def _requester_of(who: dict[str, Any]) -> Requester:
    kind = who["kind"]
    unit = who.get("unit", "")
    return Requester(0, "", "", who["uid"], None, "", unit, kind == "container", is_kernel=kind == "kernel")


def write(path: Path, asked: Iterable[Asked]) -> None:
    """Write a fixture."""
    lines = [json.dumps(_fields_of(each), ensure_ascii=False, separators=(",", ":")) for each in asked]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _fields_of(each: Asked) -> dict[str, Any]:
    by = [None if who is None else _requester_fields(who) for who in each.askers]
    modules = {"modules": each.modules} if each.modules else {}
    return {"phase": each.phase, "request": each.name, "result": each.result, **modules, "by": by, "count": each.count}


def _requester_fields(who: Requester) -> dict[str, Any]:
    kind = "kernel" if who.is_kernel else "container" if who.container else "process"
    unit = {"unit": who.unit} if who.unit else {}
    return {"kind": kind, "uid": who.uid, **unit}


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Planner:
    """The modules that a suite's kernel has for a request, planned as the daemon does."""

    def __init__(self, suite: str) -> None:
        """Raises Unavailable if the suite's kernel cannot be fetched."""
        root = trees.suite_tree(suite)
        self._tree = Tree(root=str(root), release=trees.release(root))
        self._snapshot = self._tree.quick_snapshot()
        self._options = replace(options_of("request"), ignore_loaded=True, foreign=True)

    def plan(self, name: str) -> Plan:
        """Return the plan of a request of the kernel where no module is loaded."""
        return resolve(Request(name, "request"), self._snapshot, self._tree.loaded(), self._options, self._tree.present)

    def modules(self, name: str) -> list[str]:
        """Return the modules that a request requires."""
        entries = [entry for goal in self.plan(name).goals for entry in goal.entries]
        return [str(entry.module) for entry in entries if entry.required and not isinstance(entry, Skip)]

    def refused(self, asked: Asked, policy: Policy, phase: Phase = "running") -> bool:
        """Return whether the rules refuse a module that the request requires, to one of those who may have asked."""
        return any(
            policy.judge(PolicyQuery("request", asked.name, phase, requester=who), module).refused
            for module in self.modules(asked.name)
            for who in asked.askers
        )


@functools.cache
def planner_of(suite: str) -> Planner:
    """Return the planner of a suite. Raises Unavailable."""
    return Planner(suite)


def presets() -> dict[str, Policy]:
    """Number of each preset → its rules."""
    found = {}
    for path in sorted(PRESETS.iterdir()):
        parsed = parse([ConfFile(path.name, path.read_text())])
        assert parsed.problems == ()
        asked_for = {condition.key for rule in parsed.rules for condition in rule.conditions}
        assert "exe" not in asked_for, "fixtures have no programs"
        found[path.name[:2]] = Policy("enforce", parsed.rules)
    return found


def refusals(asked: Iterable[Asked], planner: Planner, rules: Mapping[str, Policy]) -> dict[str, list[Asked]]:
    """Number of each preset → the requests that its rules refuse, in the phase in which they came."""
    found: dict[str, list[Asked]] = {number: [] for number in rules}
    for each in asked:
        for number, policy in rules.items():
            if planner.refused(each, policy, each.phase):
                found[number].append(each)
    return found


def is_meant(number: str, asked: Asked, meant: Meant) -> bool:
    """Return whether a preset of this number is meant to refuse this request, by one entry of INTENDED."""
    return (
        meant.preset == number
        and meant.by in ("", asked.whom)
        and any(fnmatchcase(asked.name, pattern) for pattern in meant.patterns)
    )


def unintended(refused: Mapping[str, Iterable[Asked]]) -> list[tuple[str, str]]:
    """Return number of the preset and request of each refusal that is not of INTENDED."""
    return [
        (number, each.name)
        for number, those in refused.items()
        for each in those
        if not any(is_meant(number, each, meant) for meant in INTENDED)
    ]


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(path: Path, rules: Mapping[str, Policy]) -> str:
    """Return the part of the page about one fixture: each request that a module answers, in the row of who asks it."""
    kind, _, suite = path.stem.partition("-")
    planner = planner_of(suite)
    asked = [each for each in read(path) if planner.modules(each.name)]
    refused = refusals(asked, planner, rules)
    rows: dict[tuple[str, str], set[str]] = {}
    for each in asked:
        by = ", ".join(number for number in refused if each in refused[number])
        rows.setdefault((_with_unit(each), by or "–"), set()).add(each.name)
    lines = [f"**{kind}**, {suite}: {len({each.name for each in asked})} requests that a module answers", ""]
    lines += ["| by | refused by | requests |", "| --- | --- | --- |"]
    lines += [f"| {whom} | {by} | {_names(names)} |" for (whom, by), names in sorted(rows.items())]
    return "\n".join(lines) + "\n"


def _with_unit(asked: Asked) -> str:
    """Return who has asked, with the unit of root's services, by which a rule can name them."""
    units = {who.unit for who in asked.askers if who is not None}
    is_service = asked.whom == "root" and not any(unit.startswith("session-") for unit in units)
    return ", ".join([asked.whom, *sorted(units - {""})]) if is_service else asked.whom


def _line(meant: Meant) -> str:
    by = f", by a {meant.by}" if meant.by else ""
    patterns = ", ".join(f"`{pattern}`" for pattern in meant.patterns)
    return f"- {meant.preset}: {patterns}{by.replace('a root', 'root')}: {meant.why}\n"


def _names(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`".replace("|", "\\|") for name in sorted(names))


def page(rules: Mapping[str, Policy]) -> str:
    """Return the page with its tables as fixtures and rules have them. Raises Unavailable."""
    text = PAGE.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    tables = [table(path, rules) for path in systems()]
    parts = [*tables, "What they refuse is refused by intention:\n\n" + "".join(map(_line, INTENDED))]
    return f"{before}{_BEGIN}\n" + "\n".join(parts) + f"\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(presets()))
    sys.exit(0)
