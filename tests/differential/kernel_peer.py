"""A real kmod on a `FakeMachine`: its module calls go to that, over a socket.

`kmod_peer.py` leads its paths below a root; this adds the three calls that load and remove.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tests.differential.kmod_peer import KmodPeer
from tests.fake_machine import FakeMachine
from tests.rootfs import Said

_CALLS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static long ask(const char *word, const char *name, const char *options, int flags)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char text[65536];
    snprintf(address.sun_path, sizeof address.sun_path, "%s", getenv("KMOD_PEER_KERNEL"));
    int size = snprintf(text, sizeof text, "%s\t%s\t%s\t%d", word, name, options, flags);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *) &address, sizeof address) || send(fd, text, size, 0) != size)
        abort();
    size = recv(fd, text, sizeof text - 1, 0);
    close(fd);
    text[size] = 0;
    errno = atoi(text);
    return errno ? -1 : 0;
}

int init_module(void *image, unsigned long size, const char *options)
{
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int) (size < 255 ? size : 255), (char *) image);
    name[strcspn(name, " \t\n")] = 0;
    return ask("image", name, options, 0);
}

int delete_module(const char *name, unsigned flags)
{
    return ask("remove", name, "", (int) flags);
}

long syscall(long number, ...)
{
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_finit_module) {
        char link[64], path[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", (int) a[0]);
        ssize_t size = readlink(link, path, sizeof path - 1);
        path[size > 0 ? size : 0] = 0;
        char *name = strrchr(path, '/') + 1;
        name[strcspn(name, ".")] = 0;
        for (char *c = name; *c; c++)
            if (*c == '-')
                *c = '_';
        return ask("insert", name, (const char *) a[1], (int) a[2]);
    }
    long (*real)(long, ...) = (long (*)(long, ...)) dlsym(RTLD_NEXT, "syscall");
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


class KernelPeer:
    """A kmod with a kernel. A test that needs it fails where it is absent."""

    def __init__(self, peer: KmodPeer, folder: Path) -> None:
        """Compiles its library in `folder`."""
        self._peer = peer
        self._library = folder / "calls.so"
        source = folder / "calls.c"
        source.write_text(_CALLS)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source), "-ldl"], check=True)

    def run(
        self,
        machine: FakeMachine,
        argv: Sequence[str],
        release: str,
        name: str = "modprobe",
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> Said:
        """Run kmod on `machine`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel"
            shim = str(self._peer.shim)
            extra = {"KMOD_PEER_KERNEL": str(path), "LD_PRELOAD": f"{self._library} {shim}",
                     "KMOD_PEER_ROOT": str(machine.root), "KMOD_PEER_RELEASE": release, **env}  # fmt: skip
            with machine.served(path):
                return self._peer.run(argv, name=name, env=extra)
