"""`kmodd verify`: files as gcc and Debian made them, a played /sys, a real journal, a trace in the kernel's words."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from kmodd.host.file_birth import birth_of
from kmodd.modfile.modinfo import info
from tests import compiled, program, trees
from tests.journal_files import BEGIN, BOOTS, DAY, record, write_journal
from tests.rootfs import Said

RELEASE = "6.1.0-test"
NOW = time.time() - (BEGIN + DAY) / 1e6
"""Seconds from the begin of the journal's boot until these tests run, when the files are made."""
LATER = NOW + 3600


def note(build_id: bytes) -> bytes:
    """The notes of a module in /sys, with one of the kernel's before that with the build ID (elf(5))."""
    other = pack("=3I", 6, 4, 256) + b"Linux\0\0\0" + b"\0\0\0\0"
    return other + pack("=3I", 4, len(build_id), 3) + b"GNU\0" + build_id


@dataclass
class Played:
    """A machine whose kernel has loaded modules."""

    root: Path
    deps: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    trace: str = "# tracer: nop\n#\n#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION\n"

    def __post_init__(self) -> None:
        self.tree = self.root / "lib/modules" / RELEASE
        (self.tree / "kernel").mkdir(parents=True)
        (self.root / "etc").mkdir()
        random = self.root / "proc/sys/kernel/random"
        random.mkdir(parents=True)
        (random / "boot_id").write_text(f"{BOOTS[1]}\n")
        (self.tree / "modules.dep").write_text("")
        (self.root / "proc/modules").write_text("")
        self.start("early")

    def start(self, *there: str) -> None:
        self.records.append(record("f122", LATER, KMODD_VERSION="1", KMODD_LOADED_BEFORE=list(there)))

    def file(self, name: str, data: bytes, folder: str = "kernel") -> Path:
        """Have a file in the tree, and a line of modules.dep."""
        path = self.tree / folder / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.deps[name] = f"{folder}/{name}.ko:"
        (self.tree / "modules.dep").write_text("".join(f"{line}\n" for line in self.deps.values()))
        return path

    def load(self, name: str, data: bytes, taint: str = "", *, is_listed: bool = True) -> None:
        """Have the kernel load the image of a module, as it shows it in /proc and /sys."""
        facts = info(data, with_build_id=True)
        folder = self.root / "sys/module" / name
        (folder / "notes").mkdir(parents=True)
        (folder / "notes/.note.gnu.build-id").write_bytes(note(facts.build_id))
        (folder / "initstate").write_text("live\n")
        (folder / "taint").write_text(f"{taint}\n")
        if source := dict(facts.fields).get(b"srcversion"):
            (folder / "srcversion").write_bytes(source + b"\n")
        if is_listed:
            with (self.root / "proc/modules").open("a") as file:
                file.write(f"{name} 16384 0 - Live 0x0 ({taint})\n")

    def recorded(self, name: str, second: float = LATER + 2, **fields: str) -> None:
        """Have kmodd record a load, with a dependency."""
        what = {"KMODD_RESULT": "loaded", "KMODD_SOURCE": "uevent", "KMODD_MODULE": name, "KMODD_REQUEST_ID": "7"}
        self.records.append({**record("f101", second), **what, **fields, "KMODD_MODULES": ["needed", name]})

    def traced(self, name: str, comm: str, pid: int, second: float) -> None:
        self.trace += f"  {comm:>14}-{pid:<7} [001] ..... {second:.6f}: module_load: {name} OE\n"

    def verify(self, *words: str) -> Said:
        write_journal(self.root / "var/log/journal", self.records)
        place = self.root / "sys/kernel/tracing/instances/kmodd-loads"
        place.mkdir(parents=True, exist_ok=True)
        (place / "trace").write_text(self.trace)
        said = program.run(["verify", "--root", str(self.root), *words], environment={"TZ": "UTC"})
        assert b"Traceback" not in said.err
        return said

    def found(self, status: int = 1) -> dict[str, tuple[str, str]]:
        """What is said of the one module: code → weight and text."""
        said = self.verify("--json")
        assert (said.err, said.status) == (b"", status)
        return {each["what"]: (each["weight"], each["text"]) for each in map(json.loads, said.out.splitlines())}


@pytest.fixture
def machine(tmp_path: Path) -> Played:
    return Played(tmp_path)


