"""kmodd-request, which the kernel runs in place of modprobe: answered by the daemon; other calls."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from kmodd.cli import request as in_python
from kmodd.host.helper_socket import REQUEST_SOCKET, KernelRequest, RequestSocket
from kmodd.kernel.proc_stat import PF_KTHREAD
from tests.request_helper import BY_MODPROBE, KERNEL_THREAD, KINDS, LIMIT, PROCESS, SOURCE, Helper, come


@pytest.mark.parametrize(("found", "status"), [(True, 0), (False, 1)])
def test_the_daemons_answer_is_the_exit_status(
    helper: Helper, requests: RequestSocket, found: bool, status: int
) -> None:
    with helper.start("-q", "--", "net-pf-9") as process:
        (request,) = come(requests)
        assert (request.name, request.helper_pid) == ("net-pf-9", process.pid)
        requests.answer(request, found)
        assert process.wait(30) == status
    assert helper.became() == []
    assert helper.log.read_bytes() == b""


def test_any_byte_of_a_name_reaches_the_daemon(helper: Helper, requests: RequestSocket) -> None:
    for name in (b"fs-a\nb\xff ", b"--", b"-q", b"x" * 255, "fs-\u00e4".encode()):
        with helper.start("-q", "--", name) as process:
            (request,) = come(requests)
            assert os.fsencode(request.name) == name
            requests.answer(request, True)
            assert process.wait(30) == 0


def test_once_accepted_it_waits_without_limit(helpers: list[Helper]) -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(RequestSocket(helper.socket))) for helper in helpers]
        processes = [stack.enter_context(helper.start("-q", "--", "slow")) for helper in helpers]
        came = [come(requests)[0] for requests in sockets]
        with pytest.raises(subprocess.TimeoutExpired):
            processes[-1].wait(LIMIT + 0.5)
        assert [process.poll() for process in processes] == [None] * len(KINDS)
        for requests, request in zip(sockets, came, strict=True):
            requests.answer(request, True)
        assert [process.wait(30) for process in processes] == [0] * len(KINDS)
    assert [helper.became() for helper in helpers] == [[]] * len(KINDS)


def test_a_stop_of_the_helper_changes_nothing(helper: Helper, requests: RequestSocket) -> None:
    """signal(7): a stop ends a wait that has a time limit in EINTR, and it has one until it is accepted."""
    with helper.start("-q", "--", "stopped") as process:
        assert select.select([requests], [], [], 30)[0]
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()  # it has connected, and after that only recv(2) sleeps
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        process.send_signal(signal.SIGCONT)
        os.waitid(os.P_PID, process.pid, os.WCONTINUED)
        requests.answer(come(requests)[0], True)
        assert process.wait(30) == 0
    assert helper.became() == []


def test_many_at_once_each_get_their_own_answer(helper: Helper, requests: RequestSocket) -> None:
    count = 60 if helper.kind != "python" else 20
    with contextlib.ExitStack() as stack:
        came: list[KernelRequest] = []
        processes = []
        for number in range(count):
            processes.append(stack.enter_context(helper.start("-q", "--", f"name{number}")))
            came += requests.receive()
        came += come(requests, count - len(came))
        assert len(requests.waiting) == count
        for request in reversed(came):
            requests.answer(request, int(request.name.removeprefix("name")) % 2 == 0)
        assert [process.wait(30) for process in processes] == [number % 2 for number in range(count)]
    assert helper.became() == []


def test_a_helper_that_is_killed_is_noticed(helper: Helper, requests: RequestSocket) -> None:
    with helper.start("-q", "--", "killed") as process:
        (request,) = come(requests)
        process.kill()
        assert select.select([requests], [], [], 30)[0]
        assert requests.receive() == []
        assert requests.gone() == [request]
        assert requests.waiting == ()


OTHER_CALLS = [["-q", "dummy"], ["-r", "--", "dummy"], ["-q", "--", "a", "b"], ["-q", "--", ""], ["-q", "-a", "x"], []]


@pytest.mark.parametrize("words", OTHER_CALLS, ids=str)
def test_other_calls_go_to_modprobe_unchanged(helper: Helper, requests: RequestSocket, words: list[str]) -> None:
    assert helper.status(*words) == BY_MODPROBE
    assert helper.became()[: len(words) + 1] == [*words, "gave-up"]
    assert not select.select([requests], [], [], 0)[0], "the daemon was not troubled"


@pytest.mark.root
@pytest.mark.parametrize("words", OTHER_CALLS, ids=str)
def test_other_calls_are_refused_under_an_enforced_policy(helper: Helper, words: list[str]) -> None:
    helper.close()
    assert helper.status(*words) == 1
    assert helper.became() == []
    assert helper.log.read_text().endswith(" refused: this is no call of the kernel's and the policy is enforced\n")


@pytest.mark.parametrize("closed", [False, pytest.param(True, marks=pytest.mark.root)])
@pytest.mark.parametrize("words", [["-q", "--", "net-pf-9"], *OTHER_CALLS], ids=str)
def test_a_call_of_a_process_becomes_modprobe(
    helper: Helper, requests: RequestSocket, words: list[str], closed: bool
) -> None:
    """With its arguments, environment and descriptors; neither the daemon nor an enforced policy has a part in it."""
    helper.by_a_process()
    if closed:
        helper.close()
    with (helper.folder / "seven").open("w+") as seven:
        seven.write("seven\n")
        seven.seek(0)
        inherited = seven.fileno()
        helper.modprobe(
            f'printf "%s\\n" "$A" "$KMODD_REQUEST" "$#" "$@"\ncat - /dev/fd/{inherited}; echo error >&2; exit 6\n'
        )
        done = subprocess.run(
            [*helper.command, *words], env={"A": "b c", "KMODD_REQUEST": "gave-up"},
            input="in\n", pass_fds=[inherited], capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 6
    assert done.stdout == "\n".join(["b c", "gave-up", str(len(words)), *words, "in", "seven", ""])
    assert done.stderr == "error\n"
    assert not select.select([requests], [], [], 0)[0]
    assert helper.log.read_bytes() == b""


@pytest.mark.parametrize("ends", [True, False])
def test_a_process_whose_first_thread_has_ended_is_no_kernel_thread(
    helper: Helper, requests: RequestSocket, tmp_path: Path, ends: bool
) -> None:
    """Such a process has no program in /proc, as kernel threads have none. Control: its first thread goes on."""
    helper.by_its_real_parent()
    (tmp_path / "parent.c").write_text(PARENT)
    subprocess.run(["gcc", "-pthread", tmp_path / "parent.c", "-o", tmp_path / "parent"], check=True)
    below = [str(tmp_path / "parent"), "ends" if ends else "goes on"]
    assert helper.status("-q", "--", "net-pf-9", below=below) == BY_MODPROBE
    assert helper.became()[:4] == ["-q", "--", "net-pf-9", ""], "with its own environment"
    assert not select.select([requests], [], [], 0)[0], "the daemon was not troubled"


PARENT = """
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char **words;

