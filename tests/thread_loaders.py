"""Loaders in threads of this process: the real protocol and worker on a kernel that is played."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from kmodd.loader import worker
from kmodd.loader.pool import Loader, LoaderPool
from kmodd.loader.syscalls import Kernel
from kmodd.loader.trusted_paths import Trusted
from tests.fakes import Oops


class ThreadLoaders(LoaderPool):
    """Each loader is a thread."""

    def __init__(self, kernel: Kernel, root: Path) -> None:
        """`root`: of the machine, whose usual places the loaders trust."""
        super().__init__(None)
        self.kernel = kernel
        self.trusted = Trusted.below(str(root))
        self.threads: list[threading.Thread] = []

    def get(self) -> Loader:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        thread = threading.Thread(target=self._serve, args=(theirs,))
        thread.start()
        self.threads.append(thread)
        return Loader(ours)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(Oops):
            worker.serve(connection.fileno(), self.kernel, self.trusted)

    def join(self) -> None:
        """Wait for the end of all threads, whose connections are closed."""
        for thread in self.threads:
            thread.join(30)
