"""Finds where a process keeps the texts of a label: C strings in its memory, by symbols that its program exports."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tracer import wire
from tracer.errors import ShmtraceError
from tracer.labels import USER_END, Source
from tracer.proc import procfs
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES, FileKey
from tracer.record import elf
from tracer.record.budget import Budget
from tracer.record.elf import Load

IN_BINARY = (wire.TEXT_IN_PLACE, wire.TEXT_POINTED_TO)

MAX_PATH_LENGTH = 120  # in warnings

MAX_TRIED = 16  # mapped files with a matching name, per process

MAX_KNOWN = 4096  # files whose symbols are remembered


class Site(NamedTuple):
    """Where one process keeps the texts of a source."""

    source: Source
    addresses: tuple[int, ...]
    """Of the texts; 0: the text has no address."""
    mapping: procfs.Mapping
    """The mapping of the binary."""
    binary: FileKey
    functions: Mapping[str, int]
    """Offset in the file, by BPF program."""
    file_is_string: bool

    def pack(self) -> bytes:
        """As struct label of bpf/wire.h."""
        spare = [0] * (wire.MAX_TEXTS - len(self.addresses))
        hows = [text.how for text in self.source.texts]
        told = 0, *[0] * wire.MAX_TEXTS, b"", b"", wire.TEXT_NONE, self.file_is_string, 0, 0
        return wire.LABEL.pack(*self.addresses, *spare, *hows, *spare, *told)


class Sources:
    """Finds one source in any process."""

    def __init__(self, proc: Proc, source: Source) -> None:
        self._proc = proc
        self._source = source
        self._known: dict[FileKey, _Binary | str] = {}
        self._budget = Budget()

    def find(self, tgid: int) -> Site | None:
        """Where a process keeps the texts. None: it has no program with a matching name, or is gone.

        Raises ShmtraceError where it has such a program, but none usable, with the reason for the first one.
        """
        problem = ""
        seen: set[tuple[int, int, int]] = set()
        for mapping in self._proc.mappings(tgid):
            part = mapping.dev, mapping.ino, mapping.first_index
            if part in seen or not _is_binary(mapping.path, self._source):
                continue
            if len(seen) == MAX_TRIED:
                break
            seen.add(part)
            found = self._look(tgid, mapping)
            if isinstance(found, Site):
                return found
            problem = problem or (found and f"{_cut(mapping.path)} {found}")
        if problem:
            raise ShmtraceError(problem)
        return None

    @contextlib.contextmanager
    def opened(self, site: Site, tgid: int) -> Iterator[Path]:
        """A path to the binary, while it is the file that was read. Raises OSError where it is another one."""
        fd = self._proc.open_mapped(tgid, site.mapping)
        try:
            if FileKey.of(fd) != site.binary:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), site.mapping.path)
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _look(self, tgid: int, mapping: procfs.Mapping) -> Site | str:
        """The site if this mapping is of the binary; else why not. Empty: it is no program, or gone."""
        try:
            fd = self._proc.open_mapped(tgid, mapping)
        except (FileNotFoundError, ProcessLookupError):
            return ""
        except OSError as error:
            return f"cannot be opened ({error.strerror})"
        try:
            key = FileKey.of(fd)
            if key not in self._known:
                if self._budget.used_up:
                    return "was not read, since other files took too long"
                if len(self._known) == MAX_KNOWN:
                    self._known.clear()
                with self._budget:
                    self._known[key] = _read(fd, self._source)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        finally:
            os.close(fd)
        binary = self._known[key]
        return binary if isinstance(binary, str) else self._site(mapping, key, binary)

    def _site(self, mapping: procfs.Mapping, key: FileKey, binary: _Binary) -> Site | str:
        load = next((load for load in binary.loads if load.offset_bytes // PAGE_BYTES == mapping.first_index), None)
        if not load:
            return "is not mapped like a running program"
        base = mapping.start - load.address // PAGE_BYTES * PAGE_BYTES + binary.address
        source = self._source
        addresses = tuple(base + text.offset if text.how in IN_BINARY else 0 for text in source.texts)
        if not all(0 < address < USER_END for text, address in zip(source.texts, addresses) if text.how in IN_BINARY):
            return f"has {source.symbol} at an address that no process has"
        return Site(source, addresses, mapping, key, binary.functions, binary.file_is_string)


class _Binary(NamedTuple):
    """What is needed of one file."""

    loads: tuple[Load, ...]
    address: int
    """Of the symbol, relative to the base."""
    functions: Mapping[str, int]
    """Offset in the file, by BPF program."""
    file_is_string: bool


def _cut(path: str) -> str:
    return path if len(path) <= MAX_PATH_LENGTH else f"…{path[-MAX_PATH_LENGTH:]}"


def _is_binary(path: str, source: Source) -> bool:
    path = path.removesuffix(" (deleted)")
    if "/" in source.binary:
        return path == source.binary
    return re.fullmatch(source.binary, PurePosixPath(path).name) is not None


def _read(fd: int, source: Source) -> _Binary | str:
    """What is needed of an open file, or else what it lacks. Empty: it is no program. Raises OSError."""
    program = elf.read(fd)
    if not program:
        return ""
    if not program.is_native:
        return "is for another architecture"
    wanted = source.symbol, source.unless, source.told_by, *source.functions.values()
    symbols = program.find(list(filter(None, wanted)))
    if source.symbol not in symbols:
        if source.unless in symbols:
            return f"is a thread-safe build (ZTS), whose threads have copies that --label {source.name} cannot read"
        return f"has no symbol {source.symbol}"
    functions = {}
    for hook, name in source.functions.items():
        function = symbols.get(name)
        offset_bytes = program.code_offset_bytes(function.address) if function and function.is_function else None
        if offset_bytes is None:
            return f"has no function {name}"
        functions[hook] = offset_bytes
    return _Binary(program.loads, symbols[source.symbol].address, functions, source.told_by in symbols)
