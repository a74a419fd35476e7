"""Module files that are not root's alone: a loader opens none itself, as the file system of a user may never answer.

`open_in_child` has a child of the loader open one, where kmodd.conf has ForeignModules=yes. A file of an operator is
opened by the operator's modprobe, which sends it with `offer`; the loader receives it with `take`. It comes through the
daemon, which is not trusted: `offer` proves that its process is root with CAP_SYS_ADMIN, which the daemon lacks, as it
claims to be process 1 (SCM_CREDENTIALS in unix(7)).
"""

from __future__ import annotations

import _socket  # not socket: see spawner_process
import errno
import os
import select
import stat
import struct
import sys

from kmodd.host.file_owner import open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

OPEN_LIMIT = 5.0
"""Seconds that opening a file may take."""

_SIGKILL = 9  # signal.SIGKILL; importing signal takes a tenth of a loader's start
_MAX_FD = 4096
_FD_BYTES = 4
"""Bytes of a descriptor in a control message (SCM_RIGHTS in unix(7))."""
_UCRED = struct.Struct("3i")
"""Process, user and group (struct ucred in unix(7))."""
_ROOT = (1, 0, 0)


def offer(fd: int) -> int:
    """Return a descriptor to send to the daemon in place of `fd`, an open module file; the caller closes both.

    Raises OSError: EPERM if this process may not prove that it is root.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        proof = (_socket.SOL_SOCKET, _socket.SCM_CREDENTIALS, _UCRED.pack(*_ROOT))
        ours.sendmsg([b"module"], [_rights(fd), proof])
    except OSError:
        theirs.close()
        raise
    finally:
        ours.close()
    return theirs.detach()


def take(offered: int) -> int:
    """Return the module file of an offer, as the daemon passed it on; the caller closes both descriptors.

    Raises OSError: EACCES if it was not sent by root or is not a regular file.
    """
    try:
        connection = _socket.socket(fileno=os.dup(offered))
        try:
            connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
            _, fd, sender = _receive(connection)
        finally:
            connection.close()
    except OSError as error:
        raise OSError(errno.EACCES, f"was not sent with its descriptor: {error.strerror}") from None
    if fd < 0 or sender != _ROOT or not stat.S_ISREG(os.fstat(fd).st_mode):
        if fd >= 0:
            os.close(fd)
        raise OSError(errno.EACCES, "was not sent by root" if sender != _ROOT else "is not a regular file")
    return fd


def open_in_child(path: str, limit: float = OPEN_LIMIT) -> int:
    """Open a regular file in a child process and return the descriptor, which the caller closes.

    limit: seconds. Raises OSError: ETIMEDOUT if the file system does not answer; else that of `open_regular`.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        _open_and_send(path, theirs.fileno())
    theirs.close()
    poll = select.poll()
    poll.register(ours.fileno(), select.POLLIN)
    try:
        if not poll.poll(limit * 1000):
            os.kill(pid, _SIGKILL)
            os.waitpid(pid, os.WNOHANG)  # it may be blocked for ever
            raise OSError(errno.ETIMEDOUT, f"its file system did not answer for {limit:g}s")
        message, fd, _ = _receive(ours)
    finally:
        ours.close()
    os.waitpid(pid, 0)
    if fd < 0:
        code, _, why = message.decode("utf-8", "surrogateescape").partition(" ")
        raise OSError(int(code or errno.EIO), why or os.strerror(errno.EIO))
    return fd


def _open_and_send(path: str, connection: int) -> NoReturn:
    """Open a file in the child, send it or the reason why not, and exit. Nothing else of the loader stays open."""
    try:
        os.closerange(3, connection)
        os.closerange(connection + 1, _MAX_FD)
        rights = []
        try:
            message, rights = b"0", [_rights(open_regular(path))]
        except OSError as error:
            message = f"{error.errno or errno.EIO} {error.strerror}".encode("utf-8", "surrogateescape")
        _socket.socket(fileno=connection).sendmsg([message], rights)
    finally:
        os._exit(0)


def _rights(fd: int) -> tuple[int, int, bytes]:
    return _socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(_FD_BYTES, sys.byteorder)


def _receive(connection: _socket.socket) -> tuple[bytes, int, tuple[int, ...]]:
    """Return a message that is there, its descriptor, -1 without one, and its sender's ucred. Raises OSError."""
    space = _socket.CMSG_SPACE(_FD_BYTES) + _socket.CMSG_SPACE(_UCRED.size)
    message, control, _, _ = connection.recvmsg(4096, space, _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT)
    fd, sender = -1, ()
    for _, kind, data in control:
        if kind == _socket.SCM_RIGHTS:
            fd = int.from_bytes(data[:_FD_BYTES], sys.byteorder)
        elif kind == _socket.SCM_CREDENTIALS:
            sender = _UCRED.unpack(data)
    return message, fd, sender
