"""A capture beside which a journal lies: it is read whole if the journal is its own, and nothing is written."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recorded import pool, shmtrace
from tracer import account
from tracer.capture import journal
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError

COMMITTED = 23 + 7 + 5
"""Pages touched in a pool."""
OTHER_UID = 65534
READERS = [
    ["report"],
    ["report", "--json"],
    ["report", "--by", "time"],
    ["diff"],
    ["html", "-o", "-"],
    ["export", "--format", "csv"],
    ["export", "--format", "perfetto"],
]


def killed(path: Path) -> Path:
    """Of a trace that was killed in a commit: half of 9001 extents are in the file, and the journal knows what was."""
    pool(path)
    child = os.fork()
    if not child:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA journal_mode = TRUNCATE")
        database.execute("PRAGMA cache_size = 5")  # what has no room is in the file before it is committed
        database.execute("BEGIN")
        database.execute("DELETE FROM extent")
        rows = ((1, 2 * page, 2 * page + 1, 2, 1, 1) for page in range(9001))
        database.executemany("INSERT INTO extent VALUES (?, ?, ?, ?, ?, ?, NULL)", rows)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert journal.path_of(path).stat().st_size > 4096
    return path


def everything(directory: Path) -> dict[str, tuple[object, ...]]:
    """What is there, with content and times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in directory.rglob("*"):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = stat.st_ino, stat.st_mode, stat.st_mtime_ns, stat.st_ctime_ns, content
    return found


def touched_pages(path: Path) -> tuple[int, list[str]]:
    """And what is said of how it was read."""
    with Capture.open(path) as capture:
        found = account.read(capture)
        return sum(region.touched_bytes for region in found.regions) // 4096, capture.remarks


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    directory = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


def test_one_that_was_cut_off_is_read_whole(tmp_path: Path, temporary: Path) -> None:
    """As of its last commit, again and again, and by whoever may read it; the file itself stays half written."""
    path = killed(tmp_path / "x.capture")
    assert path.read_bytes() != pool(tmp_path / "whole").read_bytes()
    before = everything(tmp_path)
    for _ in range(2):
        assert touched_pages(path) == (COMMITTED, [])
    assert everything(tmp_path) == before
    assert not list(temporary.iterdir())


def test_the_copy_is_of_the_reader_alone(tmp_path: Path, temporary: Path) -> None:
    """And is gone, by its name, before anything is read of it."""
    path = killed(tmp_path / "x.capture")
    with Capture.open(path) as capture:
        assert not list(temporary.iterdir())
        assert len(account.read(capture).regions) == 2


