"""The .bin indexes as depmod writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.errors import ParseError
from kmodd.index import bin_reader, bin_writer

KEYS = st.text(st.sampled_from("ab:*[]_-\x01\x7f"), max_size=6)
ROWS = st.lists(st.tuples(KEYS, st.sampled_from(["m", "n", ""]), st.integers(0, 3)), max_size=60)


@given(ROWS)
def test_tries_are_those_of_binindex(rows: list[tuple[str, str, int]]) -> None:
    fast = bin_writer.build((key.encode(), priority, text.encode()) for key, text, priority in rows)
    assert fast == bin_reader.build(rows, preorder=True)


def test_a_key_beyond_ascii() -> None:
    with pytest.raises(ParseError):
        bin_writer.build([(b"a\x80", 0, b"m")])
