"""Requests and replies between the daemon and a loader."""

from __future__ import annotations

import errno

import pytest

from kmodd.errors import Where
from kmodd.loader.protocol import (
    MAX_STEP,
    InsmodRequest,
    InsmodRunRequest,
    LoaderRequest,
    OfferedRequest,
    ProbeRequest,
    RmmodRequest,
    ShellRequest,
    StopRequest,
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
     ShellRequest("foo", Where("/etc/a b.conf", 7), "/real/\udc80", ""), ProbeRequest("pci", "0000:00:1f.2")],
)  # fmt: skip
def test_requests_survive_encoding(call: LoaderRequest) -> None:
    """Bytes that are not UTF-8 too, which Python holds as lone surrogates."""
    assert decode_request(encode_request(call)) == call


def test_replies_survive_encoding() -> None:
    for reply in (Reply(0, "kernel", 5), Reply(errno.EACCES, "file", 10**9, "/\udcff.ko: \0 is é")):
        assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize("words", [("/a\0/b", ""), ("/a", "x\0y"), ("/a", "1\x002\x003\0"), ("/a", "x" * MAX_STEP)])
def test_a_request_too_large_for_a_datagram_is_not_sent(words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="loader request "):
        encode_request(InsmodRunRequest((InsmodRequest(*words),), ("a",)))
