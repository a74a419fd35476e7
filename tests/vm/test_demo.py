"""The demo's scenario, and its negative control."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.vm.image import Image
from tests.vm.payload import REPOSITORY
from tests.vm.scenario import stranger_faults
from tests.vm.trace import module_loads

pytestmark = pytest.mark.vm


def _demo(suite: str, *arguments: str, timeout: float = 900) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.demo", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"SUITE": suite},
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


_TRACE = """\
           <...>-1       [000] .....     1.000000: tracing_mark_write: switch_root
  {comm}-217     [001] .....     3.500000: module_load: e1000e
"""


@pytest.mark.parametrize(("comm", "faults"), [("kmodd-loader", []), ("(udev-worker)", ["(udev-worker) loaded 1"])])
def test_a_load_by_another_program_is_a_fault(comm: str, faults: list[str]) -> None:
    """Control of the demo without a guest; with one it is `test_demo_fails_without_kmodd`, which is long."""
    found = stranger_faults(module_loads(_TRACE.format(comm=comm)))
    assert [fault.partition(" modules")[0] for fault in found] == faults


@pytest.mark.suites
@pytest.mark.timeout(960)
def test_demo_loads_every_driver_and_says_why(image: Image) -> None:
    status, output = _demo(image.suite)
    assert status == 0, output
    found = re.fullmatch(r"demo: OK, (\d+) devices, (\d+) modules", output.splitlines()[-1])
    assert found, output
    assert int(found[1]) >= 4
    assert int(found[2]) >= 10
    assert "(udev-worker)" not in output, output


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_demo_on_arm64() -> None:
    """The machine's own suite, on Debian's kernel for arm64; building the image takes ten minutes more."""
    status, output = _demo("", "--architecture", "arm64", timeout=3500)
    assert status == 0, output
    assert re.search(r"Listening, kernel \S+-arm64", output), output
    assert output.splitlines()[-1].startswith("demo: OK, 4 devices, "), output


@pytest.mark.long
@pytest.mark.timeout(960)
def test_demo_fails_without_kmodd(image: Image) -> None:
    status, output = _demo(image.suite, "--without-kmodd")
    assert status == 1, output
    assert output.splitlines()[-1].startswith("demo: FAILED, "), output
    # the drivers did come, so nothing but the question of who loaded them made it fail
    assert "(udev-worker) loaded" in output
    assert "did not come" not in output
