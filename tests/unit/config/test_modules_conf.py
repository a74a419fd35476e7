"""modules.conf of kerneld and modutils, converted to modprobe.d."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.cli import convert_config
from kmodd.config.modprobe_d import Alias, ConfFile, Options, parse_file
from kmodd.config.modules_conf import Conversion, convert
from kmodd.errors import Where
from kmodd.names import ModuleName

FIXTURES = Path(__file__).parents[3] / "fixtures" / "conf"
OLD = sorted(path for path in FIXTURES.glob("*/*") if path.name in ("conf.modules", "modules.conf"))


def read(*lines: str) -> Conversion:
    return convert(ConfFile("modules.conf", "".join(line + "\n" for line in lines)))


def lines(*old: str) -> list[str]:
    """The lines that come out where nothing is without an equivalent."""
    converted = read(*old)
    assert converted.problems == ()
    return converted.text.splitlines()


def messages(*old: str) -> list[str]:
    return [str(problem) for problem in read(*old).problems]


# ── the examples of the documents ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parent.name)
def test_fixtures(path: Path) -> None:
    """Each file, its equivalent, and the messages about the rest."""
    converted = convert(ConfFile(path.name, path.read_text()))
    assert converted.text == (path.parent / "expected.conf").read_text()
    said = "".join(f"{problem}\n" for problem in converted.problems)
    assert said == (path.parent / "expected.messages").read_text()
    assert parse_file(ConfFile("x", converted.text)).problems == ()


@pytest.mark.parametrize(
    ("line", "pattern", "module"),
    [
        ("alias char-major-27 ftape", "char_major_27", "ftape"),
        ("alias eth0 ne", "eth0", "ne"),
        ("alias binfmt-267 binfmt_aout", "binfmt_267", "binfmt_aout"),
        ("alias tty-ldisc-3 bsd_comp", "tty_ldisc_3", "bsd_comp"),
        ("alias ppp0 bsd_comp", "ppp0", "bsd_comp"),
        ("alias net-pf-4 ipx", "net_pf_4", "ipx"),
        ("alias net-pf-5 appletalk", "net_pf_5", "appletalk"),
        ("alias iso9660 isofs", "iso9660", "isofs"),
        ("alias char-major-10-30 softdog", "char_major_10_30", "softdog"),
    ],
)
def test_mini_howto(line: str, pattern: str, module: str) -> None:
    """The kerneld mini-HOWTO's names: the line stays, and means the same to modprobe."""
    assert lines(line) == [line]
    (alias,) = parse_file(ConfFile("x", line)).aliases
    assert (alias.pattern, alias.module) == (pattern, module)


def test_ne_with_irq_5_as_eth0() -> None:
    text = read("alias eth0 ne", "options ne irq=5").text
    config = parse_file(ConfFile("x", text))
    assert config.aliases == (Alias("eth0", ModuleName("ne"), Where("x", 1)),)
    assert config.options == (Options("ne", "irq=5", Where("x", 2)),)


# ── directives ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("word", ["off", "null"])
def test_alias_off(word: str) -> None:
    assert lines(f"alias block-major-13 {word}") == ["install block-major-13 /bin/true"]


def test_other_lines_of_a_name_that_is_off_are_unused() -> None:
    assert messages("alias x off", "post-install x y", "options x a=1") == [
        "modules.conf:2:1: never used: x is off",
        "modules.conf:3:1: never used: x is off",
    ]


def test_later_alias_replaces_the_earlier() -> None:
    converted = read("alias eth0 a", "alias eth0 b")
    assert converted.text == "alias eth0 b\n"
    assert [str(problem) for problem in converted.problems] == ["modules.conf:1:1: replaced by line 2"]


def test_alias_of_an_alias() -> None:
    """modutils followed it, kmod does not."""
    converted = read("alias block-major-8 scsi_hostadapter", "alias scsi-hostadapter aic7xxx")
    assert converted.text == "alias block-major-8 aic7xxx\nalias scsi-hostadapter aic7xxx\n"
    assert "an alias of an alias" in str(converted.problems[0])
    assert lines("alias x x") == ["alias x x"]
    assert len(messages("alias a b", "alias b a")) == 2
    assert read("alias a b", "alias b off").text == "install a /bin/true\ninstall b /bin/true\n"


def test_options_replace_unless_added() -> None:
    assert lines("options a x=1", "add options a y=2") == ["options a x=1", "options a y=2"]
    assert read("options a x=1", "options a y=2").text == "options a y=2\n"
    assert lines("options -k a x=1") == ["options a x=1"]


def test_options_for_insmod() -> None:
    converted = read("options eth1 -o ne1 -k io=0x320")
    assert converted.text == "options eth1 io=0x320\n"
    assert len(converted.problems) == 2


