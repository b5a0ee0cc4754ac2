"""A table: rows, and a list of columns. Text, CSV, JSON and sorting access the rows only through the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Union

from tracer.errors import ShmtraceError
from tracer.formatting import fit

Value = Union[int, str, None]


class Column(NamedTuple):
    """One column of a table, for every kind of output."""

    name: str
    """a name that ends in _bytes or _ns (since 1970) has this unit"""
    title: str
    """the heading in text; empty: the column is only in CSV and JSON"""
    get: Callable[[Any], Value]
    """its value in a row; None: unknown"""
    align: str = ">"
    """"<": text, aligned left, and cut if the line is too long"""
    signed: bool = False
    """a change in bytes, shown with its sign"""
    shown: Callable[[Any], str] | None = None
    """its text for people, if that is more than the value"""
    always: bool = False
    """people see it even if all its values are unknown"""
    cut: Callable[[str, int], str] = fit
    """makes its text fit into so many terminal columns"""
    if_any: bool = False
    """people see it only if a value is neither unknown nor 0"""

    @property
    def key(self) -> str:
        """Its name in CSV and JSON, without _ns: times are written there as RFC 3339."""
        return self.name.removesuffix("_ns")


def told(columns: Sequence[Column], rows: Sequence[Any]) -> list[Column]:
    """The columns to show people: those with a title, and a known value in at least one row."""
    return [column for column in columns if _is_told(column) and (not rows or _tells(column, rows))]


def _tells(column: Column, rows: Sequence[Any]) -> bool:
    nothing = (None, 0) if column.if_any else (None,)
    return column.always or any(column.get(row) not in nothing for row in rows)


def _is_told(column: Column) -> bool:
    return bool(column.title)


class Table(NamedTuple):
    """Rows of one type, with the columns that read them."""

    by: str
    """what the rows are grouped by, as in --by"""
    columns: Sequence[Column]
    rows: Sequence[Any]
    total: Any = None
    """the sum of the rows, as one more row; None: it has none"""

    def name(self, row: Any) -> str:
        """What a row stands for: its first text column, and its other text columns as far as known."""
        first, *others = (column for column in self.columns if column.align == "<" and _is_told(column))
        names = [first, *(column for column in others if column.get(row) is not None)]
        return " ".join(column.shown(row) if column.shown else str(column.get(row)) for column in names)

    def cut(self, most: int) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Its first rows, at most so many; the others; and of a longer table, the parts that no process touched."""
        if len(self.rows) <= most:
            return self.rows, (), ()
        part = next((column for column in self.columns if column.name == "part"), None)
        touched = [row for row in self.rows if not part or part.get(row) == "touched"]
        parts = [row for row in self.rows if part and part.get(row) != "touched"]
        return touched[:most], touched[most:], parts

    def sort(self, name: str | None) -> Table:
        """The table sorted by a column; name is its heading, or its key with or without _bytes. None: as it is.

        Numbers are sorted descending, texts and times ascending; unknown values come last. Raises ShmtraceError, which
        lists the columns, if no column has the name.
        """
        if name is None:
            return self
        names = {column.title: column for column in reversed(self.columns) if column.title}
        names.update((column.key.removesuffix("_bytes"), column) for column in self.columns)
        names.update((column.key, column) for column in self.columns)
        column = names.get(name)
        if column is None:
            there_are = ", ".join(column.key for column in self.columns)
            raise ShmtraceError(f"the table by {self.by} has no column {name!r}", f"sort by one of {there_are}")
        known = [row for row in self.rows if column.get(row) not in (None, "")]
        unknown = [row for row in self.rows if column.get(row) in (None, "")]
        downward = column.align == ">" and not column.name.endswith("_ns")
        known.sort(key=column.get, reverse=downward)  # type: ignore[arg-type]  # the values of one column have one type
        return self._replace(rows=known + unknown)
