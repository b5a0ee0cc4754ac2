"""Reads captures of earlier schemas as if they had the present one. It works on a copy; the file is not changed.

Schemas differ only by names. If you change schema.sql, raise SCHEMA_VERSION in capture.py, add what was renamed here,
and keep a capture of the previous schema under tests/captures.
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
"""By schema version: (table, column, name in the next schema). An empty column renames the table itself."""


def statements(version: int, back: bool = False) -> str:
    """SQL that turns a capture of this schema version into the present one; back: the other way round."""
    renames = [rename for older in sorted(RENAMED) if older >= version for rename in RENAMED[older]]
    return "".join(_rename(*rename, back) for rename in (reversed(renames) if back else renames))


def _rename(table: str, column: str, name: str, back: bool) -> str:
    if not column:
        old, new = (name, table) if back else (table, name)
        return f"ALTER TABLE {old} RENAME TO {new};"
    old, new = (name, column) if back else (column, name)
    return f"ALTER TABLE {table} RENAME COLUMN {old} TO {new};"


def migrated(db: sqlite3.Connection, version: int) -> sqlite3.Connection:
    """A copy in the present schema, in an unnamed temporary file. Raises sqlite3.Error."""
    copy = sqlite3.connect("", isolation_level=None)
    try:
        db.backup(copy)
        copy.execute("PRAGMA trusted_schema = OFF")
        copy.executescript(statements(version))
    except BaseException:
        copy.close()
        raise
    return copy
