"""Captures by region, by process and by time, and two of them compared: the answers are known to the page."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.captures import make
from tests.recorded import BEGAN_NS, END_S, at, pool, shmtrace, with_labels
from tests.test_views import MASTER, make_region, process, toucher
from tests.test_views import account as account_of
from tracer import account, window
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.model import ALL_TIME, Account, Parent, Window
from tracer.proc.shmem import PAGE_BYTES
from tracer.tables import by_time, diff, rollup
from tracer.tables.table import Table

pytestmark = pytest.mark.usefixtures("in_utc")

UTC_DAY = "2023-11-14"


def read(path: Path, window: Window = ALL_TIME) -> Account:
    with Capture.open(path) as capture:
        return account.read(capture, window)


def pages(table: Table, name: str) -> list[Any]:
    (column,) = [column for column in table.columns if column.name == name]
    return [value // PAGE_BYTES if isinstance(value, int) else value for value in map(column.get, table.rows)]


def values(table: Table, name: str) -> list[Any]:
    (column,) = [column for column in table.columns if column.name == name]
    return [column.get(row) for row in table.rows]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, as such captures go, and made by other hands than the tables."""
    path = tmp_path_factory.mktemp("large") / "capture"
    make(path, nr_extents=9_973, nr_processes=301, nr_regions=7)
    return path


# ---- the window ----


@pytest.mark.parametrize(
    ("since_s", "until_s", "touched", "outside"),
    [
        (None, None, 30, 0),
        (2.5, None, 30, 0),
        (None, 2.5, 0, 30),
        (2.6, None, 16, 14),
        (2.5, 20.5, 14, 16),
        (20.5, 20.9, 9, 21),
        (-100, 100, 30, 0),
    ],
)
def test_the_balance_holds_in_every_window(
    since_s: float | None, until_s: float | None, touched: int, outside: int, tmp_path: Path
) -> None:
    window = Window(*(None if seconds is None else at(seconds) for seconds in (since_s, until_s)))
    opcache, _ = read(pool(tmp_path / "x"), window).regions
    parts = (opcache.touched_bytes, opcache.other_times_bytes, opcache.before_bytes, opcache.unseen_bytes)
    assert [part // PAGE_BYTES for part in parts] == [touched, outside, 11, 2]
    assert sum(parts) == opcache.allocated_bytes


def test_windows_add_up(large: Path) -> None:
    found = read(large)
    whole, session = sum(region.touched_bytes for region in found.regions), found.session
    edges = [None, *(session.started_ns + part * 10**12 + 1 for part in (1, 3, 8)), None]
    windows = [Window(*pair) for pair in zip(edges, edges[1:])]
    assert sum(region.touched_bytes for window in windows for region in read(large, window).regions) == whole > 0


# ---- times ----


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("22:13", -20),
        ("22:14:00", 40),
        ("22:13:30.5", 10.5),
        (f"{UTC_DAY} 22:13", -20),
        (f"{UTC_DAY}T22:14:00Z", 40),
        (f"{UTC_DAY}T23:14:00+01:00", 40),
        (f"{UTC_DAY}T22:14:00.25Z", 40.25),
        ("+30s", 30),
        ("-5m", END_S - 300),
        ("+1h1m1s", 3661),
        ("0:00", -22 * 3600 - 13 * 60 - 20),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert window.parse(text, BEGAN_NS, at(END_S)) == at(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "14",
        "25:00",
        "14:60",
        "30s",
        "+",
        "+5",
        "-5w",
        "tomorrow",
        "1:2",
        "14:00\x1b[2J",
        "²:00",
        "+99999d",
        "-9999999d",
        "2263-01-01 00:00:00Z",
        "1677-01-01",
        "9" * 5000,
    ],
)
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ShmtraceError, match="is not a time: write 14:00") as raised:
        window.parse(text, BEGAN_NS, at(END_S))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200


