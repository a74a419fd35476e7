"""Sources that come and go: `Poller`."""

from __future__ import annotations

import os
import socket

from kmodd.daemon.poller import Poller
from kmodd.loader.pool import loader_on


def test_a_source_may_have_the_number_of_a_loader_just_closed() -> None:
    poller = Poller()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loader = loader_on(ours)
    poller.wait((), (loader,), (), 1000.0, 0.0)
    number = loader.fileno()
    loader.close()
    with socket.socket(fileno=os.dup2(theirs.fileno(), number)) as new:
        poller.add(new)
    theirs.close()
    poller.close()
