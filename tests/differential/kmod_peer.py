"""The real modprobe of Debian 12, made to see another root: what `kmodd modprobe --root DIR` is compared with.

A little library is put before libc (LD_PRELOAD) that leads paths below /etc/modprobe.d, /lib/modules, /proc/cmdline and
the like to the same path below a root, and answers uname with another release. Neither root nor namespaces are needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

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

int open(const char *path, int flags, ...)
{
    REAL(int, "open", const char *, int, ...);
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);
    return real(lead(path, buffer), flags, mode);
}
FILE *fopen(const char *path, const char *mode)
{
    REAL(FILE *, "fopen", const char *, const char *);
    return real(lead(path, buffer), mode);
}
int stat(const char *path, struct stat *status)
{
    REAL(int, "stat", const char *, struct stat *);
    return real(lead(path, buffer), status);
}
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


class KmodPeer:
    """modprobe of kmod 30. A test that needs it fails where it is absent."""

    def __init__(self, folder: Path) -> None:
        """Compile the shim in `folder`."""
        program = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        assert program, "no modprobe to compare with: install kmod"
        version = subprocess.run([program, "-V"], capture_output=True, text=True).stdout.partition("\n")[0]
        assert version == "kmod version 30", f"{program} is {version}; the contract is Debian 12's kmod version 30"
        source = folder / "shim.c"
        source.write_text(_SHIM)
        self._program = program
        self._shim = folder / "shim.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(self._shim), str(source), "-ldl"], check=True)

    def run(self, argv: Sequence[str], root: Path | None = None, release: str = "") -> Said:
        """Run it, below `root` for kernel `release` where these are given; a pointer in its messages becomes 0x0."""
        env = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
        if root is not None:
            env |= {"LD_PRELOAD": str(self._shim), "KMOD_PEER_ROOT": str(root), "KMOD_PEER_RELEASE": release}
        done = subprocess.run(["modprobe", *argv], executable=self._program, env=env, capture_output=True)
        return Said(done.stdout, _POINTER.sub(b"ctx=0x0", done.stderr), done.returncode)
