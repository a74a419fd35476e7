"""The kernel log of this machine, followed and searched (kernel Documentation/ABI/testing/dev-kmsg)."""

from __future__ import annotations

import os
import select
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.host.kmsg_reader import AT_ONCE, KEPT, KMSG, KernelLog, KernelMessages
from kmodd.kernel.kmsg import KernelLine


@pytest.fixture
def said() -> Callable[[str], str]:
    """Write to the log of this machine; returns the text."""

    def say(text: str) -> str:
        word = f"kmodd-test: {text} {uuid.uuid4().hex}"
        with open(KMSG, "wb", buffering=0) as log:
            log.write(f"<7>{word}\n".encode())
        return word

    return say


def whole(messages: KernelMessages) -> list[KernelLine]:
    """All that there is, until a reader would sleep; the kernel may say something of its own at any moment."""
    lines: list[KernelLine] = []
    while select.select([messages], [], [], 0)[0]:
        lines += messages.read()
    return lines


@pytest.mark.root
def test_the_log_of_this_machine_is_followed(said: Callable[[str], str]) -> None:
    """Old records first, then new ones; a reader of all sleeps."""
    old = said("old")
    messages = KernelMessages()
    assert old in [line.text for line in whole(messages)]
    new = said("new")
    assert select.select([messages], [], [], 30)[0]
    [line] = [line for line in whole(messages) if line.text == new]
    assert (line.facility, line.priority) == (1, 7), "user, as what a process writes always is"
    assert line.usec > 0
    assert new not in [line.text for line in messages.last()], "only the kernel reports a crash"
    messages.close()


def test_only_matching_records_are_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The others are kept for a crash all the same, as far as they are the kernel's own."""
    records = iter((b"6,1,1,-;a firmware b\n", b"7,2,1,-;other\n", b"14,3,1,-;a process: firmware\n", b"firmware"))
    monkeypatch.setattr(os, "read", lambda fd, size: next(records, b""))
    messages = KernelMessages(str(tmp_path))
    assert [line.sequence for line in messages.read(b"firmware")] == [1, 3]
    assert messages.read() == []
    assert [line.text for line in messages.last()] == ["a firmware b", "other"]
    messages.close()


@pytest.mark.root
def test_the_last_lines_are_kept() -> None:
    """A kernel says more than KEPT lines while it starts."""
    messages = KernelMessages()
    texts: list[KernelLine] = []
    while lines := messages.read():
        assert len(lines) <= AT_ONCE
        texts += [line for line in lines if line.facility == 0]
    assert messages.last() == tuple(texts[-KEPT:])
    assert messages.last(3) == tuple(texts[-3:])
    messages.close()


def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KernelMessages(str(tmp_path / "none"))
    with KernelLog(str(tmp_path / "none")) as log:
        assert log.about("x") == []


def test_overwritten_records_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """EPIPE: the next record is gone; the read after it gives the oldest left."""
    line = [f"6,{number},1,-;line {number}\n".encode() for number in range(4)]
    records = iter([line[0], None, line[1], None, line[2], line[3], b"damaged"])

    def read(fd: int, size: int) -> bytes:
        record = next(records, b"")
        if record is None:
            raise BrokenPipeError
        return record

    monkeypatch.setattr(os, "read", read)
    messages = KernelMessages(str(tmp_path))
    assert [line.sequence for line in messages.read()] == [0, 1, 2, 3]
    assert messages.read() == []
    messages.close()


def test_a_flood_is_read_in_portions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endless = (f"6,{number},1,-;line {number}\n".encode() for number in range(AT_ONCE + 5))
    monkeypatch.setattr(os, "read", lambda fd, size: next(endless, b""))
    messages = KernelMessages(str(tmp_path))
    assert [len(messages.read()), len(messages.read())] == [AT_ONCE, 5]
    assert len(messages.last()) == KEPT
    messages.close()
