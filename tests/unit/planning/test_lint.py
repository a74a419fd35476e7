"""Findings of `kmodd lint`, and lines without one."""

from __future__ import annotations

import re
from hashlib import md5
from pathlib import Path

import pytest

from kmodd.cli import lint as program
from kmodd.config import cmdline, modules_load_d
from kmodd.config.modprobe_d import DROP_IN, ConfFile, Extensions, merge, parse
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.planning.findings import CODES
from kmodd.planning.lint import Setup, lint, shadowed

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
PARAMETERS = {"d.ko": frozenset(("x", "y", "count", "name")), "b.ko": frozenset[str]()}
"""Those of the module files that can be read."""
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
    setup = Setup(
        Snapshot(catalog, config),
        parameters=lambda path: PARAMETERS.get(path.rpartition("/")[2]),
        present=lambda path: not path.startswith("/gone/"),
    )
    return [str(finding).removeprefix("/etc/modprobe.d/") for finding in lint(setup)]


def test_nothing_to_say() -> None:
    text = (
        "alias pci:v0001* d\noptions d x=1\noptions pci:v0001* y=2\noptions snd-x a=1\n"
        "blacklist c\nsoftdep c pre: d post: net-pf-4\ninstall own-name echo\nalias foo own-name\n"
        "alias b b\n"
    )
    assert found(text, line="root=/dev/sda1 whatever.x=1 modprobe.blacklist=snd_x") == []


def test_bad_line() -> None:
    assert found("frob x\nblacklist d\ninclude y\n") == [
        "x.conf:1: error: expected alias, blacklist, install, options, remove, softdep or weakdep [syntax]"
        "\n  frob x\n  ^",
        "x.conf:3: error: `include` is deprecated and no longer read [syntax]\n  include y\n  ^",
    ]


@pytest.mark.parametrize("line", ["blacklist d", "options d x=1", "alias x d", "install d :", "softdep d pre: a"])
def test_carriage_return(line: str) -> None:
    assert any("CR" in finding for finding in found(f"{line}\r\n"))


def test_options_of_a_missing_module() -> None:
    assert found("options ipw2200 x=1\noptions snd_* x=1\n") == [
        "x.conf:1: error: options for ipw2200: no such module or alias [unknown-module]",
        "x.conf:2: error: options for snd_*: no such module or alias; wildcards are not supported here "
        "[unknown-module]",
    ]


def test_packages_only_warn() -> None:
    """Their files are written for many kernels."""
    assert found("", vendor="options e x=1\nalias f g\nblacklist h\nsoftdep i pre: j\n") == [
        "/lib/modprobe.d/a.conf:1: warning: options for e: no such module or alias [unknown-module]",
        "/lib/modprobe.d/a.conf:2: warning: alias f has no effect: no such module g [unknown-module]",
        "/lib/modprobe.d/a.conf:3: warning: blacklist of h: no such module [unknown-module]",
    ]


def test_aliases_that_nothing_can_reach() -> None:
    assert found("alias x nosuch\nalias y net-pf-4\nalias z x\nblacklist b\nalias v b\nalias a d\n") == [
        "x.conf:1: error: alias x has no effect: no such module nosuch [unknown-module]",
        "x.conf:2: error: net_pf_4 is itself an alias: an alias of an alias is not resolved [alias]",
        "x.conf:3: error: x is itself an alias: an alias of an alias is not resolved [alias]",
        "x.conf:4: warning: b is still loaded as a dependency of c; `install b /bin/false` prevents that [blacklist]",
        "x.conf:5: warning: alias v is ignored: b is blacklisted at /etc/modprobe.d/x.conf:4 [blacklist]",
        "x.conf:6: warning: alias hides the module a from requests by name [alias]",
    ]


