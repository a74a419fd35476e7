"""`kmodd profile`: what a machine uses, in each form, as the programs read it that it is for; and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kmodd.config import policy_d
from kmodd.config.modprobe_d import ConfFile
from tests import program
from tests.journal_files import BEGIN, DAY, record, write_journal
from tests.rootfs import Said
from tests.world import World

NOW = time.time() - (BEGIN + DAY) / 1e6
"""Seconds from the begin of the journal's last boot until these tests run."""
HOURS = 3600
USER = {
    "KMODD_SOURCE": "request", "KMODD_ALIAS": "fs-c", "KMODD_REQUESTER_PID": "812", "KMODD_REQUESTER_COMM": "mount",
    "KMODD_REQUESTER_EXE": "/usr/bin/mount", "KMODD_REQUESTER_UID": "1000", "KMODD_REQUESTER_CONTAINER": "no",
}  # fmt: skip
DEVICE = {"KMODD_SOURCE": "uevent", "KMODD_ALIAS": "pci:v2", "KMODD_DEVPATH": "/devices/0000:02:00.0",
          "KMODD_SUBSYSTEM": "pci"}  # fmt: skip


def load(module: str, days_ago: float, *others: str, **fields: str) -> dict[str, Any]:
    """The record of a load, with those that it needs."""
    own = record("f101", NOW - days_ago * 24 * HOURS)
    what = {"KMODD_RESULT": "loaded", "KMODD_MODULE": module, "KMODD_REQUEST_ID": "7", **fields}
    return {**own, **what, "KMODD_MODULES": [*others, module]}


START = record("f122", NOW - 100 * 24 * HOURS, KMODD_LOADED_BEFORE=["early"])


@pytest.fixture
def machine(world: World) -> World:
    """A device asks for b, which needs a; early is loaded, d is only there."""
    world.add_files("early", "d")
    lines = ["a.ko:", "b.ko: a.ko", "c.ko:", "early.ko:", "d.ko:"]
    world.index(deps=lines, aliases=["alias pci:v1* b", "alias pci:v2* c"])
    world.live("early", "a")
    folder = world.root / "sys/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "modalias").write_text("pci:v1d\n")
    (folder / "uevent").write_text("MODALIAS=pci:v1d\n")
    (world.root / "sys/bus/pci/devices").mkdir(parents=True)
    (world.root / "sys/bus/pci/devices/0000:01:00.0").symlink_to("../../../devices/0000:01:00.0")
    (folder / "subsystem").symlink_to("../../bus/pci")
    return world


def run(world: World, records: list[dict[str, Any]], *words: str, stdin: bytes = b"") -> Said:
    write_journal(world.root / "var/log/journal", records)
    said = program.run(
        ["profile", words[0], "--root", str(world.root), *words[1:]], stdin=stdin, environment={"TZ": "UTC"}
    )
    assert b"Traceback" not in said.err
    return said


def made(world: World, form: str, *records: dict[str, Any]) -> str:
    said = run(world, [START, *records], "make", "--format", form)
    assert (said.err, said.status) == (b"", 0)
    return said.out.decode()


def test_history_loaded_modules_and_devices_with_what_they_need(machine: World) -> None:
    """Control: without the record of c, or with one that is older than --days, c is not in it; d never is."""
    text = made(machine, "modules-load", load("c", 2, **USER))
    assert text.splitlines()[1:] == [
        "# 4 modules: history 1, loaded 2, devices 2, dependencies 0", "a", "b", "c", "early"
    ]  # fmt: skip
    assert re.match(r"# kmodd profile of \d{4}-\d\d-\d\d, kernel 6.1.0-test, 30 days of history\n", text)
    for records in ([], [load("c", 40)]):
        assert made(machine, "modules-load", load("a", 2), *records).splitlines()[2:] == ["a", "b", "early"]
    machine.live("b")
    (machine.root / "sys/devices/0000:01:00.0/modalias").unlink()
    (machine.root / "sys/devices/0000:01:00.0/uevent").write_text("")
    assert "loaded 1, devices 0, dependencies 1" in made(machine, "modules-load", load("b", 2))


