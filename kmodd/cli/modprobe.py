"""`modprobe`: bytes and status of Debian 12's kmod 30 (docs/COMPAT.md lists what differs, and why).

So far the modes that only print: -D, -n, -R, -c. The plan is made by `kmodd.resolve`, as for the daemon; here it is
printed as kmod prints it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kmodd import modprobe_d
from kmodd.cli.modprobe_help import FEATURES, HELP
from kmodd.cli.options import BadOption, Options
from kmodd.host.tree import Tree, TreeSnapshot
from kmodd.plan import Goal, Insmod, Install, Plan, Skip
from kmodd.request import Request
from kmodd.resolve import Manner, hits_of, resolve

CRIT, ERR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7
_WORDS = {CRIT: "FATAL", ERR: "ERROR", WARNING: "WARNING", NOTICE: "NOTICE", INFO: "INFO", DEBUG: "DEBUG"}

_SHORT = "arw:RibfDcnC:d:S:sqvVh"
_LONG = {
    "all": "a",
    "remove": "r",
    "remove-dependencies": "remove-holders",
    "remove-holders": "remove-holders",
    "wait": "w:",
    "resolve-alias": "R",
    "show-alias": "R",
    "first-time": "first-time",
    "ignore-install": "i",
    "ignore-remove": "i",
    "use-blacklist": "b",
    "force": "f",
    "force-modversion": "force-modversion",
    "force-vermagic": "force-vermagic",
    "show-depends": "D",
    "showconfig": "c",
    "show-config": "c",
    "show-modversions": "show-modversions",
    "dump-modversions": "show-modversions",
    "show-exports": "show-exports",
    "dry-run": "n",
    "show": "n",
    "config": "C:",
    "dirname": "d:",
    "set-version": "S:",
    "root": "root:",
    "syslog": "s",
    "quiet": "q",
    "verbose": "v",
    "version": "V",
    "help": "h",
}


class _Stop(Exception):
    """Ends the program with a status, as a FATAL message does."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class _Settings:
    """What the options said."""

    operands: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    """Codes of the options without a value."""
    config_paths: list[str] = field(default_factory=list)
    root: str = ""
    module_dir: str | None = None
    release: str | None = None
    wait_msec: int = 0
    verbose: int = WARNING

    @property
    def is_shown(self) -> bool:
        """Whether actions are printed (kmod 30: -n alone prints nothing)."""
        return "D" in self.flags or self.verbose > WARNING

    @property
    def is_dry(self) -> bool:
        return bool(self.flags & {"D", "n"})


