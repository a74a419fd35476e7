"""Plans of requests: the configurations of fixtures/rootfs, and each rule by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.config import modprobe_d
from kmodd.config.modprobe_d import ConfFile, Extensions
from kmodd.errors import Where
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import NOTHING_LOADED, Loaded, State, parse_modules
from kmodd.names import ModuleName
from kmodd.planning.plan import Insmod, Install, Plan, Reason, Skip
from kmodd.planning.request import Origin, Request
from kmodd.planning.resolve import ProbeOptions, joined_params, options_of, resolve
from tests import rootfs

TEXTS = {path.name: path.read_bytes() for path in (rootfs.ROOTFS / "_tree").iterdir()}
CONF = "/etc/modprobe.d/a.conf"


def snapshot(text: str = "", extensions: Extensions = Extensions(), files: dict[str, bytes] = TEXTS) -> Snapshot:  # noqa: B008
    softdep = ConfFile("/m/modules.softdep", files.get("modules.softdep", b"").decode())
    config = modprobe_d.parse([ConfFile(CONF, text), softdep], extensions)
    return Snapshot(Catalog([Layer("/m", files.get)]), config)


def plan(
    name: str,
    text: str = "",
    *,
    options: ProbeOptions = ProbeOptions(),  # noqa: B008
    loaded: Loaded = NOTHING_LOADED,
    extensions: Extensions = Extensions(),  # noqa: B008
    params: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
) -> Plan:
    request = Request(name, "operator", params=params)
    return resolve(request, snapshot(text, extensions), loaded, options, lambda path: path not in missing)


def having(**states: State) -> Loaded:
    words = {"live": "Live", "coming": "Loading", "going": "Unloading"}
    return parse_modules("".join(f"{name} 1 0 - {words[state]} 0x0\n" for name, state in states.items()))


def steps(made: Plan) -> list[str]:
    return [step.module for step in made.steps]


# ── every case against its `expected` ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", rootfs.cases())
def test_case_gives_its_expected_plan(case: str, tmp_path: Path) -> None:
    root = rootfs.build(case, tmp_path / "root")
    said = "".join(rootfs.transcript(command, rootfs.ours_in(root, command)) for command in rootfs.commands(case))
    assert said == (rootfs.ROOTFS / case / "expected").read_text()


def test_each_case_has_a_description() -> None:
    assert len(rootfs.cases()) >= 40
    for case in rootfs.cases():
        assert len((rootfs.ROOTFS / case / "about").read_text().splitlines()) == 1


# ── order and reasons ────────────────────────────────────────────────────────────────────────────────────────────────


def test_dependencies_come_right_to_left_with_their_softdeps_and_every_entry_has_its_reason() -> None:
    made = plan("fs-ext4")
    assert steps(made) == ["crc32c_intel", "crc32c_generic", "jbd2", "mbcache", "crc16", "ext4"]
    because = {str(step.module): step.because for step in made.steps}
    assert because["mbcache"] == Reason("dep", "ext4")
    assert because["crc32c_intel"] == Reason("softdep_pre", "jbd2", at=Where("/m/modules.softdep", 3))
    assert because["ext4"].kind == "alias"
    assert str(because["ext4"]).startswith("alias matched fs-ext4 of modules.alias:")
    assert {step.module: step.required for step in made.steps} == {
        "crc32c_intel": False, "crc32c_generic": False, "jbd2": True, "mbcache": True, "crc16": True, "ext4": True,
    }  # fmt: skip


def test_a_name_is_asked_for_and_the_boot_list_lists() -> None:
    assert plan("loop").steps[0].because == Reason("asked", "loop")
    made = resolve(Request("loop", "boot"), snapshot(), NOTHING_LOADED, options_of("boot"), lambda _: True)
    assert made.steps[0].because.kind == "boot"


def test_a_softdep_has_its_line() -> None:
    made = plan("loop", "\nsoftdep loop pre: dummy post: tun\n")
    assert [str(step.because) for step in made.steps] == [
        f"softdep of loop in {CONF}:2", "asked for", f"softdep of loop in {CONF}:2",
    ]  # fmt: skip


def test_no_match_has_no_goals() -> None:
    assert plan("nosuch").goals == ()
    assert [skip.reason for skip in plan("nosuch").skips] == ["no_match"]
    assert plan("a[b").goals == ()


def test_each_hit_is_a_goal() -> None:
    made = plan("aes")
    assert [goal.module for goal in made.goals] == ["aesni_intel", "padlock_aes"]
    assert steps(made) == ["cryptd", "crypto_simd", "aesni_intel", "padlock_aes"]


# ── what the kernel has ──────────────────────────────────────────────────────────────────────────────────────────────


def test_live_is_skipped_coming_and_going_are_not() -> None:
    loaded = having(jbd2="live", mbcache="coming", crc16="going", crc32c_intel="live", crc32c_generic="live")
    made = plan("ext4", loaded=loaded)
    assert steps(made) == ["mbcache", "crc16", "ext4"]
    assert [(skip.module, skip.reason) for skip in made.skips] == [
        ("crc32c_intel", "live"), ("crc32c_generic", "live"), ("jbd2", "live"),
    ]  # fmt: skip


def test_a_live_target_is_one_skip() -> None:
    (goal,) = plan("ext4", "install ext4 /bin/x\n", loaded=having(ext4="live")).goals
    assert goal.entries == (Skip("ext4", "live", Reason("asked", "ext4")),)


def test_ignore_loaded_plans_a_live_module() -> None:
    assert steps(plan("crc16", loaded=having(crc16="live"), options=ProbeOptions(ignore_loaded=True))) == ["crc16"]


def test_builtin_by_name_and_by_alias() -> None:
    for name in ("sha256_generic", "sha256"):
        (skip,) = plan(name).skips
        assert (skip.module, skip.reason) == ("sha256_generic", "builtin")


# ── blacklist ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("origin", "by_name", "by_alias"),
    [
        ("uevent", False, False), ("coldplug", False, False), ("reconcile", False, False), ("boot", False, False),
        ("request", True, False), ("operator", True, False),
    ],
)  # fmt: skip
def test_whose_blacklist_means_what(origin: str, by_name: bool, by_alias: bool) -> None:
    shot = snapshot("# x\nblacklist loop\nalias my loop\n")
    for name, goes in (("loop", by_name), ("my", by_alias), ("block-major-7-0", by_alias)):
        request = Request(name, origin)  # type: ignore[arg-type]
        made = resolve(request, shot, NOTHING_LOADED, options_of(request.origin), lambda _: True)
        assert steps(made) == (["loop"] if goes else []), name
        if not goes:
            (skip,) = made.skips
            assert (skip.reason, str(skip.at)) == ("blacklisted", f"{CONF}:2")
            assert skip.why() == f"blacklisted at {CONF}:2"


def test_a_blacklist_that_is_never_looked_at() -> None:
    assert steps(plan("my", "blacklist loop\nalias my loop\n", options=ProbeOptions(blacklist="never"))) == ["loop"]


def test_a_live_module_is_live_even_if_blacklisted() -> None:
    (skip,) = plan("my", "blacklist loop\nalias my loop\n", loaded=having(loop="live")).skips
    assert skip.reason == "live"


# ── commands and options ─────────────────────────────────────────────────────────────────────────────────────────────


def test_install_command_keeps_its_line_and_options() -> None:
    made = plan("loop", "options loop a=1\ninstall l* /bin/x $CMDLINE_OPTS\n", params=("b=2", "c=d e"))
    because = Reason("asked", "loop")
    expected = Install(ModuleName("loop"), "/bin/x $CMDLINE_OPTS", 'a=1 b=2 c="d e"', Where(CONF, 2), because)
    assert made.steps == (expected,)


def test_install_command_knows_the_alias_that_options_may_name() -> None:
    """Its runner looks for the options itself."""
    (step,) = plan("eth0", "alias eth* loop\noptions eth* a=1\ninstall loop /bin/x\n").steps
    assert isinstance(step, Install)
    assert (step.alias, step.options.strip()) == ("eth*", "a=1")


@pytest.mark.parametrize(
    ("name", "text", "loads", "skips"),
    [
        ("appletalk", "install appletalk /bin/false\n", [], ["appletalk blocked"]),
        ("appletalk", "install appletalk /bin/true\n", [], ["appletalk blocked"]),
        ("appletalk", "install psnap /bin/false\n", [], ["psnap blocked", "appletalk depends"]),
        ("appletalk", "install psnap /bin/true\n", [], ["psnap blocked", "appletalk depends"]),
        ("loop", "softdep loop pre: crc16\ninstall crc16 /bin/true\n", ["loop"], ["crc16 blocked"]),
        ("loop", "softdep loop pre: crc16\ninstall crc16 /bin/false\n", ["loop"], ["crc16 blocked"]),
        ("appletalk", "install psnap /opt/false\n", ["llc", "psnap", "appletalk"], []),
    ],
)
def test_what_a_command_keeps_out_is_blocked(name: str, text: str, loads: list[str], skips: list[str]) -> None:
    """What needs it does not come, and nothing else of the goal is in the plan then.

    The modprobe tool runs the command, as kmod does.
    """
    made = plan(name, text)
    assert sorted(steps(made)) == sorted(loads)
    assert [f"{skip.module} {skip.reason}" for skip in made.skips] == skips
    as_kmod = plan(name, text, options=ProbeOptions(blocked=False))
    assert not as_kmod.skips
    assert any(isinstance(step, Install) for step in as_kmod.steps)


def test_parameters_go_to_the_target_alone() -> None:
    made = plan("ext4", "options crc16 x=1\n", params=("p",))
    assert {step.module: step.options for step in made.steps if step.options} == {"crc16": "x=1 ", "ext4": "p"}


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ((), ""), (("a", "b=c"), "a b=c"), (("a=b c",), 'a="b c"'), (('a="b c"',), 'a="b c"'), (("a='b c",), "a='b c"),
        (("a b",), "a b"), (("a=",), "a="), (("", "a"), "a"), (("a", ""), "a "), (("a=b=c d",), 'a="b=c d"'),
    ],
)  # fmt: skip
def test_joined_params(params: tuple[str, ...], text: str) -> None:
    assert joined_params(params) == text


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_dependency_drops_the_list_and_is_complained_about() -> None:
    made = plan("ext4", missing=("/m/kernel/fs/mbcache.ko",), options=ProbeOptions(blocked=False))
    assert steps(made) == ["crc32c_intel", "crc32c_generic", "ext4"]
    assert len(made.complaints) == 1, "while it was looked up"
    assert len(made.goals[0].complaints) == 1, "and once more when the plan was made"
    assert made.complaints[0].endswith("path=/m/kernel/fs/mbcache.ko error=No such file or directory")


def test_what_needs_a_missing_file_is_known_to_fail() -> None:
    """All dependencies are dropped with the missing one; nothing is missing if the kernel has them all."""
    path = "/m/kernel/fs/mbcache.ko"
    made = plan("ext4", missing=(path,))
    assert [(skip.module, skip.reason, skip.path, skip.of) for skip in made.skips] == [
        ("mbcache", "missing", path, ""), ("ext4", "depends", "", "mbcache"),
    ]  # fmt: skip
    assert (made.steps, made.goals[0].comes) == ((), False)
    every = "crc16 mbcache jbd2"
    for names, comes in (("mbcache", False), (every, True)):
        kernel = parse_modules("".join(f"{name} 1 0 - Live 0x0\n" for name in names.split()))
        made = resolve(Request("ext4", "operator"), snapshot(""), kernel, ProbeOptions(), lambda each: each != path)
        assert made.goals[0].comes is comes


def test_a_module_without_a_file_is_missing() -> None:
    made = plan("x", "alias x nosuch\n")
    assert [(skip.module, skip.reason, skip.required) for skip in made.skips] == [("nosuch", "missing", True)]


def test_only_an_operator_may_name_a_path() -> None:
    shot = snapshot("options loop a=1\n")
    path = "/elsewhere/loop.ko.xz"
    made = resolve(Request(path, "operator"), shot, NOTHING_LOADED, options_of("operator"), lambda _: True)
    assert made.steps == (Insmod(ModuleName("loop"), path, "a=1 ", Reason("asked", path)),)
    origins: tuple[Origin, ...] = ("request", "uevent")
    for origin in origins:
        other = resolve(Request(path, origin), shot, NOTHING_LOADED, options_of(origin), lambda _: True)
        assert other.goals == ()


def test_a_path_brings_its_dependencies_by_name() -> None:
    request = Request("/elsewhere/ext4.ko", "operator")
    made = resolve(request, snapshot(), NOTHING_LOADED, options_of("operator"), lambda _: True)
    assert steps(made)[-3:] == ["mbcache", "crc16", "ext4"]
    assert made.steps[-1] == Insmod(ModuleName("ext4"), "/elsewhere/ext4.ko", "", Reason("asked", request.text))
    absent = resolve(request, snapshot(), NOTHING_LOADED, options_of("operator"), lambda _: False)
    assert [skip.reason for skip in absent.skips] == ["missing"]


# ── beyond kmod ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_blacklist_dependencies() -> None:
    text = "blacklist mbcache\nblacklist crc32c_intel\n"
    assert "mbcache" in steps(plan("ext4", text))
    made = plan("ext4", text, extensions=Extensions(blacklist_dependencies=True))
    assert steps(made) == ["crc32c_generic", "jbd2", "crc16"]
    assert [(skip.module, str(skip.at)) for skip in made.skips] == [
        ("crc32c_intel", f"{CONF}:2"), ("mbcache", f"{CONF}:1"), ("ext4", f"{CONF}:1"),
    ]  # fmt: skip


def test_a_live_dependency_may_be_blacklisted() -> None:
    made = plan(
        "ext4", "blacklist mbcache\n", loaded=having(mbcache="live"), extensions=Extensions(blacklist_dependencies=True)
    )
    assert steps(made)[-1] == "ext4"


def test_a_blacklisted_name_that_is_asked_for_stays_asked_for() -> None:
    assert steps(plan("loop", "blacklist loop\n", extensions=Extensions(blacklist_dependencies=True))) == ["loop"]


def test_softdeps_add_up() -> None:
    text = "softdep loop pre: dummy\nsoftdep lo* pre: tun post: fuse\n"
    assert steps(plan("loop", text)) == ["dummy", "loop"]
    assert steps(plan("loop", text, extensions=Extensions(softdeps_add_up=True))) == ["dummy", "tun", "loop", "fuse"]


def test_softdep_keeps_install() -> None:
    text = "softdep loop pre: dummy\ninstall loop /bin/x\n"
    assert isinstance(plan("loop", text).steps[1], Insmod)
    assert isinstance(plan("loop", text, extensions=Extensions(softdep_keeps_install=True)).steps[1], Install)


def test_a_long_chain_of_softdeps_is_resolved() -> None:
    count = 3000
    dep = "".join(f"kernel/m{n}.ko:\n" for n in range(count))
    text = "".join(f"softdep m{n} pre: m{n + 1}\n" for n in range(count - 1))
    shot = Snapshot(Catalog([Layer("/m", {"modules.dep": dep.encode()}.get)]), modprobe_d.parse([ConfFile(CONF, text)]))
    made = resolve(Request("m0", "operator"), shot, NOTHING_LOADED, ProbeOptions(), lambda _: True)
    assert len(made.steps) == count
