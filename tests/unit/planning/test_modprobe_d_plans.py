"""modprobe.d(5), the sentences about the effect on a request: the configuration is read and the plan is made.

The sentences about files, lines and words are in test_modprobe_d.py. `SENTENCES` is the list of all of them.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from kmodd.config.modprobe_d import ConfFile, parse
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.planning.plan import Insmod, Step
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, resolve

INDEX = {
    "modules.dep": (
        "kernel/really_long_modulename.ko:\nkernel/fred.ko:\nkernel/barney.ko:\nkernel/user.ko: kernel/fred.ko\n"
        "kernel/a.ko:\nkernel/b.ko:\nkernel/c.ko:\nkernel/d.ko:\nkernel/e.ko:\nkernel/hba.ko:\nkernel/other.ko:\n"
    ),
    "modules.alias": "alias pci:v0001* hba\nalias my-own fred\n",
    "modules.symbols": "",
    "modules.builtin": "",
}


def steps(config: str, request: str, *params: str, options: ProbeOptions | None = None) -> tuple[Step, ...]:
    """Steps of `modprobe REQUEST PARAM…`."""
    catalog = Catalog([Layer("/m", lambda name: INDEX[name].encode() if name in INDEX else None)])
    snapshot = Snapshot(catalog, parse([ConfFile("x.conf", config)]))
    asked = Request(request, "operator", params=params)
    return resolve(asked, snapshot, NOTHING_LOADED, options or ProbeOptions(blocked=False), lambda path: True).steps


def plan(config: str, request: str, *params: str, options: ProbeOptions | None = None) -> list[str]:
    """The same in short: `name options`, and `! command | options` for an install command."""
    return [
        f"{step.module} {step.options}".strip()
        if isinstance(step, Insmod)
        else f"! {step.command} | {step.options}".removesuffix(" | ")
        for step in steps(config, request, *params, options=options)
    ]


# ── DESCRIPTION ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_than_one_module() -> None:
    """ "the modprobe command can add or remove more than one module, due to modules having dependencies, we need a
    method of specifying what options are to be used with those modules" """
    assert plan("options fred x=1\noptions user y=2", "user") == ["fred x=1", "user y=2"]


def test_override_the_normal_behavior() -> None:
    """ "They can also be used to create convenient aliases: alternate names for a module, or they can override the
    normal modprobe behavior altogether" """
    assert plan("alias short really-long-modulename", "short") == ["really_long_modulename"]
    assert plan("install fred true", "fred") == ["! true"]


def test_dash_and_underscore() -> None:
    """ "Note that module and alias names (like other module names) can have - or _ in them" """
    config = "alias my_mod* really-long_modulename\noptions really_long-modulename x=1"
    assert plan(config, "my-mod_x") == plan(config, "my_mod-x") == ["really_long_modulename x=1"]


# ── alias ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_alternate_names() -> None:
    """ "This allows you to give alternate names for a module." "For example: "alias my-mod really_long_modulename"
    means you can use "modprobe my-mod" instead of "modprobe really_long_modulename"." """
    assert plan("alias my-mod really_long_modulename", "my-mod") == plan("", "really_long_modulename") != []


def test_wildcards() -> None:
    """ "You can also use shell-style wildcards, so "alias my-mod* really_long_modulename" means that "modprobe
    my-mod-something" has the same effect." """
    assert plan("alias my-mod* really_long_modulename", "my-mod-something") == ["really_long_modulename"]


def test_no_aliases_to_aliases() -> None:
    """ "You can't have aliases to other aliases (that way lies madness), but aliases can have options, which will be
    added to any other options." """
    assert plan("alias one two\nalias two fred", "one") == []
    config = "alias my* fred\noptions my* x=1\noptions fred y=2"
    assert plan(config, "my") == ["fred x=1 y=2"]
    assert plan(config, "fred") == ["fred y=2"]


def test_own_aliases_are_the_last_resort() -> None:
    """ "Note that modules can also contain their own aliases, which you can see using modinfo." "These aliases are
    used as a last resort (ie. if there is no real module, install, remove, or alias command in the configuration)." """
    assert plan("", "my-own") == ["fred"]
    assert plan("alias my-own barney", "my-own") == ["barney"]
    assert plan("install my-own echo", "my-own") == ["! echo"]
    assert plan("", "fred") == ["fred"]


