"""A table as text in 80 columns, as CSV and as JSON."""

from __future__ import annotations

import csv as csv_format
import functools
import json as json_format
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

from tracer.formatting import (
    COLUMNS,
    clock,
    format_bytes,
    format_change,
    moment,
    printable,
    width,
)
from tracer.model import Account
from tracer.tables.table import Column, Table, Value, told
from tracer.views.json import SCHEMA, rfc3339

MAX_ROWS = 500  # of a text; JSON and CSV have all
FORMULA = ("=", "+", "-", "@", "'", "\t", "\r")


def text(table: Table, days: bool = False, limit: int = MAX_ROWS) -> list[str]:
    """A heading, one line for each row, and the sum last. days: print times with their date. limit: of rows.

    Columns with no known value are left out. If the lines are longer than 80 columns, the widest text columns are cut.
    """
    first, rest, parts = table.cut(limit)
    columns = told(table.columns, [*first, *parts])
    cells = [[_cell(column, row, days) for column in columns] for row in (*first, *parts)]
    if table.total is not None:
        total = [_cell(column, table.total, days) for column in columns]
        cells = [*([_apart(*both) for both in zip(row, total, columns)] for row in cells), total]
    lines = _align(columns, [[column.title for column in columns], *cells])
    if rest:
        lines.insert(1 + len(first), f"…{len(rest)} more")
    return lines


def _apart(cell: str, of_total: str, column: Column) -> str:
    """The cell; a stranger's name that is the sum's, as in a host called sum, with a code, as printable() writes it."""
    return f"\\x{ord(cell[0]):02x}{cell[1:]}" if cell and cell == of_total and column.align == "<" else cell


def _align(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [min(COLUMNS, max(width(row[place]) for row in cells)) for place in range(len(columns))]
    elastic = [place for place, column in enumerate(columns) if column.align == "<"]
    while elastic and sum(widths) + len(widths) - 1 > COLUMNS:
        widest = max(elastic, key=lambda place: widths[place])
        widths[widest] -= 1
    return [" ".join(map(_pad, columns, row, widths)).rstrip() for row in cells]


def _pad(column: Column, cell: str, columns: int) -> str:
    cell = column.cut(cell, columns)
    space = " " * (columns - width(cell))
    return cell + space if column.align == "<" else space + cell


def _cell(column: Column, row: Any, days: bool) -> str:
    if column.shown:
        return printable(column.shown(row))
    value = column.get(row)
    if column.name.endswith("_ns"):
        return "-" if value is None else moment(int(value)) if days else clock(int(value))
    if value is None:
        return "?"
    if column.name.endswith("_bytes"):
        return format_change(int(value)) if column.signed else format_bytes(int(value))
    return printable(str(value))


def csv(columns: Sequence[Column], rows: Iterable[Any]) -> Iterator[str]:
    """The lines of a CSV file (RFC 4180): a header and the rows, without the sum.

    Bytes are plain numbers, times are RFC 3339, unknown values are empty. Control characters are written as codes, as
    in the report. A text that a spreadsheet would take for a formula, or that begins with an apostrophe, gets an
    apostrophe in front; a reader must remove it.
    """
    writer = csv_format.writer(_Lines())
    yield writer.writerow([column.key for column in columns])
    cells: list[tuple[Callable[[Any], Value], Callable[[Any], Value]]]
    cells = [(column.get, rfc3339 if column.name.endswith("_ns") else _defused) for column in columns]
    for row in rows:
        yield writer.writerow([cell(get(row)) for get, cell in cells])


class _Lines:
    """A file whose write() returns its argument; csv.writer.writerow() then returns the line."""

    def write(self, line: str) -> str:
        return line


def _defused(value: Value) -> Value:
    return _text(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=1 << 10)  # the same few texts occur in most rows
def _text(value: str) -> str:
    cell = printable(value)
    return f"'{cell}" if value.startswith(FORMULA) else cell


def json(table: Table, account: Account) -> str:
    """One JSON document with the window and all rows, without the sum."""
    since_ns, until_ns = account.window
    head = {"schema": SCHEMA, "by": table.by, "since": rfc3339(since_ns), "until": rfc3339(until_ns)}
    return dumps({**head, "rows": records(table)})


def records(table: Table) -> list[dict[str, Value]]:
    """The rows of a table as JSON objects."""
    return [record(table.columns, row) for row in table.rows]


def record(columns: Sequence[Column], row: Any) -> dict[str, Value]:
    """One row as a JSON object, by the columns' keys."""
    return {column.key: _plain(column, column.get(row)) for column in columns}


def dumps(document: dict[str, Any]) -> str:
    """A JSON document as indented ASCII text."""
    return json_format.dumps(document, indent=1, ensure_ascii=True)


def _plain(column: Column, value: Value) -> Value:
    return rfc3339(None if value is None else int(value)) if column.name.endswith("_ns") else value
