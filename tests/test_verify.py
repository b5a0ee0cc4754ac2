"""What a capture is damaged by is named, in one line, before a view reads it; what a trace writes is not damaged."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.bench.captures import make
from tests.captures import NAMES, load
from tests.recorded import pool, shmtrace, with_labels, with_stacks
from tracer.capture import capture as captures
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"


def altered(path: Path, *statements: str) -> Path:
    """A pool after these; what the tables themselves forbid is written all the same."""
    pool(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in ["PRAGMA ignore_check_constraints = ON", *statements]:
            database.execute(statement)
    return path


def with_nulls(path: Path, table: str, column: str) -> Path:
    """A pool where a column has none that must have one: somebody wrote its schema anew meanwhile."""
    declared = f"{column} INTEGER NOT NULL"
    schema = "UPDATE sqlite_schema SET sql = replace(sql, '{}', '{}') WHERE name = '{}'"
    return altered(
        path,
        "PRAGMA writable_schema = ON",
        schema.format(declared, f"{column} INTEGER /*any*/", table),
        "PRAGMA writable_schema = RESET",
        f"UPDATE {table} SET {column} = NULL",  # noqa: S608
        "PRAGMA writable_schema = ON",
        schema.format(f"{column} INTEGER /*any*/", declared, table),
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_was_recorded_is_not_damaged(name: str, tmp_path: Path) -> None:
    with Capture.open(load(name, tmp_path / name)) as capture:
        assert capture.remarks == []


@pytest.mark.parametrize("make", [pool, with_stacks, with_labels])
def test_what_is_made_by_hand_is_not_damaged(make: type[object], tmp_path: Path) -> None:
    make(tmp_path / "x")  # type: ignore[call-arg]
    with Capture.open(tmp_path / "x") as capture:
        assert len(capture.rows("SELECT * FROM region")) == 2


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DROP TABLE made_for", "table made_for is missing"),
        ("ALTER TABLE usage DROP COLUMN faults", "table usage is not that of a capture"),
        ("ALTER TABLE region ADD COLUMN more", "table region is not that of a capture"),
        ("CREATE INDEX odd ON process (tgid)", "table process has an unexpected index, 'odd'"),
        (
            "CREATE TRIGGER t AFTER DELETE ON sample BEGIN SELECT 1; END",
            "table sample has an unexpected trigger, 't'",
        ),
        ("UPDATE region SET allocated_bytes = -4096", "invalid region.allocated_bytes"),
        ("UPDATE region SET size_bytes = 'x'", "invalid region.size_bytes"),
        ("UPDATE region SET size_bytes = x'31'", "invalid region.size_bytes"),
        ("UPDATE region SET start_bytes = 0.5", "invalid region.start_bytes"),
        ("UPDATE region SET dev = 1e308", "invalid region.dev"),
        ("UPDATE region SET peak_bytes = 9e999", "invalid region.peak_bytes"),
        ("UPDATE region SET name = x'ff00'", "invalid region.name"),
        ("UPDATE process SET command = 7.5 || x'00', comm = x'00'", "invalid process.comm"),
        ("UPDATE process SET tgid = -1 WHERE id = 2", "invalid process.tgid"),
        ("UPDATE process SET parent = 3 WHERE id = 3", "invalid row of process"),
        ("UPDATE process SET parent = 3 WHERE id = 1", "invalid row of process"),
        ("UPDATE process SET id = 1 << 31 WHERE id = 3", "invalid process.id"),
        ("UPDATE extent SET start = 57 WHERE start = 50", "invalid row of extent"),
        ('UPDATE extent SET "end" = 1 << 52 WHERE start = 50', "invalid extent.end"),
        ("UPDATE extent SET first_ns = 'now' WHERE start = 50", "invalid extent.first_ns"),
        ("UPDATE extent SET first_ns = NULL WHERE start = 50", "invalid row of extent"),
        ("UPDATE extent SET region = 99 WHERE region = 2", "table extent refers to a region that does not exist"),
        ("UPDATE touched SET pages = -1 WHERE process = 3", "invalid touched.pages"),
        ("UPDATE touched SET pages = 7.5 WHERE process = 3", "invalid touched.pages"),
        ("UPDATE touched SET pages = 1 << 52 WHERE process = 3", "invalid touched.pages"),
        ("UPDATE touched SET first_ns = NULL WHERE process = 3", "invalid row of touched"),
        ("UPDATE touched SET first_ns = last_ns + 1 WHERE process = 3", "invalid row of touched"),
        ("UPDATE touched SET process = 99 WHERE process = 3", "table touched refers to a process that does not exist"),
        ("UPDATE touched SET label = 7 WHERE process = 3", "table touched refers to a label that does not exist"),
        ("UPDATE touched SET region = 99", "table touched refers to a region that does not exist"),
        ("UPDATE usage SET process = 99", "table usage refers to a process that does not exist"),
        ("UPDATE region SET parent = 99", "table region refers to a process that does not exist"),
        ("UPDATE session SET attach_seconds = -1.5", "invalid session.attach_seconds"),
        ("UPDATE session SET self_cpu_seconds = 9e999", "invalid session.self_cpu_seconds"),
        ("INSERT INTO session SELECT * FROM session", "it has 2 sessions"),
    ],
)
def test_damage_is_named(statement: str, reason: str, tmp_path: Path) -> None:
    path = altered(tmp_path / "x.capture", statement)
    with pytest.raises(ShmtraceError) as error:
        Capture.open(path)
    assert error.value.message == f"{path} is damaged: {reason}"
    assert error.value.remedy == "`sqlite3 FILE .recover` shows what is left of it"


@pytest.mark.parametrize("table", ["session", "region", "extent"])
def test_a_view_is_no_table(table: str, tmp_path: Path) -> None:
    """It may never come to its end."""
    path = altered(
        tmp_path / "x.capture",
        f"ALTER TABLE {table} RENAME TO old",
        f"CREATE VIEW {table} AS {ENDLESS} SELECT old.* FROM old, c",  # noqa: S608
    )
    with pytest.raises(ShmtraceError, match=f"damaged: table {table} is not that of a capture"):
        Capture.open(path)


@pytest.mark.parametrize(
    ("table", "column"),
    [("region", "dev"), ("process", "tgid"), ("process", "outside_tree"), ("sample", "allocated_bytes")],
)
def test_what_must_be_known_is(table: str, column: str, tmp_path: Path) -> None:
    path = with_nulls(tmp_path / "x.capture", table, column)
    with pytest.raises(ShmtraceError, match=rf"damaged: (NULL value in |invalid ){table}\.{column}"):
        Capture.open(path)


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    """Of a million extents it is asked for when they are summed up."""
    path = altered(tmp_path / "x.capture", "UPDATE extent SET process = 99 WHERE start = 50")
    done = shmtrace("report", path, "--since", "+1s")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{path} is damaged: it refers to process 99, which is missing: `sqlite3 FILE" in done.stderr


OF_SUMS = [
    ["report"],
    ["report", "--json"],
    ["report", "--csv"],
    ["report", "--summary"],
    *(["report", "--by", by] for by in ("region", "process", "command", "creator", "unit", "container,region")),
    *(["export", "--format", form] for form in ("folded", "speedscope", "svg")),
]
OF_PAGES = [
    ["report", "--verify"],
    ["report", "--since", "+1s"],
    ["report", "--until", "-1s", "--json"],
    *(["report", "--by", by] for by in ("time", "command,time")),
    ["report", "--by", "region", "--until", "-1s"],
    ["html", "-o", "-"],
    *(["export", "--format", form] for form in ("perfetto", "csv")),
]


@pytest.mark.parametrize("statement", ["UPDATE extent SET first_ns = 'now' WHERE start = 50", "DROP TABLE sample"])
@pytest.mark.parametrize("view", OF_PAGES, ids=" ".join)
def test_who_reads_pages_checks_them(view: list[str], statement: str, tmp_path: Path) -> None:
    done = shmtrace(view[0], altered(tmp_path / "x.capture", statement), *view[1:])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "x.capture is damaged: " in done.stderr


@pytest.mark.parametrize("view", OF_SUMS, ids=" ".join)
def test_who_reads_sums_reads_no_page(view: list[str], tmp_path: Path) -> None:
    path = pool(tmp_path / "x.capture")
    expected = shmtrace(view[0], path, *view[1:])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE extent SET first_ns = 'now', process = 99")
        database.execute("UPDATE sample SET allocated_bytes = 'much'")
    done = shmtrace(view[0], path, *view[1:])
    assert (done.exit_code, done.stdout) == (0, expected.stdout)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("DELETE FROM touched WHERE region = 2")
    assert shmtrace(view[0], path, *view[1:]).exit_code == 1


def test_sums_of_more_than_there_is(tmp_path: Path) -> None:
    """Who made the file may write any; the report says that they are wrong, and --verify which."""
    path = altered(tmp_path / "x.capture", "UPDATE touched SET pages = pages + 5 WHERE process = 2")
    told = "warning: 3 more pages were counted than are allocated: the figures of 0:1/1047/00000007 are wrong"
    done = shmtrace("report", path)
    assert done.stdout.splitlines()[-1] == told
    assert "balance 48 pages = 40 touched + 11 before + -3 unseen" in done.stdout
    assert "the sums of region 1 are not those of its extents" in shmtrace("report", path, "--verify").stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="SQLite's limits cannot be set by older Pythons")
def test_a_text_that_is_too_long(tmp_path: Path) -> None:
    path = altered(tmp_path / "x.capture", "UPDATE process SET command = printf('%*s', 2 << 20, 'x') WHERE id = 2")
    done = shmtrace("report", path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{path} is damaged: string or blob too big: `sqlite3" in done.stderr


def test_a_label_of_no_source(tmp_path: Path) -> None:
    path = altered(tmp_path / "x.capture", "UPDATE session SET label = 'no such'")
    done = shmtrace("report", path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{path} is damaged: session.label: 'no such' is not a label" in done.stderr


def test_more_owners_than_pages(tmp_path: Path) -> None:
    """It is told, by every view; and nothing is shifted to hide it."""
    path = altered(tmp_path / "x.capture", "UPDATE region SET allocated_bytes = 36 * 4096 WHERE id = 1")
    told = "warning: 5 more pages were counted than are allocated: the figures of 0:1/1047/00000007 are wrong"
    assert shmtrace("report", path).stdout.splitlines()[-1] == told
    assert shmtrace("report", path, "--csv").stderr == f"shmtrace: {told}\n"
    assert shmtrace("diff", path, path).stderr == f"shmtrace: {told}\n" * 2


def test_a_clock_that_was_put_back(tmp_path: Path) -> None:
    """No damage: the trace's end is then at its beginning."""
    path = altered(tmp_path / "x.capture", "UPDATE session SET ended_ns = started_ns - 3600 * 1000000000")
    for view in ["report"], ["report", "--by", "time"], ["html", "-o", "-"], ["export", "--format", "perfetto"]:
        done = shmtrace(view[0], path, *view[1:])
        assert done.exit_code == 0


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    """It is shown by its bytes."""
    path = altered(tmp_path / "x.capture", "UPDATE process SET command = CAST(x'7068ff70' AS TEXT) WHERE id = 2")
    assert r"ph\xffp" in shmtrace("report", path).stdout


