"""Calls on the control socket that are drawn: each is answered, kept or ends its connection, and harms no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.host.varlink_server import ControlSocket
from tests.control_server import ControlServer, is_answered
from tests.varlink_caller import Caller
from tests.world import World

pytestmark = [pytest.mark.property, pytest.mark.timeout(300)]

HOST = Path(__file__).resolve().parents[2] / "kmodd/host"
METHODS = [
    f"{interface}.{method}"
    for interface in ("io.kmodd", "io.systemd.service")
    for method in re.findall(r"^method (\w+)", (HOST / f"{interface}.varlink").read_text(), re.MULTILINE)
]
PARAMETERS = sorted(set(re.findall(r"(\w+): \??\[?\]?(?:string|int|bool)", (HOST / "io.kmodd.varlink").read_text())))
texts = st.one_of(st.sampled_from(["a", "b", "pci:v1", "/devices/x", "", "/", "\0", "x" * 5000]), st.text(max_size=20))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
flags = st.dictionaries(st.sampled_from(["more", "oneway", "upgrade"]), st.one_of(st.booleans(), values))
calls = st.builds(
    lambda method, parameters, flags: {"method": method, "parameters": parameters, **flags},
    st.one_of(st.sampled_from(METHODS), texts),
    st.one_of(
        st.dictionaries(st.sampled_from([*PARAMETERS, "level", "request", "module"]), values, max_size=3), values
    ),
    flags,
)
frames = st.one_of(
    st.binary(max_size=200), values.map(lambda value: json.dumps(value).encode()),
    calls.map(lambda call: json.dumps(call).encode()),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlServer]:
    folder = tmp_path_factory.mktemp("calls")
    control = ControlSocket(str(folder / "io.kmodd"))
    yield ControlServer(World(folder / "machine"), control)
    control.close()
    while Caller.opened:
        Caller.opened.pop().close()


def test_every_method_is_drawn() -> None:
    assert {"io.kmodd.Monitor", "io.kmodd.Wait", "io.kmodd.Load", "io.systemd.service.SetLogLevel"} <= set(METHODS)
    assert {"request", "module", "device", "timeout_usec", "sealed", "files"} <= set(PARAMETERS)


@settings(deadline=None)
@given(uid=st.sampled_from([0, 65534]), sent=st.lists(frames, min_size=1, max_size=3))
def test_any_call_is_answered_kept_or_ends_its_connection(server: ControlServer, uid: int, sent: list[bytes]) -> None:
    control = server.socket
    caller = Caller(control)
    caller.connection.uid = uid
    caller.socket.sendall(b"".join(frame + b"\0" for frame in sent))
    control.receive(caller.connection)
    while server.handler.handle_call():
        pass
    server.handler.expire()
    answers = caller.answers() if is_answered(caller) else []
    for answer in answers:
        assert "error" in answer or isinstance(answer["parameters"], dict)
    assert status_of(server)["phase"] in ("boot", "running", "sealed")
    control.drop(caller.connection)
    caller.socket.close()
    Caller.opened.remove(caller.socket)


def status_of(server: ControlServer) -> dict[str, Any]:
    """Return the answer that root gets on another connection."""
    root = Caller(server.socket)
    root.connection.uid = 0
    server.send(root, "Status")
    (answer,) = root.answers()
    server.socket.drop(root.connection)
    Caller.opened.pop().close()
    parameters: dict[str, Any] = answer["parameters"]
    return parameters
