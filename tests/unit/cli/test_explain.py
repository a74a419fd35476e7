"""`kmodd explain`, `kmodd lookup` and the options of both."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kmodd.cli import explain, lookup
from kmodd.cli.kmod import modprobe
from kmodd.cli.options import OptionError, Options
from tests import rootfs

SCHEMA = json.loads((rootfs.ROOTFS.parent.parent / "docs" / "explain.schema.json").read_text())
E1000E = "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = rootfs.build("names", tmp_path / "root")
    (place / "etc" / "modprobe.d").mkdir(parents=True)
    (place / "etc" / "modprobe.d" / "a.conf").write_text(
        "blacklist e1000e\ninstall tun /bin/tun $CMDLINE_OPTS\noptions tun a=1\nalias ghost nosuch\n"
    )
    return place


def base(root: Path) -> list[str]:
    return ["--root", str(root), "--kernel", rootfs.RELEASE]


def answers(root: Path, *requests: str) -> list[dict[str, Any]]:
    """Output of --json, each line checked against the schema."""
    out = io.TextIOWrapper(io.BytesIO())
    kept, sys.stdout = sys.stdout, out
    try:
        explain.main(["--json", *base(root), *requests])
    finally:
        sys.stdout = kept
    lines = [json.loads(line) for line in out.buffer.getvalue().splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    return lines


# ── explain ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_text_names_steps_then_skips(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert explain.main([*base(root), "fs-ext4", E1000E]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    directory = f"/lib/modules/{rootfs.RELEASE}"
    assert lines[0] == "fs-ext4 → 6 steps, 0 skips"
    assert lines[1].startswith("load crc32c_intel")
    assert lines[1].endswith(f"   because softdep of jbd2 in {directory}/modules.softdep:3")
    assert lines[4] == f"load mbcache {directory}/kernel/fs/mbcache.ko   because dependency of ext4"
    assert lines[6].startswith(
        f"load ext4 {directory}/kernel/fs/ext4/ext4.ko   because alias matched fs-ext4 of modules.alias:"
    )
    assert lines[7] == f"{E1000E} → 0 steps, 1 skip"
    assert lines[8].startswith(
        "skip e1000e   because blacklisted at /etc/modprobe.d/a.conf:1; alias matched pci:v00008086d"
    )


def test_text_of_install_options_and_no_match(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert explain.main([*base(root), "tun", "nosuch"]) == 1
    assert capfdbinary.readouterr().out.decode().splitlines() == [
        "tun → 1 step, 0 skips",
        "run /bin/tun a=1 for tun   because of install at /etc/modprobe.d/a.conf:2, its effect is not known; asked for",
        "nosuch → 0 steps, 1 skip",
        "skip nosuch   because no match",
    ]
    assert explain.main([*base(root), "kvm-intell"]) == 1
    assert capfdbinary.readouterr() == (
        "kvm-intell → 0 steps, 1 skip\nskip kvm-intell   because no match; did you mean 'kvm_intel'?\n".encode(),
        b"",
    )


def test_a_file_that_is_not_roots_is_denied_to_devices_and_named_for_an_operator(
    root: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    tree = f"/lib/modules/{rootfs.RELEASE}"
    (root / "home").mkdir(mode=0o777)
    (root / "home").chmod(0o777)
    loop = root / tree[1:] / "kernel/drivers/block/loop.ko"
    loop.rename(root / "home/loop.ko")
    loop.symlink_to(root / "home/loop.ko")
    why = f"is a link to {root}/home/loop.ko, and {root}/home is writable by others"
    path = f"{tree}/kernel/drivers/block/loop.ko"
    devname = root / tree[1:] / "modules.devname"
    devname.write_text("loop loop-control c10:237\n")
    (root / tree[1:] / "modules.alias").write_text("alias char-major-10-237 loop\n")
    assert explain.main([*base(root), "/dev/loop-control", "loop"]) == 1
    denied, loaded = capfdbinary.readouterr().out.decode().split("loop → ")
    assert f"skip loop   because denied by ForeignModules=no: {path} {why}; give root a copy" in denied
    assert loaded == f"1 step, 0 skips\nload loop {path}   because asked for; its file {why}\n"
    (root / "etc/kmodd").mkdir()
    (root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nForeignModules=yes\n")
    assert explain.main([*base(root), "/dev/loop-control"]) == 0


@pytest.mark.parametrize(
    ("request_", "kind", "status"),
    [
        ("ext4", "module", 0), ("serio", "module", 0), ("fs-ext4", "alias", 0), (E1000E, "modalias", 0),
        ("symbol:nosuch", "modalias", 1), ("nosuch", "alias", 1), ("ghost", "alias", 1), ("a[b", "alias", 1),
        ("aes-generic", "module", 0), ("/none/loop.ko", "file", 1), ("", "alias", 1),
    ],
)  # fmt: skip
def test_kinds_and_status(root: Path, request_: str, kind: str, status: int) -> None:
    (answer,) = answers(root, request_)
    assert (answer["request"], answer["kind"]) == (request_, kind)
    assert explain.main([*base(root), request_]) == status


def test_json_of_every_kind_of_entry(root: Path) -> None:
    (root / "proc").mkdir()
    (root / "proc" / "modules").write_text("jbd2 1 0 - Live 0x0\n")
    alias, tun, device, builtin, ghost = answers(root, "fs-ext4", "tun", E1000E, "sha256", "ghost")
    line = (rootfs.ROOTFS / "_tree" / "modules.alias").read_text().splitlines().index("alias fs-ext4 ext4") + 1
    assert alias["steps"][-1] == {
        "action": "insmod",
        "module": "ext4",
        "path": f"/lib/modules/{rootfs.RELEASE}/kernel/fs/ext4/ext4.ko",
        "options": "",
        "effect": None,
        "because": {"kind": "alias", "of": "fs-ext4", "pattern": "fs-ext4", "file": "modules.alias", "line": line},
    }
    assert alias["steps"][0]["because"]["kind"] == "softdep_pre"
    nothing = {"file": None, "line": None, "rule": None, "of": None}
    assert alias["skips"] == [{"module": "jbd2", "reason": "live", **nothing}]
    assert tun["steps"][0]["action"] == "install"
    assert tun["steps"][0]["path"] == "/bin/tun $CMDLINE_OPTS"
    assert tun["steps"][0]["options"] == "a=1"
    assert device["skips"][0] | {"rule": None} == {
        "module": "e1000e", "reason": "blacklisted", "file": "/etc/modprobe.d/a.conf", "line": 1, "rule": None,
        "of": None,
    }  # fmt: skip
    assert builtin["skips"][0]["reason"] == "builtin"
    assert ghost["skips"][0]["reason"] == "missing"


def test_what_the_kernel_refuses_is_not_loaded(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """ext4 needs jbd2. modprobe shows what it would try, as kmod does."""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/modules").write_text("")
    (root / "proc/cmdline").write_text("quiet module_blacklist=jbd2\n")
    assert explain.main([*base(root), "ext4"]) == 1
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert not [line for line in lines if line.startswith("load ")]
    assert "blocked jbd2   /proc/cmdline:1 module_blacklist=jbd2   because dependency of ext4" in lines
    assert "skip ext4   because it would fail because of jbd2, which is blocked; asked for" in lines
    assert lines[0] == "ext4 → 0 steps, 2 skips; would fail because of jbd2, blocked at /proc/cmdline:1"
    (answer,) = answers(root, "ext4")
    reasons = {skip["module"]: (skip["reason"], skip["of"]) for skip in answer["skips"]}
    assert (reasons["jbd2"], reasons["ext4"]) == (("blocked", None), ("depends", "jbd2"))
    assert modprobe.main(["--root", str(root), "-S", rootfs.RELEASE, "-D", "ext4"]) == 0
    assert b"jbd2.ko" in capfdbinary.readouterr().out
    (root / "proc/cmdline").write_text("quiet module_blacklist=jbd-2\n")
    assert explain.main([*base(root), "ext4"]) == 0


def test_what_an_install_command_keeps_out_is_blocked(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """As the daemon has it; another command is shown as a step."""
    conf = root / "etc/modprobe.d/zz.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text("install appletalk /bin/false\n")
    assert explain.main([*base(root), "appletalk"]) == 1
    assert capfdbinary.readouterr().out.decode().splitlines() == [
        "appletalk → 0 steps, 1 skip; blocked at /etc/modprobe.d/zz.conf:1",
        "blocked appletalk   /etc/modprobe.d/zz.conf:1 install /bin/false   because asked for",
    ]
    conf.write_text("install appletalk /opt/sh\n")
    assert explain.main([*base(root), "appletalk"]) == 0
    assert b"run /opt/sh for appletalk   because of install at /etc/modprobe.d/zz.conf:1, its effect is not known" in (
        capfdbinary.readouterr().out
    )


def test_a_name_that_says_false_is_probably_blocked(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """It is run all the same, as it may do something else."""
    (root / "etc/modprobe.d/zz.conf").write_text("install mbcache /opt/false\n")
    assert explain.main([*base(root), "mbcache", "ext4"]) == 1
    text = capfdbinary.readouterr().out.decode()
    assert (
        "; probably blocked\nrun /opt/false for mbcache   because of install at /etc/modprobe.d/zz.conf:1, probab"
        in text
    )
    assert [answer["steps"][-1]["effect"] for answer in answers(root, "mbcache", "tun")] == [
        "probably_blocked",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("logger no; exit 1", 1, "probably blocked, as its last command says"),
        ("/opt/setup || exit 1", 0, "its effect is not known"),
    ],
)
def test_a_last_command_that_refuses_counts_only_after_harmless_ones(
    root: Path, capfdbinary: pytest.CaptureFixture[bytes], command: str, status: int, says: str
) -> None:
    (root / "etc/modprobe.d/zz.conf").write_text(f"install mbcache {command}\n")
    assert explain.main([*base(root), "mbcache"]) == status
    assert f"/etc/modprobe.d/zz.conf:1, {says}; asked for" in capfdbinary.readouterr().out.decode()


def test_a_dependency_without_its_file_is_named(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """kmod drops all dependencies then, and tries the module alone; the control is the whole tree."""
    assert explain.main([*base(root), "ext4"]) == 0
    capfdbinary.readouterr()
    path = f"/lib/modules/{rootfs.RELEASE}/kernel/fs/mbcache.ko"
    (root / path[1:]).unlink()
    assert explain.main([*base(root), "ext4"]) == 1
    assert capfdbinary.readouterr().out.decode().splitlines() == [
        "ext4 → 0 steps, 2 skips; would fail because of mbcache",
        f"skip mbcache   because its file {path} is missing; dependency of ext4",
        "skip ext4   because it would fail because of mbcache, which is missing; asked for",
    ]


@pytest.mark.parametrize(("mode", "ends"), [("enforce", "it"), ("observe", "it, but Policy=observe"), ("off", "off")])
def test_for_whom_policy_denies_a_name(
    root: Path, capfdbinary: pytest.CaptureFixture[bytes], mode: str, ends: str
) -> None:
    """Root may load it; processes of users cannot make the kernel request it. Other names have no such line."""
    (root / "etc/kmodd/policy.d").mkdir(parents=True)
    (root / "etc/kmodd/policy.d/a.conf").write_text("deny request=fs-ext4 uid=1000-\ndeny subsystem=pci\n")
    (root / "etc/kmodd/kmodd.conf").write_text(f"[Kmodd]\nPolicy={mode}\n")
    assert explain.main([*base(root), "fs-ext4"]) == 0
    last = capfdbinary.readouterr().out.decode().splitlines()[-1]
    rule = "/etc/kmodd/policy.d/a.conf:1 deny request=fs-ext4 uid=1000-"
    assert last.startswith(f"denied ext4   {rule}   to users, if they make the kernel request it")
    assert last.endswith(ends)
    (answer,) = answers(root, "fs-ext4")
    assert [(each["whom"], each["mode"]) for each in answer["denied_to"]] == [(["users"], mode)]
    assert "denied_to" not in answers(root, "loop")[0]
    (root / "etc/modprobe.d/a.conf").unlink()
    assert explain.main([*base(root), E1000E]) == int(mode == "enforce"), (
        "a device of pci is denied where it is enforced"
    )


@pytest.mark.parametrize("rule", ["deny origin=operator module=loop", "deny module=loop", "deny origin=operator uid=0"])
@pytest.mark.parametrize(("mode", "status"), [("enforce", 1), ("observe", 0), ("off", 0)])
def test_a_rule_for_operators_denies_a_name(
    root: Path, capfdbinary: pytest.CaptureFixture[bytes], rule: str, mode: str, status: int
) -> None:
    """`kmodd policy test` shows it in each mode, as if it was enforced; the control is another module."""
    (root / "etc/kmodd/policy.d").mkdir(parents=True)
    (root / "etc/kmodd/policy.d/a.conf").write_text(f"allow module=fat,vfat\n{rule}\n")
    (root / "etc/kmodd/kmodd.conf").write_text(f"[Kmodd]\nPolicy={mode}\n")
    assert explain.main([*base(root), "loop"]) == status
    lines = capfdbinary.readouterr().out.decode().splitlines()
    skip = f"skip loop   because denied by {rule} at /etc/kmodd/policy.d/a.conf:2; asked for"
    assert (skip in lines) == bool(status)
    to_all = "to root, services, users, containers, if they make the kernel request it"
    assert any(to_all in line for line in lines) == (rule == "deny module=loop")
    assert explain.main([*base(root), "vfat"]) == 0


def test_a_dry_run_of_modprobe_as_json_is_what_explain_says(
    root: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Without --json it prints what kmod prints."""
    (root / "etc/modprobe.d/zz.conf").write_text("install mbcache /bin/false\n")
    under = ["--root", str(root), "-S", rootfs.RELEASE, "-n"]
    assert modprobe.main([*under, "--json", "ext4"]) == 1
    line = json.loads(capfdbinary.readouterr().out)
    jsonschema.validate(line, SCHEMA)
    assert line == answers(root, "ext4")[0]
    assert modprobe.main([*under, "-v", "ext4"]) == 0
    assert b"install /bin/false \n" in capfdbinary.readouterr().out


