"""Parse kmodd.conf into `Settings`.

    # a comment
    [Kmodd]
    BlacklistDependencies=yes

The syntax is that of systemd's configuration files (systemd.syntax(7)): `#` and `;` begin a comment line, a `\\` at the
end of a line joins the next line, blanks around `=` are ignored, a later assignment wins. An unknown section or key, or
an invalid value, is a Problem; the other lines are used.
"""

from __future__ import annotations

from kmodd.config.modprobe_d import DROP_IN, ConfFile, Extensions
from kmodd.config.policy_d import MODES, Mode
from kmodd.dataclass import dataclass, replace
from kmodd.errors import Problem, Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Literal

    Auto = Literal["auto"]
else:
    Auto = str

SECTION = "Kmodd"

EXTENSIONS = {
    "BlacklistDependencies": "blacklist_dependencies",
    "SoftdepsAddUp": "softdeps_add_up",
    "CommandLineBlacklistDashes": "cmdline_blacklist_dashes",
    "InstallSignalIsFailure": "install_signal_is_failure",
    "SoftdepKeepsInstall": "softdep_keeps_install",
}
"""Key of the file → the field of modprobe_d.Extensions."""

_SWITCHES = {"NoticeEdits": "notice_edits", "KernelRequests": "kernel_requests", "ForeignModules": "foreign_modules"}
AUTO: Auto = "auto"
"""Value of `Lanes=` with which their number follows from what the loaders do."""
_NUMBERS = {
    # key → field, minimum, maximum
    "Lanes": ("lanes", 1, 64),
    "StuckAfterSec": ("stuck_after", 1, 86400),
    "ReconcileSec": ("reconcile_every", 1, 7 * 86400),
    "AutocleanSec": ("autoclean_after", 1, 86400),
}
LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""Words of `LogLevel=`, each at the place of its number in syslog(3)."""
_ENUMS: dict[str, tuple[str, tuple[str, ...]]] = {"Policy": ("policy", MODES), "LogLevel": ("log_level", LEVELS)}
_LISTS = {"Autoclean": "autoclean", "SealRequires": "seal_requires"}
_KEYS = (*EXTENSIONS, *_SWITCHES, *_NUMBERS, *_ENUMS, *_LISTS)


_BOOLEANS = {
    **dict.fromkeys(("1", "yes", "y", "true", "t", "on"), True),
    **dict.fromkeys(("0", "no", "n", "false", "f", "off"), False),
}
"""Boolean words, in lower case (systemd parse_boolean)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of kmodd.conf and its drop-ins."""

    extensions: Extensions = DROP_IN
    notice_edits: bool = True
    """Detect configuration files edited in place, without a reload; libkmod only detects a changed directory."""
    kernel_requests: bool = True
    """Serve the kernel's own requests."""
    foreign_modules: bool = False
    """Load module files that are not root's alone for devices, at boot and for the kernel's requests."""
    lanes: int | Auto = 1
    """Maximum number of modules loaded concurrently for devices and at boot; AUTO: further ones while loaders sleep."""
    stuck_after: int = 60
    """Seconds in its init function after which a module counts as stuck and its lane continues without it."""
    reconcile_every: int = 600
    """Seconds between searches for devices without a driver that match a module."""
    log_level: int = LEVELS.index("info")
    """The least important level of the records in the journal, as in syslog(3)."""
    policy: Mode = "off"
    autoclean: tuple[str, ...] = ()
    """Patterns of modules to remove when unused, if a kernel request loaded them."""
    seal_requires: tuple[str, ...] = ()
    """Modules that must be live before `kmodd seal --permanent` disables module loading in the kernel."""
    autoclean_after: int = 60
    """Seconds without use before a module of `autoclean` is removed."""
    problems: tuple[Problem, ...] = ()
    broken: bool = False
    """A problem is more than an unknown key or section of a newer version: the daemon keeps its earlier settings."""
    policy_broken: bool = False
    """A problem concerns `Policy=`: the intended mode is unknown."""

    @property
    def steady_lanes(self) -> int:
        """Number of lanes while all loaders are on a processor."""
        return 1 if self.lanes == AUTO else self.lanes


