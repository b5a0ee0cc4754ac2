"""A capture: everything a report needs, in one SQLite file that sqlite3 opens too; schema.sql says what is in it.

Every trace writes one (a temporary file where nobody asked to keep it), and every account is read from one, so what is
seen live and what is looked at a week later go the same way.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from tracer.errors import ShmtraceError

APPLICATION_ID = 0x73686D74  # "shmt"
SCHEMA_VERSION = 2
SCHEMA = Path(__file__).with_name("schema.sql")
REMEDY = "`shmtrace record` makes one"
PAGE_BYTES = 4096  # of a capture, whatever the page of the host that reads it
MIN_SAMPLES = 1000  # no fewer are left for the sake of a file's size
BUSY_SECONDS = 10.0  # a reader waits so long for the trace that writes it, and the other way round

# SQLite sorts for GROUP BY: of extents, which come by page and not by who touched them, that takes twice the time.
ADD_UP = """
INSERT INTO temp.sums SELECT {key}, "end" - start, {times} FROM extent WHERE {where}
ON CONFLICT (key) DO UPDATE SET pages = pages + excluded.pages"""
SPAN = """,
  first_ns = min(ifnull(first_ns, excluded.first_ns), ifnull(excluded.first_ns, first_ns)),
  last_ns = max(ifnull(last_ns, excluded.last_ns), ifnull(excluded.last_ns, last_ns))
"""

ExtentRow = tuple[int, int, int, Optional[int], Optional[int], Optional[int], Optional[int]]
"""Region, start and end page, process, first_ns, last_ns, label: as in the table."""


class Capture:
    """An open capture. Rows go in as keyword arguments named as the columns are. A context manager."""

    def __init__(self, path: Path | None = None, max_bytes: int | None = None) -> None:
        """A new one, at a path where nothing is yet; None: a temporary one. Raises ShmtraceError.

        max_bytes: how large keep_small() lets it become, if that can be had by thinning samples.
        """
        if path:
            _create(path)
        self._max_bytes = max_bytes
        # "": temporary, and unlinked from the first
        self._begin(sqlite3.connect(path or "", timeout=BUSY_SECONDS, isolation_level=None))
        # the trace never waits for the disk: what was committed outlives its end, however it ends, but not the host's
        self._db.execute("PRAGMA synchronous = OFF")
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
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        capture._begin(sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True))
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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK" if kind else "COMMIT")
        self._db.close()

    def commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def keep_small(self) -> bool:
        """Thin samples out, where it has grown too large: every other one goes, never the newest, so that those of long
        ago come to lie further apart. Whether it is small enough, or will be."""
        if self._max_bytes is None:
            return True
        pages, unused, page_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - unused) * page_bytes < self._max_bytes:
            return True
        if self._db.execute("SELECT count(*) FROM sample").fetchone()[0] < MIN_SAMPLES:
            return False
        for table, of in (("sample", "PARTITION BY region"), ("host_sample", "")):
            rank = f"row_number() OVER ({of} ORDER BY time_ns DESC)"
            key = "(region, time_ns)" if of else "time_ns"
            columns = key.strip("()")
            self._db.execute(
                f"DELETE FROM {table} WHERE {key} IN "  # noqa: S608
                f"(SELECT {columns} FROM (SELECT {columns}, {rank} AS rank FROM {table}) WHERE rank % 2 = 0)"
            )
        return True

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

    def replace_extents(self, region: int, start: int, end: int, rows: Iterable[ExtentRow]) -> None:
        """What pages [start, end) of a region are now; of an extent that reaches beyond them, the rest stays."""
        first = self._db.execute(
            "SELECT coalesce(max(start), ?2) FROM extent WHERE region = ?1 AND start <= ?2", (region, start)
        ).fetchone()[0]
        rest = []
        for row in self._db.execute(
            'SELECT * FROM extent WHERE region = ? AND start >= ? AND start < ? AND "end" > ?',
            (region, first, end, start),
        ):
            _, row_start, row_end, *whose = row
            rest += [(region, row_start, start, *whose)] if row_start < start else []
            rest += [(region, end, row_end, *whose)] if row_end > end else []
        self._db.execute(
            'DELETE FROM extent WHERE region = ? AND start >= ? AND start < ? AND "end" > ?',
            (region, first, end, start),
        )
        self.insert_all("extent", 'region, start, "end", process, first_ns, last_ns, label', [*rest, *rows])

    def add_stacked(self, rows: Iterable[tuple[int, int, int, int]]) -> None:
        """Region, process, stack, and how many pages more than it has, or fewer."""
        self._db.executemany(
            "INSERT INTO stacked (region, process, stack, pages) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (region, process, stack) DO UPDATE SET pages = pages + excluded.pages",
            rows,
        )

    def rows(self, query: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        return self._db.execute(query, values).fetchall()

    def each(self, query: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The same where there are very many, one after the other. To be read fast: a trace that writes it waits."""
        cursor = self._db.cursor()
        cursor.row_factory = None
        return cursor.execute(query, values)

    def sums(self, key: str, where: str, values: Mapping[str, Any], times: bool = False) -> list[tuple[Any, ...]]:
        """(key, pages, first_ns, last_ns) of extents, by a key that is an integer, in order; the times if wanted."""
        add_up = ADD_UP.format(key=key, where=where, times="first_ns, last_ns" if times else "NULL, NULL")
        (query_only,) = self._db.execute("PRAGMA query_only").fetchone()
        self._db.execute("PRAGMA query_only = 0")  # which has temporary tables in it too
        self._db.execute("PRAGMA temp.cache_size = -65536")  # KiB; by label and process, a fourth less of time
        try:
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS sums (key INTEGER PRIMARY KEY, pages, first_ns, last_ns)")
            self._db.execute("DELETE FROM temp.sums")
            self._db.execute(add_up + SPAN if times else add_up, values)
        finally:
            self._db.execute(f"PRAGMA query_only = {query_only}")
        return list(self.each("SELECT * FROM temp.sums ORDER BY key"))


def _create(path: Path) -> None:
    """An empty file of the owner's alone, where none is. Raises ShmtraceError."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise ShmtraceError(f"{path} is there already", "name another, or remove it") from None
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "name another place") from None
