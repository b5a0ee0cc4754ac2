"""The file that a trace is written to."""

from __future__ import annotations

import contextlib
import os
import random
import re
import sqlite3
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.recorded import SESSION, shmtrace
from tracer import account
from tracer.capture import capture as captures
from tracer.capture.capture import SCHEMA_VERSION, Capture
from tracer.errors import ShmtraceError

TABLES = """
    binary cgroup exec extent frame host_sample label made_for mapping oom oom_touched process region sample session
    stack stacked touched unmapped usage
""".split()  # noqa: SIM905, a list takes as many lines


def open_files() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def put_region(capture: Capture) -> int:
    return capture.insert("region", dev=1, ino=7, kind="anon", name="/dev/zero")


def test_what_goes_in_comes_out() -> None:
    with Capture() as capture:
        first = capture.insert("process", tgid=811, start_time_ns=5, comm="php-fpm8.2")
        second = capture.insert("process", tgid=812, start_time_ns=6, comm='"; DROP TABLE process')
        assert (first, second) == (1, 2)
        capture.update("process", second, command="a\0b\x1b[2J", exited_ns=2**62)
        capture.insert_all("extent", 'region, start, "end", process', [(1, 0, 7, second), (1, 7, 2**40, None)])
        found = capture.rows("SELECT * FROM process WHERE tgid = ?", (812,))
        assert [dict(row) for row in found] == [
            {
                "id": 2,
                "tgid": 812,
                "start_time_ns": 6,
                "ns_tgid": None,
                "parent": None,
                "parent_tgid": None,
                "comm": '"; DROP TABLE process',
                "command": "a\0b\x1b[2J",
                "cgroup": None,
                "started_ns": None,
                "exited_ns": 2**62,
                "exit_status": None,
                "oom_killed": None,
                "outside_tree": 0,
            }
        ]
        extents = capture.rows('SELECT start, "end", process FROM extent WHERE region = :region', {"region": 1})
        assert [tuple(row) for row in extents] == [(0, 7, 2), (7, 2**40, None)]


@pytest.mark.parametrize("seed", range(10))
def test_sums_are_those_that_sqlite_makes(tmp_path: Path, seed: int) -> None:
    """Of pages too that are nobody's, without times; and who adds up may write no more than before."""
    chance = random.Random(seed)
    rows: list[tuple[int | None, ...]] = []
    for number in range(30):
        pages = 1, 10 * number, 10 * number + chance.randrange(1, 10)
        times = sorted(chance.choices(range(5), k=2))
        rows.append((*pages, chance.randrange(1, 5), *times) if chance.random() < 0.8 else (*pages, None, None, None))
    path = tmp_path / "x.capture"
    with Capture(path) as capture:
        put_region(capture)
        for _ in range(4):
            capture.insert("process", tgid=7, start_time_ns=0)
        capture.insert_all("extent", 'region, start, "end", process, first_ns, last_ns', rows)
    with Capture.open(path) as capture:
        whose = "ifnull(process, 0)"
        query = f"""SELECT {whose}, sum("end" - start), min(first_ns), max(last_ns) FROM extent
                    WHERE start < :end GROUP BY {whose}"""  # noqa: S608
        for end in (10, 150, 300):
            expected = [tuple(row) for row in capture.rows(query, {"end": end})]
            assert list(capture.sums(whose, "start < :end", {"end": end}, times=True)) == expected
            assert [row[:2] for row in capture.sums(whose, "start < :end", {"end": end})] == [
                row[:2] for row in expected
            ]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            capture.insert("region", ino=1)


def with_extents(path: Path, labels: int, seed: int = 7) -> list[int]:
    """A capture of three regions with extents of three processes and of nobody, in random order; and the fourth region
    has none. Returns the regions."""
    chance = random.Random(seed)
    with Capture(path) as capture:
        capture.insert("session", **SESSION)
        for number in range(3):
            capture.insert("process", tgid=811 + number, start_time_ns=number)
        for number in range(labels):
            capture.insert("label", script=f"/srv/{number}.php")
        regions = [put_region(capture) for _ in range(4)]
        for region in regions[:3]:
            for page in range(0, 700, 10):
                times = sorted(chance.choices(range(1, 99), k=2))
                of = (chance.randrange(1, 4), *times, chance.randrange(1, labels + 1) if labels else None)
                of = of if chance.random() < 0.8 else (None,) * 4
                capture.replace_extents(region, page, page + 10, [(region, page, page + chance.randrange(1, 10), *of)])
    return regions


