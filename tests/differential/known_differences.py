"""Where our modprobe differs from kmod 30, and why: the one table. docs/COMPAT.md has a row for each, of the same name.

A row stands for the commands that it lists and for nothing else. Where one of them comes out equal after all, the row
is no longer needed, and the test fails.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """One row."""

    name: str
    """As in docs/COMPAT.md."""
    reason: str
    commands: tuple[tuple[str, str], ...]
    """Case below fixtures/rootfs, and the command line in it."""
    as_34: bool = False
    """Whether kmod 34 prints the same."""


KNOWN = (
    Difference(
        "features in -V",
        "Debian builds kmod without zlib; kmodd reads .ko.gz, and says so",
        (("options-of-the-tool", "modprobe -V -z"),),
    ),
    Difference(
        "-v -v",
        "the chatter of libkmod about itself, with addresses in memory, is not copied",
        (("options-of-the-tool", "modprobe -v -v -D loop"),),
    ),
    Difference(
        "path of a file",
        "as kmod 31 and later: the module in that file; kmod 30 looks for a module of that name",
        (
            ("path-given", "modprobe -D /lib/modules/6.1.0-case/kernel/drivers/block/loop.ko"),
            ("path-given", "modprobe -D /lib/modules/6.1.0-case/kernel/none.ko"),
        ),
        as_34=True,
    ),
    Difference(
        "weakdep",
        "as kmod 33 and later: read and shown by -c; kmod 30 calls it a bad line",
        (("weakdep", "modprobe -D loop"), ("weakdep", "modprobe -c")),
        as_34=True,
    ),
)


def reason(case: str, command: str) -> str:
    """Why this command may differ; empty where it may not."""
    return next((row.reason for row in KNOWN if (case, command) in row.commands), "")