def test_above_and_below_are_softdeps() -> None:
    """One line, as kmod takes only the first of a module: below is loaded before, above after."""
    assert lines("above a x y", "below a z", "add above a w") == ["softdep a pre: z post: x y w"]


def test_hooks() -> None:
    load = "/sbin/modprobe --ignore-install foo $CMDLINE_OPTS"
    unload = "/sbin/modprobe -r --ignore-remove foo"
    assert lines("pre-install foo a b") == [f"install foo {{ a b; }} && {load}"]
    assert lines("post-install foo a; b;") == [f"install foo {load} && {{ a; b; }}"]
    assert lines("pre-install foo a &", "post-install foo b") == [f"install foo {{ a & }} && {load} && {{ b; }}"]
    assert lines("install foo a && b") == ["install foo a && b"]
    assert lines("install foo a", "post-install foo b") == ["install foo { a; } && { b; }"]
    assert lines("pre-remove foo a") == [f"remove foo {{ a; }} && {unload}"]
    assert lines("post-remove foo a") == [f"remove foo {unload} && {{ a; }}"]
    assert lines("remove foo a") == ["remove foo a"]


def test_hooks_of_an_alias() -> None:
    """kmod looks up an alias before an install line of the same name, so there is no alias line."""
    assert lines("alias sound-slot-0 maestro3", "post-install sound-slot-0 /usr/bin/mixer --load || :") == [
        "install sound-slot-0 /sbin/modprobe maestro3 $CMDLINE_OPTS && { /usr/bin/mixer --load || :; }",
        "remove sound-slot-0 /sbin/modprobe -r maestro3",
    ]
    assert lines("alias sound es1370", "pre-remove sound /bin/save", "options sound x=1") == [
        "options sound x=1",
        "install sound /sbin/modprobe es1370 $CMDLINE_OPTS",
        "remove sound { /bin/save; } && /sbin/modprobe -r es1370",
    ]
    assert lines("alias eth0 ne", "below eth0 8390", "above eth0 x") == [
        "install eth0 /sbin/modprobe -qa 8390; /sbin/modprobe ne $CMDLINE_OPTS && { /sbin/modprobe -qa x || :; }",
        "remove eth0 /sbin/modprobe -r ne",
    ]


def test_an_alias_of_an_alias_with_hooks() -> None:
    """The name with the hooks is an install line, to which an alias leads."""
    assert lines("alias char-major-14 sound-slot-0", "alias sound-slot-0 sb", "post-install sound-slot-0 x") == [
        "alias char-major-14 sound-slot-0",
        "install sound-slot-0 /sbin/modprobe sb $CMDLINE_OPTS && { x; }",
        "remove sound-slot-0 /sbin/modprobe -r sb",
    ]


def test_an_alias_with_its_own_install_command() -> None:
    converted = read("alias x y", "install x z")
    assert converted.text == "install x z\nremove x /sbin/modprobe -r y\n"
    assert [str(problem) for problem in converted.problems] == [
        "modules.conf:1:1: not used: the name has commands of its own"
    ]


def test_hooks_and_softdeps_of_one_module() -> None:
    """A softdep would disable the install line (kmod issue 446), so the line does its work."""
    assert lines("below a b", "above a c", "pre-install a x") == [
        "install a /sbin/modprobe -qa b; { x; } && /sbin/modprobe --ignore-install a $CMDLINE_OPTS"
        " && { /sbin/modprobe -qa c || :; }"
    ]


@pytest.mark.parametrize(
    ("old", "status"),
    [
        ("probe x true false", 0),
        ("probe x false true", 0),
        ("probe x false false", 1),
        ("probeall x false true", 0),
        ("probeall x true false", 0),
        ("probeall x false false", 1),
    ],
)
def test_probe_and_probeall(old: str, status: int) -> None:
    """probe: the first that can be loaded; probeall: all of them, and one is enough."""
    install, remove = lines(old)
    command = install.removeprefix("install x ").replace("/sbin/modprobe ", "")
    assert subprocess.run(["sh", "-c", command], check=False).returncode == status
    assert remove == f"remove x /sbin/modprobe -ra {' '.join(reversed(old.split()[2:]))}"


def test_comment_and_continuation() -> None:
    """ "all text on a line after a '#'" is ignored; a line "may be continued by ending the line with a '\\'"."""
    assert lines("# x \\", "alias a b # c", "options a \\", "  x=1 \\", "  y=2", "", "  alias c d") == [
        "alias a b",
        "options a x=1    y=2",
        "alias c d",
    ]


def test_backslashes_survive() -> None:
    """modprobe.d takes a backslash away."""
    text = read("install a printf 'x\\ty'").text
    assert parse_file(ConfFile("x", text)).installs[0].command == "printf 'x\\ty'"


