"""A capture: everything a report needs, in one SQLite file that sqlite3 opens too.

Every trace writes one (a temporary file where nobody asked to keep it), and every account is read from one, so what is
seen live and what is looked at a week later go the same way. Times are nanoseconds of CLOCK_REALTIME.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
SCHEMA = f"""
PRAGMA user_version = {SCHEMA_VERSION};

-- one row: the host, the tier, when, what was lost
CREATE TABLE session (
    host TEXT, kernel TEXT, tier TEXT, mechanism TEXT,  -- mechanism: kprobe, fentry, tracepoint
    blind_to TEXT,                                      -- one to a line
    started_ns INTEGER, ended_ns INTEGER,
    sum_of_rss_bytes INTEGER, shmem_total_bytes INTEGER,
    lost_events INTEGER, lost_pages INTEGER, lost_probes INTEGER, warnings TEXT,
    self_cpu_seconds REAL, self_rss_bytes INTEGER, attach_seconds REAL
);

-- a process is (tgid, start_time_ns): start_time_ns counts from boot and tells two lives of one PID apart
CREATE TABLE process (
    id INTEGER PRIMARY KEY, tgid INTEGER, start_time_ns INTEGER, parent INTEGER REFERENCES process,
    parent_tgid INTEGER, comm TEXT, command TEXT, exited_ns INTEGER,
    stranger INTEGER DEFAULT 0                  -- not of the tree: it touched a region of the tree's
);

-- a region is one shmem inode
CREATE TABLE region (
    id INTEGER PRIMARY KEY, dev INTEGER, ino INTEGER, generation INTEGER, kind TEXT, name TEXT,
    created_ns INTEGER, gone_ns INTEGER, creator INTEGER REFERENCES process, creator_how TEXT,
    top INTEGER REFERENCES process,             -- whom the region rolls up to
    vss_bytes INTEGER, allocated_bytes INTEGER, peak_bytes INTEGER, resident_bytes INTEGER, swapped_bytes INTEGER,
    start_bytes INTEGER,                        -- allocated when the capture of it began
    address INTEGER                             -- where it was last seen mapped
);

-- pages [start, "end") of a region and who first touched them: process NULL is before the capture
CREATE TABLE extent (
    region INTEGER REFERENCES region, start INTEGER, "end" INTEGER, process INTEGER REFERENCES process,
    first_ns INTEGER, last_ns INTEGER
);
CREATE INDEX extent_region ON extent (region);

-- pages that a process made in, or for, the address space of another
CREATE TABLE behalf (
    region INTEGER REFERENCES region, process INTEGER REFERENCES process, for_process INTEGER REFERENCES process,
    pages INTEGER
);

-- faults of a process on a region, growth or not, NULL where they are not counted; mapped: it had the region mapped
-- when the capture ended
CREATE TABLE usage (
    region INTEGER REFERENCES region, process INTEGER REFERENCES process,
    faults INTEGER, freed_pages INTEGER, mapped INTEGER DEFAULT 0,
    PRIMARY KEY (region, process)
);

CREATE TABLE sample (time_ns INTEGER, region INTEGER REFERENCES region, allocated_bytes INTEGER);
CREATE INDEX sample_region ON sample (region);
"""


class Capture:
    """An open capture. Rows go in as keyword arguments named as the columns are."""

    def __init__(self, path: Path | None = None) -> None:
        if path:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(path or "", isolation_level=None)  # "": temporary, and unlinked from the first
        self._db.row_factory = sqlite3.Row
        self._db.executescript(SCHEMA)
        self._db.execute("BEGIN")

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()
        self._db.close()

    def commit(self) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def insert(self, table: str, **row: Any) -> int:
        """One row; its id."""
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" for _ in row)
        cursor = self._db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608
        return cursor.lastrowid or 0

    def insert_all(self, table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Many rows of the same columns."""
        marks = ", ".join("?" for _ in columns.split(", "))
        self._db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608

    def update(self, table: str, row_id: int, **row: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in row)
        self._db.execute(f"UPDATE {table} SET {names} WHERE rowid = ?", (*row.values(), row_id))  # noqa: S608

    def rows(self, query: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        return self._db.execute(query, values).fetchall()