# ── blacklist ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_internal_aliases() -> None:
    """ "Modules can contain their own aliases: usually these are aliases describing the devices they support, such as
    "pci:123..."." """
    assert plan("", "pci:v00012") == ["hba"]


def test_internal_aliases_overridden() -> None:
    """ "These "internal" aliases can be overridden by normal "alias" keywords, but there are cases where two or more
    modules both support the same devices" """
    assert plan("alias pci:v00012* other", "pci:v00012") == ["other"]


def test_internal_aliases_ignored() -> None:
    """ "the blacklist keyword indicates that all of that particular module's internal aliases are to be ignored" """
    assert plan("blacklist hba", "pci:v00012") == []
    assert plan("blacklist hba", "hba") == ["hba"]


# ── install ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FRED = "install fred /sbin/modprobe barney; /sbin/modprobe --ignore-install fred"


def test_install_instead_of_inserting() -> None:
    """ "This command instructs modprobe to run your command instead of inserting the module in the kernel as normal."
    "The command can be any shell command: this allows you to do any kind of complex processing you might wish." """
    assert plan("install fred if true; then :; fi", "fred") == ["! if true; then :; fi"]
    assert plan("install fred :", "user") == ["! :", "user"]


def test_fred_and_barney() -> None:
    """ "For example, if the module "fred" works better with the module "barney" already installed […] you could say
    "install fred /sbin/modprobe barney; /sbin/modprobe --ignore-install fred", which would do what you wanted." """
    assert plan(FRED, "fred") == ["! /sbin/modprobe barney; /sbin/modprobe --ignore-install fred"]


def test_ignore_install() -> None:
    """ "Note the --ignore-install, which stops the second modprobe from running the same install command again." """
    assert plan(FRED, "fred", options=ProbeOptions(ignore_install=True)) == ["fred"]


def test_cmdline_opts() -> None:
    """ "If you use the string "$CMDLINE_OPTS" in the command, it will be replaced by any options specified on the
    modprobe command line." "This can be useful because users expect "modprobe fred opt=1" to pass the "opt=1" arg to
    the module, even if there's an install command in the configuration file." "So our above example becomes
    "install fred /sbin/modprobe barney; […] $CMDLINE_OPTS"" The loader puts the options in their place;
    here they stand beside the command."""
    assert plan(f"{FRED} $CMDLINE_OPTS", "fred", "opt=1") == [
        f"! {FRED.removeprefix('install fred ')} $CMDLINE_OPTS | opt=1"
    ]


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_options_every_time() -> None:
    """ "This command allows you to add options to the module modulename (which might be an alias) every time it is
    inserted into the kernel: whether directly (using modprobe modulename) or because the module being inserted depends
    on this module." """
    assert plan("options fred x=1", "fred") == ["fred x=1"]
    assert plan("options fred x=1", "user") == ["fred x=1", "user"]


def test_options_together() -> None:
    """ "All options are added together: they can come from an option for the module itself, for an alias, and on the
    command line." """
    config = "alias nick fred\noptions fred x=1\noptions nick y=2\noptions fred x=3"
    assert plan(config, "nick", "z=4") == ["fred x=1 y=2 x=3 z=4"]


# ── remove, softdep, weakdep ─────────────────────────────────────────────────────────────────────────────────────────


def test_remove() -> None:
    """ "This is similar to the install command above, except it is invoked when "modprobe -r" is run." """
    assert plan("remove fred false", "fred") == ["fred"]


def test_softdep_is_optional() -> None:
    """ "The softdep command allows you to specify soft, or optional, module dependencies." "modulename can be used
    without these optional modules installed, but usually with some features missing." """
    assert plan("softdep hba pre: nosuch post: nosuch", "hba") == ["hba"]
    assert [step.required for step in steps("softdep hba pre: a", "hba")] == [False, True]


def test_softdep_before_and_after() -> None:
    """ "pre-deps and post-deps modules are lists of names and/or aliases of other modules that modprobe will attempt to
    install (or remove) in order before and after the main module given in the modulename argument." """
    assert plan("softdep c pre: my-own a post: pci:v00012 b", "c") == ["fred", "a", "c", "hba", "b"]


