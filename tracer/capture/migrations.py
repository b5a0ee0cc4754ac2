"""Reads captures of earlier schemas as if they had the present one. It works on a copy; the file is not changed.

Schemas differ only by names. If you change schema.sql, raise SCHEMA_VERSION in capture.py, add what was renamed here,
and keep a capture of the previous schema under tests/captures.
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
    ]
}
"""By schema version: (table, column, name in the next schema). An empty column renames the table itself."""
ADDED = {3: ["unmapped"]}
"""By schema version: tables that the next schema adds."""


def statements(version: int, schema: str) -> str:
    """SQL that turns a capture of this schema version into the present one.

    schema: the statements that create an empty capture.
    """
    tables = {sql.split()[2]: sql for sql in re.findall(r"CREATE TABLE[^;]*;", re.sub(r"--[^\n]*", "", schema))}
    return "".join(
        [
            *(_rename(*rename, back=False) for older in _since(version) for rename in RENAMED[older]),
            *(tables[table] for older in _since(version) for table in ADDED.get(older, ())),
        ]
    )


def undoing(version: int) -> str:
    """SQL that turns an empty capture of the present schema into one of this version."""
    return "".join(
        [
            *(f"DROP TABLE {table};" for older in _since(version) for table in ADDED.get(older, ())),
            *(_rename(*rename, back=True) for older in reversed(_since(version)) for rename in RENAMED[older]),
        ]
    )


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
