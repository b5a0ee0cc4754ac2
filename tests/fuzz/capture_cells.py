"""Captures that are sound files, of which cells hold what no trace would have written."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import captures
from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.values import sql, values
from tracer.capture.capture import NOT_SUMMED

OF_EXTENTS, OF_SUMS = 'ifnull(sum("end" - start), 0) FROM extent', "ifnull(sum(pages), 0) FROM touched"
# Of a capture that was cut off, what is allocated may be from before its last pages.
KNOWN = "4096 * (SELECT {pages} WHERE region = region.id) * (SELECT NOT max(complete) FROM session)"
FACTORS = [-1, 0, 1000, 2**40, 0.5]
PARENTS = [("process", "parent", "id"), ("process", "parent_tgid", "tgid"), ("region", "parent", "id")]


@st.composite
def changes(draw: st.DrawFn, of: dict[str, list[str]] | None = None) -> list[Any]:
    """of: the columns by table that there are; None: those of a capture."""
    of = of or captures.schema()
    kind = draw(st.sampled_from(["set", "set", "set", "set", "copy", "scale", "shift", "insert", "delete", "cycle"]))
    if kind == "cycle":
        return [kind, *draw(st.sampled_from(PARENTS))]
    table = draw(st.sampled_from(sorted(of)))
    columns = st.sampled_from(of[table])
    rows = [draw(columns), draw(st.sampled_from([1, 1, 2, 5]))]  # those whose number there has no rest
    if kind == "delete":
        return [kind, table, *rows]
    if kind == "insert":
        return [kind, table, draw(st.dictionaries(columns, values, min_size=1, max_size=4))]
    how = {"set": values, "copy": columns, "scale": st.sampled_from(FACTORS), "shift": st.integers(-3, 3)}
    return [kind, table, draw(columns), *rows, draw(how[kind])]


inputs = st.deferred(
    lambda: st.fixed_dictionaries(
        {
            "capture": captures.names,
            "changes": st.lists(changes(), min_size=1, max_size=4),
            "command": captures.commands,
        }
    )
)


def statement(what: str, table: str, *how: Any) -> str:
    if what == "insert":
        (row,) = how
        names, cells = (", ".join(part) for part in (map(_name, row), map(sql, row.values())))
        return f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({cells})"
    if what == "cycle":
        column, key = how
        after = f"(SELECT min({key}) FROM {table} AS other WHERE other.{key} > {table}.{key})"
        return f"UPDATE {table} SET {column} = coalesce({after}, (SELECT min({key}) FROM {table}))"
    *column, of, rest = how[: 2 if what == "delete" else 3]
    where = f"WHERE abs(coalesce({_name(of)}, 0)) % {rest} = 0"
    if what == "delete":
        return f"DELETE FROM {table} {where}"
    name = _name(column[0])
    new = {"set": sql, "copy": _name, "scale": f"{name} * {{}}".format, "shift": f"{name} + ({{}})".format}
    return f"UPDATE OR REPLACE {table} SET {name} = {new[what](how[3])} {where}"


def _name(column: str) -> str:
    return f'"{column}"'


def write(given: Given, directory: Path) -> None:
    with captures.changing(captures.put(given, directory)) as database:
        for change in given["changes"]:
            with contextlib.suppress(sqlite3.Error):  # a range, a type that this table does not take
                database.execute(statement(*change))


def check(given: Given, directory: Path, stdout: str) -> None:
    """Besides, what the report adds up is what SQL does."""
    captures.check(given, directory, stdout)
    if given["command"] != captures.COMMANDS[0]:
        return
    regions = json.loads(stdout)["regions"]
    uri = f"{(directory / captures.FILE).as_uri()}?immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        of = OF_EXTENTS if database.execute(NOT_SUMMED).fetchone() else OF_SUMS
        known = KNOWN.format(pages=of)
        ((allocated_bytes,),) = database.execute(f"SELECT sum(max(ifnull(allocated_bytes, 0), {known})) FROM region")
        ((pages,),) = database.execute(f"SELECT {of}")
    of_extents = [region["allocated_bytes"] - region["unseen_bytes"] for region in regions]
    assert sum(region["allocated_bytes"] for region in regions) == (allocated_bytes or 0), "other bytes are allocated"
    assert sum(of_extents) == pages * 4096, "other pages are touched"


FUZZER = Fuzzer("capture_cells", inputs, captures.give, 150, write, check, captures.warm)
