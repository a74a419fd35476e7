"""The socket at which systemd makes loaders: whoever connects has one made (`kmodd-loader.socket`).

A file of its own, so that the daemon can ask for its first loader before it has imported anything else.
"""

from __future__ import annotations

import socket

from kmodd.host.places import LOADER_SOCKET


def connect() -> socket.socket:
    """A connection to a new loader, blocking like any new socket; does not wait for it to begin.

    Raises OSError: no such socket, connection refused.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.connect(LOADER_SOCKET)
    except OSError:
        connection.close()
        raise
    return connection
