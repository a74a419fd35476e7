"""modprobe, insmod, rmmod and lsmod beside kmod 34 and 30 on an equal fake machine: output, status, calls.

Both get the same root directory and the same kernel (tests/fake_machine.py); after each command standard output,
standard error, status, the calls to the kernel and /proc/modules are compared. What may differ is a row of DIFFERENT.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import rootfs, trees
from tests.acting import DRIVER, SCENARIOS, Scenario, run_ours, words_of
from tests.differential.kernel_peer import KernelPeer
from tests.differential.kmod_peer import kmod_30, kmod_34
from tests.rootfs import Said
from tests.tool import difference

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

Capture = pytest.CaptureFixture[bytes]

DIFFERENT: Mapping[tuple[int, str, str], str] = {
    (34, "an option that does nothing", f"insmod -p {{tree}}/{DRIVER} a=b d"): "`insmod -p`",
    (30, "values with blanks", f"insmod {{tree}}/{DRIVER} 'a=b c' 'd=\"e f\"' 'g h' '' 'i=j=k l'"): "quotes of insmod",
    **{
        (version, scenario, command): row
        for version in (30, 34)
        for scenario, command, row in (
            ("holders of holders", "modprobe -r -v --remove-holders loop", "holders of holders"),
            ("holders of holders, dry", "modprobe -r -n -v --remove-holders loop", "holders of holders"),
            ("holders without -r", "modprobe -v --remove-holders tun", "`--remove-holders` without `-r`"),
            ("an alias of nothing is removed", "modprobe -r -v x", "`modprobe -r` of an alias to nothing"),
        )
    },
    (30, "files", "rmmod -w loop"): "`rmmod -w`",
    (30, "options of the tools", "insmod -h"): "-h",
    (30, "options of the tools", "rmmod -h"): "-h",
    (30, "options of the tools", "lsmod x"): "`lsmod` options",
}
"""Version of kmod, scenario and command → the row of docs/COMPAT.md."""


@pytest.fixture(scope="module")
def peer_34(tmp_path_factory: pytest.TempPathFactory) -> KernelPeer:
    folder = tmp_path_factory.mktemp("peer34")
    with trees.may_be_away():
        return KernelPeer(kmod_34(folder), folder)


@pytest.fixture(scope="module")
def peer_30(tmp_path_factory: pytest.TempPathFactory) -> KernelPeer:
    folder = tmp_path_factory.mktemp("peer30")
    return KernelPeer(kmod_30(folder), folder)


def test_control_a_different_machine_is_seen(peer_34: KernelPeer, tmp_path: Path, capfdbinary: Capture) -> None:
    """One machine refuses a module with another errno than the other: the comparison must say so."""
    theirs = Scenario("", [], refuse={"loop": errno.ENODEV}).build(tmp_path / "theirs")
    mine = Scenario("", [], refuse={"loop": errno.EPERM}).build(tmp_path / "mine")
    peers = peer_34.run(theirs, ["loop"], rootfs.RELEASE, "modprobe")
    assert difference(peers, run_ours(mine, ["modprobe", "loop"], {}, capfdbinary)) != ""
    assert theirs.calls == mine.calls


@pytest.mark.parametrize(("name", "version"), [("peer_34", 34), ("peer_30", 30)])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(
    scenario: Scenario, name: str, version: int, request: pytest.FixtureRequest, tmp_path: Path, capfdbinary: Capture
) -> None:
    peer: KernelPeer = request.getfixturevalue(name)
    theirs, mine = scenario.build(tmp_path / "theirs"), scenario.build(tmp_path / "mine")
    for command in scenario.commands:
        tool, *argv = words_of(command, theirs)
        said = peer.run(theirs, argv, rootfs.RELEASE, tool, scenario.env)
        peers = Said(said.out, said.err.replace(str(theirs.root).encode(), b""), said.status)
        words = difference(peers, run_ours(mine, words_of(command, mine), scenario.env, capfdbinary))
        if row := DIFFERENT.get((version, scenario.name, command)):
            assert words or mine.calls != theirs.calls, f"{command!r} is equal: the row {row!r} is no longer needed"
        else:
            assert words == "", command
            assert mine.calls == theirs.calls, command
            assert mine.loaded == theirs.loaded, command
        theirs.calls.clear()
        mine.calls.clear()


def test_a_directory_in_sys_module_is_no_module(
    peer_34: KernelPeer, peer_30: KernelPeer, tmp_path: Path, capfdbinary: Capture
) -> None:
    """A parameter of the kernel's own code, say; the control has no directory."""
    for name, of_kmod in (("strange", b"unloading is not supported"), ("nothing", b"is not currently loaded")):
        machine = Scenario("", []).build(tmp_path / name)
        if name == "strange":
            (machine.root / "sys/module/strange").mkdir(parents=True)
        for peer in (peer_34, peer_30):
            assert of_kmod in peer.run(machine, [name], rootfs.RELEASE, "rmmod").err
        mine = run_ours(machine, ["rmmod", name], {}, capfdbinary)
        assert mine.err == f"rmmod: ERROR: Module {name} is not currently loaded\n".encode()


def test_every_row_is_in_compat() -> None:
    text = (rootfs.ROOTFS.parent.parent / "docs" / "COMPAT.md").read_text()
    assert [row for row in DIFFERENT.values() if f"| {row} |" not in text] == []
