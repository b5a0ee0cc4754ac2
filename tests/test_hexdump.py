"""Content for the eye: held against hexdump and strings, where these are, and against lines written by hand."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import find_program
from tests.test_views import HOSTILE, make_region
from tracer.find_region import Known
from tracer.proc.contents import DATA, HOLE, SWAPPED, Piece
from tracer.views import hexdump

PAGE_BYTES = 4096


def data(start: int, content: bytes) -> Piece:
    return Piece(start, start + len(content), DATA, memoryview(content))


def absent(first: int, end: int, state: str = HOLE) -> Piece:
    return Piece(first * PAGE_BYTES, end * PAGE_BYTES, state, memoryview(b""))


def dumped(*pieces: Piece) -> list[str]:
    return "".join(hexdump.hexdump(pieces)).splitlines()


def strings(*pieces: Piece) -> list[str]:
    return "".join(hexdump.strings(pieces)).splitlines()


def cut(content: bytes, *places: int) -> Iterator[Piece]:
    for start, end in zip((0, *places), (*places, len(content))):
        yield data(start, content[start:end])


# ---- hexadecimal ----


def test_rows_holes_and_what_is_left_out() -> None:
    page = b"opcache\0".ljust(2 * PAGE_BYTES, b"\xff")
    assert dumped(data(0, page), absent(2, 25), absent(25, 32, SWAPPED), absent(32, 33, SWAPPED), absent(33, 34)) == [
        "00000000  6f 70 63 61 63 68 65 00  ff ff ff ff ff ff ff ff  |opcache.........|",
        "00000010  ff ff ff ff ff ff ff ff  ff ff ff ff ff ff ff ff  |................|",
        "*",
        "* hole, 23 pages",
        "* swapped, 8 pages",
        "* hole, 1 page",
        "00022000",
    ]


def test_offsets_are_the_regions() -> None:
    assert dumped(
        data((5 << 32) + 5, b"abcdefghijklmnop"), Piece((5 << 32) + 21, (5 << 32) + 99, HOLE, memoryview(b""))
    ) == [
        "500000005  61 62 63 64 65 66 67 68  69 6a 6b                 |abcdefghijk|",
        "500000010  6c 6d 6e 6f 70                                    |lmnop|",
        "* hole, 78 bytes",
        "500000063",
    ]


def test_a_row_after_a_hole_is_never_like_the_one_before() -> None:
    zeros = bytes(PAGE_BYTES)
    row = "00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|"
    lines = [f"00000000  {row}", "*", "* hole, 1 page", f"00002000  {row}", "*", "00003000"]
    assert dumped(data(0, zeros), absent(1, 2), data(2 * PAGE_BYTES, zeros)) == lines


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4096, 70_001])
def test_as_od_shows_it(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is everywhere, and shows the same as hexdump -C with other blanks and brackets."""
    monkeypatch.setattr(hexdump, "BLOCK_BYTES", 1024)
    rng = random.Random(size)
    content = b"".join(rng.choice([bytes(16), rng.randbytes(16), b"0123456789abcdef"]) for _ in range(size))[:size]
    done = subprocess.run(["od", "-A", "x", "-t", "x1z"], input=content, capture_output=True, check=True)
    theirs = [re.sub(r"  >(.*)<$", r"  |\1|", f"00{line}") for line in done.stdout.decode().splitlines()]
    places = [place for place in (4096, 8192, 65536) if place < size]
    ours = dumped(*cut(content, *places))
    assert [line.split() for line in ours] == [line.removeprefix("00*").split() or ["*"] for line in theirs]


# ---- text ----


def test_runs_of_text() -> None:
    content = b"\0abc\0four\xfffive5\n tab\there\x7f" + "gründe".encode() + b"\0last"
    assert strings(data(0x10, content), absent(1, 2), data(2 * PAGE_BYTES, b"more")) == [
        "      15  four",
        "      1a  five5",
        "      20   tab\\x09here",
        "      32  last",
        "    2000  more",
    ]


def test_a_run_goes_on_where_the_data_does_and_ends_at_a_hole() -> None:
    text = b"/srv/www/index.php"
    for place in range(1, len(text)):
        assert strings(*cut(text, place)) == ["       0  /srv/www/index.php"]
    pieces = [data(PAGE_BYTES - 2, b"ab"), absent(1, 2), data(2 * PAGE_BYTES, b"cd")]
    assert strings(*pieces) == []
    assert strings(data(PAGE_BYTES - 4, b"left"), absent(1, 2, SWAPPED), data(2 * PAGE_BYTES, b"right")) == [
        "     ffc  left",
        "    2000  right",
    ]


def test_a_long_run_takes_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hexdump, "LONGEST_BYTES", 10)
    lines = strings(*cut(b"0123456789" * 5 + b"\0", 7, 33))
    assert "".join(line[10:] for line in lines) == "0123456789" * 5
    assert all(len(line) <= 20 for line in lines)
    assert [int(line[:8], 16) for line in lines] == sorted({int(line[:8], 16) for line in lines})


@pytest.mark.needs("strings")
def test_as_strings_finds_them(tmp_path: Path) -> None:
    rng = random.Random(7)
    content = b"".join(rng.choice([rng.randbytes(9), b"text %d here" % rng.randrange(10**6)]) for _ in range(5000))
    content = content.replace(b"\t", b"\0")
    (tmp_path / "content").write_bytes(content)
    command = [str(find_program("strings")), "-a", "-t", "x", str(tmp_path / "content")]
    done = subprocess.run(command, capture_output=True, check=True)
    theirs = [line.split(maxsplit=1) for line in done.stdout.decode().splitlines()]
    ours = [line.split(maxsplit=1) for line in strings(*cut(content, 4096, 8192, 40960))]
    assert ours == theirs
    assert len(ours) > 1000


@pytest.mark.parametrize("show", [hexdump.hexdump, hexdump.strings])
def test_all_bytes_come_out_harmless(show: Callable[..., Iterator[str]]) -> None:
    text = "".join(show([data(0, bytes(range(256)) * 16)]))
    assert all(line.isprintable() and line.isascii() for line in text.split("\n"))


@pytest.mark.parametrize(("show", "seconds"), [(hexdump.hexdump, 20.0), (hexdump.strings, 10.0)])
@pytest.mark.parametrize("content", [b"\0", b"x", b"abc\0", bytes(range(256))])
def test_no_content_takes_long(show: Callable[..., Iterator[str]], seconds: float, content: bytes) -> None:
    """2 MiB, in a second at most; not in the square of it."""
    whole = content * ((2 << 20) // len(content))
    began = time.monotonic()
    for _ in show(cut(whole, 1 << 19, 3 << 19)):
        pass
    assert time.monotonic() - began < seconds


# ---- which regions there are ----


def test_choices() -> None:
    known = [
        Known(make_region(1047, before=23, mappers=[811, 812, 813, 814]), "opcache?", "opcache?"),
        Known(
            make_region(9, id="0:1/9/0000000a", before=7, name="/memfd:\x1b[2Jx", kind="memfd", size_bytes=None),
            None,
            "/memfd",
        ),
    ]
    assert hexdump.choices(known).splitlines() == [
        "id                 kind   size     allocated  name                 mapped by",
        "0:1/1047/3a9c21f0  anon   256 MiB  92.0 KiB   /dev/zero  opcache?  811 812 813 …",
        "0:1/9/0000000a     memfd  ?        28.0 KiB   /memfd:\\x1b[2Jx",
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_strangers(text: Any) -> None:
    lines = hexdump.choices([Known(make_region(9, name=text), None, text)]).split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) < 120
