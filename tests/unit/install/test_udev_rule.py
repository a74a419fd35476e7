"""`systemd/udev-rule`: hides udevd's 80-drivers.rules while kmodd runs, and restores it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.installation import ROOT, run


class Rule:
    """`systemd/udev-rule` in a made-up root, with made-up `systemctl` and `udevadm`; calls of udevadm are recorded."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.link = self.root / "run/udev/rules.d/80-drivers.rules"
        self.mark = self.root / "run/kmodd.udev-rule"
        self.old_mark = self.root / "run/kmodd/udev-rule-masked"
        self.calls = folder / "calls"
        self._programs = folder / "bin"
        self._programs.mkdir()
        self._states = {"systemd-udevd.service": "active", "kmodd.service": "failed"}
        self._program("udevadm", f'echo "$@" >> {self.calls}\n')
        self.state("systemd-udevd.service", "active")

    def _program(self, name: str, text: str) -> None:
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def state(self, unit: str, state: str) -> None:
        """Set the state of `unit`."""
        self._states[unit] = state
        cases = "".join(f"{unit}) echo {state} ;;\n" for unit, state in self._states.items())
        self._program("systemctl", f"case $2 in\n{cases}esac\n")

    def __call__(self, verb: str, expect: int = 0) -> str:
        path = f"{self._programs}:{os.environ['PATH']}"
        done = run([ROOT / "systemd/udev-rule", verb], PATH=path, KMODD_ROOT=str(self.root))
        assert done.returncode == expect, done.stdout
        return done.stdout

    def called(self) -> list[str]:
        """Return and forget the arguments of each call of udevadm."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def rule(tmp_path: Path) -> Rule:
    return Rule(tmp_path)


RELOAD = "control --reload --timeout=5"


def test_mask_and_unmask(rule: Rule) -> None:
    assert rule("mask") == ""
    assert os.readlink(rule.link) == "/dev/null"
    assert rule.called() == [RELOAD]
    assert rule("unmask") == ""
    assert not os.path.lexists(rule.link)
    assert not rule.mark.exists()
    assert rule.called() == [RELOAD]


def test_mask_twice_as_after_a_crash_is_the_same(rule: Rule) -> None:
    rule("mask")
    assert rule("mask") == ""
    rule("unmask")
    assert not os.path.lexists(rule.link)


@pytest.mark.parametrize("target", ["/dev/null", "/etc/own.rules", None])
def test_a_rule_that_was_there_stays(rule: Rule, target: str | None) -> None:
    rule.link.parent.mkdir(parents=True)
    if target:
        rule.link.symlink_to(target)
    else:
        rule.link.write_text("own\n")
    assert "not kmodd's" in rule("mask")
    rule("unmask")
    assert os.readlink(rule.link) == target if target else rule.link.read_text() == "own\n"
    assert rule.called() == []


def test_a_rule_that_replaced_the_mask_stays(rule: Rule) -> None:
    rule("mask")
    rule.link.unlink()
    rule.link.write_text("own\n")
    rule("unmask")
    assert rule.link.read_text() == "own\n"


def test_a_rule_that_outranks_the_mask_is_reported(rule: Rule) -> None:
    own = rule.root / "etc/udev/rules.d/80-drivers.rules"
    own.parent.mkdir(parents=True)
    own.touch()
    assert "overrides" in rule("mask")
    assert os.readlink(rule.link) == "/dev/null"


@pytest.mark.parametrize("state", ["inactive", "deactivating", "failed"])
def test_a_udevd_that_does_not_run_is_not_notified(rule: Rule, state: str) -> None:
    """At boot udevd starts after kmodd, and its control socket would accept the message and never answer."""
    rule.state("systemd-udevd.service", state)
    rule("mask")
    rule("unmask")
    assert rule.called() == []


def test_unmask_without_a_mask_does_nothing(rule: Rule) -> None:
    rule("unmask")
    assert rule.called() == []


COMPAT = """# needed for old tape drivers
SUBSYSTEM=="scsi", ENV{DEVTYPE}=="scsi_device", TEST!="[module/sg]", RUN{builtin}+="kmod load sg"

