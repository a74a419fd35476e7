"""`kmodd convert-config FILE`: convert an old modules.conf or conf.modules to modprobe.d(5)."""

from __future__ import annotations

import argparse
import sys

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.modules_conf import convert
from kmodd.host.regular_files import read_given
from kmodd.text import decode, encode


def main(argv: list[str]) -> int:
    """Print the equivalent, and on standard error the lines without one; return 1 if FILE cannot be read, else 0."""
    parser = argparse.ArgumentParser(
        "kmodd convert-config",
        description="Print the modprobe.d equivalent of an old /etc/modules.conf or /etc/conf.modules.",
        epilog="Lines without an equivalent are reported on standard error, with the reason.",
    )
    parser.add_argument("file", metavar="FILE", help="old configuration file; - for standard input")
    path = parser.parse_args(argv).file
    try:
        text = decode(read_given(0 if path == "-" else path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"kmodd convert-config: Failed to read {path}: {reason}", file=sys.stderr)
        return 1
    converted = convert(ConfFile("standard input" if path == "-" else path, text))
    sys.stdout.buffer.write(encode(converted.text))
    for problem in converted.problems:
        print(f"kmodd convert-config: {problem}", file=sys.stderr)
    return 0
