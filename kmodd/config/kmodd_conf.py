"""kmodd.conf: texts in systemd's ini style in, `Settings` out.

    # a comment
    [Kmodd]
    BlacklistDependencies=yes

The rules are those of systemd's own files (systemd.syntax(7)): `#` and `;` begin a comment line, a `\\` at the end of a
line goes on with the next, blanks around `=` do not count, a later assignment wins. What is not known is a Problem
with its place; everything else counts.
"""

from __future__ import annotations

import re

from kmodd.config.modprobe_d import DROP_IN, ConfFile, Extensions
from kmodd.config.policy_d import MODES, Mode
from kmodd.dataclass import dataclass, replace
from kmodd.errors import Problem, Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

SECTION = "Kmodd"

EXTENSIONS = {
    "BlacklistDependencies": "blacklist_dependencies",
    "SoftdepsAddUp": "softdeps_add_up",
    "CommandLineBlacklistDashes": "cmdline_blacklist_dashes",
    "InstallSignalIsFailure": "install_signal_is_failure",
    "SoftdepKeepsInstall": "softdep_keeps_install",
}
"""Key of the file → the wish that it switches on (modprobe_d.Beyond)."""

_SWITCHES = {"NoticeEdits": "notice_edits", "KernelRequests": "kernel_requests"}
_NUMBERS = {
    # key → field, least value, most
    "Lanes": ("lanes", 1, 64),
    "StuckAfterSec": ("stuck_after", 1, 86400),
    "ReconcileSec": ("reconcile_every", 1, 7 * 86400),
    "AutocleanSec": ("autoclean_after", 1, 86400),
}
_WORDS: dict[str, tuple[str, tuple[str, ...]]] = {"Policy": ("policy", MODES)}
_LISTS = {"Autoclean": "autoclean", "SealRequires": "seal_requires"}
_KEYS = (*EXTENSIONS, *_SWITCHES, *_NUMBERS, *_WORDS, *_LISTS)


_BOOLEANS = {
    **dict.fromkeys(("1", "yes", "y", "true", "t", "on"), True),
    **dict.fromkeys(("0", "no", "n", "false", "f", "off"), False),
}
"""parse_boolean of systemd, in lower case."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the files say."""

    extensions: Extensions = DROP_IN
    notice_edits: bool = True
    """A configuration file that is edited in place is noticed without a reload; libkmod sees only a changed folder."""
    kernel_requests: bool = True
    """The kernel's own requests are answered."""
    lanes: int = 1
    """So many modules are loaded at a time for devices and at boot."""
    stuck_after: int = 60
    """Seconds in its init after which a module is called stuck and its lane goes on without it."""
    reconcile_every: int = 600
    """Seconds between two looks for devices that have no driver although a module matches."""
    policy: Mode = "off"
    autoclean: tuple[str, ...] = ()
    """Patterns of modules that are removed again after a kernel request, once nothing uses them."""
    seal_requires: tuple[str, ...] = ()
    """Modules that must be live before `kmodd seal --permanent` shuts the kernel."""
    autoclean_after: int = 60
    """Seconds without use."""
    problems: tuple[Problem, ...] = ()
    broken: bool = False
    """Some of the problems are more than a word from a newer version: who has earlier settings keeps them."""
    policy_broken: bool = False
    """One of these is about the policy: what it was to be, nobody knows."""


def parse(files: Iterable[ConfFile]) -> Settings:
    """All files, in the order in which later ones win. Never raises."""
    settings = Settings()
    problems: list[Problem] = []
    broken = policy_broken = False
    for file in files:
        section = ""
        for number, line in _lines(file.text):
            at = Where(file.path, number)
            if header := re.fullmatch(r"\[(.*)\]", line):
                section = header[1]
                if section != SECTION:
                    problems.append(Problem(at, 2, line, f"unknown section {section!r}; expected [{SECTION}]"))
                continue
            key, equals, value = (part.strip() for part in line.partition("="))
            if section not in ("", SECTION):
                continue
            if section and key in _KEYS and equals and not _unfit(key, value):
                settings = _with(settings, key, value)
                continue
            is_policy = re.match(r"policy\b", line, re.IGNORECASE) is not None
            policy_broken = policy_broken or is_policy
            broken = broken or is_policy or not (section and equals) or key in _KEYS
            problems.append(_problem(at, line, section))
    return replace(settings, problems=tuple(problems), broken=broken, policy_broken=policy_broken)


def _problem(at: Where, line: str, section: str) -> Problem:
    """What is wrong with a line of ours."""
    key, equals, value = (part.strip() for part in line.partition("="))
    if not equals:
        return Problem(at, 1, line, "expected KEY=VALUE")
    if not section:
        return Problem(at, 1, line, f"outside of a section; expected [{SECTION}] before it")
    if key not in _KEYS:
        return Problem(at, 1, line, f"unknown key {key!r}; expected one of {', '.join(_KEYS)}")
    return Problem(at, line.index("=") + 2, line, _unfit(key, value))


def _unfit(key: str, value: str) -> str:
    """What a key wants instead of `value`; empty: it fits."""
    if key in _NUMBERS:
        _, least, most = _NUMBERS[key]
        fits = value.isascii() and value.isdigit() and least <= int(value[:18]) <= most
        return "" if fits else f"{key}= wants a whole number from {least} to {most}, not {value!r}"
    if key in _WORDS:
        words = _WORDS[key][1]
        return "" if value in words else f"{key}= wants one of {', '.join(words)}, not {value!r}"
    if key in _LISTS:
        return ""
    return "" if value.lower() in _BOOLEANS else f"{key}= wants yes or no, not {value!r}"


def _with(settings: Settings, key: str, value: str) -> Settings:
    changed: dict[str, Any]
    if key in _NUMBERS:
        changed = {_NUMBERS[key][0]: int(value)}
    elif key in _WORDS:
        changed = {_WORDS[key][0]: value}
    elif key in _LISTS:  # as in systemd's files, assignments add up and an empty one begins anew
        before = getattr(settings, _LISTS[key])
        changed = {_LISTS[key]: (*before, *value.split()) if value else ()}
    elif key in _SWITCHES:
        changed = {_SWITCHES[key]: _BOOLEANS[value.lower()]}
    else:
        changed = {"extensions": replace(settings.extensions, **{EXTENSIONS[key]: _BOOLEANS[value.lower()]})}
    return replace(settings, **changed)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, logical line) of everything but blank lines and comments."""
    joined, first = "", 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if line.startswith(("#", ";")) or (not line and not joined):
            continue  # a comment within a continued line is passed over too
        first = first if joined else number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        if whole := (joined + line).strip():
            yield first, whole
        joined = ""
    if joined.strip():
        yield first, joined.strip()
