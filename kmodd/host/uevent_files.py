"""Read `uevent` files of devices that have no `modalias` file, as those of MMC cards.

The kernel takes the device's lock, which a probe holds for as long as it takes, and for ever after a crash; no signal
ends the wait. So a child process reads. A device whose file is not read in time is left out.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct

from kmodd.host import child_reader
from kmodd.host.coldplug import device_links, read_attribute
from kmodd.kernel.uevent import Uevent
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HUNG_AFTER = 0.3
"""Seconds without an answer after which another child continues with the next device."""

MAX_HUNG = 8
"""Devices that may hang; no more are read then."""

_HEAD = struct.Struct("=II")
"""Number of a device, and bytes of its text, which follow."""


def replay(root: str, *, unbound: bool = False) -> Iterator[Uevent]:
    """Yield one synthetic `add` uevent for each device of a bus that has properties, but no `modalias` file.

    root: prefix of /sys. unbound: only devices without a driver.
    """
    found: dict[str, str] = {}
    for devpath, subsystem in device_links(root):
        if devpath.startswith("/devices/system/"):  # all processors share the `modalias` of their subsystem
            continue
        folder = f"{root}/sys{devpath}"
        if not os.path.exists(f"{folder}/modalias") and not (unbound and os.path.islink(f"{folder}/driver")):
            found.setdefault(devpath, subsystem)
    devpaths = sorted(found)
    for devpath, text in zip(devpaths, read_all([f"{root}/sys{devpath}/uevent" for devpath in devpaths]), strict=True):
        pairs = (line.partition("=") for line in decode(text).splitlines())
        properties = tuple((key, value) for key, _, value in pairs)
        aliases = tuple(value for key, value in properties if key == "MODALIAS" and value)
        if properties:
            yield Uevent("add", devpath, found[devpath], aliases, 0, synthetic=True, properties=properties)


def read_all(paths: Sequence[str]) -> list[bytes]:
    """Return the content of each `uevent` file; empty for one that cannot be read, or not in time."""
    texts = [b""] * len(paths)
    first = hung = 0
    while first < len(paths) and hung < MAX_HUNG:
        answered, is_hung = _read_some(paths, first, texts)
        if not is_hung:
            break
        first, hung = answered + 1, hung + 1
    return texts


def _read_some(paths: Sequence[str], first: int, texts: list[bytes]) -> tuple[int, bool]:
    """Have one child read the files from number `first` on; return the number that it has come to, and if it hangs."""

    def read(pipe: int) -> None:
        for number in range(first, len(paths)):
            text = read_attribute(paths[number])
            os.write(pipe, _HEAD.pack(number, len(text)) + text)

    child = child_reader.start(read)
    if child is None:
        return first, False
    pid, pipe = child
    data, at = b"", first
    try:
        while select.select([pipe], [], [], HUNG_AFTER)[0]:
            more = os.read(pipe, 65536)
            if not more:
                os.waitpid(pid, 0)
                return at, False
            data += more
            while len(data) >= _HEAD.size:
                number, size = _HEAD.unpack_from(data)
                if len(data) < _HEAD.size + size:
                    break
                texts[number], at = data[_HEAD.size : _HEAD.size + size], number + 1
                data = data[_HEAD.size + size :]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it ends when the lock is free, and init takes it
        return at, True
    finally:
        os.close(pipe)