def summed(path: Path, regions: Iterable[int]) -> None:
    """With the sums of these regions."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executemany(captures.SUM_UP, ((region,) for region in regions))
        database.commit()


@pytest.mark.parametrize(("labels", "pages"), [(0, 1002), (5, 1008)])
def test_an_account_of_sums_is_that_of_the_extents(labels: int, pages: int, tmp_path: Path) -> None:
    regions = with_extents(tmp_path / "x.capture", labels)
    with Capture.open(tmp_path / "x.capture") as capture:
        assert not capture.is_summed()
        expected = account.read(capture)
    summed(tmp_path / "x.capture", regions)
    with Capture.open(tmp_path / "x.capture", whole=False) as capture:
        assert capture.is_summed()
        capture.verify_sums()
        assert account.read(capture) == expected
    assert sum(region.touched_bytes + region.before_bytes for region in expected.regions) == pages * 4096


def test_sums_of_some_regions_are_not_those_of_the_capture(tmp_path: Path) -> None:
    """As of a trace that was cut off: the regions that had gone have theirs."""
    with_extents(tmp_path / "x.capture", 5)
    with Capture.open(tmp_path / "x.capture") as capture:
        expected = account.read(capture)
    summed(tmp_path / "x.capture", [2, 3])
    with Capture.open(tmp_path / "x.capture", whole=False) as capture:
        assert not capture.is_summed()
        capture.verify_sums()
        assert account.read(capture) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE touched SET pages = pages + 1 WHERE region = 2 AND process = 3",
        "UPDATE touched SET first_ns = first_ns - 1 WHERE region = 2 AND process = 3",
        "UPDATE touched SET last_ns = last_ns + 1 WHERE region = 2 AND process = 3",
        "UPDATE touched SET process = 2 WHERE region = 2 AND process = 3",
        "UPDATE touched SET process = NULL, first_ns = NULL, last_ns = NULL WHERE region = 2 AND process = 3",
        "DELETE FROM touched WHERE region = 2 AND process = 3",
        "DELETE FROM touched WHERE region = 2 AND process IS NULL",
        "INSERT INTO touched SELECT * FROM touched WHERE region = 2",
        "DELETE FROM extent WHERE region = 2",
        'UPDATE extent SET "end" = "end" + 1 WHERE region = 2 AND start = 40',
        "INSERT INTO extent VALUES (2, 7000, 7001, NULL, NULL, NULL, NULL)",
    ],
)
def test_sums_that_are_wrong_are_found(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "x.capture"
    summed(path, with_extents(path, 0))
    before = shmtrace("report", path, "--verify")
    assert before.stdout == shmtrace("report", path).stdout
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()
    done = shmtrace("report", path, "--verify")
    assert (done.exit_code, done.stdout) == (1, "")
    told = "the sums of region 2 are not those of its extents"
    remedy = "`sqlite3 FILE 'DELETE FROM touched'` removes all sums; a report then reads the extents"
    assert done.stderr == f"shmtrace: {path} is damaged: {told}: {remedy}\n"


def test_a_file_that_sqlite_opens(tmp_path: Path) -> None:
    path = tmp_path / "capture.sqlite"
    with Capture(path) as capture:
        capture.insert("sample", time_ns=1, region=1, allocated_bytes=4096)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    database = sqlite3.connect(path)
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    assert [name for (name,) in tables] == TABLES
    assert database.execute("PRAGMA user_version").fetchall() == [(SCHEMA_VERSION,)]
    assert database.execute("SELECT * FROM sample").fetchall() == [(1, 1, 4096, None, None)]
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Capture(tmp_path / "capture.sqlite"):
            assert stat.S_IMODE((tmp_path / "capture.sqlite").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_is_committed_is_there_for_others(tmp_path: Path) -> None:
    """Whoever opens the file of a trace that was killed finds all but the last of it."""
    path = tmp_path / "capture.sqlite"
    with Capture(path) as capture:
        capture.insert("sample", time_ns=1, region=1, allocated_bytes=4096)
        capture.commit()
        capture.insert("sample", time_ns=2, region=1, allocated_bytes=8192)
        other = sqlite3.connect(path)
        assert other.execute("SELECT time_ns FROM sample").fetchall() == [(1,)]
        other.close()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "capture.sqlite"
    path.write_text("mine")
    with pytest.raises(ShmtraceError):
        Capture(path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShmtraceError):
        Capture(tmp_path / "link")
    assert path.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def extents_by_page(capture: Capture, region: int) -> dict[int, int | None]:
    """Whose each page is. A page is in one extent."""
    whose: dict[int, int | None] = {}
    for start, end, process in capture.rows('SELECT start, "end", process FROM extent WHERE region = ?', (region,)):
        for page in range(start, end):
            assert page not in whose
            whose[page] = process
    return whose


@pytest.mark.parametrize("seed", range(20))
def test_extents_are_replaced_page_by_page(seed: int) -> None:
    """What reaches beyond is kept; so are the pages of others, and another region."""
    rng = random.Random(seed)
    wanted: dict[int, int | None] = {}
    with Capture() as capture:
        capture.insert("extent", region=2, start=0, end=100, process=7)
        for _ in range(60):
            start = rng.randrange(90)
            end = start + rng.randrange(1, 30)
            cuts = sorted({start, end, *(rng.randrange(start, end) for _ in range(3))})
            rows = [
                (1, low, high, rng.choice([None, 1, 2, 3]), low, high, None)
                for low, high in zip(cuts, cuts[1:])
                if rng.random() < 0.7
            ]
            capture.replace_extents(1, start, end, rows)
            wanted = {page: whose for page, whose in wanted.items() if not start <= page < end}
            wanted |= {page: whose for _, low, high, whose, *_ in rows for page in range(low, high)}
            assert extents_by_page(capture, 1) == wanted
        assert extents_by_page(capture, 2) == dict.fromkeys(range(100), 7)


def test_samples_are_thinned_and_pages_kept(tmp_path: Path) -> None:
    """The file stays near its bound, the newest sample is there, and those of long ago lie further apart."""
    path, max_bytes = tmp_path / "capture.sqlite", 220_000
    with Capture(path, max_bytes) as capture:
        for start in range(0, 50_000, 50):
            rows = [(1 + time % 2, time, 4096 * time, 4096 * time, 0) for time in range(start, start + 50)]
            capture.insert_all("sample", "region, time_ns, allocated_bytes, resident_bytes, swapped_bytes", rows)
            capture.insert_all("host_sample", "time_ns, shmem_bytes", [(start, start)])
            capture.insert("extent", region=1, start=start, end=start + 23, process=1)
            assert capture.keep_small()
            capture.commit()
            assert path.stat().st_size < 1.2 * max_bytes
        assert len(capture.rows("SELECT * FROM extent")) == 1000
        for region, newest in ((1, 49_998), (2, 49_999)):
            times = [time for (time,) in capture.rows("SELECT time_ns FROM sample WHERE region = ?", (region,))]
            assert times[-1] == newest
            gaps = [later - earlier for earlier, later in zip(times, times[1:])]
            assert gaps[-1] == 2
            assert max(gaps[: len(gaps) // 4]) > 2 * max(gaps[-20:])


def test_pages_are_not_thinned(tmp_path: Path) -> None:
    with Capture(tmp_path / "capture.sqlite", 100_000) as capture:
        capture.insert_all("extent", 'region, start, "end"', [(1, page, page + 1) for page in range(0, 20_000, 2)])
        capture.insert_all("sample", "region, time_ns, allocated_bytes", [(1, t, 4096) for t in range(999)])
        assert not capture.keep_small()
        assert len(capture.rows("SELECT * FROM extent")) == 10_000
        assert len(capture.rows("SELECT * FROM sample")) == 999


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "is not there: `shmtrace record` makes one"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (
            lambda path: path.symlink_to(path),
            "cannot be read (Too many levels of symbolic links): `shmt",
        ),
        (
            lambda path: path.write_text("not a database, however long" * 99),
            "cannot be read as a capture (it is no",
        ),
        (
            lambda path: path.write_text("short"),
            "cannot be read as a capture (it is not an SQLite file): `s",
        ),
        (lambda path: path.touch(), "is empty: it was cut off before anything was recorded"),
        (
            lambda path: alter(path, "PRAGMA journal_mode = WAL"),
            "is in WAL mode: `PRAGMA journal_mode",
        ),
        (
            lambda path: alter(path, "PRAGMA application_id = 7"),
            "is an SQLite file, but not a capture",
        ),
        (lambda path: alter(path, "PRAGMA user_version = 9"), "has schema 9, and this shmtrace reads 3 to 8: use the"),
    ],
)
def test_what_is_no_capture(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(ShmtraceError, match=f"^{re.escape(f'{path} {reason}')}"):
        Capture.open(path)


def alter(path: Path, statement: str) -> None:
    with Capture(path):
        pass
    database = sqlite3.connect(path)
    database.execute(statement)
    database.close()


def test_it_is_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "capture.sqlite"
    with Capture(path) as capture:
        capture.insert("sample", region=put_region(capture), time_ns=1, allocated_bytes=4096)
    before = path.read_bytes()
    with Capture.open(path) as capture:
        assert capture.rows("SELECT allocated_bytes FROM sample")[0][0] == 4096
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            capture.insert("sample", region=1, time_ns=2)
    path.chmod(0o400)
    with Capture.open(path) as capture:
        assert len(capture.rows("SELECT * FROM sample")) == 1
    assert path.read_bytes() == before


def test_nothing_is_left_of_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it ever there by name, for a kill -9 to leave behind."""
    for name in "SQLITE_TMPDIR", "TMPDIR":
        monkeypatch.setenv(name, str(tmp_path))
    before = open_files()
    with Capture() as capture:
        # more than SQLite keeps in memory
        capture.insert_all("sample", "time_ns, region, allocated_bytes", ((i, i, i) for i in range(200_000)))
        capture.commit()
        assert list(tmp_path.iterdir()) == []
        assert len(capture.rows("SELECT * FROM sample")) == 200_000
    assert open_files() == before
