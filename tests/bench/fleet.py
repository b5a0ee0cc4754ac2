"""What it takes to merge the captures of a thousand hosts, and to ask the result: in SQL, in DuckDB, and by reports."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests import captures, fleets
from tests.bench.observers import ROOT, SHMTRACE
from tests.bench.rounds import print_table, run_rounds
from tests.test_fleet_sql import OF_GROWTH, QUERIES

HOSTS = 1000
MIB = 1 << 20


def bench(directory: Path, rounds: int) -> None:
    """Of made-up ones of 100 kB, of those that were recorded, and of each what documents ask."""
    rounds = min(rounds, 3)
    made, recorded = directory / "made", directory / "recorded"
    for each in (made, recorded):
        each.mkdir()
    fleets.make(made, HOSTS)
    _record(recorded)
    fleet, parquet = directory / "fleet.db", directory / "fleet.parquet"
    commands: dict[str, list[str | Path]] = {
        "merge": ["merge", made, "-o", fleet],
        "merge, of captures that were recorded": ["merge", recorded, "-o", directory / "recorded.db"],
        "merge --parquet": ["merge", made, "-o", directory / "other.db", "--parquet", parquet],
        "report": ["report", fleet],
        "report --by host,script": ["report", fleet, "--by", "host,script"],
        "report --json": ["report", fleet, "--json"],
        "diff, with itself": ["diff", fleet, fleet],
        "html": ["html", fleet, "-o", "-"],
    }
    peaks_mib: dict[str, float] = {}
    measured = run_rounds({name: partial(_seconds, name, words, peaks_mib) for name, words in commands.items()}, rounds)
    title = f"captures of {HOSTS} hosts, {_mib(*made.iterdir()):.0f} MiB, and {_mib(*recorded.iterdir()):.0f} recorded"
    print_table(title, "seconds", measured, {"merge": "10", "merge, of captures that were recorded": "10"})
    for name, values in measured.items():
        print(f"{name}: at worst {max(values):.2f} s, peak RSS {peaks_mib[name]:.0f} MiB")
    print(f"the merged file {_mib(fleet):.1f} MiB, of those recorded {_mib(directory / 'recorded.db'):.1f} MiB")
    print(f"as Parquet {_mib(parquet):.2f} MiB")
    _ask(fleet, parquet, rounds)


def _record(directory: Path) -> None:
    """As many hosts, each with one of the captures that were recorded."""
    contents = []
    for name in captures.NAMES:
        contents.append(captures.load(name, directory / name).read_bytes())
        (directory / name).unlink()
    for number in range(HOSTS):
        path = directory / f"{number}.capture"
        path.write_bytes(contents[number % len(contents)])
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("UPDATE session SET host = ?", (f"host{number}",))
            database.commit()


def _seconds(name: str, words: list[str | Path], peaks_mib: dict[str, float]) -> float:
    began_s = time.monotonic()
    command = [*SHMTRACE, *map(str, words)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    took_s = time.monotonic() - began_s
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    peaks_mib[name] = max(peaks_mib.get(name, 0), usage.ru_maxrss * 1024 / MIB)
    return took_s


def _ask(fleet: Path, parquet: Path, rounds: int) -> None:
    """Each query of docs/fleet.md, each time of a new connection."""
    import duckdb

    def sqlite(query: str) -> None:
        with contextlib.closing(sqlite3.connect(fleet)) as database:
            database.execute(query).fetchall()

    def duck(query: str) -> None:
        with contextlib.closing(duckdb.connect()) as database:
            database.read_parquet(str(parquet)).create_view("growth")
            database.execute(query).fetchall()

    def seconds(ask: Callable[[str], None], query: str) -> float:
        began_s = time.monotonic()
        ask(query)
        return time.monotonic() - began_s

    variants = {f"query {number}, SQLite": partial(seconds, sqlite, query) for number, query in enumerate(QUERIES, 1)}
    variants |= {f"query {number}, DuckDB": partial(seconds, duck, query) for number, query in enumerate(OF_GROWTH, 1)}
    measured = run_rounds(variants, rounds)
    print_table("the queries of docs/fleet.md, in their order", "seconds", measured, dict.fromkeys(variants, "1"))
    for name, values in measured.items():
        print(f"{name}: at worst {max(values):.3f} s")


def _mib(*paths: Path) -> float:
    return sum(path.stat().st_size for path in paths) / MIB
