"""Records of /dev/kmsg (kernel Documentation/ABI/testing/dev-kmsg), and the log of this machine."""

from __future__ import annotations

import os
import select
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.host.kmsg_reader import AT_ONCE, KEPT, KMSG, KernelLog, KernelMessages
from kmodd.kernel.kmsg import MAX_CRASH_LINES, KernelLine, crash_lines, parse

# ── one record ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b"7,160,424069,-;pci_root PNP0A03:00: host bridge window (ignored)\n"
         b" SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n",
         KernelLine(7, 160, 424069, "pci_root PNP0A03:00: host bridge window (ignored)", "acpi", "+acpi:PNP0A03:00")),
        (b"6,339,5140900,-;NET: Registered protocol family 10\n",
         KernelLine(6, 339, 5140900, "NET: Registered protocol family 10")),
        (b"30,340,5690716,-;udevd[80]: starting version 181\n",
         KernelLine(6, 340, 5690716, "udevd[80]: starting version 181", facility=3)),
        (b"4,1,2,c,caller=T123,new;a;b\n", KernelLine(4, 1, 2, "a;b")),
        (b"4,1,2,-;no end of line", KernelLine(4, 1, 2, "no end of line")),
        (b"4,1,2,-;\n", KernelLine(4, 1, 2, "")),
        (b"4,1,2,-;two\\x0alines \xff\n OTHER=1\n DEVICE=b8:0\n",
         KernelLine(4, 1, 2, "two\\x0alines \udcff", device="b8:0")),
    ],
)  # fmt: skip
def test_a_record(record: bytes, expected: KernelLine) -> None:
    """The first three are the page's own examples; values between the third and `;` may come later."""
    assert parse(record) == expected


@pytest.mark.parametrize(
    "record",
    [b"", b"\n", b"text", b"6,1,2;x\n", b"6,1,2,-\n", b"x,1,2,-;t\n", b"6,,2,-;t\n", b"-6,1,2,-;t\n",
     b"6,1,2,-;t\nDEVICE=b8:0\n", b"9" * 5000 + b",1,2,-;t\n"],
)  # fmt: skip
def test_a_damaged_record_is_none(record: bytes) -> None:
    assert parse(record) is None


# ── crashes ────────────────────────────────────────────────────────────────────────────────────────────────────────

OOPS_6_1 = """BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 0 P4D 0
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 1 PID: 134 Comm: loader Tainted: G           OE      6.1.0-56-amd64 #1  Debian 6.1.192-2
RIP: 0010:kt_init+0x5/0x1000 [kt_oops]
Call Trace:
 <TASK>
 do_one_initcall+0x59/0x220
 </TASK>
---[ end trace 0000000000000000 ]---""".split("\n")
BUG_ON = """kernel BUG at drivers/x.c:7!
invalid opcode: 0000 [#2] PREEMPT SMP
RIP: 0010:x+0x5/0x1000 [x]
---[ end trace 0000000000000000 ]---""".split("\n")
OTHERS = {
    "x86 6.1, general protection": "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
    "x86 6.1, division": "divide error: 0000 [#1] PREEMPT SMP NOPTI",
    "x86 6.12": "Oops: divide error: 0000 [#1] PREEMPT SMP NOPTI",
    "arm64": "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000",
    "arm64, undefined instruction": "Internal error: Oops - Undefined instruction: 0000000002000000 [#1] SMP",
    "riscv": "Oops [#1]",
    "powerpc": "Oops: Kernel access of bad area, sig: 11 [#1]",
}


def test_the_lines_of_an_oops() -> None:
    noise = ["e1000e: Intel(R) PRO/1000", "usb 1-1: new device"]
    assert crash_lines([*noise, *OOPS_6_1, "RIP: 0010:kt_init", *noise]) == tuple(OOPS_6_1)


def test_of_several_the_latest() -> None:
    assert crash_lines([*OOPS_6_1, "between", *BUG_ON]) == tuple(BUG_ON)
    assert crash_lines([*BUG_ON, *OOPS_6_1]) == tuple(OOPS_6_1)
    assert crash_lines([*OOPS_6_1[:-1], *BUG_ON, "after"]) == tuple(BUG_ON), "the first never ended"


@pytest.mark.parametrize("how", OTHERS)
def test_other_beginnings(how: str) -> None:
    assert crash_lines(["before", OTHERS[how], "Call Trace:", "---[ end trace 0 ]---", "after"]) == (
        OTHERS[how], "Call Trace:", "---[ end trace 0 ]---",
    )  # fmt: skip


def test_an_oops_without_end_is_cut() -> None:
    found = crash_lines([OOPS_6_1[0], *(f" line {number}" for number in range(100))])
    assert len(found) == MAX_CRASH_LINES
    assert found[0] == OOPS_6_1[0]
    assert crash_lines([*found, *(["x"] * 100), "Oops: again [#2]"]) == ("Oops: again [#2]",)


@pytest.mark.parametrize("lines", [[], ["x: probe failed", "DEBUG: fine", "Debug Oopsie", "no BUG: here"]])
def test_no_crash_no_lines(lines: list[str]) -> None:
    assert crash_lines(lines) == ()


# ── the log ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def said() -> Callable[[str], str]:
    """Has the log of this machine say something."""

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
    """History first, then what comes; a reader that has all sleeps."""
    old = said("old")
    messages = KernelMessages()
    assert old in [line.text for line in whole(messages)]
    new = said("new")
    assert select.select([messages], [], [], 30)[0]
    [line] = [line for line in whole(messages) if line.text == new]
    assert (line.facility, line.priority) == (1, 7), "user, as what a process writes always is"
    assert line.usec > 0
    assert new not in messages.last(), "nobody but the kernel tells of a crash"
    messages.close()


def test_only_records_that_are_asked_for_are_taken_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The others are kept for a crash all the same, as far as they are the kernel's own."""
    records = iter((b"6,1,1,-;a firmware b\n", b"7,2,1,-;other\n", b"14,3,1,-;a process: firmware\n", b"firmware"))
    monkeypatch.setattr(os, "read", lambda fd, size: next(records, b""))
    messages = KernelMessages(str(tmp_path))
    assert [line.sequence for line in messages.read(b"firmware")] == [1, 3]
    assert messages.read() == []
    assert messages.last() == ("a firmware b", "other")
    messages.close()


@pytest.mark.root
def test_the_last_lines_are_kept_and_no_more() -> None:
    """A kernel says more than KEPT lines while it starts."""
    messages = KernelMessages()
    texts = []
    while lines := messages.read():
        assert len(lines) <= AT_ONCE
        texts += [line.text for line in lines if line.facility == 0]
    assert messages.last() == tuple(texts[-KEPT:])
    assert messages.last(3) == tuple(texts[-3:])
    messages.close()


def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KernelMessages(str(tmp_path / "none"))
    with KernelLog(str(tmp_path / "none")) as log:
        assert log.about("x") == []


def test_what_was_overwritten_is_left_out_and_reading_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_a_flood_is_taken_in_portions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endless = (f"6,{number},1,-;line {number}\n".encode() for number in range(AT_ONCE + 5))
    monkeypatch.setattr(os, "read", lambda fd, size: next(endless, b""))
    messages = KernelMessages(str(tmp_path))
    assert [len(messages.read()), len(messages.read())] == [AT_ONCE, 5]
    assert len(messages.last()) == KEPT
    messages.close()
