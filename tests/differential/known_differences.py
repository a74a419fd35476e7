"""Where our modprobe differs from a kmod, and why: the one table. docs/COMPAT.md has a row for each, of the same name.

A row stands for the commands that it lists and for nothing else. Where one of them comes out equal after all, the row
is no longer needed, and the test fails. kmod 34 is the contract; most rows are what Debian 12's kmod 30 does otherwise.
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
    of: tuple[int, ...] = (30,)
    """The versions of kmod that differ."""


KNOWN = (
    Difference(
        "version and features in -V",
        "Debian builds kmod without zlib; kmodd reads .ko.gz, and says so",
        (("options-of-the-tool", "modprobe -V -z"),),
        of=(30, 34),
    ),
    Difference(
        "-v -v",
        "the chatter of libkmod about itself, with addresses in memory, is not copied",
        (("options-of-the-tool", "modprobe -v -v -D loop"),),
        of=(30, 34),
    ),
    Difference("-h", "kmod 30 writes --wait <MSEC>", (("options-of-the-tool", "modprobe -h"),)),
    Difference(
        "path of a file",
        "kmod 30 looks for a module of that name",
        (
            ("path-given", "modprobe -D /lib/modules/6.1.0-case/kernel/drivers/block/loop.ko"),
            ("path-given", "modprobe -D /lib/modules/6.1.0-case/kernel/none.ko"),
        ),
    ),
    Difference(
        "path of what is no regular file",
        "kmod 34 would insert a folder or a device, kmod 30 looks for a module of that name",
        (("path-given", "modprobe -D /lib/modules/6.1.0-case/kernel"),),
        of=(30, 34),
    ),
    Difference("weakdep", "kmod 30 calls it a bad line", (("weakdep", "modprobe -D loop"), ("weakdep", "modprobe -c"))),
    Difference("files ending in .alias", "kmod 30 reads them", (("file-names", "modprobe -R viaalias"),)),
    Difference(
        "a backslash at the end of a file",
        "kmod 30 reads a byte 0xff",
        (("backslash-at-end", "modprobe -D x"), ("backslash-at-end", "modprobe -c")),
    ),
    Difference(
        "a softdep with an unmatched bracket",
        "kmod 30 says: failed to lookup soft dependency",
        (("softdep-words", "modprobe -D loop"), ("softdep-words", "modprobe -D tun")),
    ),
)


def reason(case: str, command: str, version: int) -> str:
    """Why this command may differ from that kmod's; empty where it may not."""
    return next((row.reason for row in KNOWN if version in row.of and (case, command) in row.commands), "")