def parse(files: Iterable[ConfFile]) -> Settings:
    """Parse all files, later ones winning. Raises nothing; invalid lines are `problems`."""
    settings = Settings()
    problems: list[Problem] = []
    broken = policy_broken = False
    for file in files:
        section = ""
        if "\0" in file.text:  # what stood there is unknown
            number = file.text.count("\n", 0, file.text.index("\0")) + 1
            expected = "expected text without NUL bytes; restore the file, which may be damaged"
            problems.append(Problem(Where(file.path, number), 0, "", expected))
            broken = policy_broken = True
        for number, line in _lines(file.text):
            at = Where(file.path, number)
            if line.startswith("[") and line.endswith("]"):
                section = line[1:-1]
                if section != SECTION:
                    problems.append(Problem(at, 2, line, f"unknown section {section!r}; expected [{SECTION}]"))
                continue
            key, equals, value = (part.strip() for part in line.partition("="))
            if section not in ("", SECTION):
                continue
            if section and key in _KEYS and equals and not _value_error(key, value):
                settings = _assign(settings, key, value)
                continue
            import re  # only here: `re` takes a tenth of the time to READY

            is_policy = re.match(r"policy\b", line, re.IGNORECASE) is not None
            policy_broken = policy_broken or is_policy
            broken = broken or is_policy or not (section and equals) or key in _KEYS
            problems.append(_problem(at, line, section))
    return replace(settings, problems=tuple(problems), broken=broken, policy_broken=policy_broken)


def _problem(at: Where, line: str, section: str) -> Problem:
    """Return the problem of an invalid line in our section or before any section."""
    key, equals, value = (part.strip() for part in line.partition("="))
    if not equals:
        return Problem(at, 1, line, "expected KEY=VALUE")
    if not section:
        return Problem(at, 1, line, f"outside of a section; expected [{SECTION}] before it")
    if key not in _KEYS:
        return Problem(at, 1, line, f"unknown key {key!r}; expected one of {', '.join(_KEYS)}")
    return Problem(at, line.index("=") + 2, line, _value_error(key, value))


def _value_error(key: str, value: str) -> str:
    """Return why `value` is invalid for `key`, or an empty text if it is valid."""
    if key in _NUMBERS:
        _, least, most = _NUMBERS[key]
        fits = value.isascii() and value.isdigit() and least <= int(value[:18]) <= most
        fits = fits or (key == "Lanes" and value == AUTO)
        or_auto = f" or {AUTO}" if key == "Lanes" else ""
        return "" if fits else f"{key}= expects an integer from {least} to {most}{or_auto}, not {value!r}"
    if key in _ENUMS:
        words = _ENUMS[key][1]
        return "" if value in words else f"{key}= expects one of {', '.join(words)}, not {value!r}"
    if key in _LISTS:
        return ""
    return "" if value.lower() in _BOOLEANS else f"{key}= expects yes or no, not {value!r}"


def _assign(settings: Settings, key: str, value: str) -> Settings:
    """Return `settings` with a valid `value` assigned to `key`."""
    changed: dict[str, Any]
    if key in _NUMBERS:
        changed = {_NUMBERS[key][0]: value if value == AUTO else int(value)}
    elif key in _ENUMS:
        changed = {_ENUMS[key][0]: LEVELS.index(value) if key == "LogLevel" else value}
    elif key in _LISTS:  # as in systemd's files, assignments append, and an empty one clears the list
        before = getattr(settings, _LISTS[key])
        changed = {_LISTS[key]: (*before, *value.split()) if value else ()}
    elif key in _SWITCHES:
        changed = {_SWITCHES[key]: _BOOLEANS[value.lower()]}
    else:
        changed = {"extensions": replace(settings.extensions, **{EXTENSIONS[key]: _BOOLEANS[value.lower()]})}
    return replace(settings, **changed)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number of the first physical line and the text of each logical line, except blank ones and comments."""
    joined, first = "", 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if line.startswith(("#", ";")) or (not line and not joined):
            continue  # also a comment within a continued line
        first = first if joined else number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        if whole := (joined + line).strip():
            yield first, whole
        joined = ""
    if joined.strip():
        yield first, joined.strip()
