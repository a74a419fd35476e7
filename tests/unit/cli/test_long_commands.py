"""An install command that is longer than the kernel allows (MAX_ARG_STRLEN, 128 KiB)."""

from __future__ import annotations

from pathlib import Path

from kmodd.cli.kmod import modprobe
from tests import rootfs
from tests.rootfs import RELEASE
from tests.tool import ours


def test_options_beyond_the_kernels_limit_are_an_error_as_in_kmod(tmp_path: Path) -> None:
    """system(3) returns 127 if the shell does not start."""
    root = rootfs.build("names", tmp_path / "root")
    (tmp_path / "t.conf").write_text("install command true $CMDLINE_OPTS\n")
    argv = ["--no-daemon", "-d", str(root), "-S", RELEASE, "-C", str(tmp_path / "t.conf"), "command"]
    assert ours(modprobe.main, [*argv, "a" * 100_000]).status == 0, "the control"
    said = ours(modprobe.main, [*argv, "a" * 100_000, "b" * 40_000])
    assert (said.status, said.out) == (1, b"")
    first, second = said.err.splitlines()
    assert first.endswith(b"' for module command: retcode 127")
    assert second == b"modprobe: ERROR: could not insert 'command': Invalid argument"
