"""Requests and replies between the daemon and a loader."""

from __future__ import annotations

import errno

import pytest

from kmodd.errors import Where
from kmodd.loader.protocol import (
    MAX_STEP,
    CommandRequest,
    InsmodRequest,
    InsmodRunRequest,
    LoaderRequest,
    OfferedRequest,
    ProbeRequest,
    RmmodRequest,
    StopRequest,
    decode_command,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from kmodd.planning.reply import Reply


@pytest.mark.parametrize(
    "call",
    [InsmodRunRequest((InsmodRequest("/é\udcff.ko", "x=a\nb\tc"), InsmodRequest("/b.ko", "")), ("é", "b")),
     OfferedRequest("/é\udcff.ko", "x=a b"), RmmodRequest("a"), StopRequest(),
     ProbeRequest("pci", "0000:00:1f.2")],
)  # fmt: skip
def test_requests_survive_encoding(call: LoaderRequest) -> None:
    """Bytes that are not UTF-8 too, which Python holds as lone surrogates."""
    assert decode_request(encode_request(call)) == call


def test_a_command_survives_encoding_and_no_loader_takes_it() -> None:
    call = CommandRequest("remove", "foo", Where("/etc/a b.conf", 7), "/real/\udc80", "")
    assert decode_command(encode_request(call)) == call
    with pytest.raises(ValueError, match="unknown request 'remove'"):
        decode_request(encode_request(call))
    with pytest.raises(ValueError, match="unknown request 'rmmod'"):
        decode_command(encode_request(RmmodRequest("a")))


def test_replies_survive_encoding() -> None:
    ended = Reply(errno.EINVAL, "command", 7, "exited with status 3", "3", "é\\x1b[1m")
    loaded = Reply(0, "kernel", 5, build_id="0a1b")
    for reply in (Reply(0, "kernel", 5), loaded, Reply(errno.EACCES, "file", 10**9, "/\udcff.ko: is é"), ended):
        assert decode_reply(encode_reply(reply)) == reply
    for invalid in ("0A", "x", "0" * 65, "0\x000"):
        assert decode_reply(encode_reply(Reply(0, "kernel", 5, build_id=invalid))) == Reply(0, "kernel", 5)


@pytest.mark.parametrize("words", [("/a\0/b", ""), ("/a", "x\0y"), ("/a", "1\x002\x003\0"), ("/a", "x" * MAX_STEP)])
def test_a_request_too_large_for_a_datagram_is_not_sent(words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="request "):
        encode_request(InsmodRunRequest((InsmodRequest(*words),), ("a",)))