static void *other(void *unused)
{
	char path[64], state = 0;
	int status = 0;

	sprintf(path, "/proc/self/task/%d/stat", getpid());
	while (!strcmp(words[1], "ends") && state != 'Z') {
		FILE *file = fopen(path, "r");
		fscanf(file, "%*d (parent) %c", &state);
		fclose(file);
	}
	if (!fork())
		return execv(words[2], words + 2), NULL;
	wait(&status);
	_exit(WEXITSTATUS(status));
}

int main(int count, char **given)
{
	pthread_t thread;

	words = given;
	pthread_create(&thread, NULL, other, NULL);
	if (!strcmp(words[1], "ends"))
		pthread_exit(NULL);
	pthread_join(thread, NULL);
}
"""


@pytest.mark.parametrize("comm", [b"a) I 2 0 0 0 -1", b") I 2 0 0 0 -1 ", b"\n1 (x) I 0 0 0", b"((((", b""])
def test_the_name_of_the_parent_is_not_taken_for_its_flags(
    helper: Helper, requests: RequestSocket, comm: bytes
) -> None:
    """A process has any name of 15 bytes. Control: the same name of a kernel thread."""
    helper.by(comm, PROCESS)
    assert helper.status("-q", "--", "net-pf-9") == BY_MODPROBE
    assert helper.became()[3] == ""
    helper.by(comm, KERNEL_THREAD)
    with helper.start("-q", "--", "net-pf-9") as process:
        requests.answer(come(requests)[0], True)
        assert process.wait(30) == 0


@pytest.mark.parametrize("stat", [b"", b"1 (x", b"1 (x)", b"1 (x) I 2 0 0 0 -1 ", b"\xff", None])
def test_a_parent_that_is_not_known_is_a_process(helper: Helper, requests: RequestSocket, stat: bytes | None) -> None:
    (helper.parent / "stat").unlink()
    if stat is not None:
        (helper.parent / "stat").write_bytes(stat)
    assert helper.status("-q", "--", "net-pf-9") == BY_MODPROBE
    assert helper.became()[3] == ""


def test_the_first_modprobe_that_can_be_executed_is_taken(helper: Helper) -> None:
    first, second = helper.modprobes
    first.write_text("#!/bin/sh\nexit 8\n")
    assert helper.status("-q", "--", "net-pf-9") == BY_MODPROBE  # not executable
    first.chmod(0o755)
    assert helper.status("-q", "--", "net-pf-9") == 8
    first.unlink()
    second.unlink()
    assert helper.status("-q", "--", "net-pf-9") == 1


def test_it_does_not_go_round_where_modprobe_leads_back_to_it(helper: Helper) -> None:
    helper.modprobe(f'echo >>{helper.folder}/rounds\nexec {shlex.join(helper.command)} "$@"\n')
    assert helper.status("-q", "--", "net-pf-9") == 1
    assert (helper.folder / "rounds").read_text() == "\n"


@pytest.mark.parametrize("by_a_process", [False, True])
def test_it_is_never_its_own_modprobe(built: dict[str, Helper], by_a_process: bool) -> None:
    """The package makes modprobe a hard link to the compiled helper; a name that leads to it is passed over."""
    for helper in (built["bare"], built["libc"]):
        helper.reset()
        try:
            if by_a_process:
                helper.by_a_process()
            first, second = helper.modprobes
            os.link(helper.command[0], first)
            assert helper.status("-q", "--", "net-pf-9") == BY_MODPROBE
            second.unlink()
            second.symlink_to(helper.command[0])
            assert helper.status("-q", "--", "net-pf-9") == 1
        finally:
            helper.clean()


def test_without_modprobe_a_process_reads_why(helper: Helper) -> None:
    helper.by_a_process()
    for modprobe in helper.modprobes:
        modprobe.unlink(missing_ok=True)
    done = subprocess.run([*helper.command, "dummy"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "modprobe: FATAL: Failed to execute kmod's modprobe, it is missing: reinstall kmod\n"


def test_all_of_them_use_the_same_paths() -> None:
    source = SOURCE.read_text().replace("\\\n\t", "")
    defined = dict(re.findall(r"^#define (\w+) (.*?)(?: +/\*.*)?$", source, re.MULTILINE))
    assert defined["SOCKET"] == f'"{in_python.SOCKET}"' == f'"{REQUEST_SOCKET}"'
    assert defined["FLAG"] == f'"{in_python.FLAG}"'
    assert defined["KERNEL_LOG"] == f'"{in_python.KERNEL_LOG}"'
    assert defined["PROC"] == f'"{in_python.PROC}"'
    assert defined["MODPROBES"] == ", ".join(f'"{path}"' for path in in_python.MODPROBES)
    assert int(defined["PF_KTHREAD"], 16) == PF_KTHREAD
    assert int(defined["ACCEPT_LIMIT"]) == in_python.ACCEPT_LIMIT
