"""Devices without a driver are, by the look-ups of the daemon, those that `devices --unbound` finds without it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.cli.client import Refused
from kmodd.cli.devices import without_driver
from kmodd.cli.unbound import MAX_CHARACTERS, MAX_NAMES, batches, count_unbound, unbound_devices
from kmodd.host import varlink_server
from kmodd.host.tree import Tree
from tests.control_server import ControlServer, serving
from tests.world import World

REPOSITORY = Path(__file__).parents[3]
ALIASES = (
    "pci:v1x", "pci:v2x", "pci:v3x", "pci:v4x", "pci:v5x", "pci:v9x", "pci:v[x", "c", "pci:v1-x", "\udcff", "scsi:t-0x",
)  # fmt: skip
"""Those of b, c, d (built in), a line of modprobe.d, several modules, none, and none that can be looked up."""
LINES = ("alias pci:v4* c", "alias pci:v2* a", "blacklist c", "blacklist b", "install b /bin/false", "softdep c pre: d")
PLACES = ("bus", "class", "system", "card")
STATES = ("Live", "Loading", "Unloading", "")


def add_device(root: Path, name: str, place: str, aliases: list[str], *, is_bound: bool) -> None:
    """A device below a bus, of a class without drivers, of /sys/devices/system, or one without a `modalias` file."""
    folder = root / "sys/devices" / ("system" if place == "system" else "x") / name
    folder.mkdir(parents=True)
    text = "".join(f"{alias}\n" for alias in aliases).encode("utf-8", "surrogateescape")
    if place == "card":
        (folder / "uevent").write_bytes(b"A=b\n" + b"".join(b"MODALIAS=" + line + b"\n" for line in text.splitlines()))
    else:
        (folder / "modalias").write_bytes(text)
    links = {"bus": "bus/pci/devices", "card": "bus/scsi/devices", "class": "class/x"}
    if place in links:
        devices = root / "sys" / links[place]
        devices.mkdir(parents=True, exist_ok=True)
        (devices / name).symlink_to(os.path.relpath(folder, devices))
    if is_bound:
        (folder / "driver").symlink_to("../../bus/pci/drivers/some")


def fill(world: World, rng: random.Random) -> None:
    """Devices of every kind, and modules in every state."""
    world.index(
        ["a.ko:", "b.ko: a.ko", "c.ko:"],
        ["alias pci:v1* b", "alias pci:v2* c", "alias pci:v5* a", "alias pci:v5x c", "alias pci:v5x b"],
    )
    (world.modules / "modules.builtin").write_text("kernel/d.ko\nkernel/sg.ko\n")
    (world.modules / "modules.builtin.modinfo").write_bytes(b"d.alias=pci:v3*\0sg.license=GPL\0")
    lines = rng.sample(LINES, rng.randrange(len(LINES)))
    (world.root / "etc/modprobe.d/x.conf").write_text("".join(f"{line}\n" for line in lines))
    world.write_modules({name: state for name in "abc" if (state := rng.choice(STATES))})
    for number in range(60):
        aliases = rng.sample(ALIASES, rng.choice((1, 1, 1, 2)))
        add_device(world.root, f"d{number}", rng.choice(PLACES), aliases, is_bound=rng.random() < 0.2)
    world.reload()


@pytest.mark.parametrize("number", range(8))
def test_both_ways_find_the_same_devices(world: World, server: ControlServer, rng: random.Random, number: int) -> None:
    fill(world, rng)
    expected = without_driver(world.tree)
    with serving(server) as path:
        assert unbound_devices(str(world.root), path) == expected
    assert 0 < len(expected) < 60, number


def test_a_driver_is_seen_at_once(world: World, server: ControlServer) -> None:
    """Also a change of the index, without a word to the daemon."""
    add_device(world.root, "one", "bus", ["pci:v1"], is_bound=False)
    add_device(world.root, "nine", "bus", ["pci:v9"], is_bound=False)
    with serving(server) as path:
        assert unbound_devices(str(world.root), path) == ["/sys/devices/x/one"]
        world.index(["c.ko:"], ["alias pci:v9* c"])
        assert unbound_devices(str(world.root), path) == ["/sys/devices/x/nine"]
        (world.root / "sys/devices/x/nine/driver").symlink_to("../../bus/pci/drivers/c")
        assert unbound_devices(str(world.root), path) == []


@pytest.mark.parametrize(("uid", "mode", "is_counted"), [(0, 0o600, True), (1000, 0o600, False), (1000, 0o644, True)])
def test_users_learn_nothing_of_files_that_they_cannot_read(
    world: World, server: ControlServer, uid: int, mode: int, is_counted: bool
) -> None:
    conf = world.root / "etc/modprobe.d/secret.conf"
    conf.write_text("alias pci:v9* c\n")
    conf.chmod(mode)
    world.reload()
    add_device(world.root, "nine", "bus", ["pci:v9"], is_bound=False)
    with serving(server, uid) as path:
        assert bool(unbound_devices(str(world.root), path)) is is_counted


@pytest.mark.parametrize("fault", ["no daemon", "no tree", "a long name"])
def test_what_the_daemon_does_not_answer_is_read_here(
    tmp_path: Path, world: World, server: ControlServer, fault: str
) -> None:
    """This machine's devices, and an index that matches each of them; then none at all."""
    folder = tmp_path / "own/lib/modules/sample"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("matched.ko:\n")
    (folder / "modules.alias").write_text("alias * matched\n")
    status = {"root": "", "release": "sample", "directory": str(folder)}
    count = len(without_driver(Tree(release="sample", module_dir=str(tmp_path / "own"))))
    if fault == "no daemon":
        assert count_unbound(status, str(tmp_path / "none")) == count
    elif fault == "no tree":
        world.modules.rename(world.root / "hidden")
        with serving(server) as path:
            assert count_unbound(status, path) == count
            assert count_unbound({**status, "directory": "/nowhere/lib/modules/sample"}, path) is None
    else:
        add_device(world.root, "long", "bus", ["x" * (MAX_CHARACTERS + 1)], is_bound=False)
        with serving(server) as path, pytest.raises(Refused):
            unbound_devices(str(world.root), path)