def test_overridden_softdep() -> None:
    """kmod takes the first; the lines of the modules themselves stand in the middle of the alphabet."""
    text = "softdep c pre: d\nsoftdep snd* pre: d\nsoftdep snd_x pre: a\nsoftdep d pre: a\nsoftdep d post: a\n"
    said = found(text, softdeps="softdep c pre: a\nsoftdep b pre: a\nsoftdep b pre: d\nsoftdep b pre: c\n")
    assert said == [
        f"x.conf:1: error: softdep of c has no effect: {MODULES}/modules.softdep:1 takes precedence [overridden]",
        "x.conf:3: error: softdep of snd_x has no effect: /etc/modprobe.d/x.conf:2 takes precedence [overridden]",
        "x.conf:5: error: softdep of d has no effect: /etc/modprobe.d/x.conf:4 takes precedence [overridden]",
        f"{MODULES}/modules.softdep:3: warning: softdep of b has no effect (1 more below):"
        f" {MODULES}/modules.softdep:2 takes precedence [overridden]",
    ]
    assert found(text, Extensions(softdeps_add_up=True)) == []
    assert found("softdep c pre: d\nsoftdep c pre: d\n") == []
    assert found("softdep c? pre: d\nsoftdep c* pre: a\n") == []  # the second matches more


def test_overridden_commands() -> None:
    assert found("install a x\ninstall a y\nremove * x\nremove b y\ninstall b x\n") == [
        "x.conf:2: error: install of a has no effect: /etc/modprobe.d/x.conf:1 takes precedence [overridden]",
        "x.conf:4: error: remove of b has no effect: /etc/modprobe.d/x.conf:3 takes precedence [overridden]",
    ]


def test_softdep_on_nothing() -> None:
    assert found("softdep c pre: nosuch d\nsoftdep d a\n") == [
        "x.conf:1: warning: softdep of c: no such module or alias: nosuch [unknown-module]",
        "x.conf:2: error: softdep of d names no module after `pre:` or `post:` [softdep]",
    ]


def test_blacklist_that_a_dependency_defeats() -> None:
    stop = "`install a /bin/false` prevents that [blacklist]"
    assert found("blacklist a\n") == [f"x.conf:1: warning: a is still loaded as a dependency of b, c; {stop}"]
    assert found("blacklist a\nblacklist b\nblacklist c\n") == []
    assert found("blacklist a\n", Extensions(blacklist_dependencies=True)) == []
    (said,) = found("blacklist a\n", line="module_blacklist=c")
    assert "still loaded as a dependency of b;" in said, "c is not loaded itself"
    assert found("blacklist a\ninstall b /bin/false\n") == [], "c needs b"
    assert found("blacklist a\ninstall a /bin/false\n") == [], "the pair that hardening guides demand"


def test_blacklist_that_a_softdep_defeats() -> None:
    (said,) = found("blacklist d\n", softdeps="softdep c pre: pci:v0000aa\n")
    assert said.startswith("x.conf:1: warning: d is still loaded as a dependency of c;")


def test_the_remedy_for_a_dependency_with_a_softdep_names_the_setting_that_it_needs() -> None:
    """An install line of a module with a softdep is not run; the remedy, applied, ends the finding."""
    softdeps = "softdep c pre: d\nsoftdep d post: snd-x\n"
    remedy = "`install d /bin/false` prevents that with SoftdepKeepsInstall=yes in kmodd.conf"
    (said,) = found("blacklist d\n", softdeps=softdeps)
    assert f"; {remedy}: the softdep at {MODULES}/modules.softdep:2 disables it [blacklist]" in said
    kept = Extensions(softdep_keeps_install=True)
    assert "; `install d /bin/false` prevents that" in found("blacklist d\n", kept, softdeps=softdeps)[0]
    assert found("blacklist d\ninstall d /bin/false\n", kept, softdeps=softdeps) == []
    unmatched = "softdep c pre: d\nsoftdep d post: nosuch\n"
    assert "; `install d /bin/false` prevents that" in found("blacklist d\n", softdeps=unmatched)[0]
    added = "softdep c pre: d\nsoftdep d post: nosuch\nsoftdep d post: snd-x\n"
    assert "SoftdepKeepsInstall" in found("blacklist d\n", Extensions(softdeps_add_up=True), softdeps=added)[0]


