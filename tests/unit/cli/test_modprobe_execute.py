"""modprobe, insmod, rmmod and lsmod at work on a fake machine: texts and status, in this process and by the daemon.

fixtures/acting/expected has what each command of tests/acting.py says and does; kmod 34 says and does the very same
(tests/differential/test_acting.py). `KMODD_WRITE_EXPECTED=1` writes it again.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from kmodd.cli.kmod import modprobe, modprobe_remote
from kmodd.cli.kmod.messages import Messages
from kmodd.cli.kmod.modprobe_execute import How, log_removal
from kmodd.cli.kmod.modprobe_remote import Daemon
from kmodd.engine.events import (
    SealRequested,
)
from kmodd.host.kmsg_reader import KernelLog
from kmodd.loader import in_process
from kmodd.loader.in_process import InsertOptions, Machine
from kmodd.planning.outcome import Outcome
from tests import rootfs
from tests.acting import SCENARIOS, Scenario, run_ours, words_of
from tests.fake_machine import FakeMachine
from tests.running_daemon import daemon_on

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = ROOT / "fixtures" / "acting" / "expected"
Capture = pytest.CaptureFixture[bytes]


def transcript(scenario: Scenario, root: Path, capture: Capture) -> str:
    """What each command of a scenario says and does: standard error behind `! `, calls behind `* `."""
    machine = scenario.build(root)
    lines = [f"# {scenario.name}"]
    for command in scenario.commands:
        said = run_ours(machine, words_of(command, machine), scenario.env, capture)
        lines += [f"$ {command}", *said.out.decode().splitlines()]
        lines += [f"! {line}" for line in said.err.decode().splitlines()]
        lines += [f"* {' '.join(map(str, call))}" for call in machine.calls]
        lines.append(f"= {said.status}")
        machine.calls.clear()
    return by_name("\n".join([*lines, f"= loaded: {' '.join(machine.loaded)}"]) + "\n")


def by_name(text: str) -> str:
    """With the users of a module in their order: lsmod lists them as the folder does, which is another on tmpfs."""
    return re.sub(r"(?m)(?<=\d )[^\s,]+(,[^\s,]+)+$", lambda found: ",".join(sorted(found[0].split(","))), text)


def expected() -> dict[str, str]:
    parts = by_name(EXPECTED.read_text()).split("\n\n")
    return {part.partition("\n")[0].removeprefix("# "): part.rstrip("\n") + "\n" for part in parts}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(scenario: Scenario, tmp_path: Path, capfdbinary: Capture) -> None:
    text = transcript(scenario, tmp_path / "root", capfdbinary)
    if "KMODD_WRITE_EXPECTED" in os.environ:
        EXPECTED.write_text("\n".join((expected() | {scenario.name: text}).values()))
    assert text == expected()[scenario.name]


# ── by the daemon ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario_through_the_daemon(
    scenario: Scenario, tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words, status and calls: the daemon's lane makes them."""
    machine = scenario.build(tmp_path / "root")
    with daemon_on(machine, monkeypatch, tmp_path):
        monkeypatch.setattr(scenario.__class__, "build", lambda self, root: machine)
        assert transcript(scenario, tmp_path / "root", capfdbinary) == expected()[scenario.name]


