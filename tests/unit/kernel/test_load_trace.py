"""Lines of tracefs as the kernels of Debian 12 and 13 write them."""

from __future__ import annotations

from kmodd.kernel.load_trace import ModuleLoad, parse

TEXT = """\
# tracer: nop
#
# entries-in-buffer/entries-written: 4/4   #P:2
#
#                                _-----=> irqs-off/BH-disabled
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
    kmodd-loader-291     [001] ..... 12.345678: module_load: usb_storage
 a -[000] b-7-812     [000] d.... 13.000001: module_load: tun OE
          insmod-(-----)812     [000] .....    14.5: module_load: cut
CPU:1 [LOST 12 EVENTS]
          insmod-813     (    813) [000] .....   100.000000: module_load: tun OE
          rmmod-814     [000] .....   101.000000: module_free: tun
"""


def test_the_last_load_of_each_module() -> None:
    """Names of threads have blanks and dashes. Control: the header, lost events and other events are no loads."""
    assert parse(TEXT) == {
        "usb_storage": ModuleLoad("usb_storage", "kmodd-loader", 291, 12_345_678),
        "tun": ModuleLoad("tun", "insmod", 813, 100_000_000),
    }
    (line,) = parse(TEXT.splitlines()[8]).values()
    assert (line.comm, line.pid) == ("a -[000] b-7", 812)


def test_other_text_is_nothing() -> None:
    assert parse("") == {}
    assert parse("\udcff\0" * 100) == {}
