"""Where a process says what it is doing: C strings in its memory, found by the symbols that its program exports."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from tracer import wire
from tracer.errors import ShmtraceError
from tracer.procfs import PAGE_BYTES, Proc

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import Symbol

SPELLING = re.compile(r"(?P<binary>[^:]+):(?P<in_place>&?)(?P<symbol>[\w.$@]+)(?:\+(?P<offset>0x[0-9a-fA-F]+|\d+))?")
IN_BINARY = (wire.TEXT_IN_PLACE, wire.TEXT_POINTED_TO)
POINTER = struct.Struct("=Q")
KINDS = ["script", "request", "file", "query", "label"]
"""Of texts, as --by takes them; label is the most telling one of any source."""


class Text(NamedTuple):
    """One of the texts of a label."""

    column: str
    """of the capture's table label"""
    how: int
    """wire.TEXT_…"""
    offset: int = 0
    """from the symbol, in bytes"""
    is_path: bool = False
    """begins with a slash, or the symbol is not what it is taken for"""
    after: str = ""
    """what goes before it, where it is not empty, in a column that has one already"""


class Source(NamedTuple):
    """A kind of label."""

    name: str
    """as asked for"""
    binary: str
    """name of the file that has the symbol, a pattern; or its path"""
    symbol: str
    texts: tuple[Text, ...]
    functions: Mapping[str, str] = {}
    """where uprobes hang, by program"""
    unless: str = ""
    """a symbol that tells of a build that keeps these texts elsewhere"""
    told_by: str = ""
    """a symbol: PHP's file handles name their file by a zend_string, as since 8.1, where it is there"""

    @property
    def column(self) -> str:
        """Of the capture's table label: its most telling text."""
        return self.texts[-1 if self.functions else 0].column

    def label(self, found: Sequence[str | None]) -> dict[str, str | None]:
        """By column."""
        label: dict[str, str | None] = {}
        for text, value in zip(self.texts, found):
            if text.column not in label:
                label[text.column] = value
            elif value:
                label[text.column] = f"{label[text.column] or ''}{text.after}{value}"
        return label


# main/SAPI.h: server_context, then request_info: request_method, query_string, cookie_data, content_length,
# path_translated, request_uri; a word each, in PHP 7.4 to 8.4. Every process is checked before it is believed.
_SCRIPT = Text("script", wire.TEXT_POINTED_TO, 40, is_path=True)
_REQUEST = Text("request", wire.TEXT_POINTED_TO, 48), Text("request", wire.TEXT_POINTED_TO, 16, after="?")
_PHP = r"(lib)?php.*|mod_php.*"
READY = {
    source.name: source
    for source in (
        Source("php", _PHP, "sapi_globals", (_SCRIPT, *_REQUEST), unless="sapi_globals_offset"),
        Source(
            "php:file",
            _PHP,
            "sapi_globals",
            (_SCRIPT, *_REQUEST, Text("file", wire.TEXT_NOTED)),
            functions={"php_compiling": "compile_file", "php_request_over": "php_request_shutdown"},
            unless="sapi_globals_offset",
            told_by="zend_stream_init_filename_ex",
        ),
        Source(
            "postgres",
            "postgres",
            "debug_query_string",
            (Text("query", wire.TEXT_POINTED_TO), Text("title", wire.TEXT_TITLE)),
        ),
    )
}


def parse(name: str) -> Source:
    """Raises ValueError for what is no source."""
    if name in READY:
        return READY[name]
    match = SPELLING.fullmatch(name)
    if not match:
        raise ValueError(f"{name[:80]!r} is no label: write {', '.join(READY)} or BINARY:SYMBOL+OFFSET")
    how = wire.TEXT_IN_PLACE if match["in_place"] else wire.TEXT_POINTED_TO
    binary = match["binary"] if "/" in match["binary"] else re.escape(match["binary"])
    return Source(name, binary, match["symbol"], (Text("text", how, int(match["offset"] or "0", 0)),))


def columns(name: str) -> list[str]:
    """Which texts the labels of a source have, by column of the capture's table label: the most telling first."""
    source = parse(name)
    return list(dict.fromkeys([source.column, *(text.column for text in source.texts)]))


def kinds(name: str) -> list[str]:
    """Those of KINDS that a source tells apart: the most telling first."""
    return [column for column in columns(name) if column in KINDS] or ["label"]


class Site(NamedTuple):
    """A source in one process."""

    source: Source
    addresses: tuple[int, ...]
    """of its texts; 0: that one has none"""
    binary: tuple[int, int]
    """(dev, ino)"""
    path: Path
    """to the binary, for as long as the process lives"""
    functions: Mapping[str, int]
    """offset in the file by program"""
    file_is_string: bool

    def pack(self) -> bytes:
        """As struct label of bpf/wire.h."""
        spare = [0] * (wire.MAX_TEXTS - len(self.addresses))
        hows = [text.how for text in self.source.texts]
        told = 0, *[0] * wire.MAX_TEXTS, b"", b"", wire.TEXT_NONE, self.file_is_string, 0, 0
        return wire.LABEL.pack(*self.addresses, *spare, *hows, *spare, *told)


