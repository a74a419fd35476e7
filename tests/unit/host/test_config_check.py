"""What `kmodd lint` says about files: those that are not read, and those that may not be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmodd.host.config_check import read_setup
from kmodd.host.tree import Tree
from kmodd.planning.findings import Finding
from kmodd.planning.lint import lint

RELEASE = "6.1.0"
NOBODY = 65534


@pytest.fixture
def root() -> Iterator[Path]:
    """A root that any user may read."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        write(path / f"lib/modules/{RELEASE}/modules.dep", "kernel/a.ko:\n")
        yield path


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def findings(root: Path) -> list[Finding]:
    tree = Tree(str(root), RELEASE)
    return list(lint(read_setup(tree, tree.quick_snapshot())))


def codes(root: Path) -> dict[str, str]:
    """Path → severity and code."""
    return {finding.at.file: f"{finding.severity} {finding.code}" for finding in findings(root)}


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read every file."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


FOLDERS = ["etc/modprobe.d", "run/modprobe.d", "etc/modules-load.d", "etc/depmod.d", "etc/kmodd/policy.d"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", ["blacklist-nouveau", "x.CONF", "x.conf.local", "x.cfg", ".x.conf", "x.conf "])
def test_names_that_are_not_read(root: Path, folder: str, name: str) -> None:
    write(root / folder / name, "blacklist a\n")
    assert codes(root) == {f"/{folder}/{name}": "error not-read"}


@pytest.mark.parametrize("name", ["x.conf~", "x.conf.bak", "x.conf.dpkg-old", "x.conf.rpmsave", "x.conf.disabled"])
def test_backup_copies_are_warnings(root: Path, name: str) -> None:
    write(root / "etc/modprobe.d" / name, "blacklist a\n")
    assert codes(root) == {f"/etc/modprobe.d/{name}": "warning not-read"}


def test_names_that_are_no_mistake(root: Path) -> None:
    """Files that are read, empty files and links to /dev/null, which mask others, and files of editors and git."""
    folder = root / "etc/modprobe.d"
    write(folder / "x.conf", "blacklist a\n")
    write(folder / "empty.conf")
    (folder / "null.conf").symlink_to("/dev/null")
    (folder / "link.conf").symlink_to("x.conf")
    write(folder / ".x.conf.swp")
    write(folder / ".gitkeep")
    write(root / "usr/lib/modprobe.d/null.conf", "blacklist a\n")
    assert codes(root) == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_entries_that_are_no_files(root: Path, folder: str) -> None:
    write(root / folder / "dir.conf/x.conf")
    write(root / folder / "local/x.conf")
    (root / folder / "gone.conf").symlink_to("/nonexistent")
    (root / folder / "loop.conf").symlink_to("loop.conf")
    names = ("dir.conf", "gone.conf", "local", "loop.conf")
    assert {path: code for path, code in codes(root).items() if code.endswith("not-read")} == {
        f"/{folder}/{name}": "error not-read" for name in names
    }


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/etc/modprobe.conf", "/etc/modprobe.d/"),
        ("/etc/modules.conf", "convert-config"),
        ("/etc/conf.modules", "convert-config"),
    ],
)
def test_files_of_older_tools(root: Path, path: str, advice: str) -> None:
    write(root / path[1:], "alias x a\n")
    (finding,) = findings(root)
    assert (finding.at.file, finding.severity, finding.code) == (path, "error", "not-read")
    assert advice in finding.text


@pytest.mark.parametrize(
    "path",
    [
        "etc/modprobe.d/x.conf",
        "etc/modules-load.d/x.conf",
        "etc/depmod.d/x.conf",
        "etc/kmodd/kmodd.conf",
        "etc/kmodd/policy.d/x.conf",
        "etc/modules",
        "proc/cmdline",
        f"lib/modules/{RELEASE}/modules.alias",
    ],
)
def test_a_file_that_the_caller_may_not_read_is_no_all_clear(root: Path, path: str) -> None:
    file = write(root / path)
    assert codes(root) == {}
    file.chmod(0)
    with as_nobody():
        found = findings(root)
    assert [(finding.at.file, finding.code) for finding in found] == [(f"/{path}", "unreadable")]
    assert "Permission denied" in found[0].text


def test_a_directory_that_the_caller_may_not_read(root: Path) -> None:
    folder = write(root / "etc/modprobe.d/x.conf").parent
    folder.chmod(0)
    with as_nobody():
        assert codes(root) == {"/etc/modprobe.d": "error unreadable"}
    folder.chmod(0o755)
    assert codes(root) == {}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("etc/depmod.d/x.conf", "serch updates\n"),
        ("etc/kmodd/kmodd.conf", "[Kmodd]\nLane=2\n"),
        ("etc/kmodd/policy.d/x.conf", "forbid *\n"),
    ],
)
def test_other_formats_are_checked_too(root: Path, path: str, text: str) -> None:
    write(root / path, text)
    assert codes(root) == {f"/{path}": "error syntax"}


def test_a_root_without_configuration(root: Path) -> None:
    assert findings(root) == []


def test_a_file_name_with_a_colon_and_a_blank(root: Path) -> None:
    write(root / "etc/depmod.d/a: b.conf", "nonsense\n")
    (found,) = findings(root)
    assert str(found.at) == "/etc/depmod.d/a: b.conf:1"


@pytest.mark.parametrize("path", ["etc/modules", "etc/kmodd/kmodd.conf", f"lib/modules/{RELEASE}/modules.softdep"])
@pytest.mark.parametrize(("make", "says"), [(os.mkfifo, "is a FIFO"), (os.mkdir, "is a directory"), (Path.touch, "")])
def test_a_file_of_fixed_name_that_is_none(root: Path, path: str, make: Callable[[Path], None], says: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    make(root / path)
    found = [finding.text for finding in findings(root) if finding.at.file == f"/{path}"]
    assert [says in text for text in found] == ([True] if says else [])
