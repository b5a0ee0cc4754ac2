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
ROWS = [1000, 30_000, 100_000]


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
    return ["rows", table, draw(st.sampled_from(ROWS))]


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
    keys = {row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[5]}
    # those of the last row; of a key, and of what may be one, the numbers from there on
    cells = ", ".join(f'"{name}" + x' if name in (keys or {"time_ns"}) else f'"{name}"' for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    order = ", ".join(f'"{name}" DESC' for name in sorted(keys)) or "1"
    database.execute(
        f"""{NUMBERED.format(count=count)} INSERT OR IGNORE INTO {table} ({names})
        SELECT {cells} FROM c, (SELECT * FROM {table} ORDER BY {order} LIMIT 1)"""
    )


def write(given: Given, directory: Path) -> None:
    with captures.changing(captures.put(given, directory)) as database:
        for each in given["changes"]:
            with contextlib.suppress(sqlite3.Error):
                change(database, *each)


FUZZER = Fuzzer("capture_sizes", inputs, captures.give, 10, write, captures.check, captures.warm)
