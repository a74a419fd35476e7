"""`Monitor`: each record of a decision reaches each caller that reads, in the form that its user may read."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from kmodd.daemon.monitors import MAX_MONITORS, MAX_OF_USER
from kmodd.engine.events import Log
from kmodd.host.varlink_server import MAX_BEHIND, ControlSocket
from kmodd.planning.decision import Decision
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Reason
from kmodd.planning.record import INFO, Record, record_of
from kmodd.planning.request import Request
from kmodd.state.call_budget import BURST
from tests.control_server import ControlServer, is_answered
from tests.varlink_caller import Caller
from tests.world import World, requester

NOBODY = 65534


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With the level of records that is the default."""
    return World(tmp_path / "machine", log_level=INFO)


def fields_of(caller: Caller) -> list[dict[str, list[str]]]:
    """The fields of the records that a caller has got."""
    if not is_answered(caller):
        return []
    found: list[dict[str, list[str]]] = []
    for reply in caller.answers():
        assert reply["continues"] is True
        found.append(reply["parameters"]["fields"])
    return found


def load(world: World, number: int = 0) -> None:
    """A device is plugged in, and its module is loaded."""
    world.live()
    world.state.system.drop_loaded()
    world.plug("pci:v2", f"0000:{number:02x}:00.0")
    world.settle()


