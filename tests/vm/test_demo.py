"""The demo's scenario, and its negative control."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.vm.image import Image
from tests.vm.payload import REPOSITORY

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


@pytest.mark.timeout(960)
def test_demo_fails_without_kmodd(image: Image) -> None:
    status, output = _demo(image.suite, "--without-kmodd")
    assert status == 1, output
    assert output.splitlines()[-1].startswith("demo: FAILED, "), output
    # the drivers did come, so nothing but the question of who loaded them made it fail
    assert "(udev-worker) loaded" in output
    assert "did not come" not in output
