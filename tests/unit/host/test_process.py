"""Requesters read from /proc: a faked one for rare cases, and this machine's own."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from kmodd.dataclass import replace
from kmodd.host.process import Namespaces, requester_of, unit_of
from kmodd.kernel.requester import Requester
from tests.played_proc import CGROUP, WAITING, WHO, played

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
ASKED = 1000 * TICK


def asked(root: Path, initial: Namespaces) -> Requester | None:
    return requester_of(179, ASKED, initial, str(root))


def test_all_fields_are_read(tmp_path: Path) -> None:
    """The real uid, whatever the effective one; a comm with line ends and parentheses makes up nothing."""
    assert asked(tmp_path, played(tmp_path)) == WHO


@pytest.mark.parametrize("namespace", ["user", "pid"])
def test_another_namespace_is_a_container(tmp_path: Path, namespace: str) -> None:
    initial = played(tmp_path)
    (tmp_path / "179/ns" / namespace).unlink()
    (tmp_path / "179/ns" / namespace).touch()
    assert asked(tmp_path, initial) == replace(WHO, container=True)


def test_unreadable_fields_are_empty(tmp_path: Path) -> None:
    initial = played(tmp_path)
    for name in ("exe", "loginuid", "cgroup"):
        (tmp_path / "179" / name).unlink()
    assert asked(tmp_path, initial) == replace(WHO, exe="", loginuid=None, cgroup="", unit="")


@pytest.mark.parametrize("needed", ["status", "stat", "ns/user", "ns/pid"])
def test_without_the_required_files_the_requester_is_unknown(tmp_path: Path, needed: str) -> None:
    initial = played(tmp_path)
    (tmp_path / "179" / needed).unlink()
    assert asked(tmp_path, initial) is None


@pytest.mark.parametrize(
    ("name", "text"), [("status", ""), ("status", "Tgid:\tx\nUid:\t0\n"), ("stat", "179 (x) S 1\n"), ("stat", "")]
)
def test_a_damaged_file_gives_no_requester(tmp_path: Path, name: str, text: str) -> None:
    initial = played(tmp_path)
    (tmp_path / "179" / name).write_text(text)
    assert asked(tmp_path, initial) is None


def test_a_thread_of_the_kernel_is_known_by_its_flag_not_by_its_program(tmp_path: Path) -> None:
    """A process whose main thread has ended has no program either."""
    initial = played(tmp_path)
    (tmp_path / "179/exe").unlink()
    who = asked(tmp_path, initial)
    assert who is not None
    assert not who.is_kernel
    stat = tmp_path / "179/stat"
    stat.write_text(stat.read_text().replace(" 0 -1 64 ", " 0 -1 2129984 "))  # 0x208040
    assert asked(tmp_path, initial) == replace(who, is_kernel=True)


def test_unset_loginuid(tmp_path: Path) -> None:
    initial = played(tmp_path)
    (tmp_path / "179/loginuid").write_text("4294967295")
    assert asked(tmp_path, initial) == replace(WHO, loginuid=None)


@pytest.mark.parametrize(
    ("start", "state", "wchan", "expected"),
    [
        (999, "D", "call_usermodehelper_exec", True),
        (999, "S", "do_epoll_wait", False),
        (999, "R", "0", False),
        (999, "Z", "0", False),
        (1001, "D", "call_usermodehelper_exec", False),
        (1000, "D", "call_usermodehelper_exec", True),
        (1000, "D", "do_epoll_wait", False),
        (1000, "R", "0", False),
    ],
)
def test_a_thread_counts_only_while_it_waits_for_a_helper(
    tmp_path: Path, start: int, state: str, wchan: str, expected: bool
) -> None:
    """A thread that was started later never does; one that has executed a program may have an earlier start time."""
    assert (asked(tmp_path, played(tmp_path, start, state, wchan)) is not None) is expected


def test_a_thread_that_does_not_exist_is_unknown(tmp_path: Path) -> None:
    initial = played(tmp_path)
    assert requester_of(180, ASKED, initial, str(tmp_path)) is None


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/ssh.service", "ssh.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/x.service/sshd.service", "x.service"),
        ("/user.slice/user-0.slice/session-1.scope", "session-1.scope"),
        (CGROUP, "user@1000.service"),
        ("/init.scope", "init.scope"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/lxc/x.service", ""),
        ("/system.slice", ""),
        ("/system.slice/a b.service", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_unit_of_cgroup(cgroup: str, unit: str) -> None:
    """systemd's cg_path_get_unit: what stands below the unit, its owner may have made up."""
    assert unit_of(cgroup) == unit


def test_a_thread_that_runs_is_given_time_to_wait(tmp_path: Path) -> None:
    """The kernel starts the helper before the thread sleeps."""
    initial = played(tmp_path, state="R", wchan="0")
    stat, wchan = tmp_path / "179/stat", tmp_path / "179/wchan"

    def sleep(_: float) -> None:
        stat.write_text(stat.read_text().replace(" R 1 178", " D 1 178"))
        wchan.write_text(WAITING)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        assert requester_of(179, ASKED, initial, str(tmp_path)) is None
        assert requester_of(179, ASKED, initial, str(tmp_path), time.monotonic() + 60) == WHO


def test_a_thread_of_this_process() -> None:
    """It waits, but not for a helper of the kernel; tests/vm has threads that do."""
    user, namespace = os.stat("/proc/self/ns/user"), os.stat("/proc/self/ns/pid")
    ours = Namespaces((user.st_dev, user.st_ino), (namespace.st_dev, namespace.st_ino))
    asking, done = threading.Event(), threading.Event()

    def wait() -> None:
        asking.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    asking.wait()
    assert thread.native_id is not None
    try:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert requester_of(thread.native_id, now + 2 * TICK, ours) is None
    finally:
        done.set()
        thread.join()


# -- processes of install commands ---------------------------------------------------------------------------------


def below(root: Path, *above: tuple[int, str, int]) -> Namespaces:
    """The thread's process with ancestors: number, name, and number of the parent."""
    initial = played(root)
    stat = root / "179/stat"
    stat.write_text(stat.read_text().replace(" D 1 178", f" D {above[0][0]} 178"))
    for pid, name, parent in above:
        (root / str(pid)).mkdir()
        (root / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0\n")
    return initial


@pytest.mark.parametrize(
    ("unit", "command"), [("kmodd-command@3-7-0.service", 40), ("", 40), ("kmodd-loader@3-7-0.service", 0)]
)
def test_a_process_of_a_command_is_known_by_its_runner(tmp_path: Path, unit: str, command: int) -> None:
    """The unit saves the look at all ancestors of other processes; without systemd there is none."""
    initial = below(tmp_path, (50, "sh) S 1", 40), (40, "kmodd-command", 1))
    (tmp_path / "179/cgroup").write_text(f"0::/system.slice/{unit}\n" if unit else "0::/\n")
    found = asked(tmp_path, initial)
    assert found
    assert (found.unit, found.command) == (unit, command)


def test_a_process_whose_runner_has_ended_belongs_to_no_command(tmp_path: Path) -> None:
    initial = below(tmp_path, (50, "sh", 40))
    (tmp_path / "179/cgroup").write_text("0::/\n")
    found = asked(tmp_path, initial)
    assert found
    assert found.command == 0
