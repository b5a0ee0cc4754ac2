"""Captures of many hosts, merged: nothing is lost or counted twice, and each host has what its own capture says."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests import captures, fleets, recorded
from tests.recorded import at, shmtrace
from tests.schema import validate
from tracer import account, alike, merge
from tracer.answer import answer
from tracer.capture import fleet
from tracer.capture.capture import Capture
from tracer.capture.fleet import Fleet, NoRoomError
from tracer.errors import ShmtraceError
from tracer.model import ALL_TIME, Account, Process, Window
from tracer.proc.shmem import PAGE_BYTES
from tracer.tables.by_host import by_host
from tracer.views import html
from tracer.views import json as document

pytestmark = pytest.mark.usefixtures("in_utc")

MAKERS: dict[str, Callable[[Path], Path]] = {
    "pool": recorded.pool,
    "stacks": recorded.with_stacks,
    "labels": recorded.with_labels,
    "oom": recorded.with_oom,
    "host": recorded.of_host,
    "tmpfs": recorded.of_tmpfs,
}


LARGER = [16384, 65536]
"""Pages of arm64."""


def changed(path: Path, *statements: str) -> Path:
    """As a stranger would, and whoever recorded it at another place or time."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            database.execute(statement)
    return path


def of_host(path: Path, host: str, **session: Any) -> Path:
    sets = ", ".join(f"{name} = {value}" for name, value in {"host": f"'{host}'", **session}.items())
    return changed(path, f"UPDATE session SET {sets}")  # noqa: S608


def read(path: Path, window: Window = ALL_TIME) -> Account:
    with fleet.open_any(path) as capture:
        return account.read(capture, window)


def merged(tmp_path: Path, *paths: Path) -> Path:
    into = tmp_path / "fleet.db"
    done = shmtrace("merge", *paths, "-o", into)
    assert done.exit_code == 0, done.stderr
    return into