def test_a_call_has_no_more_names_than_the_daemon_takes(rng: random.Random) -> None:
    assert (MAX_NAMES, MAX_CHARACTERS) == (varlink_server.MAX_NAMES, varlink_server.MAX_TEXT)
    names = [f"{number}" + "x" * rng.choice((5, 60, 900, 4000, 5000)) for number in range(500)]
    found = list(batches([*names, *map(str, range(1000, 1200))]))
    assert [name for batch in found for name in batch] == [*names, *map(str, range(1000, 1200))]
    assert {len(batch) for batch in found} >= {1, MAX_NAMES}
    assert all(len(batch) == 1 or len("".join(batch)) <= MAX_CHARACTERS for batch in found)
    assert max(map(len, found)) == MAX_NAMES
    assert list(batches([])) == [[]], "so that the daemon says whether there is a tree"


def test_where_the_daemon_answers_nothing_is_read_here(
    world: World, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's devices, by an index that matches each of them."""
    world.index(["matched.ko:"], ["alias * matched"])
    world.reload()
    monkeypatch.delattr("kmodd.cli.unbound._count_here")
    with serving(server) as path:
        assert count_unbound({}, path) == len(unbound_devices("", path))
    with pytest.raises(NameError):  # the control
        count_unbound({}, str(world.root / "none"))


def test_status_reads_no_index() -> None:
    """That takes longer than all else that it does. The control: `devices` reads one."""
    heavy = {"kmodd.index.catalog", "kmodd.host.tree", "kmodd.config.modprobe_d", "kmodd.planning.resolve"}
    for verb, expected in (("status", set[str]()), ("metrics", set[str]()), ("devices", heavy)):
        code = f"import sys, kmodd.cli.{verb}; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
        assert set(done.stdout.split()) & heavy == expected, verb
