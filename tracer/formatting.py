"""Format values for a terminal: bytes, times, and text from other programs (made printable, cut to width).

And read back a size that a user writes.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime

COLUMNS = 80
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def format_bytes(size_bytes: int) -> str:
    """Bytes as 81.2 MiB or 812 MiB: at most 8 columns below 1 PiB. formatBytes() of the page does the same."""
    if size_bytes < 0:  # more is known than there is, in a damaged capture
        return f"-{format_bytes(-size_bytes)}"
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value, unit = size_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1023.5:  # a larger value would round to 1024: print it as 1.0 of the next unit
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def parse_bytes(text: str) -> int | None:
    """Bytes of a size such as 512M or 4G. None: it is none, or none that fits into 63 bits."""
    match = re.fullmatch(r"(?ai)(\d{1,19})([kmgt]?)", text)
    size_bytes = int(match[1]) * UNITS[match[2].upper()] if match else 0
    return size_bytes if 0 < size_bytes < 1 << 63 else None


def format_change(size_bytes: int) -> str:
    """A change in bytes, always with its sign."""
    return "+" * (size_bytes >= 0) + format_bytes(size_bytes)


def printable(text: str) -> str:
    """Text from another program, with control and format characters replaced by \\x codes.

    These could move the cursor, colour, reorder or hide text on the terminal.
    """
    if text.isprintable():  # the usual case, and fast
        return text
    return "".join(
        character
        if unicodedata.category(character)[0] != "C" and unicodedata.category(character) not in ("Zl", "Zp")
        else f"\\x{ord(character):02x}"
        for character in text
    )


def width(text: str) -> int:
    """Terminal columns that the text takes: two for an East Asian wide character, none for a combining one."""
    if text.isascii():  # the usual case, and fast
        return len(text)
    seen = (character for character in text if unicodedata.category(character) not in ("Mn", "Me"))
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in seen)


def fit(text: str, columns: int) -> str:
    """The text cut to at most this many columns, with an ellipsis if it was cut."""
    if width(text) <= columns:
        return text
    cut, left = "", columns - 1
    for character in text:
        left -= width(character)
        if left < 0:
            break
        cut += character
    return cut + "…" if columns > 0 else ""


def shorten(text: str, columns: int) -> str:
    """The text cut to at most this many columns in its middle: many names differ at their end alone."""
    if width(text) <= columns:
        return text
    end, left = "", columns // 2
    for character in reversed(text[-columns:]):
        left -= width(character)
        if left < 0:
            break
        end = character + end
    return fit(text, columns - width(end)) + end if columns > 2 else fit(text, columns)


def shorten_command(text: str, columns: int) -> str:
    """A command line or title cut to at most this many columns.

    A title is cut in its middle. A command line loses its program's directory first, then its end. A PID before it
    stays.
    """
    program, *arguments = text.split(" ")
    if program.isdecimal() and arguments:
        return fit(f"{program} {shorten_command(' '.join(arguments), columns - len(program) - 1)}", columns)
    if width(text) <= columns or program.endswith(":") or not arguments:
        return shorten(text, columns)
    return fit(" ".join([program.rpartition("/")[2] or program, *arguments]), columns)


def wrap(text: str, columns: int) -> list[str]:
    """The words of a text in lines of at most this many columns."""
    lines: list[str] = []
    for word in text.split(" "):
        word = fit(word, columns)
        if lines and width(lines[-1]) + 1 + width(word) <= columns:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def count(number: int, noun: str) -> str:
    """A number of things: 1 host, 7 hosts."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds as 41 s, 12 min, 3.4 h or 7.2 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def clock(unix_ns: int | None, days: bool = False) -> str:
    """Local time of nanoseconds since 1970, as 14:00:05, or 25 Nov 14:00 with its day; "?" for None."""
    form = "%d %b %H:%M" if days else "%H:%M:%S"
    return "?" if unix_ns is None else datetime.fromtimestamp(unix_ns / 1e9).strftime(form)  # noqa: DTZ006


def moment(unix_ns: int) -> str:
    """Local date and time of nanoseconds since 1970, as 2026-11-25 14:00:05."""
    return datetime.fromtimestamp(unix_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")  # noqa: DTZ006
