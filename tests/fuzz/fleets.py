"""Merged captures: of captures that strangers have changed, and merged files that strangers have changed themselves.

What was merged can be reported, and has what the captures have that were taken.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from tests.conftest import CHECKOUT
from tests.fuzz import capture_cells, capture_schema, captures, harness
from tests.fuzz.captures import FILE, OTHER
from tests.fuzz.harness import Fuzzer, Given
from tests.recorded import shmtrace
from tracer import account
from tracer.capture.fleet import open_any
from tracer.errors import ShmtraceError

FLEET = "fleet.db"
COMMANDS = [
    ["report", FLEET, "--json"],
    ["report", FLEET, "--json", "--since", "+1s", "--until", "-1s"],
    *(["report", FLEET, "--by", by, "--json"] for by in ("host", "host,what", "host,script", "region", "unmapped")),
    *(["report", FLEET, *form] for form in ([], ["--csv"], ["--verify"], ["--by", "host"], ["--by", "stack"])),
    *(["diff", *files, *form] for files in ([OTHER, FLEET], [FLEET, FLEET]) for form in ([], ["--json"], ["--csv"])),
    ["html", FLEET, "-o", "-"],
    ["report", FLEET, "--region", "opcache", "-p", "php"],
    ["export", FLEET, "--format", "csv"],
    ["merge", FLEET, OTHER, "-o", "other.db"],
    ["merge", FILE, OTHER, "-o", "other.db"],
    ["merge", FILE, OTHER, "-o", "other.db", "--parquet", "other.parquet"],
]


@functools.cache
def schema() -> dict[str, list[str]]:
    """Columns by table, of a fleet that is as it should be."""
    with contextlib.closing(sqlite3.connect(good())) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: [row[1] for row in database.execute(f"PRAGMA table_info({table})")] for table in tables}


@functools.cache
def good() -> Path:
    """One that is as it should be; made once a process, and not to be changed."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-fleets-"))
    captures.on_close(shutil.rmtree, directory)
    names = ("labels of a pool", "stacks", "pool")
    paths = [Path(shutil.copyfile(captures.good(name), directory / name)) for name in names]
    for number, path in enumerate(paths):
        with captures.changing(path) as database:
            database.execute("UPDATE session SET host = ?, ended_ns = ended_ns + ?", (f"web{number // 2}", number))
    # in a process of its own, for what reads a capture sets limits to SQLite, which the process then has
    command = [sys.executable, "-m", "tracer", "merge", *paths, "-o", directory / FLEET]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    return directory / FLEET


inputs = st.deferred(
    lambda: st.sampled_from([FILE, FLEET]).flatmap(
        lambda changed: st.fixed_dictionaries(
            {
                "changed": st.just(changed),
                "capture": captures.names,
                "cells": st.lists(
                    capture_cells.changes(schema() if changed == FLEET else None), min_size=1, max_size=3
                ),
                "schema": st.lists(capture_schema.changes(), max_size=1),
                "command": st.sampled_from([*[COMMANDS[0]] * 4, *COMMANDS]),
            }
        )
    )
)


def write(given: Given, directory: Path) -> None:
    captures.put(given, directory)
    if given["changed"] == FLEET:
        shutil.copyfile(good(), directory / FLEET)
    with captures.changing(directory / given["changed"]) as database:
        for change in given["cells"]:
            with contextlib.suppress(sqlite3.Error):
                database.execute(capture_cells.statement(*change))
    if given["schema"]:
        capture_schema.change_all(directory / given["changed"], given["schema"])


def give(given: Given) -> None:
    if given["changed"] == FILE:
        done = shmtrace("merge", FILE, OTHER, "-o", FLEET)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert Path(FLEET).exists(), f"what is as it should be was not merged: {done.stderr}"
        _can_be_read()
    harness.command(*given["command"])


def _can_be_read() -> None:
    """What was merged, and all of it is there."""
    try:
        with open_any(Path(FLEET)) as capture:
            account.read(capture)
            capture.verify_sums()
    except ShmtraceError as error:
        if "the sums of region" not in str(error):  # they are those of the capture
            raise AssertionError(f"what was merged cannot be read: {error}") from None
    pages = 'SELECT ifnull(sum("end" - start), 0) FROM extent'
    with contextlib.closing(sqlite3.connect(FLEET)) as database:
        sessions = database.execute("SELECT id FROM session").fetchall()
        [(found,)] = database.execute(pages)
        assert not database.execute("PRAGMA foreign_key_check").fetchall(), "a row refers to none"
    if len(sessions) == 2:
        own = 0
        for path in (FILE, OTHER):
            uri = f"{Path(path).absolute().as_uri()}?immutable=1"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
                own += database.execute(pages).fetchone()[0]
        assert own == found, "other pages are merged than there are"


def check(given: Given, directory: Path, stdout: str) -> None:
    if given["command"][0] == "merge":
        assert stat.S_IMODE((directory / "other.db").stat().st_mode) == 0o600
    else:
        captures.check(given, directory, stdout)
    if given["command"] == COMMANDS[0]:
        document = json.loads(stdout)
        for figure in ("allocated_bytes", "before_bytes", "unseen_bytes"):
            of_regions = sum(region[figure] for region in document["regions"])
            assert of_regions == sum(row[figure] for row in document["hosts"]), f"the hosts have other {figure}"


def made(_given: Given) -> set[str]:
    return {FLEET, "other.db", "other.parquet"}


def warm() -> None:
    captures.warm()
    path = str(good())
    harness.imported(*([path if word == FLEET else word for word in command] for command in COMMANDS[:-3]))


FUZZER = Fuzzer("fleets", inputs, give, 80, write, check, warm, made)
