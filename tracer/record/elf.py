"""Reads ELF files: how a program is laid out in memory, and its symbol tables.

A file may be hostile. Reading is bounded in bytes and time, and what does not fit into the file is ignored. Numbers
from the file are only used for lookups.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import struct
import sys
import time
from array import array
from collections.abc import Collection, Iterable
from typing import NamedTuple

PATIENCE_S = 1.0
MAX_HEADERS = 4096
MAX_LOADS = 64  # a program has about five
MAX_SYMBOLS = 1 << 18  # per table, which takes a second; node has 110,000
MAX_STRINGS_BYTES = 32 << 20
MAX_NOTES_BYTES = MAX_DYNAMIC_BYTES = 1 << 16
MAX_BUILD_ID_BYTES = 64
CHUNK_BYTES = 1 << 20
ADDRESS_END = 1 << 64

# names of <elf.h>
EI_NIDENT = 16
PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
PF_X = 1
SHT_SYMTAB, SHT_DYNSYM = 2, 11
SHN_UNDEF, SHN_LORESERVE = 0, 0xFF00
STT_FUNC, STT_TLS, STT_GNU_IFUNC = 2, 6, 10
STB_LOCAL, STB_GLOBAL = 0, 1
NT_GNU_BUILD_ID = 3
DT_NULL, DT_STRTAB, DT_SYMTAB, DT_STRSZ = 0, 5, 6, 10
# tables that linkers put behind .dynsym: DT_HASH, STRTAB, RELA, REL, JMPREL, GNU_HASH, VERSYM, VERDEF, VERNEED
DT_TABLES = (4, 5, 7, 17, 23, 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE)


class FileClass(NamedTuple):
    """The structures of files of one class, 32 or 64 bits."""

    wide: bool
    header: struct.Struct  # after e_ident
    segment: struct.Struct
    section: struct.Struct
    dynamic: struct.Struct
    symbol_bytes: int


_LAYOUTS = {
    1: FileClass(
        False,
        header=struct.Struct("=HHIIIIIHHHHHH"),
        segment=struct.Struct("=IIIIIIII"),
        section=struct.Struct("=IIIIIIIIII"),
        dynamic=struct.Struct("=II"),
        symbol_bytes=16,
    ),
    2: FileClass(
        True,
        header=struct.Struct("=HHIQQQIHHHHHH"),
        segment=struct.Struct("=IIQQQQQQ"),
        section=struct.Struct("=IIQQQQIIQQ"),
        dynamic=struct.Struct("=QQ"),
        symbol_bytes=24,
    ),
}
"""By EI_CLASS."""
NOTE = struct.Struct("=III")
_BYTE_ORDER = 1 if sys.byteorder == "little" else 2


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset_bytes: int
    address: int
    physical_address: int
    size_bytes: int
    """In the file."""
    memory_bytes: int
    alignment: int


class Load(NamedTuple):
    """A PT_LOAD segment: which part of the file is at which address, relative to the base."""

    offset_bytes: int
    size_bytes: int
    address: int
    executable: bool


class Symbol(NamedTuple):
    """A defined symbol in memory that all threads share."""

    address: int
    """Relative to the base."""
    is_function: bool


class Columns(NamedTuple):
    """The columns of a symbol table, each indexed by symbol number."""

    names: array[int]
    """Offsets into the strings."""
    infos: bytes
    sections: array[int]
    values: array[int]
    sizes_bytes: array[int]


class SymbolTable(NamedTuple):
    """A symbol table as stored in the file."""

    layout: FileClass
    symbols: bytes
    strings: bytes

    def columns(self) -> Columns:
        """All columns, by slicing: unpacking symbols one by one takes three times as long."""
        halves, words = array("H", self.symbols), array("I", self.symbols)
        if self.layout.wide:
            longs = array("Q", self.symbols)
            return Columns(words[0::6], self.symbols[4::24], halves[3::12], longs[1::3], longs[2::3])
        return Columns(words[0::4], self.symbols[12::16], halves[7::8], words[1::4], words[2::4])

    def find(self, names: Collection[str]) -> dict[str, Symbol]:
        """Symbols by name. Of several with the same name, one that is not local to an object file."""
        wanted = {name.encode() + b"\0": name for name in names}
        starts, strings, columns = tuple(wanted), self.strings, self.columns()
        found: dict[str, Symbol] = {}
        local: dict[str, Symbol] = {}
        for number, at in enumerate(columns.names):
            if strings.startswith(starts, at):
                info, section = columns.infos[number], columns.sections[number]
                if SHN_UNDEF < section < SHN_LORESERVE and info & 15 != STT_TLS:
                    name = next(name for raw, name in wanted.items() if strings.startswith(raw, at))
                    symbol = Symbol(columns.values[number], info & 15 == STT_FUNC)
                    (found if info >> 4 != STB_LOCAL else local).setdefault(name, symbol)
        return {**local, **found}


class Elf(NamedTuple):
    """What is needed of one file. A table is None if the file has none that can be read."""

    layout: FileClass
    machine: int
    loads: tuple[Load, ...]
    exported: SymbolTable | None
    """.dynsym"""
    full: SymbolTable | None
    """.symtab, unless it was stripped"""
    build_id: str
    """In hexadecimal; empty: none."""

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        return sum(len(table.symbols) + len(table.strings) for table in (self.exported, self.full) if table)

    @property
    def is_native(self) -> bool:
        """Whether the file is for the architecture and class of this interpreter."""
        return (self.layout, self.machine) == _native()

    def without_tables(self) -> Elf:
        """A copy without symbol tables, to save memory."""
        return self._replace(exported=None, full=None)

    def load(self, offset_bytes: int) -> Load | None:
        """The segment that has an offset in the file."""
        return next((load for load in self.loads if 0 <= offset_bytes - load.offset_bytes < load.size_bytes), None)

    def address(self, offset_bytes: int) -> int:
        """The address of an offset in the file, relative to the base: what addr2line and objdump call an address."""
        load = self.load(offset_bytes)
        return offset_bytes - load.offset_bytes + load.address if load else offset_bytes

    def code_offset_bytes(self, address: int) -> int | None:
        """The offset in the file of the code at an address; None: no code is loaded there."""
        return _offset_bytes((load for load in self.loads if load.executable), address)

    def find(self, names: Collection[str]) -> dict[str, Symbol]:
        """Symbols by name: from the exported ones, or else from all that were not stripped."""
        found: dict[str, Symbol] = {}
        for table in (self.exported, self.full):
            missing = set(names) - found.keys()
            if table and missing:
                found.update(table.find(missing))
        return found


def read(fd: int, patience_s: float = PATIENCE_S) -> Elf | None:
    """Read an open file; of each symbol table at most MAX_SYMBOLS. None: it is no ELF file of this byte order.

    Raises OSError where the file cannot be read, and TimeoutError where that takes longer than patience_s. Nothing
    else.
    """
    try:
        return _elf(_File(fd, time.monotonic() + patience_s))
    except ValueError:
        return None


class _File:
    """A file, read up to its end and up to a deadline."""

    def __init__(self, fd: int, until_s: float) -> None:
        self._fd = fd
        self._until_s = until_s
        self._size_bytes = os.fstat(fd).st_size

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Raises ValueError where the file has no such part, and TimeoutError after the deadline."""
        if offset_bytes + size_bytes > self._size_bytes:
            raise ValueError("beyond the end of the file")
        found = bytearray()
        while len(found) < size_bytes:
            if time.monotonic() > self._until_s:
                raise TimeoutError(errno.ETIMEDOUT, "it takes too long")
            chunk = os.pread(self._fd, min(size_bytes - len(found), CHUNK_BYTES), offset_bytes + len(found))
            if not chunk:
                raise ValueError("cut off meanwhile")
            found += chunk
        return bytes(found)

    def rows(self, row: struct.Struct, offset_bytes: int, size_bytes: int) -> list[tuple[int, ...]]:
        return list(row.iter_unpack(self.read(offset_bytes, size_bytes // row.size * row.size)))

    def table(
        self, layout: FileClass, offset_bytes: int, size_bytes: int, strings_offset_bytes: int, strings_bytes: int
    ) -> SymbolTable:
        row_bytes = layout.symbol_bytes
        return SymbolTable(
            layout,
            self.read(offset_bytes, min(size_bytes // row_bytes, MAX_SYMBOLS) * row_bytes),
            self.read(strings_offset_bytes, min(strings_bytes, MAX_STRINGS_BYTES)),
        )


def _elf(file: _File) -> Elf:
    """Raises ValueError where the file is no ELF file."""
    ident = file.read(0, EI_NIDENT)
    layout = _LAYOUTS.get(ident[4])
    if ident[:4] != b"\x7fELF" or not layout or ident[5] != _BYTE_ORDER:
        raise ValueError("no ELF file of this host")
    header = layout.header.unpack(file.read(EI_NIDENT, layout.header.size))
    _, machine, _, _, segments_at, sections_at, _, _, segment_bytes, nr_segments, section_bytes, nr_sections, _ = header
    if nr_segments and segment_bytes != layout.segment.size:
        raise ValueError("its segments are none that are known")
    rows = file.rows(layout.segment, segments_at, min(nr_segments, MAX_HEADERS) * layout.segment.size)
    segments = [_Segment._make(row if layout.wide else (row[0], row[6], *row[1:6], row[7])) for row in rows]
    loads = tuple(
        Load(segment.offset_bytes, segment.size_bytes, segment.address, bool(segment.flags & PF_X))
        for segment in segments
        if segment.kind == PT_LOAD
        if segment.offset_bytes + segment.size_bytes < ADDRESS_END
        and segment.address + segment.size_bytes < ADDRESS_END
    )[:MAX_LOADS]
    tables = {}
    if section_bytes == layout.section.size:
        with contextlib.suppress(ValueError):
            tables = _tables(file, layout, sections_at, min(nr_sections, MAX_HEADERS))
    exported = tables.get(SHT_DYNSYM) or _dynamic(file, layout, segments, loads)
    return Elf(layout, machine, loads, exported, tables.get(SHT_SYMTAB), _build_id(file, segments))


def _tables(file: _File, layout: FileClass, sections_at: int, nr_sections: int) -> dict[int, SymbolTable]:
    """The first symbol table of each kind. Raises ValueError where there are no section headers."""
    tables: dict[int, SymbolTable] = {}
    sections = file.rows(layout.section, sections_at, nr_sections * layout.section.size)
    for _, kind, _, _, at, size_bytes, link, _, _, row_bytes in sections:
        known = kind in (SHT_SYMTAB, SHT_DYNSYM) and row_bytes == layout.symbol_bytes and link < len(sections)
        if known and kind not in tables:
            with contextlib.suppress(ValueError):
                tables[kind] = file.table(layout, at, size_bytes, *sections[link][4:6])
    return tables


def _dynamic(file: _File, layout: FileClass, segments: Iterable[_Segment], loads: Iterable[Load]) -> SymbolTable | None:
    """.dynsym as the dynamic loader finds it, without section headers.

    Its length is not stored: it ends where the next table begins.
    """
    dynamic = next((segment for segment in segments if segment.kind == PT_DYNAMIC), None)
    if not dynamic:
        return None
    tags: dict[int, int] = {}
    with contextlib.suppress(ValueError):
        for tag, value in file.rows(layout.dynamic, dynamic.offset_bytes, min(dynamic.size_bytes, MAX_DYNAMIC_BYTES)):
            if tag == DT_NULL:
                break
            tags[tag] = value
        start = tags.get(DT_SYMTAB, ADDRESS_END)
        end = min((tags[tag] for tag in DT_TABLES if tags.get(tag, 0) > start), default=0)
        symbols_at, strings_at = _offset_bytes(loads, start), _offset_bytes(loads, tags.get(DT_STRTAB, ADDRESS_END))
        if end and symbols_at is not None and strings_at is not None:
            return file.table(layout, symbols_at, end - start, strings_at, tags.get(DT_STRSZ, 0))
    return None


def _offset_bytes(loads: Iterable[Load], address: int) -> int | None:
    """The offset in the file of what is loaded at an address; None: nothing is."""
    for load in loads:
        if load.address <= address < load.address + load.size_bytes:
            return address - load.address + load.offset_bytes
    return None


def _build_id(file: _File, segments: Iterable[_Segment]) -> str:
    for segment in segments:
        if segment.kind != PT_NOTE:
            continue
        with contextlib.suppress(ValueError):
            notes, at = file.read(segment.offset_bytes, min(segment.size_bytes, MAX_NOTES_BYTES)), 0
            while at + NOTE.size <= len(notes):
                name_bytes, id_bytes, kind = NOTE.unpack_from(notes, at)
                name_at = at + NOTE.size
                id_at = _aligned(name_at + name_bytes, segment.alignment)
                if kind == NT_GNU_BUILD_ID and notes[name_at : name_at + name_bytes] == b"GNU\0":
                    return notes[id_at : id_at + min(id_bytes, MAX_BUILD_ID_BYTES)].hex()
                at = _aligned(id_at + id_bytes, segment.alignment)
    return ""


def _aligned(offset_bytes: int, alignment: int) -> int:
    """Notes are aligned to 4 bytes, or to 8 in segments aligned to 8."""
    step = 8 if alignment == 8 else 4
    return -(-offset_bytes // step) * step


@functools.lru_cache(maxsize=1)
def _native() -> tuple[FileClass, int]:
    with open("/proc/self/exe", "rb") as file:
        elf = read(file.fileno())
    if not elf:
        raise OSError(errno.ENOEXEC, "this interpreter is no ELF file")
    return elf.layout, elf.machine
