"""The hooks of kernel packages and kernel-install: they warn, and never fail or delay an installation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.rootfs import Said

pytestmark = pytest.mark.root

OWN_PROC = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""With a /proc whose first process has this root directory, as on a machine."""
COMMON = "usr/lib/kmodd/kernel-hook"
WARNING = 'echo "$@"; echo noise >&2; exit 1'


def run(
    image: Path, folder: Path, kmodd: str | None, *words: str, before: str = "", limits: str = "-k 1 8",
    **environment: str,
) -> Said:  # fmt: skip
    """Run an installed hook.

    kmodd: the shell script in its place; None: there is none. before: run in the shell of the hook. limits: options of
    timeout(1).
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("sh", "timeout", "sleep"):
        if not (programs / name).exists():
            (programs / name).symlink_to(f"/usr/bin/{name}")
    if kmodd is not None:
        (programs / "kmodd").write_text(f"#!/bin/sh\n{kmodd}\n")
        (programs / "kmodd").chmod(0o755)
    common = (image / COMMON).read_text()
    assert "timeout -k 1 8 kmodd" in common
    (folder / "common").write_text(common.replace("-k 1 8", limits))
    (folder / "common").chmod(0o755)
    (folder / "hook").write_text((image / words[0]).read_text().replace(f"/{COMMON}", str(folder / "common")))
    script = f'{before}\nPATH={programs}; export PATH; exec sh "$@"'
    done = subprocess.run(
        [*OWN_PROC, "sh", "-c", script, "sh", str(folder / "hook"), *words[1:]],
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return Said(done.stdout, done.stderr, done.returncode)


POSTINST = ("etc/kernel/postinst.d/zz-kmodd", "6.1-x", "/boot/vmlinuz-6.1-x")
INSTALL = ("usr/lib/kernel/install.d/95-kmodd.install", "add", "6.1-x", "/entry", "/boot/vmlinuz")
HOOKS = pytest.mark.parametrize("words", [POSTINST, INSTALL], ids=["postinst", "kernel-install"])


@HOOKS
def test_a_warning_is_shown_and_nothing_fails(image: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """What kmodd prints is a warning, on standard error; its own messages are not."""
    said = run(image, tmp_path, WARNING, *words)
    assert said == Said(b"", b"whatif --lost --kernel 6.1-x\n", 0)


@HOOKS
@pytest.mark.parametrize(
    "kmodd", [None, "exit 127", "exit 0", "echo Traceback >&2; exit 1", "kill -SEGV $$"],
    ids=["missing", "127", "well", "traceback", "crash"],
)  # fmt: skip
def test_a_broken_kmodd_is_silent(image: Path, tmp_path: Path, words: tuple[str, ...], kmodd: str | None) -> None:
    said = run(image, tmp_path, kmodd, *words)
    assert (said.out, said.status) == (b"", 0)
    assert said.err in (b"", b"Segmentation fault\n")


@HOOKS
def test_a_kmodd_that_hangs_is_ended(image: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """It ignores SIGTERM. Here it gets 0.2 s; installed, 9 s at most."""
    said = run(image, tmp_path, "trap '' TERM; while :; do sleep 1; done", *words, limits="-k 0.1 0.1")
    assert (said.out, said.status) == (b"", 0)


@HOOKS
@pytest.mark.parametrize(
    "before", ["umount /proc", "exec 2>/dev/full", "exec >&- 2>&- <&-"], ids=["no proc", "full disk", "closed streams"]
)
def test_without_proc_or_with_a_full_disk_nothing_fails(
    image: Path, tmp_path: Path, words: tuple[str, ...], before: str
) -> None:
    said = run(image, tmp_path, WARNING, *words, before=before)
    assert said == Said(b"", b"", 0)


def test_the_initrds_are_those_that_were_made(image: Path, tmp_path: Path) -> None:
    """Of kernel-install: those that it names and those in its staging area; one that does not exist is left out."""
    staging = tmp_path / "staging area"
    staging.mkdir()
    for name in ("initrd", "initrd-2", "named"):
        (staging / name).touch()
    said = run(
        image, tmp_path, WARNING, *INSTALL, str(staging / "named"), "/none",
        KERNEL_INSTALL_STAGING_AREA=str(staging),
    )  # fmt: skip
    expected = " ".join(f"--initrd {staging}/{name}" for name in ("named", "initrd", "initrd-2"))
    assert said.err.decode() == f"whatif --lost --kernel 6.1-x {expected}\n"
    removing = (INSTALL[0], "remove", *INSTALL[2:])
    assert run(image, tmp_path, WARNING, *removing) == Said(b"", b"", 0)
