"""Bytes and numbers as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.text import decode, duration, encode


@pytest.mark.parametrize(
    ("usec", "text"),
    [
        (0, "0us"), (999, "999us"), (1000, "1ms"), (1499, "1ms"), (614_200, "614ms"), (999_499, "999ms"),
        (999_500, "1s"), (3_775_709, "3.8s"), (59_949_999, "59.9s"), (59_950_000, "1min"), (125_000_000, "2min 5s"),
        (3_599_500_000, "1h"), (3_780_000_000, "1h 3min"),
    ],
)  # fmt: skip
def test_durations_are_formatted_as_systemd_does(usec: int, text: str) -> None:
    assert duration(usec) == text


@given(st.binary())
def test_any_bytes_survive_decoding(raw: bytes) -> None:
    assert encode(decode(raw)) == raw
