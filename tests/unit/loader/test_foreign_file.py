"""Module files that are not root's: opened by a child of the loader, or offered by the process of an operator."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import pytest

from kmodd.loader.foreign_file import offer, open_in_child, take
from kmodd.loader.protocol import InsmodRequest, OfferedRequest
from kmodd.loader.trusted_paths import Trusted
from tests import hanging_file_system
from tests.fakes import FakeKernel
from tests.loader_harness import Served

RELEASE = "6.1"


def linked(root: Path) -> str:
    """A link in the tree to a file that others may write."""
    target = root / "home/a.ko"
    target.parent.mkdir()
    target.write_bytes(b"\x7fELF module")
    target.chmod(0o666)
    link = root / "lib/modules" / RELEASE / "a.ko"
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    return str(link)


def conf(root: Path, folder: str, value: str) -> None:
    path = root / folder / "kmodd.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[Kmodd]\nForeignModules={value}\n")


@pytest.mark.parametrize(
    ("folder", "value", "is_taken"),
    [("etc/kmodd", "yes", True), ("etc/kmodd", "no", False), ("run/kmodd", "yes", False), ("tmp", "yes", False)],
)
def test_the_loader_itself_reads_whether_foreign_files_are_taken(
    kernel: FakeKernel, tmp_path: Path, folder: str, value: str, is_taken: bool
) -> None:
    """The daemon, which is not trusted, can write /run/kmodd."""
    link = linked(tmp_path)
    conf(tmp_path, folder, value)
    served = Served(kernel, Trusted.below(str(tmp_path)))
    try:
        answer = served.do(InsmodRequest(link, ""))
        assert answer.errno == (0 if is_taken else errno.EACCES)
        assert ("is writable by others" in answer.detail) != is_taken
        assert bool(kernel.calls) == is_taken
    finally:
        served.close()


def test_a_file_that_is_not_named_in_the_tree_is_never_taken(kernel: FakeKernel, tmp_path: Path) -> None:
    linked(tmp_path)
    conf(tmp_path, "etc/kmodd", "yes")
    served = Served(kernel, Trusted.below(str(tmp_path)))
    try:
        for name in ("home/a.ko", "lib/modules/../../home/a.ko"):
            assert "is not below" in served.do(InsmodRequest(f"{tmp_path}/{name}", "")).detail
        assert kernel.calls == []
    finally:
        served.close()


def test_a_child_opens_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"content")
    fd = open_in_child(f"{tmp_path}/a.ko")
    assert os.read(fd, 99) == b"content"
    os.close(fd)
    os.mkfifo(tmp_path / "pipe.ko")
    with pytest.raises(OSError, match="is not a regular file"):
        open_in_child(f"{tmp_path}/pipe.ko")
    with pytest.raises(FileNotFoundError):
        open_in_child(f"{tmp_path}/none.ko")


@pytest.mark.root
def test_a_child_is_not_waited_for_where_the_file_system_never_answers(tmp_path: Path) -> None:
    with hanging_file_system.mounted(tmp_path), pytest.raises(OSError, match="did not answer") as error:
        open_in_child(f"{tmp_path}/a.ko", limit=0.2)
    assert error.value.errno == errno.ETIMEDOUT


@pytest.mark.root
def test_an_offered_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"content")
    with open(tmp_path / "a.ko", "rb") as file:
        offered = offer(file.fileno())
    fd = take(offered)
    assert os.read(fd, 99) == b"content"
    os.close(fd)
    os.close(offered)


@pytest.mark.root
def test_an_offered_pipe_is_refused() -> None:
    reading, writing = os.pipe()
    offered = offer(reading)
    with pytest.raises(OSError, match="is not a regular file"):
        take(offered)
    for fd in (reading, writing, offered):
        os.close(fd)


@pytest.mark.parametrize("claims", ["nothing", "itself"])
def test_what_a_process_without_rights_can_offer_is_refused(tmp_path: Path, claims: str) -> None:
    """The daemon is root, but it cannot claim to be process 1: that needs CAP_SYS_ADMIN."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(tmp_path / "evil.ko", "w+b") as file:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file.fileno()))]
        if claims == "itself":
            ids = struct.pack("3i", os.getpid(), os.getuid(), os.getgid())
            control.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ids))
        ours.sendmsg([b"module"], control)
        with pytest.raises(OSError, match="was not sent by root") as error:
            take(theirs.fileno())
        assert error.value.errno == errno.EACCES


@pytest.mark.root
def test_a_loader_takes_what_root_offers_and_nothing_that_the_daemon_makes_up(
    served: Served, kernel: FakeKernel, tmp_path: Path
) -> None:
    path = tmp_path / "a.ko"
    path.write_bytes(b"\x7fELF module")
    with open(path, "rb") as file:
        offered = offer(file.fileno())
        assert served.do(OfferedRequest("/lib/modules/6.1/a.ko", "x=1", offered)).errno == 0
        os.close(offered)
        assert kernel.calls == [("a.ko", "x=1", 0)]
        answer = served.do(OfferedRequest("/lib/modules/6.1/a.ko", "", file.fileno()))
        assert (answer.errno, answer.stage) == (errno.EACCES, "file")
        assert answer.detail.startswith("/lib/modules/6.1/a.ko: was not sent with its descriptor")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            socket.send_fds(ours, [b"module"], [file.fileno()])
            answer = served.do(OfferedRequest("/lib/modules/6.1/a.ko", "", theirs.fileno()))
            assert answer.detail == "/lib/modules/6.1/a.ko: was not sent by root"
    assert len(kernel.calls) == 1


def test_an_empty_offer_is_refused_without_waiting() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(OSError, match="was not sent with its descriptor"):
        take(theirs.fileno())
    with open(os.devnull, "rb") as file, pytest.raises(OSError, match="was not sent with its descriptor"):
        take(file.fileno())
