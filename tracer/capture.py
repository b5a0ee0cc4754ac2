"""A capture: everything a report needs, in one SQLite file that sqlite3 opens too; schema.sql says what is in it.

Every trace writes one (a temporary file where nobody asked to keep it), and every account is read from one, so what is
seen live and what is looked at a week later go the same way.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracer.errors import ShmtraceError

APPLICATION_ID = 0x73686D74  # "shmt"
SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("schema.sql")
REMEDY = "`shmtrace record` makes one"
BUSY_SECONDS = 10.0  # a reader waits so long for the trace that writes it, and the other way round


class Capture:
    """An open capture. Rows go in as keyword arguments named as the columns are. A context manager."""

    def __init__(self, path: Path | None = None) -> None:
        """A new one, at a path where nothing is yet; None: a temporary one. Raises ShmtraceError."""
        if path:
            _create(path)
        # "": temporary, and unlinked from the first
        self._begin(sqlite3.connect(path or "", timeout=BUSY_SECONDS, isolation_level=None))
        self._db.executescript(SCHEMA.read_text())
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("BEGIN")

    @classmethod
    def open(cls, path: Path) -> Capture:
        """One that is there, to read. Raises ShmtraceError."""
        capture = cls.__new__(cls)
        if not path.is_file():
            raise ShmtraceError(f"{path} is {'no file' if path.exists() else 'not there'}", REMEDY)
        if not os.access(path, os.R_OK):
            raise ShmtraceError(f"{path} may not be read", "a capture is for its owner's eyes: read it as that user")
        # what a trace that was killed left half written is taken back on opening, which takes a file to write to
        mode = "rw" if os.access(path, os.W_OK) else "ro"
        capture._begin(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", BUSY_SECONDS, uri=True))
        try:
            capture._check(path)
        except BaseException:
            capture._db.close()
            raise
        return capture

    def _check(self, path: Path) -> None:
        try:
            self._db.execute("PRAGMA query_only = 1")
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            raise ShmtraceError(f"{path} cannot be read as a capture ({error})", REMEDY) from None
        if application != APPLICATION_ID:
            raise ShmtraceError(f"{path} is an SQLite file, but no capture", REMEDY)
        if version != SCHEMA_VERSION:
            raise ShmtraceError(
                f"{path} has schema {version}, and this shmtrace reads {SCHEMA_VERSION}",
                "use the shmtrace that made it, or a newer one",
            )

    def _begin(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.row_factory = sqlite3.Row

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.close()

    def commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def insert(self, table: str, **row: Any) -> int:
        """One row; its id."""
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" for _ in row)
        cursor = self._db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608
        return cursor.lastrowid or 0

    def insert_all(self, table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Many rows of the same columns; one with the primary key of another takes its place."""
        marks = ", ".join("?" for _ in columns.split(", "))
        self._db.executemany(f"REPLACE INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608

    def update(self, table: str, row_id: int, **row: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in row)
        self._db.execute(f"UPDATE {table} SET {names} WHERE rowid = ?", (*row.values(), row_id))  # noqa: S608

    def rows(self, query: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        return self._db.execute(query, values).fetchall()


def _create(path: Path) -> None:
    """An empty file of the owner's alone, where none is. Raises ShmtraceError."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise ShmtraceError(f"{path} is there already", "name another, or remove it") from None
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "name another place") from None
