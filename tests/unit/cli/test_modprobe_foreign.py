"""modprobe of a module file that is a user's: opened by the tool, loaded by the daemon's loader or the tool itself."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from kmodd.cli.kmod.messages import Messages
from kmodd.cli.kmod.modprobe_execute import How
from kmodd.cli.kmod.modprobe_remote import Daemon
from kmodd.engine.events import SealRequested
from kmodd.loader.in_process import InsertOptions
from kmodd.planning.record import WARNING
from tests.acting import SCENARIOS, run_ours
from tests.fake_machine import FakeMachine
from tests.rootfs import Said
from tests.running_daemon import daemon_on

Capture = pytest.CaptureFixture[bytes]


def foreign_loop(machine: FakeMachine) -> Path:
    """The file of loop becomes a link to one that is a user's. The user's file."""
    (found,) = machine.root.rglob("loop.ko")
    target = machine.root / "home/loop.ko"
    target.parent.mkdir()
    found.rename(target)
    found.symlink_to(target)
    os.chown(target, 65534, -1)
    return target


@pytest.mark.root
@pytest.mark.parametrize("runs", [True, False])
def test_a_file_of_a_user_is_opened_by_the_tool_and_recorded_with_a_warning(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """Twice, as the descriptors of the first call must be gone; the daemon's are counted."""
    machine = SCENARIOS[0].build(tmp_path / "root")
    target = foreign_loop(machine)
    with daemon_on(machine, monkeypatch, tmp_path) as running:
        word = "loop" if runs else "--no-daemon"
        for _ in range(2):
            words = ["modprobe", "loop"] if runs else ["modprobe", word, "loop"]
            assert run_ours(machine, words, {}, capfdbinary) == Said(b"", b"", 0)
            assert machine.loaded == ["loop"]
            assert run_ours(machine, ["modprobe", "-r", "loop"], {}, capfdbinary).status == 0
            left = [link for link in Path("/proc/self/fd").iterdir() if _leads_to(link, target)]
            assert left == []
        if runs:
            (first, _) = [record for record in running.records if record.message.startswith("Loaded loop")]
            assert first.priority == WARNING
            assert first.message.endswith(f"is a link to {target}, which is owned by uid 65534, not by root")


def _leads_to(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target
    except OSError:
        return False


@pytest.mark.root
@pytest.mark.parametrize("kind", ["pipe", "none"])
def test_what_the_tool_cannot_open_is_an_error_that_says_why(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    machine = SCENARIOS[0].build(tmp_path / "root")
    target = foreign_loop(machine)
    os.chown(target.parent, 65534, -1)
    target.unlink()
    if kind == "pipe":
        os.mkfifo(target)
    with daemon_on(machine, monkeypatch, tmp_path):
        answer = run_ours(machine, ["modprobe", "loop"], {}, capfdbinary)
    why = {"pipe": b"loop.ko: is not a regular file\n", "none": b"loop.ko: No such file or directory\n"}[kind]
    assert answer.status == 1
    assert answer.err.startswith(b"modprobe: ERROR: could not insert 'loop': ")
    assert answer.err.endswith(why)
    assert machine.loaded == []


@pytest.mark.root
def test_a_seal_holds_for_a_file_of_a_user(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SCENARIOS[0].build(tmp_path / "root")
    foreign_loop(machine)
    with daemon_on(machine, monkeypatch, tmp_path) as running:
        running.handle(SealRequested(True))
        assert run_ours(machine, ["modprobe", "loop"], {}, capfdbinary).status == 1
        assert machine.loaded == []
        running.handle(SealRequested(False))
        assert run_ours(machine, ["modprobe", "loop"], {}, capfdbinary).status == 0


def test_a_file_that_is_no_module_of_the_tree_is_not_offered(tmp_path: Path) -> None:
    """A daemon that is taken over demands a file of its own: root's word for it would have the loader load it."""
    evil = tmp_path / "evil.ko"
    evil.write_bytes(b"code")
    came: list[int] = []

    def demand(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            error = {"error": "io.kmodd.FilesNeeded", "parameters": {"files": [str(evil)]}}
            connection.sendall(json.dumps(error).encode() + b"\0")
        listening.settimeout(0.5)
        with suppress(TimeoutError):
            again, _ = listening.accept()
            came.extend(socket.recv_fds(again, 4096, 8)[1])
            again.close()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "io.kmodd"))
        listening.listen()
        daemon = threading.Thread(target=demand, args=(listening,))
        daemon.start()
        how = How(InsertOptions())
        assert Daemon(how, Messages("modprobe"), str(tmp_path / "io.kmodd")).insert("loop", (), lambda: 1) is None
        daemon.join()
    assert came == []
