"""bench/vm_trace.py: reading a tracefs `trace` file, writing the table of bench/README.md."""

from __future__ import annotations

import subprocess

import pytest

from bench import other_work, readme, vm_trace

TEXT = """\
# tracer: nop
#
# entries-in-buffer/entries-written: 12/12   #P:2
#
           kmodd-300     [000] .....    10.000000: sched_process_exec: filename=/usr/bin/kmodd pid=300 old_pid=300
        kworker-20       [001] .....    10.500000: sent: (netlink_broadcast+0x0/0x10) text="add@/devices/pci0000:00/x"
    kmodd-loader-301     [001] .....    11.000000: sys_finit_module(fd: 4, uargs: 7f00, flags: 0)
    kmodd-loader-301     [001] .....    11.200000: file: (__do_sys_finit_module+0x8/0x9 <- kernel_read_file) size=4000
 (udev-worker)-302       [000] .....    11.300000: sys_finit_module(fd: 5, uargs: 7f00, flags: 0)
    kmodd-loader-301     [001] .....    11.310000: named: (find_module_all+0x0/0x90) name="e1000e"
 (udev-worker)-302       [000] .....    11.320000: file: (__do_sys_finit_module+0x8/0x9 <- kernel_read_file) size=4000
 (udev-worker)-302       [000] .....    11.330000: named: (find_module_all+0x0/0x90) name="e1000e"
 (udev-worker)-302       [000] .....    11.350000: named: (find_module_all+0x0/0x90) name="another"
    kmodd-loader-301     [001] .....    12.000000: sys_finit_module -> 0x0
 (udev-worker)-302       [000] .....    12.500000: sys_finit_module -> 0xffffffffffffffef
        modprobe-400     [000] .....    13.000000: module_request: net-pf-9 wait=1 call_site=__sock_create
"""


def test_calls_have_name_result_and_bytes_also_where_they_overlap_and_fail() -> None:
    trace = vm_trace.parse(TEXT)
    assert [(call.comm, call.module, call.result, call.size) for call in trace.calls] == [
        ("kmodd-loader", "e1000e", 0, 4000),
        ("(udev-worker)", "e1000e", -17, 4000),
    ]
    assert trace.calls[0].reading == pytest.approx(0.2)
    assert (trace.last_load, trace.repeats, trace.wasted_bytes, trace.asked) == (12.0, 1, 4000, 1)
    assert trace.sent == ((10.5, "add@/devices/pci0000:00/x"),)


def test_the_first_refusal_is_not_a_repeat() -> None:
    trace = vm_trace.parse(TEXT.replace('name="e1000e"', 'name="other"', 1))
    assert (trace.repeats, trace.wasted_bytes, trace.failed_bytes) == (0, 0, 4000)


def test_a_program_that_was_not_started_is_an_error() -> None:
    trace = vm_trace.parse(TEXT)
    assert trace.first_start("/usr/bin/kmodd") == 10.0
    assert trace.first_start("/bin/kmodd") == 10.0, "/bin is /usr/bin"
    with pytest.raises(ValueError, match="was not executed"):
        trace.first_start("/usr/bin/other")


def test_time_in_the_kernel_counts_once_where_calls_overlap() -> None:
    trace = vm_trace.parse(TEXT)
    assert vm_trace.covered(trace.calls, 10.5, 12.0) == pytest.approx(1.0)  # 11.0 to 12.0
    assert vm_trace.covered(trace.calls, 10.5, 13.0) == pytest.approx(1.5)
    assert vm_trace.covered(trace.calls, 10.0, 11.0) == 0


ROW = {"kmodd": 45.03, "peer": 0.0, "ratio": 0.0, "low": 0.0, "high": 0.0, "unit": "MB; PSS"}
FACTS = {"suite": "trixie", "kernel": "6.12.5-amd64", "date": "2026-11-22"}


def test_no_ratio_without_a_peer() -> None:
    row = {"what": "memory", **ROW, **FACTS}
    assert readme.markdown([row]).splitlines()[-1] == "| memory | trixie, 6.12.5 | 45 MB |  |  | 2026-11-22 |"
    with_peer = {**row, "peer": 90.0, "ratio": 0.5, "low": 0.4, "high": 0.6}
    assert "| 45 MB | 90 MB | 0.50 (0.40 to 0.60) |" in readme.markdown([with_peer]).splitlines()[-1]


def test_what_a_machine_pays_is_the_first_row_and_suites_stand_together() -> None:
    names = [("flood", "bookworm"), (f"{readme.WHOLE}, wall", "trixie"), ("coldplug", "x"), ("flood", "testing")]
    table = readme.markdown([{"what": what, **ROW, **FACTS, "suite": suite} for what, suite in names])
    assert [line.split(",")[0].strip("| ") for line in table.splitlines()[2:]] == [
        "coldplug", "coldplug | x", "flood | bookworm", "flood | testing",
    ]  # fmt: skip


def test_idle_time_and_waits_for_disks_are_no_work_of_others() -> None:
    stat = "cpu  100 10 50 {} {} 3 2 35 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert other_work.busy_seconds(stat.format(10000, 500), 100) == 2.0
    assert other_work.busy_seconds(stat.format(0, 0), 100) == 2.0


def test_a_process_beside_a_measurement_is_seen() -> None:
    others = other_work.OtherWork()
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as other:
        while others.share() <= other_work.BUSY:
            pass
        other.kill()