@pytest.fixture(scope="session")
def mod1() -> bytes:
    """With build ID and srcversion, out of the kernel's tree and unsigned, as DKMS builds it without a key."""
    return (compiled.modules() / "mod1.ko").read_bytes()


@pytest.fixture(scope="session")
def loop() -> bytes:
    """Debian's, signed, without srcversion."""
    return (trees.module_dir(trees.debian_tree("6.1-amd64")) / "kernel/drivers/block/loop.ko").read_bytes()


def rebuilt(data: bytes) -> bytes:
    """Another build of the same source."""
    build_id = info(data, with_build_id=True).build_id
    return data.replace(build_id, bytes(reversed(build_id)))


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clean_machine_is_silent(machine: Played, mod1: bytes, loop: bytes) -> None:
    """Loaded for a device, by DKMS and unsigned, as a dependency, and before kmodd by an initrd."""
    for name, data, taint in (("loop", loop, ""), ("mod1", mod1, "OE"), ("early", loop, ""), ("needed", loop, "")):
        machine.file(name, data, "updates/dkms" if taint else "kernel")
        machine.load(name, data, taint)
    machine.recorded("loop")
    machine.recorded("mod1")
    machine.traced("loop", "kmodd-loader", 400, LATER + 1)
    assert machine.verify() == Said(b"", b"", 0)
    assert machine.verify("--json") == Said(b"", b"", 0)
    shown = machine.verify("-v")
    assert shown.status == 0
    assert b"mod1: taints the kernel: out of the kernel's tree (O), unsigned (E)\n" in shown.out
    assert shown.out.endswith(b"4 modules, 0 findings\n")


def test_a_file_with_another_name_than_its_module(machine: Played, mod1: bytes, loop: bytes) -> None:
    """As Debian's nvidia-current.ko of nvidia, which kmodd loads by the file's name. Control: another content."""
    machine.file("mod1_current", mod1, "updates/dkms")
    machine.load("mod1", mod1, "OE")
    machine.recorded("mod1_current")
    assert machine.verify() == Said(b"", b"", 0)
    machine.file("mod1_current", loop, "updates/dkms")
    assert set(machine.found()) == {"no-file", "not-kmodd"}


# ── the code ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_replaced_after_the_load_is_an_information(machine: Played, mod1: bytes) -> None:
    """With its date, and the exit status of a clean machine. Control: replaced before the load, it is a finding."""
    changed = birth_of(str(machine.file("mod1", rebuilt(mod1)))) / 1e6
    machine.load("mod1", mod1)
    machine.recorded("mod1", second=NOW - 3600)
    (weight, text) = machine.found(0)["replaced"]
    assert weight == "information"
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(changed))
    assert f"mod1.ko was replaced at {when}, after the load, by a build of the same source: the kernel keeps" in text
    machine.records.pop()
    machine.recorded("mod1")
    (weight, text) = machine.found()["build-id"]
    assert weight == "finding"
    assert info(mod1, True).build_id.hex() in text
    assert info(rebuilt(mod1), True).build_id.hex() in text


def test_a_file_that_was_touched_or_written_in_place_was_not_replaced(machine: Played, mod1: bytes) -> None:
    """It is older than the load, so the kernel has other code. Control: the same bytes in a new file, as dpkg does."""
    path = machine.file("mod1", rebuilt(mod1))
    assert birth_of(str(path)), "the tests' file system has no times of birth"
    machine.load("mod1", mod1)
    machine.recorded("mod1", second=time.time() + 0.01 - (BEGIN + DAY) / 1e6)
    time.sleep(0.05)
    for change in (lambda: os.utime(path), lambda: path.chmod(0o644), lambda: path.write_bytes(rebuilt(mod1))):
        change()
        weight, text = machine.found()["build-id"]
        assert weight == "finding"
        assert text.endswith("the file was written in place or touched after the load, but it is older, so it was "
                             "not replaced")  # fmt: skip
    new = path.with_suffix(".dpkg-new")
    new.write_bytes(rebuilt(mod1))
    new.replace(path)
    assert machine.found(0)["replaced"][0] == "information"


