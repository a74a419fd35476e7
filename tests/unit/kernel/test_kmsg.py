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


def test_a_record_of_blanks_is_parsed_at_once() -> None:
    """A line of fields may have any number of blanks; a damaged one behind it makes no difference."""
    record = b"6,1,2,-;t\n" + b" a" * 4000 + b"\n"
    assert parse(record) == KernelLine(6, 1, 2, "t")
    assert parse(record + b"x") is None


def lines_of(text: str, priority: int = 4) -> list[KernelLine]:
    """Lines of the kernel; the first of an oops has the level alert on x86, the others the default one."""
    return [
        KernelLine(1 if line.startswith(("BUG: ", "kernel BUG", "Unable", "Internal")) else priority, 1, 1, line)
        for line in text.split("\n")
    ]


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
---[ end trace 0000000000000000 ]---"""
BUG_ON = """kernel BUG at drivers/x.c:7!
invalid opcode: 0000 [#2] PREEMPT SMP
RIP: 0010:x+0x5/0x1000 [x]
---[ end trace 0000000000000000 ]---"""
OTHERS = {
    "x86 6.1, general protection": "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
    "x86 6.1, division": "divide error: 0000 [#1] PREEMPT SMP NOPTI",
    "x86 6.12": "Oops: divide error: 0000 [#1] PREEMPT SMP NOPTI",
    "arm64": "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000",
    "arm64, undefined instruction": "Internal error: Oops - Undefined instruction: 0000000002000000 [#1] SMP",
    "riscv": "Oops [#1]",
    "powerpc": "Oops: Kernel access of bad area, sig: 11 [#1]",
}


NOISE = lines_of("e1000e: Intel(R) PRO/1000\nusb 1-1: new device", 6)
OOPS, BUG = lines_of(OOPS_6_1), lines_of(BUG_ON)


def texts(lines: list[KernelLine]) -> tuple[str, ...]:
    return tuple(line.text for line in lines)


def test_the_lines_of_an_oops() -> None:
    assert crash_lines([*NOISE, *OOPS, *lines_of("RIP: 0010:kt_init"), *NOISE]) == texts(OOPS)
    between = KernelLine(3, 1, 1, "sda: I/O error", "block", "b8:0")
    assert crash_lines([*OOPS[:3], *NOISE, between, *OOPS[3:]]) == texts(OOPS), "others speak meanwhile"


def test_of_several_the_latest() -> None:
    assert crash_lines([*OOPS, *lines_of("between"), *BUG]) == texts(BUG)
    assert crash_lines([*BUG, *OOPS]) == texts(OOPS)
    assert crash_lines([*OOPS[:-1], *BUG, *lines_of("after")]) == texts(BUG), "the first never ended"


@pytest.mark.parametrize("how", OTHERS)
def test_other_beginnings(how: str) -> None:
    found = crash_lines(lines_of(f"before\n{OTHERS[how]}\nCall Trace:\n---[ end trace 0 ]---\nafter"))
    assert found == (OTHERS[how], "Call Trace:", "---[ end trace 0 ]---")


def test_an_oops_without_end_is_cut() -> None:
    found = crash_lines([OOPS[0], *(KernelLine(4, 1, 1, f" line {number}") for number in range(100))])
    assert len(found) == MAX_CRASH_LINES
    assert found[0] == OOPS[0].text
    assert crash_lines([*OOPS[:-1], *lines_of("x") * 100, *lines_of("Oops: again [#2]")]) == ("Oops: again [#2]",)


@pytest.mark.parametrize("text", ["", "x: probe failed", "DEBUG: fine", "Debug Oopsie", "no BUG: here"])
def test_no_crash_no_lines(text: str) -> None:
    assert crash_lines(lines_of(text)) == ()


@pytest.mark.parametrize(
    "record",
    [
        b"6,1,2,-;usb 1-1: Product: Oops [#1]\n SUBSYSTEM=usb\n DEVICE=c189:1\n",
        b"6,1,2,-;usb 1-1: Product: Oops [#1]\n",
        b"4,1,2,-;BUG: x\n SUBSYSTEM=usb\n DEVICE=c189:1\n",
        b"6,1,2,-;input: Oops [#1] as /devices/virtual/input/input5\n",
        b"6,1,2,-;BUG: unable[812]: segfault at 0 ip 0 sp 0 error 4\n",
        b"4,1,2,-;BUG: unable to invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0\n",
        b"4,1,2,-;Oops [#1] invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0\n",
        b"4,1,2,-;Oops: [#1] S: page allocation failure: order:5\n",
        b"12,1,2,-;BUG: from a process\n",
    ],
)  # fmt: skip
def test_a_name_that_a_device_or_process_gives_itself_is_no_crash(record: bytes) -> None:
    """Before an oops such a line is left out, and after one it replaces nothing."""
    line = parse(record)
    assert line
    assert crash_lines([line]) == ()
    assert crash_lines([line, *OOPS]) == texts(OOPS)
    assert crash_lines([*OOPS, line]) == texts(OOPS)