def query(path: Path, text: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(text).fetchall()


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    """Of each kind one, of other pages one, and every one that was recorded, each of a host of its own."""
    paths = [make(tmp_path / f"{name}.capture") for name, make in MAKERS.items()]
    paths += [recorded.with_pages_of(size, tmp_path / f"{size}.capture", recorded.with_oom) for size in LARGER]
    paths += [captures.load(name, tmp_path / f"recorded-{name}.capture") for name in captures.NAMES]
    return [of_host(path, f"host{number}") for number, path in enumerate(paths)]


# ---- the sums ----


WINDOWS = [ALL_TIME, Window(at(20), None), Window(None, at(20.7))]


@pytest.mark.parametrize("window", WINDOWS, ids=["all", "since", "until"])
def test_each_host_has_what_its_capture_says(window: Window, many: list[Path], tmp_path: Path) -> None:
    whole = read(merged(tmp_path, *many), window)
    rows = {row.host: row for row in by_host(whole).rows}
    own = [read(path, window) for path in many]
    for each in own:
        (row,) = by_host(each).rows
        assert rows[each.session.host] == row
    assert len(rows) == len(many) == len(whole.hosts)
    total = by_host(whole).total
    for figure in ("regions", "allocated_bytes", "touched_bytes", "other_times_bytes", "before_bytes", "unseen_bytes"):
        assert getattr(total, figure) == sum(getattr(row, figure) for row in rows.values()) > 0 or (
            figure == "other_times_bytes" and window == ALL_TIME
        )
    for region in whole.regions:
        parts = region.touched_bytes + region.other_times_bytes + region.before_bytes + region.unseen_bytes
        assert region.allocated_bytes == parts
    assert answer(whole).grown_bytes == sum(answer(each).grown_bytes for each in own)


def test_each_region_is_as_in_its_capture(many: list[Path], tmp_path: Path) -> None:
    """But for its row, and the host before its id; processes, stacks, labels and all."""

    def told(read: Account, host: str) -> list[str]:
        found = json.loads("".join(document.render(read)))
        regions = [region for region in found["regions"] if host in (region["host"], found["host"])]
        return sorted(
            json.dumps(region).replace(f'"{host}/', '"').replace(f'"host": "{host}"', '"host": null')
            for region in regions
        )

    whole = read(merged(tmp_path, *many))
    for path in many:
        own = read(path)
        assert told(own, own.session.host) == told(whole, own.session.host)
    assert sum(len(read(path).regions) for path in many) == len(whole.regions) > 40


def test_the_same_of_the_extents_and_of_their_sums(many: list[Path], tmp_path: Path) -> None:
    """Sums are added for what was cut off; they are those of the pages."""
    into = merged(tmp_path, *many)
    with Fleet.open(into) as capture:
        capture.verify_sums()
        assert capture.is_summed()
        summed = account.read(capture)
    of_pages = {row.host: row for row in by_host(read(into, Window(0, None))).rows}
    assert {row.host: row._replace(grown_bytes=None) for row in by_host(summed).rows} == of_pages


def two_kernels(tmp_path: Path) -> list[Path]:
    """The same pages on two hosts, of 4 KiB on the first and of 16 KiB on the other."""
    small = recorded.with_pages_of(4096, tmp_path / "small.capture", recorded.with_labels)
    return [small, of_host(recorded.with_pages_of(16384, tmp_path / "large.capture", recorded.with_labels), "arm1")]


def test_pages_of_two_sizes(tmp_path: Path) -> None:
    """Each page counts with the bytes that it has; together they are told in the smaller."""
    into = merged(tmp_path, *two_kernels(tmp_path))
    whole = read(into)
    figures = {
        row.host: (row.allocated_bytes, row.touched_bytes, row.before_bytes, row.unseen_bytes)
        for row in by_host(whole).rows
    }
    assert figures["web1"] == tuple(pages * 4096 for pages in (48, 35, 11, 2))
    assert figures["arm1"] == tuple(pages * 16384 for pages in (48, 35, 11, 2))
    assert "balance 240 pages = 175 touched + 55 before + 10 unseen" in shmtrace("report", into).stdout
    rows = validate(shmtrace("report", into, "--by", "time,host", "--json").stdout)["rows"]
    by_time = {row["host"]: 0 for row in rows if row["part"] == "touched"}
    for row in rows:
        if row["part"] == "touched":
            by_time[row["host"]] += row["allocated_bytes"]
    assert by_time == {"web1": 35 * 4096, "arm1": 35 * 16384}
    sums = "SELECT host, sum(pages), sum(bytes) FROM growth GROUP BY 1 ORDER BY 1"
    assert query(into, sums) == [("arm1", 35, 35 * 16384), ("web1", 35, 35 * 4096)]
    assert query(into, "SELECT host, page_bytes FROM session ORDER BY 1") == [("arm1", 16384), ("web1", 4096)]


def test_pages_of_two_sizes_by_second(tmp_path: Path) -> None:
    """The table of times adds up what each page has."""
    paths = two_kernels(tmp_path)
    into = merged(tmp_path, *paths)
    told = [
        csv.DictReader(io.StringIO(shmtrace("report", path, "--by", "time", "--csv").stdout)) for path in (*paths, into)
    ]
    small, large, both = ([int(row["touched_bytes"]) for row in rows] for rows in told)
    assert (sum(small), sum(large)) == (35 * 4096, 35 * 16384)
    assert both == [one + other for one, other in zip(small, large)]


@pytest.mark.parametrize(("host", "size"), [("web1", 4096), ("arm1", 16384)])
def test_pages_of_two_sizes_on_the_page(host: str, size: int, tmp_path: Path) -> None:
    """What is narrowed to a host is told in the smaller pages, too; its lines end with what it has."""
    into = merged(tmp_path, *two_kernels(tmp_path))
    with Fleet.open(into) as capture:
        regions = account.read(capture).regions
        capture.narrow(region.row for region in regions if region.host == host)
        drawn = html.data(account.read(capture), capture)
    assert drawn["session"]["page_bytes"] == 4096
    assert {part: pages * 4096 / size for part, pages in drawn["balance"].items()} == {
        "allocated": 48,
        "touched": 35,
        "before": 11,
        "unseen": 2,
    }
    assert (drawn["growth"]["all"]["allocated"][-1], drawn["growth"]["all"]["unseen"][-1]) == (43 * size, 2 * size)


def test_the_largest_file_of_each_size_of_pages(tmp_path: Path) -> None:
    """What no file of 4 KiB pages can have too many of may be too many of 16 KiB."""
    paths = two_kernels(tmp_path)
    into = merged(tmp_path, *paths)
    for host, last in (("web1", 1 << 51), ("arm1", 1 << 49)):
        far = f"UPDATE extent SET start = {last} - 1, \"end\" = {last} WHERE host = '{host}' AND start = 11"  # noqa: S608
        with Fleet.open(changed(into, far)):
            pass
        changed(into, f'UPDATE extent SET "end" = "end" + 1 WHERE host = \'{host}\' AND start = {last} - 1')  # noqa: S608
        with pytest.raises(ShmtraceError, match=r"invalid extent\.end"), Fleet.open(into):
            pass
        changed(into, f"DELETE FROM extent WHERE host = '{host}' AND start = {last} - 1")  # noqa: S608


@pytest.mark.parametrize("page_bytes", [0, 8192, -4096, "'x'", "x'10'"])
def test_sizes_that_no_page_has(page_bytes: object, tmp_path: Path) -> None:
    into = merged(tmp_path, *two_kernels(tmp_path))
    changed(into, f"UPDATE session SET page_bytes = {page_bytes} WHERE host = 'arm1'")  # noqa: S608
    assert "is damaged: invalid session.page_bytes" in shmtrace("report", into).stderr


# ---- its file ----


def test_it_is_for_its_owner_and_no_capture(tmp_path: Path) -> None:
    into = merged(tmp_path, recorded.pool(tmp_path / "a.capture"))
    assert stat.S_IMODE(into.stat().st_mode) == 0o600
    for arguments in (["export", into, "--format", "csv"], ["merge", into, "-o", tmp_path / "other"]):
        done = shmtrace(*arguments)
        assert done.exit_code == 1
        assert f"{into} holds captures of many hosts: only report, diff and html take it\n" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.capture", "fleet.db"]
    with pytest.raises(ShmtraceError, match="is no merged file"), Fleet.open(tmp_path / "a.capture"):
        pass


def test_every_table_and_column_of_a_capture_is_in_it(tmp_path: Path) -> None:
    """Whatever these are: of each row the values, but for ids; with host and session."""
    path = recorded.with_labels(tmp_path / "a.capture")
    into = merged(tmp_path, path)
    tables = [name for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert len(tables) > 10
    for table in tables:
        columns = [row[1] for row in query(path, f"PRAGMA table_info({table})")]
        names = ", ".join(f'"{column}"' for column in columns)
        assert query(path, f"SELECT {names} FROM {table}") == query(into, f"SELECT {names} FROM {table}")  # noqa: S608
        if table != "session":
            hosts = query(into, f"SELECT DISTINCT host, session FROM {table}")  # noqa: S608
            assert hosts in ([("web1", 1)], [])


def test_ids_are_unique_and_rows_are_joined_as_in_a_capture(tmp_path: Path) -> None:
    a = recorded.with_labels(tmp_path / "a.capture")
    b = of_host(recorded.with_labels(tmp_path / "b.capture", text="/srv/www/b.php"), "web2")
    text = """
        SELECT process.tgid, process.command, region.ino, label.file, sum("end" - start) FROM extent
        JOIN region ON region.id = region JOIN process ON process.id = process LEFT JOIN label ON label.id = label
        {} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"""
    into = merged(tmp_path, a, b)
    for path, host in ((a, "web1"), (b, "web2")):
        assert query(path, text.format("")) == query(into, text.format(f"WHERE extent.host = '{host}'"))


@pytest.mark.parametrize("table", ["process", "region", "label"])
def test_ids_with_gaps_are_numbered_anew(table: str, tmp_path: Path) -> None:
    """As in the later parts of a trace of weeks: the highest ids would add up to more than there is room for."""
    path = recorded.with_labels(tmp_path / "a.capture")
    of = [
        (name, row[3])
        for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")
        for row in query(path, f"PRAGMA foreign_key_list({name})")
        if row[2] == table
    ]
    far = 2_000_000_000
    changed(
        path,
        *(f"UPDATE {name} SET {column} = {column} + {far} WHERE {column} > 1" for name, column in of),  # noqa: S608
        f"UPDATE {table} SET id = id + {far} WHERE id > 1",  # noqa: S608
    )
    other = of_host(recorded.with_labels(tmp_path / "b.capture"), "web2")
    whole = read(merged(tmp_path, path, other))
    first, second = (row._replace(host="") for row in by_host(whole).rows)
    assert first == second
    assert whole.session.label == "php:file"
    found = query(tmp_path / "fleet.db", f"SELECT count(*), max(id) FROM {table}")  # noqa: S608
    assert found == [(2 * len(query(path, f"SELECT 1 FROM {table}")),) * 2]  # noqa: S608


def test_other_tables_may_be_in_it(tmp_path: Path) -> None:
    """As ANALYZE makes them, and whoever keeps notes beside."""
    into = changed(merged(tmp_path, recorded.pool(tmp_path / "a.capture")), "ANALYZE", 'CREATE TABLE "a b; --" (x)')
    for options in ([], ["--region", "opcache"]):
        assert shmtrace("report", into, *options).stdout.startswith("opcache? grew by 128 KiB")


def test_an_earlier_one_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = recorded.pool(tmp_path / "a.capture")
    into = merged(tmp_path, path)
    assert shmtrace("merge", path, of_host(recorded.pool(tmp_path / "b.capture"), "web2"), "-o", into).exit_code == 0
    assert query(into, "SELECT count(*) FROM session") == [(2,)]
    (tmp_path / "empty").touch()
    assert shmtrace("merge", path, "-o", tmp_path / "empty").exit_code == 0
    before = path.read_bytes()
    (tmp_path / "text").write_text("SQLite format 3, says somebody")
    for other in (path, tmp_path / "text"):
        done = shmtrace("merge", tmp_path / "b.capture", "-o", other)
        assert (done.exit_code, "exists and is not an earlier output" in done.stderr) == (1, True)
    assert path.read_bytes() == before


# ---- which captures count ----


def test_an_earlier_one_that_may_not_be_read(tmp_path: Path) -> None:
    """As one of another user; root may read all."""
    path, into = recorded.pool(tmp_path / "a.capture"), tmp_path / "fleet.db"
    into.write_text("x")
    with mock.patch("tracer.capture.fleet.read_header", side_effect=PermissionError(13, "Permission denied")):
        result = shmtrace("merge", path, "-o", into)
    assert (result.exit_code, into.read_text()) == (1, "x")
    assert result.stderr == f"shmtrace: {into} cannot be replaced (Permission denied): give another path\n"


def test_of_the_parts_of_a_trace_the_last_counts(tmp_path: Path) -> None:
    """Each part has all pages of before: added up they would count twice and thrice."""
    parts = [
        of_host(recorded.pool(tmp_path / f"{number}.capture", more_pages=7 * number), "web1", part=number,
                part_started_ns=at(number), ended_ns=at(41 + number))
        for number in (1, 2, 3)
    ]  # fmt: skip
    whole = read(merged(tmp_path, parts[2], parts[0], parts[1]))
    assert sum(region.allocated_bytes for region in whole.regions) == (43 + 21 + 5) * PAGE_BYTES
    assert (len(whole.hosts), whole.nr_older) == (1, 2)
    assert query(tmp_path / "fleet.db", "SELECT part, latest FROM session ORDER BY part") == [(1, 0), (2, 0), (3, 1)]
    assert query(tmp_path / "fleet.db", "SELECT sum(pages) FROM growth") == [(23 + 7 + 5 + 21,)]
    assert query(tmp_path / "fleet.db", 'SELECT sum("end" - start) FROM extent WHERE process IS NOT NULL') == [
        (3 * 35 + 7 + 14 + 21,)
    ]
    told = shmtrace("report", tmp_path / "fleet.db").stdout
    assert "1 host, of each the latest; 2 older captures in the file, not counted" in told


def test_of_several_traces_the_latest_counts(tmp_path: Path) -> None:
    """Also where an older one has more parts."""
    old = of_host(recorded.pool(tmp_path / "a.capture"), "web1", part=7, part_started_ns=at(3))
    new = recorded.pool(tmp_path / "b.capture", more_pages=7)
    of_host(new, "web1", started_ns=at(50), ended_ns=at(60))
    whole = read(merged(tmp_path, new, old))
    assert [session.started_ns for session in whole.hosts] == [at(50)]
    assert sum(region.allocated_bytes for region in whole.regions) == (43 + 7 + 5) * PAGE_BYTES


def test_traces_of_several_services_count_together(tmp_path: Path) -> None:
    """What ran at the same time, of other regions. Not what had ended, nor what has one of the regions, too."""
    other = "UPDATE region SET ino = ino + 100"
    newest = of_host(recorded.with_labels(tmp_path / "php"), "web1", started_ns=at(50), ended_ns=at(90))
    beside = changed(
        of_host(recorded.pool(tmp_path / "db", more_pages=7), "web1", started_ns=at(-9), ended_ns=at(70)),
        other,
        "UPDATE session SET label = 'postgres'",
        "INSERT INTO label (id, query) VALUES (1, 'SELECT 7')",
        "UPDATE extent SET label = 1 WHERE process IS NOT NULL",
        "UPDATE touched SET label = 1 WHERE process IS NOT NULL",
    )
    over = changed(of_host(recorded.pool(tmp_path / "over"), "web1", started_ns=at(-9), ended_ns=at(49)), other)
    before = changed(of_host(recorded.pool(tmp_path / "before"), "web1", started_ns=at(-20), ended_ns=at(-9)), other)
    shared = of_host(recorded.pool(tmp_path / "shared"), "web1", started_ns=at(3), ended_ns=at(60))
    into = merged(tmp_path, before, shared, newest, over, beside, of_host(recorded.pool(tmp_path / "c"), "web2"))
    whole = read(into)
    assert (len(whole.hosts), whole.nr_older) == (2, 3)
    assert whole.session.host == "2 hosts"
    pages = {row.host: row.allocated_bytes // PAGE_BYTES for row in by_host(whole).rows}
    alone = [sum(region.allocated_bytes for region in read(path).regions) // PAGE_BYTES for path in (newest, beside)]
    assert pages == {"web1": sum(alone), "web2": 48}
    [(most, most_bytes)] = [(row.most, row.most_bytes) for row in by_host(whole).rows if row.host == "web1"]
    assert (most, most_bytes // PAGE_BYTES) == ("SELECT ?", 35 + 7)
    held = dict(query(into, "SELECT what, regions FROM held WHERE host = 'web1'"))
    assert held["opcache"] == 2
    told = shmtrace("report", into).stdout
    assert "2 hosts, of each the latest; 3 older captures in the file, not counted" in told


def test_a_kill_that_traces_of_several_services_have_seen_counts_once(tmp_path: Path) -> None:
    """The OOM killer's is of the host. One of the traces has the victim, each what its own processes had touched."""
    first = recorded.with_oom(tmp_path / "a.capture")
    second = changed(
        recorded.with_oom(tmp_path / "b.capture"),
        "UPDATE region SET ino = ino + 100",
        "UPDATE session SET started_ns = started_ns + 7, nr_ooms = 2",
        "UPDATE oom SET process = NULL, time_ns = time_ns - 3000000",
        "UPDATE oom_touched SET pages = 3",
    )
    other = of_host(recorded.with_oom(tmp_path / "c.capture"), "web2")
    whole = read(merged(tmp_path, first, second, other))
    assert whole.session.nr_ooms == 9 + 9
    kills = {
        (kill.host, kill.tgid): (
            kill.process and kill.process.tgid,
            [size_bytes // PAGE_BYTES for *_, size_bytes in kill.touched],
        )
        for kill in whole.ooms
    }
    assert len(whole.ooms) == 4
    assert [kill.time_ns for kill in whole.ooms] == sorted(kill.time_ns for kill in whole.ooms)
    assert kills == {
        ("web1", 812): (812, [21, 3]),
        ("web1", 977): (None, [7, 3]),
        ("web2", 812): (812, [21]),
        ("web2", 977): (None, [7]),
    }


def test_one_that_is_there_twice_is_merged_once(tmp_path: Path) -> None:
    path = recorded.pool(tmp_path / "a.capture")
    (tmp_path / "copy.capture").write_bytes(path.read_bytes())
    done = shmtrace("merge", path, tmp_path / "copy.capture", path, "-o", tmp_path / "fleet.db")
    assert done.exit_code == 0
    assert done.stderr.count(f"is the capture that {path} is, too: it is merged once\n") == 2
    assert query(tmp_path / "fleet.db", "SELECT count(*), sum(latest) FROM session") == [(1, 1)]


def test_machines_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their boots: two of one machine cannot overlap."""
    a, b = recorded.pool(tmp_path / "a.capture"), recorded.pool(tmp_path / "b.capture", more_pages=7, moved=True)
    of_host(b, "web1", started_ns=at(1))
    named = of_host(recorded.pool(tmp_path / "c.capture", more_pages=9), "web1 (2)")
    done = shmtrace("merge", a, b, named, "-o", tmp_path / "fleet.db")
    assert f"{b} is of another machine of that name, for their captures overlap: here it is web1 (3)\n" in done.stderr
    assert {row.host: row.allocated_bytes // PAGE_BYTES for row in by_host(read(tmp_path / "fleet.db")).rows} == {
        "web1": 48,
        "web1 (2)": 57,
        "web1 (3)": 55,
    }


def test_boots_of_one_machine_are_one_host(tmp_path: Path) -> None:
    a, b = recorded.pool(tmp_path / "a.capture"), recorded.pool(tmp_path / "b.capture", more_pages=7, moved=True)
    of_host(b, "web1", started_ns=at(50), ended_ns=at(60))
    assert query(merged(tmp_path, b, a), "SELECT host, latest FROM session ORDER BY started_ns") == [
        ("web1", 0),
        ("web1", 1),
    ]


# ---- what cannot be read ----


def test_what_is_damaged_is_named_and_the_others_are_merged(tmp_path: Path) -> None:
    paths = [of_host(recorded.pool(tmp_path / f"{number}.capture"), f"web{number}") for number in range(7)]
    paths[1].write_bytes(paths[1].read_bytes()[:9000])
    changed(paths[2], "UPDATE region SET allocated_bytes = -1")
    changed(paths[3], "UPDATE extent SET process = 99 WHERE start = 25")
    changed(paths[4], "CREATE TRIGGER t AFTER INSERT ON extent BEGIN SELECT 1; END")
    paths[5].write_text("")
    missing, text = tmp_path / "missing", tmp_path / "text"
    text.write_text("no capture")
    done = shmtrace("merge", *paths, missing, text, "-o", tmp_path / "fleet.db")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 5 + 2 + 1
    for each in (*paths[1:6], missing, text):
        (line,) = [line for line in lines if line.startswith(f"shmtrace: warning: {each} ")]
        assert ": " in line.removeprefix("shmtrace: warning: ")
    assert lines[-1].startswith("shmtrace: merged 2 captures of 2 hosts into ")
    assert lines[-1].endswith("fleet.db, without 7 of 9 files: they are named above, with what helps")
    assert query(tmp_path / "fleet.db", "SELECT host FROM session ORDER BY host") == [("web0",), ("web6",)]
    assert len(query(tmp_path / "fleet.db", "SELECT 1 FROM extent")) == 2 * len(query(paths[0], "SELECT 1 FROM extent"))
    assert query(tmp_path / "fleet.db", "PRAGMA foreign_key_check") == []


def test_what_fails_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is found to be wrong after others were inserted."""
    paths = [of_host(recorded.pool(tmp_path / f"{number}.capture"), f"web{number}") for number in range(3)]
    each_sound = Capture.each_sound

    def fail(self: Capture, text: str, *values: Any) -> Any:
        if "FROM mapping" in text and self._path == paths[1]:
            raise self.damaged("so it is")
        return each_sound(self, text, *values)

    monkeypatch.setattr(Capture, "each_sound", fail)
    done = shmtrace("merge", *paths, "-o", tmp_path / "fleet.db")
    assert (done.exit_code, f"{paths[1]} is damaged: so it is" in done.stderr) == (1, True)
    assert query(tmp_path / "fleet.db", "SELECT DISTINCT host FROM extent") == [("web0",), ("web2",)]
    assert query(tmp_path / "fleet.db", "SELECT id, host FROM session") == [(1, "web0"), (2, "web2")]


def test_nothing_to_merge(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = shmtrace("merge", tmp_path / "empty", "-o", tmp_path / "fleet.db")
    assert (done.exit_code, done.stderr.count("\n"), (tmp_path / "fleet.db").exists()) == (1, 1, False)


@pytest.mark.parametrize("version", [3, 4, 5, 6])
def test_captures_of_earlier_schemas(version: int, tmp_path: Path) -> None:
    old = captures.load_of_schema(version, "exact", tmp_path / "old.capture")
    new = of_host(captures.load("exact", tmp_path / "new.capture"), "new")
    first, second = (row._replace(host="") for row in by_host(read(merged(tmp_path, old, new))).rows)
    assert first == second


def test_a_capture_that_another_program_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as it should be: there is nothing to recover."""
    monkeypatch.setattr("tracer.capture.capture.BUSY_SECONDS", 0.1)
    path = recorded.pool(tmp_path / "a.capture")
    script = "import sqlite3, sys; a = sqlite3.connect(sys.argv[1]); a.execute('BEGIN EXCLUSIVE'); print(); input()"
    command = [sys.executable, "-u", "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holding:
        assert holding.stdout
        holding.stdout.readline()
        done = shmtrace("merge", path, "-o", tmp_path / "fleet.db")
        holding.communicate(b"\n")
    assert f"warning: another program holds {path}: close it, or read a copy of the file\n" in done.stderr


def test_a_capture_that_is_being_written_is_read_as_of_one_moment(tmp_path: Path) -> None:
    path = recorded.pool(tmp_path / "a.capture")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writing:
        writing.execute("BEGIN IMMEDIATE")
        writing.execute("DELETE FROM extent")
        assert query(merged(tmp_path, path), "SELECT count(*) FROM extent") != [(0,)]
        writing.execute("ROLLBACK")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE region SET allocated_bytes = 9223372036854775807",
        'UPDATE extent SET "end" = 2251799813685247 WHERE start = 100',
        "UPDATE region SET start_bytes = 9223372036854775807",
        "UPDATE touched SET pages = 2251799813685247",
    ],
)
def test_sums_of_sql_do_not_overflow(statement: str, tmp_path: Path) -> None:
    """Of what one capture says: no query of all would have an answer."""
    path = changed(recorded.pool(tmp_path / "a.capture", more_pages=1), statement)
    done = shmtrace("merge", path, "-o", tmp_path / "fleet.db")
    assert "a.capture is damaged: it has more memory than any host" in done.stderr
    huge = changed(recorded.pool(tmp_path / "b.capture"), "UPDATE region SET size_bytes = 9223372036854775807")
    into = merged(tmp_path, huge, of_host(captures.load("exact", tmp_path / "c.capture"), "web2"))
    assert query(into, "SELECT host, allocated_bytes FROM held WHERE host = 'web1'") == [("web1", 43 * PAGE_BYTES)]


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(NoRoomError, match="there is no room to merge"):
        merge.merge([recorded.pool(tmp_path / "a.capture")], tmp_path / "missing" / "fleet.db")


def test_a_directory_is_its_captures(tmp_path: Path) -> None:
    recorded.pool(tmp_path / "called.otherwise")
    (tmp_path / "broken.capture").write_text("x")
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "sub.capture").mkdir()
    os.mkfifo(tmp_path / "fifo.capture")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loop.capture").symlink_to("loop.capture")
    assert [path.name for path in merge.files([tmp_path])] == ["broken.capture", "called.otherwise", "loop.capture"]
    result = recorded.shmtrace("merge", tmp_path, "-o", tmp_path / "fleet.db")
    assert (result.exit_code, "Too many levels of symbolic links" in result.stderr) == (1, True)
    assert f"merged 1 capture of 1 host into {tmp_path / 'fleet.db'}, without 2 of 3 files" in result.stderr


@pytest.mark.parametrize("host", ["\x1b[2Jweb", "web\nhost", "a" * 255, "'; DROP TABLE session; --", "</script>", ""])
def test_names_of_hosts_stay_data(host: str, tmp_path: Path) -> None:
    path = recorded.with_labels(tmp_path / "a.capture")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE session SET host = ?", (host,))
    into = merged(tmp_path, path, recorded.pool(tmp_path / "b.capture"))
    assert query(into, "SELECT DISTINCT host FROM extent ORDER BY session") == [(host or "?",), ("web1",)]
    for arguments in (["report", into], ["report", into, "--by", "host"], ["diff", into, into]):
        done = shmtrace(*arguments)
        assert done.exit_code == 0, done.stderr
        told = done.stdout
        assert "\x1b" not in told
        assert all(len(line) <= 80 for line in told.splitlines())
    assert "</script>," not in shmtrace("html", into, "-o", "-").stdout
    rows = list(csv.reader(io.StringIO(shmtrace("report", into, "--by", "host", "--csv").stdout, newline="")))
    assert len(rows) == 3
    names, *figures = rows
    assert sum(int(dict(zip(names, row))["allocated_bytes"]) for row in figures) == 2 * (43 + 5) * PAGE_BYTES


def test_a_name_that_is_too_long_for_every_row(tmp_path: Path) -> None:
    path = of_host(recorded.pool(tmp_path / "a.capture"), "a" * 256)
    done = shmtrace("merge", path, "-o", tmp_path / "fleet.db")
    assert "a.capture is damaged: session.host has 256 characters" in done.stderr


# ---- what is shown ----


def test_the_answer_is_over_hosts(tmp_path: Path) -> None:
    """Of 5 hosts 3 have grown since the deploy, by 23, 30 and 37 pages."""
    into = merged(tmp_path, *fleets.make(tmp_path, hosts=5, planted=3))
    found = read(into, Window(at(fleets.DEPLOYED_S), None))
    assert answer(found).text == (
        "360 KiB touched first in this time. On 3 of 5 hosts: web0002 148 KiB, web0001 120 KiB, web0000 92.0 KiB. "
        "By php-fpm: pool www ×6 (3 exited) 360 KiB."
    )
    assert [(host.host, host.grown_bytes // PAGE_BYTES) for host in answer(found).hosts] == [
        ("web0002", 37),
        ("web0001", 30),
        ("web0000", 23),
    ]
    text = shmtrace("report", into).stdout
    assert text.startswith("opcache? ×5 grew by ")
    assert max(map(len, text.splitlines())) <= 80


def test_a_report_of_many_hosts_is_short(tmp_path: Path) -> None:
    into = merged(tmp_path, *fleets.make(tmp_path, hosts=60, planted=30))
    text = shmtrace("report", into).stdout
    assert len(text.splitlines()) < 60
    assert "…50 more\n" in text
    assert "php-fpm8.2 ×60  php-fpm: master  on 60 hosts\n" in text


def test_hosts_may_have_different_labels(tmp_path: Path) -> None:
    """Each is told by its own, and what has none of a kind is unknown; nothing is added up wrongly."""
    php, none = recorded.with_labels(tmp_path / "a"), of_host(recorded.pool(tmp_path / "b"), "none")
    postgres = changed(
        of_host(recorded.pool(tmp_path / "c"), "db", label="'postgres'"),
        "INSERT INTO label (id, query, title) VALUES (1, 'SELECT 7', 'postgres: app')",
        "UPDATE extent SET label = 1 WHERE start = 11",
        "UPDATE touched SET label = 1, pages = 14 WHERE pages = 23",
        "INSERT INTO touched SELECT region, process, NULL, 9, first_ns, last_ns FROM touched WHERE pages = 14",
    )
    into = merged(tmp_path, php, none, postgres)
    assert read(into).session.label == "php:file\npostgres"
    rows = {
        by: {
            (row["part"], row[by]): row["allocated_bytes"] // PAGE_BYTES
            for row in validate(shmtrace("report", into, "--by", by, "--json").stdout)["rows"]
        }
        for by in ("file", "query")
    }
    beside = {("before", None): 33, ("unseen", None): 6}
    unlabelled = 9 + 35 + 21
    files = {("touched", "/srv/www/vendor/autoload.php"): 14, ("touched", "/srv/www/index.php"): 7}
    assert rows["file"] == {**files, ("touched", ""): 5 + 14, ("touched", None): unlabelled, **beside}
    queries = {("touched", "SELECT ?"): 14, ("touched", ""): 14 + 7 + 5}
    assert rows["query"] == {**queries, ("touched", None): unlabelled, **beside}
    by_name = {row.host: row.most for row in by_host(read(into)).rows}
    assert by_name == {"web1": "/srv/www/vendor/autoload.php", "none": "php-fpm: pool www", "db": "?"}


@pytest.mark.parametrize("by", ["host", "host,what", "host,script", "script,host", "region", "process", "unmapped",
                                "what", "time,host", "unit", "container", "stack"])  # fmt: skip
def test_tables_have_the_host(by: str, many: list[Path], tmp_path: Path) -> None:
    into = merged(tmp_path, *many)
    found = validate(shmtrace("report", into, "--by", by, "--json").stdout)
    assert found["rows"]
    if by not in ("what", "unit", "container"):
        assert len({row.get("host") for row in found["rows"]} - {None}) > (0 if by in ("unmapped", "stack") else 1)
    if by == "what":
        assert max(row["hosts"] or 0 for row in found["rows"]) > 3
    table = shmtrace("report", into, "--by", by).stdout
    assert max(map(len, table.splitlines())) <= 80 or "warning" in table


def test_a_host_and_its_script(tmp_path: Path) -> None:
    into = merged(tmp_path, *fleets.make(tmp_path, hosts=4, planted=2))
    done = shmtrace("report", into, "--by", "host,script", "--since", "+20s", "--json")
    rows = [
        (row["host"], row["script"], row["allocated_bytes"] // PAGE_BYTES)
        for row in validate(done.stdout)["rows"]
        if row["part"] == "touched"
    ]
    assert rows == [("web0001", fleets.SCRIPT, 30), ("web0000", fleets.SCRIPT, 23)]


def test_the_document(many: list[Path], tmp_path: Path) -> None:
    found = validate(shmtrace("report", merged(tmp_path, *many), "--json").stdout)
    assert {row["host"] for row in found["hosts"]} == {f"host{number}" for number in range(len(many))}
    ids = [region["id"] for region in found["regions"]]
    assert sorted(ids) == sorted(each for parent in found["parents"] for each in parent["regions"])
    assert len(ids) == len(set(ids))


def test_a_capture_by_host_is_one_row(tmp_path: Path) -> None:
    (row,) = validate(shmtrace("report", recorded.pool(tmp_path / "a"), "--by", "host", "--json").stdout)["rows"]
    assert (row["host"], row["allocated_bytes"] // PAGE_BYTES, row["grown_bytes"] // PAGE_BYTES) == ("web1", 48, 32)


def test_a_diff_is_by_host(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    for directory, planted in ((a, 1), (b, 3)):
        directory.mkdir()
        fleets.make(directory, hosts=4, planted=planted)
    (b / "web0003.capture").unlink()
    of_host(recorded.pool(b / "new.capture"), "new")
    for directory in (a, b):
        assert shmtrace("merge", directory, "-o", f"{directory}.db").exit_code == 0
    done = shmtrace("diff", f"{a}.db", f"{b}.db", "--json")
    changes = {
        row["what"]: (row["how"], row["allocated_change_bytes"] // PAGE_BYTES) for row in validate(done.stdout)["hosts"]
    }
    gone = -(fleets.BEFORE_PAGES + fleets.NR_EXTENTS * fleets.EXTENT_PAGES + fleets.UNSEEN_PAGES + 5)
    assert changes == {
        "web0000": ("same", 0),
        "web0001": ("same", 30),
        "web0002": ("same", 37),
        "web0003": ("gone", gone),
        "new": ("new", 43),
    }
    assert json.loads(done.stdout)["sums"]["hosts"]["allocated_change_bytes"] == sum(
        row["allocated_change_bytes"] for row in json.loads(done.stdout)["regions"]
    )
    assert "web0002 same" in shmtrace("diff", f"{a}.db", f"{b}.db").stdout
    assert not c.exists()


def test_the_page_has_the_dimension(many: list[Path], tmp_path: Path) -> None:
    into = merged(tmp_path, *many)
    with fleet.open_any(into) as capture:
        data = html.data(account.read(capture), capture)
    hosts = next(dimension["values"] for dimension in data["dimensions"] if dimension["by"] == "host")
    assert set(hosts) >= {"host0", "host1"}
    of = [hosts[place] for place in data["processes"]["host"] if place >= 0]
    assert set(of) == set(hosts)
    assert len(data["who"]["host"]) == len(data["who"]["process"])


def test_the_text_of_a_segment() -> None:
    """As reports and metrics call it: a guess without its question mark, a name as it is."""
    looks = merge.Looks(1, 1, "anon", "/dev/zero", 256 << 20, 0x10000000, None)
    master = Process(1, 811, 0, "php-fpm8.2", "php-fpm: master", None, None)
    assert alike.segment(looks, master) == "opcache"
    assert alike.segment(looks._replace(name="/dev/shm/torch_1_2?", kind="posix"), None) == "/dev/shm/torch_#_#?"
    assert alike.segment(looks._replace(hint="limit_req zone"), None) == "limit_req zone"
