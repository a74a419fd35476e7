"""The real modprobe of Debian 12 or 13 on another root, beside `kmodd modprobe --root DIR`.

A little library is put before libc (LD_PRELOAD) that leads paths below /etc/modprobe.d, /lib/modules, /proc/cmdline and
the like to the same path below a root, and answers uname with another release. Neither root nor namespaces are needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tests import trees
from tests.rootfs import Said

_SHIM = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

static const char *led[] = { "/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d",
    "/lib/modprobe.d", "/lib/modules", "/proc/cmdline", "/proc/modules", "/sys/module", "/alt/", 0 };

static const char *lead(const char *path, char *buffer)
{
    const char *root = getenv("KMOD_PEER_ROOT");
    for (int i = 0; root && led[i]; i++)
        if (!strncmp(path, led[i], strlen(led[i]))) {
            snprintf(buffer, PATH_MAX, "%s%s", root, path);
            return buffer;
        }
    return path;
}

#define REAL(type, name, ...) type (*real)(__VA_ARGS__) = (type (*)(__VA_ARGS__)) dlsym(RTLD_NEXT, name); \
    char buffer[PATH_MAX]

#define OPEN(name) int name(const char *path, int flags, ...) \
{ \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    return real(lead(path, buffer), flags, mode); \
}
OPEN(open)
OPEN(open64)
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) \
{ \
    REAL(int, #name, int, const char *, int, ...); \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    return real(folder, lead(path, buffer), flags, mode); \
}
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) FILE *name(const char *path, const char *mode) \
{ \
    REAL(FILE *, #name, const char *, const char *); \
    return real(lead(path, buffer), mode); \
}
FOPEN(fopen)
FOPEN(fopen64)
#define STAT(name) int name(const char *path, struct name *status) \
{ \
    REAL(int, #name, const char *, struct name *); \
    return real(lead(path, buffer), status); \
}
STAT(stat)
STAT(stat64)
DIR *opendir(const char *path)
{
    REAL(DIR *, "opendir", const char *);
    return real(lead(path, buffer));
}
int uname(struct utsname *names)
{
    int (*real)(struct utsname *) = (int (*)(struct utsname *)) dlsym(RTLD_NEXT, "uname");
    int done = real(names);
    if (!done && getenv("KMOD_PEER_RELEASE"))
        snprintf(names->release, sizeof names->release, "%s", getenv("KMOD_PEER_RELEASE"));
    return done;
}
"""

_POINTER = re.compile(rb"ctx=0x[0-9a-f]+")
_PLACES = (
    re.compile(rb"^(libkmod: ERROR) \.\./libkmod/[a-z-]+\.c:\d+ (\w+: )", re.MULTILINE),
    re.compile(rb"^(\w+: \w+: )\.\./libkmod/[a-z-]+\.c:\d+ \w+\(\) ", re.MULTILINE),
)
"""The place in the source, in messages of kmod 30's library; kmod 34 leaves it out."""


def without_places(messages: bytes) -> bytes:
    """Messages of kmod 30 as kmod 34 prints them: the row "place in the source" of docs/COMPAT.md."""
    return _PLACES[1].sub(rb"\1", _PLACES[0].sub(rb"\1: \2", messages))


_NEEDED_BY_34 = ("libc6", "libzstd1", "liblzma5", "zlib1g", "libssl3t64")
"""Packages with the libraries of Debian 13's kmod, beside its own."""

_DECOMPRESSOR = re.compile(rb"^\w+: ERROR: (?:\w+: )?(?:xz|zstd): .*\n", re.MULTILINE)
"""The reason of the decompressor, in messages of kmod 34."""


def without_decompressor(messages: bytes) -> bytes:
    """Messages of kmod 34 without the row "the reason of a decompressor" of docs/COMPAT.md."""
    return _DECOMPRESSOR.sub(b"", messages)


class KmodPeer:
    """A real kmod. A test that needs it fails where it is absent."""

    def __init__(self, start: Callable[[str], list[str]], folder: Path) -> None:
        """`start`: how to run it under a name. Compiles the shim in `folder`. See `kmod_30` and `kmod_34`."""
        self._start = start
        self.shim = folder / "shim.so"
        source = folder / "shim.c"
        source.write_text(_SHIM)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(self.shim), str(source), "-ldl"], check=True)

    def run(
        self,
        argv: Sequence[str],
        root: Path | None = None,
        release: str = "",
        name: str = "modprobe",
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> Said:
        """Run kmod, below `root` for kernel `release` if given; a pointer in its messages becomes 0x0."""
        env = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", **env}
        if root is not None:
            env |= {"LD_PRELOAD": str(self.shim), "KMOD_PEER_ROOT": str(root), "KMOD_PEER_RELEASE": release}
        words = self._start(name)
        # Where the machine's own is run, its words are the program's path alone and the name goes in by argv[0].
        run = [name, *argv] if len(words) == 1 else [*words, *argv]
        done = subprocess.run(run, executable=words[0], env=env, capture_output=True)
        return Said(
            done.stdout, _POINTER.sub(b"ctx=0x0", without_decompressor(without_places(done.stderr))), done.returncode
        )


def kmod_30(folder: Path) -> KmodPeer:
    """Debian 12's. Raises suites.Unavailable."""
    program = str(trees.modprobe_30().resolve())
    return KmodPeer(lambda _: [program], folder)


def kmod_34(folder: Path) -> KmodPeer:
    """Debian 13's, run with the loader and the libraries of its own suite. Raises trees.Unavailable."""
    packages = [trees.newest(name, "trixie", "") for name in ("kmod", "libkmod2", *_NEEDED_BY_34)]
    recipe = repr([(package.name, package.version) for package in packages]).encode()

    def fill(root: Path) -> None:
        for package in packages:
            trees.unpack(package, root)

    system = trees.cached(f"kmod-with-libraries-{hashlib.sha256(recipe).hexdigest()[:12]}", fill)
    (loader,) = system.glob("usr/lib/*/ld-linux*.so.*")
    program = system / "usr" / "bin" / "kmod"
    return KmodPeer(
        lambda name: [str(loader), "--library-path", str(loader.parent), "--argv0", name, str(program)], folder
    )
