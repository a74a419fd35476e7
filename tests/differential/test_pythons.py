"""Unit and property tests under the Python, the systemd and the kmod of each Debian suite, in chroots."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import chroots, suites

pytestmark = [pytest.mark.differential, pytest.mark.root, pytest.mark.long, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parents[2]
CHECKERS = ("ruff", "mypy")

_TESTS = """
cp /mnt/resolv.conf /etc/resolv.conf
apt-get update -qq
python3 -m venv --system-site-packages /venv
cd /kmodd
/venv/bin/python -m pip install --quiet --no-index --find-links /wheels {packages}
/venv/bin/python -m pip install --quiet --no-index --find-links vendor --require-hashes -r vendor/requirements.txt
/venv/bin/python -m pytest -p no:cacheprovider -q --numprocesses 2 {tests}
"""


def _wheels(folder: Path, packages: list[str], version: str) -> None:
    """Download wheels for another Python, as this machine's pip is configured."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    subprocess.run([*pip, f"--python-version={version}", f"--dest={folder}", *packages], check=True)


def _copy(folder: Path) -> None:
    """The files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
    for name in listed.decode().split("\0")[:-1]:
        if os.path.lexists(REPOSITORY / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name, follow_symlinks=False)


@pytest.mark.parametrize("suite", suites.SUITES)
def test_unit_and_property_tests_pass(suite: str, tmp_path: Path) -> None:
    root = chroots.chroot(suite)
    asked = chroots.run(root, "python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = project["project"]["optional-dependencies"]["test"]
    packages = [each for each in wanted if not each.startswith(CHECKERS)]
    wheels, copy, venv, network = (tmp_path / name for name in ("wheels", "kmodd", "venv", "network"))
    for folder in (wheels, copy, venv, network):
        folder.mkdir()
    shutil.copy("/etc/resolv.conf", network)
    _wheels(wheels, packages, asked.output.strip())
    _copy(copy)
    binds = {wheels: "/wheels", copy: "/kmodd", venv: "/venv", network: "/mnt", suites.cache(): "/kmodd/.cache"}
    said = chroots.run(root, _TESTS.format(packages=" ".join(packages), tests="tests/unit tests/property"), binds)
    assert said.status == 0, said.output
    assert "failed 0, skipped 0" in said.output.splitlines()[-1], said.output
