"""Reads captures of earlier schemas as if they had the present one. It works on a copy; the file is not changed.

Schemas differ by names, and by what was added. If you change schema.sql, raise SCHEMA_VERSION in capture.py, tell here
what was renamed or added, and keep a capture of the previous schema under tests/captures.
"""

from __future__ import annotations

import re
import sqlite3

RENAMED = {
    3: [
        ("region", "vss_bytes", "size_bytes"),
        ("region", "top", "parent"),
        ("process", "stranger", "outside_tree"),
        ("behalf", "", "made_for"),
    ],
    4: [],
    5: [],
    6: [],
    7: [],
}
"""By schema version: (table, column, name in the next schema). An empty column renames the table itself."""
ADDED = {
    3: [("unmapped", "")],
    4: [("session", "tmpfs"), ("process", "exit_status"), ("process", "oom_killed"), ("region", "hint")],
    5: [("session", "private_peak_bytes"), ("touched", "")],
    6: [
        *(("session", column) for column in ("nr_ooms", "part", "part_started_ns")),
        ("oom", ""),
        ("oom_touched", ""),
    ],
    7: [("binary", ""), ("frame", ""), ("cgroup", "")],
}
"""By schema version: (table, column) that the next schema adds. An empty column stands for the whole table."""


def statements(version: int, schema: str) -> str:
    """SQL that turns a capture of this schema version into the present one.

    schema: the statements that create an empty capture.
    """
    tables = _tables(schema)
    return "".join(
        [
            *(_rename(*rename, back=False) for older in _since(version) for rename in RENAMED[older]),
            *(_add(tables[table], table, column) for older in _since(version) for table, column in ADDED[older]),
        ]
    )


def undoing(version: int, schema: str) -> str:
    """SQL that turns an empty capture of the present schema into one of this version."""
    tables = _tables(schema)
    new: dict[str, list[str]] = {}
    for older in _since(version):
        for table, column in ADDED[older]:
            new.setdefault(table, []).append(column)
    return "".join(
        [
            *(f"DROP TABLE {table}; {_without(tables[table], columns)}" for table, columns in new.items()),
            *(_rename(*rename, back=True) for older in reversed(_since(version)) for rename in RENAMED[older]),
        ]
    )


def _tables(schema: str) -> dict[str, str]:
    """The statement that creates each table."""
    return {sql.split()[2]: sql for sql in re.findall(r"CREATE TABLE[^;]*;", re.sub(r"--[^\n]*", "", schema))}


def _add(table_sql: str, table: str, column: str) -> str:
    if not column:
        return table_sql
    [kind] = re.findall(rf"\b{column} (\w+),", table_sql)
    return f"ALTER TABLE {table} ADD COLUMN {column} {kind};"


def _without(table_sql: str, columns: list[str]) -> str:
    """The statement without these columns; empty if the whole table is new. SQLite drops columns only since 3.35."""
    if "" in columns:
        return ""
    for column in columns:
        table_sql = re.sub(rf"\b{column} \w+,", "", table_sql)
    return table_sql


def _since(version: int) -> list[int]:
    return [older for older in sorted(RENAMED) if older >= version]


def _rename(table: str, column: str, name: str, back: bool) -> str:
    if not column:
        old, new = (name, table) if back else (table, name)
        return f"ALTER TABLE {old} RENAME TO {new};"
    old, new = (name, column) if back else (column, name)
    return f"ALTER TABLE {table} RENAME COLUMN {old} TO {new};"


def migrated(db: sqlite3.Connection, version: int, schema: str) -> sqlite3.Connection:
    """A copy in the present schema, in an unnamed temporary file. Raises sqlite3.Error.

    schema: the statements that create an empty capture.
    """
    copy = sqlite3.connect("", isolation_level=None)
    try:
        db.backup(copy)
        copy.execute("PRAGMA trusted_schema = OFF")
        copy.executescript(statements(version, schema))
    except BaseException:
        copy.close()
        raise
    return copy
