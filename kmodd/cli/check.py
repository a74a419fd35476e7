"""`kmodd check`: check configuration, installation and hardening, and name the command that mends each finding."""

from __future__ import annotations

import shlex
import sys

import kmodd
from kmodd.cli import byte_code
from kmodd.cli.check_forms import json_of, junit_of, sarif_of, text_of
from kmodd.cli.daemon_away import mend_here, why_away_here
from kmodd.cli.daemon_tree import daemon_status, tree_of
from kmodd.cli.explain import Rules
from kmodd.cli.terminal import paint, show
from kmodd.cli.verb import JSON, KERNEL, ROOT, Option, Verb
from kmodd.dataclass import replace
from kmodd.errors import NoTree
from kmodd.host.benchmark_file import BenchmarkError, read_benchmark
from kmodd.host.config_check import mend_of, read_setup
from kmodd.host.config_files import read_settings
from kmodd.host.installation import read_installation
from kmodd.host.kernel_facts import read_facts
from kmodd.host.regular_files import read_file
from kmodd.host.tree import Tree
from kmodd.index.catalog import Snapshot
from kmodd.names import module_of_path
from kmodd.planning.benchmarks import BENCHMARKS, Benchmark, source_of
from kmodd.planning.check import Report, Result
from kmodd.planning.hardening import Known, judge
from kmodd.planning.lint import lint
from kmodd.planning.module_truth import initcalls_of
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve
from kmodd.text import count_of, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kmodd.planning.check import Area
    from kmodd.planning.hardening import Planner
    from kmodd.planning.plan import Plan
    from kmodd.planning.request import Origin