def test_the_time_of_a_day_over_midnight() -> None:
    started_ns, ended_ns = at(6000), at(6000 + 3600)  # 23:53:20 to 00:53:20
    assert window.parse("00:10", started_ns, ended_ns) == at(6000 + 1000)
    assert window.parse("23:55", started_ns, ended_ns) == at(6000 + 100)
    assert window.parse("01:00", started_ns, ended_ns) == at(6000 + 4000)
    with pytest.raises(ShmtraceError, match="occurs on 2 days of the capture: add the day, as in '2023-11-14 23:55'"):
        window.parse("23:55", started_ns, ended_ns + 86400 * 10**9)


def test_an_hour_that_is_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    for text in ("2026-10-25 02:30", "2026-03-29 02:30"):
        with pytest.raises(ShmtraceError, match="occurs twice or never"):
            window.parse(text, BEGAN_NS, at(END_S))
    assert window.parse("2026-10-25 02:30+02:00", BEGAN_NS, at(END_S)) == 1_792_888_200 * 10**9


def test_windows_that_are_none(tmp_path: Path) -> None:
    session = read(pool(tmp_path / "x")).session
    for since, until in (("22:15", None), (None, "22:13:20"), ("+1h", "+2h"), ("22:00", "22:01")):
        with pytest.raises(ShmtraceError, match="the capture is from 2023-11-14 22:13:20 to 2023-11-14 22:14:01"):
            window.window(since, until, session)
    with pytest.raises(ShmtraceError, match="swap them"):
        window.window("+5s", "+5s", session)
    assert window.window("+5s", None, session) == Window(at(5), None)


# ---- by region ----


def test_by_region(tmp_path: Path) -> None:
    with Capture.open(pool(tmp_path / "x")) as capture:
        table = rollup.by_region(account.read(capture), capture)
        assert values(table, "what") == ["opcache?", "apcu?"]
        assert pages(table, "allocated_bytes") == [43, 5]
        assert pages(table, "grown_bytes") == [32, 5]
        assert values(table, "grower") == ["812 php-fpm: pool www", "813 php-fpm: pool www"]
        assert pages(table, "grower_bytes") == [23, 5]
        assert values(table, "creator") == [811, 811]
        window = Window(at(20), at(25))
        table = rollup.by_region(account.read(capture, window), capture)
        assert pages(table, "grown_bytes") == [16, 0]
        assert values(table, "grower") == ["812 php-fpm: pool www", ""]
        assert pages(table, "grower_bytes") == [9, 0]


# ---- by process ----


def test_by_process(tmp_path: Path) -> None:
    table = rollup.by_process(read(pool(tmp_path / "x")))
    assert values(table, "tgid") == [812, 813]
    assert pages(table, "touched_bytes") == [23, 12]
    assert pages(table, "freed_bytes") == [3, 0]
    assert values(table, "faults") == [None, None]
    assert values(table, "exited_ns") == [at(30), None]
    assert values(table, "regions") == ["opcache? 1047", "opcache? 1047, apcu? 1048"]


def test_by_process_agrees_with_sql(large: Path) -> None:
    table = rollup.by_process(read(large))
    query = (
        'SELECT tgid, sum("end" - start) FROM extent JOIN process ON process.id = process GROUP BY process ORDER BY 1'
    )
    assert sorted(zip(values(table, "tgid"), pages(table, "touched_bytes"))) == sql(large, query)


def sql(path: Path, query: str) -> list[Any]:
    database = sqlite3.connect(path)
    found = database.execute(query).fetchall()
    database.close()
    return found


# ---- by time ----


def test_by_time(tmp_path: Path) -> None:
    with Capture.open(pool(tmp_path / "x")) as capture:
        table = by_time.by_time(account.read(capture), capture)
    assert values(table, "time_ns") == [at(seconds) for seconds in range(0, END_S, 2)]
    assert values(table, "until_ns") == [*(at(seconds) for seconds in range(2, END_S, 2)), at(END_S)]
    # the second region is 5 pages from 8 s to 13 s
    assert pages(table, "allocated_bytes") == [11, 27, 27, 32, 32, 32, 27, 27, 27, 27, *[43] * 11]
    assert pages(table, "touched_bytes") == [0, 14, 0, 5, 0, 0, 0, 0, 0, 0, 16, *[0] * 10]
    assert pages(table, "grown_bytes")[10] == 16
    assert values(table, "grower")[10] == "812 php-fpm: pool www"
    assert pages(table, "grower_bytes")[10] == 9
    assert values(table, "started") == [1, 0, 1, *[0] * 18]
    assert values(table, "exited") == [*[0] * 15, 1, *[0] * 5]


