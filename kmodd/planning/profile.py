"""The modules that a machine uses, for `kmodd profile`: as rules, as lists for other tools, and tested by history."""

from __future__ import annotations

import re
from collections import Counter

from kmodd.config import policy_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import VERDICTS, Condition, Rule
from kmodd.dataclass import dataclass, replace
from kmodd.errors import Problem, Where
from kmodd.names import ModuleName, module_name
from kmodd.planning.policy import Policy
from kmodd.planning.policy_history import sealed_asking, suggest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final, Literal

    from kmodd.kernel.proc_modules import LoadedModule
    from kmodd.planning.history import Entry
    from kmodd.planning.policy import PolicyQuery
    from kmodd.planning.policy_history import Use

    Source = Literal["history", "loaded", "devices", "dependencies"]
    Form = Literal["policy", "modules-load", "lsmod", "mkinitcpio", "dracut", "initramfs-tools"]
else:
    Source = Form = str

SOURCES: Final[tuple[Source, ...]] = ("history", "loaded", "devices", "dependencies")
FORMS: Final[tuple[Form, ...]] = ("policy", "modules-load", "lsmod", "mkinitcpio", "dracut", "initramfs-tools")
DAY: Final = 86_400_000_000
"""In µs."""
_WITHOUT_PROCESS: Final = ("uevent", "coldplug", "reconcile", "boot")
"""Origins of requests of devices and of the boot list."""
_WIDTH: Final = 100
"""Characters of the list of modules in one rule."""
_DAEMONS: Final = (*_WITHOUT_PROCESS, "request")
"""Origins of requests that only the daemon answers, and no tool."""
_START: Final = "f122"
"""Kind of the record of a start of the daemon."""
_NAME: Final = re.compile(r"[\w-]+", re.ASCII)
"""What every reader of a profile takes for one name: shells, initramfs-tools, localmodconfig, policy.d."""
_LIST: Final = re.compile(r"(?:MODULES=\((?P<of_mkinitcpio>[^)]*)\)|add_drivers\+=\"(?P<of_dracut>[^\"]*)\")", re.ASCII)
_LSMOD: Final = re.compile(r"Module +Size +Used by", re.ASCII)


# ── make ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Profile:
    """The modules that a machine uses."""

    modules: Mapping[str, tuple[str, ...]]
    """Module → modules of the profile that it needs, sorted by name."""
    sources: Mapping[Source, int]
    """Number of modules that each source gave: history, loaded, devices; dependencies: those of no other source."""
    uses: tuple[Use, ...] = ()
    """Kernel requests of the history that succeeded."""


def loads_of(entries: Iterable[Entry]) -> set[str]:
    """Return the modules that the entries of a journal record as loaded."""
    return {module_name(name) for entry in entries if is_load(entry) for name in entry.changed}


def first_record(entries: Sequence[Entry]) -> int:
    """Return when the daemon wrote its oldest entry (µs since 1970); 0: there is none. Those of tools do not count."""
    own = (entry for entry in entries if entry.kind == _START or entry.source in _DAEMONS)
    return min((entry.realtime for entry in own), default=0)


def is_load(entry: Entry) -> bool:
    """Return whether an entry records a load."""
    return entry.is_decision and entry.result == "loaded"


def is_usual(name: str) -> bool:
    """Return whether a name can stand in a profile of any form."""
    return _NAME.fullmatch(name) is not None


def profile_of(
    found: Mapping[Source, set[str]], needs: Mapping[str, tuple[str, ...]], uses: Sequence[Use] = ()
) -> Profile:
    """Return the profile of these modules and of all that they need.

    found: modules by source. needs: module → all modules that it needs, of the module tree; others are left out.
    """
    asked = {name for names in found.values() for name in names if name in needs}
    closed = asked | {each for name in asked for each in needs[name]}
    sources: dict[Source, int] = {source: len(names & asked) for source, names in found.items()}
    sources["dependencies"] = len(closed - asked)
    modules = {name: tuple(each for each in needs.get(name, ()) if each in closed) for name in sorted(closed)}
    return Profile(modules, sources, tuple(uses))


def text_of(profile: Profile, form: Form, title: str, loaded: Mapping[ModuleName, LoadedModule]) -> str:
    """Return the text of a profile. title: its first line, where the form has comments. loaded: sizes, for lsmod."""
    counts = ", ".join(f"{source} {profile.sources.get(source, 0)}" for source in SOURCES)
    head = f"# {title}\n# {len(profile.modules)} modules: {counts}\n"
    names = list(profile.modules)
    match form:
        case "policy":
            return head + _rules(profile)
        case "lsmod":
            return _lsmod(profile, loaded)
        case "mkinitcpio":
            return f"{head}MODULES=({' '.join(names)})\n"
        case "dracut":
            return f'{head}add_drivers+=" {" ".join(names)} "\n'
        case _:
            return head + "".join(f"{name}\n" for name in names)


