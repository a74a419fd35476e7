"""`kmodd explain`: show what would be loaded for a request, and why, by the plan that the daemon carries out.

A request is a modalias, a module name, an alias, the path of a module file, a `/sys/…` path of a device, or a `/dev/…`
node. Devices are resolved as in the daemon, names as in `modprobe NAME`.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from functools import partial

from kmodd.cli.daemon_tree import tree_for
from kmodd.cli.verb import JSON, KERNEL, ROOT, Verb
from kmodd.config.kmodd_conf import Settings
from kmodd.dataclass import dataclass, replace
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_rules, read_settings
from kmodd.host.regular_files import read_file
from kmodd.host.tree import Tree
from kmodd.index import text_files
from kmodd.index.catalog import Snapshot
from kmodd.kernel.proc_modules import Loaded
from kmodd.kernel.uevent import Uevent
from kmodd.planning.device_requests import wanted
from kmodd.planning.explain import json_line, text_of
from kmodd.planning.plan import Goal, Plan
from kmodd.planning.policy import Policy, PolicyQuery, rules_in_force
from kmodd.planning.request import Origin, Request
from kmodd.planning.resolve import ProbeOptions, options_of, resolve
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kmodd.config.policy_d import Mode, Phase
    from kmodd.planning.denials import Denial
    from kmodd.planning.resolve import Judge

VERB = Verb(
    "explain",
    "Show what would be loaded for REQUEST, and why; nothing is loaded. REQUEST is a modalias, a module, an alias, the "
    "path of a module file, a /sys/… path of a device, or a /dev/… node.",
    (JSON, ROOT, KERNEL),
    "REQUEST…",
    (
        (0, "a module would be loaded or is loaded already"),
        (1, "nothing matches, it is blocked or denied, or it would fail"),
        (3, "no module tree, or a damaged index"),
    ),
    (
        ("explain /sys/class/net/eth0", "What drives this device, and why?"),
        ("explain pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00", "What matches a modalias?"),
        ("explain --json e1000e | jq -r '.steps[].path'", "The files that loading e1000e takes."),
    ),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A request as given, and the names to resolve for it."""

    text: str
    kind: str
    """`modalias`, `module`, `alias`, `file`, `sysfs` or `dev`."""
    names: tuple[str, ...]
    origin: Origin
    """The origin to resolve it for: the blacklist hides more from a device than from an operator."""
    why: str = ""
    """Why there are no names, as a predicate: `has no modalias`."""


def main(argv: list[str]) -> int:
    """Explain each request; return 0 if each one matches, 1 if not, 2 for wrong usage, 3 without a module tree."""
    given = VERB.parse(argv, 1)
    if isinstance(given, int):
        return given
    root = given.get("root")
    settings = read_settings(root)
    tree = tree_for(root, given.get("kernel") or None, settings.extensions)
    if tree.guessed:
        VERB.complain(f"kernel {tree.release}, the only one below {root}")
    try:
        tree.check()
    except NoTree as error:
        VERB.complain(str(error))
        return 3
    return _explain(given.operands, tree, settings, "json" in given)


def _explain(requests: list[str], tree: Tree, settings: Settings, as_json: bool) -> int:
    snapshot = tree.quick_snapshot()
    loaded = tree.loaded()
    rules = Rules(tree, settings)
    status = 0
    for text in requests:
        question = question_of(text, tree, snapshot)
        options = replace(options_of(question.origin), blocked=True, relative_paths=True)
        if settings.foreign_modules:
            options = replace(options, foreign=True)
        plan_of = partial(_plan, question, tree, snapshot, loaded, options)
        plan = plan_of(rules.judge_of)
        denied = rules.denials_of(question, plan_of(_no_judge)) if rules.have_denials(question) else ()
        if not any(goal.comes for goal in plan.goals):
            status = 1
        if as_json:
            if question.why:
                VERB.complain(f"{text} {question.why}")
            sys.stdout.buffer.write(os.fsencode(json_line(question.kind, plan, denied) + "\n"))
        else:
            answer = text_of(plan, _name(question, tree), question.why, denied) + _similar(question, plan, snapshot)
            sys.stdout.buffer.write(os.fsencode(answer + "\n"))
    sys.stdout.flush()
    for problem in snapshot.problems:
        VERB.complain(problem.with_caret())
    return 3 if status and snapshot.catalog.is_damaged else status


