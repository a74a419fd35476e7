"""Command line and messages of depmod."""

from __future__ import annotations

import os
import re
import sys

from kmodd.cli.kmod.messages import FEATURES, VERSION, Stop
from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass, field
from kmodd.host.paths import TREES
from kmodd.modfile.depmod_graph import Complaint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

HELP = """\
Usage:
\tdepmod -[aA] [options] [forced_version]

If no arguments (except options) are given, "depmod -a" is assumed

depmod will output a dependency list suitable for the modprobe utility.

Options:
\t-a, --all            Probe all modules
\t-A, --quick          Only does the work if there's a new module
\t-e, --errsyms        Report not supplied symbols
\t-n, --show           Write the dependency file on stdout only
\t-P, --symbol-prefix  Architecture symbol prefix
\t-C, --config=PATH    Read configuration from PATH
\t-v, --verbose        Enable verbose mode
\t-w, --warn           Warn on duplicates
\t-V, --version        show version
\t-h, --help           show this help

The following options are useful for people managing distributions:
\t-b, --basedir=DIR    Root path (default: /).
\t-m, --moduledir=DIR  Module directory (default: /lib/modules).
\t-o, --outdir=DIR     Output root path (default: same as <basedir>).
\t-F, --filesyms=FILE  Use the file instead of the
\t                     current kernel symbols.
\t-E, --symvers=FILE   Use Module.symvers file to check
\t                     symbol versions."""
"""Output of `depmod -h` of kmod 34.2."""

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


@dataclass(slots=True)
class DepmodOptions:
    """Parsed command line of depmod."""

    flags: set[str] = field(default_factory=set)
    """Codes of options without a value."""
    values: dict[str, str] = field(default_factory=dict)
    """Code → last value, of options with a value."""
    config_paths: list[str] = field(default_factory=list)
    release: str = ""
    files: list[str] = field(default_factory=list)
    verbosity: int = 0
    directory: str = ""
    """Module directory, without `root`, as in messages."""
    out_directory: str = ""
    """Directory of the index files, without `root`."""

    @property
    def root(self) -> str:
        """Prefix of every path that is opened, never printed (`--root`)."""
        return self.values.get("root", "").rstrip("/")

    @property
    def prefix(self) -> bytes:
        """Prefix of symbols (`-P`)."""
        return os.fsencode(self.values.get("P", ""))

    @property
    def is_dry(self) -> bool:
        """Whether the text files are only printed (`-n`)."""
        return "n" in self.flags


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def say(level: str, text: str) -> None:
    """Print a message to standard error."""
    sys.stdout.flush()
    sys.stderr.buffer.write(os.fsencode(f"depmod: {level}: {text}\n"))
    sys.stderr.flush()


def complain(complaints: Iterable[Complaint]) -> None:
    """Print several messages to standard error."""
    for complaint in complaints:
        say(complaint.level, complaint.text)


def fatal(text: str) -> Stop:
    """Print a FATAL message and return the exception to raise."""
    say("FATAL", text)
    return Stop(1)


def reason(error: OSError) -> str:
    """Return the text of an error as strerror(3) has it."""
    return os.strerror(error.errno) if error.errno else str(error)


# ── command line ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read_options(words: list[str]) -> DepmodOptions:
    """Parse the command line. Raises Stop for -V, -h, and after a message for invalid options."""
    options = DepmodOptions()
    parser = Options(words, _SHORT, _LONG, ("unresolved-error", "quiet", "map", "root", "no-cache"))
    try:
        for code, value in parser:
            _take(code, value, options)
    except OptionError as error:
        sys.stderr.write(f"depmod: {error}\n")
        raise Stop(1) from None
    if parser.operands:
        options.release, *options.files = parser.operands
        if not re.match(r"\s*[+-]?\d+\.\s*[+-]?\d", options.release):
            say("ERROR", f"Bad version passed {options.release}")
            raise Stop(1)
    else:
        options.release = os.uname().release
    base = absolute(options.values["b"]) if "b" in options.values else ""
    out = absolute(options.values["o"]) if "o" in options.values else base
    trees = [options.values["m"]] if "m" in options.values else TREES
    present = (tree for tree in trees if os.path.isdir(f"{options.root}{base}/{tree.lstrip('/')}/{options.release}"))
    modules = next(present, trees[0]).lstrip("/")
    options.directory = f"{base}/{modules}/{options.release}"
    options.out_directory = f"{out}/{modules}/{options.release}"
    return options


def _take(code: str, value: str, options: DepmodOptions) -> None:
    match code:
        case "V":
            print(f"{VERSION}\n{FEATURES}")
            raise Stop(0)
        case "h":
            print(HELP)
            raise Stop(0)
        case "C":
            options.config_paths.append(value)
        case "v":
            options.verbosity += 1
        case "u" | "q" | "r":
            say("WARNING", f"Ignored deprecated option -{code}")
        case _ if code.startswith("--"):
            say("WARNING", f"Ignored deprecated option {code}")
        case "P" if len(os.fsencode(value)) != 1:
            raise fatal("-P only takes a single char")
        case "b" | "m" | "o" | "E" | "F" | "P" | "root":
            options.values[code] = value
        case _:
            options.flags.add(code)


def absolute(path: str) -> str:
    """Return a path as an absolute one, not normalized."""
    return path if path.startswith("/") else f"{os.getcwd()}/{path}"