def test_the_history_has_the_code_that_was_loaded(machine: Played, mod1: bytes) -> None:
    """A file of another build that is not newer, as one that was moved here, was replaced. Control: no such record."""
    machine.file("mod1", rebuilt(mod1))
    machine.load("mod1", mod1)
    build_id = f"mod1:{info(mod1, True).build_id.hex()}"
    machine.recorded("mod1", KMODD_BUILD_ID=build_id)
    assert machine.found()["build-id"][0] == "finding", "a dependency, whose file is older: another one was loaded"
    machine.records.pop()
    machine.recorded("mod1", KMODD_BUILD_ID=build_id, KMODD_PATH=f"/lib/modules/{RELEASE}/kernel/mod1.ko")
    weight, text = machine.found(0)["replaced"]
    assert weight == "information"
    assert "mod1.ko is another one since the load: the kernel keeps the code of that (build-id " in text
    for other in ("", "other:00", "mod1:none", "mod1"):
        machine.records.pop()
        machine.recorded("mod1", KMODD_BUILD_ID=other)
        assert machine.found()["build-id"][0] == "finding"


def test_other_code_than_kmodd_has_loaded_came_by_another_program(machine: Played, mod1: bytes) -> None:
    """Though it is that of the file, and no trace knows it. Control: the code that is on record is silent."""
    machine.file("mod1", mod1)
    machine.load("mod1", mod1)
    machine.recorded("mod1", KMODD_BUILD_ID=f"mod1:{info(mod1, True).build_id.hex()}")
    assert machine.found(0) == {}
    machine.records.pop()
    machine.recorded("mod1", KMODD_BUILD_ID=f"mod1:{info(rebuilt(mod1), True).build_id.hex()}")
    found = machine.found()
    assert set(found) == {"not-kmodd"}
    assert b"kmodd[" not in machine.verify().out
    machine.traced("mod1", "insmod", 812, LATER + 9)
    assert machine.found()["not-kmodd"][1].endswith("by insmod[812], and not by kmodd")


def test_a_kernel_that_shows_nothing_to_compare(machine: Played, loop: bytes) -> None:
    """Without CONFIG_KALLSYMS and CONFIG_MODULE_SRCVERSION_ALL: it is said. Control: with the build ID, silence."""
    machine.file("loop", loop)
    machine.load("loop", loop)
    machine.recorded("loop")
    assert machine.verify() == Said(b"", b"", 0)
    (machine.root / "sys/module/loop/notes/.note.gnu.build-id").unlink()
    said = machine.verify()
    assert (said.out, said.status) == (b"", 1)
    expected = b"shows neither a build ID nor a srcversion of 1 module, so the code is not compared\n"
    assert said.err.endswith(expected)


def test_a_stale_initrd_is_named(machine: Played, mod1: bytes) -> None:
    """A module from before kmodd has an older build than the file. Control: the same build is silent."""
    machine.file("early", rebuilt(mod1))
    machine.load("early", mod1)
    assert machine.found()["build-id"][1].endswith("an initrd may have another build (update-initramfs -u)")


def test_the_source_version_counts_where_the_kernel_shows_no_build_id(machine: Played, mod1: bytes) -> None:
    """Control: with the same srcversion it is silent."""
    (source,) = (value for key, value in info(mod1).fields if key == b"srcversion")
    machine.file("mod1", mod1)
    machine.load("mod1", mod1)
    machine.recorded("mod1")
    (machine.root / "sys/module/mod1/notes/.note.gnu.build-id").unlink()
    assert machine.found(0) == {}
    machine.file("mod1", mod1.replace(source, source[::-1]))
    assert machine.found()["srcversion"][0] == "finding"


def test_a_module_without_a_build_id_among_those_with_one(machine: Played, mod1: bytes, loop: bytes) -> None:
    """The kernel shows build IDs, so this code has none, and its file has one."""
    for name, data in (("mod1", mod1), ("loop", loop)):
        machine.file(name, data)
        machine.load(name, data)
        machine.recorded(name)
    assert machine.found(0) == {}
    (machine.root / "sys/module/mod1/notes/.note.gnu.build-id").unlink()
    found = machine.found()
    assert "build-id none in the kernel" in found["build-id"][1]
    assert "not-kmodd" not in found
    machine.recorded("mod1", KMODD_BUILD_ID=f"mod1:{info(mod1, True).build_id.hex()}")
    assert "not-kmodd" in machine.found(), "what kmodd loaded had one"


