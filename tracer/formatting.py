"""Values as text for a terminal: bytes, times, and text from strangers, which is made printable and cut to width."""

from __future__ import annotations

import unicodedata
from datetime import datetime

COLUMNS = 80


def format_bytes(size_bytes: int) -> str:
    """As 81.2 MiB or 812 MiB, at most 8 columns up to a PiB; the page's formatBytes() writes the same."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    value, unit = size_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1023.5:  # what is more is printed as 1.0 of the next
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def format_change(size_bytes: int) -> str:
    return ("+" if size_bytes >= 0 else "-") + format_bytes(abs(size_bytes))


def printable(text: str) -> str:
    """Text from strangers: what could move the cursor, colour, reorder or hide is shown as its code."""
    if text.isprintable():  # most is
        return text
    return "".join(
        character
        if unicodedata.category(character)[0] != "C" and unicodedata.category(character) not in ("Zl", "Zp")
        else f"\\x{ord(character):02x}"
        for character in text
    )


def width(text: str) -> int:
    """Terminal columns: East Asian wide characters take two, combining ones none."""
    if text.isascii():  # most is
        return len(text)
    seen = (character for character in text if unicodedata.category(character) not in ("Mn", "Me"))
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in seen)


def fit(text: str, columns: int) -> str:
    """Cut to so many columns, with an ellipsis where something was cut."""
    if width(text) <= columns:
        return text
    cut, left = "", columns - 1
    for character in text:
        left -= width(character)
        if left < 0:
            break
        cut += character
    return cut + "…" if columns > 0 else ""


def clock(unix_ns: int | None) -> str:
    """Local time of day."""
    return "?" if unix_ns is None else datetime.fromtimestamp(unix_ns / 1e9).strftime("%H:%M:%S")  # noqa: DTZ006


def moment(unix_ns: int) -> str:
    """Local date and time."""
    return datetime.fromtimestamp(unix_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")  # noqa: DTZ006
