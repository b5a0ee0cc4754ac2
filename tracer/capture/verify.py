"""Checks that a file contains what a trace writes: a capture may be damaged or hostile.

Problems are described in a few words for an error message. Views only read values that were checked here.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

MAX_ROW = (1 << 31) - 1  # limit for rows of a table
MAX_PAGES = 1 << 51  # of 4096 bytes: the largest file
MAX_INTEGER = (1 << 63) - 1
MAX_SECONDS = 1e10
CHECKS_A_TABLE = (3, 33)  # the first SQLite whose quick_check takes a table
AT_ONCE = 7  # so many columns, each divided by 8, add up without overflow


class SchemaColumn(NamedTuple):
    """A column of the schema, and the values that a trace can write."""

    name: str
    kind: str
    """INTEGER, TEXT or REAL."""
    required: bool
    least: int
    most: float

    def allows(self, value: object) -> bool:
        """Whether a trace can write this value."""
        if value is None:
            return not self.required
        if self.kind == "TEXT" or not isinstance(value, (int, float)):
            return self.kind == "TEXT" and isinstance(value, str)
        return self.least <= value <= self.most and (self.kind == "REAL" or isinstance(value, int))


Tables = Mapping[str, tuple[str, Sequence[SchemaColumn], str]]
"""By name: the CREATE TABLE statement, the columns, and a query for a row that no trace writes."""


def damage(db: sqlite3.Connection, schema: str, but: Collection[str] = (), sessions: int | None = 1) -> str | None:
    """The first damage found in a capture, in a few words, or None.

    schema: the statements that create an empty capture. but: tables whose rows are not looked at. sessions: how many
    there can be; None: any number. Raises sqlite3.Error where SQLite cannot read the file at all.
    """
    tables = _tables(schema)
    names = [name for name in tables if name not in but]
    wrong = _other_shape(db, tables) or _broken_file(db, names if but else [])
    for name in names:
        _, columns, query = tables[name]
        wrong = wrong or _wrong_value(db, name, columns, query) or _wrong_reference(db, name)
    return wrong or (None if sessions is None else _sessions(db, sessions))


def tables(schema: str) -> list[str]:
    """The names of the tables of a schema."""
    return list(_tables(schema))


@functools.lru_cache(maxsize=16)  # of each schema version that is read
def _tables(schema: str) -> Tables:
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(schema)
        made = empty.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        columns = {name: _columns(empty, name) for name, _ in made}
        return {name: (_plain(sql), columns[name], _wrong_row(name, columns[name])) for name, sql in made}


def _columns(db: sqlite3.Connection, table: str) -> list[SchemaColumn]:
    references = {column for _, _, _, column, *_ in db.execute(f"PRAGMA foreign_key_list({table})")}
    columns = []
    for _, name, kind, required, _, key in db.execute(f"PRAGMA table_info({table})"):
        least, most = 0, MAX_INTEGER if kind == "INTEGER" else MAX_SECONDS
        if name == "id" or name in references:
            least, most = 1, MAX_ROW
        elif name in ("start", "end", "first_page") or name.endswith("pages"):
            most = MAX_PAGES
        columns.append(SchemaColumn(name, kind, bool(required or key), least, most))
    return columns


# ---- the file ----


def _other_shape(db: sqlite3.Connection, tables: Tables) -> str | None:
    """A view in place of a table might never end, and an index might contradict its table."""
    found = {}
    for kind, name, table, sql in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
        if name in tables:
            found[name] = _plain(sql or "")
        elif table in tables and kind in ("index", "trigger"):
            return f"table {table} has an unexpected {kind}, {name!r}"
    wrong = next((name for name, (sql, *_) in tables.items() if found.get(name) != sql), None)
    return wrong and f"table {wrong} is {'not that of a capture' if wrong in found else 'missing'}"


def _plain(sql: str) -> str:
    """SQL without comments, line breaks, and the quotes that ALTER TABLE puts around a new table name."""
    return re.sub(r'^CREATE TABLE "(\w+)"', r"CREATE TABLE \1", " ".join(re.sub(r"--[^\n]*", "", sql).split()))


def _broken_file(db: sqlite3.Connection, names: Sequence[str]) -> str | None:
    """names: of the tables to look at; empty: the whole file."""
    one_by_one = names and sqlite3.sqlite_version_info >= CHECKS_A_TABLE
    for checked in [f"'{name}'" for name in names] if one_by_one else ["1"]:
        text = str(db.execute(f"PRAGMA quick_check({checked})").fetchone()[0])
        if text != "ok":
            return " ".join(text.replace("*** in database main ***", "").split())
    return None


# ---- its rows ----


def _wrong_row(table: str, columns: Sequence[SchemaColumn]) -> str:
    names = ", ".join(f'"{column.name}"' for column in columns)
    return f"SELECT {names} FROM {table} WHERE {' OR '.join(_wrong(columns))} LIMIT 1"  # noqa: S608


def _wrong_value(db: sqlite3.Connection, table: str, columns: Sequence[SchemaColumn], query: str) -> str | None:
    """query: for a row that no trace writes."""
    row = db.execute(query).fetchone()
    if row is None:
        return None
    strange = [f"{table}.{column.name}" for column, value in zip(columns, row) if not column.allows(value)]
    return f"invalid {' or '.join(strange) or f'row of {table}'}"


def _wrong(columns: Sequence[SchemaColumn]) -> Iterator[str]:
    """Conditions that no valid row meets.

    They are tested on a million rows, so they are those that SQLite evaluates fastest: texts and blobs compare greater
    than any number, and a sum is no integer if one of its terms is none.
    """
    for column in columns:
        if column.required:
            yield f'"{column.name}" IS NULL'
        if column.kind == "TEXT":
            yield f"""typeof("{column.name}") NOT IN ('text', 'null')"""
        else:
            yield f'"{column.name}" NOT BETWEEN {column.least} AND {column.most:.0f}'
    integers = [column.name for column in columns if column.kind == "INTEGER"]
    for first in range(0, len(integers), AT_ONCE):
        eighths = " + ".join(f'ifnull("{name}", 0) / 8' for name in integers[first : first + AT_ONCE])
        yield f"typeof({eighths}) <> 'integer'"
    if "end" in integers:
        yield 'start >= "end"'
    if "first_ns" in integers:
        yield "first_ns > last_ns"
        yield "(process IS NULL) <> (first_ns IS NULL) OR (process IS NULL) <> (last_ns IS NULL)"
    if "parent_tgid" in integers:
        yield "parent >= id"  # a parent is inserted before its children, so no process can be its own ancestor


def _wrong_reference(db: sqlite3.Connection, table: str) -> str | None:
    # only region, for a million extents; process and label are checked by the views that sum by them
    if table == "extent":
        regions = "SELECT region FROM extent GROUP BY region"
        query = f"SELECT 0, 0, 'region' FROM ({regions}) WHERE region NOT IN (SELECT id FROM region)"  # noqa: S608
    else:
        query = f"PRAGMA foreign_key_check({table})"
    for _, _, missing, *_ in db.execute(query):
        return f"table {table} refers to a {missing} that does not exist"
    return None


def _sessions(db: sqlite3.Connection, most: int) -> str | None:
    (count,) = db.execute("SELECT count(*) FROM session").fetchone()
    return f"it has {count} sessions" if count > most else None
