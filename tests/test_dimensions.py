"""What was touched by one grouping or by two: the answers are known to the page, and all of it is what is allocated."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import captures
from tests.recorded import CONTAINER, OTHER, at, pool, shmtrace, with_labels
from tests.test_rollup import pages, values
from tracer import account
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.model import ALL_TIME, Window
from tracer.proc.shmem import PAGE_BYTES
from tracer.tables import groups
from tracer.tables.table import Table
from tracer.views import table as tables

pytestmark = pytest.mark.usefixtures("in_utc")

POOL, MASTER = "php-fpm: pool www", "php-fpm: master"
SERVICE, INDEX, VENDOR = "php8.2-fpm.service", "/srv/www/index.php", "/srv/www/vendor/autoload.php"
BEFORE, UNSEEN = ("before", 11), ("unseen", 2)


def by(path: Path, names: str, window: Window = ALL_TIME, depth: int | None = None) -> Table:
    with Capture.open(path) as capture:
        return groups.table(account.read(capture, window), names, capture, depth)


def rows(table: Table) -> list[tuple[Any, ...]]:
    """The texts of each row and its pages; of what nobody touched the part's name, and its pages."""
    texts = zip(*(values(table, name if name != "time" else "time_ns") for name in table.by.split(",")))
    parts = values(table, "part")
    return [
        (*(row if part == "touched" else [part]), size)
        for part, row, size in zip(parts, texts, pages(table, "allocated_bytes"))
    ]


@pytest.mark.parametrize(
    ("names", "touched"),
    [
        ("command", [(POOL, 35)]),
        ("creator", [(MASTER, 35)]),
        ("command,region", [(POOL, "opcache? 1047", 30), (POOL, "apcu? 1048", 5)]),
        ("process,command", [(f"812 {POOL}", POOL, 23), (f"813 {POOL}", POOL, 12)]),
        ("unit,creator", [(SERVICE, MASTER, 23), (OTHER, MASTER, 12)]),
        ("container,command", [("-", POOL, 23), (CONTAINER[:12], POOL, 12)]),
        ("region,script", [("opcache? 1047", INDEX, 21), ("opcache? 1047", None, 9), ("apcu? 1048", "", 5)]),
        (
            "file,process",
            [
                (VENDOR, f"812 {POOL}", 14),
                (None, f"812 {POOL}", 9),
                (INDEX, f"813 {POOL}", 7),
                ("", f"813 {POOL}", 5),
            ],
        ),
    ],
)
def test_by_one_and_by_two(names: str, touched: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert rows(by(with_labels(tmp_path / "x"), names)) == [*touched, BEFORE, UNSEEN]


def test_who_they_were(tmp_path: Path) -> None:
    table = by(pool(tmp_path / "x"), "command")
    assert [values(table, name)[0] for name in ("processes", "exited", "first_ns", "last_ns", "regions")] == [
        *(2, 1, at(2.5), at(20.9), "opcache? 1047, apcu? 1048")
    ]
    assert values(table, "exited")[1:] == [None, None]


def test_by_time_and_something(tmp_path: Path) -> None:
    """In order of time, in the parts of the table by time, and in the window."""
    path = with_labels(tmp_path / "x")
    touched = [(at(2), VENDOR, 14), (at(6), "", 5), (at(20), None, 9), (at(20), INDEX, 7)]
    assert rows(by(path, "time,file")) == [*touched, BEFORE, UNSEEN]
    assert [(text, time_ns, size) for time_ns, text, size in touched] == rows(by(path, "file,time"))[:4]
    late = rows(by(path, "time,file", Window(since_ns=at(20.7))))
    assert late == [(at(20.7), INDEX, 7), ("other_times", 28), BEFORE, UNSEEN]
    text = shmtrace("report", path, "--by", "time,file").stdout.splitlines()
    assert text[0].split() == ["from", "allocated", "gone", "by", "file"]
    assert text[1].split()[:3] == ["22:13:22", "56.0", "KiB"]
    assert text[5].split() == ["-", "44.0", "KiB", "before", "the", "trace"]


def test_what_is_gone_is_told(tmp_path: Path) -> None:
    """And of what nobody touched there is still a name."""
    path = pool(tmp_path / "x")
    assert pages(by(path, "what"), "gone_bytes") == [0, 5, 0, 0]
    assert [row[0] for row in rows(by(path, "what,command"))] == ["opcache?", "apcu?", "before", "unseen"]
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM extent WHERE process IS NOT NULL")
        database.execute("DELETE FROM touched")
        database.commit()
    text = shmtrace("report", path, "--by", "command").stdout.splitlines()
    assert text[:2] == ["allocated command", " 44.0 KiB before the trace"]


def test_an_unknown_creator_and_a_process_number_used_again(tmp_path: Path) -> None:
    path = pool(tmp_path / "x")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE region SET creator = NULL WHERE id = 1")
        database.execute("UPDATE process SET tgid = 812")
        database.commit()
    assert rows(by(path, "creator"))[:2] == [(None, 30), (MASTER, 5)]
    assert rows(by(path, "process,creator"))[:3] == [
        (f"812 {POOL}", None, 23),
        (f"812 {POOL}", None, 7),
        (f"812 {POOL}", MASTER, 5),
    ]
    assert "?" in shmtrace("report", path, "--by", "creator").stdout.splitlines()[1]


@pytest.mark.parametrize("name", captures.NAMES)
def test_all_of_it_is_what_is_allocated(name: str, tmp_path: Path) -> None:
    path = captures.load(name, tmp_path / "x")
    with Capture.open(path) as capture:
        read = account.read(capture)
        allocated = sum(region.allocated_bytes for region in read.regions) // PAGE_BYTES
        for names in [
            ["command"],
            ["creator"],
            *itertools.permutations(["command", "creator", "process", "region", "unit", "time"], 2),
        ]:
            table = groups.table(read, ",".join(names), capture)
            assert sum(pages(table, "allocated_bytes")) == allocated, names
            assert tables.text(table)


def test_two_groupings_of_one_are_the_same_sums(tmp_path: Path) -> None:
    path = captures.load("labels", tmp_path / "x")
    both: Counter[str] = Counter()
    for script, _, size in [row for row in rows(by(path, "script,process")) if len(row) == 3]:
        both[script] += size
    assert both == {row[0]: row[1] for row in rows(by(path, "script")) if row[0] != "before"}


def test_a_directory_of_some_depth(tmp_path: Path) -> None:
    path = with_labels(tmp_path / "x")
    assert rows(by(path, "directory,command", depth=1))[0] == ("/srv", POOL, 21)
    assert "/srv " in shmtrace("report", path, "--by", "command,directory", "--depth", "1").stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("foo", "'foo' is none of parent, process, unit"),
        ("command,", "'' is none of"),
        ("command,command", "'command,command' is not two of command, creator"),
        ("command,unit,region", "is not two of"),
        ("command,parent", "is not two of"),
        ("stack,command", "is not two of"),
        ("x" * 4711, f"{'x' * 40!r} is none of"),
    ],
)
def test_no_such_table(names: str, says: str, tmp_path: Path) -> None:
    done = shmtrace("report", pool(tmp_path / "x"), "--by", names)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_such_label(tmp_path: Path) -> None:
    with pytest.raises(ShmtraceError, match="the capture has no query to group by: it has file, script, request"):
        by(with_labels(tmp_path / "x"), "command,query")
