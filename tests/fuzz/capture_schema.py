"""Captures that are sound databases of another schema than they should be: what a stranger has SQLite do on reading."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import captures
from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.values import sql, values

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
ROWS = [
    f"{ENDLESS} SELECT {{was}}.* FROM {{was}}, c",
    f"{ENDLESS} SELECT {{was}}.* FROM {{was}} ORDER BY (SELECT max(x) FROM c)",
    "SELECT {was}.* FROM {was}, {was} AS a, {was} AS b, {was} AS c, {was} AS d, {was} AS e, {was} AS f, {was} AS g",
    "SELECT * FROM {was}",
    "SELECT * FROM {was} WHERE randomblob(1000000000) IS NULL",
    "SELECT * FROM {was} WHERE load_extension('./x.so') IS NULL",
    "SELECT * FROM {was} WHERE abs(-9223372036854775807 - 1) > 0",
    "SELECT * FROM {was} WHERE length(hex(zeroblob(400000000))) > 0",
    "SELECT * FROM {was} WHERE like('%a%a%a%a%a%a%a%a%a%a%b', printf('%.*c', 20000, 'a'))",
    "SELECT * FROM {table}",
]
EXPRESSIONS = [
    "abs(-9223372036854775807 - 1)", "random()", "hex(zeroblob(400000000))", "printf('%.*c', 1000000, 'x')",
    "likelihood(1, 0.5)", "no_such_function(1)", "json('{')", "1 / 0", "'x'", "-1",
]  # fmt: skip
TYPES = ["TEXT", "BLOB", "REAL", "ANY", "INTEGER UNIQUE", "INTEGER NOT NULL DEFAULT 7", "TEXT COLLATE NOCASE", ""]
MODULES = ["fts5(a, b)", "fts4(a, b)", "rtree(id, x, y)", "dbstat", "sqlite_stmt", "no_such_module(a)"]
PRAGMAS = [
    *("user_version = 0", "user_version = 3", "user_version = -1", "application_id = 0", "application_id = -1"),
    *("journal_mode = WAL", "auto_vacuum = FULL", "legacy_file_format = 1", "schema_version = 2147483647"),
]
FORMATS = ["page_size = 512", "page_size = 65536", "encoding = 'UTF-16le'", "encoding = 'UTF-16be'", "auto_vacuum = 1"]

PATIENCE_S = 1.0  # far longer than a change takes that is not endless itself
STEPS = 1000  # of SQLite's machine, between two looks at the clock


@st.composite
def changes(draw: st.DrawFn) -> list[Any]:
    table = draw(st.sampled_from(sorted(captures.schema())))
    column = draw(st.sampled_from(captures.schema()[table]))
    expressions = st.sampled_from(EXPRESSIONS)
    kinds: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
        "view": (st.sampled_from(ROWS),),
        "drop table": (),
        "drop column": (st.just(column),),
        "rename table": (st.sampled_from(["x", "sums", "SESSION ", 'a"b', "sqlite", "growth2"]),),
        "rename column": (st.just(column), st.sampled_from(["x", "rowid", "rank", 'a"b', "region2", ""])),
        "type": (st.just(column), st.sampled_from(TYPES)),
        "generated": (st.just(column), expressions),
        "index": (st.just(column), st.sampled_from([one for one in EXPRESSIONS if "zeroblob" not in one])),
        "trigger": (st.sampled_from(["INSERT", "UPDATE", "DELETE"]),),
        "virtual": (st.sampled_from(MODULES),),
        "without rowid": (st.booleans(),),
        "extra column": (st.sampled_from(["x", "_", "é", "sum", "key"]), values),
        "extra table": (st.sampled_from(["sums", "x", "growth2", "sqlite_stat1"]),),
        "sql": (st.sampled_from(["", "x", "CREATE TABLE", "CREATE VIEW x AS SELECT 1", "SELECT 1", "é", "\0"]),),
        "root": (st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**40]),),
        "pragma": (st.sampled_from(PRAGMAS),),
        "format": (st.sampled_from(FORMATS),),
    }
    kind = draw(st.sampled_from(sorted(kinds)))
    return [kind, table, *(draw(strategy) for strategy in kinds[kind])]


inputs = st.deferred(
    lambda: st.fixed_dictionaries(
        {
            "capture": captures.names,
            "changes": st.lists(changes(), min_size=1, max_size=3),
            "command": captures.commands,
        }
    )
)


def change(database: sqlite3.Connection, what: str, table: str, *how: Any) -> None:
    """Raises sqlite3.Error."""
    one, other = (*how, None, None)[:2]
    was = f"was_{table}"
    if what == "view":
        database.execute(f"ALTER TABLE {table} RENAME TO {was}")
        database.execute(f"CREATE VIEW {table} AS {one.format(was=was, table=table)}")
    elif what == "drop table":
        database.execute(f"DROP TABLE {table}")
    elif what == "drop column":
        database.execute(f"ALTER TABLE {table} DROP COLUMN {_name(one)}")
    elif what == "rename table":
        database.execute(f"ALTER TABLE {table} RENAME TO {_name(one)}")
    elif what == "rename column":
        database.execute(f"ALTER TABLE {table} RENAME COLUMN {_name(one)} TO {_name(other)}")
    elif what in ("type", "generated", "without rowid"):
        _remake(database, table, what, one, other)
    elif what == "index":
        database.execute(f"CREATE INDEX {was} ON {table} ({_name(one)}, {other}) WHERE {_name(one)} IS NOT NULL")
    elif what == "trigger":
        database.execute(f"CREATE TRIGGER {was} BEFORE {one} ON {table} BEGIN DELETE FROM {table}; END")
    elif what == "virtual":
        database.execute(f"ALTER TABLE {table} RENAME TO {was}")
        database.execute(f"CREATE VIRTUAL TABLE {table} USING {one}")
    elif what == "extra column":
        database.execute(f"ALTER TABLE {table} ADD COLUMN {_name(one)} DEFAULT ({sql(other)})")
    elif what == "extra table":
        database.execute(f"CREATE TABLE {one} AS SELECT * FROM {table}")
    elif what in ("sql", "root"):
        column = {"sql": "sql", "root": "rootpage"}[what]
        database.execute(f"UPDATE sqlite_master SET {column} = ? WHERE name = ?", (one, table))
    elif what == "pragma":
        database.execute(f"PRAGMA {one}")
    else:
        database.execute(f"PRAGMA {one}")
        database.execute("VACUUM")


def _remake(database: sqlite3.Connection, table: str, what: str, one: Any, other: Any) -> None:
    """The same rows in a table whose columns are declared otherwise."""
    columns = captures.schema()[table]
    declared = {column: f"{_name(column)} INTEGER" if column.endswith("_ns") else _name(column) for column in columns}
    if what == "type":
        declared[one] = f"{_name(one)} {other}"
    elif what == "generated":
        declared[one] = f"{_name(one)} AS ({other})"
    kept = ", ".join(_name(column) for column in columns if what != "generated" or column != one)
    key = f", PRIMARY KEY ({_name(columns[0])}, {_name(columns[-1])})" if what == "without rowid" else ""
    end = "WITHOUT ROWID" if what == "without rowid" and one else ""
    database.execute(f"ALTER TABLE {table} RENAME TO was_{table}")
    database.execute(f"CREATE TABLE {table} ({', '.join(declared.values())}{key}) {end}")
    database.execute(f"INSERT OR IGNORE INTO {table} ({kept}) SELECT {kept} FROM was_{table}")
    database.execute(f"DROP TABLE was_{table}")


def _name(column: str) -> str:
    return '"{}"'.format(column.replace('"', '""'))


def write(given: Given, directory: Path) -> None:
    change_all(captures.put(given, directory), given["changes"])


def change_all(path: Path, changes: Sequence[list[Any]]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    with captures.changing(path) as database:
        database.execute("PRAGMA legacy_alter_table = ON")  # what the view says of a table stays
        database.set_progress_handler(lambda: time.monotonic() > end_s, STEPS)  # a change may be endless, too
        for each in changes:
            with contextlib.suppress(sqlite3.Error):
                change(database, *each)
    for beside in ("-wal", "-shm"):  # of what has the journal of the last pragma
        path.with_name(f"{path.name}{beside}").unlink(missing_ok=True)


FUZZER = Fuzzer("capture_schema", inputs, captures.give, 120, write, captures.check, captures.warm)
