"""Give a module file to the kernel, and run an install or remove command: for loaders, command runners and tools.

Runs with CAP_SYS_MODULE in a loader, with the rights of the caller in a tool. Nothing is checked here: a loader passes
an `opener` that checks the file, and a command runner reads the command from a checked file. Separate from `protocol`,
which a tool does not need.
"""

from __future__ import annotations

import errno
import os

from kmodd.host.regular_files import open_regular
from kmodd.loader.syscalls import COMPRESSED_FILE, Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kmodd.modfile.decompress import Compression


def open_module(
    path: str, flags: int = 0, opener: Callable[[str, int], int] | None = None
) -> Callable[[Kernel, str], None]:
    """Open the module file `path`; the answer hands it to a kernel with options, once.

    `flags`: IGNORE_MODVERSIONS, IGNORE_VERMAGIC; they reach the kernel by finit_module alone.
    `opener`: what opens it in place of open(2); it is opened once.

    A compressed file goes to the kernel as it is where `/sys/module/compression` names its format, else it is
    unpacked here for init_module; so it is too where the kernel has no finit_module (kmod, libkmod-module.c).
    Raises OSError: that of opening, and for what cannot be unpacked those of `kmodd.modfile.decompress.unpack`, which
    has a limit of size. A file that goes to the kernel as it is has none here.
    """
    fd = opener(path, os.O_RDONLY | os.O_CLOEXEC) if opener else open_regular(path)
    try:
        packed = _compression(fd)
        if packed and packed != _kernel_unpacks():
            image = _image(fd, packed)
            os.close(fd)
            return lambda kernel, options: kernel.init_module(image, options)
    except BaseException:
        os.close(fd)
        raise

    def give(kernel: Kernel, options: str) -> None:
        try:
            kernel.finit_module(fd, options, flags | (COMPRESSED_FILE if packed else 0))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            kernel.init_module(_image(fd, packed), options)
        finally:
            os.close(fd)

    return give


def _compression(fd: int) -> Compression | None:
    """Return the format of a file just opened if it is compressed, else None. Raises OSError."""
    head = os.read(fd, 6)
    if head.startswith(b"\x7fELF"):
        return None
    from kmodd.modfile.decompress import compression  # a loader of plain modules starts without it

    return compression(head)


def _image(fd: int, packed: Compression | None) -> bytes:
    """Return the module image in an open file, unpacked if `packed` names a format. Raises OSError."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        if packed is None:
            return file.read()
        from kmodd.modfile.decompress import unpack

        return unpack(file, packed)


def _kernel_unpacks() -> str:
    try:
        with open("/sys/module/compression") as file:
            return file.read().strip()
    except OSError:
        return ""


def start_command(
    command: str, options: str, module: str, env: Mapping[str, str], files: Sequence[tuple[int | str, ...]] = ()
) -> int:
    """Start an install or remove command with /bin/sh, as kmod does with system(3), and return its pid.

    `options` replaces $CMDLINE_OPTS unquoted, and `module` is in MODPROBE_MODULE (libkmod-module.c). `files`: the
    file_actions of os.posix_spawn. Raises OSError if /bin/sh does not start.
    """
    from signal import SIGPIPE, SIGXFSZ  # here: few loaders run commands

    # The caller has blocked all signals; the command must not inherit that.
    return os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", command.replace("$CMDLINE_OPTS", options)],
        {**env, "MODPROBE_MODULE": module},
        file_actions=files,
        setsigmask=[],
        setsigdef=(SIGPIPE, SIGXFSZ),  # Python ignores them, and `yes | head` would never end
    )


def run_command(command: str, options: str, module: str, env: Mapping[str, str]) -> int:
    """Run a command as `start_command` does, and wait for it.

    Returns the exit status, or the negative number of the signal that killed it. Raises OSError if /bin/sh does not
    start.
    """
    child = start_command(command, options, module, env)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
