"""The daemon as a process on this machine: the kernel's real events in, records out. It loads nothing here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from kmodd.cli.client import NotRunning, call
from kmodd.host.coldplug import replay
from kmodd.kernel.uevent import Uevent

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("alone_with_devices")]

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import sys
from kmodd.daemon.helper_processes import HelperProcesses
from kmodd.daemon.main import Daemon
from kmodd.daemon.options import DaemonOptions
from kmodd.host.journal import TextJournal
from kmodd.host.sd_notify import Notify
from kmodd.host.tree import Tree
tree = Tree(module_dir=sys.argv[1], release="sample")
options = DaemonOptions(dry_run=True, control_path=sys.argv[2], receive_buffer=int(sys.argv[3]))
Daemon(tree, TextJournal(sys.stdout, 7), Notify(), options, HelperProcesses()).run()
"""


class Running:
    """A daemon process, its lines as they come, and its control socket."""

    def __init__(self, modules: Path, socket_path: Path, buffer_bytes: int = 1 << 20) -> None:
        self.socket_path = str(socket_path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(modules), self.socket_path, str(buffer_bytes)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: Queue[str] = Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def wait_for(self, text: str, seconds: float = 30) -> str:
        deadline = time.monotonic() + seconds
        seen = []
        while time.monotonic() < deadline:
            try:
                line = self.lines.get(timeout=0.2)
            except Empty:
                continue
            seen.append(line)
            if text in line:
                return line
        pytest.fail(f"no line with {text!r} within {seconds} s; there were: {seen}")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return call(method, self.socket_path, **parameters)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(30)
        self.reader.join(30)
        if self.process.stdout:
            self.process.stdout.close()


def tree(folder: Path, aliases: str) -> Path:
    modules = folder / "lib/modules/sample"
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "modules.dep").write_text("matched.ko:\nother.ko:\n")
    beside = modules / "modules.alias.new"
    beside.write_text(aliases)
    beside.rename(modules / "modules.alias")
    for name in ("matched", "other"):
        (modules / f"{name}.ko").write_bytes(b"")
    return folder


def device() -> Uevent:
    """A device of this machine that is on a bus and has a modalias."""
    return next(event for event in replay("") if event.subsystem in ("virtio", "pci", "platform"))


def glob_of(event: Uevent) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in event.modaliases[0])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    it = Running(tree(tmp_path, f"alias {glob_of(device())} matched\n"), tmp_path / "io.kmodd")
    try:
        it.wait_for("Listening, kernel")
        yield it
    finally:
        it.stop()


def test_coldplug_answers_for_a_device_that_is_there(running: Running) -> None:
    line = running.wait_for("Would load matched")
    assert device().sysname in line
    running.wait_for("Coldplug done in")


def test_a_real_event_is_answered_with_its_plan(running: Running) -> None:
    """A test writes `add` into real sysfs `uevent` files and sees the daemon's plan."""
    running.wait_for("Coldplug done in")
    before = running.call("Status")
    Path(f"/sys{device().devpath}/uevent").write_text("add")
    running.call("Settle", timeout_usec=30_000_000)
    after = running.call("Status")
    assert int(str(after["events"])) > int(str(before["events"]))
    line = running.wait_for("Would load matched")  # a dry run is not cached, so it is recorded again
    assert device().sysname in line


def test_a_new_index_is_read_and_all_devices_are_replayed(running: Running, tmp_path: Path) -> None:
    running.wait_for("Coldplug done in")
    tree(tmp_path, f"alias {glob_of(device())} other\n")
    Path(f"/sys{device().devpath}/uevent").write_text("add")
    assert device().sysname in running.wait_for("Would load other")


def test_settle_waits_for_a_change_of_the_index_before_it(running: Running, tmp_path: Path) -> None:
    """It is read a moment later, and all devices are looked at again."""
    running.wait_for("Coldplug done in")
    running.call("Settle", timeout_usec=30_000_000)
    before = running.call("Status")["counts"]
    tree(tmp_path, f"alias {glob_of(device())} other\n")
    running.call("Settle", timeout_usec=30_000_000)
    assert running.call("Status")["counts"] != before


