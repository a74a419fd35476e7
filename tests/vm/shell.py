"""`make shell`: a root shell in the demo's guest, on this terminal, with kmodd as the only module loader.

Arguments are names of `devices.py`; these devices are there at boot. The shell starts when kmodd is ready, and the
guest ends with the shell (`exit`, or end of file). Where standard input is no terminal, its lines are the commands.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
import tempfile
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.vm import VmError, say
from tests.vm.devices import DEVICES
from tests.vm.image import ensure_image
from tests.vm.machine import Machine
from tests.vm.payload import Payload

_INPUT: Final = 0
_END_OF_FILE: Final = b"\x04"
"""What a terminal sends for ctrl-D."""

_UNIT: Final = """\
[Unit]
After=kmodd.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
ExecStart=/bin/sh -c '{start}'
Environment=HOME=/root TERM={term} PATH=/usr/lib/kmodd/bin:/usr/sbin:/usr/bin
WorkingDirectory=/root
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS3
[Install]
WantedBy=multi-user.target
"""
_FOR_PERSON: Final = "stty rows {rows} columns {columns}; exec bash"
_FOR_LINES: Final = "stty -echo; echo; exec bash /dev/stdin"
"""bash without a prompt: with its line editor it turns the terminal to and fro, and what comes between, ctrl-D too, is
another key then."""


def main(names: list[str]) -> int:
    """Boot the guest and connect its shell; returns the exit status: 1 where the guest does not boot, 2 for usage."""
    unknown = [name for name in names if name not in DEVICES]
    if unknown:
        print(f"shell: unknown device {' '.join(unknown)}; expected any of {' '.join(DEVICES)}", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="kmodd-shell-") as scratch:
            _boot(Path(scratch), names)
    except VmError as error:
        print(f"shell: {error}", file=sys.stderr)
        return 1
    return 0


def _boot(scratch: Path, names: list[str]) -> None:
    image = ensure_image()
    payload = Payload.new(scratch / "payload")
    payload.install_kmodd(image.suite)
    columns, rows = shutil.get_terminal_size()
    start = _FOR_PERSON.format(rows=rows, columns=columns) if os.isatty(_INPUT) else _FOR_LINES
    unit = _UNIT.format(start=start, term=os.environ.get("TERM", "dumb"))
    payload.write("/etc/systemd/system/vm-terminal.service", unit)
    payload.commands.append("systemctl enable vm-terminal.service")
    path = scratch / "terminal"
    line = ["-chardev", f"socket,id=terminal,path={path},server=on,wait=off", "-serial", "chardev:terminal"]
    devices = [DEVICES[name] for name in names]
    with (
        Machine(image, payload, name="the guest", devices=devices, arguments=line),
        socket.socket(socket.AF_UNIX) as terminal,
    ):
        terminal.connect(str(path))
        say("the shell starts when kmodd is ready; `exit` ends the guest")
        with _raw_terminal():
            _connect(terminal)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Pass every key on, ctrl-C too, where standard input is a terminal."""
    if not os.isatty(_INPUT):
        yield
        return
    before = termios.tcgetattr(_INPUT)
    tty.setraw(_INPUT)
    try:
        yield
    finally:
        termios.tcsetattr(_INPUT, termios.TCSADRAIN, before)


def _connect(terminal: socket.socket) -> None:
    """Copy both ways until QEMU closes its end. Input waits for the first output: what comes earlier would be lost."""
    has_begun, at_end = False, False
    while True:
        sources = [terminal.fileno(), _INPUT] if has_begun and not at_end else [terminal.fileno()]
        ready, _, _ = select.select(sources, [], [])
        if terminal.fileno() in ready:
            data = terminal.recv(4096)
            if not data:
                return
            has_begun = True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        if _INPUT in ready:
            data = os.read(_INPUT, 256)
            at_end = not data
            terminal.sendall(data or _END_OF_FILE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
