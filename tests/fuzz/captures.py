"""Captures to begin with, and whatever reads one: for the fuzzers of captures."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests import captures, recorded
from tests.fuzz import harness, outputs
from tests.fuzz.harness import Given
from tracer.cli import reporting
from tracer.tables import groups

FILE, OTHER = "x.capture", "good.capture"
MADE = {"pool": recorded.pool, "stacks": recorded.with_stacks, "labels of a pool": recorded.with_labels}
NAMES = [*captures.NAMES, *MADE]
INTEGERS = 1 << 24  # up to which hypothesis draws evenly


PAIRS = ["command,region", "time,creator", "script,process", "unit,label"]


def _choices(command: Any, name: str) -> list[str]:
    (parameter,) = (parameter for parameter in command.params if parameter.name == name)
    return list(parameter.type.choices)


COMMANDS = [
    ["report", FILE, "--json"],
    ["report", FILE, "--json", "--since", "+1s", "--until", "-1s"],
    ["report", FILE, "--csv"],
    ["report", FILE, "--verify"],
    *(["report", FILE, "--by", by, *form] for by in [*groups.NAMES, *PAIRS] for form in ([], ["--json"])),
    *(["report", FILE, "--by", by, "--csv"] for by in ("process", "stack", "label")),
    *(["report", FILE, "--by", by, "--csv", "--sort", "allocated"] for by in ("region", "unit", "script")),
    ["report", FILE, "--by", "time", "--since", "+1s"],
    *(["diff", *files, *form] for files in ([OTHER, FILE], [FILE, OTHER]) for form in ([], ["--json"], ["--csv"])),
    ["html", FILE, "-o", "-"],
    ["report", FILE, "--region", "opcache", "-p", "php"],
    ["html", FILE, "-o", "-", "--region", "opcache"],
    *(["export", FILE, "--format", form, "-p", "php"] for form in _choices(reporting.export, "form")),
    *(["export", FILE, "--format", form] for form in _choices(reporting.export, "form")),
    *(["export", FILE, "--since", "+1s", "--until", "-1s", "--format", form] for form in ("folded", "pprof")),
    *(["export", file, "--base", base, "--format", "pprof"] for file, base in ((FILE, OTHER), (OTHER, FILE))),
]
commands = st.sampled_from([*[COMMANDS[0]] * 4, *COMMANDS])
names = st.sampled_from(NAMES)


@functools.cache
def good(name: str) -> Path:
    """One that is as it should be; made once a process, and not to be changed."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-captures-"))
    _directories.callback(shutil.rmtree, directory)
    path = directory / "capture"
    return MADE[name](path) if name in MADE else captures.load(name, path)


_directories = contextlib.ExitStack()
"""Closed by whoever runs fuzzers, at the end."""
close, on_close = _directories.close, _directories.callback


def put(given: Given, directory: Path) -> Path:
    """The files that commands are given: one to be changed, and one to compare it with."""
    shutil.copyfile(good("pool"), directory / OTHER)
    shutil.copyfile(good(given["capture"]), directory / FILE)
    return directory / FILE


@contextlib.contextmanager
def changing(path: Path) -> Iterator[sqlite3.Connection]:
    """As a stranger would: nothing is checked."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("synchronous = OFF", "journal_mode = OFF", "foreign_keys = OFF", "writable_schema = ON"):
            database.execute(f"PRAGMA {pragma}")
        yield database
    finally:
        database.close()


def give(given: Given) -> None:
    harness.command(*given["command"])


def check(given: Given, _directory: Path, stdout: str) -> None:
    """What was printed is what such a command prints, and balances."""
    command, *words = given["command"]
    form = words[words.index("--format") + 1] if "--format" in words else None
    if "--json" in given["command"]:
        document = outputs.document(stdout)
        if command == "report" and "regions" in document:
            outputs.balance(document)
        elif command == "report":
            outputs.nothing_negative(document["rows"], "")
    elif "--csv" in given["command"] or form == "csv":
        outputs.cells(stdout)
    elif form == "folded":
        outputs.folded(stdout)
    elif form in ("speedscope", "perfetto"):
        outputs.document(stdout)
    elif form == "svg":
        outputs.flame_graph(stdout)
    elif form == "pprof":
        outputs.compressed(stdout)
    elif command == "html":
        outputs.page(stdout)
    else:
        outputs.terminal(stdout)


def warm() -> None:
    for name in NAMES:
        good(name)
    path = str(good("labels of a pool"))
    harness.imported(*([path if word in (FILE, OTHER) else word for word in command] for command in COMMANDS))


@functools.cache
def allocated_bytes(name: str) -> int:
    """Of all regions of one that is as it should be, by SQL."""
    with contextlib.closing(sqlite3.connect(good(name))) as database:
        (found,) = database.execute("SELECT sum(allocated_bytes) FROM region").fetchone()
    return int(found)


@functools.cache
def schema() -> dict[str, list[str]]:
    """Columns by table, of a capture that is as it should be."""
    with contextlib.closing(sqlite3.connect(good("pool"))) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: [row[1] for row in database.execute(f"PRAGMA table_info({table})")] for table in tables}
