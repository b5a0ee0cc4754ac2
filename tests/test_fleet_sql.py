"""The queries of docs/fleet.md, on a thousand captures: the same answers of SQLite and DuckDB, which were planted."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest

from tests import fleets, recorded
from tests.fleets import PLANTED, SCRIPT, SCRIPTS, grown_pages, host_name
from tests.recorded import shmtrace
from tracer.proc.shmem import PAGE_BYTES

DOCUMENT = Path(__file__).parents[1] / "docs/fleet.md"
QUERY = re.compile(r'^\$ sqlite3 fleet\.db "(.*?)"$', re.MULTILINE | re.DOTALL)
QUERIES = [query.replace("\n>", "\n") for query in QUERY.findall(DOCUMENT.read_text())]
OF_GROWTH = [query for query in QUERIES if "growth" in query]
UNLIMITED = re.compile(r" limit \d+$")
HOSTS = 1000


class Merged(NamedTuple):
    fleet: Path
    parquet: Path


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    directory = tmp_path_factory.mktemp("fleet")
    (directory / "captures").mkdir()
    fleets.make(directory / "captures", HOSTS)
    found = Merged(directory / "fleet.db", directory / "fleet.parquet")
    done = shmtrace("merge", directory / "captures", "-o", found.fleet, "--parquet", found.parquet)
    assert done.exit_code == 0, done.stderr
    return found


@pytest.fixture
def local_time() -> Iterator[None]:
    """Where a day is another one, that the two agree on what is local."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def by_sqlite(merged: Merged, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(merged.fleet)) as database:
        return database.execute(query).fetchall()


def by_duckdb(merged: Merged, query: str, zone: str = "UTC") -> list[tuple[Any, ...]]:
    with contextlib.closing(duckdb.connect()) as database:
        database.execute(f"SET TimeZone = '{zone}'")
        database.read_parquet(str(merged.parquet)).create_view("growth")
        return database.execute(query).fetchall()


@pytest.mark.usefixtures("in_utc")
@pytest.mark.parametrize("query", OF_GROWTH, ids=range(len(OF_GROWTH)))
def test_both_say_the_same(query: str, merged: Merged) -> None:
    for text in (query, UNLIMITED.sub("", query)):
        found = by_sqlite(merged, text)
        assert found == by_duckdb(merged, text)
        assert len(found) == (HOSTS if "total" in text and text != query else len(found)) > 0


@pytest.mark.usefixtures("in_utc")
def test_which_grew_since_the_deploy_and_by_what(merged: Merged) -> None:
    """104 of a thousand, each by another number of pages, all by f00007.php."""
    assert SCRIPT.endswith("f00007.php")
    planted = [(host_name(number), SCRIPT, grown_pages(number)) for number in reversed(range(PLANTED))]  # most first
    assert len(planted) == 104
    for ask in (by_sqlite, by_duckdb):
        assert ask(merged, UNLIMITED.sub("", QUERIES[0])) == planted
        assert ask(merged, QUERIES[1]) == [(SCRIPT, 104, sum(pages for _, _, pages in planted) * PAGE_BYTES)]


def test_how_full_they_are(merged: Merged) -> None:
    """Of the inode's own count: what was there before and what nobody saw, too."""
    pages = fleets.BEFORE_PAGES + fleets.NR_EXTENTS * fleets.EXTENT_PAGES + fleets.UNSEEN_PAGES
    found = by_sqlite(merged, "SELECT host, what, regions, size_bytes, allocated_bytes, grown_bytes FROM held")
    assert sorted(found) == sorted(
        row
        for number in range(HOSTS)
        for held in [(pages + grown_pages(number)) * PAGE_BYTES]
        for row in (
            (host_name(number), "opcache", 1, 256 << 20, held, held - fleets.BEFORE_PAGES * PAGE_BYTES),
            (host_name(number), "apcu", 1, 32 << 20, 5 * PAGE_BYTES, 0),
        )
    )


def test_all_rows_are_the_same(merged: Merged, local_time: None) -> None:
    """Of all columns, in another time zone; each page once."""
    text = "select {} from growth order by host, region, first_ns, process, pages"
    time_s = "strftime({}, '%Y-%m-%d %H:%M:%S') as time"
    names = [row[1] for row in sqlite3.connect(merged.fleet).execute("PRAGMA table_info(growth)")]
    rows = by_sqlite(merged, text.format(", ".join(names)))
    told = ", ".join(time_s.format("time") if name == "time" else f'"{name}"' for name in names)
    assert rows == by_duckdb(merged, text.format(told), "Asia/Kathmandu")
    assert rows[0][names.index("time")].startswith("2023-11-15 03:58")
    total = HOSTS * fleets.NR_EXTENTS * fleets.EXTENT_PAGES + sum(map(grown_pages, range(HOSTS)))
    assert sum(row[names.index("pages")] for row in rows) == total
    assert {row[names.index("script")] for row in rows} == set(SCRIPTS)


def test_it_is_for_its_owner_and_replaces_its_like(merged: Merged, tmp_path: Path) -> None:
    assert stat.S_IMODE(merged.parquet.stat().st_mode) == 0o600
    path, into, fleet = recorded.pool(tmp_path / "a.capture"), tmp_path / "x.parquet", tmp_path / "x.db"
    for _ in range(2):
        assert shmtrace("merge", path, "-o", fleet, "--parquet", into).exit_code == 0
    into.write_text("mine")
    before = fleet.stat().st_ino
    assert shmtrace("merge", path, "-o", fleet, "--parquet", into).exit_code == 1
    assert (into.read_text(), fleet.stat().st_ino) == ("mine", before)  # it is said before anything is merged
    assert shmtrace("merge", path, "-o", fleet, "--parquet", fleet).exit_code == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.capture", "x.db", "x.parquet"]


@pytest.mark.parametrize(
    "text", ["'); COPY growth TO '/tmp/x'; --", 'a"b', "a\0b", "\x1b[2J", "\u202e", "", "\\N", "NULL", "a\nb,c"]
)
def test_texts_stay_data(text: str, tmp_path: Path) -> None:
    path = recorded.with_labels(tmp_path / "a.capture", text=text)
    found = Merged(tmp_path / "x.db", tmp_path / "x.parquet")
    assert shmtrace("merge", path, "-o", found.fleet, "--parquet", found.parquet).exit_code == 0
    query = "select distinct file from growth order by file"
    assert by_duckdb(found, query + " nulls first") == by_sqlite(found, query)
    assert (text,) in by_duckdb(found, query)


def test_without_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    path = recorded.pool(tmp_path / "a.capture")
    done = shmtrace("merge", path, "-o", tmp_path / "x.db", "--parquet", tmp_path / "x.parquet")
    assert done.exit_code == 1
    assert done.stderr == "shmtrace: duckdb is not installed: `pip install 'shmtrace[parquet]'` brings it\n"
    assert not (tmp_path / "x.db").exists()