def test_what_goes_through_the_daemon(tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain names alone; all else is done in the tool's own process. Parameters are never joined with others'."""
    machine = SCENARIOS[0].build(tmp_path / "root")
    with daemon_on(machine, monkeypatch, tmp_path) as running:
        for command, calls in (
            ("modprobe loop a=1", 1),
            ("modprobe loop a=2", 1),
            ("modprobe -a -q -v loop dummy", 2),
            ("modprobe --first-time tun", 1),
            ("modprobe -r tun", 1),
            ("modprobe -r -a loop dummy", 2),
            ("modprobe --no-daemon loop", 0),
            ("modprobe -f loop", 0),
            ("modprobe -i loop", 0),
            ("modprobe -b loop", 0),
            ("modprobe -C /etc/modprobe.d loop", 0),
            (f"modprobe /lib/modules/{rootfs.RELEASE}/kernel/drivers/net/dummy.ko", 0),
            ("modprobe -r -w 1 loop", 0),
            ("modprobe -r -f loop", 0),
            ("modprobe -r --remove-holders loop", 0),
            ("modprobe -n loop", 0),
        ):
            before = running.calls
            run_ours(machine, words_of(command, machine), {}, capfdbinary)
            assert running.calls - before == calls, command
        before = running.calls
        run_ours(machine, ["modprobe", "loop"], {"MODPROBE_OPTIONS": "-q"}, capfdbinary)
        assert running.calls == before
        results = [dict(record.fields).get("KMODD_RESULT") for record in running.records]
        assert results.count("loaded") == 3
        assert results.count("removed") == 3


def test_a_dry_daemon_leaves_it_to_the_tool(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SCENARIOS[0].build(tmp_path / "root")
    with daemon_on(machine, monkeypatch, tmp_path, dry_run=True):
        assert run_ours(machine, ["modprobe", "loop"], {}, capfdbinary).status == 0
        assert machine.loaded == ["loop"]
        assert run_ours(machine, ["modprobe", "-r", "loop"], {}, capfdbinary).status == 0
        assert machine.loaded == []


def test_without_a_daemon_the_tool_does_it_itself(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SCENARIOS[0].build(tmp_path / "root")
    monkeypatch.setattr(modprobe, "shares_tree", lambda *_: True)
    monkeypatch.setattr(Daemon, "within_reach", lambda how, messages: Daemon(how, messages, str(tmp_path / "gone")))
    assert run_ours(machine, ["modprobe", "loop"], {}, capfdbinary).status == 0
    assert machine.loaded == ["loop"]


def test_the_processes_above_us_keep_us_from_waiting() -> None:
    """A runner of commands, or a loader of an earlier version, which ran commands itself."""
    Path("/proc/self/comm").write_text("pytest")  # another test may have had a loader in a thread
    assert not in_process.must_not_wait()
    program = "from kmodd.loader.in_process import must_not_wait; print(must_not_wait())"
    for name, answer in (("kmodd-other", "False"), ("kmodd-command", "True"), ("kmodd-loader", "True")):
        # printf is a builtin, so /proc/self is the shell
        script = f"printf {name} > /proc/self/comm; env -i /bin/sh -c \"$0 -c '{program}'; true\"; true"
        done = subprocess.run(["/bin/sh", "-c", script, sys.executable], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == answer, done.stderr


# ── what only kmodd has ──────────────────────────────────────────────────────────────────────────────────────────────


def act(machine: FakeMachine, *argv: str, told: list[Outcome] | None = None) -> int:
    tell = (lambda _: None) if told is None else told.append
    return modprobe.main(["--root", str(machine.root), "-S", rootfs.RELEASE, *argv], Machine(machine, tell))


def test_each_module_is_told_once(tmp_path: Path) -> None:
    kvm = next(scenario for scenario in SCENARIOS if scenario.name == "a dependency refuses")
    machine = kvm.build(tmp_path / "root")
    told: list[Outcome] = []
    assert act(machine, "kvm_intel", told=told) == 1
    assert [(outcome.module, outcome.result, outcome.errno) for outcome in told] == [
        ("irqbypass", "loaded", 0), ("kvm", "failed", errno.ENODEV), ("kvm_intel", "not_attempted", 0),
    ]  # fmt: skip
    assert {outcome.request.origin for outcome in told} == {"operator"}
    told.clear()
    assert act(machine, "-r", "irqbypass", told=told) == 0
    assert [(outcome.module, outcome.result) for outcome in told] == [("irqbypass", "removed")]


class LetsGo(FakeMachine):
    """What uses a module is done after it was asked some times."""

    asked = 0

    def delete_module(self, name: str, flags: int) -> None:
        self.asked += 1
        if self.asked == 4:
            self.users.clear()
        super().delete_module(name, flags)


def test_waiting_asks_until_it_goes_and_says_when_it_does_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """-w: kmod 30 ends with success when the time is over (its issue 386)."""
    scenario = Scenario("", [], loaded=["loop"], users={"loop": 1})
    built = scenario.build(tmp_path / "root")
    machine = LetsGo(built.root, users={"loop": 1})
    assert act(machine, "-r", "-w", "5000", "loop") == 0
    assert (machine.asked, machine.loaded) == (4, [])
    machine.users["loop"] = 1
    machine.add("loop")
    assert act(machine, "-r", "-w", "0x10", "loop") == 1
    assert capfd.readouterr().err == "modprobe: ERROR: could not remove 'loop': Resource temporarily unavailable\n"
    assert act(machine, "-r", "-w", "10x", "loop") == 1
    assert capfd.readouterr().err == "modprobe: ERROR: unexpected wait value '10x'.\n"


def test_softdeps_that_go_round_end(tmp_path: Path) -> None:
    """kmod 30 calls itself until its stack is full."""
    scenario = Scenario("", [], config="softdep loop post: tun\nsoftdep tun post: loop\n", loaded=["loop", "tun"])
    machine = scenario.build(tmp_path / "root")
    assert act(machine, "-r", "loop") == 0
    assert machine.loaded == []


@pytest.mark.parametrize("words", ["-D --json ext4", "-n --json -a loop fs-ext4 pci:v1", "-D --json symbol:nothing"])
def test_json_is_of_the_schema_of_explain(tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str) -> None:
    machine = SCENARIOS[0].build(tmp_path / "root")
    act(machine, *words.split())
    schema = json.loads((ROOT / "docs" / "explain.schema.json").read_text())
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == {"ext4": 1, "pci:v1": 2, "symbol:nothing": 0}[words.split()[-1]]
    for line in lines:
        jsonschema.validate(json.loads(line), schema)


def test_the_kernels_words_stand_behind_kmods(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Scenario("", [], refuse={"loop": errno.ENOENT}).build(tmp_path / "root")
    monkeypatch.setattr(KernelLog, "about", lambda self, *modules: [f"{modules[0]}: Unknown symbol x (err -2)"])
    assert act(machine, "loop") == 1
    assert capfd.readouterr().err == (
        "modprobe: ERROR: could not insert 'loop': Unknown symbol in module, or unknown parameter (see dmesg)\n"
        "modprobe: ERROR: the kernel says: loop: Unknown symbol x (err -2)\n"
    )
    assert act(machine, "-q", "loop") == 1
    assert capfd.readouterr().err == ""


def test_kernel_log_gives_the_lines_about_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket stands for /dev/kmsg: each read gives one record."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with KernelLog(str(tmp_path / "none")) as missing:
        assert missing.about("x") == []
    monkeypatch.setattr(os, "open", lambda *_: os.dup(ours.fileno()))
    with ours, theirs, KernelLog() as log:
        for text in ("x: Unknown symbol y (err -2)", "other: x", "Loading of unsigned module is rejected", "xy: no"):
            theirs.send(f"3,1,2,-;{text}\n SUBSYSTEM=module\n".encode())
        assert log.about("x") == ["x: Unknown symbol y (err -2)", "Loading of unsigned module is rejected"]
        assert log.about("x") == []


@pytest.mark.parametrize(
    ("tool", "argv"),
    [("lsmod", []), ("insmod", ["/nowhere.ko"]), ("rmmod", ["nosuch"]), ("modprobe", ["-n", "nosuch"]),
     ("modprobe", ["--no-daemon", "nosuch"]), ("modprobe", ["-r", "nosuch"])],
)  # fmt: skip
def test_a_tool_imports_only_what_it_needs(tool: str, argv: list[str]) -> None:
    program = (
        "import sys\nfrom kmodd.cli.__main__ import main\nmain(sys.argv[1:])\n"
        "print(*sorted(sys.modules), file=sys.__stdout__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, tool, *argv], cwd=ROOT, env={}, capture_output=True, text=True
    )
    modules = set(done.stdout.splitlines()[-1].split())
    heavy = set("pyudev elftools varlink argparse subprocess zstandard lzma asyncio logging systemd ctypes".split())
    heavy |= {"tempfile", "importlib.metadata", "kmodd.loader.worker", "kmodd.planning.explain"}
    if tool != "modprobe" or set(argv) & {"-n", "--no-daemon"}:
        heavy |= {"json", "socket", modprobe_remote.__name__}
    if tool == "lsmod":
        heavy |= {"kmodd.host.tree", "kmodd.loader.in_process"}
    if tool == "insmod":
        heavy |= {"kmodd.host.tree", "kmodd.index.catalog", "kmodd.planning.resolve", "kmodd.planning.removal"}
    assert modules & heavy == set()


@pytest.mark.parametrize("sealed", [False, True])
def test_what_policy_refuses_is_a_failure_and_the_tool_does_not_do_it_itself(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    machine = SCENARIOS[0].build(tmp_path / "root")
    with daemon_on(machine, monkeypatch, tmp_path) as running:
        if sealed:
            running.handle(SealRequested(True))
        said = run_ours(machine, ["modprobe", "loop"], {}, capfdbinary)
        assert (said.status, machine.loaded) == ((1, []) if sealed else (0, ["loop"]))
        assert (b"could not insert 'loop': Operation not permitted" in said.err) == sealed
        assert (b"kmodd says: Denied loop for root: sealed" in said.err) == sealed


@pytest.mark.parametrize("how", ["by the daemon", "by the tool", "insmod"])
def test_an_image_beyond_the_limit_is_explained(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch, limit: int, how: str
) -> None:
    """kmod's words for EFBIG do not say that the file unpacks to too much."""
    machine = SCENARIOS[0].build(tmp_path / "root")
    path = next(machine.root.rglob("loop.ko"))
    command = {"insmod": ["insmod", str(path)], "by the tool": ["modprobe", "--no-daemon", "loop"]}.get(
        how, ["modprobe", "loop"]
    )
    with daemon_on(machine, monkeypatch, tmp_path):
        path.write_bytes(gzip.compress(b"loop".ljust(limit + 1)))
        said = run_ours(machine, command, {}, capfdbinary)
        assert (said.status, machine.loaded) == (1, [])
        assert b": File too large\n" in said.err
        first, last = said.err.index(b"kmodd says: "), said.err.index(b"unpacked size exceeds ")
        assert os.fsencode(path) in said.err[first:last]
        path.write_bytes(gzip.compress(b"loop".ljust(limit)))
        said = run_ours(machine, command, {}, capfdbinary)
        assert (said.status, said.err, machine.loaded) == (0, b"", ["loop"])


def test_a_removal_that_does_not_come_back_is_said(capfdbinary: Capture) -> None:
    """A daemon gives up on it after StuckAfterSec=; its answer says so, and nothing else would."""
    messages = Messages("modprobe")
    log_removal("loop", "stuck", 0, False, How(InsertOptions()), messages)
    messages.flush()
    said = b"modprobe: ERROR: could not remove 'loop': The kernel has not finished the removal\n"
    assert capfdbinary.readouterr().err == said


def test_a_module_that_is_stuck_is_not_one_that_is_loaded(
    tmp_path: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SCENARIOS[0].build(tmp_path / "root")
    with daemon_on(machine, monkeypatch, tmp_path) as running:
        monkeypatch.setattr(running.engine.state, "stuck", lambda: ["loop"])
        said = run_ours(machine, ["modprobe", "loop"], {}, capfdbinary)
        assert (said.status, machine.loaded) == (1, [])
        assert b"kmodd says: Stuck: loop for root is starting since before this request" in said.err
