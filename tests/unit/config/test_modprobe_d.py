"""modprobe.d(5), sentence by sentence: each test quotes the sentence that it is about. Then kmod's own rules."""

from __future__ import annotations

import pytest

from kmodd.config.modprobe_d import (
    Alias,
    Blacklist,
    Command,
    ConfFile,
    Config,
    Extensions,
    Options,
    Softdep,
    Weakdep,
    dump,
    merge,
    ordered,
    parse,
    parse_file,
)
from kmodd.errors import Where
from kmodd.names import ModuleName as Name

PATH = "/etc/modprobe.d/a.conf"


def read(text: str) -> Config:
    return parse_file(ConfFile(PATH, text))


def at(line: int) -> Where:
    return Where(PATH, line)


def only_problem(config: Config) -> tuple[str, int, str, str]:
    (problem,) = config.problems
    return str(problem.at), problem.column, problem.source, problem.expected


# ── the files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_files_that_end_in_conf() -> None:
    """ "All files underneath the /etc/modprobe.d directory which end with the .conf extension" """
    names = ["b.conf", "a.conf", "x.alias", "c.conf~", "README", "d.conf.dpkg-old", ".conf", ".hidden.conf", "conf"]
    assert ordered([("/etc/modprobe.d", names)]) == ("/etc/modprobe.d/a.conf", "/etc/modprobe.d/b.conf")


def test_the_four_directories_of_the_synopsis() -> None:
    """ "Once a file of a given filename is loaded, any file of the same name in subsequent directories is ignored" """
    directories = [
        ("/etc/modprobe.d", ["mine.conf", "both.conf"]),
        ("/run/modprobe.d", ["run.conf", "both.conf"]),
        ("/usr/local/lib/modprobe.d", ["both.conf"]),
        ("/lib/modprobe.d", ["aliases.conf", "both.conf"]),
    ]
    assert ordered(directories) == (
        "/lib/modprobe.d/aliases.conf",
        "/etc/modprobe.d/both.conf",
        "/etc/modprobe.d/mine.conf",
        "/run/modprobe.d/run.conf",
    )


def test_an_empty_file_masks() -> None:
    """ "Configuration files can either be completely replaced (by having a new configuration file with the same name in
    a directory of higher priority)", even by an empty one."""
    text = {"/etc/modprobe.d/x.conf": "", "/lib/modprobe.d/x.conf": "blacklist floppy"}
    paths = ordered([("/etc/modprobe.d", ["x.conf"]), ("/lib/modprobe.d", ["x.conf"])])
    assert parse(ConfFile(path, text[path]) for path in paths) == Config()


def test_a_later_file_replaces_a_part() -> None:
    """ "or partially replaced (by having a configuration file that is ordered later)": the last value counts."""
    text = {"/etc/modprobe.d/a.conf": "options m x=1 y=1", "/lib/modprobe.d/b.conf": "options m x=2"}
    paths = ordered([("/etc/modprobe.d", ["a.conf"]), ("/lib/modprobe.d", ["b.conf"])])
    config = parse(ConfFile(path, text[path]) for path in paths)
    assert [entry.text for entry in config.options] == ["x=1 y=1", "x=2"]


def test_order_is_that_of_strcmp() -> None:
    """ "All configuration files are sorted in lexicographic order, regardless of the directory they reside in":
    conf_files_insert_sorted compares base names with strcmp: bytes, not letters, across directories."""
    names = ["b.conf", "Z.conf", "a.conf", "ä.conf", "a-b.conf", "a.b.conf", "10.conf", "9.conf"]
    order = ["10.conf", "9.conf", "Z.conf", "a-b.conf", "a.b.conf", "a.conf", "b.conf", "ä.conf"]
    assert ordered([("/d", names)]) == tuple(f"/d/{name}" for name in order)
    assert ordered([("/d", ["z.conf"]), ("/e", ["a.conf"])]) == ("/e/a.conf", "/d/z.conf")


