"""What of a capture is still needed when its trace goes on: every region that exists, and whoever has pages of it.

The rest was told in full by then. It stays where it was told, so that a trace of weeks does not grow.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

MAX_DEAD_ABOVE = 32  # dead ancestors of a process: a chain of processes that each start the next has no end of them

KEPT = "SELECT id FROM temp.kept_{}"
OF_REGION = f"region IN ({KEPT.format('region')})"
OF_PROCESS = f"process IN ({KEPT.format('process')})"
OF_STACK = f"stack IN ({KEPT.format('stack')})"
NEEDED = {
    "session": "1",
    "process": f"id IN ({KEPT.format('process')})",
    "cgroup": f"""path IN (SELECT cgroup FROM main.process WHERE id IN ({KEPT.format("process")}))
      OR path IN (SELECT limit_cgroup FROM main.oom WHERE time_ns >= :since)""",  # noqa: S608
    "exec": f"time_ns >= :since AND {OF_PROCESS}",
    "region": f"id IN ({KEPT.format('region')})",
    "label": f"id IN ({KEPT.format('label')})",
    "extent": OF_REGION,
    "touched": OF_REGION,
    "usage": f"{OF_REGION} AND {OF_PROCESS}",
    "stack": f"id IN ({KEPT.format('stack')})",
    "stacked": f"{OF_REGION} AND {OF_PROCESS}",
    "binary": f"id IN (SELECT binary FROM main.frame WHERE {OF_STACK})",  # noqa: S608
    "frame": OF_STACK,
    "made_for": f"{OF_REGION} AND {OF_PROCESS} AND for_{OF_PROCESS}",
    "mapping": OF_REGION,
    "unmapped": "1",
    # the newest before says how large the region was then
    "sample": f"""{OF_REGION} AND time_ns >= (SELECT coalesce(max(time_ns), 0) FROM main.sample AS newest
      WHERE newest.region = sample.region AND newest.time_ns <= :since)""",  # noqa: S608
    "oom": "time_ns >= :since",
    "oom_touched": "oom IN (SELECT id FROM main.oom WHERE time_ns >= :since)",
    "host_sample": "time_ns >= (SELECT coalesce(max(time_ns), 0) FROM main.host_sample WHERE time_ns <= :since)",
}
"""By table: which rows are needed. :since is a time, before which all is over that has ended."""
ALL = dict.fromkeys(NEEDED, "1")
OF_OOMS = "FROM main.oom_touched JOIN main.oom ON oom.id = oom WHERE time_ns >= :since"
CHOOSE = f"""
INSERT OR IGNORE INTO temp.kept_region SELECT region {OF_OOMS};
INSERT OR IGNORE INTO temp.kept_process SELECT oom_touched.process {OF_OOMS};
INSERT OR IGNORE INTO temp.kept_process SELECT process FROM main.oom WHERE process IS NOT NULL AND time_ns >= :since;
INSERT OR IGNORE INTO temp.kept_region SELECT id FROM main.region WHERE gone_ns >= :since;
INSERT OR IGNORE INTO temp.kept_process SELECT id FROM main.process WHERE exited_ns >= :since;
INSERT OR IGNORE INTO temp.kept_process SELECT process FROM main.extent WHERE process IS NOT NULL AND {OF_REGION};
INSERT OR IGNORE INTO temp.kept_process SELECT creator FROM main.region
  WHERE creator IS NOT NULL AND {NEEDED["region"]};
INSERT OR IGNORE INTO temp.kept_process SELECT parent FROM main.region
  WHERE parent IS NOT NULL AND {NEEDED["region"]};
INSERT OR IGNORE INTO temp.kept_process
  WITH RECURSIVE above (id, steps) AS (
    SELECT id, 0 FROM temp.kept_process
    UNION SELECT parent, steps + 1 FROM above JOIN main.process USING (id)
    WHERE parent IS NOT NULL AND steps < {MAX_DEAD_ABOVE})
  SELECT id FROM above;
INSERT OR IGNORE INTO temp.kept_label SELECT label FROM main.extent WHERE label IS NOT NULL AND {OF_REGION};
INSERT OR IGNORE INTO temp.kept_stack SELECT stack FROM main.stacked WHERE {NEEDED["stacked"]};
"""  # noqa: S608
WITHOUT_PARENT = "UPDATE {}.process SET parent = NULL WHERE parent NOT IN (SELECT id FROM {}.process)"


class Needed(NamedTuple):
    """Rows of a capture, by table."""

    regions: set[int]
    processes: set[int]
    labels: set[int]
    stacks: set[int]


def choose(db: sqlite3.Connection, known: Needed, since_ns: int) -> Needed:
    """Note which rows are needed, and return them.

    known: those that the trace itself needs. since_ns: CLOCK_REALTIME; what has ended later is needed, too.
    """
    for table, rows in zip(("region", "process", "label", "stack"), known):
        db.execute(f"CREATE TEMP TABLE IF NOT EXISTS kept_{table} (id INTEGER PRIMARY KEY)")
        db.execute(f"DELETE FROM temp.kept_{table}")  # noqa: S608
        db.executemany(f"INSERT INTO temp.kept_{table} VALUES (?)", ((row,) for row in rows))  # noqa: S608
    for statement in CHOOSE.split(";")[:-1]:
        db.execute(statement, {"since": since_ns})
    found = (
        {row for (row,) in db.execute(KEPT.format(table)).fetchall()}
        for table in ("region", "process", "label", "stack")
    )
    return Needed(*found)


def copy(db: sqlite3.Connection, into: str, rows: dict[str, str], since_ns: int) -> None:
    """Copy rows of the main database into an attached one, which is empty. rows: NEEDED as chosen, or ALL."""
    for table, condition in rows.items():
        db.execute(
            f"INSERT INTO {into}.{table} SELECT * FROM main.{table} AS {table} WHERE {condition}",  # noqa: S608
            {"since": since_ns},
        )
    db.execute(WITHOUT_PARENT.format(into, into))


def read_all(db: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All rows by table, also those that are not committed."""
    found = {}
    for table in NEEDED:
        cursor = db.cursor()
        cursor.row_factory = None
        found[table] = cursor.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
    return found


def write_all(db: sqlite3.Connection, found: dict[str, list[tuple[Any, ...]]]) -> None:
    """Insert what read_all() has returned."""
    for table, rows in found.items():
        if rows:
            marks = ", ".join("?" for _ in rows[0])
            db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608


def drop_others(db: sqlite3.Connection, since_ns: int) -> None:
    """Delete what was not chosen. It is done whole or, if the process is killed, not at all."""
    for table, condition in reversed(NEEDED.items()):
        if condition != "1":
            db.execute(f"DELETE FROM main.{table} WHERE NOT ({condition})", {"since": since_ns})  # noqa: S608
    db.execute(WITHOUT_PARENT.format("main", "main"))


def reopen(db: sqlite3.Connection) -> None:
    """Delete what only the last account of a region has, for those that exist: the trace goes on."""
    for table in ("touched", "mapping"):
        db.execute(f"DELETE FROM {table} WHERE region IN (SELECT id FROM region WHERE gone_ns IS NULL)")  # noqa: S608
    db.execute("DELETE FROM unmapped")
    db.execute("UPDATE session SET complete = 0, sum_of_rss_bytes = NULL")
