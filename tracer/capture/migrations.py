"""Captures of earlier schemas, read as if they were of this one: in a copy, so that the file stays as it is.

A schema differs from the one before by names. Whoever changes schema.sql raises SCHEMA_VERSION of capture.py, adds what
was renamed here, and keeps a capture of the schema before under tests/captures.
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
"""By schema: table, column (of the table itself none), and what the next schema calls it."""
ADDED = {3: ["unmapped"]}
"""By schema: tables that the next one has besides."""


def statements(version: int, schema: str) -> str:
    """SQL that makes that schema this one. schema: the statements that make an empty capture."""
    tables = {sql.split()[2]: sql for sql in re.findall(r"CREATE TABLE[^;]*;", re.sub(r"--[^\n]*", "", schema))}
    return "".join(
        [
            *(_rename(*rename, back=False) for older in _since(version) for rename in RENAMED[older]),
            *(tables[table] for older in _since(version) for table in ADDED.get(older, ())),
        ]
    )


def undoing(version: int) -> str:
    """SQL that makes this schema that one, where nothing is in it."""
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
    """A copy that is of this schema, in a temporary file that has no name. Raises sqlite3.Error."""
    copy = sqlite3.connect("", isolation_level=None)
    try:
        db.backup(copy)
        copy.execute("PRAGMA trusted_schema = OFF")
        copy.executescript(statements(version, schema))
    except BaseException:
        copy.close()
        raise
    return copy