def test_modules_softdep_takes_part_in_the_order() -> None:
    """depmod's files of the kernel directory are sorted in under their own names, and cannot be masked."""
    kernel = "/lib/modules/6.1"
    places: list[tuple[str, list[str]] | str] = [
        f"{kernel}/modules.softdep",
        f"{kernel}/modules.weakdep",
        ("/etc/modprobe.d", ["z.conf", "a.conf", "modules.softdep", "modules.conf"]),
    ]
    assert ordered(places) == (
        "/etc/modprobe.d/a.conf",
        "/etc/modprobe.d/modules.conf",
        f"{kernel}/modules.softdep",
        f"{kernel}/modules.weakdep",
        "/etc/modprobe.d/z.conf",
    )


def test_single_files_take_part_under_their_base_name() -> None:
    """`-C FILE`: any suffix; of two with one base name the first wins; the order is not that of the options."""
    assert ordered(["x/b.txt", "y/a", "z/b.txt", ("d", ["aa.conf"])]) == ("y/a", "d/aa.conf", "x/b.txt")


# ── the format ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dash_and_underscore_are_one() -> None:
    """ "both are interchangeable throughout all the module commands as underscore conversion happens automatically" """
    config = read(
        "alias my-mod really-long\nblacklist a-b\noptions a-b x-y=1\n"
        "install a-b c-d\nremove a-b c-d\nsoftdep a-b pre: c-d\n"
    )
    assert config.aliases == (Alias("my_mod", Name("really_long"), at(1)),)
    assert config.blacklist == (Blacklist(Name("a_b"), at(2)),)
    assert config.options == (Options("a_b", "x-y=1", at(3)),)
    assert config.installs == (Command("a_b", "c-d", at(4)),)
    assert config.removes == (Command("a_b", "c-d", at(5)),)
    assert config.softdeps == (Softdep("a_b", ("c-d",), (), at(6), "pre: c-d"),)


def test_dashes_in_brackets_are_ranges() -> None:
    """kmod `underscores`: within [ ] a dash stays."""
    assert read("alias pci-[a-f]-[!0-9] x[-]y-z").aliases == (Alias("pci_[a-f]_[!0-9]", Name("x[-]y_z"), at(1)),)


def test_one_command_per_line() -> None:
    """ "The format of files under modprobe.d is simple: one command per line" """
    config = read("blacklist a\nblacklist b blacklist c\n")
    assert [entry.module for entry in config.blacklist] == ["a", "b"]


def test_blank_lines_and_comments() -> None:
    """ "with blank lines and lines starting with '#' ignored (useful for adding comments)" """
    assert read("\n   \n\t\n# a comment\n#blacklist a\n\n") == Config()


def test_a_comment_starts_the_line() -> None:
    """An indented # is a bad line, a trailing one a word like any other."""
    config = read("  # indented\nblacklist a # trailing\noptions a b=1 # c\n")
    assert only_problem(config)[:2] == (f"{PATH}:1", 3)
    assert config.blacklist == (Blacklist(Name("a"), at(2)),)
    assert config.options == (Options("a", "b=1 # c", at(3)),)


def test_backslash_continues() -> None:
    r""" "A '\' at the end of a line causes it to continue on the next line, which makes the file a bit neater." """
    config = read("options a \\\n  b=1 \\\n  c=2\nblack\\\nlist x\n")
    assert config.options == (Options("a", "  b=1   c=2", at(1)),)
    assert config.blacklist == (Blacklist(Name("x"), at(4)),)


def test_backslash_elsewhere_is_dropped() -> None:
    r"""freadline_wrapped: `\x` is `x`, `\\` is one backslash; a comment continues too; a last one is dropped."""
    config = read("install a echo \\\\ \\n\n# comment \\\nblacklist swallowed\nblacklist b\\")
    assert config.installs == (Command("a", "echo \\ n", at(1)),)
    assert config.blacklist == (Blacklist(Name("b"), at(4)),)


def test_nul_ends_a_line() -> None:
    """A C string ends at its NUL."""
    assert read("blacklist a\0b\n\0blacklist c\nblacklist d").blacklist == (
        Blacklist(Name("a"), at(1)),
        Blacklist(Name("d"), at(3)),
    )


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_alias() -> None:
    """ "alias my-mod really_long_modulename" means you can use "modprobe my-mod" """
    assert read("alias my-mod really_long_modulename").aliases == (
        Alias("my_mod", Name("really_long_modulename"), at(1)),
    )


def test_alias_with_wildcards() -> None:
    """ "You can also use shell-style wildcards" """
    assert read("alias my-mod* really_long_modulename").aliases[0].pattern == "my_mod*"


