"""Runs in the guest: loads a module file as another process than kmodd does.

Usage: finit.py FILE PARAMETERS OUT.  Appends the module's name and the errno of finit_module (0: none) to OUT.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

FINIT_MODULE = 313


def main() -> None:
    path, parameters, out = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    code = ctypes.get_errno() if libc.syscall(FINIT_MODULE, descriptor, parameters.encode(), 0) else 0
    with Path(out).open("a") as results:
        results.write(f"{Path(path).stem} {code}\n")


if __name__ == "__main__":
    main()