def test_blacklist_of_a_builtin_or_missing_module() -> None:
    assert found("blacklist ext4\nblacklist typo\n") == [
        "x.conf:1: warning: blacklist of ext4 has no effect: it is built into the kernel [builtin]",
        "x.conf:2: warning: blacklist of typo: no such module [unknown-module]",
    ]


@pytest.mark.parametrize("kind", ["install", "remove"])
def test_a_command_of_a_builtin(kind: str) -> None:
    assert found(f"{kind} ext4 /bin/false\n{kind} d /bin/false\n") == [
        f"x.conf:1: warning: {kind} command of ext4 is never run: it is built into the kernel [builtin]"
    ]


def test_blacklist_with_a_dash_on_the_command_line() -> None:
    line = "modprobe.blacklist=snd-x"
    assert found("", line=line) == ["/proc/cmdline:1: error: modprobe.blacklist=snd-x has no effect: use snd_x [dash]"]
    assert found("", Extensions(cmdline_blacklist_dashes=True), line=line) == []


@pytest.mark.parametrize("names", ["", ",", "d,"])
def test_an_empty_name_on_the_command_line_is_none(names: str) -> None:
    assert found("", line=f"modprobe.blacklist={names} module_blacklist={names}") == []
    assert "no such module" in found("", line=f"modprobe.blacklist={names},typo")[0], "the control"


def test_install_that_a_softdep_disables() -> None:
    """kmod issue 446."""
    softdep = f"{MODULES}/modules.softdep:1"
    said = [
        f"x.conf:1: error: install command of c is never run: the softdep at {softdep} takes precedence, "
        "unless SoftdepKeepsInstall=yes is set in kmodd.conf [overridden]"
    ]
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


# ── words that have no effect ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("options d x=4   # as many as needed\n", "comment", "`# as many as needed`"),
        ("options d #x=4\n", "comment", "`#x=4`"),
        ("softdep c pre: d # why\n", "comment", "`# why`"),
        ("options d x = 1\n", "blank", "`x=1`"),
        ("options d x= 1 y=2\n", "blank", "`x=1`"),
        ("options d x =1\n", "blank", "`x=1`"),
        ("options a x = 1\n", "blank", "`x=1`"),
        ("options d x=1, y=2\n", "blank", "comma"),
        ("options d d.x=1\n", "prefix", "`x=1`"),
        ("options snd-x snd-x.index=1\n", "prefix", "`index=1`"),
        ("options d name='a b'\n", "quote", "double quotes"),
        ("options d conut=1\n", "unknown-parameter", "did you mean `count`?"),
        ("options b x=1\n", "unknown-parameter", "it has none"),
        ("options d zzz\n", "unknown-parameter", "modinfo -p"),
        ("options ext4 x=1\n", "builtin", "command line"),
        ("blacklist c d\n", "surplus", "  blacklist c d\n              ^"),
        ("alias x d c\n", "surplus", "ignored"),
        ("blacklist d.ko\n", "blacklist", "expected a module's name, `d`"),
        ("blacklist kernel/d.ko.xz\n", "blacklist", "expected a module's name, `d`"),
        ('blacklist "d"\n', "blacklist", "expected a module's name, `d`"),
        ("blacklist c,d\n", "blacklist", "one name in each line"),
        ("blacklist d*\n", "blacklist", "wildcards are not supported"),
        ("# why \\\nblacklist c\n", "continued", "x.conf:2:"),
        ("options d x=1 \\\noptions d y=1\n", "continued", "x.conf:2:"),
        ("blacklist c \\\n  blacklist d\n", "continued", "x.conf:2:"),
        ("\0\0\0\0", "nul", "x.conf:1:"),
        ("alias x d\nblacklist c\0d\n\0\n", "nul", "x.conf:2:"),
        ("softdep net-pf-4 pre: d\n", "softdep", "net_pf_4 is an alias of b at"),
        ("blacklist net-pf-4\n", "blacklist", "net_pf_4 is an alias of b at"),
        ("install d /sbin/modprobe -i d && { /gone/mixer --load || :; }\n", "command", "program /gone/mixer [command]"),
        ("remove d /gone/a;/gone/b\n", "command", "program /gone/a, /gone/b [command]"),
        ("install d [ -x /gone/a ] && /gone/b\n", "command", "program /gone/b [command]"),
        ("alias x d\ninstall x echo\n", "overridden", "alias at /etc/modprobe.d/x.conf:1"),
        ("alias x* d\nremove xy echo\n", "overridden", "alias at /etc/modprobe.d/x.conf:1"),
    ],
)
def test_part_without_effect(text: str, code: str, says: str) -> None:
    """One finding with this code names the line and the part."""
    (said,) = [said for said in found(text) if "unknown-parameter" not in said or code == "unknown-parameter"]
    assert f"[{code}]" in said
    assert says in said


