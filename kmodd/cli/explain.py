"""`kmodd explain`: what would be loaded for a request, and why. The same plan that the daemon carries out.

A request is a modalias, the name of a module, an alias, the path of a module's file, a `/sys/…` path of a device, or a
`/dev/…` node. Devices are explained as the daemon answers them, names as `modprobe NAME` does.
"""

from __future__ import annotations

import os
import stat
import sys

from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass
from kmodd.errors import NoTree
from kmodd.host.config_files import read_settings
from kmodd.host.tree import Tree, read_file
from kmodd.index import text_files
from kmodd.index.catalog import Snapshot
from kmodd.kernel.uevent import Uevent
from kmodd.planning.explain import json_line, text_of
from kmodd.planning.plan import Goal, Plan, Skip
from kmodd.planning.request import Origin, Request, wanted
from kmodd.planning.resolve import options_of, resolve

USAGE = """usage: kmodd explain [--json] [--root DIR] [--kernel RELEASE] REQUEST…

Say what would be loaded for REQUEST, and because of what; nothing is loaded.
REQUEST is a modalias, a module, an alias, the path of a module's file, a /sys/… path of a device, or a /dev/… node.
Exit status: 0 something would be loaded or is there already, 1 nothing matches, 2 usage, 3 no module tree.
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A request as given, and the names that it comes to."""

    text: str
    kind: str
    """modalias, module, alias, file, sysfs, dev."""
    names: tuple[str, ...]
    origin: Origin
    """As whose request it is answered: a device's blacklist means more than an operator's."""


def main(argv: list[str]) -> int:
    """Explain each request. Exit 0 if all would be loaded or are there, 1 if not, 2 usage, 3 no tree."""
    options = Options(argv, "h", {"json": "json", "root": "root:", "kernel": "kernel:", "help": "h"})
    root, release, as_json = "", None, False
    try:
        for code, value in options:
            match code:
                case "json":
                    as_json = True
                case "root":
                    root = value
                case "kernel":
                    release = value
                case _:
                    print(USAGE, end="")
                    return 0
        if not options.operands:
            raise OptionError("no REQUEST given")
    except OptionError as error:
        print(f"kmodd explain: {error}\n{USAGE}", end="", file=sys.stderr)
        return 2
    tree = Tree(root=root, release=release, extensions=read_settings(root).extensions)
    if tree.guessed:
        _complain(f"kernel {tree.release}, the only one below {root}")
    try:
        tree.check()
    except NoTree as error:
        _complain(str(error))
        return 3
    return _explain(options.operands, tree, as_json)


def _explain(requests: list[str], tree: Tree, as_json: bool) -> int:
    snapshot = tree.quick_snapshot()
    loaded = tree.loaded()
    status = 0
    for text in requests:
        question = question_of(text, tree, snapshot)
        options = options_of(question.origin)
        plans = tuple(
            resolve(Request(name, question.origin), snapshot, loaded, options, tree.present) for name in question.names
        )
        plan = _joined(question, plans)
        answer = json_line(question.kind, plan) if as_json else text_of(plan, _name(question, tree))
        sys.stdout.buffer.write(os.fsencode(answer + "\n"))
        if all(isinstance(entry, Skip) and entry.reason == "missing" for goal in plan.goals for entry in goal.entries):
            status = 1
    sys.stdout.flush()
    for problem in snapshot.problems:
        _complain(problem.with_caret())
    return status


def _name(question: Question, tree: Tree) -> str:
    """What people call the device that is asked for. Udev's database is of this machine: nothing below another root."""
    if question.kind not in ("sysfs", "dev") or tree.root:
        return ""
    from kmodd.host.udev_names import names_of  # only for devices

    name = names_of((question.text,)).get(question.text, "")
    return name if name != question.text else ""


