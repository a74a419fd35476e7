"""QEMU's control protocol: plug and unplug devices, add back ends."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from tests.vm import VmError


class QmpError(VmError):
    """QEMU refused a command; the text is QEMU's own."""


class Qmp:
    """A synchronous client on a connected socket; events are skipped (nothing here waits for one)."""

    def __init__(self, connection: socket.socket, timeout: float = 60.0) -> None:
        """Greet QEMU. `timeout`: seconds for each answer."""
        connection.settimeout(timeout)
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._read()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run one command; returns what QEMU returns. QmpError if it refuses, VmError if it is silent or gone.

        A QMP argument with a dash is written with `_` here.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._send({"execute": command, "arguments": named})

    def device_add(self, options: Mapping[str, object]) -> None:
        """Plug a device: `driver`, `id`, `bus` and its properties. Returns when QEMU has it, not the guest."""
        self._send({"execute": "device_add", "arguments": dict(options)})

    def device_del(self, identifier: str, timeout: float = 90.0) -> None:
        """Unplug a device and wait until the guest has let go of it.

        QEMU 7.2 does not tell of every device that went (xHCI never), so its object tree is polled.
        VmError after `timeout` seconds.
        """
        if identifier not in self.peripherals():
            return  # the guest's late eject of what was in that slot before has taken this one along
        self.execute("device_del", id=identifier)
        deadline = time.monotonic() + timeout
        while identifier in self.peripherals():
            if time.monotonic() > deadline:
                raise VmError(f"the guest did not let go of {identifier} in {timeout:.0f} s")
            time.sleep(0.05)

    def peripherals(self) -> set[str]:
        """Identifiers of all devices that were given one."""
        children = self.execute("qom-list", path="/machine/peripheral")
        return {child["name"] for child in children if child["type"].startswith("child<")}

    def close(self) -> None:
        """Close our end."""
        self._stream.close()
        self._connection.close()

    def _send(self, request: Mapping[str, object]) -> Any:
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._read()
                if "error" in answer:
                    raise QmpError(f"QEMU: {answer['error']['desc']} ({json.dumps(request)})")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise VmError(f"QEMU does not answer: {error} ({json.dumps(request)})") from error

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise VmError("QEMU has gone")
        answer: dict[str, Any] = json.loads(line)
        return answer