def test_no_room_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed(tmp_path / "x.capture")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ShmtraceError, match=r"was cut off, and cannot be copied .* make room in .*, or set TMPDIR"):
        Capture.open(path)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def name_a_super_journal(path: Path, victim: Path) -> None:
    name = bytes(victim)
    end = struct.pack(">II", len(name), sum(name)) + journal.SUPER_JOURNAL
    path.write_bytes(path.read_bytes() + struct.pack(">I", 0x40000000 // 4096 + 1) + name + end)


STRANGE = {
    "it names another file": lambda path: name_a_super_journal(path, path.with_name("victim")),
    "it belongs to another user": lambda path: os.chown(path, OTHER_UID, OTHER_UID),
    "other users may write it": lambda path: path.chmod(0o622),
    "other users may write its directory": lambda path: path.parent.chmod(0o777),
    "it is not a regular file": lambda path: replace(path, os.mkfifo),
}


def test_a_write_ahead_log_is_left_alone(tmp_path: Path) -> None:
    """Which SQLite would read, and make an index of beside it, though no capture says that it has one."""
    path = pool(tmp_path / "x.capture")
    (tmp_path / "x.capture-wal").touch()
    before = everything(tmp_path)
    pages, [remark] = touched_pages(path)
    assert pages == 23 + 7 + 5
    assert "x.capture-wal is ignored, since no trace makes one: the last writes may be" in remark
    assert everything(tmp_path) == before


def test_a_journal_of_what_is_no_capture_any_more(tmp_path: Path, temporary: Path) -> None:
    """What SQLite finds as it plays it back is told as all other damage is."""
    path = killed(tmp_path / "x.capture")
    with path.open("r+b") as file:
        file.seek(18)
        file.write(b"\x03\x03")  # versions of the format that there are not
    journal_file = journal.path_of(path)
    data = bytearray(journal_file.read_bytes())
    first = data.find(b"SQLite format 3")
    data[first + 18 : first + 20] = b"\x03\x03"
    journal_file.write_bytes(data)
    with pytest.raises(ShmtraceError, match=r"x\.capture is damaged"):
        Capture.open(path)
    assert not list(temporary.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to another user")
@pytest.mark.parametrize("reason", STRANGE)
def test_a_journal_of_somebody_else_is_left_alone(reason: str, tmp_path: Path) -> None:
    """The capture is whole: what the journal would have it be is never looked at. Nor is any file touched."""
    path = pool(tmp_path / "x.capture")
    whole = path.read_bytes()
    killed(tmp_path / "y.capture").unlink()
    (tmp_path / "y.capture-journal").rename(tmp_path / "x.capture-journal")
    (tmp_path / "victim").write_text("mine\n")
    STRANGE[reason](journal.path_of(path))
    before = everything(tmp_path)
    pages, remarks = touched_pages(path)
    assert (pages, path.read_bytes()) == (COMMITTED, whole)
    assert remarks == [f"{path}-journal is ignored, since {reason}: the last writes may be wrong or missing"]
    for command, *options in READERS:
        others = [str(path)] if command == "diff" else []
        done = shmtrace(command, path, *others, *options)
        assert done.exit_code == 0
        assert reason in done.stdout + done.stderr
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_is_no_journal(kind: str, tmp_path: Path) -> None:
    path = pool(tmp_path / "x.capture")
    killed(tmp_path / "y.capture")
    link = os.symlink if kind == "symbolic" else os.link
    link(tmp_path / "y.capture-journal", tmp_path / "x.capture-journal")
    pages, [remark] = touched_pages(path)
    assert pages == COMMITTED
    assert "it is not a regular file" in remark


def test_a_directory_that_is_sticky_is_as_safe(tmp_path: Path) -> None:
    """As /tmp: others may put files there, and neither remove nor rename those that are."""
    path = killed(tmp_path / "x.capture")
    tmp_path.chmod(0o1777)
    assert touched_pages(path) == (COMMITTED, [])


def test_killed_when_it_had_hardly_begun(tmp_path: Path) -> None:
    """It is empty, or has its first row; and it is not taken for one that is damaged."""
    rng = random.Random(7)
    outcomes: Counter[str | int] = Counter()
    for number in range(60):
        path = tmp_path / f"{number}.capture"
        child = os.fork()
        if not child:
            with Capture(path) as capture:
                for ino in (7, 8):
                    capture.insert("region", dev=1, ino=ino, kind="anon", name="/dev/zero")
                capture.commit()
                os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not path.exists():
            outcomes["not there"] += 1
            continue
        try:
            with Capture.open(path) as capture:
                outcomes[len(capture.rows("SELECT * FROM region"))] += 1
        except ShmtraceError as error:
            outcomes[error.message.replace(f"{path} ", "")] += 1
    assert set(outcomes) <= {"not there", "is empty", 0, 2}
    assert len(outcomes) > 1


# ---- while it is being written ----


def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    """What is committed meanwhile is no part of it, and it is there for the next one."""
    path = tmp_path / "x.capture"
    pool(path)
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    database.execute("BEGIN IMMEDIATE")
    database.execute("UPDATE region SET allocated_bytes = allocated_bytes + 4096 WHERE id = 1")
    assert journal.path_of(path).exists()
    with Capture.open(path) as capture:
        assert capture.remarks == []
        first = capture.rows("SELECT allocated_bytes FROM region")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database.execute("COMMIT")
        assert [tuple(row) for row in capture.rows("SELECT allocated_bytes FROM region")] == [tuple(r) for r in first]
    database.execute("COMMIT")
    database.close()
    with Capture.open(path) as capture:
        assert capture.rows("SELECT allocated_bytes FROM region")[0][0] == first[0][0] + 4096


def test_a_reader_holds_up_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has been stopped, say: what is committed waits for it, and is all there once it has ended."""
    monkeypatch.setattr("tracer.capture.capture.COMMIT_SECONDS", 0.01)
    path = tmp_path / "x.capture"
    with Capture(path) as capture:
        region = capture.insert("region", dev=1, ino=7, kind="anon", name="/dev/zero")
        assert capture.commit()
        reader = Capture.open(path)
        for time_ns in range(1, 8):
            capture.insert_all("sample", "region, time_ns, allocated_bytes", [(region, time_ns, 4096)])
            assert not capture.commit()
        assert not reader.rows("SELECT * FROM sample")
        reader.__exit__(None)
        assert capture.commit()
        capture.insert_all("sample", "region, time_ns, allocated_bytes", [(region, 8, 4096)])
    with Capture.open(path) as capture:
        assert len(capture.rows("SELECT * FROM sample")) == 8
    assert [found.name for found in tmp_path.iterdir()] == ["x.capture"]


def test_the_end_waits_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.capture"
    with Capture(path) as capture:
        capture.insert("region", dev=1, ino=7, kind="anon", name="/dev/zero")
        capture.commit()
        reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM region").fetchone() == (1,)
        capture.insert("region", dev=1, ino=8, kind="anon", name="/dev/zero")
        threading.Timer(0.5, reader.close).start()
    with Capture.open(path) as capture:
        assert len(capture.rows("SELECT * FROM region")) == 2


def test_the_end_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what is missing."""
    monkeypatch.setattr("tracer.capture.capture.BUSY_SECONDS", 0.1)
    path = tmp_path / "x.capture"
    capture = Capture(path)
    capture.insert("region", dev=1, ino=7, kind="anon", name="/dev/zero")
    capture.commit()
    with Capture.open(path) as reader:
        capture.insert("region", dev=1, ino=8, kind="anon", name="/dev/zero")
        with pytest.raises(ShmtraceError, match="lacks the end of the trace: another program kept reading it"):
            capture.__exit__(None)
        assert len(reader.rows("SELECT * FROM region")) == 1
    with Capture.open(path) as capture:
        assert len(capture.rows("SELECT * FROM region")) == 1


def test_nobody_can_put_a_journal_in_the_place_of_a_trace_s_own(tmp_path: Path) -> None:
    """Not before it, nor between two commits."""
    path = tmp_path / "x.capture"
    journal.path_of(path).touch()
    with pytest.raises(ShmtraceError, match=r"x\.capture-journal is there already"):
        Capture(path)
    journal.path_of(path).unlink()
    assert not path.exists()
    with Capture(path) as capture:
        inode = journal.path_of(path).stat().st_ino
        assert journal.path_of(path).stat().st_mode & 0o777 == 0o600
        for ino in range(3):
            capture.insert("region", dev=1, ino=ino, kind="anon", name="/dev/zero")
            capture.commit()
            assert (journal.path_of(path).stat().st_ino, journal.path_of(path).stat().st_size) == (inode, 0)
    assert not journal.path_of(path).exists()
