"""What devices are called: real sysfs, a real libudev, and entries of our own in udev's database."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pyudev

from kmodd.cli import devices, explain
from kmodd.host import coldplug, udev_names
from kmodd.host.tree import Tree
from kmodd.host.udev_names import names_of
from kmodd.kernel import uevent
from tests.world import RELEASE, World

DATABASE = Path("/run/udev/data")
NULL, ZERO, LO = "/sys/devices/virtual/mem/null", "/sys/devices/virtual/mem/zero", "/sys/devices/virtual/net/lo"
INTEL = {"ID_VENDOR_FROM_DATABASE": "Intel Corporation", "ID_MODEL_FROM_DATABASE": "82574L", "ID_MODEL": "0x10d3"}


class Database:
    """Entries for devices without effect; udev's own, if it has one, is put back."""

    def __init__(self) -> None:
        self._before: dict[Path, bytes | None] = {}
        self._made = [path for path in (DATABASE, DATABASE.parent) if not path.exists()]
        DATABASE.mkdir(parents=True, exist_ok=True)

    def write(self, entry: str, properties: dict[str, str]) -> None:
        path = DATABASE / entry
        self._before.setdefault(path, path.read_bytes() if path.exists() else None)
        path.write_text("I:1\n" + "".join(f"E:{key}={value}\n" for key, value in properties.items()))

    def restore(self) -> None:
        for path, data in self._before.items():
            path.unlink()
            if data is not None:
                path.write_bytes(data)
        for folder in self._made:
            with contextlib.suppress(OSError):  # udevd may have come meanwhile
                folder.rmdir()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is only slow is no device that hangs; `hang_or_die` has one that does."""
    monkeypatch.setattr(udev_names, "HUNG_AFTER", 30.0)


@pytest.fixture
def database() -> Iterator[Database]:
    it = Database()
    yield it
    it.restore()


# ── names ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.root
def test_maker_and_model_of_the_database(database: Database) -> None:
    database.write("c1:3", INTEL)
    wanted = {NULL: "Intel Corporation 82574L", "/dev/null": "Intel Corporation 82574L", "/dev/zero": "/dev/zero"}
    assert names_of(["/dev/zero", "/dev/null", LO, NULL]) == wanted


@pytest.mark.root
def test_udevadm_and_pyudev_know_the_same(database: Database) -> None:
    """The entry that is written here is one that udev itself believes."""
    database.write("c1:3", INTEL)
    properties = dict(pyudev.Devices.from_sys_path(pyudev.Context(), NULL).properties)
    assert properties | INTEL == properties
    if udevadm := shutil.which("udevadm"):
        done = subprocess.run([udevadm, "info", "--query=property", NULL], capture_output=True, text=True, check=True)
        assert {f"{key}={value}" for key, value in INTEL.items()} <= set(done.stdout.splitlines())


@pytest.mark.root
@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"ID_VENDOR": "SanDisk", "ID_MODEL": "Cruzer_Blade"}, "SanDisk Cruzer_Blade"),
        ({"ID_MODEL": "QEMU_DISK", "ID_MODEL_ENC": r"QEMU\x20DISK\x20\x20\x20"}, "QEMU DISK"),
        ({"ID_MODEL_ENC": r"\x20\x20", "ID_MODEL": "x"}, "x"),
        ({"ID_VENDOR_FROM_DATABASE": "The Linux Foundation"}, "/dev/null"),
        ({"ID_MODEL_FROM_DATABASE": "Žluťoučký µ"}, "Žluťoučký µ"),
        ({"ID_MODEL_ENC": r"evil\x1b[2J\x0a\x22  x"}, "evil [2J ' x"),
        ({"ID_SERIAL": "1"}, "/dev/null"),
    ],
)
def test_what_stands_in_for_them(database: Database, properties: dict[str, str], name: str) -> None:
    """The best that there is; nothing in it that a terminal or who cuts lines by blanks would obey."""
    database.write("c1:3", properties)
    assert names_of([NULL]) == {NULL: name}


@pytest.mark.root
def test_a_name_that_is_no_text_is_none(database: Database) -> None:
    """However many: it is not taken for a device that hangs."""
    database.write("c1:3", {})
    (DATABASE / "c1:3").write_bytes(b"I:1\nE:ID_MODEL=x\xff\n")
    many = [NULL] * (udev_names.MAX_HUNG + 1)
    found = names_of([*many, ZERO])
    assert found.pop(NULL, "/dev/null") == "/dev/null", "younger libudevs drop the property, not the device"
    assert found == {ZERO: "/dev/zero"}


def test_what_the_database_does_not_have_has_no_name() -> None:
    """Devices that are there without an entry or a node, that went, that never were, and paths that are no device's."""
    assert names_of([LO, "/sys/devices/gone", "/sys", "/dev/gone", "/dev", "/sys/\udcff", ""]) == {}
    assert names_of([]) == {}


def test_real_devices_as_pyudev_has_them() -> None:
    """All of this machine's that say what they are."""
    context, wanted = pyudev.Context(), {}
    for event in coldplug.replay(""):
        path = f"/sys{event.devpath}"
        properties = pyudev.Devices.from_sys_path(context, path).properties
        if {"ID_VENDOR_FROM_DATABASE", "ID_MODEL_FROM_DATABASE"} <= set(properties):
            wanted[path] = f"{properties['ID_VENDOR_FROM_DATABASE']} {properties['ID_MODEL_FROM_DATABASE']}"
    found = names_of([f"/sys{event.devpath}" for event in coldplug.replay("")])
    assert found | {path: " ".join(name.replace('"', "'").split()) for path, name in wanted.items()} == found