def test_a_changed_copy_with_the_same_build_id(machine: Played, loop: bytes, mod1: bytes) -> None:
    """The kernel took it as unsigned, though the file has a signature that it trusts. Control: all are unsigned."""
    for name, taint in (("loop", "E"), ("early", "")):
        machine.file(name, loop)
        machine.load(name, loop, taint)
    machine.recorded("loop")
    assert "signed by Build time autogenerated kernel key, whom the kernel trusts" in machine.found()["signature"][1]
    (machine.root / "sys/module/early/taint").write_text("E\n")
    assert machine.found(0) == {}
    (machine.root / "sys/module/loop/taint").write_text("O\n")
    assert machine.found()["taint"][0] == "finding"


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_can_write_the_file(machine: Played, mod1: bytes) -> None:
    """Others, and the owner of a link's target. Control: a link to a file that is root's alone is an information."""
    path = machine.file("mod1", mod1)
    machine.load("mod1", mod1)
    machine.recorded("mod1")
    path.chmod(0o666)
    assert machine.found()["owner"][1].endswith("mod1.ko is writable by others")
    path.chmod(0o644)
    assert machine.found(0) == {}
    elsewhere = machine.root / "opt/mod1.ko"
    elsewhere.parent.mkdir()
    path.rename(elsewhere)
    path.symlink_to(os.path.relpath(elsewhere, path.parent))
    for each in (machine.root, *machine.root.parents):
        if each.stat().st_mode & 0o022 and not each.stat().st_mode & 0o1000:
            pytest.skip(f"{each} is writable by others")
    weight, text = machine.found(0)["link"]
    assert (weight, text.endswith("is a link to /opt/mod1.ko, out of the module tree")) == ("information", True)


def test_a_module_from_elsewhere(machine: Played, mod1: bytes) -> None:
    """Without a file, and with a missing one; kmodd's own insmod leaves its path. Control: that of the tree's file."""
    machine.load("mod1", mod1)
    machine.recorded("mod1", KMODD_PATH="/root/mod1.ko", _COMM="insmod", _PID="77")
    found = machine.found()
    assert found["no-file"][1].startswith("no file in the module tree is of this name")
    assert found["other-file"][1] == "was loaded from /root/mod1.ko, by insmod[77]"
    path = machine.file("mod1", mod1)
    assert "not from /lib/modules/6.1.0-test/kernel/mod1.ko, by insmod[77]" in machine.found()["other-file"][1]
    machine.records.pop()
    machine.recorded("mod1", KMODD_PATH=f"/lib/modules/{RELEASE}/kernel/../kernel/mod1.ko")
    assert machine.found(0) == {}
    path.unlink()
    assert machine.found()["no-file"][1].startswith(f"its file /lib/modules/{RELEASE}/kernel/mod1.ko is missing")


def test_what_cannot_be_read_is_said(machine: Played, mod1: bytes) -> None:
    """A damaged file, and a module without its folder in /sys."""
    machine.file("mod1", mod1)
    machine.load("mod1", mod1)
    machine.recorded("mod1")
    machine.file("mod1", b"\x7fELF" + bytes(100))
    assert "mod1.ko: " in machine.found()["unreadable"][1]
    machine.file("mod1", mod1)
    (machine.root / "sys/module/mod1").rename(machine.root / "sys/gone")
    assert machine.found()["unreadable"][1].startswith("Failed to read /sys/module/mod1: No such file or directory")


# ── how it came ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_load_without_kmodd_and_who_made_it(machine: Played, mod1: bytes) -> None:
    """By the trace; without it the process is not known. Control: a load by kmodd, whose record is yet to come.

    A thread can give itself the name of kmodd's loaders: an old load without a record is an information.
    """
    machine.file("mod1", mod1)
    machine.load("mod1", mod1, "OE")
    expected = "was loaded after kmodd started, by another program, which is not known, and not by kmodd"
    assert machine.found() == {"not-kmodd": ("finding", expected)}
    machine.traced("mod1", "my-shell -x", 812, LATER + 1)
    assert machine.found()["not-kmodd"][1] == "was loaded after kmodd started, by my-shell -x[812], and not by kmodd"
    shown = machine.verify()
    assert shown.out.splitlines()[1].split() == [b"mod1", b"not-kmodd", b"OE", b"-", b"my-shell", b"-x[812]"]
    machine.traced("mod1", "kmodd-loader", 400, LATER + 2)
    assert machine.found(0) == {}
    machine.trace = ""
    machine.traced("mod1", "kmodd-loader", 400, 1)
    assert machine.found(0)["unrecorded"] == (
        "information",
        "was loaded by a thread named kmodd-loader [400], and the journal has no record of this load by kmodd",
    )