def test_alias_of_an_alias_stays_what_it_says() -> None:
    """ "You can't have aliases to other aliases (that way lies madness)" """
    assert [alias.module for alias in read("alias a b\nalias b c").aliases] == ["b", "c"]


def test_aliases_can_have_options() -> None:
    """ "but aliases can have options, which will be added to any other options." """
    config = read("alias my* real\noptions my* x=1\noptions real y=2")
    assert [(options.module, options.text) for options in config.options] == [("my*", "x=1"), ("real", "y=2")]


def test_all_aliases_of_one_name_count() -> None:
    """Aliases are a list: "All hits are acted on, in order"."""
    assert [alias.module for alias in read("alias a x\nalias a y").aliases] == ["x", "y"]


def test_blacklist() -> None:
    """ "all of that particular module's internal aliases are to be ignored" """
    assert read("blacklist floppy").blacklist == (Blacklist(Name("floppy"), at(1)),)


def test_install() -> None:
    """ "This command instructs modprobe to run your command instead of inserting the module in the kernel" """
    command = "/sbin/modprobe barney; /sbin/modprobe --ignore-install fred"
    assert read(f"install fred {command}").installs == (Command("fred", command, at(1)),)


def test_install_can_be_any_shell_command() -> None:
    """ "The command can be any shell command: this allows you to do any kind of complex processing you might wish." """
    command = '  if [ -e /x ]; then\techo "a  b"; fi # y '
    assert read(f"install fred {command}").installs[0].command == command


def test_cmdline_opts_stays_for_the_loader() -> None:
    """ "If you use the string "$CMDLINE_OPTS" in the command, it will be replaced" """
    assert read("install fred x $CMDLINE_OPTS").installs[0].command == "x $CMDLINE_OPTS"


def test_options() -> None:
    """ "This command allows you to add options to the module modulename (which might be an alias)" """
    assert read("options fred a=1 b").options == (Options("fred", "a=1 b", at(1)),)


def test_options_are_added_together() -> None:
    """ "All options are added together: they can come from an option for the module itself, for an alias, and on the
    command line." """
    config = read("options a x=1\noptions a y=2\noptions a x=3")
    assert [options.text for options in config.options] == ["x=1", "y=2", "x=3"]


def test_tabs_in_options_become_blanks() -> None:
    """kmod_config_add_options; one separator behind the name is used up, the others stay."""
    assert read("options\ta\t\tx=1\ty=2 ").options == (Options("a", " x=1 y=2 ", at(1)),)


def test_remove() -> None:
    """ "This is similar to the install command above, except it is invoked when "modprobe -r" is run." """
    assert read("remove fred echo bye").removes == (Command("fred", "echo bye", at(1)),)


def test_softdep() -> None:
    """ "Assume "softdep c pre: a b post: d e" is provided in the configuration." """
    assert read("softdep c pre: a b post: d e").softdeps == (
        Softdep("c", ("a", "b"), ("d", "e"), at(1), "pre: a b post: d e"),
    )


def test_softdep_names_may_be_aliases() -> None:
    """ "pre-deps and post-deps modules are lists of names and/or aliases of other modules" (kept as written)"""
    assert read("softdep c post: pci:v* crypto-sha256 pre: x").softdeps[0].post == ("pci:v*", "crypto-sha256")


@pytest.mark.parametrize(
    ("text", "pre", "post"),
    [
        ("a b", (), ()),
        ("a pre: b", ("b",), ()),
        ("pre: a post: b pre: c post: d", ("a", "c"), ("b", "d")),
        ("pre:", (), ()),
        ("pre: post: a", (), ("a",)),
        ("pre:a", (), ()),
        ("PRE: a", (), ()),
        (" pre: a post: b", (), ("b",)),  # exactly one blank too many: kmod does not see the section
        ("  pre: a post: b", ("a",), ("b",)),
        ("pre:\va\fpost:\rb", ("a",), ("b",)),  # isspace(3)
    ],
)
def test_softdep_sections(text: str, pre: tuple[str, ...], post: tuple[str, ...]) -> None:
    """kmod_config_add_softdep: words before a section are dropped, sections may repeat and interleave."""
    assert read(f"softdep c {text}").softdeps == (Softdep("c", pre, post, at(1), text),)