def test_by_time_in_a_window(tmp_path: Path) -> None:
    with Capture.open(pool(tmp_path / "x")) as capture:
        table = by_time.by_time(account.read(capture, Window(at(20.6), at(22))), capture)
    assert values(table, "time_ns") == [at(20.6), at(21)]
    assert pages(table, "touched_bytes") == [7, 0]
    assert pages(table, "grown_bytes") == [16, 0]  # seen at 21 s, by the sample taken then


@pytest.mark.parametrize("window", [ALL_TIME, Window(1_764_057_600_000_000_000, 1_764_057_900_000_000_000)])
def test_by_time_adds_up(window: Window, large: Path) -> None:
    with Capture.open(large) as capture:
        found = account.read(capture, window)
        table = by_time.by_time(found, capture)
    assert 10 <= len(table.rows) <= by_time.MAX_BUCKETS + 1
    assert sum(pages(table, "touched_bytes")) * PAGE_BYTES == sum(region.touched_bytes for region in found.regions) > 0
    held = [row.allocated_bytes for row in table.rows]
    grown = [row.grown_bytes for row in table.rows]
    assert [b - a for a, b in zip(held, held[1:])] == grown[1:]
    if window == ALL_TIME:
        assert held[-1] == sum(region.allocated_bytes for region in found.regions if region.gone_ns is None)


@pytest.mark.parametrize(
    ("seconds", "size_s"), [(0, 1), (20, 1), (41, 2), (300, 30), (3600, 300), (86400, 3600), (7 * 86400, 12 * 3600)]
)
def test_buckets(seconds: int, size_s: int) -> None:
    origin_ns, size_ns, _ = by_time._parts(BEGAN_NS, BEGAN_NS + seconds * 10**9)
    assert size_ns == size_s * 10**9
    assert origin_ns % size_ns == 0
    assert 0 <= BEGAN_NS - origin_ns < size_ns


# ---- by parent ----


@pytest.mark.parametrize("window", [ALL_TIME, Window(at(20), at(25))])
def test_the_shares_of_a_region_are_all_it_has(window: Window, tmp_path: Path) -> None:
    table = rollup.by_parent(read(pool(tmp_path / "x"), window))
    assert {*values(table, "part")} == {"touched", "other_times", "before", "unseen"}
    assert sum(pages(table, "allocated_bytes")) == 48


# ---- two captures ----


