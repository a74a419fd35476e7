"""Bytes and numbers as text, the same everywhere."""

from __future__ import annotations


def encode(text: str) -> bytes:
    """Return the bytes of a text that `decode` made."""
    return text.encode("utf-8", "surrogateescape")


def decode(raw: bytes) -> str:
    """Return bytes of the machine as text; what is not UTF-8 survives as surrogate escapes (PEP 383)."""
    return raw.decode("utf-8", "surrogateescape")


def duration(usec: int) -> str:
    """Return a time span as a sentence names it: `7us`, `614ms`, `3.8s`, `2min 5s`, `1h 3min`.

    usec: µs, not negative. The units are those of systemd.time(7); two of them at most.
    """
    if usec < 1000:
        return f"{usec}us"
    if usec < 999_500:
        return f"{(usec + 500) // 1000}ms"
    tenths = (usec + 50_000) // 100_000
    if tenths < 600:
        whole, tenth = divmod(tenths, 10)
        return f"{whole}.{tenth}s" if tenth else f"{whole}s"
    seconds = (usec + 500_000) // 1_000_000
    big, small, unit, part = (seconds // 60, seconds % 60, "min", "s")
    if big >= 60:
        big, small, unit, part = (big // 60, big % 60, "h", "min")
    return f"{big}{unit} {small}{part}" if small else f"{big}{unit}"
