"""`kmodd deny` and `kmodd allow`: the files that they write, and what they say."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from kmodd.cli import allow, deny, explain, lint
from kmodd.cli.kmod import modprobe
from tests import program, rootfs

LOCAL = "etc/kmodd/policy.d/05-local.conf"
TEMPORARY = "run/kmodd/policy.d/04-until-boot.conf"
DENY_FILE = "etc/modprobe.d/00-kmodd-deny.conf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return rootfs.build("names", tmp_path / "root")


def base(root: Path) -> list[str]:
    return ["--root", str(root), "--kernel", rootfs.RELEASE]


def text(root: Path, path: str) -> str:
    return (root / path).read_text() if (root / path).exists() else ""


def config(root: Path) -> dict[str, bytes]:
    """Each file of /etc and /run with its content."""
    places = [path for top in ("etc", "run") for path in (root / top).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in places}


def test_a_deny_for_all_is_a_rule_and_lines_of_modprobe_d(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert deny.main([*base(root), "ext4", "--why", "CVE-2026-1"]) == 0
    said = capfd.readouterr().out
    assert said.startswith("It holds once this root is booted\n")
    assert "+deny   module=ext4  # by kmodd deny: CVE-2026-1\n" in said
    assert "+install ext4 /bin/false\n" in said
    assert "ext4 is not loaded now\nAliases that would have brought it: ext2, ext3, fs_ext2" in said
    assert "Root can still load its file with insmod; `kmodd seal --permanent` ends that\n" in said
    assert explain.main([*base(root), "ext4"]) == 1
    assert "denied by deny   module=ext4 at /etc/kmodd/policy.d/05-local.conf:3" in capfd.readouterr().out
    assert explain.main([*base(root), "vfat"]) == 0
    assert lint.main([*base(root)]) in (0, 1)
    assert "00-kmodd-deny" not in capfd.readouterr().out


def test_without_the_daemon_modprobe_refuses_what_is_denied_to_all(root: Path) -> None:
    """As kmod's modprobe does, which reads the same lines; also for a module with a softdep, jbd2."""
    options = ["--root", str(root), "-S", rootfs.RELEASE, "-n", "-v"]
    assert deny.main([*base(root), "jbd2"]) == 0
    assert "softdep jbd2 pre:\n" in text(root, DENY_FILE)
    said = program.run(["modprobe", *options, "jbd2"])
    assert said.out == b"install /bin/false \n"
    assert b"insmod" in program.run(["modprobe", *options, "mbcache"]).out
    assert modprobe.main([*options, "fs-ext4"]) == 0