def _plan(
    question: Question,
    tree: Tree,
    snapshot: Snapshot,
    loaded: Loaded,
    options: ProbeOptions,
    judge_of: Callable[[Question, str], Judge | None],
) -> Plan:
    """Return one plan for all names of a request: a device may have several modaliases."""
    goals: list[Goal] = []
    for name in question.names:
        request = Request(name, question.origin)
        judge = judge_of(question, name)
        goals += resolve(request, snapshot, loaded, options, tree.present, judge, tree.foreign).goals
    return Plan(Request(question.text, question.origin), tuple(goals))


def _no_judge(_question: Question, _name: str) -> None:
    """No rules."""


def _similar(question: Question, plan: Plan, snapshot: Snapshot) -> str:
    """Return `; did you mean …?` for a name that matches nothing, but is like a module's; else an empty text."""
    if question.kind != "alias" or plan.steps or [skip.reason for skip in plan.skips] != ["no_match"]:
        return ""
    from kmodd.cli.similar import hint  # only for a mistake

    return hint(question.text.replace("-", "_"), snapshot.catalog.names())


def _name(question: Question, tree: Tree) -> str:
    """Return the device's name in udev's database, or "". The database describes this machine: no name with --root."""
    if question.kind not in ("sysfs", "dev") or tree.root:
        return ""
    from kmodd.host.udev_names import names_of  # needed for devices only

    name = names_of((question.text,)).get(question.text, "")
    return name if name != question.text else ""


# ── policy ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Rules:
    """The rules of policy.d as the daemon applies them to requests while it runs, or is sealed."""

    def __init__(self, tree: Tree, settings: Settings, *, is_sealed: bool = False) -> None:
        self._tree = tree
        self._phase: Phase = "sealed" if is_sealed else "running"
        self._mode: Mode = "enforce" if settings.policy_broken else settings.policy
        self._rules = rules_in_force(read_rules(tree.root), None)

    def judge_of(self, question: Question, name: str) -> Judge | None:
        """Return the judge of what a device, or root by name, requests; None: the rules are not enforced."""
        policy = Policy(self._mode, self._rules)
        if not policy.refuses:
            return None
        if question.origin == "coldplug":
            subsystem, device = place_of(question.text, self._tree)
            query = PolicyQuery("uevent", name, "running", subsystem, (device,) if device else ())
        else:
            from kmodd.planning.denials import ASKERS  # only where there are rules

            query = PolicyQuery(question.origin, name, "running", requester=ASKERS["root"])
        query = self._now(query)
        return lambda module: policy.judge(query, module)

    def judge_as(self, origin: Origin, name: str, kind: str) -> Judge | None:
        """Return the judge of what a kind of ASKERS requests, or a device for an empty one; None: all is allowed."""
        from kmodd.planning.denials import ASKERS  # only where there are rules

        policy = Policy(self._mode, self._rules)
        if not policy.refuses and self._phase != "sealed":
            return None
        bus = name.partition(":")[0] if not kind else ""
        origin = origin if kind else "uevent"
        query = self._now(PolicyQuery(origin, name, self._phase, bus, requester=ASKERS.get(kind)))
        return lambda module: policy.judge(query, module)

    def have_denials(self, question: Question) -> bool:
        """Return whether `denials_of` may find any."""
        return bool(self._rules) and question.kind in ("module", "alias")

    def denials_of(self, question: Question, plan: Plan) -> tuple[Denial, ...]:
        """Return what the rules deny to processes that make the kernel request a name.

        plan: what is loaded if no rule denies it.
        """
        from kmodd.planning.denials import denials  # only where there are rules

        query = self._now(PolicyQuery("request", question.text, "running"))
        return denials(plan, self._rules, query, self._mode)

    def _now(self, query: PolicyQuery) -> PolicyQuery:
        """Return the query with the flags and the time of now."""
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
        return replace(query, flags=read_flags(self._tree.root), uptime=uptime)