def test_each_decision_is_one_reply_with_the_fields_of_its_record(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    caller, late = Caller(control), Caller(control)
    server.subscribe(caller)
    world.plug("pci:v1")
    world.settle()
    server.subscribe(late)
    (told,) = fields_of(caller)
    (record,) = world.records
    assert told["MESSAGE"] == [record.message] == ["Loaded b for 0000:01:00.0 in 14us, with a"]
    assert (told["PRIORITY"], told["MESSAGE_ID"]) == (["6"], [record.message_id])
    assert told["KMODD_MODULES"] == ["a", "b"]
    named = {name: [value for field, value in record.fields if field == name] for name, _ in record.fields}
    assert {name: value for name, value in told.items() if name.startswith("KMODD_")} == named
    assert not is_answered(late), "the control: what was before is in the journal"


def test_records_about_no_request_are_not_decisions(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    caller = Caller(control)
    server.subscribe(caller)
    world.lose_uevents()
    assert len(world.records) == 1
    assert fields_of(caller) == []


def test_a_call_without_more_is_refused(control: ControlSocket, server: ControlServer) -> None:
    caller = Caller(control)
    server.send(caller, "Monitor")
    assert caller.answers() == [{"error": "org.varlink.service.ExpectedMore", "parameters": {}}]
    server.send_text(caller, json.dumps({"method": "io.kmodd.Monitor", "more": True, "oneway": True}))
    assert not is_answered(caller)


def test_users_learn_no_process_of_others(world: World, control: ControlSocket, server: ControlServer) -> None:
    root, own, other = Caller(control), Caller(control), Caller(control)
    for caller, uid in ((root, 0), (own, 1000), (other, NOBODY)):
        server.subscribe(caller, uid)
    world.ask("c", pid=4242, uid=1000)
    world.settle()
    seen, mine, (others,) = fields_of(root), fields_of(own), fields_of(other)
    assert [{name: values for name, values in seen[0].items() if values != [""]}] == mine
    assert seen[0]["KMODD_REQUESTER_PID"] == ["4242"]
    assert "[4242] uid 1000" in seen[0]["MESSAGE"][0]
    assert others["MESSAGE"] == ["Loaded c for a process of uid 1000 in 7us"]
    assert {name for name in others if "REQUESTER" in name} == {"KMODD_REQUESTER_UID", "KMODD_REQUESTER_CONTAINER"}
    assert {**others, "MESSAGE": seen[0]["MESSAGE"]}.items() <= seen[0].items()


def test_users_learn_no_process_that_may_have_asked(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    root, own = Caller(control), Caller(control)
    server.subscribe(root, 0)
    server.subscribe(own, 1000)
    for uids in ((0, 1000), (1000, 1000)):
        candidates = tuple(requester(pid, uid) for pid, uid in enumerate(uids))
        world.queue(Request("c", "request", ambiguous=True, candidates=candidates))
        world.settle()
        world.state.system.drop_loaded()
    counts = [[len(fields.get("KMODD_REQUESTER_CANDIDATE", ())) for fields in fields_of(each)] for each in (root, own)]
    assert counts == [[2, 2], [0, 2]]


def test_users_learn_no_rules(world: World, control: ControlSocket, server: ControlServer) -> None:
    root, other = Caller(control), Caller(control)
    world.set_rules("deny module=c origin=request")
    server.subscribe(root)
    server.subscribe(other, NOBODY)
    world.ask("c", uid=5)
    world.settle()
    (seen,), (shown,) = fields_of(root), fields_of(other)
    assert seen["KMODD_RULE"] == ["deny module=c origin=request"]
    assert shown["MESSAGE"] == ["Denied c for a process of uid 5: x.conf:1"]
    assert "origin=" not in json.dumps(shown)


def test_users_learn_no_commands(world: World, control: ControlSocket, server: ControlServer) -> None:
    root, other = Caller(control), Caller(control)
    server.subscribe(root)
    server.subscribe(other, NOBODY)
    (world.root / "etc/modprobe.d/x.conf").write_text("install c /bin/false secret\n")
    world.reload()
    world.plug("pci:v2")
    world.settle()
    (seen,), (shown,) = fields_of(root), fields_of(other)
    assert "secret" in json.dumps(seen)
    assert "secret" not in json.dumps(shown)
    assert shown["MESSAGE"] == ["Blocked c for 0000:01:00.0: the line at /etc/modprobe.d/x.conf:1"]
    assert (shown["KMODD_FILE"], shown["KMODD_LINE"]) == (seen["KMODD_FILE"], seen["KMODD_LINE"])


def test_users_learn_no_line_of_a_file_that_they_cannot_read(
    world: World, control: ControlSocket, server: ControlServer
) -> None:
    """The control: they learn it while the file's mode lets them."""
    root, other = Caller(control), Caller(control)
    server.subscribe(root)
    server.subscribe(other, NOBODY)
    path = world.root / "etc/modprobe.d/x.conf"
    for folder in (path.parent, *path.parents):
        if folder.is_relative_to(world.root):
            folder.chmod(0o755)
    path.write_text("alias topsecret-* c\nblacklist a\n")
    for mode, secret in ((0o600, True), (0o644, False)):
        path.chmod(mode)
        world.live()
        world.state.system.drop_loaded()
        world.reload()
        world.ask("topsecret-1", uid=5)
        world.plug("pci:v1")
        world.settle()
        seen, shown = fields_of(root), fields_of(other)
        assert "x.conf" in json.dumps(seen)
        assert "topsecret_*" in json.dumps(seen)
        assert len(shown) == len(seen) > 0
        assert ("x.conf" in json.dumps(shown)) is not secret
        assert ("topsecret_*" in json.dumps(shown)) is not secret


@pytest.mark.parametrize("name", ["KMODD_COMMAND_OUTPUT", "KMODD_KERNEL_LOG", "KMODD_STACK", "KMODD_VERDICT"])
def test_users_learn_no_evidence(server: ControlServer, control: ControlSocket, name: str) -> None:
    root, other = Caller(control), Caller(control)
    server.subscribe(root)
    server.subscribe(other, NOBODY)
    outcome = Outcome(
        Request("c", "boot"), "c", "failed", Reason("boot", "c"), detail="secret", evidence=((name, "secret"),)
    )
    for about in (outcome, Decision(outcome.request, ("c",), (outcome,))):
        server.handler.logged(Log(record_of(outcome), about))
    assert all("secret" in json.dumps(fields) for fields in fields_of(root))
    assert [fields["MESSAGE"][0][:16] for fields in fields_of(other) if "secret" not in json.dumps(fields)] == [
        "Failed to load c"
    ] * 2


def test_a_repeated_record_says_so_to_users(server: ControlServer, control: ControlSocket) -> None:
    other = Caller(control)
    server.subscribe(other, NOBODY)
    outcome = Outcome(Request("c", "request"), "c", "failed", Reason("asked", "c"))
    server.handler.logged(Log(record_of(outcome, 7), outcome))
    (told,) = fields_of(other)
    assert told["KMODD_REPEATED"] == ["7"]
    assert told["MESSAGE"][0].endswith("; 7 more like this since the last record")


def big(number: int) -> Log:
    """A record of 10 kB."""
    outcome = Outcome(Request(f"{number}{'x' * 10000}", "operator"), "c", "loaded", Reason("asked", "c"))
    return Log(record_of(outcome), outcome)


def test_a_slow_reader_is_dropped_and_counted_and_others_are_not(control: ControlSocket, server: ControlServer) -> None:
    slow, quick = Caller(control), Caller(control)
    for caller in (slow, quick):
        caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.subscribe(caller)
    for number in range(2 * (MAX_BEHIND + (1 << 20)) // 10000):
        server.handler.logged(big(number))
        control.send_rest(quick.connection)
        read_all(quick, control)
    assert slow.connection not in control.connections
    assert quick.connection in control.connections
    assert control.dropped == 1
    asking = Caller(control)
    server.send(asking, "Status")
    assert asking.answers()[0]["parameters"]["readers_dropped"] == 1


def read_all(caller: Caller, control: ControlSocket) -> None:
    """Read until all that was sent is read."""
    while is_answered(caller):
        caller.socket.recv(1 << 20)
        if caller.connection.unsent:
            control.send_rest(caller.connection)


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_a_caller_that_leaves_is_forgotten_at_once(
    world: World, control: ControlSocket, server: ControlServer, how: str
) -> None:
    leaving, staying = Caller(control), Caller(control)
    server.subscribe(leaving)
    server.subscribe(staying)
    if how == "close":
        leaving.socket.close()
    else:
        leaving.socket.shutdown(socket.SHUT_WR)
    control.receive(leaving.connection)
    assert control.connections == [staying.connection]
    assert control.dropped == 0, "it was not slow"
    load(world)
    assert len(fields_of(staying)) == 1


def test_users_have_a_number_of_streams_and_root_has_no_limit(control: ControlSocket, server: ControlServer) -> None:
    callers = [Caller(control) for _ in range(MAX_MONITORS + 1)]
    for number, caller in enumerate(callers):
        server.subscribe(caller, 1000 + number)
    assert [is_answered(caller) for caller in callers] == [False] * MAX_MONITORS + [True]
    assert callers[-1].answers() == [{"error": "io.kmodd.Busy", "parameters": {}}]
    root = Caller(control)
    server.subscribe(root)
    assert not is_answered(root)
    control.drop(callers[0].connection)
    server.subscribe(callers[-1])
    assert not is_answered(callers[-1]), "a place is free again"


def test_one_user_does_not_take_all_streams(control: ControlSocket, server: ControlServer) -> None:
    greedy, other = [Caller(control) for _ in range(MAX_OF_USER + 1)], Caller(control)
    for caller in greedy:
        server.subscribe(caller, 1000)
    server.subscribe(other, 1001)
    assert [is_answered(caller) for caller in greedy] == [False] * MAX_OF_USER + [True]
    assert not is_answered(other)


class Spent:
    """A clock of processor time by which each record takes all that a user has."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += BURST
        return self.now


def test_a_user_pays_for_its_records_and_hears_how_many_it_missed(
    control: ControlSocket, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, user = Caller(control), Caller(control)
    server.subscribe(root)
    server.subscribe(user, 1000)
    outcome = Outcome(Request("c", "operator"), "c", "loaded", Reason("asked", "c"))
    log = Log(record_of(outcome), outcome)

    def replies(caller: Caller) -> list[Any]:
        return [reply["parameters"]["missed"] for reply in caller.answers()] if is_answered(caller) else []

    with monkeypatch.context() as patch:
        patch.setattr("kmodd.daemon.monitors.time.thread_time", Spent())
        for _ in range(4):
            server.handler.logged(log)
    assert replies(root) == [0] * 4
    got = replies(user)
    assert got[0] == 0
    assert len(got) < 4
    with monkeypatch.context() as patch:
        patch.setattr("kmodd.daemon.control_handler.time.monotonic", lambda: 1e9)
        server.handler.logged(log)
    assert replies(user) == [4 - len(got)]


def test_a_record_with_a_broken_name_is_sent(control: ControlSocket, server: ControlServer) -> None:
    """Bytes that are no UTF-8 come as they came from the kernel."""
    caller = Caller(control)
    server.subscribe(caller)
    outcome = Outcome(Request("a\udcff\n\x1b\u202e", "uevent"), "c", "nomatch", Reason("asked", "c"))
    record: Record = record_of(outcome)
    server.handler.logged(Log(record, outcome))
    assert fields_of(caller)[0]["KMODD_ALIAS"] == ["a\udcff\n\x1b\u202e"]