def test_a_name_that_the_kernel_has_forgotten_proves_nothing(machine: Played, mod1: bytes) -> None:
    """Control: the record of kmodd's load holds as long as no load in the trace is later."""
    machine.file("mod1", mod1)
    machine.load("mod1", mod1, "OE")
    machine.traced("mod1", "<...>", 400, 1.5)
    assert "by another program, which is not known" in machine.found()["not-kmodd"][1]
    machine.recorded("mod1", second=2)
    assert machine.found(0) == {}
    machine.traced("mod1", "<...>", 812, 2.5)
    assert "by a thread whose name is not known [812]" in machine.found(0)["unrecorded"][1]
    assert b"?[812]" in machine.verify().out


def test_the_trace_counts_without_a_start_on_record(machine: Played, mod1: bytes) -> None:
    """As where the journal has rotated. Control: a load by a loader of kmodd is not known to be another's."""
    machine.records.clear()
    machine.recorded("other")
    machine.file("mod1", mod1)
    machine.load("mod1", mod1, "OE")
    machine.traced("mod1", "insmod", 812, LATER + 5)
    assert "by insmod[812]" in machine.found()["not-kmodd"][1]
    machine.traced("mod1", "kmodd-loader", 400, LATER + 6)
    said = machine.verify()
    assert (said.out, said.status, b"not known what loaded 1 module" in said.err) == (b"", 1, True)


@pytest.mark.parametrize("name", ["mod1", "early"])
def test_a_module_loaded_again_behind_a_record(machine: Played, mod1: bytes, name: str) -> None:
    """kmodd has loaded it, or it was there before; then it was removed, and loaded by another program.

    Control: the load that the record is of.
    """
    machine.file(name, mod1)
    machine.load(name, mod1)
    machine.recorded("mod1", second=LATER + 2)
    machine.traced(name, "systemd-modules", 1, LATER - 1)
    assert machine.found(0) == {}
    machine.traced(name, "insmod", 812, LATER + 3)
    assert "by insmod[812]" in machine.found()["not-kmodd"][1]


def test_a_start_that_the_journal_has_lost(machine: Played, mod1: bytes) -> None:
    """The trace is older than the first start on record, so an earlier one has begun it, and the load came after that.

    Control: a load by kmodd itself, and one from just before the start, as by systemd-modules-load.
    """
    machine.file("early", mod1)
    machine.load("early", mod1)
    machine.traced("early", "kmodd-loader", 400, LATER - 3600)
    assert machine.found(0) == {}
    machine.trace = ""
    machine.traced("early", "systemd-modules", 300, LATER - 5)
    assert machine.found(0) == {}
    machine.trace = ""
    machine.traced("early", "insmod", 812, LATER - 3600)
    assert machine.found()["not-kmodd"][1] == "was loaded after kmodd started, by insmod[812], and not by kmodd"


def test_force_and_hiding(machine: Played, mod1: bytes) -> None:
    """Control: a module that is being removed is none of both."""
    machine.file("mod1", mod1)
    machine.load("mod1", mod1, "FO", is_listed=False)
    machine.recorded("mod1")
    assert set(machine.found()) == {"hidden", "forced"}
    (machine.root / "proc/modules").write_text("mod1 16384 0 - Unloading 0x0\n")
    assert machine.found(0) == {}


def test_without_history_nothing_is_said_to_be_well(machine: Played, mod1: bytes) -> None:
    """Also where kmodd did not run in this boot. Control: its start is on record."""
    machine.file("early", mod1)
    machine.load("early", mod1)
    assert machine.verify() == Said(b"", b"", 0)
    machine.records[:] = [record("f122", 5, boot=0, KMODD_LOADED_BEFORE=["early"])]
    said = machine.verify()
    assert (said.out, said.status) == (b"", 1)
    assert said.err == (
        b"kmodd verify: The journal has no start of kmodd in this boot, so it is not known what loaded 1 module\n"
    )


def test_without_a_tree_or_a_list_of_modules(machine: Played) -> None:
    (machine.root / "proc/modules").unlink()
    said = machine.verify()
    assert (said.out, said.status) == (b"", 1)
    assert b"/proc/modules: No such file or directory; no module is compared" in said.err
    machine.tree.rename(machine.root / "hidden")
    assert machine.verify().status == 3
    assert program.run(["verify", "mod1"]).status == 2
    assert machine.verify("--follow").status == 2
