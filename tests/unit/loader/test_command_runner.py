"""The command runner: one command of modprobe.d, read from its line, with options of the configuration."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from kmodd.dataclass import replace
from kmodd.errors import Where
from kmodd.host.journal import Journal, TextJournal
from kmodd.loader.command_runner import OUTPUT_LIMIT
from kmodd.loader.protocol import CommandRequest
from kmodd.loader.trusted_paths import Trusted
from kmodd.planning.record import DEBUG
from kmodd.planning.reply import Reply
from tests.loader_harness import Runner, install_line, run_command

ROOT = Path(__file__).resolve().parents[3]
PLACE = "/etc/modprobe.d/a.conf:2"


def run(root: Path, command: str) -> Reply:
    """Have an install command run."""
    return run_command(Trusted.below(str(root)), install_line(root, command))


def conf(root: Path, text: str, name: str = "b.conf") -> Path:
    """A second file of modprobe.d."""
    path = root / "etc/modprobe.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- what is run ---------------------------------------------------------------------------------------------------


def test_the_command_is_read_from_its_line_and_runs_with_module_and_options(tmp_path: Path) -> None:
    """modprobe.d(5), install: MODPROBE_MODULE is set, $CMDLINE_OPTS replaced."""
    conf(tmp_path, "options foo x=1\noptions bar z=3\noptions foo y=2\n")
    answer = run(tmp_path, 'echo "$MODPROBE_MODULE:$CMDLINE_OPTS"')
    assert (answer.errno, answer.stage, answer.detail) == (0, "command", "")
    assert (answer.status, answer.output) == ("0", "foo:x=1 y=2")


@pytest.mark.parametrize("module", ["foo -C /tmp x", "foo;id", "-foo", "foo\n", "", "$(id)"])
def test_a_module_whose_name_is_more_than_a_word_is_refused(tmp_path: Path, module: str) -> None:
    """The command may hand $MODPROBE_MODULE to a shell; a wildcard matches each of these."""
    conf(tmp_path, "install * echo ran $MODPROBE_MODULE\n")
    at = Where("/etc/modprobe.d/b.conf", 1)
    trusted = Trusted.below(str(tmp_path))
    good = CommandRequest("install", "foo", at, f"{tmp_path}{at.file}")
    assert run_command(trusted, good).output == "ran foo"
    answer = run_command(trusted, replace(good, module=module))
    assert (answer.errno, answer.output) == (errno.EINVAL, "")


def test_a_line_that_is_not_in_force_is_refused(tmp_path: Path) -> None:
    """Of a file that is hidden, of one without .conf, and behind another line for the module."""
    trusted = Trusted.below(str(tmp_path))
    hidden = conf(tmp_path, "install foo echo ran\n", "hidden.conf")
    call = CommandRequest("install", "foo", Where("/etc/modprobe.d/hidden.conf", 1), str(hidden))
    assert run_command(trusted, call).output == "ran"
    conf(tmp_path, "install foo echo earlier\n", "a.conf")
    assert "is not for foo" in run_command(trusted, call).detail
    disabled = conf(tmp_path, "install bar echo ran\n", "x.conf.disabled")
    call = CommandRequest("install", "bar", Where("/etc/modprobe.d/x.conf.disabled", 1), str(disabled))
    assert "is not for bar" in run_command(trusted, call).detail


def test_a_pipeline_ends_as_in_a_shell(tmp_path: Path) -> None:
    """Python ignores SIGPIPE, and children would inherit that."""
    assert run(tmp_path, "yes | head -n 1").output == "y"


def test_it_starts_with_a_usual_umask_an_empty_input_and_no_descriptor_of_the_runner(tmp_path: Path) -> None:
    answer = run(tmp_path, "umask; pwd; cat; env | grep -c -e ^LISTEN -e ^REMOTE; ls -l /proc/self/fd | grep -c socket")
    assert answer.output == r"0022\n/\n0\n0"


@pytest.mark.parametrize(
    ("alias", "lines", "output"),
    [
        ("eth0", "alias eth0 foo\n", "x=1 y=2"),
        ("eth0", "", "x=1"),
        ("bar", "alias eth0 foo\n", "x=1"),
        ("", "alias eth0 foo\n", "x=1"),
    ],
)
def test_options_of_an_alias_count_if_it_is_one_of_the_module(
    tmp_path: Path, alias: str, lines: str, output: str
) -> None:
    """A daemon that was taken over cannot have options of another module passed to the command."""
    conf(tmp_path, f"{lines}options foo x=1\noptions eth0 y=2\noptions bar z=3\n")
    call = replace(install_line(tmp_path, "echo $CMDLINE_OPTS"), alias=alias)
    assert run_command(Trusted.below(str(tmp_path)), call).output == output


def test_an_alias_of_the_index_counts_too(tmp_path: Path) -> None:
    tree = tmp_path / "lib/modules/6.1"
    tree.mkdir(parents=True)
    (tree / "modules.alias").write_text("alias net-pf-44 foo\n")
    (tree / "modules.dep").write_text("foo.ko:\n")
    conf(tmp_path, "options net-pf-44 y=2\n")
    call = install_line(tmp_path, "echo $CMDLINE_OPTS")
    trusted = Trusted.below(str(tmp_path))
    assert run_command(trusted, replace(call, alias="net_pf_44")).output == "y=2"
    (tree / "modules.alias").write_text("alias net-pf-44 other\n")
    assert run_command(trusted, replace(call, alias="net_pf_44")).output == ""


def test_options_in_a_file_writable_by_others_are_not_used(tmp_path: Path) -> None:
    """They are words of a shell command of root; the reply says which file was left out."""
    conf(tmp_path, "options foo x=1\n")
    conf(tmp_path, "options foo y=$(id)\n", "c.conf").chmod(0o666)
    answer = run(tmp_path, "echo $CMDLINE_OPTS")
    why = f"kmodd: Ignoring options in {tmp_path}/etc/modprobe.d/c.conf: is writable by others"
    assert (answer.errno, answer.output) == (0, rf"{why}\nx=1")


def test_a_remove_command_has_no_options(tmp_path: Path) -> None:
    path = conf(tmp_path, "options foo x=1\nremove foo echo $MODPROBE_MODULE:$CMDLINE_OPTS:\n")
    call = CommandRequest("remove", "foo", Where("/etc/modprobe.d/b.conf", 2), str(path))
    assert run_command(Trusted.below(str(tmp_path)), call).output == "foo::"


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda call: replace(call, at=Where("/etc/modprobe.d/a.conf", 1)),
            "a.conf:1: the line is not an install command any more",
        ),
        (lambda call: replace(call, kind="remove"), f"{PLACE}: the line is not a remove command any more"),
        (lambda call: replace(call, module="bar"), f"{PLACE}: the install command is not for bar"),
        (lambda call: replace(call, module="foo2"), ""),
    ],
)
def test_only_a_command_for_the_module_is_run(
    tmp_path: Path, change: Callable[[CommandRequest], CommandRequest], why: str
) -> None:
    call = change(install_line(tmp_path, f"touch {tmp_path}/told"))
    conf(tmp_path, f"#\ninstall foo* touch {tmp_path}/told\n", "a.conf")
    answer = run_command(Trusted.below(str(tmp_path)), call)
    assert answer.detail.endswith(why)
    assert (answer.errno, answer.status) == ((errno.EINVAL, "") if why else (0, "0"))
    assert (tmp_path / "told").exists() == (not why)


def test_the_command_of_a_name_with_a_dot_is_for_the_part_before_it(tmp_path: Path) -> None:
    """As the look-up has it, where the name of an install line is no module."""
    call = install_line(tmp_path, "true")
    conf(tmp_path, "#\ninstall foo.bar true\n", "a.conf")
    assert run_command(Trusted.below(str(tmp_path)), call).errno == 0


def test_a_line_that_is_too_long_for_a_process_is_reported(tmp_path: Path) -> None:
    """E2BIG of execve(2), which limits one argument to 128 KiB."""
    answer = run(tmp_path, f"true {'x' * 200_000}")
    assert (answer.errno, answer.detail) == (errno.E2BIG, f"/bin/sh: {os.strerror(errno.E2BIG)}")


# -- what comes back -----------------------------------------------------------------------------------------------


def test_a_command_that_fails_is_reported_with_status_and_output(tmp_path: Path) -> None:
    answer = run(tmp_path, "echo one; printf 'two\\\\033[1m\\\\377\\\\n' >&2; exit 3")
    assert (answer.errno, answer.stage, answer.status) == (errno.EINVAL, "command", "3")
    assert answer.output == r"one\ntwo\x1b[1m\xff"
    assert answer.detail == rf"install command of {PLACE} exited with status 3: two\x1b[1m\xff"
    assert run(tmp_path, "exit 3").detail == f"install command of {PLACE} exited with status 3"


def test_a_command_that_is_killed_is_reported_with_the_signal(tmp_path: Path) -> None:
    """All signals are blocked in the runner without systemd, and none in the command."""
    answer = run(tmp_path, "kill -TERM $$; exit 0")
    assert (answer.errno, answer.stage, answer.status) == (errno.EINVAL, "signal", "SIGTERM")
    assert answer.detail == f"install command of {PLACE} was killed by SIGTERM"
    assert run(tmp_path, f"kill -{signal.SIGRTMIN + 2} $$").status == f"signal {signal.SIGRTMIN + 2}"


def test_the_end_of_a_long_output_is_kept(tmp_path: Path) -> None:
    answer = run(tmp_path, "head -c 300000 /dev/zero | tr '\\\\0' a; echo; echo é; exit 1")
    assert answer.output.endswith(r"aa\né")
    assert len(answer.output.encode()) == OUTPUT_LIMIT
    assert answer.detail.endswith(": é")
    assert len(run(tmp_path, "head -c 300000 /dev/zero; true").output) == OUTPUT_LIMIT // 4 * 4


def test_a_process_left_behind_is_neither_waited_for_nor_ended(tmp_path: Path) -> None:
    """It may write on; the runner stays for it after the reply."""
    os.mkfifo(tmp_path / "go")
    runner = Runner(Trusted.below(str(tmp_path)))
    later = f"read line <{tmp_path}/go; echo more; echo $? >{tmp_path}/told"
    answer = runner.do(install_line(tmp_path, f"(setsid sh -c '{later}' &); echo now"))
    assert (answer.errno, answer.output) == (0, "now")
    runner.close()
    (tmp_path / "go").write_text("\n")
    assert runner.end() == 0
    assert (tmp_path / "told").read_text() == "0\n"


def test_the_end_of_an_orphan_is_seen_by_the_command(tmp_path: Path) -> None:
    """The runner adopts orphans: a zombie would look alive to a command that waits for it."""
    wait = "while kill -0 $(cat $0) 2>/dev/null; do :; done; echo over"
    text = f"setsid -f sh -c 'echo $$ >{tmp_path}/pid'; while ! [ -s {tmp_path}/pid ]; do :; done"
    assert run(tmp_path, f"{text}; sh -c '{wait}' {tmp_path}/pid").output == "over"


def test_a_command_that_outlives_the_daemon_is_recorded_by_its_runner(tmp_path: Path) -> None:
    def journal() -> Journal:
        return TextJournal((tmp_path / "said").open("w"), DEBUG)

    os.mkfifo(tmp_path / "go")
    runner = Runner(Trusted.below(str(tmp_path)), journal)
    assert runner.lane.start(install_line(tmp_path, f"read line <{tmp_path}/go; echo $line; exit 4"))
    runner.close()
    (tmp_path / "go").write_text("bad\n")
    assert runner.end() == 0
    said = (tmp_path / "said").read_text()
    assert said.startswith(
        f"err     After kmodd had ended: foo: install command of {PLACE} exited with status 4: bad, "
    )


def test_a_reply_that_the_daemon_has_not_read_is_a_record(tmp_path: Path) -> None:
    """The daemon was killed after the reply had come; the test below is the control."""

    def journal() -> Journal:
        return TextJournal((tmp_path / "said").open("w"), DEBUG)

    runner = Runner(Trusted.below(str(tmp_path)), journal)
    assert runner.lane.start(install_line(tmp_path, "exit 4"))
    assert select.select([runner.lane], [], [], 30)[0]
    assert runner.end() == 0
    assert f"foo: install command of {PLACE} exited with status 4" in (tmp_path / "said").read_text()


def test_one_that_the_daemon_waited_for_is_recorded_by_the_daemon_alone(tmp_path: Path) -> None:
    def journal() -> Journal:
        (tmp_path / "said").touch()
        return TextJournal(StringIO(), DEBUG)

    runner = Runner(Trusted.below(str(tmp_path)), journal)
    assert runner.do(install_line(tmp_path, "exit 4")).status == "4"
    assert runner.end() == 0
    assert not (tmp_path / "said").exists()


# -- a modprobe in the command -------------------------------------------------------------------------------------

PROGRAM = f"import sys; sys.path.insert(0, '{ROOT}'); from kmodd.loader.in_process import must_not_wait"
QUESTION = f"{sys.executable} -c \"{PROGRAM}; print(must_not_wait(), file=open('$0', 'w'))\""


@pytest.fixture
def own_name() -> None:
    """The tests are no loader: another test may have had one in a thread, which names the process."""
    Path("/proc/self/comm").write_text("pytest")


@pytest.mark.usefixtures("own_name")
@pytest.mark.parametrize(
    "way",
    [
        "{}",
        "env -i {}",
        "setsid --wait {}",
        "env -i setsid --fork {}",
        "(sh -c 'setsid env -i {} &' &)",
        pytest.param("unshare --pid --fork {}", marks=pytest.mark.root),
    ],
)
def test_a_modprobe_of_a_command_does_not_wait_for_the_daemon(tmp_path: Path, way: str) -> None:
    """By whatever way it was started: the runner is above it, also after its own parents have ended."""
    script, told = tmp_path / "ask", tmp_path / "told"
    script.write_text(f"#!/bin/sh\n{QUESTION.replace('$0', f'{told}.new')} && mv {told}.new {told}\n")
    script.chmod(0o755)
    answer = run(tmp_path, f"{way.format(script)}; while ! [ -e {told} ]; do :; done")
    assert (answer.errno, answer.output) == (0, "")
    assert told.read_text() == "True\n"


@pytest.mark.usefixtures("own_name")
def test_one_outside_of_commands_waits(tmp_path: Path) -> None:
    """The negative control of the test above."""
    told = tmp_path / "told"
    subprocess.run(["/bin/sh", "-c", QUESTION, told], check=True)
    assert told.read_text() == "False\n"
