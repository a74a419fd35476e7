"""Tests, demo and benchmarks on a real kernel, in a virtual machine. `README.md` in this folder is the guide."""

from __future__ import annotations

import sys


class VmError(RuntimeError):
    """The harness cannot go on; the text says what is missing and what to do. Never raised for a fault of kmodd."""


def say(text: str) -> None:
    """Show one line of progress on standard error."""
    print(f"vm: {text}", file=sys.stderr, flush=True)
