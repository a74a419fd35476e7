"""A kernel that keeps its modules below a root directory: /proc/modules and /sys/module are files there.

Our tools get it as their `Kernel`; the real kmod gets the very same one over a socket, by a library that stands before
libc's module calls (tests/differential/kernel_peer.py). So both act on equal machines, and neither needs a real one.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.kernel import proc_modules
from kmodd.names import module_of_path

NOT_ALIVE = "coming"


@dataclass
class FakeMachine:
    """Loads and removes modules below `root`, refuses those a test names, and records every call."""

    root: Path
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Module → modules that its symbols come from; they must be loaded, and are held."""
    refuse: dict[str, int] = field(default_factory=dict)
    """Module → errno of loading it."""
    refuse_removal: dict[str, int] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    """Module → how often something beside modules uses it."""
    calls: list[tuple[str, str, str, int]] = field(default_factory=list)
    """Each call: insert, image or remove; the module; options; flags."""

    def __post_init__(self) -> None:
        (self.root / "proc").mkdir(parents=True, exist_ok=True)
        if not self._list.exists():
            self._list.touch()
        (self.root / "sys/module").mkdir(parents=True, exist_ok=True)

    @property
    def _list(self) -> Path:
        return self.root / "proc" / "modules"

    @property
    def loaded(self) -> list[str]:
        """The names in /proc/modules, newest first."""
        return [line.split()[0] for line in self._list.read_text().splitlines()]

    # ── the protocol Kernel ──

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        self._insert("insert", module_of_path(os.readlink(f"/proc/self/fd/{fd}")), options, flags)

    def init_module(self, image: bytes, options: str) -> None:
        """The image of a module is its name, up to a blank."""
        self._insert("image", image.decode("latin-1").split()[0], options, 0)

    def delete_module(self, name: str, flags: int) -> None:
        self.calls.append(("remove", name, "", flags))
        if name not in self.loaded:
            raise _error(errno.ENOENT)
        if code := self.refuse_removal.get(name):
            raise _error(code)
        if self._refcnt(name) and not flags & os.O_TRUNC:
            raise _error(errno.EAGAIN)
        shutil.rmtree(self.root / "sys/module" / name)
        self._write([other for other in self.loaded if other != name])

    # ── what it holds ──

    def add(self, *names: str) -> None:
        """Have these loaded already."""
        for name in names:
            self._write([name, *self.loaded])

    def _insert(self, what: str, name: str, options: str, flags: int) -> None:
        self.calls.append((what, name, options, flags))
        if code := self.refuse.get(name):
            raise _error(code)
        if name in self.loaded:
            raise _error(errno.EEXIST)
        if any(need not in self.loaded for need in self.needs.get(name, ())):
            raise _error(errno.ENOENT)
        self.add(name)

    def _holders(self, name: str, loaded: list[str]) -> list[str]:
        return [other for other in loaded if name in self.needs.get(other, ())]

    def _refcnt(self, name: str) -> int:
        return len(self._holders(name, self.loaded)) + self.users.get(name, 0)

    def refresh(self) -> None:
        """Write /proc and /sys again after a change of `users`."""
        self._write(self.loaded)

    def _write(self, loaded: list[str]) -> None:
        lines = []
        for name in loaded:
            holders = self._holders(name, loaded)
            refcnt = len(holders) + self.users.get(name, 0)
            lines.append(f"{name} 16384 {refcnt} {''.join(f'{h},' for h in holders) or '-'} Live 0x0000000000000000\n")
            folder = self.root / "sys/module" / name
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "holders").mkdir(parents=True)
            (folder / "initstate").write_text("live\n")
            (folder / "refcnt").write_text(f"{refcnt}\n")
            (folder / "coresize").write_text("16384\n")
            for holder in holders:
                (folder / "holders" / holder).symlink_to(f"../../{holder}")
        self._list.write_text("".join(lines))

    def state(self) -> proc_modules.Loaded:
        """/proc/modules, read."""
        return proc_modules.parse_modules(self._list.read_text())

    # ── for a program that is not ours ──

    @contextmanager
    def served(self, path: Path) -> Iterator[None]:
        """Answer at a socket, until the block ends: `WORD\\tNAME\\tOPTIONS\\tFLAGS` → errno."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(path))
            listening.listen(8)
            thread = threading.Thread(target=self._serve, args=(listening,))
            thread.start()
            try:
                yield
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join(30)
                path.unlink()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                word, name, options, flags = connection.recv(65536).decode().split("\t")
                try:
                    if word == "remove":
                        self.delete_module(name, int(flags))
                    else:
                        self._insert(word, name.split()[0], options, int(flags))
                    answer = 0
                except OSError as error:
                    answer = error.errno or 0
                connection.send(str(answer).encode())


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def fill_modules(root: Path) -> None:
    """Give every module file below root its name as content, so that an image tells which it is."""
    for path in root.rglob("*.ko"):
        path.write_text(f"{module_of_path(path.name)} is a module\n")
