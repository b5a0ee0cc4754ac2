"""What was touched on many hosts, as Parquet: the view growth of a fleet, for DuckDB and warehouses."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from tracer.errors import ShmtraceError

ROWS_AT_ONCE = 10_000
TYPES = {"TEXT": "VARCHAR", "INTEGER": "BIGINT", "": "BIGINT"}
"""By the type that SQLite tells of a column; of one that is computed it tells none."""
TIME = "time"
MAGIC = b"PAR1"  # what a Parquet file begins with


def is_parquet(path: Path) -> bool:
    """Whether a file begins like one. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def write(fleet: Path, into: Path) -> None:
    """Write the view growth of a fleet that was just made into a new file in a private directory. Raises ShmtraceError.

    The columns are those of the view; time has a time zone. What strangers wrote is only ever passed as values.
    """
    import duckdb

    aside = into.with_name("duckdb")  # not in memory: there may be very many rows
    with contextlib.closing(sqlite3.connect(fleet)) as source, contextlib.closing(duckdb.connect(aside)) as target:
        types = {row[1]: TYPES[row[2]] for row in source.execute("PRAGMA table_info(growth)")}
        declared = ", ".join(f'"{name}" {"TIMESTAMPTZ" if name == TIME else kind}' for name, kind in types.items())
        target.execute(f"CREATE TABLE growth ({declared})")
        values = [
            "to_timestamp(unnest(?::BIGINT[]))" if name == TIME else f"unnest(?::{kind}[])"
            for name, kind in types.items()
        ]
        names = ", ".join("first_ns / 1000000000" if name == TIME else f'"{name}"' for name in types)
        rows = source.execute(f"SELECT {names} FROM growth")  # noqa: S608
        try:
            while some := rows.fetchmany(ROWS_AT_ONCE):
                target.execute(
                    f"INSERT INTO growth SELECT {', '.join(values)}", [list(column) for column in zip(*some)]
                )
            target.table("growth").write_parquet(str(into))
        except (duckdb.Error, OSError) as error:
            raise ShmtraceError(f"the Parquet file cannot be written ({error})", "make room") from None
