"""Programs of another architecture on this machine: QEMU's user mode emulation, registered with binfmt_misc."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.suites import Unavailable, own_architecture

_BINFMT: Final = Path("/proc/sys/fs/binfmt_misc")
_PROGRAMS: Final = {"arm64": "qemu-aarch64"}


@contextmanager
def of(architecture: str) -> Iterator[None]:
    """Have programs of `architecture` run, in chroots too; empty: the machine's own, which do.

    Needs root and Debian's qemu-user-static. A registration that is made here is removed at the end.
    Raises Unavailable where the kernel has no binfmt_misc, or a package is missing.
    """
    if architecture in ("", own_architecture()) or (_BINFMT / _PROGRAMS[architecture]).exists():
        yield
        return
    name = _PROGRAMS[architecture]
    line = Path(f"/usr/lib/binfmt.d/{name}.conf")
    if not line.exists():
        raise Unavailable(f"{line} is missing: apt-get install qemu-user-static")
    try:
        if not (_BINFMT / "register").exists():
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=True)
        # F of the flags: the kernel opens the emulator now, so a chroot needs none
        (_BINFMT / "register").write_text(line.read_text().strip())
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"binfmt_misc does not take {name}: {error}") from error
    try:
        yield
    finally:
        (_BINFMT / name).write_text("-1")
