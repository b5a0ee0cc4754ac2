"""The contents of a region for people: in hexadecimal, like hexdump -C, or only the text in it, like strings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from tracer.find_region import Known
from tracer.formatting import fit, format_bytes, printable
from tracer.proc.contents import DATA, Piece
from tracer.proc.shmem import PAGE_BYTES

ROW_BYTES = 16
BLOCK_BYTES = 1 << 18  # dumped at a time
CHARACTERS = bytes(code if 0x20 <= code < 0x7F else ord(".") for code in range(256))
PRINTABLE = b"\t" + bytes(range(0x20, 0x7F))
TEXT = re.compile(rb"[\t\x20-\x7e]{4,}")
LONGEST_BYTES = 1 << 16  # of one string; a longer one is split into lines


def hexdump(pieces: Iterable[Piece]) -> Iterator[str]:
    """Lines of 16 bytes at offsets divisible by 16. Repeated rows, holes and left-out pages become one line each."""
    previous, squeezed, end = b"", False, 0
    for state, group in itertools.groupby(pieces, key=lambda piece: piece.state):
        start = None
        for piece in group:
            start = piece.start if start is None else start
            end = piece.end
            lines: list[str] = []
            at = 0
            while at < len(piece.data):
                offset = piece.start + at
                row = bytes(piece.data[at : at + ROW_BYTES - offset % ROW_BYTES])
                at += len(row)
                if row != previous or len(row) < ROW_BYTES:
                    lines.append(_row(offset, row))
                    squeezed = False
                elif not squeezed:
                    lines.append("*\n")
                    squeezed = True
                previous = row
                if len(lines) * ROW_BYTES >= BLOCK_BYTES:
                    yield "".join(lines)
                    lines = []
            yield "".join(lines)
        if state != DATA and start is not None:
            yield f"* {state}, {_amount(end - start)}\n"
            previous, squeezed = b"", False
    yield f"{end:08x}\n"


def _row(offset: int, row: bytes) -> str:
    digits = row.hex(" ")
    return f"{offset:08x}  {digits[:23]:<23}  {digits[24:]:<23}  |{row.translate(CHARACTERS).decode()}|\n"


def _amount(size_bytes: int) -> str:
    pages, rest = divmod(size_bytes, PAGE_BYTES)
    if rest:
        return f"{size_bytes} bytes"
    return f"{pages} {'page' if pages == 1 else 'pages'}"


def strings(pieces: Iterable[Piece]) -> Iterator[str]:
    """Lines with a hexadecimal offset and a run of at least four printable ASCII characters."""
    text, start = b"", 0  # the end of the data so far, which the next piece may continue
    for piece in pieces:
        if piece.state != DATA:
            yield _lines(text, start)
            text = b""
            continue
        start = start if text else piece.start
        text += piece.data
        # A run at the end may continue in the next piece, so it is kept back.
        stop = max(len(text.rstrip(PRINTABLE)), len(text) - LONGEST_BYTES)
        yield _lines(text[:stop], start)
        text, start = text[stop:], start + stop
    yield _lines(text, start)


def _lines(data: bytes, start: int) -> str:
    lines = (
        f"{start + match.start() + at:8x}  {match[0][at : at + LONGEST_BYTES].decode()}\n"
        for match in TEXT.finditer(data)
        for at in range(0, len(match[0]), LONGEST_BYTES)
    )
    return "".join(lines).replace("\t", "\\x09")  # what printable() does with the only control character in TEXT


def choices(regions: Iterable[Known]) -> str:
    """A table of regions to choose from: the id to name one by, and what distinguishes them."""
    rows = [
        (
            each.region.id,
            each.region.kind,
            "?" if each.region.size_bytes is None else format_bytes(each.region.size_bytes),
            format_bytes(each.region.allocated_bytes),
            fit(printable(each.region.name), 32) + (f"  {each.guess}" if each.guess else ""),
            " ".join(map(str, each.region.mappers[:3])) + " …" * (len(each.region.mappers) > 3),
        )
        for each in regions
    ]
    heads = ("id", "kind", "size", "allocated", "name", "mapped by")
    columns = [max(map(len, column)) for column in zip(heads, *rows)]
    return "\n".join(
        "  ".join(f"{value:<{columns[number]}}" for number, value in enumerate(row)).rstrip() for row in (heads, *rows)
    )
