"""Queues of requests: equal devices are one entry, users take turns, the length is limited."""

from __future__ import annotations

from kmodd.kernel import uevent
from kmodd.kernel.requester import Requester
from kmodd.planning.device_requests import wanted
from kmodd.planning.request import MAX_DEVICES, Request
from kmodd.state.queue import MAX_NAMES, DeviceQueue, FairQueue


def event(text: str) -> uevent.Uevent:
    return uevent.parse(text.replace(" ", "\0").encode() + b"\0")


def texts(words: str) -> tuple[str, ...]:
    return tuple(request.text for request in wanted(event(words), "uevent"))


def device(alias: str, name: str, *, synthetic: bool = False) -> Request:
    return Request(alias, "uevent", (f"/devices/{name}",), 1, synthetic=synthetic)


def test_a_thousand_processors_with_one_modalias_are_one_entry() -> None:
    backlog = DeviceQueue()
    for number in range(1000):
        backlog.add(device("cpu:type:x86,ven0000", f"cpu{number}"))
    assert len(backlog) == 1
    request = backlog.take()
    assert request is not None
    assert request.device_count == 1000
    assert request.devices == tuple(f"/devices/cpu{number}" for number in range(MAX_DEVICES))
    assert backlog.take() is None


def test_a_device_added_twice_counts_once() -> None:
    backlog = DeviceQueue()
    for _ in range(3):
        for number in range(40):
            backlog.add(device("a", f"d{number}"))
    request = backlog.take()
    assert request is not None
    assert request.device_count == 40


def test_endless_new_names_do_not_grow_an_entry() -> None:
    backlog = DeviceQueue()
    for number in range(MAX_NAMES + 500):
        backlog.add(device("input:b0003", f"input{number}"))
    request = backlog.take()
    assert request is not None
    assert request.device_count == MAX_NAMES + 500
    assert len(request.devices) == MAX_DEVICES


def test_devices_are_served_in_their_order() -> None:
    backlog = DeviceQueue()
    for name in ("a", "b", "a", "c"):
        backlog.add(device(name, name))
    assert [request.text for request in iter(backlog.take, None)] == ["a", "b", "c"]


def test_requests_with_an_answer_are_not_merged() -> None:
    """A request with parameters is never merged with another, and each caller gets its own answer."""
    turns = FairQueue()
    turns.add(Request("dummy", "operator", params=("numdummies=2",)))
    turns.add(Request("dummy", "operator"))
    turns.add(Request("dummy", "operator"))
    assert len(turns) == 3


def asked_by(uid: int, text: str) -> Request:
    return Request(text, "request", requester=Requester(1, "x", "", uid, None, "", "", container=False))


def test_users_take_turns() -> None:
    """Requests are served fairly per requester."""
    turns = FairQueue()
    for number in range(100):
        turns.add(asked_by(1000, f"greedy{number}"))
    turns.add(asked_by(1001, "modest"))
    turns.add(Request("operators", "operator"))
    taken = [turns.take(operators=False) for _ in range(3)]
    assert [request.text for request in taken if request] == ["greedy0", "modest", "greedy1"]
    assert turns.take(operators=True) == Request("operators", "operator")
    assert len(turns) == 98


def test_turns_are_bounded() -> None:
    turns = FairQueue(limit=2)
    assert [turns.add(asked_by(uid, "x")) for uid in range(3)] == [True, True, False]


def test_a_real_event_makes_a_synthetic_request_real() -> None:
    backlog = DeviceQueue()
    backlog.add(device("a", "one", synthetic=True))
    backlog.add(device("a", "two"))
    backlog.add(device("a", "three", synthetic=True))
    request = backlog.take()
    assert request is not None
    assert not request.synthetic
    assert request.device_count == 3


def test_new_devices_precede_coldplug() -> None:
    backlog = DeviceQueue()
    for name in ("a", "b", "c"):
        backlog.add(device(name, "there", synthetic=True))
    backlog.add(device("d", "new"))
    backlog.add(device("b", "new"))
    assert [request.text for request in iter(backlog.take, None)] == ["d", "b", "a", "c"]


def test_a_request_put_back_is_first_of_its_kind() -> None:
    backlog = DeviceQueue()
    for name in ("a", "b"):
        backlog.add(device(name, "there", synthetic=True))
    first = backlog.take()
    assert first is not None
    backlog.add(device("c", "new"))
    backlog.put_back(first)
    assert [request.text for request in iter(backlog.take, None)] == ["c", "a", "b"]


def test_a_full_queue_refuses_all_but_equal_requests() -> None:
    backlog = DeviceQueue(limit=2)
    assert backlog.add(device("a", "1"))
    assert not backlog.is_full()
    assert backlog.add(device("b", "1"))
    assert backlog.is_full()
    assert not backlog.add(device("c", "1"))
    assert backlog.add(device("a", "2"))