@pytest.mark.parametrize(
    "text",
    [
        "alias net-pf-4 off\nalias d null\n",
        "blacklist c # why\nalias x d # why\n",
        "install d /bin/true # why\n",
        "install d /sbin/modprobe -i d < /gone/x # /gone/y\n",
        'options d x=1 name="a # b" count=2 dyndbg=+p async_probe=1\n',
        "options d x=1 \\\n  y=2\n",
        "options a name= x\n",
        "# a box \\\n# of \\\n#\\\n\nblacklist c\n",
        "install d /bin/a && \\\n  install -d /b\n",
        "install d echo a \\\n  blacklist c\n",
        "alias d d\ninstall d echo\n",
        "alias x own\ninstall own echo\n",
        "blacklist a\ninstall a /bin/false\n",
        "options d x=1\n\n",
        "install d [ -x /gone/p ] && /gone/p; /sbin/modprobe -i d\n",
        "install d if test -e '/gone/p'; then /gone/p; fi\n",
        "remove d command -v /gone/p >/dev/null && /gone/p\n",
    ],
)
def test_part_with_an_effect(text: str) -> None:
    assert found(text) == []


def test_parameters_on_the_command_line() -> None:
    """Only words for existing modules are checked: the kernel and init have names with dots, too."""
    assert found("", line="d.x=1 d.conut=1 systemd.unit=x usbcore.y=1") == [
        "/proc/cmdline:1: error: d has no parameter `conut`; did you mean `count`? [unknown-parameter]"
    ]


def test_kernel_blacklist() -> None:
    """The kernel compares the names byte by byte, and only the last parameter counts."""
    assert found("", line="module_blacklist=snd-x,d,c.ko,ext4,nosuch") == [
        "/proc/cmdline:1: error: module_blacklist=snd-x has no effect: the kernel compares each character, use snd_x "
        "[dash]",
        "/proc/cmdline:1: error: module_blacklist=c.ko has no effect: the kernel compares each character, use c [dash]",
        "/proc/cmdline:1: warning: module_blacklist=ext4 has no effect: ext4 is built into the kernel [builtin]",
        "/proc/cmdline:1: warning: module_blacklist=nosuch has no effect: no such module [unknown-module]",
    ]
    (said,) = found("", line="module_blacklist=a module_blacklist=b")
    assert "[overridden]" in said
    assert found("", line="module_blacklist=a module_blacklist=a,b -- module_blacklist=c") == []


