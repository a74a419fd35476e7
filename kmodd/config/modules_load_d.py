"""Parse modules-load.d(5), and list the modules to load at boot with those of the kernel command line.

The rules are those of systemd-modules-load. /etc/modules is read as on Debian: through the link
/etc/modules-load.d/modules.conf; if no directory has a `modules.conf`, directly, with the position of that name.

Lines have no module parameters, neither in modules-load.d(5) nor in Debian's modules(5) ("Options can only be specified
using modprobe.d configuration files"). Debian's old init script passed words after the name as parameters. Such a line
is a Problem and its module is not loaded, as with systemd: to load it without its parameters would be a third meaning.
"""

from __future__ import annotations

from kmodd.config import cmdline, modprobe_d
from kmodd.config.cmdline import EMPTY, CommandLine
from kmodd.config.modprobe_d import ConfFile
from kmodd.dataclass import dataclass
from kmodd.errors import Problem, Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ETC_MODULES = "/etc/modules"
_ETC_MODULES_LINK = "modules.conf"
_BLANKS = " \t"


@dataclass(frozen=True, slots=True)
class BootModule:
    """A module or alias to load at boot."""

    name: str
    """As written."""
    at: Where
    """Position of its first occurrence."""


@dataclass(frozen=True, slots=True)
class BootList:
    """The modules to load at boot, in order, each name once."""

    modules: tuple[BootModule, ...] = ()
    problems: tuple[Problem, ...] = ()


def ordered(files_by_directory: Iterable[tuple[str, Iterable[str]]], etc_modules: bool = False) -> tuple[str, ...]:
    """Return the paths of the files to read, in order.

    files_by_directory: directories, highest priority first, with the base names of their files. etc_modules: whether
    /etc/modules exists.
    "Files in /etc/ override files with the same name", sorted "regardless of which of the directories they reside in".
    """
    directories = [(directory, tuple(names)) for directory, names in files_by_directory]
    if etc_modules:
        parent, _, _ = ETC_MODULES.rpartition("/")
        directories.append((parent, (_ETC_MODULES_LINK,)))
    paths = modprobe_d.ordered(directories, suffixes=(".conf",))
    stand_in = f"/etc/{_ETC_MODULES_LINK}"
    return tuple(ETC_MODULES if etc_modules and path == stand_in else path for path in paths)


def parse(files: Iterable[ConfFile], command_line: CommandLine = EMPTY) -> BootList:
    """Return the modules of the command line, then those of the files. Raises nothing; invalid lines are problems."""
    modules = [BootModule(name, Where(cmdline.PATH, 1)) for name in command_line.modules_load]
    problems: list[Problem] = []
    for file in files:
        for entry in _entries(file):
            if isinstance(entry, Problem):
                problems.append(entry)
            else:
                modules.append(entry)
    first: dict[str, BootModule] = {}
    for module in modules:
        first.setdefault(module.name, module)
    return BootList(tuple(first.values()), tuple(problems))


def _entries(file: ConfFile) -> Iterator[BootModule | Problem]:
    if "\0" in file.text:
        number = len(_lines(file.text.partition("\0")[0]))
        expected = "NUL bytes in place of a module's name; restore the file, which may be damaged"
        yield Problem(Where(file.path, number), 0, "", expected, "nul")
    for number, line in enumerate(_lines(file.text), start=1):
        name = line.strip(_BLANKS)
        # "Empty lines and lines whose first non-whitespace character is # or ; are ignored."
        if not name or name[0] in "#;":
            continue
        at = Where(file.path, number)
        word = name.partition(" ")[0].partition("\t")[0]
        if surplus := name.removeprefix(word).lstrip(_BLANKS):
            column = line.index(name) + len(name) - len(surplus) + 1
            expected = "expected nothing after the module's name; options belong in modprobe.d"
            yield Problem(at, column, line, expected, "boot")
        else:
            yield BootModule(name, at)


def _lines(text: str) -> list[str]:
    """Split a text at LF, CR LF, CR and NUL."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\n").split("\n")
