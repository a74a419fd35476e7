"""Guests for the VM tests. A test that changes its guest for good has one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.vm import VmError
from tests.vm.image import Image, ensure_image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import settle

Prepare = Callable[[Payload], None]


@pytest.fixture(scope="session")
def image() -> Image:
    """Debian's stock kernel and base system."""
    return ensure_image()


@pytest.fixture(scope="module")
def boot(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Machine]]:
    """A function that boots a guest with kmodd installed and enabled, and waits until coldplug is over.

    `with_kmod`: Debian's modprobe stays; `append`: for the kernel's command line; `prepare` changes the payload;
    `active`: kmodd must run then, or VmError says what it said.
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
    ) -> Iterator[Machine]:
        payload = Payload.new(Path(tmp_path_factory.mktemp("payload"), "root"), with_kmod=with_kmod)
        payload.install_kmodd()
        if prepare is not None:
            prepare(payload)
        with Machine(image, payload, name=name, append=append, journal=journal, cpus=cpus) as machine:
            machine.wait_boot()
            if active and machine.run("systemctl is-active --quiet kmodd").status != 0:
                raise VmError("kmodd does not run:\n" + machine.run("journalctl --no-pager -n 40 -u kmodd").output)
            settle(machine)
            yield machine

    return booted
