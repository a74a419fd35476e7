"""`make install` and `make uninstall`, run from the checkout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "/usr/bin/python3"
UNITS = (
    "kmodd.service", "kmodd-command.socket", "kmodd-command@.service", "kmodd-loader.socket", "kmodd-loader@.service",
    "kmodd-metrics.service", "kmodd-metrics.timer", "kmodd-requester.socket", "kmodd-requester@.service",
    "kmodd-restore-udev.service", "kmodd-stack.socket", "kmodd-stack@.service",
)  # fmt: skip
NO_NETWORK = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make(*words: str, expect: int = 0) -> str:
    """Run make; without network where the kernel lets us."""
    offline = NO_NETWORK if run([*NO_NETWORK, "true"]).returncode == 0 else []
    done = run([*offline, "make", *words])
    assert done.returncode == expect, done.stdout
    return done.stdout


def listing(folder: Path) -> set[str]:
    """Paths below `folder` as in the manifest: folders end in a slash."""
    return {f"/{path.relative_to(folder)}{'/' if path.is_dir() else ''}" for path in folder.rglob("*")}