class _Messages:
    """Standard output, kept until the end, and messages by level."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.verbose = WARNING
        self.syslog = False

    def show(self, line: str) -> None:
        """One line for standard output."""
        self._lines.append(line + "\n")

    def log(self, level: int, text: str) -> None:
        """One message; a FATAL one that is heard ends the program (kmod log_printf)."""
        if level > self.verbose:
            return
        if self.syslog:
            import syslog

            syslog.openlog("modprobe", syslog.LOG_CONS, syslog.LOG_DAEMON)
            syslog.syslog(level, f"{_WORDS[level]}: {text}")
        else:
            self.say(f"modprobe: {_WORDS[level]}: {text}")
        if level <= CRIT:
            raise _Stop(1)

    def say(self, line: str) -> None:
        """One line for standard error, whatever the level."""
        sys.stderr.buffer.write(os.fsencode(line + "\n"))
        sys.stderr.flush()

    def flush(self) -> None:
        sys.stdout.buffer.write(os.fsencode("".join(self._lines)))
        sys.stdout.flush()
        self._lines.clear()


def main(argv: list[str]) -> int:
    """Run modprobe with `argv` (without its name); the answer is its exit status, 0 or 1."""
    messages = _Messages()
    try:
        settings = _settings([*_words_of_environment(os.environ.get("MODPROBE_OPTIONS")), *argv], messages)
        return _run(settings, messages)
    except _Stop as stop:
        return stop.status
    finally:
        messages.flush()


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _settings(words: list[str], messages: _Messages) -> _Settings:
    """Read the command line. Ends the program for -V, -h, and what is wrong."""
    settings = _Settings()
    options = Options(words, _SHORT, _LONG)
    try:
        for code, value in options:
            match code:
                case "C":
                    settings.config_paths.append(value)
                case "d":
                    settings.module_dir = value
                case "S":
                    settings.release = value
                case "root":
                    settings.root = value
                case "q":
                    settings.verbose = 0
                case "v":
                    settings.verbose += 1
                case "w":
                    settings.wait_msec = _number(value, messages)
                case "V":
                    messages.show(f"kmod version 30\n{FEATURES}")
                    raise _Stop(0)
                case "h":
                    messages.show(HELP)
                    raise _Stop(0)
                case _:
                    settings.flags.add(code)
    except BadOption as error:
        messages.say(f"modprobe: {error}")
        raise _Stop(1) from None
    settings.operands = options.operands
    return settings


def _number(text: str, messages: _Messages) -> int:
    """What strtoul(3) makes of the text with base 0. Ends the program where that is not all of it."""
    digits = text.lstrip(" \t\n\v\f\r").lstrip("+-").lower()
    is_hex = digits.startswith("0x")
    try:
        return int(digits.removeprefix("0x"), 16 if is_hex else 8 if digits.startswith("0") else 10)
    except ValueError:
        messages.log(ERR, f"unexpected wait value '{text}'.")
        raise _Stop(1) from None


def _words_of_environment(text: str | None) -> list[str]:
    """MODPROBE_OPTIONS as words (prepend_options_from_env): single blanks part them, quotes group, nothing escapes."""
    words: list[str] = []
    word = ""
    quote, quote_is_first = "", False
    for char in text or "":
        if quote:
            if char != quote:
                word += char
                continue
            quote = ""
            if quote_is_first:  # a word that began with its quote ends with it, also without a blank
                words.append(word)
                word = ""
        elif char == " ":
            words.append(word)
            word = ""
        elif char in "\"'":
            quote, quote_is_first = char, not word
        else:
            word += char
    if quote:
        word = quote + word if quote_is_first else word
    return [*words, word] if word else words


# ── modes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(settings: _Settings, messages: _Messages) -> int:
    messages.syslog = "s" in settings.flags
    if not settings.operands and "c" not in settings.flags:
        messages.log(ERR, "missing parameters. See -h.")
        return 1
    tree = Tree(settings.root, settings.release, settings.module_dir, settings.config_paths or None)
    if tree.guessed:
        messages.say(f"modprobe: kernel {tree.release}, the only one below {settings.root}")
    snapshot = tree.quick_snapshot(like_kmod=True)
    for complaint in snapshot.config.complaints:
        messages.say(complaint)
    messages.verbose = settings.verbose
    try:
        return _do(settings, tree, snapshot, messages)
    finally:  # kmod reads a damaged index as if it were sound
        for problem in snapshot.catalog.problems:
            messages.log(ERR, str(problem))


def _do(settings: _Settings, tree: Tree, snapshot: TreeSnapshot, messages: _Messages) -> int:
    """The mode that the options ask for."""
    if "c" in settings.flags:
        return _show_config(snapshot, messages)
    if settings.flags & {"show-modversions", "show-exports", "r", "remove-holders"}:
        messages.log(ERR, "this mode is not part of kmodd yet")
        return 1
    if "R" in settings.flags:
        return _for_each(settings, lambda text: _show_names(text, tree, snapshot, settings, messages))
    if settings.is_dry:
        return _for_each(settings, lambda text: _show_plan(text, tree, snapshot, settings, messages))
    messages.log(ERR, "inserting modules is not part of kmodd's modprobe yet; -D, -n, -R and -c are")
    return 1


def _for_each(settings: _Settings, do: Callable[[str], int]) -> int:
    """All operands with -a, else the first; 1 where any failed."""
    names = settings.operands if "a" in settings.flags else settings.operands[:1]
    return max([do(name) for name in names], default=0)


def _show_config(snapshot: TreeSnapshot, messages: _Messages) -> int:
    """-c: all configuration, then the indexes with aliases."""
    messages.show(modprobe_d.dump(snapshot.config) + "\n# End of configuration files. Dumping indexes now:\n")
    for index in ("modules.alias", "modules.symbols"):
        for key, module in snapshot.catalog.dump(index):
            messages.show(f"alias {key} {module}")
    return 0


def _show_names(text: str, tree: Tree, snapshot: TreeSnapshot, settings: _Settings, messages: _Messages) -> int:
    """-R: the modules that a name stands for, duplicates and all."""
    hits, complaints = hits_of(text, snapshot, tree.present)
    _complain(complaints, messages)
    for hit in hits:
        messages.show(hit.module)
    return 0 if hits else _not_found(text, tree, settings, messages)


def _show_plan(text: str, tree: Tree, snapshot: TreeSnapshot, settings: _Settings, messages: _Messages) -> int:
    """-D, -n: what would be done for a name."""
    is_path = text.startswith(("/", "./"))
    wanted = f"{os.getcwd()}/{text}" if text.startswith("./") else text
    manner = Manner(
        blacklist="always" if "b" in settings.flags else "alias",
        ignore_install="i" in settings.flags,
        ignore_loaded="D" in settings.flags,
        paths=True,
    )
    params = () if "a" in settings.flags else tuple(settings.operands[1:])
    plan = resolve(Request(wanted, "operator", params=params), snapshot, tree.loaded(), manner, tree.present)
    _complain(plan.complaints, messages)
    if is_path and not tree.present(wanted):
        messages.log(_level(settings), f"Failed to get module from path {text}: No such file or directory")
        return 1
    if not plan.goals:
        return _not_found(text, tree, settings, messages)
    return _show_goals(plan, settings, messages)


def _show_goals(plan: Plan, settings: _Settings, messages: _Messages) -> int:
    """The actions of each goal; the status is that of the last one."""
    status = 0
    for goal in plan.goals:
        _complain(goal.complaints, messages)
        if "first-time" in settings.flags and "D" not in settings.flags and _is_there(goal):
            messages.log(ERR, f"could not insert '{goal.module}': Module already in kernel")
            status = 1
            continue
        status = 0
        if settings.is_shown:
            for line in actions(goal, settings.flags >= {"D"}):
                messages.show(line)
    return status


def actions(goal: Goal, ignore_loaded: bool) -> list[str]:
    """A goal as kmod's print_action shows it: a blank stands before the options also where there are none."""
    lines = []
    for entry in goal.entries:
        match entry:
            case Insmod():
                lines.append(f"insmod {entry.path} {entry.options}")
            case Install():
                lines.append(f"install {entry.command} {entry.options}")
            case Skip(reason="builtin") if ignore_loaded:
                lines.append(f"builtin {entry.module}")
            case Skip():
                pass
    return lines


def _is_there(goal: Goal) -> bool:
    match goal.entries:
        case (Skip(reason="live" | "builtin"),):
            return True
        case _:
            return False


def _not_found(text: str, tree: Tree, settings: _Settings, messages: _Messages) -> int:
    messages.log(_level(settings), f"Module {text} not found in directory {tree.directory}")
    return 1


def _level(settings: _Settings) -> int:
    """With -a a name that is not found does not end the program."""
    return WARNING if "a" in settings.flags else CRIT


def _complain(complaints: Iterable[str], messages: _Messages) -> None:
    for complaint in complaints:
        messages.log(ERR, complaint)
