"""Fuzz one target in this process: python -m tests.fuzz.one TARGET [OPTION OF LIBFUZZER…] [FOLDER]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kmodd"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, *words = sys.argv[1:]
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.corpus):
            Path(folder, str(number)).write_bytes(seed)
        atheris.Setup([f"tests.fuzz.one {name}", *words, folder], target.run)
        atheris.Fuzz()


main()