def shell(text: str, words: str, folder: Path) -> list[str]:
    """What bash has after it has read a file."""
    (folder / "conf").write_text(text)
    done = subprocess.run(["bash", "-c", f". ./conf; echo {words}"], cwd=folder, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().split()


def test_the_programs_read_it(machine: World, tmp_path: Path) -> None:
    """mkinitcpio and dracut read theirs with bash, localmodconfig the first word of each line but the header."""
    names = ["a", "b", "c", "early"]
    assert shell(made(machine, "mkinitcpio", load("c", 2)), '"${MODULES[@]}"', tmp_path) == names
    assert shell(made(machine, "dracut", load("c", 2)), "$add_drivers", tmp_path) == names
    table = made(machine, "lsmod", load("c", 2)).splitlines()
    assert table[0] == "Module                  Size  Used by"
    assert [line.split()[0] for line in table if not line.startswith("Module")] == names
    assert table[1].split() == ["a", "1", "1", "b"]
    assert made(machine, "initramfs-tools", load("c", 2)).splitlines()[2:] == names


def test_the_rules_are_valid_and_keep_who_asked(machine: World) -> None:
    """Devices get the modules, and a user what a user has had loaded. Control: without a request there is no rule."""
    text = made(machine, "policy", load("c", 2, **USER))
    parsed = policy_d.parse([ConfFile("x", text)])
    assert parsed.problems == ()
    assert [str(rule) for rule in parsed.rules] == [
        "allow origin=uevent,coldplug,reconcile,boot module=a,b,c,early",
        "deny origin=uevent,coldplug,reconcile,boot",
        "allow origin=request request=fs-c uid=1000- container=no",
        "deny origin=request",
    ]
    text = made(machine, "policy", load("b", 2, **DEVICE))
    assert "no request of the kernel that loaded a module is on record" in text
    assert "origin=request" not in text


@pytest.mark.parametrize("form", ["policy", "modules-load", "lsmod", "mkinitcpio", "dracut", "initramfs-tools"])
def test_a_profile_refuses_nothing_of_its_own_history(machine: World, tmp_path: Path, form: str) -> None:
    """Control: the next test."""
    records = [load("c", 2, **USER), load("b", 3, "a", **{**DEVICE, "KMODD_ALIAS": "pci:v1d"})]
    (tmp_path / "profile").write_text(made(machine, form, *records))
    said = run(machine, [START, *records], "test", str(tmp_path / "profile"))
    assert (said.out, said.status) == (b"", 0)
    assert said.err == b"kmodd profile test: 2 loads on record; modules that the profile would have refused: 0\n"


def test_what_is_refused_for_whom_and_how_often(machine: World, tmp_path: Path) -> None:
    """By a list, which lacks the module, and by a rule with its line. Control: what is older does not count."""
    records = [
        START, load("c", 40, **DEVICE), load("c", 3, **USER), load("c", 2, **{**USER, "KMODD_REQUESTER_PID": "813"}),
        load("b", 1, "a", **DEVICE),
    ]  # fmt: skip
    said = run(machine, records, "test", "-", stdin=b"b\n")
    rows = [re.split(r" {2,}", line) for line in said.out.decode().splitlines()]
    assert rows[0] == ["TIMES", "MODULE", "FOR", "LAST", "RULE"]
    assert [(row[:3], row[4]) for row in rows[1:]] == [
        (["2", "c", "mount uid 1000, /usr/bin/mount"], "not in the list"),
        (["1", "a", "pci 0000:02:00.0"], "not in the list"),
    ]
    assert said.status == 1
    file = tmp_path / "rules"
    file.write_text("# mine\ndeny origin=request uid=1000-\n")
    said = run(machine, records, "test", str(file))
    assert said.out.decode().splitlines()[1].endswith(f"{file}:2: deny origin=request uid=1000-")
    assert said.err.endswith(b"3 loads on record; modules that the profile would have refused: 2\n")
    file.write_text("deny origin=request uid=0\n")
    assert run(machine, records, "test", str(file)).status == 0
    assert run(machine, records, "test", "--days", "60", "-", stdin=b"a\nb\n").out.count(b"\n") == 3


def test_a_short_history_is_refused_with_the_reason(machine: World) -> None:
    """Control: with --force, and with as many days as there are."""
    short = [record("f122", NOW - 3 * 24 * HOURS), load("c", 1, **DEVICE)]
    said = run(machine, short, "make")
    assert (said.out, said.status) == (b"", 1)
    assert re.search(
        rb"the first record of kmodd in the journal is of [-0-9]+ [0-9:]+, less than 30 days ago", said.err
    )
    assert run(machine, short, "make", "--days", "2").status == 0
    forced = run(machine, short, "make", "--force")
    assert forced.status == 0
    assert b"of history (the first record of kmodd" in forced.out
    foreign = [{**START, "SYSLOG_IDENTIFIER": "other"}]
    said = run(machine, foreign, "make")
    assert (said.status, b"the journal has no record of kmodd: " in said.err) == (1, True)
    said = run(machine, foreign, "test", "-", stdin=b"a\n")
    assert (said.status, said.err) == (
        1, b"kmodd profile test: the journal has no record of kmodd, so nothing is tested\n"
    )  # fmt: skip


def test_a_history_without_a_load_is_refused(machine: World) -> None:
    """The daemon ran long ago, and not since. Control: a load in these days, in the test above."""
    for records in ([START], [START, load("c", 40, **DEVICE)]):
        said = run(machine, records, "make")
        assert (said.out, said.status) == (b"", 1)
        assert b"no load is on record of the last 30 days: what is used less often would be missing" in said.err
        said = run(machine, records, "test", "-", stdin=b"a\n")
        assert (said.out, said.status) == (b"", 1)
        assert said.err.endswith(b"no load is on record of the last 30 days, so nothing is tested\n")
    assert run(machine, [START], "make", "--force").status == 0


def test_the_history_begins_with_the_daemon(machine: World) -> None:
    """What a tool has recorded, as before kmodd was started for the first time, does not make it longer."""
    tool = load("d", 90, KMODD_SOURCE="operator", _COMM="insmod")
    said = run(machine, [tool, record("f122", NOW - 3 * 24 * HOURS), load("c", 1, **DEVICE)], "make")
    assert (said.out, said.status) == (b"", 1)
    assert b"less than 30 days ago" in said.err


@pytest.mark.parametrize("form", ["policy", "modules-load", "lsmod", "mkinitcpio", "dracut", "initramfs-tools"])
def test_a_name_that_other_programs_may_read_otherwise_is_left_out(machine: World, form: str) -> None:
    """A shell reads the lists of dracut and mkinitcpio. Control: the module that needs it."""
    odd = 'x";touch$IFS$HOME;"'
    machine.index(
        deps=["a.ko:", "b.ko: a.ko", "c.ko:", "early.ko:", f"d.ko: {odd}.ko", f"{odd}.ko:"], aliases=["alias pci:v1* b"]
    )
    said = run(machine, [START, load("d", 2, odd, **DEVICE)], "make", "--format", form)
    assert said.status == 0
    assert b"touch" not in said.out
    assert b"d" in said.out.replace(b",", b" ").split()
    assert said.err.startswith(b"kmodd profile make: Left out, as other programs may not take these for names: x")


def test_json(machine: World) -> None:
    """An object a line. Control: it is no form of --format."""
    records = [START, load("c", 2, **USER)]
    said = run(machine, records, "make", "--json")
    assert (said.err, said.status) == (b"", 0)
    assert [json.loads(line) for line in said.out.splitlines()] == [
        {"module": "a", "needs": []}, {"module": "b", "needs": ["a"]}, {"module": "c", "needs": []},
        {"module": "early", "needs": []},
    ]  # fmt: skip
    assert run(machine, records, "make", "--json", "--format", "lsmod").status == 2
    said = run(machine, records, "test", "--json", "-", stdin=b"a\n")
    (refused,) = map(json.loads, said.out.splitlines())
    assert refused.pop("last_usec") > 0
    assert refused == {
        "module": "c", "for": "mount uid 1000, /usr/bin/mount", "times": 1, "rule": "not in the list",
    }  # fmt: skip
    assert said.status == 1


def test_what_the_tree_lacks_is_left_out_and_said(machine: World) -> None:
    said = run(machine, [START, load("gone", 2, **DEVICE)], "make")
    assert said.err == b"kmodd profile make: Left out, as they are not in the tree of 6.1.0-test: gone\n"
    assert (b"gone" in said.out, said.status) == (False, 0)


def test_wrong_use_and_wrong_files(machine: World, tmp_path: Path) -> None:
    """Each line that is not understood is named; what is left is not taken for a profile."""
    for words in (["make", "--days", "0"], ["make", "--format", "x"], ["make", "x"], ["test"], ["x"], []):
        assert program.run(["profile", *words]).status == 2
    said = run(machine, [START], "test", "-", stdin=b"a\nb c\nd/e\n")
    assert said.err.count(b"Ignoring invalid line: -:") == 2
    said = run(machine, [START], "test", "-", stdin=b"# nothing\n")
    assert (b"names no module and has no rule" in said.err, said.status) == (True, 1)
    said = run(machine, [START], "test", "-", stdin=b"\x7fELF \0\n" * 99)
    assert said == Said(b"", b"kmodd profile test: -: names no module and has no rule\n", 1)
    said = run(machine, [START], "test", "-", stdin=b"a\n" + b"b c\n" * 99)
    assert (said.err.count(b"Ignoring"), b"Ignoring 89 more invalid lines\n" in said.err) == (11, True)
    assert run(machine, [START], "test", str(tmp_path / "none")).err.endswith(b"none: No such file or directory\n")
    machine.modules.rename(machine.root / "hidden")
    assert run(machine, [START], "make", "--force").status == 3