def test_softdep_example() -> None:
    """ "Example: Assume "softdep c pre: a b post: d e" is provided in the configuration." "Running "modprobe c" is now
    equivalent to "modprobe a b c d e" without the softdep." """
    assert plan("softdep c pre: a b post: d e", "c", "x=1") == ["a", "b", "c x=1", "d", "e"]


def test_softdep_and_flags() -> None:
    """ "Flags such as --use-blacklist are applied to all the specified modules, while module parameters only apply to
    module c." The first half is not so in kmod 30: with -b, c alone is tested."""
    config = "softdep c pre: a\nblacklist a"
    assert plan(config, "c", "x=1", options=ProbeOptions(blacklist="always")) == ["a", "c x=1"]


def test_softdep_takes_precedence() -> None:
    """ "Note: if there are install or remove commands with the same modulename argument, softdep takes precedence." """
    assert plan("install c echo\nsoftdep c pre: a", "c") == ["a", "c"]
    assert plan("install c echo\nsoftdep c pre: nosuch", "c") == ["! echo"]


def test_weakdep() -> None:
    """ "Those are similar to pre softdep, with the difference that userspace doesn't attempt to load that dependency
    before the specified module" """
    assert plan("weakdep c a b", "c") == ["c"]


# ── none was forgotten ───────────────────────────────────────────────────────────────────────────────────────────────

NO_RULE = (
    "The long term future of this command",
    "Its use complicates the automated determination",
    "In a perfect world",
    "For example, a driver for a storage HBA might require another module",
    "See also remove below",
    # of kmod 34's page; for MODPROBE_OPTIONS it refers to modprobe(8), for the directories to SYNOPSIS
    "See the COMMANDS section below",
    "NOTE: The configuration directories may be altered via the MODPROBE_OPTIONS",
    "See the ENVIRONMENT section in modprobe(8)",
    "Configuration files are read from directories in listed in SYNOPSIS",
    "Instead the kernel may request one or multiple of them during module probe",
    "The purpose of weak module is to allow a driver",
    'Example: Assume "weakdep c a b"',
    "A program creating an initramfs knows",
    "When c is loaded and is being probed",
)
"""Sentences that only explain, or announce."""


def test_every_sentence_of_the_manual_is_named() -> None:
    """Of the installed page, where there is one, kmod 30's or 34's: each sentence from DESCRIPTION to COMMANDS is in a
    test's docstring."""
    page = Path("/usr/share/man/man5/modprobe.d.5.gz")
    if not page.exists():
        return  # images without manual pages: the tests above are the same
    text = re.sub(r"\\-", "-", gzip.decompress(page.read_bytes()).decode())
    text = text.replace('.SH "', ".SH ")
    text = text[text.index(".SH DESCRIPTION") : text.index(".SH COMPATIBILITY")]
    assert len(sentences(text)) > 30
    named = squeezed((Path(__file__).parents[1] / "config/test_modprobe_d.py").read_text() + Path(__file__).read_text())
    missing = [each for each in sentences(text) if not any(part in named for part in beginnings(each))]
    assert [each for each in missing if not each.startswith(NO_RULE)] == []


def sentences(roff: str) -> list[str]:
    """The sentences of a manual page, without its markup."""
    lines = [line for line in roff.splitlines() if not line.startswith((".", "'"))]
    plain = re.sub(r"\\f[A-Z]|\\m\[[a-z]*\]|\\&", "", " ".join(lines))
    plain = plain.replace("\\*(Aq", "'").replace("\\e", "\\").replace("\\(lq", '"').replace("\\(rq", '"')
    return [each.strip() for each in re.split(r"(?<=[a-z\"').])\.\s+(?=[A-Z])", plain) if len(each.split()) > 3]


def beginnings(sentence: str) -> list[str]:
    """A sentence's beginning, or its part behind the first colon or comma, long enough to know it by."""
    return [squeezed(sentence[at:])[:30] for at in (0, *(match.end() for match in re.finditer(r"[:,] ", sentence)))]


def squeezed(text: str) -> str:
    return re.sub(r"[\s\"'“”`]+", "", text)