def test_install_and_softdep_of_one_module_are_both_kept() -> None:
    """ "Note: if there are install or remove commands with the same modulename argument, softdep takes precedence."
    That is for the planner to say: here both stand."""
    config = read("install a b\nsoftdep a pre: c")
    assert len(config.installs) == len(config.softdeps) == 1


def test_weakdep() -> None:
    """ "The weakdep command allows you to specify weak module dependencies"; the names are kept as written."""
    assert read("weakdep a-b c-d  e").weakdeps == (Weakdep("a_b", ("c-d", "e"), at(1)),)


# ── bad lines ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "column", "expected"),
    [
        ("frobnicate x", 1, "alias, blacklist"),
        ("Blacklist x", 1, "alias, blacklist"),
        ("  # x", 3, "alias, blacklist"),
        ("alias", 6, "an alias pattern"),
        ("alias a", 8, "a module's name"),
        ("alias a[b c", 8, "matching brackets"),
        ("alias ab a]b", 11, "matching brackets"),
        ("blacklist", 10, "a module's name"),
        ("options a", 10, "options"),
        ("options a ", 11, "options"),
        ("install a", 10, "a shell command"),
        ("remove", 7, "a module's name"),
        ("softdep a", 10, "`pre:` or `post:`"),
        ("weakdep a ", 11, "modules"),
        ("  include /etc/x", 3, "deprecated"),
        ("config /etc/x", 1, "deprecated"),
    ],
)
def test_bad_line(line: str, column: int, expected: str) -> None:
    """File, line, the column of the caret, what was expected; "the other lines count"."""
    config = read(f"blacklist first\n{line}\nblacklist last\n")
    place, found_column, source, text = only_problem(config)
    assert (place, found_column, source) == (f"{PATH}:2", column, line)
    assert expected in text
    assert [entry.module for entry in config.blacklist] == ["first", "last"]


def test_caret_of_a_continued_line() -> None:
    """A problem names the physical line where it stands; a good line is named by its first."""
    config = read("alias foo \\\n   b\\a]r\nblacklist \\\n x\n")
    (problem,) = config.problems
    assert (problem.at.line, problem.source) == (2, "   b\\a]r")
    assert problem.with_caret().splitlines()[-1].index("^") == problem.with_caret().splitlines()[-2].index("]")
    assert config.blacklist == (Blacklist(Name("x"), at(3)),)


def test_complaints_are_kmods() -> None:
    """As kmod's: with the number of the last physical line."""
    source = "libkmod: ERROR: kmod_config_parse"
    assert read("blacklist a\nfoo \\\nbar\ninclude x\n").complaints == (
        f"{source}: {PATH} line 3: ignoring bad line starting with 'foo'",
        f"{source}: {PATH}: command include is deprecated and not parsed anymore",
    )


# ── several files, and -c ────────────────────────────────────────────────────────────────────────────────────────────


def test_files_are_read_in_their_order() -> None:
    files = [ConfFile("b", "blacklist x\nbad"), ConfFile("a", "blacklist y\nalias p q")]
    config = parse(files, Extensions(softdeps_add_up=True))
    assert config.blacklist == (Blacklist(Name("x"), Where("b", 1)), Blacklist(Name("y"), Where("a", 1)))
    assert [str(problem.at) for problem in config.problems] == ["b:2"]
    assert config.extensions.softdeps_add_up
    assert merge([]) == Config()


def test_beyond_is_off_unless_asked_for() -> None:
    assert read("blacklist a").extensions == Extensions(False, False, False, False, False)


def test_dump() -> None:
    """The kinds in kmod's order; a softdep has no blank before `post:`, and names what stands between."""
    text = (
        "weakdep a  b c\nsoftdep s pre: a post: b pre: c post: d\nsoftdep t post: x\nsoftdep u y\noptions o p=1\t q\n"
        "alias a-1 b-1\nremove r echo\ninstall i  echo\nblacklist b-2\n"
    )
    assert dump(read(text)) == (
        "blacklist b_2\ninstall i  echo\nremove r echo\nalias a_1 b_1\noptions o p=1  q\n"
        "softdep s pre: a b cpost: b c d\nsoftdep t post: x\nsoftdep u \nweakdep a  b c\n"
    )