def boot(text: str, line: str = "", config: str = "") -> list[str]:
    """Findings in /etc/modules-load.d/m.conf."""
    catalog = Catalog([Layer(MODULES, lambda name: INDEX[name].encode() if name in INDEX else None)])
    listed = modules_load_d.parse([ConfFile("/etc/modules-load.d/m.conf", text)], cmdline.parse(line))
    merged = merge([parse([ConfFile(PATH, config)]), cmdline.parse(line).config(DROP_IN)], DROP_IN)
    setup = Setup(Snapshot(catalog, merged), listed)
    return [str(finding).removeprefix("/etc/modules-load.d/") for finding in lint(setup)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("d x=1\n", "boot"),
        ("d.ko\n", "boot"),
        ("d.ko.xz\n", "boot"),
        ("/lib/modules/6.1.0/kernel/d.ko\n", "boot"),
        ("kernel/d\n", "boot"),
        ("a,d\n", "boot"),
        ("d*\n", "boot"),
        ('"d"\n', "boot"),
        ("x=1\n", "boot"),
        ("nosuch\n", "unknown-module"),
        ("\0\0\0", "nul"),
    ],
)
def test_boot_list(text: str, code: str) -> None:
    (said,) = boot(text)
    assert said.startswith("m.conf:1: error: ")
    assert f"[{code}]" in said


def test_boot_list_that_works() -> None:
    """Modules, aliases and builtins; a comment begins with `#` or `;`."""
    assert boot("d\nnet-pf-4\next4\n# x y\n; z\nsnd-x\npci:v0000aa\n") == []


@pytest.mark.parametrize("name", ["b", "net-pf-4"])
@pytest.mark.parametrize(
    ("config", "line", "says"),
    [
        ("install b /bin/false\n", "", "b is blocked at /etc/modprobe.d/x.conf:1 by install /bin/false"),
        ("install b /bin/true\n", "", "b is blocked at /etc/modprobe.d/x.conf:1 by install /bin/true"),
        ("install a exit 1\n", "", "a is blocked"),
        ("", "module_blacklist=b", "b is blocked at /proc/cmdline:1 by module_blacklist=b"),
        ("install a /bin/true\n", "", "a is blocked"),
        ("install b /opt/false\n", "", ""),
    ],
)
def test_boot_list_of_blocked_modules(name: str, config: str, line: str, says: str) -> None:
    """b needs a, and lacks it whatever the status of the command for a. Another command is run."""
    said = [text for text in boot(f"{name}\n", line, config) if text.startswith("m.conf")]
    assert said == ([f"m.conf:1: warning: {name} is not loaded at boot: {says} [blacklist]"] if says else [])


def test_boot_list_of_blacklisted_modules() -> None:
    assert boot("d\n", config="blacklist d\n") == [
        "m.conf:1: warning: d is not loaded at boot: d is blacklisted at /etc/modprobe.d/x.conf:1 [blacklist]"
    ]
    assert boot("", line="modules_load=nosuch") == [
        "/proc/cmdline:1: error: no such module or alias nosuch: nothing is loaded at boot [unknown-module]"
    ]


