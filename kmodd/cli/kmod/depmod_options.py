"""What depmod's command line says, and how depmod talks."""

from __future__ import annotations

import os
import re
import sys

from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass, field
from kmodd.modfile.depmod_graph import Complaint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SHORT = "aAb:m:o:C:E:F:euqrvnP:wVh"
_LONG = {
    "all": "a",
    "quick": "A",
    "basedir": "b:",
    "moduledir": "m:",
    "outdir": "o:",
    "config": "C:",
    "symvers": "E:",
    "filesyms": "F:",
    "errsyms": "e",
    "unresolved-error": "--unresolved-error",
    "quiet": "--quiet",
    "map": "--map",
    "root": "root:",
    "no-cache": "no-cache",
    "verbose": "v",
    "show": "n",
    "dry-run": "n",
    "symbol-prefix": "P:",
    "warn": "w",
    "version": "V",
    "help": "h",
}


class Stop(Exception):
    """Ends the program with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class DepmodOptions:
    """What the command line said."""

    flags: set[str] = field(default_factory=set)
    """Codes of the options without a value."""
    values: dict[str, str] = field(default_factory=dict)
    """Codes of the others, with the last value of each."""
    config_paths: list[str] = field(default_factory=list)
    release: str = ""
    files: list[str] = field(default_factory=list)
    verbosity: int = 0
    directory: str = ""
    """The module directory, as messages name it."""
    out_directory: str = ""

    @property
    def root(self) -> str:
        """`--root`: put before every path that is opened, and never printed."""
        return self.values.get("root", "").rstrip("/")

    @property
    def prefix(self) -> bytes:
        """Of symbols."""
        return os.fsencode(self.values.get("P", ""))

    @property
    def is_dry(self) -> bool:
        """Whether the texts are only shown."""
        return "n" in self.flags


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def say(level: str, text: str) -> None:
    """One message on standard error."""
    sys.stdout.flush()
    sys.stderr.buffer.write(os.fsencode(f"depmod: {level}: {text}\n"))
    sys.stderr.flush()


def complain(complaints: Iterable[Complaint]) -> None:
    """Several messages."""
    for complaint in complaints:
        say(complaint.level, complaint.text)


def fatal(text: str) -> Stop:
    """A message that ends the program, by what is to be raised."""
    say("FATAL", text)
    return Stop(1)


def reason(error: OSError) -> str:
    """An error in the C library's words."""
    return os.strerror(error.errno) if error.errno else str(error)


# ── command line ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(words: list[str]) -> DepmodOptions:
    """Read the command line. Raises Stop for -V, -h and for what is wrong."""
    settings = DepmodOptions()
    options = Options(words, _SHORT, _LONG)
    try:
        for code, value in options:
            _take(code, value, settings)
    except OptionError as error:
        sys.stderr.write(f"depmod: {error}\n")
        raise Stop(1) from None
    if options.operands:
        settings.release, *settings.files = options.operands
        if not re.match(r"\s*[+-]?\d+\.\s*[+-]?\d", settings.release):
            say("ERROR", f"Bad version passed {settings.release}")
            raise Stop(1)
    else:
        settings.release = os.uname().release
    base = absolute(settings.values["b"]) if "b" in settings.values else ""
    out = absolute(settings.values["o"]) if "o" in settings.values else base
    modules = settings.values.get("m", "/lib/modules").lstrip("/")
    settings.directory = f"{base}/{modules}/{settings.release}"
    settings.out_directory = f"{out}/{modules}/{settings.release}"
    return settings


def _take(code: str, value: str, settings: DepmodOptions) -> None:
    match code:
        case "V":
            from kmodd.cli.kmod.modprobe_help import FEATURES

            print(f"kmod version 30\n{FEATURES}")
            raise Stop(0)
        case "h":
            from kmodd.cli.kmod.depmod_help import HELP

            print(HELP)
            raise Stop(0)
        case "C":
            settings.config_paths.append(value)
        case "v":
            settings.verbosity += 1
        case "u" | "q" | "r":
            say("WARNING", f"Ignored deprecated option -{code}")
        case _ if code.startswith("--"):
            say("WARNING", f"Ignored deprecated option {code}")
        case "P" if len(os.fsencode(value)) > 1:
            raise fatal("-P only takes a single char")
        case "b" | "m" | "o" | "E" | "F" | "P" | "root":
            settings.values[code] = value
        case _:
            settings.flags.add(code)


def absolute(path: str) -> str:
    """A path from the root."""
    return path if path.startswith("/") else f"{os.getcwd()}/{path}"
