"""`kmodd policy check` and `kmodd policy test`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kmodd.cli import policy as program
from tests import rootfs

USB = "usb:v0000p0000d0000dc09dsc00dp00ic09isc00ip00in00"
RULES = """\
allow request=fs-* uid=0 container=no
deny  request=fs-xfs,block-major-7-* origin=request   # users
deny  module=libcrc32c unit=evil.service
deny  subsystem=usb device=/devices/bad*
deny  subsystem=usb flag=locked
deny  module=crc32c_*
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = rootfs.build("names", tmp_path / "root")
    put(place, RULES)
    return place


def put(root: Path, text: str) -> None:
    file = root / "etc/kmodd/policy.d/10-x.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = program.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Problems with file:line:column, exit 1 if there are any."""
    assert run(capsys, "check", "--root", str(root)) == (0, "", "kmodd policy: rules: 6, mistakes: 0\n")
    put(root, "deny *\n  deny uid=me\n")
    status, out, err = run(capsys, "check", "--root", str(root))
    assert (status, err) == (1, "kmodd policy: rules: 1, mistakes: 1\n")
    first, second, third = out.splitlines()
    assert first.startswith("/etc/kmodd/policy.d/10-x.conf:2:12: expected a user ID")
    assert (second, third) == ("    deny uid=me", "             ^")
    assert run(capsys, "check", "--root", str(root / "nowhere"))[0] == 0


@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        ("fs-xfs --as 0", 0, "allow xfs   /etc/kmodd/policy.d/10-x.conf:1: allow request=fs-* uid=0 container=no; "),
        ("fs-xfs --as root", 0, "by request of uid 0 in phase running"),
        ("fs-xfs --as 0 --container", 1, "of uid 0 in a container"),
        ("fs-xfs --as 1000", 1, "deny  xfs   /etc/kmodd/policy.d/10-x.conf:2: deny  request=fs-xfs,block-major-7-*"),
        ("fs-xfs", 1, "of an unknown process"),
        ("fs-xfs --origin operator", 0, "allow xfs   no rule; "),
        ("fs-ext4 --as 1000", 0, "allow ext4   no rule; alias matched fs-ext4"),
        ("block-major-7-0 --as 0", 1, "deny  loop"),
        ("xfs --as 5 --unit evil.service", 1, "deny  libcrc32c"),
        ("xfs --as 5 --unit good.service", 0, "allow libcrc32c"),
        ("xfs --as 5", 0, "deny  crc32c_"),
        (USB, 0, "allow usbcore"),
        (f"{USB} --device /devices/bad/1", 1, "deny  usbcore"),
        (f"{USB} --flag locked", 1, "deny  usbcore"),
        (f"{USB} --flag locked --subsystem pci", 0, "for a device of pci"),
        (f"{USB} --phase sealed", 1, "deny  usbcore   sealed, and no rule allows it; "),
        ("fs-xfs --as 0 --phase sealed", 0, "in phase sealed"),
        ("net-pf-99", 1, "no module matches"),
    ],
)
def test_test(words: str, status: int, shown: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict and the rule for each module of the plan; a softdep may be refused."""
    found, out, err = run(capsys, "test", *words.split(), "--root", str(root), "--kernel", rootfs.RELEASE)
    assert shown in out
    assert (found, err) == (status, "")


def test_flags_are_those_that_are_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", USB, "--root", str(root)]
    flag = root / "run/kmodd/flags/locked"
    flag.parent.mkdir(parents=True)
    flag.parent.chmod(0o755)
    assert run(capsys, *words)[0] == 0
    flag.touch()
    assert run(capsys, *words)[0] == 1


def test_a_device_of_sysfs_describes_itself(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = root / "sys/devices/bad1/1-1"
    device.mkdir(parents=True)
    (device / "modalias").write_text(USB + "\n")
    (root / "sys/bus/usb").mkdir(parents=True)
    (device / "subsystem").symlink_to("../../../bus/usb")
    status, out, _ = run(capsys, "test", "/sys/devices/bad1/1-1", "--root", str(root))
    assert status == 1
    assert "by uevent for a device of usb" in out


def test_a_bad_line_is_reported_and_not_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(root, "denyy *\n")
    status, _, err = run(capsys, "test", "fs-xfs", "--root", str(root))
    assert status == 0
    assert "kmodd policy: Ignoring invalid rule: /etc/kmodd/policy.d/10-x.conf:1:1: expected allow" in err


def test_no_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "test", "loop", "--root", str(tmp_path), "--kernel", "0")[0] == 3


@pytest.mark.parametrize(
    "words",
    [["test"], ["test", "x", "--exe", "/x"], ["test", "x", "--as", "no such user"], ["test", "x", "--phase", "y"]],
)
def test_wrong_calls(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(words) == 2
    assert capsys.readouterr().err.endswith("; see `kmodd policy test --help`\n")


def test_rules_are_not_suggested_from_a_file_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A device has a line that fills the memory."""
    status, shown, said = run(capsys, "suggest", "--from", "/dev/zero")
    assert (status, shown) == (1, "")
    assert said == "kmodd policy: Failed to read /dev/zero: a line has more than 1 MiB, so it is no record\n"


def test_rules_are_suggested_from_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """As that of `--from <(journalctl …)`."""
    ours, theirs = os.pipe()
    os.write(theirs, b"no record\n")
    os.close(theirs)
    status, shown, said = run(capsys, "suggest", "--from", f"/dev/fd/{ours}")
    os.close(ours)
    assert (status, shown) == (1, "")
    assert "Ignoring 1 line without a JSON record" in said


USE = {
    "SYSLOG_IDENTIFIER": "kmodd", "_UID": "0", "KMODD_SOURCE": "request", "KMODD_RESULT": "loaded", "PRIORITY": "6",
    "KMODD_ALIAS": "net-pf-38", "KMODD_MODULE": "algif_aead", "KMODD_BECAUSE": "asked for", "KMODD_REQUESTER_UID": "0",
    "KMODD_REQUESTER_PID": "9", "KMODD_REQUESTER_COMM": "x", "KMODD_REQUESTER_UNIT": "x.service",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words", "status"),
    [("", [], 1), (json.dumps(USE), ["--unit", "y.service"], 1), (json.dumps(USE), ["--unit", "x.service"], 0)],
)
def test_no_rule_is_suggested_out_of_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], status: int
) -> None:
    """It would deny everything, and its output is meant for policy.d."""
    file = tmp_path / "records"
    file.write_text(text)
    ended, shown, said = run(capsys, "suggest", "--from", str(file), *words)
    assert ended == status
    assert (shown == "", "no rule is suggested: it would deny all of them" in said) == (status == 1, status == 1)


@pytest.mark.parametrize(("command", "status"), [("/bin/false", 1), ("/bin/true", 1), ("/bin/sh", 0)])
def test_what_is_blocked_is_not_allowed(
    root: Path, capsys: pytest.CaptureFixture[str], command: str, status: int
) -> None:
    (root / "etc/modprobe.d").mkdir(exist_ok=True)
    (root / "etc/modprobe.d/a.conf").write_text(f"install mbcache {command}\n")
    put(root, "")
    ended, shown, _ = run(capsys, "test", "--root", str(root), "ext4")
    assert ended == status
    assert ("it would fail because of mbcache, which is blocked" in shown) is (status == 1)
