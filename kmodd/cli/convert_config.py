"""`kmodd convert-config FILE`: convert an old modules.conf or conf.modules to modprobe.d(5)."""

from __future__ import annotations

import sys

from kmodd.cli.verb import Verb
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.modules_conf import convert
from kmodd.host.regular_files import read_given
from kmodd.text import decode, encode

VERB = Verb(
    "convert-config",
    "Print the modprobe.d equivalent of an old /etc/modules.conf or /etc/conf.modules. Lines without an equivalent are "
    "reported on standard error, with the reason.",
    operands="FILE",
    status=((0, "done"), (1, "FILE cannot be read")),
    examples=(
        ("convert-config /etc/modules.conf > /etc/modprobe.d/old.conf", "Convert the configuration of this machine."),
        ("convert-config -", "Convert standard input."),
    ),
)


def main(argv: list[str]) -> int:
    """Print the equivalent, and on standard error the lines without one; return 1 if FILE cannot be read, else 0."""
    given = VERB.parse(argv, 1, 1)
    if isinstance(given, int):
        return given
    path = given.operands[0]
    try:
        text = decode(read_given(0 if path == "-" else path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        VERB.complain(f"Failed to read {path}: {reason}")
        return 1
    converted = convert(ConfFile("standard input" if path == "-" else path, text))
    sys.stdout.buffer.write(encode(converted.text))
    for problem in converted.problems:
        VERB.complain(f"{problem}")
    return 0
