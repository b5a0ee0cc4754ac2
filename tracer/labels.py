"""Where a process says what it is doing: C strings in its memory, found by the symbols that its program exports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tracer import wire

SPELLING = re.compile(
    r"(?P<binary>[^:]+):(?P<in_place>&?)(?P<symbol>[\w.$@]+)(?:\+(?P<offset>0x[0-9a-fA-F]{1,16}|\d{1,19}))?"
)
USER_END = 1 << 63
"""Beyond it no process has an address, on any machine."""
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