def test_reload_reads_everything_again_and_names_bad_lines(running: Running, tmp_path: Path) -> None:
    running.wait_for("Coldplug done in")
    tree(tmp_path, f"alias pci:v1\nalias {glob_of(device())} other\n")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for("Would load other")
    assert running.call("Explain", request=device().modaliases[0])["plan"]


def test_an_overflow_is_healed_by_the_replay(tmp_path: Path) -> None:
    """A real socket with a tiny buffer overflows, and the replay makes up for it.

    The daemon is stopped, the index changes, events flood its buffer of 4 KiB: whatever was lost, afterwards the
    device has been answered from the new index.
    """
    chosen = device()
    noise = next(e for e in replay("") if e.devpath != chosen.devpath and not e.devpath.startswith("/devices/system/"))
    it = Running(tree(tmp_path, f"alias {glob_of(chosen)} matched\n"), tmp_path / "io.kmodd", buffer_bytes=4096)
    try:
        it.wait_for("Coldplug done in")
        for turn in range(3):
            it.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, it.process.pid, os.WSTOPPED)
            wanted = ("other", "matched")[turn % 2]
            tree(tmp_path, f"alias {glob_of(chosen)} {wanted}\n")
            for _ in range(500):
                Path(f"/sys{noise.devpath}/uevent").write_text("add")
            Path(f"/sys{chosen.devpath}/uevent").write_text("add")  # lost: the buffer is full
            it.process.send_signal(signal.SIGCONT)
            it.wait_for("The kernel dropped uevents")
            assert chosen.sysname in it.wait_for(f"Would load {wanted}")
        assert int(str(it.call("Status")["overruns"])) >= 3
    finally:
        it.stop()


def test_load_needs_root_and_returns_the_results(running: Running, tmp_path: Path) -> None:
    results = running.call("Load", request="matched", parameters=["x=1"])["results"]
    assert isinstance(results, list)
    assert [(r["module"], r["result"]) for r in results] == [("matched", "not_attempted")]
    tmp_path.chmod(0o711)  # the folders above are closed to others, who come in by where they stand
    refused = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-IS", "-c",
         "import json, socket, sys\n"
         "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
         "s.sendall(json.dumps({'method': 'io.kmodd.Load', 'parameters': {'request': 'x'}}).encode() + b'\\0')\n"
         "answer = b''\n"
         "while not answer.endswith(b'\\0'): answer += s.recv(4096) or b'\\0'\n"
         "print(answer[:-1].decode())", Path(running.socket_path).name],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert json.loads(refused.stdout)["error"] == "io.kmodd.NotPermitted"


def test_sigterm_ends_it_and_its_socket(running: Running) -> None:
    running.process.terminate()
    assert running.process.wait(30) == 0
    with pytest.raises(NotRunning):
        running.call("Status")
    assert not Path(running.socket_path).exists()


def test_the_service_manager_is_notified_of_ready_reloading_and_stopping(tmp_path: Path) -> None:
    """sd_notify(3): RELOADING=1 with MONOTONIC_USEC in the same message, then READY=1; STOPPING=1 at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        os.environ["WATCHDOG_USEC"] = "100000"
        try:
            it = Running(tree(tmp_path, ""), tmp_path / "io.kmodd")
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]
        try:
            assert b"READY=1" in manager.recv(4096)
            while manager.recv(4096) != b"WATCHDOG=1":
                pass
            it.process.send_signal(signal.SIGHUP)
            while b"RELOADING=1\nMONOTONIC_USEC=" not in manager.recv(4096):
                pass
            while b"READY=1" not in manager.recv(4096):
                pass
            it.process.terminate()
            while manager.recv(4096) != b"STOPPING=1":
                pass
        finally:
            it.stop()
