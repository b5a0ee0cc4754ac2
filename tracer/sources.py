"""Where a process says what it is doing: C strings in its memory, found by the symbols that its program exports."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tracer import elf, procfs, wire
from tracer.budget import Budget
from tracer.elf import Load
from tracer.errors import ShmtraceError
from tracer.procfs import PAGE_BYTES, FileKey, Proc

SPELLING = re.compile(
    r"(?P<binary>[^:]+):(?P<in_place>&?)(?P<symbol>[\w.$@]+)(?:\+(?P<offset>0x[0-9a-fA-F]{1,16}|\d{1,19}))?"
)
IN_BINARY = (wire.TEXT_IN_PLACE, wire.TEXT_POINTED_TO)
USER_END = 1 << 63
"""Beyond it no process has an address, on any machine."""
MAX_PATH_LENGTH = 120  # as warnings have it
MAX_TRIED = 16  # of the files by such a name that a process has mapped
MAX_KNOWN = 4096  # files by such a name, of which it is known what they have
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

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the programs that read it."""
        return f"NR_TEXTS={len(self.texts)}", *["LABEL_FILES"] * bool(self.functions)

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
    text = (match and match["offset"]) or "0"
    offset = int(text, 16 if text.startswith("0x") else 10)
    if not match or offset >= USER_END:
        raise ValueError(f"{name[:80]!r} is no label: write {', '.join(READY)} or BINARY:SYMBOL+OFFSET")
    how = wire.TEXT_IN_PLACE if match["in_place"] else wire.TEXT_POINTED_TO
    binary = match["binary"] if "/" in match["binary"] else re.escape(match["binary"])
    return Source(name, binary, match["symbol"], (Text("text", how, offset),))


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
    mapping: procfs.Mapping
    """of the binary"""
    binary: FileKey
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
        self._known: dict[FileKey, _Binary | str] = {}
        self._budget = Budget()

    def find(self, tgid: int) -> Site | None:
        """Where a process has it; None: it has no program by such a name, or is gone.

        Raises ShmtraceError: it has, and none that will do; why the first one will not.
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
        """A path to its binary, as long as that is what was read. Raises OSError."""
        fd = self._proc.open_mapped(tgid, site.mapping)
        try:
            if FileKey.of(fd) != site.binary:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), site.mapping.path)
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _look(self, tgid: int, mapping: procfs.Mapping) -> Site | str:
        """Whether this is the binary; else why not, which is nothing if it is no program, or gone."""
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
                    return "was not read, for others took too long"
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
            return "is not mapped as it would be to run"
        base = mapping.start - load.address // PAGE_BYTES * PAGE_BYTES + binary.address
        source = self._source
        addresses = tuple(base + text.offset if text.how in IN_BINARY else 0 for text in source.texts)
        if not all(0 < address < USER_END for text, address in zip(source.texts, addresses) if text.how in IN_BINARY):
            return f"has {source.symbol} where no memory can be"
        return Site(source, addresses, mapping, key, binary.functions, binary.file_is_string)


class _Binary(NamedTuple):
    """What is of interest in one file."""

    loads: tuple[Load, ...]
    address: int
    """of the symbol, but for the base"""
    functions: Mapping[str, int]
    """offset in the file by program"""
    file_is_string: bool


def _cut(path: str) -> str:
    return path if len(path) <= MAX_PATH_LENGTH else f"…{path[-MAX_PATH_LENGTH:]}"


def _is_binary(path: str, source: Source) -> bool:
    path = path.removesuffix(" (deleted)")
    if "/" in source.binary:
        return path == source.binary
    return re.fullmatch(source.binary, PurePosixPath(path).name) is not None


def _read(fd: int, source: Source) -> _Binary | str:
    """Or what it lacks; nothing: it is no program. Raises OSError."""
    program = elf.read(fd)
    if not program:
        return ""
    if not program.is_native:
        return "is of another machine"
    wanted = source.symbol, source.unless, source.told_by, *source.functions.values()
    symbols = program.find(list(filter(None, wanted)))
    if source.symbol not in symbols:
        if source.unless in symbols:
            return f"is a thread-safe build (ZTS), whose threads keep what --label {source.name} reads to themselves"
        return f"has no symbol {source.symbol}"
    functions = {}
    for hook, name in source.functions.items():
        function = symbols.get(name)
        offset_bytes = program.code_offset_bytes(function.address) if function and function.is_function else None
        if offset_bytes is None:
            return f"has no function {name}"
        functions[hook] = offset_bytes
    return _Binary(program.loads, symbols[source.symbol].address, functions, source.told_by in symbols)
