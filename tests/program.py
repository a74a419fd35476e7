"""kmodd as a process of its own, started as by its launcher, with standard streams of every kind."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.rootfs import Said

ROOT = Path(__file__).resolve().parents[1]
_LAUNCHER = (
    "import sys\nsys.path.insert(0, sys.argv.pop(1))\nfrom kmodd.cli.__main__ import leave, main\nleave(main())\n"
)


def command(*argv: str) -> list[str]:
    """The command line that runs a verb of kmodd."""
    return [sys.executable, "-BIXutf8", "-c", _LAUNCHER, str(ROOT), *argv]


ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "COLUMNS": "100"}


def run(
    argv: Sequence[str], streams: str = "", *, stdin: bytes = b"", timeout: float = 60,
    environment: Mapping[str, str] | None = None,
) -> Said:  # fmt: skip
    """Run a verb of kmodd.

    streams: redirections of a shell, as in `2>&-`; `|` for standard output is a pipe without a reader. environment:
    variables in addition to ENVIRONMENT.
    """
    words = command(*argv)
    if streams not in ("", "|"):
        words = ["sh", "-c", f'exec "$@" {streams}', "sh", *words]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            words, input=stdin, stdout=writer if streams == "|" else subprocess.PIPE, stderr=subprocess.PIPE,
            env=ENVIRONMENT | dict(environment or {}), check=False, timeout=timeout,
        )  # fmt: skip
    finally:
        os.close(writer)
    return Said(done.stdout or b"", done.stderr, done.returncode)


def on_terminal(argv: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """Run a verb of kmodd with a terminal as standard output and standard error. Returns what that shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*argv), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=ENVIRONMENT | dict(environment)
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the program has ended
            while data := os.read(ours, 65536):
                shown += data
        process.wait(60)
    os.close(ours)
    return shown.replace(b"\r\n", b"\n")