# ── without an answer ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("missing", ["pyudev", "libudev"])
def test_without_pyudev_or_libudev_nothing_has_a_name(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    assert names_of([NULL]), "the control: with them it has"
    if missing == "pyudev":
        monkeypatch.setitem(sys.modules, "pyudev", None)
    else:
        monkeypatch.setattr("pyudev.core.load_ctypes_library", _no_library)
    assert names_of([NULL]) == {}


def _no_library(*_: Any) -> None:
    raise ImportError("No library named udev")


def hang_or_die(monkeypatch: pytest.MonkeyPatch, on: set[str], end: bool = False) -> None:
    """From now on a look at one of these never returns, as behind a probe that hangs, or is killed."""
    name = udev_names.device_name
    hung = mmap.mmap(-1, 1)  # the children's too

    def hanging(context: Any, path: str) -> str:
        while path in on:
            if end:
                os.kill(os.getpid(), signal.SIGKILL)
            hung[0] = 1
            signal.pause()
        return name(context, path)

    def wait(children: list[int], *_: object) -> tuple[list[int], list[int], list[int]]:
        """Until one says something, or says that it hangs."""
        while True:
            nothing_comes = hung[0]  # before the look: all its answers were before
            if ready := select.select(children, [], [], 0.01)[0]:
                return ready, [], []
            if nothing_comes:
                hung[0] = 0
                return [], [], []

    monkeypatch.setattr(udev_names, "device_name", hanging)
    monkeypatch.setattr(udev_names, "select", SimpleNamespace(select=wait))


@pytest.mark.parametrize("end", [False, True])
def test_a_device_whose_lock_is_held_holds_up_no_other(monkeypatch: pytest.MonkeyPatch, end: bool) -> None:
    hang_or_die(monkeypatch, {NULL, "/dev/full"}, end)
    assert names_of(["/dev/full", "/dev/random", NULL, ZERO]) == {"/dev/random": "/dev/random", ZERO: "/dev/zero"}
    assert names_of([NULL]) == {}


def test_too_many_that_hang_are_not_all_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udev_names, "MAX_HUNG", 2)
    hang_or_die(monkeypatch, {NULL, LO})
    assert names_of([ZERO, NULL, LO, "/dev/zero"]) == {ZERO: "/dev/zero"}


def test_a_child_that_hangs_does_not_hold_our_output_open() -> None:
    """It cannot be killed in the kernel; here it is stopped from being. Readers of the output get its end."""
    code = (
        "import os, signal; from kmodd.host import udev_names\n"
        "udev_names.device_name = lambda *_: signal.pause()\n"
        "udev_names.os.kill = lambda pid, _: print(pid)\n"
        f"assert udev_names.names_of([{NULL!r}]) == {{}}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    os.kill(int(done.stdout), signal.SIGKILL)  # it was still there


def test_where_no_process_is_to_be_had_nothing_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", fork)
    assert names_of([NULL, ZERO]) == {}
    assert os.listdir("/proc/self/fd") == before


# ── who tells them ─────────────────────────────────────────────────────────────────────────────────────────────────


class Here(Tree):
    """The module tree of a made-up machine, and this machine's devices."""

    place = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(root=self.place, release=RELEASE)
        self.root = ""

    def real(self, path: str) -> str:
        return path if path.startswith(("/sys/", "/dev/")) else self.place + path


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(Here, "place", str(world.root))
    monkeypatch.setattr(devices, "tree_for", Here)
    monkeypatch.setattr(explain, "tree_for", Here)
    return world


@pytest.mark.root
def test_devices_shows_the_name(
    here: World, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [uevent.parse(f"add@{path[4:]}\0SUBSYSTEM=mem\0MODALIAS=pci:v1\0".encode()) for path in (LO, NULL)]
    monkeypatch.setattr("kmodd.host.coldplug.replay", lambda *_, **__: iter(said))
    monkeypatch.setattr("kmodd.host.uevent_files.replay", lambda *_, **__: iter(()))
    database.write("c1:3", INTEL)
    assert devices.main([]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "mem null  Intel Corporation 82574L  -       no driver  b",
        "mem lo    -                         -       no driver  b",
    ]
    monkeypatch.setitem(sys.modules, "pyudev", None)
    assert devices.main(["--unbound"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "mem null  -     -       no driver  b",
        "mem lo    -     -       no driver  b",
    ]


@pytest.mark.root
@pytest.mark.parametrize("request_", [NULL, "/dev/null"])
def test_explain_says_which_device_it_is(
    here: World, database: Database, request_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database.write("c1:3", INTEL)
    assert explain.main([request_, LO]) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{request_} → 0 steps, ")
    assert first.endswith('  "Intel Corporation 82574L"')
    assert not [line for line in rest if '"' in line], "lo has no name"
    assert explain.main(["--json", request_]) == 1
    assert "Intel" not in capsys.readouterr().out, "docs/explain.schema.json has no place for it"


def test_explain_does_not_repeat_a_node(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    explain.main(["/dev/zero"])
    assert '"' not in capsys.readouterr().out


@pytest.mark.root
def test_another_root_is_not_asked_about_here(
    world: World, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """libudev reads this machine's /sys and /run/udev, whatever --root says."""
    database.write("c1:3", INTEL)
    folder = world.root / NULL[1:]
    folder.mkdir(parents=True)
    (folder / "modalias").write_text("pci:v1\n")
    bus = world.root / "sys/bus/mem/devices"
    bus.mkdir(parents=True)
    (bus / "null").symlink_to("../../../devices/virtual/mem/null")
    assert explain.main(["--root", str(world.root), NULL]) == 0
    assert devices.main(["--root", str(world.root)]) == 0
    out = capsys.readouterr().out
    assert f"{NULL} → 2 steps, 0 skips\n" in out
    assert "\nmem null  -     -       no driver  b\n" in out
