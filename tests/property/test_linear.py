"""Input of any size is parsed in linear time: with twice the input, a parser takes about twice the steps.

Steps are lines of kmodd that Python executes, so the result does not depend on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from kmodd.config import cmdline, kmodd_conf, modprobe_d, modules_load_d, policy_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.errors import KmoddError
from kmodd.index import fnmatch_regex, text_files
from kmodd.kernel import kmsg, uevent
from kmodd.kernel.kmsg import KernelLine
from kmodd.names import underscores
from kmodd.planning.policy import Policy, PolicyQuery
from kmodd.text import escaped_end

SMALL = 100
"""Repetitions; compared with twice as many."""
MOST = 2.2
"""Ratio of the steps; 4 would be quadratic."""


def steps(call: Callable[[str], object], text: str) -> int:
    """Return the number of lines of kmodd that `call(text)` executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if "/kmodd/" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(text)
    except KmoddError:
        pass  # the documented error
    finally:
        sys.settrace(before)
    return count


def conf(text: str) -> list[ConfFile]:
    return [ConfFile("/etc/x.conf", text)]


QUERY = PolicyQuery("request", "net-pf-38", "running")
PARSERS: dict[str, Callable[[str], object]] = {
    "pattern": fnmatch_regex.compiled.__wrapped__,
    "walk": lambda text: fnmatch_regex.walk(text, "x", 0),
    "name": underscores,
    "kmsg": lambda text: kmsg.parse(b"6,1,2,-;t\n " + text.encode()),
    "kmsg text": lambda text: kmsg.parse(b"6,1,2,-;" + text.encode()),
    "crash": lambda text: kmsg.crash_lines([KernelLine(4, 1, 1, line) for line in text.split("\n")]),
    "uevent": lambda text: uevent.parse(b"add@/x\0" + text.encode()),
    "policy.d": lambda text: policy_d.parse(conf(text)),
    "judge": lambda text: Policy("enforce", policy_d.parse(conf(text)).rules).judge(QUERY, "af_alg"),
    "kmodd.conf": lambda text: kmodd_conf.parse(conf(text)),
    "modprobe.d": lambda text: modprobe_d.parse(conf(text)),
    "modules-load.d": lambda text: modules_load_d.parse(conf(text), cmdline.EMPTY),
    "command line": cmdline.parse,
    "modules.devname": lambda text: text_files.devnames(text.encode(), "x"),
    "modules.builtin.modinfo": lambda text: text_files.builtin_modinfo(text.encode(), "x"),
    "escaped": lambda text: escaped_end(text.encode(), 1 << 20),
}
PIECES = [
    "[!a", "[[:alpha:]", "[a[.x.]", "[[:-[::]", "[a-[.b.]", "[=", "[.", "*[!a]", "]", "*?", "\\", "\0", "\0=", "=\0",
    "A=1\0", "\n", " a\n", " =", "a ", '"', '""', '",', "!", ",", "#", "deny uid=1,!", "\ndeny *", "\nA=b", "\\\n",
    "alias a b\n", "options a b=c\n", "[Kmodd]\n", "Oops: [#1] S\n", "BUG: \n", "[#", "1", "a.b=c ", "x c1:2\n",
]  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS)
def test_twice_the_input_takes_twice_the_steps(parser: str) -> None:
    """Each piece is repeated, and closed by a bracket and by an escaped one."""
    call = PARSERS[parser]
    for piece in PIECES:
        for end in ("", "]", "\\]") if "[" in piece else ("",):
            one, two = (steps(call, piece * count + end) for count in (SMALL, 2 * SMALL))
            assert two <= MOST * one + 400, (piece, end, one, two)


def test_a_quadratic_parser_is_noticed() -> None:
    """The control: a pattern is compiled as often as it is long."""

    def quadratic(text: str) -> None:
        for at in range(0, len(text), 100):
            underscores("[a]" * (len(text) - at))

    one, two = (steps(quadratic, "x" * count) for count in (1000, 2000))
    assert two > MOST * one + 400


@pytest.mark.parametrize("count", [100, 400])
def test_a_record_without_an_end_is_refused_at_once(count: int) -> None:
    """Each blank may begin a field: an expression that tries all ways takes 2^count steps."""
    assert kmsg.parse(b"6,1,2,-;t\n" + b" " * count + b"\nX") is None