_FORMS = ("json", "sarif", "junit")
VERB = Verb(
    "check",
    "Check that all is well: the configuration (all that `kmodd lint` checks), the installation (kmodd is the only "
    "loader, the kernel's helper is its own, there is a module tree and tracefs), and with --benchmark that each "
    "module of a hardening benchmark is kept out. Each finding is followed by the command that mends it.\n\n"
    "A module is kept out if the kernel does not have it, and no request of root, a device or a process would bring "
    "it. That is found by planning these requests, as the daemon and modprobe do. Rules of policy.d count while the "
    "daemon runs. Root can load a file by insmod all the same, unless loading "
    "is sealed. Checkers that search modprobe.d for a line disagree where the line is "
    "without effect, where a module is loaded or part of the kernel image, or where the kernel has no such module.",
    (
        Option("--benchmark", f"{', '.join(BENCHMARKS)}, or a file: names of modules, or XCCDF or OVAL", "NAME"),
        Option("--profile", "the profile of an XCCDF file whose rules count (default: all its rules)", "ID"),
        JSON, Option("--sarif", "print the findings as SARIF 2.1.0"), Option("--junit", "print JUnit's XML"),
        ROOT, KERNEL,
    ),
    status=(
        (0, "no finding"),
        (1, "a finding, or the benchmark is missing"),
        (3, "no module tree, or a damaged index"),
    ),
    examples=(
        ("check", "Is anything wrong with this machine?"),
        ("check --benchmark cis", "Which modules of the CIS benchmark can still be loaded, by whom?"),
        ("check --benchmark stig --junit > kmodd.xml", "For a CI that shows JUnit's results."),
    ),
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Print the results; return 1 for a finding or a missing benchmark, 3 without an intact module tree, else 0."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    forms = [form for form in _FORMS if form in given]
    if len(forms) > 1:
        return VERB.refuse(f"--{forms[0]} and --{forms[1]} exclude each other")
    root = given.get("root").rstrip("/")
    benchmark, status = None, 0
    if "profile" in given and given.get("benchmark") in ("", *BENCHMARKS):
        return VERB.refuse("--profile needs --benchmark with an XCCDF file")
    if "benchmark" in given:
        benchmark = _benchmark(given.get("benchmark"), given.get("profile"))
        status = 0 if benchmark else 1
    running = None if root else daemon_status()
    tree = (tree_of(running) if running and "kernel" not in given else None) or Tree(
        root, given.get("kernel") or None, extensions=read_settings(root).extensions
    )
    why = f"the benchmark {given.get('benchmark')} is missing" if status else "no --benchmark is given"
    notes: list[tuple[Area, str]] = [] if benchmark else [("hardening", f"not checked, as {why}")]
    is_running = running is not None and not running["dry_run"]
    is_sealed = running is not None and is_running and running["phase"] == "sealed"
    results = [] if root else list(_installation(is_running=is_running, is_dry=running is not None))
    try:
        tree.check()
    except NoTree as error:
        results.append(_no_tree(tree, str(error)))
        why = "without a module tree"
        notes = [("configuration", f"not checked {why}"), ("hardening", f"not known {why}")]
        status = 3
    else:
        snapshot = tree.quick_snapshot()
        configuration, warnings = _configuration(tree, snapshot)
        names, has_policy = benchmark.modules if benchmark else (), is_running or bool(root)
        hardening = [*_hardening(names, tree, snapshot, has_policy=has_policy, is_sealed=is_sealed)]
        results += [*configuration, *_index(tree, snapshot)]  # behind all that reads the index
        if warnings:
            notes.append(("configuration", f"{count_of(warnings, 'warning')} of `kmodd lint`"))
        if snapshot.catalog.is_damaged:
            notes, status = [*notes, ("hardening", "not known with a damaged index")], 3
        else:
            results += hardening
    if benchmark and not root and not is_running:
        notes.append(("hardening", "rules of policy.d do not hold, as the daemon does not run"))
    if benchmark and status != 3:
        source = f" ({known})" if (known := source_of(benchmark)) else ""
        notes.append(("hardening", f"{benchmark.title}{source}, {count_of(len(benchmark.modules), 'module')}"))
    if root:
        notes.append(("installation", "not checked below another root"))
    report = Report(tuple(results), tuple(notes), benchmark if status != 3 else None)
    _print(report, forms[0] if forms else "")
    return status or int(bool(report.findings))


def _no_tree(tree: Tree, why: str) -> Result:
    package = "" if tree.root else f"apt-get install --reinstall linux-image-{shlex.quote(tree.release)}"
    command = _depmod(tree) if tree.present(tree.directory) else package
    return Result("installation", "no-tree", why, command=command)


def _print(report: Report, form: str) -> None:
    match form:
        case "json":
            show(json_of(report))
        case "sarif":
            show(sarif_of(report, kmodd.__version__))
        case "junit":
            show(junit_of(report))
        case _:
            show("".join(f"{paint(line, colour, sys.stdout)}\n" for line, colour in text_of(report)))


def _benchmark(name: str, profile: str) -> Benchmark | None:
    """Return a benchmark by its name or file; None, after a message: it is missing."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    try:
        found, problems = read_benchmark(name, profile)
    except (OSError, ValueError, BenchmarkError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        known = "" if isinstance(error, BenchmarkError) else f"; expected {', '.join(BENCHMARKS)}, or a file"
        VERB.complain(f"benchmark {name!r} is missing: {reason}{known}")
        return None
    for problem in problems:
        VERB.complain(f"Ignoring invalid line: {problem}")
    if not found.modules:
        VERB.complain(f"benchmark {name!r} names no module")
        return None
    return found


def _installation(*, is_running: bool, is_dry: bool) -> Iterator[Result]:
    """Yield the state of the service and of what it sets up."""
    if is_running:
        yield Result("installation", "service", "the daemon is running", is_met=True)
    else:
        reason = "the one that answers runs dry" if is_dry else why_away_here() or "there is no systemd"
        yield Result("installation", "service", f"the daemon is not running: {reason}", command=mend_here())
    yield from read_installation(is_running=is_running, has_helper=read_settings("").kernel_requests)
    if stale := byte_code.stale():
        text = f"{stale[0]}: {stale[1]}"
        yield Result("installation", "byte-code", text, command="apt-get install --reinstall kmodd")


def _configuration(tree: Tree, snapshot: Snapshot) -> tuple[list[Result], int]:
    """Return the errors in the configuration, and the number of warnings, which may be meant so."""
    found = [finding for finding in lint(read_setup(tree, snapshot)) if not finding.shipped]
    results = []
    for finding in found:
        if finding.severity != "error":
            continue
        line = f"+{finding.at.line} " if finding.at.line else ""
        path = tree.root + finding.at.file
        command = f"editor {line}{shlex.quote(path)}"
        if finding.code in ("not-read", "unreadable"):
            command = mend_of(tree.root, finding.at.file)
        if not path.isprintable():
            command = ""
        if finding.at.file == "/proc/cmdline":
            command = "editor /etc/default/grub && update-grub"
        results.append(Result("configuration", finding.code, finding.text, command=command, at=finding.at))
    return results, len(found) - len(results)


def _index(tree: Tree, snapshot: Snapshot) -> list[Result]:
    """Return what is damaged in the module index."""
    problems = snapshot.catalog.problems
    command = _depmod(tree)
    return [Result("installation", "index", str(problem), command=command) for problem in problems]


def _depmod(tree: Tree) -> str:
    where = f"-b {shlex.quote(tree.root)} " if tree.root else ""
    return f"depmod {where}{shlex.quote(tree.release)}" if tree.root.isprintable() else ""


def _hardening(
    modules: Sequence[str], tree: Tree, snapshot: Snapshot, *, has_policy: bool, is_sealed: bool
) -> Iterator[Result]:
    """Yield the state of each module. has_policy: rules of policy.d hold, as the daemon runs. is_sealed: by it."""
    loaded, catalog, root = tree.loaded(), snapshot.catalog, tree.root
    aliases, options = _aliases(modules, snapshot), f"--root {shlex.quote(root)} " if root else ""
    settings = read_settings(root)
    is_closed = read_facts(root).modules_disabled
    symbols = decode(read_file(f"{root}/proc/kallsyms") or b"").splitlines()
    knows_builtin = any(tree.present(f"{tree.directory}/modules.builtin{end}") for end in ("", ".bin"))

    def planner(rules: Rules) -> Planner:
        def plan(name: str, origin: Origin, kind: str) -> Plan:
            resolving = replace(options_of(origin), blocked=True, ignore_loaded=True)
            judge_of = rules.judge_as(origin, name, kind) if has_policy else None
            return resolve(Request(name, origin), snapshot, loaded, resolving, tree.present, judge_of, tree.foreign)

        return plan

    plan = planner(Rules(tree, settings))
    sealed = planner(Rules(tree, settings, is_sealed=True)) if is_sealed else None
    for name in modules:
        state = loaded.state(name) or ("builtin" if catalog.is_builtin(name) else "")
        in_tree = catalog.dep(name) is not None
        found = judge(Known(name, state, in_tree, tuple(aliases[name]), knows_builtin, is_closed), plan, sealed)
        unload = "--unload " if found.state == "loaded" and not root else ""
        is_open = found.state in ("loadable", "loaded", "uncertain") or (found.state == "unknown" and knows_builtin)
        command = f"kmodd deny {options}{unload}{name}" if is_open else ""
        text = found.text
        if found.state == "builtin" and (calls := initcalls_of(symbols, name)):
            text = f"{text}; initcall_blacklist={','.join(calls)} on the kernel command line keeps it from starting"
            command = "" if root else "editor /etc/default/grub && update-grub && systemctl reboot"
        yield Result("hardening", name, text, found.is_met, command if root.isprintable() else "")


def _aliases(modules: Sequence[str], snapshot: Snapshot) -> dict[str, list[str]]:
    """Return the patterns that match each of some modules, by index and modprobe.d; then of those that need it."""
    found: dict[str, list[str]] = {name: [] for name in modules}
    users: dict[str, list[str]] = {}
    for user in snapshot.catalog.names():
        line = snapshot.catalog.dep(user)
        for path in line.deps if line else ():
            if (needed := module_of_path(path)) in found:
                users.setdefault(str(user), []).append(needed)
    entries = [*snapshot.catalog.dump("modules.alias")]
    entries += [(alias.pattern, alias.module) for alias in snapshot.config.aliases]
    later: dict[str, list[str]] = {name: [] for name in modules}
    for pattern, module in entries:
        owner = module.replace("-", "_")
        if owner in found:
            found[owner].append(pattern)
        for each in users.get(owner, ()):
            later[each].append(pattern)
    return {each: found[each] + later[each] for each in modules}
