"""`kmodd why`: records of the engine in a real journal, and the machine as it is now, give the true answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli.why import answers_of
from kmodd.cli.why_facts import Machine
from kmodd.daemon.policy_marks import SEALED
from kmodd.host.journalctl import Query, journal_records
from kmodd.planning.history import entries_of
from kmodd.planning.record import DEBUG, INFO
from kmodd.planning.why import Records, answer_object
from tests import program
from tests.journal_files import BOOTS, record, write_journal, written
from tests.rootfs import Said
from tests.world import World

BUS = "0000:01:00.0"
START = record("f122", 0.5, KMODD_VERSION="0.9", KMODD_LOADED_BEFORE=["x", "autofs4"])


def machine(folder: Path, level: int = INFO) -> World:
    world = World(folder, log_level=level)
    random = world.root / "proc/sys/kernel/random"
    random.mkdir(parents=True)
    (random / "boot_id").write_text("22222222-2222-2222-2222-222222222222\n")
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With the level of records that is the default, in the boot of the journal's last records."""
    return machine(tmp_path)


def device(world: World, alias: str, name: str = BUS, driver: str = "", module: str = "") -> str:
    """Have a device in /sys; return its path there."""
    folder = world.root / "sys/devices" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modalias").write_text(f"{alias}\n")
    bus = world.root / "sys/bus/pci"
    (bus / "devices").mkdir(parents=True, exist_ok=True)
    (bus / "devices" / name).symlink_to(f"../../../devices/{name}")
    (folder / "subsystem").symlink_to("../../bus/pci")
    if driver:
        (bus / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(f"../../bus/pci/drivers/{driver}")
        if module:
            link = bus / "drivers" / driver / "module"
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../../../module/{module}")
    return f"/sys/devices/{name}"


def journal(world: World, before: tuple[dict[str, Any], ...] = ()) -> str:
    """Have all that the engine has recorded in the journal."""
    records = [*before, START, *(written(each, 2.0 + place) for place, each in enumerate(world.records))]
    return write_journal(world.root / "var/log/journal", records)


def run(world: World, *words: str, before: tuple[dict[str, Any], ...] = ()) -> Said:
    """What `kmodd why` says of the system below the world's root."""
    journal(world, before)
    return program.run(["why", "--root", str(world.root), *words], environment={"TZ": "UTC"})


def text(world: World, *words: str) -> str:
    said = run(world, *words)
    assert b"Traceback" not in said.err
    return re.sub(r"; \d+ days ago", "", said.out.decode())


def told(world: World, *words: str, before: tuple[dict[str, Any], ...] = ()) -> list[dict[str, Any]]:
    """The objects that it prints."""
    return [json.loads(line) for line in run(world, "--json", *words, before=before).out.splitlines()]


def answers(world: World, subject: str, status: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The answers of the machine itself, with the commands that change them. status: of the daemon, if it runs."""
    facts = Machine(str(world.root), status)
    facts.check()
    with journal_records(Query(boot="0", directory=journal(world))) as lines:
        records = Records(tuple(entries_of(lines)))
    return [json.loads(json.dumps(answer_object(each))) for each in answers_of(subject, facts, records)]


def answer(world: World, subject: str, status: dict[str, Any] | None = None) -> dict[str, Any]:
    (only,) = answers(world, subject, status)
    return only


def commands(found: dict[str, Any]) -> list[str]:
    return [each["command"] for each in found["remedies"] if each["command"]]


def places(found: dict[str, Any]) -> list[tuple[str, int]]:
    return [(each["file"], each["line"]) for each in found["lines"]]


# ── what is there ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_module_of_a_device_has_its_whole_way(world: World) -> None:
    """Device, alias, pattern and file:line, module, when, how long, by which kmodd."""
    world.plug("pci:v1", BUS)
    world.settle()
    world.live("a", "b")
    assert text(world, "b") == (
        "b is loaded for 0000:01:00.0\n"
        "    Device: 0000:01:00.0, /sys/devices/0000:01:00.0\n"
        "     Alias: pci:v1\n"
        "   Matched: pci:v1* at modules.alias:1\n"
        "    Module: b, /lib/modules/6.1.0-test/b.ko\n"
        "      With: a\n"
        "      When: Wed 2023-11-15 22:13:22 UTC\n"
        "      Took: 14us, after a wait of 0us, b alone 7us\n"
        "        By: kmodd 0.9[333], request 1\n"
    )


def test_a_dependency_says_as_whose_it_came(world: World) -> None:
    """The reason is recorded, softdeps with their line: an index that changed since then has no say."""
    (world.root / "etc/modprobe.d/x.conf").write_text("softdep a pre: c\n")
    world.reload()
    world.plug("pci:v1", BUS)
    world.settle()
    world.live("a", "b", "c")
    world.index(deps=["a.ko:", "b.ko:", "c.ko:"], aliases=[])
    found = answer(world, "a")
    assert found["sentence"] == "a is loaded, as a dependency of b, for 0000:01:00.0"
    assert found["needed_by"] == [{"module": "a", "reason": "dependency of b"}]
    found = answer(world, "c")
    assert found["needed_by"] == [
        {"module": "c", "reason": "softdep of a in /etc/modprobe.d/x.conf:1"},
        {"module": "a", "reason": "dependency of b"},
    ]
    assert (found["record"]["module"], found["kmodd"]) == ("b", {"version": "0.9", "pid": 333})


def test_a_request_says_whose_it_was_also_after_its_end(world: World) -> None:
    world.ask("pci:v2", pid=4242)
    world.settle()
    world.live("c")
    shown = text(world, "c")
    assert shown.startswith("c is loaded for asker[4242] uid 1000\n   Process: asker[4242] uid 1000, /usr/bin/asker\n")
    assert text(world, "4242").startswith("Loaded c for asker[4242] uid 1000 in 7us\n")
    assert answer(world, "asker[4242]")["kind"] == "process"
    assert answer(world, "pci:v2")["record"]["requester"]["pid"] == 4242


def test_a_module_from_before_kmodd_says_who_can_have_loaded_it(world: World) -> None:
    """Control: one that the kernel got after the start, but not by kmodd."""
    (world.root / "etc/modules-load.d").mkdir()
    (world.root / "etc/modules-load.d/y.conf").write_text("# a list\nx\n")
    (world.root / "run/initramfs").mkdir(parents=True)
    world.live("x", "autofs4", "c")
    found = answer(world, "x")
    assert (found["answer"], found["sentence"]) == ("before", "x was loaded before kmodd started")
    assert found["suspects"][0] == "systemd-modules-load in the initrd, by /etc/modules-load.d/y.conf:2"
    assert any(each.startswith("the initrd") for each in found["suspects"])
    assert "systemd itself, which loads it before any unit" in answer(world, "autofs4")["suspects"]
    found = answer(world, "c")
    assert (found["answer"], found["suspects"]) == ("elsewhere", [])
    restarted = (record("f122", 0.2, KMODD_LOADED_BEFORE="x"),)
    assert told(world, "autofs4", before=restarted)[0]["answer"] == "elsewhere", "not before the first start"
    assert "by another program" in found["sentence"]


def test_a_module_of_the_kernel_image(world: World) -> None:
    (world.modules / "modules.builtin").write_text("kernel/x/y-z.ko\n")
    found = answer(world, "y-z")
    assert (found["answer"], found["sentence"]) == ("builtin", "y_z is part of the kernel image")


@pytest.mark.parametrize("kernel", ["", "c 16384 1 - Loading 0x0\n"])
def test_what_a_loader_is_loading_now_says_so(world: World, kernel: str) -> None:
    """By the daemon's lanes, before the kernel has it and after. Control: no loader has it."""
    (world.root / "proc/modules").write_text(kernel)
    status = {"release": world.modules.name, "root": "/elsewhere", "directory": "", "lanes": [{"pid": 7}]}
    lanes = [{"pid": 7, "module": "c", "since_usec": 3_200_000}]
    found = answer(world, "c", {**status, "lanes": lanes})
    assert (found["answer"], found["sentence"]) == ("loading", "c is being loaded by kmodd, for 3.2s until now")
    assert commands(found) == ["kmodd wait c"]
    found = answer(world, "c", status)
    assert (found["answer"], "by another program" in found["sentence"]) == (
        ("loading", True) if kernel else ("not_asked", False)
    )


# ── what is not there ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_blacklisted_module_has_its_line_and_what_changes_it(world: World) -> None:
    (world.root / "etc/modprobe.d/x.conf").write_text("# no\nblacklist c\n")
    world.reload()
    for plugged in (False, True):  # before a request the plan says it
        if plugged:
            world.plug("pci:v2", BUS)
            world.settle()
        found = answer(world, "c")
        assert (found["answer"], places(found)) == ("blacklisted", [("/etc/modprobe.d/x.conf", 2)])
        assert commands(found) == ["modprobe c", "sed -i '2s/^/#/' /etc/modprobe.d/x.conf"]
    assert "      Line: /etc/modprobe.d/x.conf:2\n" in text(world, "c")


def test_a_line_that_is_gone_is_not_told_as_present(world: World) -> None:
    """Nor is another line edited that stands there now; an install command that also keeps it out has its line."""
    file = world.root / "etc/modprobe.d/x.conf"
    file.write_text("blacklist c\n")
    world.reload()
    world.plug("pci:v2", BUS)
    world.settle()
    file.write_text("options c debug=1\n")
    found = answer(world, "c")
    assert found["sentence"] == (
        "c is not loaded; the last request was refused by /etc/modprobe.d/x.conf:1, which no longer says so"
    )
    assert commands(found) == ["modprobe c"]
    file.write_text("options c debug=1\ninstall c /bin/false\nblacklist c\n")
    found = answer(world, "c")
    assert places(found) == [("/etc/modprobe.d/x.conf", 3), ("/etc/modprobe.d/x.conf", 2)]
    assert commands(found) == [
        "modprobe --ignore-install c", "sed -i '3s/^/#/' /etc/modprobe.d/x.conf",
        "sed -i '2s/^/#/' /etc/modprobe.d/x.conf",
    ]  # fmt: skip


def test_a_denied_module_has_its_rule(world: World) -> None:
    world.set_rules("deny request=pci:v2 uid=1000-")
    world.ask("pci:v2", pid=4242)
    world.settle()
    for subject in ("c", "4242", "pci:v2"):
        found = answer(world, subject)
        assert (found["answer"], places(found)) == ("denied", [("/etc/kmodd/policy.d/x.conf", 1)])
        assert found["lines"][0]["rule"] == "deny request=pci:v2 uid=1000-"
        assert commands(found)[1] == "kmodd policy test pci:v2 --as 1000"
    assert answer(world, "c")["notes"] == [], "the answer is that rule"
    rules = world.root / "etc/kmodd/policy.d"
    (rules / "y.conf").write_text("deny orgin=request\n")
    assert commands(answer(world, "c"))[0] == "kmodd policy check", "a mistake: no change is in force"
    (rules / "y.conf").unlink()
    (rules / "x.conf").write_text("# allowed since then\n")
    found = answer(world, "c")
    assert (found["answer"], commands(found)) == ("not_asked", ["modprobe c"])
    assert commands(answer(world, "4242")) == []


@pytest.mark.parametrize(
    "name", ["`touch PWN`", "$(touch PWN)", "x; touch PWN", "x' 'touch PWN", "-rf", "a\nb", "x\u202e"]
)
def test_no_name_of_a_user_reaches_a_shell(world: World, name: str) -> None:
    """Every command is run by a shell, with each program replaced by one that does nothing."""
    stubs = world.root / "stubs"
    stubs.mkdir()
    for each in ("modprobe", "kmodd", "depmod", "sed", "mkdir", "journalctl", "systemctl"):
        (stubs / each).write_text(f'#!/bin/sh\necho "$@" >>{world.root}/ran\n')
        (stubs / each).chmod(0o755)
    alias = f"fs-{name.replace('PWN', str(world.root / 'pwn'))}" if name != "-rf" else name
    world.set_rules("deny origin=request")
    (world.modules / "modules.alias").write_text("alias fs-* c\nalias -* c\n")
    world.reload()
    world.ask(alias, pid=7)
    world.settle()
    (found,) = [each for each in answers(world, "7") if each["answer"] == "denied"]
    assert commands(found)
    for command in commands(found):
        harmless = command.replace("/etc/kmodd/policy.d/", f"{world.root}/")
        subprocess.run(["/bin/sh", "-c", harmless], env={"PATH": str(stubs)}, check=True)
    assert not (world.root / "pwn").exists()
    assert re.fullmatch(r"allow request=[A-Za-z0-9_:.+?/-]* uid=1000\n", (world.root / "10-local.conf").read_text())


def test_the_seal_is_lifted_by_its_verb(world: World) -> None:
    """Once it is lifted, the answer says so."""
    world.seal()
    mark = world.root / SEALED[1:]
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    world.ask("c")
    world.settle()
    assert commands(answer(world, "c"))[0] == "kmodd seal --undo"
    mark.unlink()
    found = answer(world, "c")
    assert (found["answer"], commands(found)) == ("not_asked", ["modprobe c"])
    assert found["sentence"].endswith("the last request was refused by the seal, which is lifted since then")


@pytest.mark.parametrize("name", ["50-x.conf", "05-x.conf", "00-a.conf"])
def test_the_remedy_of_a_denial_is_a_rule_that_allows_it(world: World, name: str) -> None:
    """The command is run on the files below the root, and the same request is granted: the rule stands before."""
    folder = world.root / "etc/kmodd/policy.d"
    world.set_rules()
    (folder / name).write_text("# rules\nlog origin=operator\ndeny origin=request\n")
    world.reload()
    world.ask("pci:v2")
    world.settle()
    command = commands(answer(world, "c"))[0].removesuffix(" && kmodd reload")
    subprocess.run(["sh", "-c", command.replace("/etc/", f"{world.root}/etc/")], check=True)
    world.reload()
    world.ask("pci:v2")
    world.settle()
    assert world.records[-1].message.startswith("Loaded c for asker[812] ")


@pytest.mark.parametrize(
    ("line", "code", "command"),
    [
        ("install c /bin/false", "blocked", "modprobe --ignore-install c"),
        ("install c /bin/true", "blocked", "modprobe --ignore-install c"),
        ("", "failed", "kmodd explain c"),
    ],
)
def test_a_module_that_is_blocked_or_refused(world: World, line: str, code: str, command: str) -> None:
    (world.root / "etc/modprobe.d/x.conf").write_text(f"{line}\n")
    world.reload()
    world.refuse["c"] = 22
    world.plug("pci:v2", BUS)
    world.settle()
    found = answer(world, "c")
    assert (found["answer"], commands(found)[0]) == (code, command)
    assert (found["record"]["errno"] == 22) == (code == "failed")


def test_a_command_and_a_rule_that_the_next_request_meets_are_named(world: World) -> None:
    """In the words of `kmodd explain`. Control: without these lines there is no such row."""
    assert "Also:" not in text(world, "c")
    (world.root / "etc/modprobe.d/x.conf").write_text("install c /opt/false\ninstall a /opt/loader a\n")
    world.set_rules("deny request=c uid=1000-")
    world.reload()
    shown = text(world, "c")
    place = "/etc/modprobe.d/x.conf:1"
    assert f"      Also: runs /opt/false for c, by install at {place}; probably blocked, as its name says\n" in shown
    assert "      Also: denied c   /etc/kmodd/policy.d/x.conf:1 deny request=c uid=1000-   to users, if they" in shown
    assert "runs /opt/loader a for a, by install at" in text(world, "b")
    assert answer(world, "b")["notes"] == [
        "runs /opt/loader a for a, by install at /etc/modprobe.d/x.conf:2; its effect is not known"
    ]


def test_a_missing_file_and_a_crash(world: World) -> None:
    (world.modules / "c.ko").unlink()
    world.oops.add("b")
    world.plug("pci:v2", BUS)
    world.plug("pci:v1", "0000:02:00.0")
    world.settle()
    found = answer(world, "c")
    assert (found["answer"], commands(found)) == ("missing", ["depmod"])
    found = answer(world, "b")
    assert (found["answer"], commands(found)[0]) == ("crashed", "systemctl reboot")
    world.add_files("c")
    assert "which no longer is so" in answer(world, "c")["sentence"]


def test_a_module_whose_dependency_failed_names_what_helps_that(world: World) -> None:
    world.refuse["a"] = 8
    world.plug("pci:v1", BUS)
    world.settle()
    found = answer(world, "b")
    assert (found["answer"], commands(found)) == ("not_attempted", ["modinfo -F vermagic a"])


def test_a_module_that_was_removed(world: World) -> None:
    """By kmodd; by another program; and one that found no request at all."""
    world.plug("pci:v2", BUS)
    world.settle()
    world.live()
    assert answer(world, "c")["answer"] == "gone"
    world.live("c")
    world.order_removal("c")
    world.settle()
    world.live()
    found = answer(world, "c")
    assert (found["answer"], commands(found)) == ("removed", ["modprobe c"])
    world.live("c")
    assert answer(world, "c")["answer"] == "elsewhere", "loaded again, and not by kmodd"
    found = answer(world, "a")
    assert found["sentence"] == "a is not loaded: no record of a request for it in this boot"
    assert commands(found) == ["modprobe a"]
    world.index(deps=["x.ko:"], aliases=[])
    assert answer(world, "x")["sentence"] == "x was loaded before kmodd started, and was removed by another program"


def test_an_unknown_name_gets_did_you_mean(world: World) -> None:
    world.index(deps=["e1000e.ko:"], aliases=[])
    for subject, hint in (("e1000x", "; did you mean 'e1000e'?"), ("net-pf-1", "")):
        said = run(world, subject)
        assert said.out.decode() == f"no module, alias or device {subject!r} is known{hint}\n"
        assert said.status == 1
    said = run(world, "99999999")
    assert said.out.decode().startswith("process 99999999: there is none now, and no request of it is recorded")
    assert said.status == 1
    assert run(world, "").status == 2
    assert run(world).err == b"kmodd why: SUBJECT is missing; see `kmodd why --help`\n"


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_device_by_path_name_and_link(world: World) -> None:
    path = device(world, "pci:v1", driver="bdrv", module="b")
    world.plug("pci:v1", BUS)
    world.settle()
    world.live("a", "b")
    for subject in (path, path.removeprefix("/sys"), BUS, f"/sys/bus/pci/devices/{BUS}"):
        found = answer(world, subject)
        assert (found["answer"], found["module"], found["kind"]) == ("bound", "b", "device")
        assert found["sentence"] == f"pci {BUS} is driven by bdrv; b was loaded for it"


def test_a_device_below_another_is_that_of_the_driver(world: World) -> None:
    """A network interface has no driver of its own."""
    path = device(world, "pci:v2", driver="c", module="c")
    (world.root / f"{path[1:]}/net/eth0").mkdir(parents=True)
    (world.root / "sys/class/net").mkdir(parents=True)
    (world.root / "sys/class/net/eth0").symlink_to(f"../../devices/{BUS}/net/eth0")
    world.plug("pci:v2", BUS)
    world.settle()
    world.live("c")
    for subject in ("eth0", "/sys/class/net/eth0"):
        found = answer(world, subject)
        assert found["answer"] == "bound"
        assert found["sentence"].endswith(f"(pci {BUS}) is driven by c, which was loaded for it")


def test_a_device_that_another_one_had_loaded_the_driver_for(world: World) -> None:
    """The alias is the same, and the record is that of the first; a driver of the kernel image has no record."""
    device(world, "pci:v2", driver="c", module="c")
    device(world, "pci:v2", "0000:02:00.0", driver="c", module="c")
    device(world, "pci:v3", "0000:03:00.0", driver="built")
    world.plug("pci:v2", BUS)
    world.settle()
    world.live("c")
    assert answer(world, "0000:02:00.0")["record"]["devices"] == [f"/devices/{BUS}"]
    found = answer(world, "0000:03:00.0")
    assert found["sentence"] == "pci 0000:03:00.0 is driven by built, which is part of the kernel image"


def test_a_device_without_a_driver_says_why_not(world: World) -> None:
    (world.root / "etc/modprobe.d/x.conf").write_text("blacklist b\n")
    world.reload()
    device(world, "pci:v1")
    device(world, "pci:v9", "0000:02:00.0")
    overridden = device(world, "pci:v2", "0000:03:00.0")
    (world.root / f"{overridden[1:]}/driver_override").write_text("vfio-pci\n")
    found = answer(world, BUS)
    assert (found["answer"], places(found)) == ("blacklisted", [("/etc/modprobe.d/x.conf", 1)])
    assert found["sentence"].startswith(f"pci {BUS} has no driver: b is not loaded: blacklisted at")
    found = answer(world, "0000:02:00.0")
    assert (found["answer"], found["sentence"]) == (
        "nomatch", "pci 0000:02:00.0 has no driver: no module matches pci:v9",
    )  # fmt: skip
    found = answer(world, "0000:03:00.0")
    bind = "echo 0000:03:00.0 > /sys/bus/pci/drivers_probe"
    assert (found["answer"], commands(found)) == (
        "kept_out",
        [f"modprobe vfio-pci && {bind}", f"echo > /sys/devices/0000:03:00.0/driver_override && {bind}"],
    )


def test_a_device_that_its_loaded_module_does_not_bind_to(world: World) -> None:
    """The last record is not the answer; nor is that of other hardware at the address, or of what is below."""
    device(world, "pci:v2")
    world.plug("pci:v2", BUS)
    world.settle()
    found = answer(world, BUS)
    assert found["answer"] == "unbound"
    assert found["sentence"] == (
        f"pci {BUS} has no driver: c is loaded for {BUS}, but does not bind to it; the kernel's messages may say why"
    )
    world.order_removal("c")
    world.settle()
    world.live()
    assert answer(world, BUS)["sentence"].startswith(f"pci {BUS} has no driver: Removed c in ")
    (world.root / f"sys/devices/{BUS}/modalias").write_text("pci:v1\n")
    found = answer(world, BUS)
    assert (found["answer"], found["record"]) == ("not_asked", None)
    (world.root / f"sys/devices/{BUS}/modalias").write_text("pci:v9\n")
    world.plug("pci:v2", f"{BUS}/child")
    world.settle()
    assert answer(world, BUS)["answer"] == "nomatch"


def test_a_device_that_is_gone_has_its_record(world: World) -> None:
    world.plug("pci:v1", BUS)
    world.settle()
    world.live("a", "b")
    for subject in (BUS, f"/sys/devices/{BUS}"):
        found = answer(world, subject)
        assert found["sentence"] == "Loaded b for 0000:01:00.0 in 14us, with a; the device is not there any more"
    assert run(world, "/sys/devices/nosuch").status == 1


# ── boots, trust, form ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_boot_before_is_told_by_the_journal_alone(world: World) -> None:
    """What the kernel has now is no answer; and the other boot's record is none for this one."""
    world.plug("pci:v2", BUS)
    world.settle()
    earlier = (record("f122", 0.5, 0), written(world.records[0], 3.0, 0))
    world.records.clear()
    world.live()
    (found,) = told(world, "-b", "-1", "c", before=earlier)
    assert (found["answer"], found["record"]["boot_id"], found["remedies"]) == ("loaded", BOOTS[0], [])
    said = run(world, "-b", "-1", "c", before=earlier).out.decode()
    assert f"      When: Tue 2023-11-14 22:13:23 UTC, boot {BOOTS[0]}\n" in said
    (found,) = told(world, "-b", "-1", "a", before=earlier)
    assert (found["answer"], found["sentence"]) == ("unknown", "the journal of that boot has no record of a")
    for words in ([], ["-b"], ["-b", BOOTS[1]], ["--boot="], ["-b", "22222222-2222-2222-2222-222222222222"]):
        (found,) = told(world, *words, "c", before=earlier)
        assert found["answer"] == "not_asked", words


def test_a_journal_of_another_machine_is_not_mixed_with_this_one(world: World) -> None:
    """With -D, its boot is another one: what this kernel has is no answer, and no command is named."""
    world.plug("pci:v2", BUS)
    world.settle()
    (world.root / "proc/sys/kernel/random/boot_id").write_text("3" * 32)
    world.live()
    (found,) = told(world, "c")
    assert (found["answer"], found["remedies"]) == ("loaded", [])
    (found,) = told(world, "a")
    assert found["answer"] == "unknown"


def test_a_forged_record_is_no_answer(world: World) -> None:
    """Any user can write to the journal in kmodd's name. Control: the same record of root."""
    world.plug("pci:v2", BUS)
    world.settle()
    genuine = written(world.records[0], 3.0)
    world.records.clear()
    world.live("c")
    for number, (uid, code) in enumerate((("1000", "elsewhere"), ("0", "loaded"))):
        folder = write_journal(world.root / f"journal{number}", [START, {**genuine, "_UID": uid}])
        said = program.run(["why", "--root", str(world.root), "-D", folder, "--json", "c"])
        assert json.loads(said.out)["answer"] == code


def test_the_level_of_the_records_changes_no_answer(tmp_path: Path) -> None:
    found = []
    for level in (INFO, DEBUG):
        world = machine(tmp_path / str(level), level)
        world.plug("pci:v1", BUS)
        world.settle()
        world.live("a", "b")
        (each,) = answers(world, "a")
        found.append((each["answer"], each["sentence"], each["needed_by"]))
    assert found[0] == found[1]


def test_objects_have_the_keys_of_the_page(world: World) -> None:
    page = (program.ROOT / "docs/JOURNAL.md").read_text().partition("`kmodd why --json`")[2]
    keys = [key for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert set(answer(world, "a")) == set(keys)


def test_hostile_names_are_shown_escaped(world: World) -> None:
    """On a terminal and in a pipe; JSON has its own escapes."""
    world.ask("evil\x1b]0;x\x07\n\u202e", pid=7)
    world.settle()
    shown = run(world, "7").out.decode()
    assert r"evil\x1b]0;x\x07\n\u202e" in shown
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    terminal = program.on_terminal(
        ["why", "--root", str(world.root), "7", "\x1b[2J\u202e"], {"COLUMNS": "40", "TERM": "xterm"}
    )
    assert b"\x1b[2J" not in terminal
    assert b"\x1b[0;1m" in terminal, "the control: colours come through"


def test_without_a_module_tree_the_journal_answers(world: World) -> None:
    world.plug("pci:v2", BUS)
    world.settle()
    world.live("c")
    os.rename(world.modules, world.root / "hidden")
    said = run(world, "c")
    assert said.out.startswith(b"c is loaded for 0000:01:00.0\n")
    assert b"the modules that match are not known" in said.err
    assert said.status == 3


def test_a_journal_that_cannot_be_read_is_no_evidence(world: World) -> None:
    """Not "nothing has asked for it"."""
    world.live("c")
    for subject, code in (("c", "unknown"), ("a", "not_asked"), ("812", "unknown"), ("/sys/devices/x", "unknown")):
        said = program.run(["why", "--root", str(world.root), "-D", "/nonexistent", "--json", subject])
        found = json.loads(said.out)
        assert (found["answer"], said.status) == (code, 1)
        assert "cannot be read" in found["sentence"]


def test_modules_with_odd_names_and_forms(world: World) -> None:
    """A number that is a module, a module's file, and its directory in /sys."""
    world.index(deps=["842.ko:", "c.ko:"], aliases=[])
    for subject, name in (("842", "842"), ("c.ko", "c"), ("./c.ko", "c"), ("/sys/module/c", "c")):
        found = answer(world, subject)
        assert (found["kind"], found["subject"]) == ("module", name)


def test_a_reused_process_number_is_told_by_the_name(world: World) -> None:
    world.ask("c", pid=4242)
    world.settle()
    assert answer(world, "asker[4242]")["answer"] == "loaded"
    assert answer(world, "other[4242]")["answer"] == "unknown"


def test_a_device_node_without_its_module(world: World) -> None:
    """/dev/kvm is there from the boot on, and opening it has the kernel ask."""
    (world.modules / "modules.devname").write_text("c x c10:232\n")
    (world.modules / "modules.alias").write_text("alias char-major-10-232 c\n")
    world.reload()
    found = answer(world, "/dev/x")
    assert (found["subject"], found["module"], found["answer"]) == ("/dev/x", "c", "not_asked")