def test_object_files() -> None:
    assert lines("alias usb usb-uhci.o", "below a b.o c.ko") == ["alias usb usb-uhci", "softdep a pre: b c"]


@pytest.mark.parametrize(
    "line",
    [
        "path=/lib/modules/extra",
        "path[misc]=/lib/modules/1.1.5?/misc",
        "path[net] = ~p/mymodules",
        "keep",
        "depfile=/lib/modules/`uname -r`/modules.dep",
        "ieee1394mapfile=/x",
        "include /etc/x",
        "define X y",
        "prune x",
        "insmod_opt=-k",
        "persistdir=/x",
        "options a x=`cat y`",
        "options a x=$Y",
        "alias a[ b",
        "alias /dev/ppp ppp",
        "alias a /lib/x.o",
        "pre-install a]",
        "alias",
        "alias a",
        "above a",
        "install a",
        "frobnicate a",
        "alias=a b",
        "pathx=y",
        "else",
        "endif",
        "add",
    ],
)
def test_no_equivalent(line: str) -> None:
    """Nothing comes out, and the line is named with a reason."""
    converted = read("", line)
    assert converted.text == ""
    (problem,) = converted.problems
    assert (problem.at.line, problem.source) == (2, line)
    assert problem.expected


def test_conditions() -> None:
    """Which branch counts was decided at each run: all of them are named, nothing is guessed."""
    converted = read("if -f /x", "alias a b", "if -k", "alias a c", "endif", "else", "alias a d", "endif", "alias e f")
    assert converted.text == "alias e f\n"
    assert [problem.at.line for problem in converted.problems] == [1, 2, 3, 4, 7]


WORDS = ("pre-install", "install", "post-install", "pre-remove", "remove", "post-remove", "above", "below", "probe")


@pytest.mark.parametrize("alias", ["alias x m", "alias y x", "alias x off", "options x a=1"])
@pytest.mark.parametrize("first", WORDS)
@pytest.mark.parametrize("second", [*WORDS, "probeall"])
def test_no_line_hides_another(alias: str, first: str, second: str) -> None:
    """A name has an alias line or lines that are run, never both: kmod looks up an alias first."""
    for order in ([alias, f"{first} x b", f"{second} x c"], [f"{first} x b", f"{second} x c", alias]):
        config = parse_file(ConfFile("x", read(*order).text))
        aliases = {line.pattern for line in config.aliases}
        assert aliases.isdisjoint(line.pattern for line in (*config.installs, *config.removes))
        assert aliases.isdisjoint(line.pattern for line in config.softdeps)
        assert not config.softdeps or not config.installs


def test_options_of_the_old_modprobe() -> None:
    """kmod's modprobe does not know -k and fails, and with it the module that the line is for."""
    load = "/sbin/modprobe --ignore-install mga $CMDLINE_OPTS"
    for option in ("-k", '"-k"', "'-k'", "-q -k", "--autoclean", "-k -k"):
        kept = " -q" if "-q" in option else ""
        line = f'pre-install mga /sbin/modprobe {option} "agpgart"'
        assert lines(line) == [f'install mga {{ /sbin/modprobe{kept} "agpgart"; }} && {load}']
    assert lines("pre-install mga modprobe agp-k && x -k y") == [
        f"install mga {{ modprobe agp-k && x -k y; }} && {load}"
    ]
    assert messages("pre-install mga modprobe -t net ne") == [
        "modules.conf:1:1: converted, but modprobe has no option -t any more"
    ]


def test_insmod_by_name() -> None:
    """It is converted all the same."""
    converted = read("install a /sbin/insmod -f b; x")
    assert converted.text == "install a /sbin/insmod -f b; x\n"
    assert "path" in str(converted.problems[0])
    assert lines("install a insmod /lib/b.ko", "install b insmod ./b.ko") != []


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_program(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "modules.conf"
    path.write_bytes(b"alias eth0 ne\nkeep\noptions ne x=\xff\n")
    assert convert_config.main([str(path)]) == 0
    sys.stdout.flush()
    out, err = capfdbinary.readouterr()
    assert out == b"alias eth0 ne\noptions ne x=\xff\n"
    assert err.decode() == (
        f"kmodd convert-config: {path}:2:1: there are no default paths to keep;"
        " the tree in /lib/modules/RELEASE is always used\n"
    )


@pytest.mark.parametrize("name", ["missing", ".", "nul\0"])
def test_program_without_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_config.main([f"{tmp_path}/{name}"]) == 1
    assert capsys.readouterr().err.startswith(f"kmodd convert-config: Failed to read {tmp_path}/")


def test_program_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_config.main([]) == 2
    assert "kmodd convert-config" in capsys.readouterr().err
