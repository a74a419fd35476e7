"""Records of /dev/kmsg (kernel Documentation/ABI/testing/dev-kmsg), and the lines of a crash."""

from __future__ import annotations

import pytest

from kmodd.kernel.kmsg import MAX_CRASH_LINES, KernelLine, crash_lines, parse


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