KERNEL=="nvram", GROUP="kmem", MODE="0640"
"""


def compat(rule: Rule) -> Path:
    """Debian's file with a load line among others; returns the path of a copy."""
    file = rule.root / "usr/lib/udev/rules.d/80-debian-compat.rules"
    file.parent.mkdir(parents=True)
    file.write_text(COMPAT)
    return rule.root / "run/udev/rules.d/80-debian-compat.rules"


def test_a_name_with_a_line_end_leaves_nothing_behind(rule: Rule) -> None:
    """Its lines stay in effect, which is reported; the other files are masked."""
    copy = compat(rule)
    (rule.root / "usr/lib/udev/rules.d/81-a\nb.rules").write_text(COMPAT)
    said = rule("mask")
    assert "81-a: no such file" in said
    assert "cannot open" not in said.lower()
    assert sorted(path.name for path in copy.parent.iterdir()) == ["80-debian-compat.rules", "80-drivers.rules"]
    rule("unmask")
    assert list(copy.parent.iterdir()) == []


def test_a_load_line_among_others_is_hidden(rule: Rule) -> None:
    copy = compat(rule)
    rule("mask")
    assert 'KERNEL=="nvram", GROUP="kmem", MODE="0640"' in copy.read_text()
    assert "kmod load" not in copy.read_text()
    rule("mask")
    rule("unmask")
    assert not copy.exists()


@pytest.mark.parametrize("folder", ["etc", "run"])
def test_an_administrators_copy_stays(rule: Rule, folder: str) -> None:
    copy = compat(rule)
    own = rule.root / folder / "udev/rules.d/80-debian-compat.rules"
    own.parent.mkdir(parents=True)
    own.write_text("own\n")
    rule("mask")
    rule("unmask")
    assert own.read_text() == "own\n"
    assert copy.exists() is (folder == "run")


def test_restore_replays_the_devices(rule: Rule) -> None:
    rule("mask")
    rule.called()
    assert "udevd loads modules" in rule("restore")
    assert not os.path.lexists(rule.link)
    assert rule.called() == [RELOAD, "trigger --type=all --action=add"]


def test_restore_does_nothing_while_kmodd_runs(rule: Rule) -> None:
    rule("mask")
    rule.called()
    rule.state("kmodd.service", "active")
    assert "nothing to restore" in rule("restore")
    assert os.readlink(rule.link) == "/dev/null"
    assert rule.called() == []


# ── the mark of an earlier version, in /run/kmodd ────────────────────────────────────────────────────────────────────


def _binary(path: Path) -> None:
    path.write_bytes(b"\0\x7fELF\xff" * 1000)


def _a_link(path: Path) -> None:
    path.symlink_to(path.parents[1] / "linked")


def _another_path(path: Path) -> None:
    path.write_text("/etc/udev/rules.d\n")


OLD_MARKS = [Path.touch, _binary, _a_link, _another_path, Path.mkdir]


@pytest.fixture(params=OLD_MARKS)
def upgraded(rule: Rule, request: pytest.FixtureRequest) -> Rule:
    """Masked by an earlier version, whose mark the daemon may have replaced; of that mark, existence alone counts."""
    rule("mask")
    rule.called()
    rule.mark.unlink()
    rule.old_mark.parent.mkdir()
    request.param(rule.old_mark)
    return rule


@pytest.mark.parametrize("verbs", [["unmask"], ["restore"], ["mask", "unmask"], ["unmask", "mask", "unmask"]], ids=str)
def test_what_an_earlier_version_masked_is_unmasked(upgraded: Rule, verbs: list[str]) -> None:
    copy = compat(upgraded)
    for verb in verbs:
        assert "not kmodd's" not in upgraded(verb)
        assert os.path.lexists(upgraded.link) == (verb == "mask")
        assert upgraded.called()[0] == RELOAD
    assert not copy.exists()
    assert not os.path.lexists(upgraded.mark)
    assert upgraded.old_mark.is_dir() or not os.path.lexists(upgraded.old_mark)
    assert not (upgraded.root / "run/linked").exists(), "nothing is written through a link of the daemon's"


def test_an_old_mark_gives_away_no_file_of_others(upgraded: Rule) -> None:
    upgraded.link.unlink()
    upgraded.link.write_text("own\n")
    assert "not kmodd's" in upgraded("mask")
    upgraded("unmask")
    assert upgraded.link.read_text() == "own\n"


def test_wrong_usage(rule: Rule) -> None:
    assert "usage" in rule("explode", expect=2)
