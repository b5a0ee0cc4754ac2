"""Labels: what a process says it is doing, in C strings of its memory, found by symbols that its program exports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tracer import wire

SPELLING = re.compile(
    r"(?P<binary>[^:\n]+):(?P<in_place>&?)(?P<symbol>[\w.$@]+)(?:\+(?P<offset>0x[0-9a-fA-F]{1,16}|\d{1,19}))?"
)
USER_END = 1 << 63
"""No user address is higher, on any architecture."""
DERIVED = {"script": ["directory"], "query": ["statement"]}
"""More kinds of text, by the column that they come from: the script's directory; the query with its values."""
KINDS = ["script", "request", "file", "directory", "query", "statement", "label"]
"""The kinds of text that --by accepts. "label" stands for the most telling text of any source."""


class Text(NamedTuple):
    """One text of a label."""

    column: str
    """A column of the table label."""
    how: int
    """One of wire.TEXT_…."""
    offset: int = 0
    """From the symbol, in bytes."""
    is_path: bool = False
    """The text must begin with a slash; otherwise the symbol is not what it is taken for."""
    after: str = ""
    """Put before a non-empty text if its column already has one."""


class Source(NamedTuple):
    """A source of labels: where in a program's memory to read them."""

    name: str
    """As given to --label."""
    binary: str
    """A pattern for the name of the file that has the symbol, or the file's path."""
    symbol: str
    texts: tuple[Text, ...]
    functions: Mapping[str, str] = {}
    """Functions to attach uprobes to, by BPF program."""
    unless: str = ""
    """If this symbol exists, this build keeps the texts elsewhere."""
    told_by: str = ""
    """If this symbol exists, PHP's file handles name their file by a zend_string, as they do since PHP 8.1."""

    @property
    def column(self) -> str:
        """The column of the most telling text."""
        return self.texts[-1 if self.functions else 0].column

    @property
    def flags(self) -> tuple[str, ...]:
        """Compiler flags for the programs that read the labels."""
        return f"NR_TEXTS={len(self.texts)}", *["LABEL_FILES"] * bool(self.functions)

    def label(self, found: Sequence[str | None]) -> dict[str, str | None]:
        """The columns of a label, from the source's texts in order."""
        label: dict[str, str | None] = {}
        for text, value in zip(self.texts, found):
            if text.column not in label:
                label[text.column] = value
            elif value:
                label[text.column] = f"{label[text.column] or ''}{text.after}{value}"
        return label


# main/SAPI.h: sapi_globals has server_context, then request_info: request_method, query_string, cookie_data,
# content_length, path_translated, request_uri. Each is one word, in PHP 7.4 to 8.4. Every process is checked before its
# texts are believed.
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
    """The source of a name given to --label. Raises ValueError where it is neither known nor BINARY:SYMBOL+OFFSET."""
    if name in READY:
        return READY[name]
    match = SPELLING.fullmatch(name)
    text = (match and match["offset"]) or "0"
    offset = int(text, 16 if text.startswith("0x") else 10)
    if not match or offset >= USER_END:
        raise ValueError(f"{name[:80]!r} is not a label: write {', '.join(READY)} or BINARY:SYMBOL+OFFSET")
    how = wire.TEXT_IN_PLACE if match["in_place"] else wire.TEXT_POINTED_TO
    binary = match["binary"] if "/" in match["binary"] else re.escape(match["binary"])
    return Source(name, binary, match["symbol"], (Text("text", how, offset),))


def columns(name: str | None) -> list[str]:
    """The columns of the table label that a source fills, the most telling first. None: there is no source.

    name: here and below one of a session; of the sessions of several hosts, a line each.
    """
    return list(
        dict.fromkeys(
            column for each in _sources(name) for column in (each.column, *(text.column for text in each.texts))
        )
    )


def telling(name: str | None) -> list[str]:
    """The column of the most telling text of each source."""
    return list(dict.fromkeys(each.column for each in _sources(name)))


def _sources(name: str | None) -> Iterable[Source]:
    return map(parse, (name or "").splitlines())


def kinds(name: str | None) -> list[str]:
    """The KINDS that a source distinguishes, the most telling first. None: there is no source."""
    if name is None:
        return []
    found = [column for column in columns(name) if column in KINDS]
    return [*found, *(kind for column in found for kind in DERIVED.get(column, ()))] or ["label"]


def meant(name: str | None, kind: str) -> str:
    """The kind of text that "label" stands for in a source; any other stands for itself."""
    return telling(name)[0] if kind == "label" else kind


def frames(name: str) -> list[str]:
    """The texts that are frames of a flame graph, the most telling last: a script calls the files it includes."""
    most = telling(name)[0]
    return ["script", most] if most == "file" else [most]