def _rules(profile: Profile) -> str:
    """Return rules that allow the modules to devices and the boot list, and what was requested to those who did."""
    origins = Condition("origin", _WITHOUT_PROCESS)
    lists: list[list[str]] = []
    for name in profile.modules:
        if not lists or len(",".join([*lists[-1], name])) > _WIDTH:
            lists.append([])
        lists[-1].append(name)
    lines = ["", "# devices and the boot list"]
    lines += [str(Rule(Where("", 0), "", "allow", (origins, Condition("module", tuple(names))))) for names in lists]
    lines.append(str(Rule(Where("", 0), "", "deny", (origins,))))
    requests = suggest(profile.uses)
    if not requests:
        lines += ["", "# no request of the kernel that loaded a module is on record, so there is no rule for them"]
    return "".join(f"{line}\n" for line in lines) + (f"\n{requests}" if requests else "")


def _lsmod(profile: Profile, loaded: Mapping[ModuleName, LoadedModule]) -> str:
    """Return the table of lsmod; make localmodconfig reads its first column (scripts/kconfig/streamline_config.pl)."""
    users: dict[str, list[str]] = {name: [] for name in profile.modules}
    for name, needed in profile.modules.items():
        for each in needed:
            users[each].append(name)
    lines = ["Module                  Size  Used by\n"]
    for name, its in users.items():
        module = loaded.get(ModuleName(name))
        size = module.size if module else 0
        lines.append(f"{name:<19} {size:>8}  {len(its)} {','.join(its)}".rstrip() + "\n")
    return "".join(lines)


# ── test ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Refusal:
    """Loads of one module for the same process, device or operator that a profile would have refused."""

    module: str
    whom: str
    times: int
    last: int
    """When the last one was recorded (µs since 1970)."""
    rule: str
    """The rule that decides, with its line; of a list: that it lacks the module."""


def parse(text: str, path: str) -> tuple[tuple[Rule, ...], tuple[Problem, ...]]:
    """Return the rules of a profile, and the lines that are invalid.

    text: in a form of FORMS, which its content tells. A list of modules allows these, and no others.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    used = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if used and used[0][1].split()[0] in VERDICTS:
        parsed = policy_d.parse([ConfFile(path, text)])
        return parsed.rules, parsed.problems
    names: list[str] = []
    problems: list[Problem] = []
    is_lsmod = bool(used) and _LSMOD.match(used[0][1]) is not None
    for number, line in used[1:] if is_lsmod else used:
        assigned = _LIST.fullmatch(line)
        words = line.split()[:1] if is_lsmod else (assigned[1] or assigned[2] or "").split() if assigned else [line]
        if all(map(is_usual, words)):
            names += map(module_name, words)
        else:
            expected = (
                'expected a module\'s name, MODULES=(…), add_drivers+="…", a table of lsmod, or rules of policy.d'
            )
            problems.append(Problem(Where(path, number), 1, line, expected))
    if not names:
        return (), (*problems, Problem(Where(path, 0), 0, "", "names no module and has no rule"))
    allow = Rule(Where(path, 0), "", "allow", (Condition("module", tuple(dict.fromkeys(names))),))
    return (allow, Rule(Where(path, 0), "not in the list", "deny", ())), tuple(problems)


def refusals(entries: Iterable[Entry], rules: Sequence[Rule]) -> list[Refusal]:
    """Return what the rules would have refused of the loads on record, the most frequent ones first."""
    policy = Policy("enforce", rules)
    times: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], tuple[int, str]] = {}
    for entry in entries:
        found = sealed_asking(entry, frozenset()) if entry.result == "loaded" else None
        for module in found[1] if found else ():
            rule = _refusing(policy, found[0] if found else (), module)
            if rule is not None:
                key = module, _whom(entry)
                times[key] += 1
                last[key] = max(last.get(key, (0, "")), (entry.realtime, rule))
    return [
        Refusal(*key, count, *last[key]) for key, count in sorted(times.items(), key=lambda each: (-each[1], each[0]))
    ]


def _refusing(policy: Policy, queries: Sequence[PolicyQuery], module: str) -> str | None:
    """Return the rule that refuses a module to one of those who may have asked; None: it is allowed."""
    for query in queries:
        decision = policy.judge(replace(query, phase="running"), module)
        if decision.refused:
            place = f"{decision.at}: " if decision.at and decision.at.line else ""
            return f"{place}{decision.text}"
    return None


def _whom(entry: Entry) -> str:
    """Return for whom a module was loaded, without what differs from one request to the next, as a process number."""
    if who := entry.requester:
        inside = " in a container" if who.container else ""
        parts = (f"{who.comm} uid {who.uid}{inside}", who.exe, who.unit)
        return ", ".join(part for part in parts if part)
    if entry.source == "request":
        return "several processes" if entry.ambiguous else "an unknown process"
    if entry.devices:
        return entry.device_name or f"{entry.subsystem} {entry.devices[0].rpartition('/')[2]}".strip()
    return {"boot": "the boot list", "operator": "an operator"}.get(entry.source, entry.source)
