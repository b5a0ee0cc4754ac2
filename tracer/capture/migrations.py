"""Captures of earlier schemas, read as if they were of this one: in a copy, so that the file stays as it is.

A schema differs from the one before by names. Whoever changes schema.sql raises SCHEMA_VERSION of capture.py, adds what
was renamed here, and keeps a capture of the schema before under tests/captures.
"""

from __future__ import annotations

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


def statements(version: int, back: bool = False) -> str:
    """SQL that makes this schema of that one; back: that of this one."""
    renames = [rename for older in sorted(RENAMED) if older >= version for rename in RENAMED[older]]
    return "".join(_rename(*rename, back) for rename in (reversed(renames) if back else renames))


def _rename(table: str, column: str, name: str, back: bool) -> str:
    if not column:
        old, new = (name, table) if back else (table, name)
        return f"ALTER TABLE {old} RENAME TO {new};"
    old, new = (name, column) if back else (column, name)
    return f"ALTER TABLE {table} RENAME COLUMN {old} TO {new};"


def migrated(db: sqlite3.Connection, version: int) -> sqlite3.Connection:
    """A copy that is of this schema, in a temporary file that has no name. Raises sqlite3.Error."""
    copy = sqlite3.connect("", isolation_level=None)
    try:
        db.backup(copy)
        copy.execute("PRAGMA trusted_schema = OFF")
        copy.executescript(statements(version))
    except BaseException:
        copy.close()
        raise
    return copy
