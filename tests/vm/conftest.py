"""Guests for the VM tests. A test that changes its guest for good has one of its own.

A test that takes `image` runs on a guest of each suite, for which it has a parameter. On those of other suites than the
machine's own it is `long`, unless marked `suites`; with `suites(own="long")`, on its own one. Where SUITE is given,
guests are of that suite alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import suites
from tests.vm import VmError
from tests.vm.image import Image, ensure_image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import settle

Prepare = Callable[[Payload], None]

LOG_LEVEL = "/usr/lib/kmodd/kmodd.conf.d/10-test.conf"
"""Records of each module; what a decision's record has is shown by `test_journal.py`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test with a guest a parameter for its suite."""
    if "image" not in metafunc.fixturenames:
        return
    chosen = suites.chosen()
    others = [] if os.environ.get("SUITE") else [suite for suite in suites.SUITES if suite != chosen]
    everywhere = metafunc.definition.get_closest_marker("suites")
    marks = [] if everywhere else [pytest.mark.long]
    own = [pytest.mark.long] if others and everywhere and everywhere.kwargs.get("own") == "long" else []
    params = [pytest.param(chosen, marks=own), *(pytest.param(suite, marks=marks) for suite in others)]
    metafunc.parametrize("image", params, indirect=True, scope="session")


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Image:
    """Stock kernel and base system of the parameter's suite."""
    return ensure_image(request.param)


@pytest.fixture(scope="module")
def boot(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Machine]]:
    """A function that boots a guest with kmodd installed and enabled, and waits until coldplug is over.

    `with_kmod`: Debian's modprobe stays; `append`: for the kernel's command line; `prepare` changes the payload;
    `active`: kmodd must run then, or VmError says what it said. `initrd`, `boot_timeout`: as in `Machine`; many
    `cpus` lengthen the latter.
    """

    @contextmanager
    def booted(
        name: str,
        *,
        with_kmod: bool = False,
        append: str = "",
        journal: str = "-t kmodd",
        prepare: Prepare | None = None,
        active: bool = True,
        cpus: int = 2,
        initrd: Path | None = None,
        boot_timeout: float = 300.0,
    ) -> Iterator[Machine]:
        payload = Payload.new(Path(tmp_path_factory.mktemp("payload"), "root"), with_kmod=with_kmod)
        payload.install_kmodd(image.suite)
        payload.write(LOG_LEVEL, "[Kmodd]\nLogLevel=debug\n")
        if prepare is not None:
            prepare(payload)
        patience = boot_timeout * max(1.0, cpus / 16)  # each emulated processor has a share of the machine's
        with Machine(
            image,
            payload,
            name=name,
            append=append,
            journal=journal,
            cpus=cpus,
            initrd=initrd,
            boot_timeout=patience,
        ) as machine:
            machine.wait_boot(patience)
            if active and machine.run("systemctl is-active --quiet kmodd").status != 0:
                raise VmError("kmodd does not run:\n" + machine.run("journalctl --no-pager -n 40 -u kmodd").output)
            settle(machine)
            yield machine

    return booted
