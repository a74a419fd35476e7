"""The kernel command line as kmod, the kernel and systemd read it."""

from __future__ import annotations

import pytest

from kmodd.config.cmdline import EMPTY, PATH, parse
from kmodd.config.modprobe_d import Blacklist, Extensions, Options
from kmodd.errors import Where
from kmodd.names import ModuleName

AT = Where(PATH, 1)


def options(text: str) -> list[tuple[str, str]]:
    return [(entry.module, entry.text) for entry in parse(text).options]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quiet root=/dev/sda1 ro\n", []),
        ("usbcore.autosuspend=5\n", [("usbcore", "autosuspend=5")]),
        ("snd-hda-intel.power-save=1 quiet", [("snd_hda_intel", "power-save=1")]),
        ("a.b\tc.d\ne.f", [("a", "b"), ("c", "d"), ("e", "f")]),
        ("a.b=1.2.3 c.d=e=f", [("a", "b=1.2.3"), ("c", "d=e=f")]),  # dots in the value are fine
        ("a.b.c=1 root=UUID.x", []),  # a second dot, no dot before the `=`
        ('a"b.c=1 a.b"c=1', []),  # a quote in the name, or in the parameter
        ('a.b="x y" c.d=x" y"z', [("a", 'b="x y"'), ("c", 'd=x" y"z')]),  # quotes in a value stay
        ('"a.b=x y" c.d', [("a", 'b="x y"'), ("c", "d")]),  # what GRUB makes of a.b="x y"
        ('"a.b" c.d', [("c", "d")]),
        ('a.b="x y', []),  # left open
        ("a.b -- c.d=1", [("a", "b"), ("c", "d=1")]),  # a token after `--` is still parsed
        (".b=1 a. a.=", [("", "b=1"), ("a", ""), ("a", "=")]),
        ("p[-]q-r.s-t=u-v", [("p[-]q_r", "s-t=u-v")]),
        ("a.b=1\0c.d=2", [("a", "b=1")]),
        ("\xa0a.b \x1cc.d", [("\xa0a", "b"), ("\x1cc", "d")]),  # only what isspace(3) of the C locale calls so
    ],
)
def test_options(text: str, expected: list[tuple[str, str]]) -> None:
    """kmod_config_parse_kcmdline."""
    assert options(text) == expected


def test_kmod_reads_4095_bytes() -> None:
    """The rest of a longer line is not seen; a token cut in two counts as it is."""
    assert options("x" * 4091 + " a.b=1 c.d=2") == options(" " * 4092 + "a.bcd") == [("a", "b")]
    assert parse("x" * 5000 + " modules_load=a").modules_load == ("a",)


def test_blacklist_keeps_its_dashes() -> None:
    """kmod adds the names of `modprobe.blacklist=` as they are, so one with a dash never matches a module."""
    line = parse("modprobe.blacklist=a-b,c,,d x modprobe.blacklist=e modprobe.blacklist\n")
    assert [entry.module for entry in line.blacklist] == ["a-b", "c", "", "d", "e"]
    assert line.options == (Options("modprobe", "blacklist", AT),)
    assert line.config().blacklist[0] == Blacklist(ModuleName("a-b"), AT)


def test_blacklist_with_dashes_beyond_kmod() -> None:
    """`cmdline_blacklist_dashes`: the names become those of modules."""
    extensions = Extensions(cmdline_blacklist_dashes=True)
    config = parse("modprobe.blacklist=a-b,c x.y-z=1-2").config(extensions)
    assert [entry.module for entry in config.blacklist] == ["a_b", "c"]
    assert config.options[0].text == "y-z=1-2"
    assert config.extensions == extensions


def test_bad_name_is_a_problem() -> None:
    line = parse("ok.a=1 ba-d]x-y.p=2 ok.b=3\n")
    assert [entry.text for entry in line.options] == ["a=1", "b=3"]
    (problem,) = line.problems
    assert (problem.at, problem.column, problem.source) == (AT, 12, "ok.a=1 ba-d]x-y.p=2 ok.b=3")
    (complaint,) = line.complaints
    assert complaint.endswith("on kernel command line while parsing module name: 'ba_d]x-y'")
    assert line.config().problems == line.problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("module_blacklist=a,b", ("a", "b")),
        ("module-blacklist=a", ("a",)),  # parameq: - and _ are one in keys
        ("module_blacklist=a module_blacklist=b,,c-d", ("b", "c-d")),  # a charp: the last counts; names as they are
        ("-- module_blacklist=a", ()),
        ('"module_blacklist=a,b" x', ("a", "b")),
        ('module_blacklist="a,b"', ("a", "b")),
        ("module_blacklist", ()),
        ("module_blacklist=", ()),
    ],
)
def test_module_blacklist_of_the_kernel(text: str, expected: tuple[str, ...]) -> None:
    assert parse(text).module_blacklist == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modules_load=a,b modules-load=c,a", ("a", "b", "c")),
        ("rd.modules_load=a modules_load=b", ("b",)),
        ('modules_load="a,b-c"', ("a", "b-c")),
        ("modules_load modules_load= modules_load=,", ()),
    ],
)
def test_modules_load(text: str, expected: tuple[str, ...]) -> None:
    """systemd-modules-load.service(8): comma-separated, each name once."""
    assert parse(text).modules_load == expected


def test_modules_load_in_the_initrd() -> None:
    """The `rd.` form "in the initrd only"."""
    assert parse("rd.modules_load=a modules_load=b", initrd=True).modules_load == ("a", "b")


def test_kmodd_off() -> None:
    assert parse("quiet kmodd=off").kmodd_off
    assert not parse("kmodd=on xkmodd=off kmodd").kmodd_off
    assert parse("") == EMPTY