def _joined(question: Question, plans: tuple[Plan, ...]) -> Plan:
    """One plan for all names of a request: a device may have several modaliases."""
    goals: tuple[Goal, ...] = tuple(goal for plan in plans for goal in plan.goals)
    return Plan(Request(question.text, question.origin), goals)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def question_of(text: str, tree: Tree, snapshot: Snapshot) -> Question:
    """Find out what kind of request `text` is, and which names it stands for; what has none is complained about."""
    if text.startswith("/sys/"):
        names = _wishes(tree.real(text))
        if not names:
            there = "has no modalias" if tree.present(text) else "does not exist"
            _complain(f"{text} {there}")
        return Question(text, "sysfs", names, "coldplug")
    if text.startswith("/dev/"):
        names = _names_of_node(text, tree)
        return Question(text, "dev", names, "coldplug" if names and ":" in names[0] else "request")
    if text.startswith(("/", "./", "../")):
        return Question(text, "file", (os.path.abspath(text) if text.startswith(".") else text,), "operator")
    if ":" in text:
        return Question(text, "modalias", (text,), "coldplug")
    name = text.replace("-", "_")
    is_module = snapshot.catalog.dep(name) is not None or snapshot.catalog.is_builtin(name)
    return Question(text, "module" if is_module else "alias", (text,), "operator")


def _wishes(directory: str) -> tuple[str, ...]:
    """What the device in a folder of sysfs asks for: its modaliases, and what udevd's other rules add to them."""
    aliases = _modaliases(directory)
    subsystem = os.path.basename(os.path.realpath(f"{directory}/subsystem"))
    properties = tuple(("MODALIAS", alias) for alias in aliases)
    event = Uevent("add", os.path.realpath(directory), subsystem, aliases, 0, synthetic=True, properties=properties)
    return tuple(request.text for request in wanted(event, "coldplug"))


def _modaliases(directory: str) -> tuple[str, ...]:
    """All lines of a device's `modalias` file, else the MODALIAS values of its `uevent` file.

    Reading `uevent` waits while a driver probes the device, and for ever if that crashed: only where there is no other.
    """
    data = read_file(f"{directory}/modalias")
    if data is not None:
        return tuple(line for line in _text(data).splitlines() if line)
    data = read_file(f"{directory}/uevent") or b""
    return tuple(line.removeprefix("MODALIAS=") for line in _text(data).splitlines() if line.startswith("MODALIAS="))


def _names_of_node(path: str, tree: Tree) -> tuple[str, ...]:
    """The modalias of the device behind a node; without one, what the kernel asks for when the node is opened.

    A node that does not exist yet may be one of modules.devname.
    """
    try:
        status = os.stat(tree.real(path))
    except (OSError, ValueError):
        return _names_of_devname(path, tree)
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        _complain(f"{path} is no device node")
        return ()
    kind = "char" if stat.S_ISCHR(status.st_mode) else "block"
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    names = _modaliases_above(tree.real(f"/sys/dev/{kind}/{major}:{minor}"), tree.real("/sys/devices"))
    return names or _names_of_number(kind, major, minor)


def _modaliases_above(link: str, top: str) -> tuple[str, ...]:
    """The modaliases of the first device with any, from the one behind a node upwards: a disk above a partition."""
    directory = os.path.realpath(link)
    top = os.path.realpath(top)
    while directory.startswith(top + "/"):
        for place in (f"{directory}/device", directory):
            data = read_file(f"{place}/modalias")
            if data:
                return tuple(line for line in _text(data).splitlines() if line)
        directory = os.path.dirname(directory)
    return ()


def _names_of_devname(path: str, tree: Tree) -> tuple[str, ...]:
    data = read_file(tree.real(f"{tree.directory}/modules.devname")) or b""
    for node in text_files.devnames(data, "modules.devname")[0]:
        if path == f"/dev/{node.node}":
            return _names_of_number("char" if node.kind == "c" else "block", node.major, node.minor)
    _complain(f"{path} does not exist, and modules.devname does not have it")
    return ()


def _names_of_number(kind: str, major: int, minor: int) -> tuple[str, ...]:
    """What the kernel asks for, one after the other (fs/char_dev.c base_probe, block/genhd.c)."""
    return f"{kind}-major-{major}-{minor}", f"{kind}-major-{major}"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _complain(text: str) -> None:
    print(f"kmodd explain: {text}", file=sys.stderr)
