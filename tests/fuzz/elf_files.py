"""Programs that strangers wrote, through what reads their symbols for --label and for --stacks."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.captures import INTEGERS
from tests.fuzz.harness import Fuzzer, Given
from tracer import labels
from tracer.errors import ShmtraceError
from tracer.record import elf, label_sites, symbols

FILE = "program"
PROGRAMS = [Path(shutil.which(name) or name).resolve() for name in ("sleep", "true", "bash")]
NUMBERS = [0, 1, 7, 0xFF, 0xFFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, 2**63 - 1, 2**64 - 1]
SYMBOLS = ["malloc", "main", "environ", "no_such_symbol", "_init"]
HEADER, SEGMENT, SECTION = 64, 56, 64  # sizes of ELF64's headers
SEGMENT_FIELDS = [(0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (40, 8)]  # offset, size
SECTION_FIELDS = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (56, 8)]

_which, _numbers = st.integers(0, 40), st.sampled_from(NUMBERS)
changes = st.one_of(
    st.tuples(st.just("header"), st.integers(0, HEADER - 1), st.integers(0, 255)),
    st.tuples(st.just("segment"), _which, st.sampled_from(SEGMENT_FIELDS), _numbers),
    st.tuples(st.just("section"), _which, st.sampled_from(SECTION_FIELDS), _numbers),
    st.tuples(st.just("link"), _which, _which),  # of one section, to another
    st.tuples(st.just("inside"), _which, st.integers(0, INTEGERS), st.binary(min_size=1, max_size=32).map(bytes.hex)),
    st.tuples(st.just("set"), st.integers(0, INTEGERS), st.integers(0, 255)),
    st.tuples(st.just("cut off"), st.integers(0, INTEGERS)),
    st.tuples(st.just("grow"), st.sampled_from([1 << 20, 1 << 40])),
)
inputs = st.fixed_dictionaries(
    {
        "program": st.sampled_from([path.name for path in PROGRAMS]),
        "changes": st.lists(changes, min_size=1, max_size=8),
        "reader": st.sampled_from(["label", "stacks"]),
        "symbol": st.sampled_from(SYMBOLS),
    }
)


def change(program: bytearray, what: str, *how: Any) -> None:
    """Raises struct.error or ZeroDivisionError where an earlier one has left nothing of it."""
    segments, sections = struct.unpack_from("<QQ", program, 32)
    segment_count, section_count = (struct.unpack_from("<H", program, at)[0] for at in (56, 60))
    if what == "header":
        program[how[0]] = how[1]
    elif what in ("segment", "section"):
        start, each, count = (
            (segments, SEGMENT, segment_count) if what == "segment" else (sections, SECTION, section_count)
        )
        at, size = how[1]
        mask = (1 << 8 * size) - 1
        struct.pack_into("<Q" if size == 8 else "<I", program, start + how[0] % count * each + at, how[2] & mask)
    elif what == "link":
        struct.pack_into("<I", program, sections + how[0] % section_count * SECTION + 40, how[1] % section_count)
    elif what == "inside":
        at, size = struct.unpack_from("<QQ", program, sections + how[0] % section_count * SECTION + 24)
        raw = bytes.fromhex(how[2])
        place = at + how[1] % size
        program[place : place + len(raw)] = raw[: len(program) - place]
    elif what == "set":
        program[how[0] % len(program)] = how[1]
    elif what == "cut off":
        del program[how[0] % len(program) :]


def write(given: Given, directory: Path) -> None:
    (path,) = (path for path in PROGRAMS if path.name == given["program"])
    program = bytearray(path.read_bytes())
    size_bytes = 0
    for each in given["changes"]:
        try:
            change(program, *each)
        except (struct.error, ZeroDivisionError, IndexError):
            continue
        size_bytes = each[1] if each[0] == "grow" else size_bytes
    with (directory / FILE).open("wb") as file:
        file.write(program)
        file.truncate(max(size_bytes, len(program)))  # the rest is a hole


def give(given: Given) -> None:
    source = labels.parse("php:file" if given["symbol"] == "main" else f"{FILE}:{given['symbol']}")
    fd = os.open(FILE, os.O_RDONLY)
    try:
        if given["reader"] == "label":
            found = label_sites._read(fd, source)
            assert isinstance(found, (str, label_sites._Binary))
            return
        program = elf.read(fd)
    except OSError as error:
        raise ShmtraceError(f"it cannot be read ({error.strerror})") from None
    finally:
        os.close(fd)
    if program:
        functions = symbols.Symbols(program, Path("debug"))
        for offset_bytes in (0, 0x1000, 0x7FFF_FFFF, 2**63):
            function = functions.function(program.address(offset_bytes))
            assert function is None or len(function.name) <= 4 * symbols.MAX_NAME_BYTES


FUZZER = Fuzzer("elf_files", inputs, give, 80, write)
