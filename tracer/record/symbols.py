"""Names functions of a program by address, from its symbol tables only."""

from __future__ import annotations

import bisect
import os
from array import array
from pathlib import Path
from typing import NamedTuple

from tracer.proc.shmem import open_promptly
from tracer.record import elf
from tracer.record.elf import ADDRESS_END, MAX_SYMBOLS, STB_GLOBAL, STT_FUNC, STT_GNU_IFUNC, Elf, SymbolTable

DEBUG_FILES = Path("/usr/lib/debug/.build-id")
MAX_NAME_BYTES = 1024  # some C++ names are longer, but say no more


class Function(NamedTuple):
    """A function of a program."""

    name: str
    address: int
    """Where it begins, relative to the base."""


class Symbols:
    """The functions of one program."""

    def __init__(self, program: Elf, debug_files: Path = DEBUG_FILES) -> None:
        """debug_files: directory of separate debug files by build ID, with symbols that a distribution has stripped."""
        self._tables = [_Functions(program.full)]
        if not self._tables[0]:  # stripped: use the separate debug file, and the exported symbols
            self._tables = [_Functions(_debug_table(program, debug_files)), _Functions(program.exported)]

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        return sum(table.size_bytes for table in self._tables)

    def function(self, address: int) -> Function | None:
        """The function at an address of the program's own; None: no named function is there."""
        return next(filter(None, (table.function(address) for table in self._tables)), None)


class _Functions:
    """The functions of one symbol table, sorted by address."""

    def __init__(self, table: SymbolTable | None) -> None:
        self._starts, self._ends, self._names = array("Q"), array("Q"), array("I")
        self._strings = table.strings if table else b""
        if table:
            names, infos, sections, starts, sizes_bytes = table.columns()
            # Integers sort twice as fast as tuples. Of several names at one address the last is used, a global one if
            # any.
            found = sorted(
                (start << 1 | (info >> 4 == STB_GLOBAL)) * MAX_SYMBOLS + number
                for number, (info, section, start, size_bytes) in enumerate(zip(infos, sections, starts, sizes_bytes))
                if section
                and size_bytes
                and info & 15 in (STT_FUNC, STT_GNU_IFUNC)
                and start + size_bytes < ADDRESS_END
            )
            numbers = [each % MAX_SYMBOLS for each in found]
            self._starts.extend(starts[number] for number in numbers)
            self._ends.extend(starts[number] + sizes_bytes[number] for number in numbers)
            self._names.extend(names[number] for number in numbers)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def size_bytes(self) -> int:
        return len(self._strings) + 20 * len(self)

    def function(self, address: int) -> Function | None:
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._ends[number]:
            return None
        start = self._names[number]
        raw = self._strings[start : start + MAX_NAME_BYTES]
        name = raw.split(b"\0", 1)[0].decode(errors="backslashreplace")
        return Function(name, self._starts[number]) if name else None


def _debug_table(program: Elf, debug_files: Path) -> SymbolTable | None:
    """The symbol table of the separate debug file; None: there is no readable one."""
    try:
        fd = open_promptly(debug_files / program.build_id[:2] / f"{program.build_id[2:]}.debug")
    except OSError:
        return None
    try:
        found = elf.read(fd)
        return found.full if found else None
    except OSError:
        return None
    finally:
        os.close(fd)
