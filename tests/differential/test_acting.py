"""modprobe, insmod, rmmod and lsmod beside kmod 30 on an equal fake machine: output, status, calls of the kernel.

Both get the same root directory and the same kernel (tests/fake_machine.py); after each command standard output,
standard error, status, the calls to the kernel and /proc/modules are compared. What may differ is a row of DIFFERENT.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import rootfs
from tests.acting import SCENARIOS, Scenario, run_ours, words_of
from tests.differential.kernel_peer import KernelPeer
from tests.differential.kmod_peer import kmod_30
from tests.rootfs import Said
from tests.tool import difference

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

DIFFERENT: Mapping[tuple[str, str], str] = {}
"""Scenario and command → why it differs; the same words as in docs/COMPAT.md."""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> KernelPeer:
    folder = tmp_path_factory.mktemp("peer")
    return KernelPeer(kmod_30(folder), folder)


def test_control_a_different_machine_is_seen(
    peer: KernelPeer, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """One machine refuses a module with another errno than the other: the comparison must say so."""
    theirs = Scenario("", [], refuse={"loop": errno.ENODEV}).build(tmp_path / "theirs")
    mine = Scenario("", [], refuse={"loop": errno.EPERM}).build(tmp_path / "mine")
    peers = peer.run(theirs, ["loop"], rootfs.RELEASE, "modprobe")
    assert difference(peers, run_ours(mine, ["modprobe", "loop"], {}, capfdbinary)) != ""
    assert theirs.calls == mine.calls


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(
    scenario: Scenario, peer: KernelPeer, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    theirs, mine = scenario.build(tmp_path / "theirs"), scenario.build(tmp_path / "mine")
    for command in scenario.commands:
        tool, *argv = words_of(command, theirs)
        said = peer.run(theirs, argv, rootfs.RELEASE, tool, scenario.env)
        peers = Said(said.out, said.err.replace(str(theirs.root).encode(), b""), said.status)
        words = difference(peers, run_ours(mine, words_of(command, mine), scenario.env, capfdbinary))
        if reason := DIFFERENT.get((scenario.name, command)):
            assert words, f"{command!r} is equal: {reason!r} is no longer needed"
        else:
            assert words == "", command
        assert mine.calls == theirs.calls, command
        assert mine.loaded == theirs.loaded, command
        theirs.calls.clear()
        mine.calls.clear()