def test_bytes_that_are_no_text_survive(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kmodd.cli", "explain", *base(root), b"x\xff:\xe4"],
        capture_output=True, cwd=rootfs.ROOTFS.parent.parent, env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    assert done.stdout.startswith(b"x\xff:\xe4 \xe2\x86\x92 0 steps, 1 skip\n")
    (answer,) = answers(root, "x\udcff")
    assert answer["request"] == "x\udcff"


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def device(root: Path, path: str, **files: str) -> Path:
    place = root / "sys" / path
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_text(text)
    return place


def test_sys_path_all_lines_of_modalias_count(root: Path) -> None:
    device(root, "devices/a", modalias="acpi:NOSUCH:\ncrypto-sha256\nfs-ext4\n", uevent="MODALIAS=fs-vfat\n")
    (answer,) = answers(root, "/sys/devices/a")
    assert answer["kind"] == "sysfs"
    assert [skip["module"] for skip in answer["skips"]] == ["sha256_generic"]
    assert answer["steps"][-1]["because"]["of"] == "fs-ext4"


def test_sys_path_without_modalias_asks_its_uevent(root: Path) -> None:
    device(root, "devices/mmc", uevent="DEVTYPE=x\nMODALIAS=fs-vfat\n")
    (answer,) = answers(root, "/sys/devices/mmc")
    assert answer["steps"][-1]["module"] == "vfat"


def test_a_device_minds_the_blacklist_as_udevd_does(root: Path) -> None:
    device(root, "devices/x", modalias="e1000e\n")
    (answer,) = answers(root, "/sys/devices/x")
    assert answer["skips"][0]["reason"] == "blacklisted"
    (answer,) = answers(root, "e1000e")
    assert answer["steps"][0]["module"] == "e1000e"


def test_a_sysfs_path_without_a_modalias_is_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device(root, "devices/x", uevent="A=b\n")
    assert explain.main([*base(root), "/sys/devices/x", "/sys/none"]) == 1
    out, err = capsys.readouterr()
    assert (out.splitlines(), err) == (
        [
            "/sys/devices/x → 0 steps, 1 skip",
            "skip /sys/devices/x   because it has no modalias",
            "/sys/none → 0 steps, 1 skip",
            "skip /sys/none   because it does not exist",
        ],
        "",
    )
    assert explain.main(["--json", *base(root), "/sys/none"]) == 1
    assert capsys.readouterr().err == "kmodd explain: /sys/none does not exist\n"


def test_dev_node_that_does_not_exist_may_be_a_static_one(root: Path) -> None:
    (answer,) = answers(root, "/dev/fuse")
    assert answer["kind"] == "dev"
    assert answer["steps"][0]["because"]["of"] == "char-major-10-229"
    (answer,) = answers(root, "/dev/none")
    assert answer["skips"][0]["reason"] == "no_match"


@pytest.mark.root
def test_dev_node_goes_by_the_device_behind_it_or_by_its_number(root: Path) -> None:
    (root / "dev").mkdir()
    for name, kind, number in (
        ("sda1", stat.S_IFBLK, (8, 1)),
        ("loop0", stat.S_IFBLK, (7, 0)),
        ("fuse", stat.S_IFCHR, (10, 229)),
    ):
        os.mknod(root / "dev" / name, kind | 0o600, os.makedev(*number))
    disk = device(root, "devices/pci/host/block/sda")
    partition = device(root, "devices/pci/host/block/sda/sda1")
    scsi = device(root, "devices/pci/host/scsi", modalias="fs-ext4\n")
    (disk / "device").symlink_to(scsi)
    (root / "sys" / "dev" / "block").mkdir(parents=True)
    (root / "sys" / "dev" / "block" / "8:1").symlink_to(os.path.relpath(partition, root / "sys" / "dev" / "block"))
    partitioned, loop, fuse = answers(root, "/dev/sda1", "/dev/loop0", "/dev/fuse")
    assert partitioned["steps"][-1]["because"]["of"] == "fs-ext4"
    assert loop["steps"][0]["because"]["of"] == "block-major-7-0"
    assert fuse["steps"][0]["because"]["of"] == "char-major-10-229"


def test_a_file_below_dev_that_is_no_device_node(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "dev").mkdir()
    (root / "dev" / "x").write_text("")
    assert explain.main([*base(root), "/dev/x"]) == 1
    assert "skip /dev/x   because it is not a device node\n" in capsys.readouterr().out


# ── usage ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("program", [explain, lookup])
def test_usage_status_is_2_and_no_tree_is_3(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--frob"]) == 2
    assert "unrecognized option '--frob'" in capsys.readouterr().err
    assert program.main(["--root", str(tmp_path), "--kernel", "9.9", "x"]) == 3
    assert "no module tree for kernel 9.9" in capsys.readouterr().err
    assert program.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: kmodd ")


def test_explain_needs_a_request() -> None:
    assert explain.main([]) == 2


@pytest.mark.parametrize("program", [explain, lookup])
def test_a_guessed_kernel_is_reported(program: Any, root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    program.main(["--root", str(root), "loop"])
    assert f"kernel {rootfs.RELEASE}, the only one below {root}".encode() in capfdbinary.readouterr().err


# ── lookup ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def look_up(root: Path, data: bytes) -> tuple[bytes, bytes, int]:
    command = [sys.executable, "-m", "kmodd.cli", "lookup", *base(root)]
    done = subprocess.run(command, input=data, capture_output=True, cwd=rootfs.ROOTFS.parent.parent)
    return done.stdout, done.stderr, done.returncode


def test_lookup_of_arguments(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert lookup.main([*base(root), "fs-ext4", "aes", "crypto-crc32c", "serio", E1000E]) == 0
    out, err = capfdbinary.readouterr()
    assert out.decode().splitlines() == [
        "fs-ext4\text4", "aes\taesni_intel padlock_aes", "crypto-crc32c\tcrc32c_intel crc32c_generic", "serio\tserio",
        f"{E1000E}\te1000e",
    ]  # fmt: skip
    assert err == b""
    assert lookup.main([*base(root), "fs-ext4", "nosuch"]) == 1
    assert capfdbinary.readouterr() == (b"fs-ext4\text4\nnosuch\t\n", b"")


def test_lookup_of_a_stream(root: Path) -> None:
    out, err, status = look_up(root, b"fs-ext4\n\naes\n \nloop")
    assert (out, err, status) == (b"fs-ext4\text4\n\t\naes\taesni_intel padlock_aes\n \t\nloop\tloop\n", b"", 1)
    assert look_up(root, b"") == (b"", b"", 0)


def test_lookup_names_each_module_once(root: Path) -> None:
    (root / "etc/modprobe.d/a.conf").write_text("alias x loop\nalias [x] dummy\nalias ? loop\n")
    assert look_up(root, b"x\n")[0] == b"x\tloop dummy\n"


def test_lookup_refuses_a_long_name_and_a_nul_and_continues(root: Path) -> None:
    long, too_long = b"x" * 4096, b"x" * 4097
    out, err, status = look_up(root, b"loop\n" + too_long + b"\na\0b\n" + long + b"\n" + b"y" * 10**6 + b"\nloop\n")
    assert out == b"loop\tloop\n" + long + b"\t\n" + b"loop\tloop\n"
    assert err.splitlines() == [
        b"kmodd lookup: line 2 is longer than 4,096 bytes",
        b"kmodd lookup: line 3 contains a NUL byte",
        b"kmodd lookup: line 5 is longer than 4,096 bytes",
    ]
    assert status == 1


def test_lookup_is_a_stream(root: Path) -> None:
    """An answer comes before the next question."""
    command = [sys.executable, "-m", "kmodd.cli", "lookup", *base(root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=rootfs.ROOTFS.parent.parent, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for question, answer in ((b"loop\n", b"loop\tloop\n"), (b"fs-ext4\n", b"fs-ext4\text4\n")):
            process.stdin.write(question)
            assert process.stdout.readline() == answer
        process.stdin.close()
        assert process.wait() == 0


def test_lookup_any_bytes(root: Path) -> None:
    hostile = b"\xff\xfe\n$(reboot)\n'\"`\n" + b"A" * 2000 + b"\n[[[\n]\n\\\n"
    out, err, status = look_up(root, hostile)
    assert out == hostile.replace(b"\n", b"\t\n")
    assert (err, status) == (b"", 1)


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_options_as_getopt_has_them() -> None:
    options = Options(["x", "-ab", "-c", "1", "-c2", "--long=3", "--lo", "4", "-", "--", "-a"], "abc:", {"long": "l:"})
    assert list(options) == [("a", ""), ("b", ""), ("c", "1"), ("c", "2"), ("l", "3"), ("l", "4")]
    assert options.operands == ["x", "-", "-a"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-x"], "invalid option -- 'x'"),
        (["-c"], "option requires an argument -- 'c'"),
        (["--nope=1"], "unrecognized option '--nope=1'"),
        (["--flag=1"], "option '--flag' doesn't allow an argument"),
        (["--value"], "option '--value' requires an argument"),
        (["--fl"], "option '--fl' is ambiguous; possibilities: '--flag' '--flog'"),
    ],
)
def test_wrong_options(words: list[str], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        list(Options(words, "c:", {"flag": "f", "flog": "g", "value": "v:"}))
    assert str(caught.value) == text


# ── start-up ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("verb", "words"),
    [("modprobe", ["-D", "ext4"]), ("modprobe", ["-R", "fs-ext4"]), ("lookup", ["fs-ext4"]), ("explain", ["fs-ext4"])],
)
def test_programs_import_little(root: Path, verb: str, words: list[str]) -> None:
    """Start-up dominates a tool's run time: no large module is imported, and none of the daemon's."""
    release, folder = ("-S", "kmod.") if verb == "modprobe" else ("--kernel", "")
    argv = ["--root", str(root), release, rootfs.RELEASE, *words]
    program = (
        f"import sys; from kmodd.cli.{folder}{verb} import main; status = main({argv!r}); "
        "print(*sorted(sys.modules), file=sys.stderr); sys.exit(status)"
    )
    command = [
        "/usr/bin/python3",
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(rootfs.ROOTFS.parent.parent)!r}); {program}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=rootfs.ROOTFS.parent.parent)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    heavy = set(
        "argparse json pathlib subprocess socket logging ctypes selectors asyncio pyudev elftools varlink systemd "
        "tempfile shutil random kmodd.daemon.main kmodd.host.varlink_server".split()
    )
    assert loaded & heavy == set()
    if verb == "modprobe":
        assert "kmodd.index.alias_trie" not in loaded, "one question is answered out of the .bin"