def test_a_second_call_changes_nothing_and_allow_takes_all_of_it_back(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = config(root)
    assert deny.main([*base(root), "ext4", "snd-hda-intel"]) == 0
    once = config(root)
    capfd.readouterr()
    assert deny.main([*base(root), "ext4", "snd_hda_intel", "--why", "other"]) == 0
    assert "Nothing to change" in capfd.readouterr().out
    assert config(root) == once != before
    assert allow.main([*base(root), "ext4", "snd_hda_intel"]) == 0
    assert config(root) == before
    assert allow.main([*base(root), "ext4"]) == 0
    assert config(root) == before


def test_a_name_that_the_tree_lacks_gets_a_hint(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The rule is written, as a later kernel may have the module. Control: a name like none."""
    assert deny.main([*base(root), "etx4", "nosuch"]) == 0
    said = capfd.readouterr().out
    assert "has no module etx4: the rule holds if one comes; did you mean 'ext4'?\n" in said
    assert "has no module nosuch: the rule holds if one comes\n" in said
    assert allow.main([*base(root), "etx4", "ext4"]) == 0
    assert "This kernel's tree has no module etx4; did you mean 'ext4'?\n" in capfd.readouterr().out


def test_a_root_that_does_not_exist_is_not_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for verb, what in ((deny, "denied"), (allow, "allowed")):
        for options in ([], ["--dry-run"]):
            assert verb.main(["--root", f"{tmp_path}/mtn", *options, "ext4"]) == 1
            assert capfd.readouterr().err.endswith(f": no directory {tmp_path}/mtn; nothing is {what}\n")
    assert list(tmp_path.iterdir()) == []


def test_lines_of_others_stay(root: Path) -> None:
    for path in (LOCAL, DENY_FILE):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / LOCAL).write_text("# mine\ndeny module=tun uid=33\n")
    (root / DENY_FILE).write_text("options tun x=1\n")
    before = config(root)
    assert deny.main([*base(root), "ext4"]) == 0
    assert text(root, LOCAL).endswith("# mine\ndeny module=tun uid=33\n")
    assert text(root, DENY_FILE).endswith("options tun x=1\n")
    assert allow.main([*base(root), "ext4"]) == 0
    assert config(root) == before


def test_calls_at_once_lose_no_line(root: Path) -> None:
    names = [f"module{number}" for number in range(6)]
    processes = [subprocess.Popen(program.command("deny", *base(root), name)) for name in names]
    assert [process.wait(120) for process in processes] == [0] * len(names)
    rules, lines = text(root, LOCAL), text(root, DENY_FILE)
    assert all(f"module={name}  #" in rules and f"install {name} /bin/false\n" in lines for name in names)
    assert sorted(path.name for path in (root / LOCAL).parent.iterdir()) == ["05-local.conf"]


def test_a_deny_for_some_has_no_lines_in_modprobe_d_and_says_when_it_holds(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert deny.main([*base(root), "ext4", "--for", "33"]) == 0
    assert deny.main([*base(root), "ext4", "--for", "backup.service"]) == 0
    rules = text(root, LOCAL)
    assert "module=ext4 uid=33" in rules
    assert "module=ext4 unit=backup.service" in rules
    assert text(root, DENY_FILE) == ""
    assert allow.main([*base(root), "ext4", "--for", "33"]) == 0
    assert "uid=33" not in text(root, LOCAL)
    assert deny.main([*base(root), "ext4", "--for", "no-such-user"]) == 2
    assert "unknown user" in capfd.readouterr().err


def test_a_deny_for_a_user_holds_for_her_subordinate_uids(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A process in a rootless container has one of these. Users are those of the root; control: one without any."""
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text(
        "root:x:0:0::/:/bin/sh\nalice:x:1005:1005::/home/alice:/bin/sh\nbob:x:1006:1006::/:/bin/sh\nbad\n"
    )
    ids = root / "etc/subuid"
    ids.write_text("bob:1:2:3\nalice:100000:65536\n1005:300000:1\nalice:x:5\nalice:7:0\nalice:4294967290:90\n")
    assert deny.main([*base(root), "ext4", "--for", "alice"]) == 0
    assert deny.main([*base(root), "ext4", "--for", "bob"]) == 0
    both = "deny   module=ext4 uid=1006  #", "deny   module=ext4 uid=1005,100000-165535,300000-300000  #"
    assert all(line in text(root, LOCAL) for line in both)
    ids.write_text("alice:200000:65536\n")
    capfd.readouterr()
    for _ in range(2):
        assert deny.main([*base(root), "ext4", "--for", "1005"]) == 0
    assert capfd.readouterr().out.count("Nothing to change") == 1
    assert "module=ext4 uid=1005,200000-265535  #" in text(root, LOCAL)
    assert "uid=1005,100000" not in text(root, LOCAL)
    ids.write_text("alice:1006:1\nalice:1000:10\nalice:2000:10\nroot:1005:1\n")
    assert deny.main([*base(root), "ext4", "--for", "alice"]) == 0
    assert deny.main([*base(root), "ext4", "--for", "root"]) == 0
    assert "module=ext4 uid=1005,2000-2009  #" in text(root, LOCAL), "bob is 1006"
    assert "module=ext4 uid=0  #" in text(root, LOCAL), "alice is 1005"
    ids.unlink()
    assert allow.main([*base(root), "ext4", "--for", "alice"]) == 0
    assert "uid=1005" not in text(root, LOCAL)
    assert both[0] in text(root, LOCAL)


def test_an_exception_for_a_user_looks_at_her_subordinate_uids(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another rule denies the module to these alone. Control: without them nothing has to be written."""
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("alice:x:1005:1005::/home/alice:/bin/sh\n")
    (root / "etc/kmodd/policy.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/kmodd/policy.d/50-x.conf").write_text("deny origin=request uid=100000-\n")
    (root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    assert allow.main([*base(root), "mbcache", "--for", "alice"]) == 0
    assert "Nothing to change" in capfd.readouterr().out
    (root / "etc/subuid").write_text("alice:100000:65536\n")
    assert allow.main([*base(root), "mbcache", "--for", "alice"]) == 0
    assert "allow  module=mbcache uid=1005,100000-165535  # by kmodd allow\n" in text(root, LOCAL)


def test_an_exception_is_written_only_where_a_rule_denies(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert allow.main([*base(root), "ext4", "--for", "33"]) == 0
    assert config(root).keys() & {LOCAL, DENY_FILE} == set()
    (root / "etc/kmodd/policy.d/50-x.conf").write_text("deny origin=request uid=!0\n")
    (root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    assert allow.main([*base(root), "mbcache", "--for", "33"]) == 0
    assert "allow  module=mbcache uid=33  # by kmodd allow\n" in text(root, LOCAL)
    assert allow.main([*base(root), "ext4", "--for", "33"]) == 1
    assert "ext4 is still kept out by that of crc16, which it needs: deny origin=request" in capfd.readouterr().out
    (root / "etc/kmodd/policy.d/01-x.conf").write_text("deny module=mbcache\n")
    assert allow.main([*base(root), "mbcache", "--for", "33"]) == 1
    assert (
        "mbcache is still kept out by deny module=mbcache at /etc/kmodd/policy.d/01-x.conf:1" in capfd.readouterr().out
    )


def test_a_line_of_modprobe_d_that_stays_is_named(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/hard.conf").write_text("install mbcache /bin/true\n")
    assert deny.main([*base(root), "mbcache"]) == 0
    assert allow.main([*base(root), "mbcache"]) == 1
    assert "kept out by blocked at /etc/modprobe.d/hard.conf:1 by install /bin/true" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("option", "condition"),
    [(["--for-seconds", "600"], " until="), (["--once"], " flag=once-ext4"), (["--until-boot"], "")],
)
def test_a_time_limit_is_an_exception_that_the_boot_ends(root: Path, option: list[str], condition: str) -> None:
    """In /run, with the rule and the lines kept; the next deny ends it, too."""
    assert deny.main([*base(root), "ext4"]) == 0
    denied = config(root)
    assert explain.main([*base(root), "ext4"]) == 1
    assert allow.main([*base(root), "ext4", *option]) == 0
    rule = f"allow  module=ext4{condition}"
    assert rule in text(root, TEMPORARY)
    assert {path: data for path, data in config(root).items() if path.startswith("etc")} == denied
    assert explain.main([*base(root), "ext4"]) == 0
    assert allow.main([*base(root), "ext4", *option]) == 0
    assert text(root, TEMPORARY).count("module=ext4") == 1
    assert deny.main([*base(root), "ext4"]) == 0
    assert text(root, TEMPORARY) == ""
    assert explain.main([*base(root), "ext4"]) == 1


@pytest.mark.parametrize(
    "whom",
    [["--for", 'a".service'], ["--for", "a\n.service"], ["--for", "no.user"], ["--for", ""], ["--for", "*.service"],
     ["--for", "33", "--for", "1000"]],
)  # fmt: skip
def test_for_takes_one_user_or_one_unit(root: Path, whom: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    before = config(root)
    assert deny.main([*base(root), "ext4", *whom]) == 2
    assert allow.main([*base(root), "ext4", *whom]) == 2
    assert config(root) == before
    assert "Traceback" not in capfd.readouterr().err


def test_a_unit_with_special_characters_is_named_exactly(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert deny.main([*base(root), "ext4"]) == 0
    for unit in ("a:b@c.service", r"dev-a\x2db.swap"):
        assert allow.main([*base(root), "ext4", "--once", "--for", unit]) == 0
    assert "flag=once-ext4-a_b_c_service-" in text(root, TEMPORARY)
    assert r"unit=dev-a\\x2db.swap" in text(root, TEMPORARY)
    assert "still kept out" not in capfd.readouterr().out


@pytest.mark.parametrize("blocked", [LOCAL, DENY_FILE])
def test_a_file_that_cannot_be_written_leaves_the_others_as_they_were(
    root: Path, blocked: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A FIFO in its place is refused before a file is changed."""
    assert deny.main([*base(root), "ext4"]) == 0
    (root / blocked).rename(root / "kept")
    os.mkfifo(root / blocked)
    before = config(root)
    capfd.readouterr()
    assert deny.main([*base(root), "vfat"]) == 1
    assert allow.main([*base(root), "ext4"]) == 1
    said = capfd.readouterr().err
    assert f"Failed to read /{blocked}: " in said
    assert "; nothing is denied\n" in said
    assert config(root) == before


@pytest.mark.parametrize("seconds", ["0", "-1", "1.5", "9" * 30, "1" + "0" * 400])
def test_seconds_are_a_number_of_them(root: Path, seconds: str) -> None:
    assert allow.main([*base(root), "ext4", f"--for-seconds={seconds}"]) == 2
    assert allow.main([*base(root), "ext4", "--for-seconds=1000000000"]) == 0


def test_names_come_from_a_list(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list").write_text("# advisory 7\next4  jbd2\n\nvfat # old\n")
    assert deny.main([*base(root), "--from", str(tmp_path / "list"), "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["module"] for line in lines] == ["ext4", "jbd2", "vfat"]
    assert lines[0]["files"] == [f"/{LOCAL}", f"/{DENY_FILE}"]
    assert "fs_ext4" in lines[0]["facts"]["aliases"]
    assert lines[1]["facts"]["dependents"] == ["ext4"]
    assert deny.main([*base(root), "--from", "/none"]) == 1
    assert deny.main([*base(root)]) == 2
    assert deny.main([*base(root), "firewire_*"]) == 2


def test_an_alias_and_a_link_are_refused(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = config(root)
    assert deny.main([*base(root), "fs-ext4"]) == 1
    assert "fs_ext4 is an alias of ext4; name the module" in capfd.readouterr().err
    (root / LOCAL).parent.mkdir(parents=True, exist_ok=True)
    (root / LOCAL).symlink_to("/dev/null")
    assert deny.main([*base(root), "ext4"]) == 1
    assert "it is a link" in capfd.readouterr().err
    (root / LOCAL).unlink()
    assert config(root) == before


def test_a_dry_run_shows_the_changes_only(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = config(root)
    assert deny.main([*base(root), "ext4", "--dry-run"]) == 0
    assert "+deny   module=ext4  # by kmodd deny\n" in capfd.readouterr().out
    assert allow.main([*base(root), "ext4", "--dry-run", "--once"]) == 0
    assert config(root) == before


@pytest.mark.parametrize("target", ["off", "null", "nosuch"])
@pytest.mark.parametrize("verb", [deny, allow])
def test_an_alias_that_stands_for_no_module_is_no_reason_to_refuse(
    root: Path, verb: ModuleType, target: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither is one of a module that is loaded and not in the tree; the control is one that is not loaded."""
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/x.conf").write_text(f"alias gone {target}\nalias mydrv ext4\n")
    assert verb.main([*base(root), "gone"]) == 0
    assert verb.main([*base(root), "mydrv"]) == 1
    assert "mydrv is an alias of ext4; name the module" in capfd.readouterr().err
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/modules").write_text("mydrv 1 0 - Live 0x0\n")
    assert verb.main([*base(root), "mydrv"]) == 0


def test_what_roots_disk_needs_wants_force(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ext4 needs jbd2; the control is a module that the disk does not need."""
    device = root / "sys/devices/pci0/virtio0"
    (device / "block/vda").mkdir(parents=True)
    (device / "driver").symlink_to("../../../bus/virtio/drivers/virtio_blk")
    driver = root / "sys/bus/virtio/drivers/virtio_blk"
    driver.mkdir(parents=True)
    (root / "sys/module/virtio_blk").mkdir(parents=True)
    (driver / "module").symlink_to("../../../../module/virtio_blk")
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block/254:0").symlink_to("../../devices/pci0/virtio0/block/vda")
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text("1 0 254:0 / / rw shared:1 - ext4 /dev/vda rw\n")
    before = config(root)
    for name in ("ext4", "jbd2", "virtio_blk"):
        assert deny.main([*base(root), name]) == 1
        said = capfd.readouterr().err
        assert f"the file system at / would be lost at the next boot without {name}; nothing is changed" in said
    assert config(root) == before
    assert deny.main([*base(root), "vfat"]) == 0
    assert deny.main([*base(root), "ext4", "--for", "33"]) == 0
    assert deny.main([*base(root), "virtio_blk", "--force"]) == 0


def test_the_scope_is_the_first_line_of_a_pipe(root: Path) -> None:
    said = subprocess.run(program.command("deny", *base(root), "ext4"), capture_output=True, timeout=120).stdout
    assert said.startswith(b"It holds once this root is booted\n--- ")


def test_a_module_with_a_softdep_is_kept_out_from_the_first_deny_on(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """jbd2 has a softdep; only one of an earlier file counts before the empty one that deny writes."""
    assert deny.main([*base(root), "jbd2"]) == 0
    assert "modprobe loads it all the same" not in capfd.readouterr().out


def test_lines_of_modprobe_d_that_come_first_are_named(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/00-a.conf").write_text(
        "install ext4 /sbin/modprobe --ignore-install ext4\nsoftdep ext4 pre: mbcache\n"
    )
    (root / "etc/modprobe.d/50-b.conf").write_text(
        "install fs-ext4 /sbin/modprobe --ignore-install ext4\ninstall vfat /bin/true\n"
    )
    assert deny.main([*base(root), "ext4"]) == 0
    said = capfd.readouterr().out
    assert said.startswith("It holds once this root is booted, while kmodd runs, but not while it does not")
    assert "While kmodd does not run, modprobe loads it all the same, by the install line at" in said
    for place in ("00-a.conf:1", "50-b.conf:1", "00-a.conf:2, which disables the install line"):
        assert f"/etc/modprobe.d/{place}" in said
    assert deny.main([*base(root), "vfat"]) == 0
    assert "all the same" not in capfd.readouterr().out


def test_a_rule_of_an_earlier_file_is_said_first(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "etc/kmodd/policy.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/kmodd/policy.d/00-a.conf").write_text("allow *\n")
    (root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    assert deny.main([*base(root), "ext4"]) == 1
    said = capfd.readouterr().out
    assert said.startswith("A rule of an earlier file allows ext4 all the same")
    assert "It holds" not in said


def test_a_list_has_modules_and_may_have_numbers_of_cves(root: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("CVE-2026-31431 ext4\n")
    assert deny.main([*base(root), "--from", str(tmp_path / "list")]) == 0
    assert "CVE" not in text(root, LOCAL)
    (tmp_path / "list").write_text("# none\n")
    assert deny.main([*base(root), "--from", str(tmp_path / "list")]) == 2
    assert deny.main([*base(root), "CVE-2026-31431"]) == 2


def test_a_dependency_that_is_denied_keeps_a_module_out(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert deny.main([*base(root), "jbd2", "ext4"]) == 0
    capfd.readouterr()
    assert allow.main([*base(root), "ext4"]) == 1
    assert "ext4 is still kept out by that of jbd2, which it needs: deny   module=jbd2" in capfd.readouterr().out
    assert allow.main([*base(root), "jbd2"]) == 0


def test_an_exception_that_is_masked_or_not_in_modprobe_d_is_no_success(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert deny.main([*base(root), "ext4"]) == 0
    assert allow.main([*base(root), "ext4", "--for", "33"]) == 0
    assert "While kmodd does not run, modprobe.d denies ext4 to all\n" in capfd.readouterr().out
    (root / "etc/kmodd/policy.d/04-until-boot.conf").symlink_to("/dev/null")
    assert allow.main([*base(root), "ext4", "--until-boot"]) == 1


def test_an_exception_until_the_boot_does_not_stand_for_a_lasting_one(root: Path) -> None:
    (root / "etc/kmodd/policy.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/kmodd/policy.d/50-x.conf").write_text("deny module=ext4\n")
    (root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    assert allow.main([*base(root), "ext4", "--until-boot"]) == 0
    assert allow.main([*base(root), "ext4"]) == 0
    assert "allow  module=ext4  # by kmodd allow\n" in text(root, LOCAL)
    assert text(root, TEMPORARY) == ""


@pytest.mark.parametrize(("kind", "module"), [("ext4", "ext4"), ("ext4", "jbd2"), ("vfat", "vfat")])
def test_the_file_system_of_root_wants_force_without_a_driver_below(root: Path, kind: str, module: str) -> None:
    """The driver of the disk may be built in, and a network file system has none. The control is another module."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(f"1 0 0:40 / / rw - {kind} server:/ rw\n")
    assert deny.main([*base(root), module]) == 1
    assert deny.main([*base(root), "snd-hda-intel"]) == 0


def test_a_rule_by_an_alias_counts_for_a_module(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An earlier one of another file allows it, or still denies it; a later one is answered by an allow."""
    folder = root / "etc/kmodd/policy.d"
    folder.mkdir(parents=True)
    (folder / "00-a.conf").write_text("allow request=fs-ext4 uid=0\n")
    (root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    assert deny.main([*base(root), "ext4"]) == 1
    assert "allows ext4 all the same to some: allow request=fs-ext4 uid=0 at" in capfd.readouterr().out
    assert deny.main([*base(root), "vfat"]) == 0
    (folder / "00-a.conf").unlink()
    (folder / "50-b.conf").write_text("deny request=fs-fuse uid=!0\n")
    assert allow.main([*base(root), "fuse"]) == 0
    assert "allow  module=fuse  # by kmodd allow\n" in text(root, LOCAL)
    (folder / "50-b.conf").rename(folder / "00-b.conf")
    capfd.readouterr()
    assert allow.main([*base(root), "fuse"]) == 1
    assert "fuse is still kept out by deny request=fs-fuse uid=!0 at" in capfd.readouterr().out


def test_a_file_that_is_not_read_any_more_is_named(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One of the package has the same name. The control is a call that makes no file."""
    for path in ("usr/lib/kmodd/policy.d/05-local.conf", "usr/lib/modprobe.d/00-kmodd-deny.conf"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("# of the package\n")
    assert deny.main([*base(root), "ext4"]) == 0
    said = capfd.readouterr().out
    assert "/usr/lib/kmodd/policy.d/05-local.conf is not read any more, as a file of its name comes first now\n" in said
    assert "/usr/lib/modprobe.d/00-kmodd-deny.conf is not read any more" in said
    assert deny.main([*base(root), "vfat"]) == 0
    assert "not read any more" not in capfd.readouterr().out


def test_the_difference_shows_marks_of_direction_as_such(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The lines of others in it may be anyone's."""
    (root / LOCAL).parent.mkdir(parents=True, exist_ok=True)
    (root / LOCAL).write_text("#\tmine \u202e\x1b[2J\n")
    assert deny.main([*base(root), "ext4", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "#\tmine \\u202e\\x1b[2J" in said
    assert "\u202e" not in said
