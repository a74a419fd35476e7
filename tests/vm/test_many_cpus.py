"""Many processors with one modalias: what udevd gives to the kernel again and again, kmodd gives once.

The count is the kernel's own: finit_module calls that said EEXIST, and inits that were run again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.vm import say
from tests.vm.machine import Machine
from tests.vm.trace import CALLS_TOO, TRACE_FILE, redundant_calls

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1800)]

Boot = Callable[..., AbstractContextManager[Machine]]


def _redundant(boot: Boot, cpus: int, append: str, *, active: bool) -> list[str]:
    """Boot with many processors; what was given to the kernel in vain until coldplug was over."""
    name = f"the guest with {cpus} processors {append}".strip()
    with boot(name, with_kmod=True, append=f"{CALLS_TOO} {append}", active=active, cpus=cpus) as machine:
        assert int(machine.check("nproc")) == cpus
        calls = redundant_calls(machine.check(f"busybox cat {TRACE_FILE}", 120))
    say(f"{name}: {len(calls)} redundant calls: {' '.join(calls)}")
    return calls


@pytest.mark.parametrize("cpus", [16, 64])
def test_nothing_is_given_to_the_kernel_in_vain_and_udevd_does_it(boot: Boot, cpus: int) -> None:
    assert _redundant(boot, cpus, "", active=True) == []
    assert len(_redundant(boot, cpus, "kmodd=off", active=False)) > cpus / 2, "the control shows nothing"
