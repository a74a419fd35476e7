"""Initial ramdisks of any make-up: all modules are found; a damaged one gives an answer, or an error with its place."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.errors import ParseError
from kmodd.modfile.initrd import Initrd, read_initrd
from tests.initrds import PACKERS, TRAILER, entry, tree

pytestmark = pytest.mark.property

RELEASE = "6.1.0-test"
NAMES = st.sets(st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True), max_size=6)
SEGMENTS = st.lists(
    st.tuples(NAMES, st.sampled_from(sorted(PACKERS)), st.integers(0, 5000), st.integers(0, 300)),
    min_size=1,
    max_size=5,
)
"""Of each segment: its modules, its format, the size of their files, and words of padding behind it."""


def image(segments: list[tuple[set[str], str, int, int]]) -> bytes:
    data = b""
    for names, packer, size, padding in segments:
        files = b"".join(entry(name, b"\x28\xb5\x2f\xfd" * (size // 4)) for name in tree(RELEASE, sorted(names)))
        data += PACKERS[packer](files + TRAILER)
        data += bytes(-len(data) % 4 + 4 * padding)
    return data


@settings(max_examples=100, deadline=None)
@given(SEGMENTS)
def test_all_modules_of_all_segments_are_found(segments: list[tuple[set[str], str, int, int]]) -> None:
    found = read_initrd(io.BytesIO(image(segments)))
    assert found.of(RELEASE) == set().union(*(names for names, *_ in segments))


@settings(max_examples=100, deadline=None)
@given(SEGMENTS, st.floats(0, 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_image_gives_an_error_or_an_answer(
    segments: list[tuple[set[str], str, int, int]], place: float, damage: bytes
) -> None:
    data = image(segments)
    at = int(len(data) * place)
    whole = read_initrd(io.BytesIO(data)).of(RELEASE)
    for damaged in (data[:at], data[:at] + damage + data[at + len(damage) :]):
        found = attempt(damaged)
        assert isinstance(found, Initrd) or found.startswith("offset ")
        if damaged == data[:at] and isinstance(found, Initrd):
            assert found.of(RELEASE) <= whole


def attempt(data: bytes) -> Initrd | str:
    """What is read, or the message."""
    try:
        return read_initrd(io.BytesIO(data), 1 << 22)
    except ParseError as error:
        return str(error)