def test_codes_are_documented() -> None:
    """docs/LINT.md has a row for each code, and for no other."""
    text = (Path(__file__).parents[3] / "docs/LINT.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == sorted(CODES)


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
    write(root / "run/modprobe.d/x.conf", "")
    write(root / "run/modprobe.d/empty.conf", "")
    (root / "run/modprobe.d/null.conf").symlink_to("/dev/null")
    assert program.main(["--root", str(root)]) == 1
    out, err = capsys.readouterr()
    hidden = "x.conf: warning: not read: /etc/modprobe.d/x.conf has the same name and takes precedence [not-read]"
    usual = [
        "/etc/modprobe.d/x.conf:1: error: options for nosuch: no such module or alias [unknown-module]",
        f"/run/modprobe.d/{hidden}",
    ]
    assert out.splitlines() == usual
    assert err.splitlines() == [f"kmodd lint: kernel {RELEASE}", "kmodd lint: errors: 1, warnings: 1"]
    assert program.main(["--root", str(root), "-v"]) == 1
    assert capsys.readouterr().out.splitlines() == [usual[0], f"/lib/modprobe.d/{hidden}", usual[1]]


def test_files_of_packages_are_shown_on_demand(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A conffile as dpkg has installed it is the package's; once it is changed, it is the administrator's."""
    line = "options nosuch x=1\n"
    digest = md5(line.encode(), usedforsecurity=False).hexdigest()
    status = f"Package: x\nConffiles:\n /etc/modprobe.d/x.conf {digest}\n /etc/other {digest}\n"
    write(root / "var/lib/dpkg/status", status)
    write(root / "etc/modprobe.d/x.conf", line)
    write(root / "usr/lib/modprobe.d/y.conf", line)
    assert program.main(["--root", str(root), "--kernel", RELEASE]) == 0
    assert capsys.readouterr() == ("", "")
    assert program.main(["--root", str(root), "--kernel", RELEASE, "-v"]) == 0
    out, err = capsys.readouterr()
    assert [text.partition(": ")[0] for text in out.splitlines()] == [
        "/etc/modprobe.d/x.conf:1",
        "/usr/lib/modprobe.d/y.conf:1",
    ]
    assert err == "kmodd lint: errors: 0, warnings: 2\n"
    write(root / "etc/modprobe.d/x.conf", f"# mine\n{line}")
    assert program.main(["--root", str(root), "--kernel", RELEASE]) == 1


def test_program_is_content(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write(root / f"lib/modules/{RELEASE}/kernel/{name}.ko", "")
    write(root / "etc/modprobe.d/x.conf", "options d x=1\nblacklist a\n")
    assert program.main(["--root", str(root), "--kernel", RELEASE]) == 0
    out, err = capsys.readouterr()
    assert out.count("warning") == out.count("\n") == 1
    assert err == "kmodd lint: errors: 0, warnings: 1\n"
    (root / "etc/modprobe.d/x.conf").unlink()
    assert program.main(["--root", str(root), "--kernel", RELEASE]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_user_that_lacks_a_dependencys_file_does_not_load_a_blacklisted_one(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """c needs a and b; the control is the tree with both files."""
    write(root / "etc/modprobe.d/x.conf", "blacklist a\n")
    for name in "abc":
        write(root / f"lib/modules/{RELEASE}/kernel/{name}.ko", "")
    program.main(["--root", str(root), "--kernel", RELEASE])
    assert "a is still loaded as a dependency of b, c;" in capsys.readouterr().out
    (root / f"lib/modules/{RELEASE}/kernel/b.ko").unlink()
    program.main(["--root", str(root), "--kernel", RELEASE])
    assert "dependency of b;" in capsys.readouterr().out, "c would fail; b is tried after a"


def test_program_without_a_tree(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--root", str(root), "--kernel", "0"]) == 3
    assert capsys.readouterr().err.startswith("kmodd lint: no module tree for kernel 0")


def test_program_shows_bytes_as_they_are(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = root / "etc/modprobe.d/x.conf"
    write(path, "")
    path.write_bytes(b"options \xff x=1\n")
    assert program.main(["--root", str(root)]) == 1
    assert b"options for \xff: no such module" in capfdbinary.readouterr().out


@pytest.mark.parametrize("allowed", [False, True])
def test_a_file_that_is_not_roots_is_a_finding_unless_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], allowed: bool
) -> None:
    tree = tmp_path / MODULES[1:]
    tree.mkdir(parents=True)
    (tree / "modules.dep").write_text("a.ko:\nb.ko:\nc.ko:\n")
    for name in "ab":
        (tree / f"{name}.ko").touch()
    (tree / "a.ko").chmod(0o666)
    if allowed:
        (tmp_path / "etc/kmodd").mkdir(parents=True)
        (tmp_path / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nForeignModules=yes\n")
    assert program.main(["--root", str(tmp_path), "--kernel", RELEASE]) == 0
    expected = (
        f"{MODULES}/a.ko: warning: not loaded for devices, at boot and for the kernel's requests: it is writable by "
        "others; give root a copy of the file, or set ForeignModules=yes in kmodd.conf [foreign]\n"
    )
    assert capsys.readouterr().out == ("" if allowed else expected)