def test_a_broken_file(tmp_path: Path) -> None:
    """A page of zeros, in place of one that a table begins on."""
    path = pool(tmp_path / "x.capture")
    with contextlib.closing(sqlite3.connect(path)) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'extent'").fetchone()
    raw = bytearray(path.read_bytes())
    raw[4096 * (root - 1) : 4096 * root] = bytes(4096)
    path.write_bytes(raw)
    with pytest.raises(ShmtraceError, match=r"x\.capture is damaged: "):
        Capture.open(path)


@pytest.mark.parametrize("name", ["\u202e" * 9, "\n" * 9, "x" * 999])
def test_what_a_file_has_to_say_for_itself(name: str, tmp_path: Path) -> None:
    """SQLite's own errors have words of the file in them."""
    path = altered(tmp_path / "x.capture", f'CREATE TABLE "{name}" (x)')
    raw = path.read_bytes()
    for word, other in (b"(x)", b"(,)"), (b"(x)", b"\xff)"):
        path.write_bytes(raw.replace(b'"' + name.encode() + b'" ' + word, b'"' + name.encode() + b'" ' + other))
        done = shmtrace("report", path)
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"{path} is damaged: " in done.stderr
        assert len(done.stderr) < 500


def test_tables_of_the_reader_s_own_are_no_damage(tmp_path: Path) -> None:
    path = altered(
        tmp_path / "x.capture",
        "CREATE TABLE notes (text TEXT)",
        "CREATE INDEX by_text ON notes (text)",
        "CREATE VIEW mine AS SELECT * FROM growth",
        "ANALYZE",
    )
    assert shmtrace("report", path).exit_code == 0


