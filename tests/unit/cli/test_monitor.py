"""`kmodd monitor`: a line, or an object of a sequence, for each reply of the daemon."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli import monitor
from kmodd.planning.history import as_object, entry_of
from tests import program

USEC = 1_764_441_456_789_012


def reply(
    message: str, fields: Mapping[str, list[str]] | None = None, *, priority: int = 6, missed: int = 0
) -> dict[str, Any]:
    named = {"MESSAGE": [message], "PRIORITY": [str(priority)], "MESSAGE_ID": ["0"], **(fields or {})}
    return {
        "continues": True,
        "parameters": {"realtime_usec": USEC, "monotonic_usec": 5, "missed": missed, "fields": named},
    }


@contextlib.contextmanager
def daemon_of(folder: Path, replies: Sequence[dict[str, Any] | bytes]) -> Iterator[str]:
    """A daemon that sends these replies, as objects or bytes, to one caller, in pieces of ten bytes, and ends."""
    path = str(folder / "io.kmodd")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen()
    listening.settimeout(30)

    def serve() -> None:
        caller, _ = listening.accept()
        with caller:
            call = b""
            while not call.endswith(b"\0"):
                call += caller.recv(1024)
            assert json.loads(call[:-1]) == {"method": "io.kmodd.Monitor", "parameters": {}, "more": True}
            data = b"".join(
                (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\0" for each in replies
            )
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(data), 10):
                    caller.sendall(data[start : start + 10])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path
    finally:
        thread.join(30)
        listening.close()


def test_a_decision_is_a_line_with_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    replies = [reply("Loaded ahci for 0000:00:1f.2 in 614ms"), reply("Denied x", priority=5, missed=3)]
    with daemon_of(tmp_path, replies) as path:
        assert monitor.main(["--socket", path]) == 7
    said = capsys.readouterr()
    first, left_out, second = said.out.splitlines()
    assert first.split(" ", 1)[1] == "Loaded ahci for 0000:00:1f.2 in 614ms"
    assert first[2] == first[5] == ":"
    assert left_out == "(3 records left out, as calls of this user take too much time)"
    assert second.endswith(" Denied x")
    assert said.err.startswith("kmodd monitor: the daemon has ended")


def test_json_is_a_sequence_of_objects_as_those_of_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RFC 7464: a record separator, a text, a line end."""
    told = {"KMODD_MODULES": ["a", "b"], "KMODD_MODULE": ["b"], "KMODD_ALIAS": ["x\n\x1e\udcff"]}
    replies = [reply("Loaded b", {"KMODD_RESULT": ["loaded"], **told}), reply("y", missed=2)]
    with daemon_of(tmp_path, replies) as path:
        assert monitor.main(["--json", "--socket", path]) == 7
    empty, *texts = capsys.readouterr().out.split("\x1e")
    assert empty == ""
    assert all(text.endswith("}\n") and text.count("\n") == 1 for text in texts)
    first, second = map(json.loads, texts)
    record = {name: values if len(values) > 1 else values[0] for name, values in told.items()}
    entry = entry_of(
        {**record, "_UID": "0", "MESSAGE": "Loaded b", "PRIORITY": "6", "KMODD_RESULT": "loaded", "MESSAGE_ID": "0"}
    )
    assert entry is not None
    assert first.keys() == {*as_object(entry), "missed"}
    times = {"realtime_usec": USEC, "monotonic_usec": 5, "missed": 0}
    places = {name: first[name] for name in ("boot_id", "host", "program")}
    assert first == {**as_object(entry), **times, **places}
    assert (places["program"], len(places["boot_id"])) == ("kmodd", 32)
    assert (first["module"], first["modules"], first["alias"]) == ("b", ["a", "b"], "x\n\x1e\udcff")
    assert (second["message"], second["missed"]) == ("y", 2)


def test_a_name_cannot_act_on_the_terminal_and_levels_have_colours(tmp_path: Path) -> None:
    hostile = "a\x1b]0;x\x07\u202eb\nc"
    with daemon_of(tmp_path, [reply(f"Failed to load {hostile}", priority=3)]) as path:
        shown = program.on_terminal(["monitor", "--socket", path], {"TERM": "xterm"}).decode()
    line = shown.splitlines()[0]
    assert "\x1b[0;1;31mFailed to load a\\x1b]0;x\\x07\\u202eb\\nc\x1b[0m" in line


def test_it_ends_when_its_output_has_no_reader(tmp_path: Path) -> None:
    replies = [reply("x" * 1000) for _ in range(20)]
    with daemon_of(tmp_path, replies[:1]) as path:
        assert program.run(["monitor", "--socket", path], "|").status == 1
    (tmp_path / "io.kmodd").unlink()
    with daemon_of(tmp_path, replies) as path:
        said = program.run(["monitor", "--socket", path], ">/dev/full")
    assert said.status == 1
    assert said.err == b"kmodd monitor: Failed to write standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [("io.kmodd.Busy", "too many monitors run already"), ("io.kmodd.Other", "io.kmodd.Other")],
)
def test_a_refusal(tmp_path: Path, error: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon_of(tmp_path, [{"error": error, "parameters": {}}]) as path:
        assert monitor.main(["--socket", path]) == 1
    assert capsys.readouterr().err == f"kmodd monitor: {said}\n"


@pytest.mark.parametrize("text", [b"nonsense", b'{"parameters": {"fields": {}}}', b"[]", b'{"parameters": 5}', b"\xff"])
def test_a_reply_that_is_none_of_this_version(tmp_path: Path, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon_of(tmp_path, [text]) as path:
        assert monitor.main(["--socket", path]) == 1
    assert capsys.readouterr().err.startswith("kmodd monitor: the daemon's reply is not one of io.kmodd.Monitor")


def test_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert monitor.main(["--socket", str(tmp_path / "none")]) == 7
    assert capsys.readouterr().err.startswith("kmodd monitor: the daemon is not running: ")
