"""Install commands that load nothing: which are known, and which look like one."""

from __future__ import annotations

from kmodd.dataclass import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SHELL: Mapping[str, int] = {"true": 0, ":": 0, "exit": 0, "false": 1}
"""Builtins of sh(1) that load nothing → exit status; `exit` takes another one."""
_SECURITY_MISC = (
    "bluetooth", "cdrom", "cpumsr", "filesys", "firewire", "framebuffer", "gps", "intelme", "intelpmt",
    "miscellaneous", "netfilesys", "network", "thunderbolt", "vivid",
)  # fmt: skip
"""Of the scripts of Kicksecure's security-misc, /usr/bin/disabled-NAME-by-security-misc: they print why, and fail."""
PROGRAMS: Mapping[str, int] = {
    "/usr/bin/true": 0,
    "/usr/bin/false": 1,
    **{f"/usr/bin/disabled-{name}-by-security-misc": 1 for name in _SECURITY_MISC},
}
"""Programs that load nothing → exit status. coreutils has the first two; hardening guides (CIS, STIG) use those."""
_NAMES = frozenset(("true", "false", *(path.rpartition("/")[2] for path in PROGRAMS)))
_QUIET = frozenset(("echo", "printf", "logger", "test", "[", ":", "true", "false"))
"""Programs that load nothing, which a command may run before the one that refuses."""
_BINARIES = ("/usr/sbin/", "/sbin/", "/bin/")
"""Directories that are links to /usr/bin, or have no other programs of these names."""
_SPECIAL = frozenset(";&|<>$`()\n")
_QUOTES = frozenset("\"'\\")
_SEPARATORS = str.maketrans("&|\n", ";;;")
_REDIRECTIONS = (">&2", ">&1", ">/dev/null", ">/dev/kmsg", ">/dev/console")
"""Redirections that change nothing, without blanks."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an install command does in place of loading its module: nothing."""

    status: int
    """Exit status: with 0, the request counts as answered."""
    is_certain: bool
    """False: only the command's name says so."""
    is_last: bool = False
    """It is the last of several commands, and those before it load nothing."""


def refusal_of(command: str) -> Refusal | None:
    """Return the refusal by an install command; None: its effect is not known.

    Certain are `exit N`, `:` and the programs of PROGRAMS by their path (/bin, /sbin and /usr/sbin are /usr/bin), true
    and false also as builtins of the shell. Probable is a program in another place whose name says the same, and one of
    both after commands that only print or test.
    """
    text = _without_comment(command.replace("$CMDLINE_OPTS", "")).strip()
    if set(text).isdisjoint(_SPECIAL):
        return _refusal_by(text)
    text = text.replace("> ", ">")
    for redirection in _REDIRECTIONS:
        text = text.replace(redirection, "")
    *before, last = text.rstrip("; \t").translate(_SEPARATORS).split(";")
    if not set("".join((*before, last))).isdisjoint(_SPECIAL) or not all(map(_is_quiet, before)):
        return None
    refusal = _refusal_by(last)
    return Refusal(refusal.status, is_certain=False, is_last=bool(before)) if refusal else None


def _without_comment(command: str) -> str:
    """Return a command without its comment. A `#` behind a quote or backslash may be part of a word: it is kept."""
    found, mark, _ = command.partition(" #")
    return found if mark and _QUOTES.isdisjoint(found) else command


def _refusal_by(command: str) -> Refusal | None:
    """Return the refusal by a single command of the shell."""
    words = [word for word in command.split() if word != "exec"]
    program = words[0].strip("\"'") if words else ""
    status = _status_of(program, words[1:])
    if status is not None:
        return Refusal(status, is_certain=True)
    name = program.rpartition("/")[2]
    is_disabler = name.startswith("disabled-") and "-by-" in name
    return Refusal(int(name != "true"), is_certain=False) if name in _NAMES or is_disabler else None


def _is_quiet(command: str) -> bool:
    """Return whether a single command of the shell is known to load nothing; an empty one is between `&&` or `||`."""
    program = (command.split() or [":"])[0]
    for folder in ("/usr/bin/", "/bin/"):
        program = program.removeprefix(folder)
    return program in _QUIET


def _status_of(program: str, arguments: list[str]) -> int | None:
    """Return the exit status of a program that loads nothing; None: it is not known to be one."""
    if program == "exit" and arguments:
        number = arguments[0]
        return int(number) & 255 if len(arguments) == 1 and number.isdecimal() and len(number) <= 3 else None
    if not program.startswith("/"):
        return _SHELL.get(program)
    path = "/" + "/".join(part for part in program.split("/") if part)
    folder = next((folder for folder in _BINARIES if path.startswith(folder)), "")
    return PROGRAMS.get("/usr/bin/" + path.removeprefix(folder) if folder else path)