def test_reading_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps of SQLite, and in memory; whatever it is that takes so many."""
    monkeypatch.setattr(captures, "HEAP_BYTES", 8 << 20)
    pool(tmp_path / "x.capture")
    with Capture.open(tmp_path / "x.capture") as capture, pytest.raises((MemoryError, sqlite3.Error)):
        capture.rows(f"{ENDLESS} SELECT x FROM c ORDER BY -x LIMIT 1000000")  # noqa: S608
    with Capture.open(tmp_path / "x.capture") as capture, pytest.raises(sqlite3.OperationalError, match="interr"):
        capture.rows(f"{ENDLESS} SELECT count(*) FROM c")  # noqa: S608


@pytest.mark.parametrize("command", ["diff S L", "diff L S", "merge S L -o F", "merge L S -o F", "report L"])
def test_memory_is_by_all_that_is_read(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by what is opened first. The large one was cut off, so its pages are sorted."""
    small, large = pool(tmp_path / "small.capture"), tmp_path / "large.capture"
    make(large, nr_extents=70_000, nr_processes=23, nr_regions=290)
    with contextlib.closing(sqlite3.connect(large)) as database:
        database.executescript("DELETE FROM touched; UPDATE session SET complete = 0, host = 'web2'")
    monkeypatch.setattr(captures, "HEAP_BYTES", 3 << 20)
    is_late = command == "report L"
    if is_late:
        captures.limit_heap([small])
    paths = {"S": small, "L": large, "F": tmp_path / "fleet.db"}
    done = shmtrace(*(paths.get(word, word) for word in command.split()))
    assert (done.exit_code, "takes too much memory" in done.stderr) == (is_late, is_late), done.stderr
