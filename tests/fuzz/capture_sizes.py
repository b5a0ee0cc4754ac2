"""Captures in which something is far larger than a trace makes it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import captures
from tests.fuzz.harness import Fuzzer, Given

NUMBERED = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT {count})"
TEXT_BYTES = [1 << 16, 1 << 20, 10 << 20, 100 << 20]
STEP = {"id": 1, "time_ns": 1, "start": 1000, "end": 1000}  # from a row to the next; extents do not overlap
ROWS, MANY_EXTENTS = [1000, 30_000, 100_000], [100_000, 300_000]


@st.composite
def changes(draw: st.DrawFn) -> list[Any]:
    table = draw(st.sampled_from(sorted(captures.schema())))
    if draw(st.booleans()):
        column = draw(st.sampled_from(captures.schema()[table]))
        return [
            "text",
            table,
            column,
            draw(st.sampled_from(TEXT_BYTES)),
            draw(st.sampled_from(["x", "\n", ";", "/", "\x1b"])),
        ]
    return ["rows", table, draw(st.sampled_from(MANY_EXTENTS if table == "extent" else ROWS))]


inputs = st.deferred(
    lambda: st.fixed_dictionaries(
        {
            "capture": captures.names,
            "changes": st.lists(changes(), min_size=1, max_size=2),
            "command": captures.commands,
        }
    )
)


def change(database: sqlite3.Connection, what: str, table: str, *how: Any) -> None:
    """Raises sqlite3.Error."""
    if what == "text":
        column, size_bytes, of = how
        database.execute(f'UPDATE {table} SET "{column}" = printf(?, ?, ?) LIMIT 1', ("%.*c", size_bytes, of))
        return
    (count,) = how
    columns = captures.schema()[table]
    cells = ", ".join(f'"{name}" + {STEP[name]} * x' if name in STEP else f'"{name}"' for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    order = ", ".join(f'"{name}" DESC' for name in columns if name in STEP) or "1"
    database.execute(
        f"""{NUMBERED.format(count=count)} INSERT OR IGNORE INTO {table} ({names})
        SELECT {cells} FROM c, (SELECT * FROM {table} ORDER BY {order} LIMIT 1)"""
    )
    if table == "extent":  # each region has as much as its extents, and is as large
        for column, value in (("allocated_bytes", 'sum("end" - start)'), ("size_bytes", 'max("end")')):
            of = f"(SELECT {value} * (SELECT page_bytes FROM session) FROM extent WHERE region = region.id)"
            database.execute(f"UPDATE region SET {column} = max({column}, {of}), peak_bytes = NULL")


def write(given: Given, directory: Path) -> None:
    with captures.changing(captures.put(given, directory)) as database:
        for each in given["changes"]:
            with contextlib.suppress(sqlite3.Error):
                change(database, *each)


FUZZER = Fuzzer("capture_sizes", inputs, captures.give, 6, write, captures.check, captures.warm)
