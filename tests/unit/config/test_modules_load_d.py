"""modules-load.d(5), /etc/modules and `modules_load=`."""

from __future__ import annotations

from kmodd.config import cmdline
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.modules_load_d import BootList, BootModule, ordered, parse
from kmodd.errors import Where

DIRECTORIES = tuple(f"{parent}/modules-load.d" for parent in ("/etc", "/run", "/usr/local/lib", "/usr/lib"))


def read(text: str) -> BootList:
    return parse([ConfFile("/etc/modules", text)])


def names(boot_list: BootList) -> list[str]:
    return [module.name for module in boot_list.modules]


def test_a_list_of_names() -> None:
    """ "a list of kernel module names to load, separated by newlines" """
    assert read("a\n b-c \t\n\nd").modules == (
        BootModule("a", Where("/etc/modules", 1)),
        BootModule("b-c", Where("/etc/modules", 2)),
        BootModule("d", Where("/etc/modules", 4)),
    )


def test_comments() -> None:
    """ "Empty lines and lines whose first non-whitespace character is # or ; are ignored." """
    boot_list = read("# x\n  ; y\n\t#z\n;w\n\n  \na\n")
    assert names(boot_list) == ["a"]
    assert boot_list.problems == ()


def test_ends_of_lines() -> None:
    """systemd's read_line takes LF, CR LF, CR and NUL for the end of a line."""
    assert names(read("a\r\nb\rc\0d\n")) == ["a", "b", "c", "d"]


def test_directories_and_masking() -> None:
    """ "Files in /etc/ override files with the same name in /run/, /usr/local/lib/, and /lib/"; sorted;
    "Files must have the ".conf" extension"."""
    etc, run = ["10.conf", "b.conf", "x.alias", ".c.conf"], ["b.conf", "9.conf"]
    local, vendor = ["b.conf"], ["a.conf", "10.conf", "README"]
    assert ordered(zip(DIRECTORIES, [etc, run, local, vendor], strict=True)) == (
        "/etc/modules-load.d/10.conf",
        "/run/modules-load.d/9.conf",
        "/usr/lib/modules-load.d/a.conf",
        "/etc/modules-load.d/b.conf",
    )


def test_etc_modules_through_its_link() -> None:
    """Debian has /etc/modules-load.d/modules.conf as a link to /etc/modules: it is not read twice."""
    assert ordered([(DIRECTORIES[0], ["modules.conf"])], etc_modules=True) == ("/etc/modules-load.d/modules.conf",)


def test_etc_modules_without_a_link() -> None:
    """By itself it takes the place of modules.conf in the order, and any modules.conf hides it."""
    assert ordered([(DIRECTORIES[0], ["a.conf", "z.conf"])], etc_modules=True) == (
        "/etc/modules-load.d/a.conf",
        "/etc/modules",
        "/etc/modules-load.d/z.conf",
    )
    assert ordered([(DIRECTORIES[3], ["modules.conf"])], etc_modules=True) == ("/usr/lib/modules-load.d/modules.conf",)
    assert ordered([]) == ()


def test_words_behind_a_name_are_a_problem() -> None:
    """modules(5): "Options can only be specified using modprobe.d configuration files." The other lines count."""
    boot_list = read("a\n  ne io=0x300 irq=5\nb\n")
    assert names(boot_list) == ["a", "b"]
    (problem,) = boot_list.problems
    assert (problem.at, problem.column, problem.source) == (Where("/etc/modules", 2), 6, "  ne io=0x300 irq=5")


def test_the_command_line_has_precedence() -> None:
    """modules_load= first, then the files; a name listed twice is loaded once, where it stands first."""
    files = [ConfFile("x", "c\na\n"), ConfFile("y", "b\nc\n")]
    boot_list = parse(files, cmdline.parse("modules_load=a,z"))
    assert [(module.name, str(module.at)) for module in boot_list.modules] == [
        ("a", "/proc/cmdline:1"),
        ("z", "/proc/cmdline:1"),
        ("c", "x:1"),
        ("b", "y:1"),
    ]


def test_aliases_stay_as_written() -> None:
    """One module or alias a line, looked up like any other request."""
    assert names(read("pci:v00008086d*\nfs-iso9660\n")) == ["pci:v00008086d*", "fs-iso9660"]