def row(table: Table) -> list[tuple[str, str, int, int]]:
    return [
        (one.what, one.how, one.touched_a_bytes // PAGE_BYTES, one.touched_b_bytes // PAGE_BYTES) for one in table.rows
    ]


def test_a_diff_of_one_boot(tmp_path: Path) -> None:
    found = diff.diff(read(pool(tmp_path / "a")), read(pool(tmp_path / "b", more_pages=17)))
    assert found.same_boot
    assert row(found.regions) == [("opcache?", "same", 30, 47)]
    assert row(found.processes) == [("php-fpm: pool www", "same", 7, 24), ("php-fpm: pool www", "same", 23, 23)]
    assert found.regions.total.allocated_change_bytes == 17 * PAGE_BYTES
    assert found.processes.total.touched_change_bytes == 17 * PAGE_BYTES
    assert found.processes.total.allocated_change_bytes is None


def test_a_diff_of_two_boots(tmp_path: Path) -> None:
    found = diff.diff(read(pool(tmp_path / "a", more_pages=17)), read(pool(tmp_path / "b", moved=True)))
    assert not found.same_boot
    assert row(found.regions) == [("opcache?", "alike", 47, 30)]
    assert row(found.processes) == [("php-fpm: pool www", "alike", 47, 30)]
    assert diff._number(found.processes.rows[0]) == "×2"
    assert found.regions.total.allocated_change_bytes == -17 * PAGE_BYTES


def test_a_diff_of_what_has_nothing_in_common(tmp_path: Path) -> None:
    first = read(pool(tmp_path / "a"))
    second = read(pool(tmp_path / "b", command="other", moved=True))
    parents = [
        parent._replace(process=parent.process._replace(command="x", comm="x"))
        for parent in second.parents
        if parent.process
    ]
    found = diff.diff(first, second._replace(parents=parents))
    assert row(found.regions) == [("opcache?", "gone", 30, 0), ("/dev/zero", "new", 0, 30)]
    assert row(found.processes) == [("php-fpm: pool www", "gone", 30, 0), ("other", "new", 0, 30)]
    assert found.regions.total.allocated_change_bytes == 0


@pytest.mark.parametrize(
    ("command", "comm", "size_bytes", "how"),
    [
        ("/srv/release/42/service /srv/release/42/service.conf", "service", 64 << 20, "alike"),  # the next release
        ("/srv/release/41/service /srv/release/41/service.conf", "service", 96 << 20, "alike"),  # more memory
        ("/srv/current/service --new", "service", 96 << 20, "alike"),  # the same program is all that they share
        ("/srv/release/42/other /srv/release/42/service.conf", "other", 64 << 20, "new"),
    ],
)
def test_a_diff_across_a_restart(command: str, comm: str, size_bytes: int, how: str) -> None:
    """In one boot; and the other regions of a kind are told together, with how many they were."""
    first = process(811, "/srv/release/41/service /srv/release/41/service.conf", comm="service", started_ns=at(1))
    second = process(911, command, comm=comm, started_ns=at(2))
    files = [make_region(20 + i, before=1, kind="posix", name=f"/dev/shm/job-{i}") for i in range(3)]
    a = account_of(Parent(first, [make_region(1, toucher(first, 1031), size_bytes=64 << 20), *files[:2]]))
    b = account_of(Parent(second, [make_region(2, toucher(second, 1301), size_bytes=size_bytes), files[2]]))
    found = diff.diff(a, b)
    (first_row, *_), rows = [one for one in found.regions.rows if one.what == "/dev/zero"], found.regions.rows
    if how == "alike":
        assert (first_row.how, first_row.allocated_change_bytes) == ("alike", 270 * PAGE_BYTES)
        assert [(one.what, diff._number(one), one.allocated_change_bytes) for one in rows[1:]] == [
            ("/dev/shm/job-#", "×2→1", -PAGE_BYTES)
        ]
    else:
        assert sorted(one.how for one in rows if one.what == "/dev/zero") == ["gone", "new"]


def test_a_diff_of_more_than_a_handful_of_processes() -> None:
    workers = [process(812 + i, exited=20 if i < 3 else None) for i in range(6)]
    rows = [toucher(worker, 7 + i) for i, worker in enumerate(workers)]
    master = process(811, MASTER)
    a, b = (account_of(Parent(master, [make_region(1, *some)])) for some in (rows[:3], rows))
    (pool_row,) = diff.diff(a, b).processes.rows
    assert (pool_row.what, pool_row.how, diff._number(pool_row)) == ("php-fpm: pool www", "alike", "×3→6")
    assert pool_row.touched_change_bytes == (10 + 11 + 12) * PAGE_BYTES


def test_a_diff_by_label(tmp_path: Path) -> None:
    a, b = read(with_labels(tmp_path / "a")), read(with_labels(tmp_path / "b", "/srv/www/new.php"))
    table = diff.diff(a, b).labels
    assert table
    assert row(table) == [
        ("/srv/www/vendor/autoload.php", "gone", 14, 0),
        ("/srv/www/new.php", "new", 0, 14),
        ("?", "same", 9, 9),
        ("/srv/www/index.php", "same", 7, 7),
    ]
    assert table.total.touched_change_bytes == 0
    assert "/srv/www/new.php" in shmtrace("diff", tmp_path / "a", tmp_path / "b").stdout
    assert "label,/srv/www/new.php," in shmtrace("diff", tmp_path / "a", tmp_path / "b", "--csv").stdout
    assert diff.diff(a, read(pool(tmp_path / "c"))).labels is None


def test_a_diff_of_nothing(tmp_path: Path) -> None:
    empty = read(pool(tmp_path / "a"))._replace(parents=[])
    found = diff.diff(empty, empty)
    assert (found.regions.rows, found.processes.rows, found.regions.total.allocated_change_bytes) == ([], [], 0)
