"""Capabilities after a drop, each case in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

LOOK = """
import ctypes, errno, json, os, subprocess, sys
from kmodd.loader.syscalls import LinuxKernel
from kmodd.loader.capabilities import drop

def sets(pid="self"):
    lines = open(f"/proc/{pid}/status").read().splitlines()
    pairs = (line.split(":\\t") for line in lines if line.startswith(("Cap", "NoNewPrivs")))
    return {name: int(value, 16) for name, value in pairs}

def said(do):
    try:
        do()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def finit():
    fd = os.open(sys.argv[1], os.O_RDONLY)
    LinuxKernel().finit_module(fd, "", 0)

def everything():
    return {
        "finit": said(finit),
        "init": said(lambda: LinuxKernel().init_module(b"x", "")),
        "delete": said(lambda: LinuxKernel().delete_module("nothing_of_this_name", os.O_NONBLOCK)),
        "chown": said(lambda: os.chown(sys.argv[1], 12345, -1)),
        "sets": sets(),
    }
"""


def look(program: str, file: Path) -> dict[str, object]:
    """Run LOOK and a program; return its output."""
    file.touch()
    done = subprocess.run(
        [sys.executable, "-c", LOOK + program, file],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


PTRACE = 1 << 19


@pytest.mark.root
def test_only_the_kept_capabilities_stay(tmp_path: Path) -> None:
    found = look('drop({"CAP_SYS_PTRACE"}); print(json.dumps(everything()))', tmp_path / "file")
    # ENOSYS: a kernel without modules.
    assert {found[name] for name in ("finit", "init", "delete")} in ({"EPERM"}, {"ENOSYS"})
    assert found["chown"] == "EPERM"
    assert found["sets"] == {
        "CapInh": 0, "CapPrm": PTRACE, "CapEff": PTRACE, "CapBnd": PTRACE, "CapAmb": 0, "NoNewPrivs": 1,
    }  # fmt: skip


@pytest.mark.root
def test_before_it_is_given_up_more_is_possible(tmp_path: Path) -> None:
    """The control: without `drop` the same call is not refused for want of a capability."""
    found = look("print(json.dumps(everything()))", tmp_path / "file")
    assert found["chown"] == "done"
    assert isinstance(found["sets"], dict)
    assert found["sets"]["CapEff"] & ~PTRACE


@pytest.mark.root
def test_dropped_capabilities_do_not_return(tmp_path: Path) -> None:
    program = """
drop(())
shown = subprocess.run(["/bin/cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True, check=True).stdout
drop({"CAP_SYS_ADMIN"})
print(json.dumps({"shown": [line for line in shown.splitlines() if line.startswith("Cap")], "sets": sets()}))
"""
    found = look(program, tmp_path / "file")
    nothing = "0000000000000000"
    assert found["shown"] == [f"{name}:\t{nothing}" for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    assert isinstance(found["sets"], dict)
    assert not any(found["sets"][name] for name in found["sets"] if name != "NoNewPrivs")


@pytest.mark.root
def test_loaders_keep_the_capabilities_of_their_spawner(tmp_path: Path) -> None:
    """Processes that were there before have all their capabilities."""
    program = """
import socket
from kmodd.loader.pool import Loader
from kmodd.loader.spawner import Spawner
from kmodd.loader.trusted_paths import Trusted
spawner = Spawner.of_ours(Trusted())
before = sets()
drop(())
connection = spawner.connect()
connection.settimeout(30)
lane = Loader(connection)
lane.receive()
print(json.dumps({"before": before, "own": sets(), "loader": sets(lane.pid)}))
"""
    found = look(program, tmp_path / "file")
    assert isinstance(found["own"], dict)
    assert not found["own"]["CapBnd"] | found["own"]["CapEff"]
    assert found["loader"] == found["before"] != found["own"]


@pytest.mark.root
def test_an_unprivileged_process_drops_nothing(tmp_path: Path) -> None:
    """The user changes after the imports: in /root, the checkout is closed to others."""
    found = look('os.setuid(65534); drop({"CAP_SYS_PTRACE"}); print(json.dumps(sets()))', tmp_path / "file")
    assert {name: found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs")} == {
        "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapAmb": 0, "NoNewPrivs": 1,
    }  # fmt: skip


def test_a_name_that_is_not_known_changes_nothing(tmp_path: Path) -> None:
    program = """
try:
    drop({"CAP_FLY"})
except KeyError as error:
    print(json.dumps({"why": str(error), "sets": sets()}))
"""
    found = look(program, tmp_path / "file")
    assert found["why"] == "'CAP_FLY'"
    assert isinstance(found["sets"], dict)
    assert not found["sets"]["NoNewPrivs"]
