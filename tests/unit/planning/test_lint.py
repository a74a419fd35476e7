"""Findings of `kmodd lint`, and lines without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.cli import lint as program
from kmodd.config import cmdline
from kmodd.config.modprobe_d import DROP_IN, ConfFile, Extensions, merge, parse
from kmodd.errors import Where
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.planning.lint import Finding, lint, shadowed

RELEASE = "6.1.0"
MODULES = f"/lib/modules/{RELEASE}"
INDEX = {
    "modules.dep": (
        "kernel/a.ko:\nkernel/b.ko: kernel/a.ko\nkernel/c.ko: kernel/b.ko kernel/a.ko\nkernel/d.ko:\nkernel/snd-x.ko:\n"
    ),
    "modules.alias": "# Aliases\nalias pci:v0000* d\nalias net-pf-4 b\n",
    "modules.symbols": "# Symbols\nalias symbol:sym a\n",
    "modules.builtin": "kernel/ext4.ko\n",
}
PATH = "/etc/modprobe.d/x.conf"


def found(
    text: str, extensions: Extensions = DROP_IN, vendor: str = "", line: str = "", softdeps: str = ""
) -> list[str]:
    """Findings in /etc/modprobe.d/x.conf and the other files."""
    catalog = Catalog([Layer(MODULES, lambda name: INDEX[name].encode() if name in INDEX else None)])
    files = [
        ConfFile("/lib/modprobe.d/a.conf", vendor),
        ConfFile(f"{MODULES}/modules.softdep", softdeps),
        ConfFile(PATH, text),
    ]
    config = merge([parse(files), cmdline.parse(line).config(extensions)], extensions)
    return [str(finding).removeprefix("/etc/modprobe.d/") for finding in lint(Snapshot(catalog, config))]


def test_nothing_to_say() -> None:
    text = (
        "alias pci:v0001* d\noptions d x=1\noptions pci:v0001* y=2\noptions net_pf_4 z\noptions snd-x a=1\n"
        "blacklist c\nsoftdep c pre: d post: net-pf-4\ninstall own-name echo\nalias foo own-name\n"
        "options ext4 x=1\nalias b b\n"
    )
    assert found(text, line="root=/dev/sda1 whatever.x=1 modprobe.blacklist=snd_x") == []


def test_bad_line() -> None:
    assert found("frob x\nblacklist d\ninclude y\n") == [
        "x.conf:1: error: expected alias, blacklist, install, options, remove, softdep or weakdep\n  frob x\n  ^",
        "x.conf:3: error: `include` is deprecated and no longer read\n  include y\n  ^",
    ]


@pytest.mark.parametrize("line", ["blacklist d", "options d x=1", "alias x d", "install d :", "softdep d pre: a"])
def test_carriage_return(line: str) -> None:
    assert any("CR" in finding for finding in found(f"{line}\r\n"))


def test_options_of_a_missing_module() -> None:
    assert found("options ipw2200 x=1\noptions snd_* x=1\n") == [
        "x.conf:1: error: options for ipw2200: no such module or alias",
        "x.conf:2: error: options for snd_*: no such module or alias; wildcards are not supported here",
    ]


def test_packages_only_warn() -> None:
    """Their files are written for many kernels."""
    assert found("", vendor="options e x=1\nalias f g\nblacklist h\nsoftdep i pre: j\n") == [
        "/lib/modprobe.d/a.conf:1: warning: options for e: no such module or alias",
        "/lib/modprobe.d/a.conf:2: warning: alias f has no effect: no such module g",
    ]


def test_aliases_that_nothing_can_reach() -> None:
    assert found("alias x nosuch\nalias y net-pf-4\nalias z x\nblacklist b\nalias v b\nalias a d\n") == [
        "x.conf:1: error: alias x has no effect: no such module nosuch",
        "x.conf:2: error: net_pf_4 is itself an alias: an alias of an alias is not resolved",
        "x.conf:3: error: x is itself an alias: an alias of an alias is not resolved",
        "x.conf:4: warning: b is still loaded as a dependency of c; `install b /bin/false` prevents that",
        "x.conf:5: warning: alias v is ignored: b is blacklisted at /etc/modprobe.d/x.conf:4",
        "x.conf:6: warning: alias hides the module a from requests by name",
    ]


def test_overridden_softdep() -> None:
    """kmod takes the first; the lines of the modules themselves stand in the middle of the alphabet."""
    text = "softdep c pre: d\nsoftdep snd* pre: d\nsoftdep snd_x pre: a\nsoftdep d pre: a\nsoftdep d post: a\n"
    said = found(text, softdeps="softdep c pre: a\nsoftdep b pre: a\nsoftdep b pre: d\nsoftdep b pre: c\n")
    assert said == [
        f"x.conf:1: error: softdep of c has no effect: {MODULES}/modules.softdep:1 takes precedence",
        "x.conf:3: error: softdep of snd_x has no effect: /etc/modprobe.d/x.conf:2 takes precedence",
        "x.conf:5: error: softdep of d has no effect: /etc/modprobe.d/x.conf:4 takes precedence",
        f"{MODULES}/modules.softdep:3: warning: softdep of b has no effect (1 more below):"
        f" {MODULES}/modules.softdep:2 takes precedence",
    ]
    assert found(text, Extensions(softdeps_add_up=True)) == []
    assert found("softdep c pre: d\nsoftdep c pre: d\n") == []
    assert found("softdep c? pre: d\nsoftdep c* pre: a\n") == []  # the second matches more


def test_overridden_commands() -> None:
    assert found("install a x\ninstall a y\nremove * x\nremove b y\ninstall b x\n") == [
        "x.conf:2: error: install of a has no effect: /etc/modprobe.d/x.conf:1 takes precedence",
        "x.conf:4: error: remove of b has no effect: /etc/modprobe.d/x.conf:3 takes precedence",
    ]


def test_softdep_on_nothing() -> None:
    assert found("softdep c pre: nosuch d\nsoftdep d a\n") == [
        "x.conf:1: warning: softdep of c: no such module or alias: nosuch",
        "x.conf:2: error: softdep of d names no module after `pre:` or `post:`",
    ]


def test_blacklist_that_a_dependency_defeats() -> None:
    stop = "`install a /bin/false` prevents that"
    assert found("blacklist a\n") == [f"x.conf:1: warning: a is still loaded as a dependency of b, c; {stop}"]
    assert found("blacklist a\nblacklist b\nblacklist c\n") == []
    assert found("blacklist a\n", Extensions(blacklist_dependencies=True)) == []


def test_blacklist_that_a_softdep_defeats() -> None:
    (said,) = found("blacklist d\n", softdeps="softdep c pre: pci:v0000aa\n")
    assert said.startswith("x.conf:1: warning: d is still loaded as a dependency of c;")


def test_blacklist_of_a_builtin_or_missing_module() -> None:
    assert found("blacklist ext4\nblacklist typo\n") == [
        "x.conf:1: warning: blacklist of ext4 has no effect: it is built into the kernel",
        "x.conf:2: warning: blacklist of typo: no such module",
    ]


def test_blacklist_with_a_dash_on_the_command_line() -> None:
    line = "modprobe.blacklist=snd-x"
    assert found("", line=line) == ["/proc/cmdline:1: error: modprobe.blacklist=snd-x has no effect: use snd_x"]
    assert found("", Extensions(cmdline_blacklist_dashes=True), line=line) == []


def test_install_that_a_softdep_disables() -> None:
    """kmod issue 446."""
    softdep = f"{MODULES}/modules.softdep:1"
    said = [f"x.conf:1: error: install command of c is never run: the softdep at {softdep} takes precedence"]
    assert found("install c /bin/false\n", softdeps="softdep c pre: d\n") == said
    assert found("install [c] /bin/false\n", softdeps="softdep c pre: d\n") == said
    assert found("install c /bin/false\n", softdeps="softdep c pre: nosuch\n") == []
    assert found("install c /bin/false\n", Extensions(softdep_keeps_install=True), softdeps="softdep c pre: d\n") == []


def test_shadowed_files() -> None:
    hidden = shadowed(
        [
            "/lib/modules/6.1/modules.softdep",
            ("/etc/modprobe.d", ["a.conf", "b.conf"]),
            ("/run/modprobe.d", ["b.conf", "b.txt"]),
            ("/lib/modprobe.d", ["a.conf", "b.conf", "c.conf"]),
        ]
    )
    assert hidden == (
        ("/run/modprobe.d/b.conf", "/etc/modprobe.d/b.conf"),
        ("/lib/modprobe.d/a.conf", "/etc/modprobe.d/a.conf"),
        ("/lib/modprobe.d/b.conf", "/etc/modprobe.d/b.conf"),
    )
    (finding,) = lint(Snapshot(Catalog([]), parse([])), hidden[:1])
    text = "not read: /etc/modprobe.d/b.conf has the same name and takes precedence"
    assert finding == Finding(Where("/run/modprobe.d/b.conf", 0), "warning", text)
    assert str(finding) == f"/run/modprobe.d/b.conf: warning: {text}"


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in INDEX.items():
        write(tmp_path / f"lib/modules/{RELEASE}/{name}", text)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_program(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / "etc/modprobe.d/x.conf", "options nosuch x=1\n")
    write(root / "lib/modprobe.d/x.conf", "options d x=1\n")
    write(root / "lib/modprobe.d/empty.conf", "options d x=1\n")
    write(root / "lib/modprobe.d/null.conf", "options d x=1\n")
    write(root / "run/modprobe.d/empty.conf", "")
    (root / "run/modprobe.d/null.conf").symlink_to("/dev/null")
    (root / "etc/modprobe.d/dir.conf").mkdir()
    assert program.main(["--root", str(root)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "/etc/modprobe.d/x.conf:1: error: options for nosuch: no such module or alias",
        "/lib/modprobe.d/x.conf: warning: not read: /etc/modprobe.d/x.conf has the same name and takes precedence",
    ]
    assert err.splitlines() == [f"kmodd lint: kernel {RELEASE}", "kmodd lint: errors: 1, warnings: 1"]


def test_program_is_content(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / "etc/modprobe.d/x.conf", "options d x=1\nblacklist a\n")
    assert program.main(["--root", str(root), "--kernel", RELEASE]) == 0
    out, err = capsys.readouterr()
    assert out.count("warning") == out.count("\n") == 1
    assert err == "kmodd lint: errors: 0, warnings: 1\n"
    (root / "etc/modprobe.d/x.conf").unlink()
    assert program.main(["--root", str(root), "--kernel", RELEASE]) == 0
    assert capsys.readouterr() == ("", "")


def test_program_without_a_tree(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--root", str(root), "--kernel", "0"]) == 3
    assert capsys.readouterr().err.startswith("kmodd lint: no module tree for kernel 0")


def test_program_shows_bytes_as_they_are(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = root / "etc/modprobe.d/x.conf"
    write(path, "")
    path.write_bytes(b"options \xff x=1\n")
    assert program.main(["--root", str(root)]) == 1
    assert b"options for \xff: no such module" in capfdbinary.readouterr().out
