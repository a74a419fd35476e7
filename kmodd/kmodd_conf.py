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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kmodd.errors import Problem, Where
from kmodd.modprobe_d import DROP_IN, Beyond, ConfFile

SECTION = "Kmodd"

_BEYOND = {
    "BlacklistDependencies": "blacklist_dependencies",
    "SoftdepsAddUp": "softdeps_add_up",
    "CommandLineBlacklistDashes": "cmdline_blacklist_dashes",
    "InstallSignalIsFailure": "install_signal_is_failure",
    "SoftdepKeepsInstall": "softdep_keeps_install",
}
"""Key of the file → the wish that it switches on (modprobe_d.Beyond)."""

_NOTICE_EDITS = "NoticeEdits"
_KEYS = (*_BEYOND, _NOTICE_EDITS)

_BOOLEANS = {
    **dict.fromkeys(("1", "yes", "y", "true", "t", "on"), True),
    **dict.fromkeys(("0", "no", "n", "false", "f", "off"), False),
}
"""parse_boolean of systemd, in lower case."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the files say."""

    beyond: Beyond = DROP_IN
    notice_edits: bool = True
    """A configuration file that is edited in place is noticed without a reload; libkmod sees only a changed folder."""
    problems: tuple[Problem, ...] = ()


def parse(files: Iterable[ConfFile]) -> Settings:
    """All files, in the order in which later ones win. Never raises."""
    settings = Settings()
    problems: list[Problem] = []
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
            if not equals:
                problems.append(Problem(at, 1, line, "expected KEY=VALUE"))
            elif section != SECTION:
                if not section:
                    problems.append(Problem(at, 1, line, f"outside of a section; expected [{SECTION}] before it"))
            elif key not in _KEYS:
                problems.append(Problem(at, 1, line, f"unknown key {key!r}; expected one of {', '.join(_KEYS)}"))
            elif value.lower() not in _BOOLEANS:
                column = line.index("=") + 2
                problems.append(Problem(at, column, line, f"{key}= wants yes or no, not {value!r}"))
            else:
                settings = _with(settings, key, _BOOLEANS[value.lower()])
    return replace(settings, problems=tuple(problems))


def _with(settings: Settings, key: str, on: bool) -> Settings:
    if key == _NOTICE_EDITS:
        return replace(settings, notice_edits=on)
    return replace(settings, beyond=replace(settings.beyond, **{_BEYOND[key]: on}))


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
