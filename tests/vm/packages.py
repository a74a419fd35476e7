"""Packages for guests: kmodd's, built on the guest's suite, and others of the suite.

A guest installs kmodd itself, by dpkg: it needs what kmodd depends on, which the images hold.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tests import suites, trees
from tests.package.chroots import BUILD, Machine, build_script, copy_sources, system
from tests.vm import VmError, say
from tests.vm.payload import Payload


def build(suite: str, folder: Path, *versions: str) -> list[Path]:
    """Build kmodd's package in `folder` once for each version. Raises VmError."""
    copy_sources(folder / "source")
    changelog = folder / "source/debian/changelog"
    say(f"building kmodd's package for {suite}")
    try:
        root = system(suite, BUILD)
    except suites.Unavailable as error:
        raise VmError(str(error)) from error
    for version in versions:
        changelog.write_text(re.sub(r"\(.*?\)", f"({version})", changelog.read_text(), count=1))
        with tempfile.TemporaryDirectory(dir=folder) as changes:
            Machine(root, Path(changes), folder).run(build_script(version))
    return [folder / f"{version}.deb" for version in versions]


def unpack(payload: Payload, suite: str, *names: str) -> None:
    """Put the files of packages of a suite into a guest, which may have some of them already. Raises VmError."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        root.mkdir()
        try:
            for name in names:
                trees.unpack(trees.newest(name, suite, ""), root)
        except suites.Unavailable as error:
            raise VmError(str(error)) from error
        # busybox's cp replaces no link.
        payload.remove += [f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_symlink()]
        shutil.copytree(root, payload.folder, symlinks=True, dirs_exist_ok=True)
