"""Recorded captures, as SQL that only fills tables: a diff tells what has changed in them, and a schema that has grown
meanwhile takes them all the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tracer.capture.capture import APPLICATION_ID, SCHEMA_VERSION, Capture

DIRECTORY = Path(__file__).parent
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.sql"))


def load(name: str, path: Path) -> Path:
    """Make one a file again."""
    with Capture(path):
        pass
    database = sqlite3.connect(path)
    database.executescript(f"BEGIN; {(DIRECTORY / f'{name}.sql').read_text()} COMMIT")
    database.close()
    return path


def load_of_schema(version: int, name: str, path: Path) -> Path:
    """One that was recorded by a shmtrace before this one, kept with the schema it had."""
    says = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
    database = sqlite3.connect(path)
    database.executescript(
        f"BEGIN; {_kept('schema', version).read_text()} {_kept(name, version).read_text()} {says} COMMIT"
    )
    database.close()
    return path


def _kept(name: str, version: int) -> Path:
    """A file is kept with the last schema that it was the same for."""
    of_schemas = (DIRECTORY / f"schema_{number}" for number in range(version, SCHEMA_VERSION))
    return next(path for each in (*of_schemas, DIRECTORY) if (path := each / f"{name}.sql").exists())


def dump(path: Path, name: str) -> None:
    """Keep a capture under a name: a statement a row."""
    with Capture.open(path) as capture:
        tables = [table for (table,) in capture.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        statements = []
        for table in sorted(tables, key=["session", "process", "region"].__contains__, reverse=True):
            columns = [row["name"] for row in capture.rows(f"PRAGMA table_info({table})")]
            names = ", ".join(f'"{column}"' for column in columns)
            quoted = " || ', ' || ".join(f'quote("{column}")' for column in columns)
            statements += [
                f"INSERT INTO {table} ({names}) VALUES ({values});\n"  # noqa: S608
                for (values,) in capture.rows(f"SELECT {quoted} FROM {table}")  # noqa: S608
            ]
    (DIRECTORY / f"{name}.sql").write_text("".join(statements))
