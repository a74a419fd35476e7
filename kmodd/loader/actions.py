"""What is done with modules, by a loader or by a tool: a file is given to the kernel, a command is run.

Kept apart from the loader's protocol, so that a tool need not import what belongs to that.
"""

from __future__ import annotations

import errno
import os
import zlib

from kmodd.dataclass import dataclass
from kmodd.loader.syscalls import COMPRESSED_FILE, Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal

    Stage = Literal["file", "kernel", "command", "signal", "none"]
    """Who gave the errno: opening or unpacking the file, the kernel, an install or remove command, a signal.

    ENOENT of the kernel means an unknown symbol, ENOENT of open a missing file: they must stay apart. none: the step
    was not begun, because its run has ended before it.
    """
else:
    Stage = str

_MAGIC = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"\x1f\x8b", "gzip"))
"""First bytes of a compressed module; kmod goes by them too, never by the suffix (libkmod-file.c)."""


LOADER_MARK = "KMODD_LOADER"
"""Set for the commands that a loader runs: a modprobe among them must not wait for the lane that waits for it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one call."""

    errno: int
    """0: done."""
    stage: Stage
    usec: int
    detail: str = ""


def open_module(
    path: str, flags: int = 0, opener: Callable[[str, int], int] | None = None
) -> Callable[[Kernel, str], None]:
    """Open the module file `path`; the answer hands it to a kernel with options, once.

    `flags`: IGNORE_MODVERSIONS, IGNORE_VERMAGIC; they reach the kernel by finit_module alone.
    `opener`: what opens it in place of open(2); it is opened once.

    A compressed file goes to the kernel as it is where `/sys/module/compression` names its format, else it is
    unpacked here for init_module; so it is too where the kernel has no finit_module (kmod, libkmod-module.c).
    Raises OSError with the errno of opening, or EINVAL, ENOSYS for what cannot be unpacked.
    """
    flags_of_open = os.O_RDONLY | os.O_CLOEXEC
    fd = opener(path, flags_of_open) if opener else os.open(path, flags_of_open)
    try:
        head = os.read(fd, 6)
        format_name = next((name for magic, name in _MAGIC if head.startswith(magic)), "")
        if format_name and format_name != _kernel_unpacks():
            image = unpack(_whole(fd), format_name)
            os.close(fd)
            return lambda kernel, options: kernel.init_module(image, options)
    except BaseException:
        os.close(fd)
        raise

    def give(kernel: Kernel, options: str) -> None:
        try:
            kernel.finit_module(fd, options, flags | (COMPRESSED_FILE if format_name else 0))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            data = _whole(fd)
            kernel.init_module(unpack(data, format_name) if format_name else data, options)
        finally:
            os.close(fd)

    return give


def _whole(fd: int) -> bytes:
    """All of an open file."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def unpack(data: bytes, format_name: str) -> bytes:
    """The module in a compressed file's bytes; raises OSError EINVAL where it is damaged, ENOSYS without a library."""
    try:
        match format_name:
            case "gzip":
                return zlib.decompress(data, wbits=31)
            case "xz":
                import lzma  # 10 ms that a loader of plain modules need not pay

                return lzma.decompress(data)
            case _:
                import zstandard

                image: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
                return image
    except ImportError:
        raise OSError(errno.ENOSYS, "compressed with zstd; install python3-zstandard to unpack it") from None
    except Exception as error:  # each library has an exception of its own for damaged data
        raise OSError(errno.EINVAL, f"damaged {format_name} data: {error}") from None


def _kernel_unpacks() -> str:
    try:
        with open("/sys/module/compression") as file:
            return file.read().strip()
    except OSError:
        return ""


def run_command(command: str, options: str, module: str, env: Mapping[str, str]) -> int:
    """Run it with /bin/sh, as system(3) in kmod does; the answer is its status, negative for a signal."""
    # All signals are blocked here; the command must not inherit that.
    child = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", command.replace("$CMDLINE_OPTS", options)],
        {**env, "MODPROBE_MODULE": module},
        setsigmask=[],
    )
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
