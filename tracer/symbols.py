"""The functions of a program's file, by where they are in it: what its symbol tables say, with nothing guessed."""

from __future__ import annotations

import bisect
import contextlib
import struct
from array import array
from pathlib import Path
from typing import IO, Any, NamedTuple

from elftools.elf.elffile import ELFFile

DEBUG_FILES = Path("/usr/lib/debug/.build-id")
MAX_HEADERS = 1 << 16
MAX_TABLE_BYTES = 32 << 20
MAX_NAME_BYTES = 1024  # of C++ names some have more, which tell no more
FUNCTIONS = (2, 10)  # STT_FUNC and STT_GNU_IFUNC, the low half of st_info
GLOBAL = 1  # STB_GLOBAL, its high half


class Segment(NamedTuple):
    """PT_LOAD: what of the file is where in memory, but for the base."""

    offset_bytes: int
    size_bytes: int
    address: int


Function = tuple[int, bool, int, int]
"""Start, whether it is global, which of several names for one place is preferred, end, and where its name begins."""


class Symbols:
    """Of one ELF file. Of one that is none, or that somebody has made up to do harm, nothing is known."""

    def __init__(self, file: IO[bytes], debug_files: Path = DEBUG_FILES) -> None:
        """debug_files: by build ID, the symbols that a distribution has stripped off its programs."""
        self._segments: list[Segment] = []
        self._starts, self._ends, self._names = array("Q"), array("Q"), array("Q")
        self._strings = b""
        with contextlib.suppress(Exception):  # what a stranger has written may raise anything
            elf = _elf(file)
            self._segments = [
                Segment(segment["p_offset"], segment["p_filesz"], segment["p_vaddr"])
                for segment in elf.iter_segments()
                if segment["p_type"] == "PT_LOAD"
            ]
            functions = self._functions(elf, ".symtab")
            if not functions:  # it is stripped: of what is left, and of what was taken away
                functions = self._functions(elf, ".dynsym")
                with contextlib.suppress(Exception), (debug_files / _debug_file(elf)).open("rb") as stripped:
                    functions += self._functions(_elf(stripped), ".symtab")
            functions.sort()
            starts, _, ends, names = zip(*functions)
            self._starts, self._ends, self._names = array("Q", starts), array("Q", ends), array("Q", names)

    def address(self, offset_bytes: int) -> int:
        """Where this part of the file is in memory, but for the base: what addr2line and objdump call an address."""
        for segment in self._segments:
            if segment.offset_bytes <= offset_bytes < segment.offset_bytes + segment.size_bytes:
                return offset_bytes - segment.offset_bytes + segment.address
        return offset_bytes

    def name(self, address: int) -> str | None:
        """The function that an address is in; None: in none that has a name."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._ends[number]:
            return None
        start = self._names[number]
        raw = self._strings[start : start + MAX_NAME_BYTES]
        return raw.split(b"\0", 1)[0].decode(errors="backslashreplace")

    def _functions(self, elf: ELFFile, section: str) -> list[Function]:
        """One by one, pyelftools takes 40 µs a symbol, and node has 100,000: so it finds the table, and no more."""
        table = elf.get_section_by_name(section)
        if not table:
            return []
        found, base = [], len(self._strings)
        wide = elf.elfclass == 64
        for symbol in struct.iter_unpack("<IBBHQQ" if wide else "<IIIBBH", _data(table)):
            name, info, _, place, start, size = symbol if wide else (symbol[0], *symbol[3:], *symbol[1:3])
            if place and size and info & 15 in FUNCTIONS:
                found.append((start, info >> 4 == GLOBAL, start + size, base + name))
        self._strings += _data(elf.get_section(table["sh_link"]))
        return found


def _elf(file: IO[bytes]) -> ELFFile:
    elf = ELFFile(file)
    if max(elf.num_sections(), elf.num_segments()) > MAX_HEADERS:
        raise ValueError("more headers than a program has")
    return elf


def _data(section: Any) -> bytes:
    if section["sh_size"] > MAX_TABLE_BYTES:
        raise ValueError("a larger table than a program has")
    section.stream.seek(section["sh_offset"])  # as it is: what is compressed may become too large
    return bytes(section.stream.read(section["sh_size"]))


def _debug_file(elf: ELFFile) -> str:
    """Its path among the debug files."""
    note = next(iter(elf.get_section_by_name(".note.gnu.build-id").iter_notes()))
    build_id = str(note["n_desc"])
    return f"{build_id[:2]}/{build_id[2:]}.debug"
