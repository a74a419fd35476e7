"""Conversion of bytes and durations to text."""

from __future__ import annotations


def encode(text: str) -> bytes:
    """Return the bytes of a text from `decode`; surrogate escapes become the original bytes (PEP 383)."""
    return text.encode("utf-8", "surrogateescape")


def decode(raw: bytes) -> str:
    """Return bytes from the kernel or a file as text; bytes that are not UTF-8 become surrogate escapes (PEP 383)."""
    return raw.decode("utf-8", "surrogateescape")


def unsigned(digits: bytes) -> int:
    """Return a decimal number with an optional sign as sscanf(3) of glibc reads it for `%u`: 32 bits of it.

    A number that does not fit in 64 bits counts as the highest.
    """
    number = digits.lstrip(b"+-").lstrip(b"0")
    value = int(number or b"0") if len(number) <= 20 else 1 << 64
    if value >= 1 << 64:
        return 0xFFFFFFFF
    return (-value if digits.startswith(b"-") else value) & 0xFFFFFFFF


def duration(usec: int) -> str:
    """Format a time span for a message: `7us`, `614ms`, `3.8s`, `2min 5s`, `1h 3min`.

    usec: µs, not negative. The result has one or two units of systemd.time(7).
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


def count_of(number: int, noun: str) -> str:
    """Format a number of things for a message: `1 load`, `2 loads`. noun: in the singular, its plural with -s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def columns_of_text(text: str) -> int:
    """Return the columns that a text of printable characters takes on a terminal.

    Wide characters of East Asian scripts take two (Unicode Standard Annex 11), combining ones none.
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


def shortened(text: str, columns: int) -> str:
    """Return a text of printable characters that takes at most `columns` of a terminal, cut with `…` where needed."""
    if columns_of_text(text) <= columns:
        return text
    kept, used = "", 1
    for char in text:
        used += _columns(char)
        if used > columns:
            break
        kept += char
    return kept + "…"


def _columns(char: str) -> int:
    if char.isascii():
        return 1
    import unicodedata  # only for such characters: it takes 1 ms

    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def escaped_end(raw: bytes, limit: int) -> str:
    r"""Return the end of what a program wrote as one line of printable text, for a journal field or a message.

    Other characters, line ends among them, are escaped as in C (`\n`, `\x1b`), a backslash is doubled, and line ends at
    the end are dropped. limit: bytes of the result.
    """
    kept: list[str] = []
    for char in reversed(decode(raw.rstrip(b"\r\n")[-limit:])):
        if char == "\\" or not char.isprintable():
            char = _escaped_char(char)
        limit -= len(char.encode())
        if limit < 0:
            break
        kept.append(char)
    return "".join(reversed(kept))


def printable(text: str) -> str:
    r"""Return a text for a terminal: characters that are not printable are escaped as in C (`\x1b`, `\n`, `\u202e`).

    These are control characters, line ends, and those that change the direction of text. Bytes that are not UTF-8 stay.
    """
    return text if text.isprintable() else "".join(map(_printable_char, text))


def _printable_char(char: str) -> str:
    return char if char.isprintable() or "\udc80" <= char <= "\udcff" else _escaped_char(char)


def _escaped_char(char: str) -> str:
    byte = ord(char) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()
