"""The files of a trace in parts: their names, whose they are, which go; and what a part takes over."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recorded import BEGAN_NS, at, pool, shmtrace, with_labels, with_stacks
from tracer import account, sessions
from tracer.capture import journal, parts
from tracer.capture.capture import Capture
from tracer.capture.carry import MAX_DEAD_ABOVE, Needed
from tracer.errors import ShmtraceError
from tracer.views import pictures

NOTHING = Needed(set(), set(), set(), set())
pytestmark = pytest.mark.usefixtures("in_utc")


def part(path: Path, number: int | None = 1, ended_s: float = 41) -> Path:
    """A complete part, as a rotation leaves it; number None: a capture that is no part."""
    pool(path)
    with sqlite3.connect(path) as database:
        values = (number, at(1), at(ended_s))
        database.execute("UPDATE session SET part = ?, part_started_ns = ?, ended_ns = ?", values)
    database.close()
    return path


# ---- names ----


def test_a_part_is_called_by_when_it_began(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    assert parts.name(path, BEGAN_NS) == tmp_path / "pool.20231114-221320.capture"
    assert parts.name(path, BEGAN_NS, 2) == tmp_path / "pool.20231114-221320-2.capture"
    assert parts.name(tmp_path / "pool", BEGAN_NS) == tmp_path / "pool.20231114-221320"


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    """By a file, a link that leads nowhere, a directory."""
    path = tmp_path / "pool.capture"
    parts.name(path, BEGAN_NS).write_text("mine")
    parts.name(path, BEGAN_NS, 2).symlink_to("nowhere")
    parts.name(path, BEGAN_NS, 3).mkdir()
    with Capture(path) as capture:
        kept = parts.keep(path, BEGAN_NS, capture.copy)
    assert kept == parts.name(path, BEGAN_NS, 4)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.stat().st_nlink == 1
    assert parts.name(path, BEGAN_NS).read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        [path.name, *(parts.name(path, BEGAN_NS, number).name for number in (1, 2, 3, 4))]
    )


def test_all_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_ALIKE", 2)
    path = tmp_path / "pool.capture"
    for number in (1, 2):
        parts.name(path, BEGAN_NS, number).touch()
    with (
        Capture(path) as capture,
        pytest.raises(ShmtraceError, match="there are files of all names"),
    ):
        parts.keep(path, BEGAN_NS, capture.copy)
    assert not list(tmp_path.glob(".*"))


# ---- which go ----


def test_only_parts_are_removed_the_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    # by their end: a clock that was set back, or several in a second, make names that do not follow each other
    ended = {1: 30.0, 2: 10.0, 3: 40.0, 4: 20.0}
    for number, ended_s in ended.items():
        part(parts.name(path, BEGAN_NS, number), number, ended_s)
    for stamp in ("20231114-221321", "20231114-221322"):
        (tmp_path / f"pool.{stamp}.capture").write_text("SQLite format 3\0 of somebody's")
    not_parts = [
        part(tmp_path / "pool.20231114-221323.capture", None),  # a capture that somebody called so
        part(tmp_path / "pool.20231114-221324.capture.old"),
        part(tmp_path / "other.20231114-221325.capture"),
        part(tmp_path / "pool.2023-221326.capture"),
        part(path),
    ]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = part(elsewhere / "pool.20231114-221327.capture")
    link = tmp_path / target.name
    link.symlink_to(target)
    assert [found.path for found in parts.over(path)] == [parts.name(path, BEGAN_NS, number) for number in (2, 4, 1, 3)]
    parts.remove_oldest(path, 3)
    assert [found.ended_ns for found in parts.over(path)] == [at(20), at(30), at(40)]
    parts.remove_oldest(path, 1)
    assert [found.path for found in parts.over(path)] == [parts.name(path, BEGAN_NS, 3)]
    assert all(each.exists() for each in [*not_parts, target, link])
    assert len(list(tmp_path.glob("pool.20231114-22132[12].capture"))) == 2


def test_another_users_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    theirs = part(parts.name(path, BEGAN_NS))
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(theirs, 1234, 1234)
    assert parts.over(path) == []


def test_a_part_that_never_ends_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    hostile = part(parts.name(path, BEGAN_NS))
    with sqlite3.connect(hostile) as database:
        database.executescript(
            "DROP TABLE session; CREATE VIEW session AS "
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT max(i) AS ended_ns, 1 AS part FROM n"
        )
    database.close()
    assert parts.over(path) == []


# ---- what an earlier trace left ----


def test_what_another_trace_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    with Capture(path):
        for do in (parts.check, parts.set_aside):
            with pytest.raises(ShmtraceError, match="another trace is writing"):
                do(path)
        assert path.exists()
    parts.check(path)


@pytest.mark.parametrize("check", [parts.check, parts.check_new])
def test_where_no_file_can_be(check: Callable[[Path], None], tmp_path: Path) -> None:
    for path in (tmp_path, Path(), Path("/")):
        with pytest.raises(ShmtraceError, match="is a directory"):
            check(path)
    with pytest.raises(ShmtraceError, match="cannot be written"):
        check(tmp_path / "none" / "x.capture")
    check(tmp_path / "x.capture")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_part_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ShmtraceError, match="is no part of a trace"):
        parts.check(part(tmp_path / "x.capture", number=None))


def test_what_was_left_gets_a_name_of_its_own(tmp_path: Path) -> None:
    path = part(tmp_path / "pool.capture")
    assert parts.set_aside(path) == parts.name(path, at(1))
    assert [each.name for each in tmp_path.iterdir()] == [parts.name(path, at(1)).name]
    with Capture.open(parts.name(path, at(1))) as capture:
        [region, gone] = account.read(capture).regions
    assert (region.touched_bytes, gone.touched_bytes) == (30 * 4096, 5 * 4096)
    assert parts.set_aside(path) is None


def test_what_has_a_name_already_gets_no_other(tmp_path: Path) -> None:
    """The recorder was killed between keeping a part and going on."""
    path = part(tmp_path / "pool.capture")
    part(parts.name(path, at(1)))
    assert parts.set_aside(path) is None
    assert [each.name for each in tmp_path.iterdir()] == [parts.name(path, at(1)).name]


def test_what_was_cut_off_is_put_right(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    part(path)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript("PRAGMA journal_mode = TRUNCATE; PRAGMA cache_size = 1; BEGIN; DELETE FROM extent;")
    database.execute("UPDATE region SET name = hex(randomblob(100000))")
    hot, main = journal.path_of(path).read_bytes(), path.read_bytes()
    database.close()
    path.write_bytes(main)
    journal.path_of(path).write_bytes(hot)
    journal.path_of(path).chmod(0o600)
    kept = parts.set_aside(path)
    assert kept
    assert [each.name for each in tmp_path.iterdir()] == [kept.name]
    with Capture.open(kept) as capture:
        assert account.read(capture).regions[0].touched_bytes == 30 * 4096


@pytest.mark.parametrize("what", ["nothing", "schema", "journal"])
def test_a_trace_that_was_killed_before_it_recorded(what: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    if what == "schema":
        with Capture(path):
            pass
    elif what == "nothing":
        path.touch(0o600)
    journal.path_of(path).touch(0o600)
    assert parts.set_aside(path) is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_part_stays(tmp_path: Path) -> None:
    path = part(tmp_path / "pool.capture", None)
    with pytest.raises(ShmtraceError, match="is there already, and is no part of a trace: name another"):
        parts.set_aside(path)
    link = tmp_path / "link.capture"
    link.symlink_to(path)
    with pytest.raises(ShmtraceError, match="is there already, and is no part of a trace"):
        parts.set_aside(link)
    assert path.exists()
    assert link.is_symlink()


def test_what_was_not_finished_is_removed_if_it_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    unfinished = tmp_path / ".pool.capture.unfinished"
    with Capture(unfinished):
        pass
    assert parts.set_aside(path) is None
    assert not unfinished.exists()
    unfinished.write_text("somebody's")
    with pytest.raises(ShmtraceError, match="is in the way, and no trace has left it: remove it"):
        parts.set_aside(path)
    assert unfinished.read_text() == "somebody's"


# ---- what is taken over ----


def taken_over(path: Path, known: Needed, since_ns: int) -> Capture:
    """A capture that goes on, still open, with what is needed of a recorded one."""
    capture = Capture()
    with sqlite3.connect(path) as database:
        database.backup(capture._db)
    database.close()
    if not capture._db.in_transaction:
        capture._db.execute("BEGIN")
    capture.reopen()
    capture.choose(known, since_ns)
    capture.drop_others(since_ns)
    return capture


def test_regions_that_exist_are_taken_over_with_whoever_has_pages(tmp_path: Path) -> None:
    path = pool(tmp_path / "pool.capture")
    with sqlite3.connect(path) as database:  # two that have none: 814, who lives, and 815, who does not
        for row, exited_ns in ((4, None), (5, at(3))):
            values = (row, 810 + row, row, "x", exited_ns)
            database.execute(
                "INSERT INTO process (id, tgid, start_time_ns, comm, exited_ns) VALUES (?, ?, ?, ?, ?)", values
            )
            database.execute("INSERT INTO usage VALUES (1, ?, 3, 0)", (row,))
            database.execute("INSERT INTO exec VALUES (?, ?, 'x', 'x')", (at(2), row))
    database.close()
    with taken_over(path, NOTHING._replace(regions={1}, processes={4}), at(41)) as capture:
        found = account.read(capture)
        assert [(region.id, region.touched_bytes) for region in found.regions] == [("0:1/1047/00000007", 30 * 4096)]
        assert [tuple(row) for row in capture.rows("SELECT id FROM process ORDER BY id")] == [(1,), (2,), (3,), (4,)]
        assert [tuple(row) for row in capture.rows("SELECT process FROM usage")] == [(2,), (4,)]
        assert capture.rows("SELECT * FROM exec") == []
        # the newest sample says how large the region was when the part began
        assert [tuple(row)[:3] for row in capture.rows("SELECT * FROM sample")] == [(1, at(21), 43 * 4096)]
        assert not found.session.complete
        assert not capture.is_summed()
        assert capture.rows("PRAGMA foreign_key_check") == []


def test_what_has_ended_since_is_taken_over(tmp_path: Path) -> None:
    path = pool(tmp_path / "pool.capture")
    for since_s, gone in ((12, 1), (13.5, 0)):
        with taken_over(path, NOTHING._replace(regions={1}), at(since_s)) as capture:
            assert len([region for region in account.read(capture).regions if region.gone_ns]) == gone
            assert len(capture.rows("SELECT * FROM touched")) == gone
            assert len(capture.rows("SELECT * FROM sample WHERE region = 1")) == 2


def test_labels_and_stacks_that_nothing_refers_to_are_left(tmp_path: Path) -> None:
    for number, make in enumerate((with_labels, with_stacks)):
        path = make(tmp_path / f"{number}.capture")
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO label (id, script) VALUES (77, '/nobody.php'), (78, '/known.php')")
            database.execute("INSERT INTO stack (id, frames) VALUES (77, 'nobody'), (78, 'known')")
            database.execute(
                "INSERT INTO binary VALUES (77, '/nobody', NULL, 0, 4096, 0), (78, '/known', NULL, 0, 4096, 0)"
            )
            database.execute("INSERT INTO frame VALUES (77, 0, 77, 5), (78, 0, 78, 5)")
        database.close()
        known = NOTHING._replace(regions={1}, labels={78}, stacks={78})
        with taken_over(path, known, at(41)) as capture:
            for table in ("label", "stack", "binary"):
                left = {row for (row,) in capture.each(f"SELECT id FROM {table}")}  # noqa: S608
                assert 78 in left
                assert 77 not in left
            assert {stack for (stack,) in capture.each("SELECT stack FROM frame")} == ({78, 2, 3} if number else {78})
            assert capture.rows("PRAGMA foreign_key_check") == []
            assert account.read(capture).regions[0].touched_bytes == 30 * 4096


def test_a_chain_of_the_dead_has_an_end(tmp_path: Path) -> None:
    path = pool(tmp_path / "pool.capture")
    with sqlite3.connect(path) as database:
        for row in range(10, 210):
            values = (row, 1000 + row, row, row - 1 if row > 10 else None, at(3))
            database.execute(
                "INSERT INTO process (id, tgid, start_time_ns, parent, exited_ns) VALUES (?, ?, ?, ?, ?)", values
            )
    database.close()
    with taken_over(path, NOTHING._replace(regions={1}, processes={209}), at(41)) as capture:
        chain = [row for (row,) in capture.each("SELECT id FROM process WHERE id >= 10 ORDER BY id")]
        assert chain == list(range(209 - MAX_DEAD_ABOVE, 210))
        assert capture.rows("SELECT id FROM process WHERE parent NOT IN (SELECT id FROM process)") == []


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    path, target = tmp_path / "pool.capture", tmp_path / "copy.capture"
    with Capture(path) as capture:
        capture.insert("process", tgid=1, start_time_ns=1)
        capture.copy(target)
        capture.insert("process", tgid=2, start_time_ns=2)
        with pytest.raises(ShmtraceError, match="is there already"):
            capture.copy(target)
        with pytest.raises(ShmtraceError, match="cannot be written"):
            capture.copy(tmp_path / "none" / "x.capture")
        capture.insert("process", tgid=3, start_time_ns=3)
    with Capture.open(target) as copy:
        assert len(copy.rows("SELECT * FROM process")) == 1
    with Capture.open(path) as capture:
        assert len(capture.rows("SELECT * FROM process")) == 3
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy.capture", "pool.capture"]


def test_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    with Capture(path) as capture:
        capture.insert("process", tgid=1, start_time_ns=1)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM process").fetchall()
        began_s = time.monotonic()
        with pytest.raises(ShmtraceError, match="another program is reading"):
            capture.copy(tmp_path / "copy.capture")
        assert time.monotonic() - began_s < 5
        reader.close()
        capture.copy(tmp_path / "copy.capture")
    assert len(list(tmp_path.iterdir())) == 2


# ---- what a part says ----


def test_the_report_of_a_part(tmp_path: Path) -> None:
    """Since the trace began; of its own time, with --since +0s; and a table of time has no more rows than that."""
    path = part(tmp_path / "pool.capture", 2)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE session SET part_started_ns = ?", (at(20),))
    database.close()
    whole = shmtrace("report", path).stdout
    assert "allocated 172 KiB, +128 KiB in 41 s" in whole
    assert "part 2 of a trace, since 2023-11-14 22:13:40; `--since +0s`: this alone" in whole
    alone = json.loads(shmtrace("report", path, "--since", "+0s", "--json").stdout)
    assert (alone["part"], alone["part_started"]) == (2, "2023-11-14T22:13:40.000000Z")
    assert alone["started"] == "2023-11-14T22:13:20.000000Z"
    [region, _] = alone["regions"]
    touched = {
        row["process"]["tgid"]: row["touched_bytes"] // 4096 for row in region["touchers"] if row["touched_bytes"]
    }
    assert (touched, region["other_times_bytes"]) == ({812: 9, 813: 7}, 14 * 4096)
    for line in (shmtrace("report", path, "--by", "time"), shmtrace("report", path, "--by", "time", "--since", "+0s")):
        rows = line.stdout.splitlines()
        assert rows[1].startswith("22:13:40   172 KiB +64.0 KiB 64.0 KiB 36.0 KiB 812 php-fp"), rows
    # what was touched before is known, if not how large the regions were
    before = json.loads(
        shmtrace("report", path, "--since", "2023-11-14 22:13:21", "--until", "22:13:39", "--json").stdout
    )
    assert sum(row["touched_bytes"] for row in before["regions"][0]["touchers"]) == 14 * 4096


def test_the_page_of_a_part_is_of_its_time(tmp_path: Path) -> None:
    path = part(tmp_path / "pool.capture", 2)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE session SET part_started_ns = ?", (at(20),))
    database.close()
    with Capture.open(path) as capture:
        session = sessions.read(capture)
    bins = pictures.bins(session)
    assert (bins.origin_ns, bins.width_ns, bins.number) == (at(20), 10**8, 211)  # 21 s, and the moment of its end
    assert shmtrace("html", path, "-o", tmp_path / "page.html").exit_code == 0
