"""Bytes and numbers as text."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.text import columns_of_text, decode, duration, encode, escaped_end, shortened, unsigned


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


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("USB disk", 8),
        ("键盘", 4),
        ("キーボード", 10),
        ("e\u0301t\u0301", 2),
        ("Ａ", 2),
        ("é", 1),
        ("…", 1),
        ("ｶ", 1),
        ("", 0),
    ],
)
def test_wide_and_combining_characters_count_as_a_terminal_shows_them(text: str, columns: int) -> None:
    assert columns_of_text(text) == columns


@given(st.text(st.sampled_from("ab键é\u0301ｶ…")), st.integers(1, 12))
def test_a_shortened_text_fits_and_is_the_beginning(text: str, columns: int) -> None:
    cut = shortened(text, columns)
    assert columns_of_text(cut) <= columns
    assert cut == text if columns_of_text(text) <= columns else text.startswith(cut.removesuffix("…"))


@given(st.binary())
def test_any_bytes_survive_decoding(raw: bytes) -> None:
    assert encode(decode(raw)) == raw


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""), (b"a\nb\n\n", r"a\nb"), (b"a\tb\x00\x1b[1m", r"a\tb\x00\x1b[1m"), ("é\u2028".encode(), r"é\u2028"),
        (b"\xff\xc3", r"\xff\xc3"), (b"C:\\n", r"C:\\n"),
    ],
)  # fmt: skip
def test_output_is_escaped_to_one_line(raw: bytes, text: str) -> None:
    assert escaped_end(raw, 100) == text


@given(st.binary(), st.integers(0, 20))
def test_escaped_output_is_printable_and_the_end_of_the_whole(raw: bytes, limit: int) -> None:
    """The cut may divide a character of UTF-8, whose bytes are escaped then, but no escape."""
    end = escaped_end(raw, limit)
    assert len(end.encode()) <= limit
    assert end.isprintable()
    assert limit < len(raw) or escaped_end(raw, 10**6).endswith(end)


@pytest.mark.parametrize(
    "digits", [b"0", b"+7", b"-5", b"4294967296", b"18446744073709551615", b"18446744073709551616",
               b"-18446744073709551616", b"0" * 5000 + b"9", b"1" * 5000, b"-" + b"1" * 5000],
)  # fmt: skip
def test_an_unsigned_number_is_read_as_by_the_c_library(digits: bytes) -> None:
    """Of any length: int() refuses more than 4,300 digits."""
    read = ctypes.c_uint(12345)
    assert ctypes.CDLL(None).sscanf(digits, b"%u", ctypes.byref(read)) == 1
    assert unsigned(digits) == read.value