class Sources:
    """One source, in whichever processes have it."""

    def __init__(self, proc: Proc, source: Source) -> None:
        self._proc = proc
        self._source = source
        self._known: dict[tuple[int, int, int], _Symbols | None] = {}  # by (dev, ino, st_mtime_ns)

    def find(self, tgid: int) -> Site | None:
        """Where a process has it; None: its program has no such binary, or it is gone.

        Raises ShmtraceError where the binary keeps its texts elsewhere, or has no such symbol.
        """
        source = self._source
        for mapping in self._proc.mappings(tgid):
            if not _is_binary(mapping.path, source):
                continue
            path = self._proc.map_file(tgid, mapping)
            symbols = self._symbols(path)
            if not symbols:
                continue
            if symbols.elsewhere:
                raise ShmtraceError(
                    f"{mapping.path} is a thread-safe build (ZTS), which keeps in each thread's own memory what "
                    f"--label {source.name} reads",
                    "trace without --label",
                )
            if symbols.address is None:
                raise ShmtraceError(f"{mapping.path} has no symbol {source.symbol}", "`nm -D` lists those it exports")
            for program, name in source.functions.items():
                if program not in symbols.functions:
                    raise ShmtraceError(f"{mapping.path} has no function {name}", "take --label php")
            base = mapping.start - symbols.segments.get(mapping.first_index, mapping.start) + symbols.address
            addresses = (base + text.offset if text.how in IN_BINARY else 0 for text in source.texts)
            identity = mapping.dev, mapping.ino
            return Site(source, tuple(addresses), identity, path, symbols.functions, symbols.told)
        return None

    def why_not(self, site: Site, tgid: int) -> str | None:
        """What in a process's memory, by way of /proc, is not as it would have to be; None: all is, or it is gone."""
        source = self._source
        try:
            memory = os.open(self._proc.root / str(tgid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            for text, address in zip(source.texts, site.addresses):
                if text.how not in IN_BINARY:
                    continue
                (pointer,) = POINTER.unpack(os.pread(memory, POINTER.size, address))
                if text.is_path and pointer and os.pread(memory, 1, pointer) != b"/":
                    return f"{source.symbol} of {tgid} does not have a path where --label {source.name} reads one"
        except OSError:  # EIO: nothing is mapped there
            return f"{source.symbol} of {tgid} is not where --label {source.name} reads it"
        except struct.error:  # no byte: it is gone
            pass
        finally:
            os.close(memory)
        return None

    def _symbols(self, path: Path) -> _Symbols | None:
        try:
            stat = path.stat()
            identity = stat.st_dev, stat.st_ino, stat.st_mtime_ns
            if identity not in self._known:
                self._known[identity] = _read(path, self._source)
        except OSError:  # the process is gone
            return None
        return self._known[identity]


class _Symbols(NamedTuple):
    """What is of interest in one binary."""

    address: int | None
    segments: Mapping[int, int]
    """address by page of the file, where segments begin: as the program was linked"""
    functions: Mapping[str, int]
    elsewhere: bool
    told: bool


def _is_binary(path: str, source: Source) -> bool:
    path = path.removesuffix(" (deleted)")
    if "/" in source.binary:
        return path == source.binary
    return re.fullmatch(source.binary, PurePosixPath(path).name) is not None


def _read(path: Path, source: Source) -> _Symbols | None:
    """None: it is no program."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
            symbol = _symbol(elf, source.symbol)
            functions = {}
            for program, name in source.functions.items():
                function = _symbol(elf, name)
                address = function["st_value"] if function else -1
                for load in loads:
                    if load["p_vaddr"] <= address < load["p_vaddr"] + load["p_filesz"]:
                        functions[program] = address - load["p_vaddr"] + load["p_offset"]
            return _Symbols(
                symbol["st_value"] if symbol else None,
                {load["p_offset"] // PAGE_BYTES: load["p_vaddr"] // PAGE_BYTES * PAGE_BYTES for load in loads},
                functions,
                elsewhere=bool(source.unless) and not symbol and _symbol(elf, source.unless) is not None,
                told=bool(source.told_by) and _symbol(elf, source.told_by) is not None,
            )
    except ELFError:
        return None


def _symbol(elf: ELFFile, name: str) -> Symbol | None:
    """An exported one, or else any that has not been stripped."""
    for section_name in (".gnu.hash", ".hash", ".dynsym", ".symtab"):
        section = elf.get_section_by_name(section_name)
        if section is None:
            continue
        if hasattr(section, "get_symbol_by_name"):
            found = next(iter(section.get_symbol_by_name(name) or ()), None)
        else:
            found = section.get_symbol(name)
        if found is not None and found["st_shndx"] != "SHN_UNDEF":
            return found
    return None
