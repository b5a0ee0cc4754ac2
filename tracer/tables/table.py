"""A table: rows, and one list of columns that is all that text, CSV, JSON and sorting know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Union

from tracer.errors import ShmtraceError

Value = Union[int, str, None]


class Column(NamedTuple):
    """One column of a table, for every kind of output."""

    name: str
    """its end is the unit: _bytes, or _ns since 1970"""
    title: str
    """for people; empty: not for them"""
    get: Callable[[Any], Value]
    """of a row; None: unknown"""
    align: str = ">"
    """< is text, and cut where the line is too short"""
    signed: bool = False
    """a change"""
    shown: Callable[[Any], str] | None = None
    """to people, if that is more than the value"""

    @property
    def key(self) -> str:
        """In CSV and JSON: a time is written there with its unit in itself."""
        return self.name.removesuffix("_ns")


def told(columns: Sequence[Column], rows: Sequence[Any]) -> list[Column]:
    """For people: those of which anything is known."""
    return [
        column
        for column in columns
        if _is_told(column) and (not rows or any(column.get(row) is not None for row in rows))
    ]


def _is_told(column: Column) -> bool:
    return bool(column.title)


class Table(NamedTuple):
    by: str
    columns: Sequence[Column]
    rows: Sequence[Any]
    total: Any = None
    """a row that is the sum of the others"""

    def name(self, row: Any) -> str:
        """What a row is of: the texts of its line, those but the first as far as they are known."""
        first, *others = (column for column in self.columns if column.align == "<" and _is_told(column))
        names = [first, *(column for column in others if column.get(row) is not None)]
        return " ".join(column.shown(row) if column.shown else str(column.get(row)) for column in names)

    def sort(self, name: str | None) -> Table:
        """By a column, called as its heading is or as in CSV, there with the unit or without: the most first, of texts
        and times the first. Unknown comes last.

        Raises ShmtraceError, with the columns there are.
        """
        if name is None:
            return self
        names = {column.title: column for column in reversed(self.columns) if column.title}
        names.update((column.key.removesuffix("_bytes"), column) for column in self.columns)
        names.update((column.key, column) for column in self.columns)
        column = names.get(name)
        if column is None:
            there_are = ", ".join(column.key for column in self.columns)
            raise ShmtraceError(f"there is no column {name!r} by {self.by}", f"sort by one of {there_are}")
        known = [row for row in self.rows if column.get(row) not in (None, "")]
        unknown = [row for row in self.rows if column.get(row) in (None, "")]
        downward = column.align == ">" and not column.name.endswith("_ns")
        known.sort(key=column.get, reverse=downward)  # type: ignore[arg-type]  # of one column, all are of one kind
        return self._replace(rows=known + unknown)
