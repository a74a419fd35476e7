"""`make shell` gives a root shell in a guest with kmodd, and takes its commands from standard input."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.vm.payload import REPOSITORY

pytestmark = [pytest.mark.vm, pytest.mark.timeout(660)]


@pytest.mark.long
def test_shell_carries_out_the_lines_of_standard_input() -> None:
    commands = "systemctl is-active kmodd.service\ncommand -v modprobe\necho $((6 * 7)) on $(tty)\n"
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.shell", "e1000e"],
        cwd=REPOSITORY, input=commands, stdout=subprocess.PIPE, text=True, timeout=600,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert [line for line in ("active", "/usr/lib/kmodd/bin/modprobe", "42 on /dev/ttyS3") if line not in lines] == []


def test_shell_refuses_a_device_that_it_does_not_know() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.shell", "no-such-device"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no-such-device" in done.stderr
