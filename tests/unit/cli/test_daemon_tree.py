"""A verb that only reads has the module tree of the daemon that runs here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.cli import daemon_tree, explain, lookup
from kmodd.cli.daemon_tree import daemon_status, tree_for
from kmodd.host.own_directory import own_directory
from tests import rootfs
from tests.answering_daemon import daemon_of
from tests.rootfs import RELEASE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the daemon of this user listens; root's does not run."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(daemon_tree, "CONTROL_SOCKET", str(tmp_path / "none"))
    return tmp_path


def test_explain_and_lookup_match_in_the_tree_of_the_daemon(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """As after a first `make run` on a machine without modules, whose daemon has the tree of a fixture."""
    root = rootfs.build("names", folder / "root")
    status = {"release": RELEASE, "root": "", "directory": f"{root}/lib/modules/{RELEASE}"}
    if os.uname().release != RELEASE:
        assert explain.main(["ext4"]) == 3, "the control: there is no tree"
    with daemon_of(folder, status, 2):
        assert explain.main(["ext4"]) == 0
        assert lookup.main(["fs-ext4"]) == 0
    out = capfdbinary.readouterr().out.decode()
    assert f"load ext4 {root}/lib/modules/{RELEASE}/kernel/fs/ext4/ext4.ko" in out
    assert out.endswith("fs-ext4\text4\n")


def test_an_option_names_another_tree(folder: Path) -> None:
    """Without a call: the daemon that would answer is gone."""
    (folder / "io.kmodd").write_text("")
    assert tree_for("", "6.6").directory == "/lib/modules/6.6"
    assert tree_for(str(folder), "6.6").root == str(folder)


def test_a_daemon_with_another_root_or_without_an_answer_does_not_count(folder: Path) -> None:
    usual = tree_for("", None).directory
    with daemon_of(folder, {"release": "6.6", "root": "/mnt", "directory": "/lib/modules/6.6"}):
        assert tree_for("", None).directory == usual
    (folder / "io.kmodd").touch()
    assert daemon_status() is None


def test_the_directory_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    path = Path("/tmp/kmodd-4000000000")
    assert own_directory() == ""
    path.mkdir(mode=0o700)
    try:
        assert own_directory(create=True) == ""
    finally:
        path.rmdir()
