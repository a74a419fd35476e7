"""`kmodd convert-config FILE`: a modules.conf or conf.modules as modprobe.d writes it."""

from __future__ import annotations

import argparse
import sys

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.modules_conf import convert


def main(argv: list[str]) -> int:
    """The equivalent on standard output, each line without one on standard error. Exit 1 where FILE cannot be read."""
    parser = argparse.ArgumentParser(
        "kmodd convert-config",
        description="Print the modprobe.d equivalent of an old /etc/modules.conf or /etc/conf.modules.",
        epilog="Lines that have no equivalent are named on standard error, with the reason.",
    )
    parser.add_argument("file", metavar="FILE", help="the old configuration; - for standard input")
    path = parser.parse_args(argv).file
    try:
        with open(0 if path == "-" else path, "rb") as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"kmodd convert-config: {path}: {reason}", file=sys.stderr)
        return 1
    converted = convert(ConfFile("standard input" if path == "-" else path, text))
    sys.stdout.buffer.write(converted.text.encode("utf-8", "surrogateescape"))
    for problem in converted.problems:
        print(f"kmodd convert-config: {problem}", file=sys.stderr)
    return 0