def place_of(text: str, tree: Tree) -> tuple[str, str]:
    """Return subsystem and /devices/… path of a device by its /sys path, or the subsystem of a modalias and ""."""
    if not text.startswith("/sys/"):
        return text.partition(":")[0] if ":" in text else "", ""
    path = os.path.realpath(tree.real(text))
    device = path.removeprefix(os.path.realpath(tree.real("/sys")))
    return os.path.basename(os.path.realpath(f"{path}/subsystem")), device


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def question_of(text: str, tree: Tree, snapshot: Snapshot) -> Question:
    """Return the kind of request that `text` is, and its names."""
    if text.startswith("/sys/"):
        names = _requests_of_device(tree.real(text))
        why = "" if names else "has no modalias" if tree.present(text) else "does not exist"
        return Question(text, "sysfs", names, "coldplug", why)
    if text.startswith("/dev/"):
        names, why = _names_of_node(text, tree)
        return Question(text, "dev", names, "coldplug" if names and ":" in names[0] else "request", why)
    if text.startswith(("/", "./", "../")):
        absolute = text.startswith("/") or tree.root  # --root is the prefix of absolute paths only
        return Question(text, "file", (text if absolute else os.path.abspath(text),), "operator")
    if ":" in text:
        return Question(text, "modalias", (text,), "coldplug")
    name = text.replace("-", "_")
    is_module = snapshot.catalog.has(name)
    return Question(text, "module" if is_module else "alias", (text,), "operator")


def _requests_of_device(directory: str) -> tuple[str, ...]:
    """Return the names that a sysfs device requests: its modaliases, and those that udev's other rules add."""
    aliases = _modaliases(directory)
    subsystem = os.path.basename(os.path.realpath(f"{directory}/subsystem"))
    properties = tuple(("MODALIAS", alias) for alias in aliases)
    event = Uevent("add", os.path.realpath(directory), subsystem, aliases, 0, synthetic=True, properties=properties)
    return tuple(request.text for request in wanted(event, "coldplug"))


def _modaliases(directory: str) -> tuple[str, ...]:
    """Return the lines of a device's `modalias` file, else the MODALIAS values of its `uevent` file.

    Reading `uevent` blocks while a driver probes the device, and forever if the probe crashed: only as a fallback.
    """
    data = read_file(f"{directory}/modalias")
    if data is not None:
        return tuple(line for line in decode(data).splitlines() if line)
    data = read_file(f"{directory}/uevent") or b""
    return tuple(line.removeprefix("MODALIAS=") for line in decode(data).splitlines() if line.startswith("MODALIAS="))


def _names_of_node(path: str, tree: Tree) -> tuple[tuple[str, ...], str]:
    """Return the modaliases of a node's device, else the names that the kernel requests when the node is opened.

    A node that does not exist is looked up in modules.devname. With no names, the second text is the reason.
    """
    try:
        status = os.stat(tree.real(path))
    except (OSError, ValueError):
        return _names_of_devname(path, tree)
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return (), "is not a device node"
    kind = "char" if stat.S_ISCHR(status.st_mode) else "block"
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    names = _modaliases_above(tree.real(f"/sys/dev/{kind}/{major}:{minor}"), tree.real("/sys/devices"))
    return names or _names_of_number(kind, major, minor), ""


def _modaliases_above(link: str, top: str) -> tuple[str, ...]:
    """Return the modaliases of the nearest device with any, from the node's own upwards: a disk above a partition."""
    directory = os.path.realpath(link)
    top = os.path.realpath(top)
    while directory.startswith(top + "/"):
        for folder in (f"{directory}/device", directory):
            data = read_file(f"{folder}/modalias")
            if data:
                return tuple(line for line in decode(data).splitlines() if line)
        directory = os.path.dirname(directory)
    return ()


def _names_of_devname(path: str, tree: Tree) -> tuple[tuple[str, ...], str]:
    data = read_file(tree.real(f"{tree.directory}/modules.devname")) or b""
    for node in text_files.devnames(data, "modules.devname")[0]:
        if path == f"/dev/{node.node}":
            return _names_of_number("char" if node.kind == "c" else "block", node.major, node.minor), ""
    return (), "does not exist, also not in modules.devname"


def _names_of_number(kind: str, major: int, minor: int) -> tuple[str, ...]:
    """Return the names that the kernel requests in turn (fs/char_dev.c base_probe, block/genhd.c)."""
    return f"{kind}-major-{major}-{minor}", f"{kind}-major-{major}"
