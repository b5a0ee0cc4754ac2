"""What a person, a spreadsheet and a program read of a table, and of a file by `report` and `diff`."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.recorded import pool, with_stacks
from tests.test_cli import fail, run
from tests.test_views import HOSTILE, compare_with_golden
from tracer import account, formatting
from tracer.capture.capture import Capture
from tracer.proc.shmem import PAGE_BYTES
from tracer.tables.table import Column, Table
from tracer.views import json as document
from tracer.views import report, table

pytestmark = pytest.mark.usefixtures("in_utc")

BY = ["region", "process", "unit", "container", "time"]
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'", "-"]


def say(*arguments: Any) -> str:
    status, output = run(*map(str, arguments))
    assert status == 0, output
    return output


def rows(output: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output, newline="")))


# ---- tables ----

NAMED = [Column("name", "name", lambda row: row[0], "<"), Column("size_bytes", "size", lambda row: row[1])]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_cannot_write_on_the_terminal(name: str) -> None:
    lines = table.text(Table("x", NAMED, [(name, 7), ("plain", None)]))
    assert len(lines) == 3
    assert max(map(formatting.width, lines)) <= 80
    assert {unicodedata.category(character)[0] for line in lines for character in line}.isdisjoint("C")
    "\n".join(lines).encode()


@pytest.mark.parametrize("name", [*HOSTILE, *FORMULAS])
def test_a_stranger_cannot_calculate(name: str) -> None:
    output = "".join(table.csv(NAMED, [(name, 7)]))
    [(header, ((cell, size),))] = [
        (lines[0], lines[1:]) for lines in [list(csv.reader(io.StringIO(output, newline="")))]
    ]
    assert header == ["name", "size_bytes"]
    assert size == "7"
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    defused = name.startswith(("=", "+", "-", "@", "'", "\t", "\r"))
    assert cell == "'" * defused + formatting.printable(name)
    output.encode()


@pytest.mark.parametrize("name", [*HOSTILE, *FORMULAS])
def test_a_program_has_it_as_it_was(name: str) -> None:
    assert json.loads(table.dumps({"rows": table.records(Table("x", NAMED, [(name, 7)]))})) == {
        "rows": [{"name": name, "size_bytes": 7}]
    }


def test_csv_is_as_rfc_4180_says() -> None:
    output = "".join(table.csv(NAMED, [('a "b", c', 7), ("d", None)]))
    assert output == 'name,size_bytes\r\n"a ""b"", c",7\r\nd,\r\n'


def test_numbers_that_are_negative_stay_numbers() -> None:
    assert "".join(table.csv(NAMED[1:], [("", -4096)])) == "size_bytes\r\n-4096\r\n"


def test_a_table_that_is_cut_short() -> None:
    lines = table.text(Table("x", NAMED, [(f"n{i}", i) for i in range(5)], ("sum", 10)), limit=2)
    assert lines == ["name size", "n0    0 B", "n1    1 B", "…3 more", "sum  10 B"]


def test_parts_that_nobody_touched_are_not_cut_away() -> None:
    columns = [*NAMED, Column("part", "", lambda row: row[2], "<")]
    rows = [("b", 7, "touched"), ("unseen", 2, "unseen"), ("a", 5, "touched"), ("c", 1, "touched")]
    assert table.text(Table("x", columns, rows), limit=1) == ["name   size", "b       7 B", "…2 more", "unseen  2 B"]
    assert len(table.text(Table("x", NAMED, [("n", 1)] * 501))) == 502
    assert len(list(table.csv(NAMED, [("n", 1)] * 501))) == 502


def test_a_name_that_is_the_sum_s() -> None:
    lines = table.text(Table("x", NAMED, [("sum", 7), ("sums", 3)], ("sum", 10)))
    assert lines == ["name   size", r"\x73um  7 B", "sums    3 B", "sum    10 B"]


def test_unknown_is_a_question_mark_and_no_time_a_dash() -> None:
    columns = [*NAMED, Column("gone_ns", "gone", lambda row: row[2])]
    lines = table.text(Table("x", columns, [("a", None, None), ("b", 7, 1_700_000_000_000_000_000)]))
    assert lines == ["name size     gone", "a       ?        -", "b     7 B 22:13:20"]


def test_a_column_of_which_nothing_is_known_is_left_out() -> None:
    assert table.text(Table("x", NAMED, [("a", None), ("b", None)])) == ["name", "a", "b"]
    assert table.text(Table("x", NAMED, [])) == ["name size"]


def test_sorting_puts_the_most_first_and_the_unknown_last() -> None:
    made = Table("x", NAMED, [("b", 3), ("c", None), ("a", 20), ("", 5)])
    assert [name for name, _ in made.sort("size").rows] == ["a", "", "b", "c"]
    assert [name for name, _ in made.sort("size_bytes").rows] == ["a", "", "b", "c"]
    assert [name for name, _ in made.sort("name").rows] == ["a", "b", "c", ""]
    assert made.sort(None) == made


# ---- shmtrace report ----


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("window", [(), ("--since", "22:13:35", "--until", "+30s")])
def test_reports(by: str, window: tuple[str, ...], tmp_path: Path) -> None:
    output = say("report", pool(tmp_path / "x"), "--by", by, *window)
    compare_with_golden(f"by_{by}{'_window' if window else ''}.txt", output.removesuffix("\n"))
    assert max(map(formatting.width, output.split("\n"))) <= 80


def test_the_report_of_a_window(tmp_path: Path) -> None:
    output = say("report", pool(tmp_path / "x"), "--since", "22:13:35", "--until", "+30s")
    compare_with_golden("by_parent_window.txt", output.removesuffix("\n"))
    assert "balance 48 pages = 16 touched + 19 at other times + 11 before + 2 unseen" in output


def test_the_report_is_the_live_one(tmp_path: Path) -> None:
    path = pool(tmp_path / "x")
    with Capture.open(path) as capture:
        found = account.read(capture)
    assert say("report", path) == report.render(found) + "\n"
    assert say("report", path, "--json") == "".join(document.render(found)) + "\n"


@pytest.mark.parametrize("by", BY)
def test_all_three_say_the_same(by: str, tmp_path: Path) -> None:
    path = pool(tmp_path / "x", command="plain")
    separated = rows(say("report", path, "--by", by, "--csv"))
    read = json.loads(say("report", path, "--by", by, "--json"))
    assert (read["schema"], read["by"], read["since"]) == ("shmtrace/1", by, None)
    assert separated == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in read["rows"]
    ]
    names = {"region": "what", "process": "command", "unit": "unit", "container": "container", "time": "grower"}
    for row in read["rows"]:
        assert (row[names[by]] or "")[:12] in say("report", path, "--by", by)


@pytest.mark.parametrize(("by", "label"), [("unit", "/batch/1"), ("container", "-")])
def test_those_in_no_unit_and_no_container(by: str, label: str, tmp_path: Path) -> None:
    path = pool(tmp_path / "x")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE process SET cgroup = '/batch/1'")
    database.close()
    lines = say("report", path, "--by", by).splitlines()[:5]
    assert [line.split("  ")[0] for line in lines] == [by, label, "before the trace", "unseen", "sum"]


@pytest.mark.parametrize("by", ["unit", "container"])
@pytest.mark.parametrize("window", [(), ("--since", "+3s"), ("--until", "+21s")])
def test_the_places_add_up(by: str, window: tuple[str, ...], tmp_path: Path) -> None:
    found = json.loads(say("report", pool(tmp_path / "x"), "--by", by, "--json", *window))["rows"]
    assert sum(row["allocated_bytes"] for row in found) == 48 * PAGE_BYTES
    parts = ["touched", "touched", *["other_times"] * bool(window), "before", "unseen"]
    assert [row["part"] for row in found] == parts


@pytest.mark.parametrize("window", [(), ("--since", "+3s"), ("--until", "+21s")])
def test_the_shares_add_up(window: tuple[str, ...], tmp_path: Path) -> None:
    shares = rows(say("report", pool(tmp_path / "x"), "--csv", *window))
    assert sum(int(share["allocated_bytes"]) for share in shares) == 48 * PAGE_BYTES
    before = [int(share["allocated_bytes"]) for share in shares if share["part"] == "before"]
    assert before == [11 * PAGE_BYTES, 0]


def test_by_stack(tmp_path: Path) -> None:
    """All that was touched, given back since or not, is by some stack, or by an unknown one."""
    path = with_stacks(tmp_path / "x")
    output = say("report", path, "--by", "stack")
    compare_with_golden("by_stack.txt", output.removesuffix("\n"))
    separated = rows(say("report", path, "--by", "stack", "--csv"))
    assert [
        (row["ino"], row["stack"], int(row["made_bytes"]) // PAGE_BYTES, row["processes"]) for row in separated
    ] == [
        ("1047", "main;zend_shared_alloc", 27, "2"),
        ("1048", "main;zend_shared_alloc", 5, "1"),
        ("1047", "main;php-fpm8.2+0x1f0;memset", 4, "1"),
        ("1047", "", 2, "1"),
    ]
    read = json.loads(say("report", path, "--by", "stack", "--json"))
    assert [row["stack"] for row in read["rows"]] == [row["stack"] or None for row in separated]
    assert sum(row["made_bytes"] for row in read["rows"]) == (23 + 3 + 7 + 5) * PAGE_BYTES


@pytest.mark.parametrize("name", ["\x1b[2J\u202e;x", "=cmd|' /C calc'!A0", "x" * 5000])
def test_a_function_may_be_called_anything(name: str, tmp_path: Path) -> None:
    path = with_stacks(tmp_path / "x", name)
    output = say("report", path, "--by", "stack")
    assert {unicodedata.category(character)[0] for character in output.replace("\n", "")}.isdisjoint("C")
    assert max(map(formatting.width, output.split("\n"))) <= 80
    stack = rows(say("report", path, "--by", "stack", "--csv"))[0]["stack"]
    assert stack.count(";") == 1
    assert "\x1b" not in stack


def test_without_stacks(tmp_path: Path) -> None:
    path = pool(tmp_path / "x")
    assert fail("report", str(path), "--by", "stack") == (1, "the capture has no stacks: record it with --stacks")
    status, line = fail("report", str(path), "--by", "stack", "--since", "+1s")
    assert status == 2
    assert line.startswith("--by stack takes no --since or --until: stacks are recorded without times")


def test_sorted(tmp_path: Path) -> None:
    path = pool(tmp_path / "x")
    found = rows(say("report", path, "--by", "region", "--sort", "ino", "--csv"))
    assert [row["ino"] for row in found] == ["1048", "1047"]
    status, line = fail("report", str(path), "--by", "region", "--sort", "rss")
    assert status == 1
    assert line.startswith(
        "the table by region has no column 'rss': sort by one of id, ino, what, name, kind, size_bytes, "
    )


def test_hostile_names_in_every_report(tmp_path: Path) -> None:
    for number, name in enumerate(["\x1b[2J\u202e=cmd|' /C calc'!A0", '=HYPERLINK("x")\r\n', "<script>" + "x" * 4096]):
        path = pool(tmp_path / str(number), command=name, name=name)
        outputs = [say("report", path, "--by", by) for by in ["parent", *BY]] + [say("diff", path, path)]
        for output in outputs:
            assert {unicodedata.category(character)[0] for character in output.replace("\n", "")}.isdisjoint("C")
            assert max(map(formatting.width, output.split("\n"))) <= 80
        for by in ["parent", *BY]:
            for row in csv.reader(io.StringIO(say("report", path, "--by", by, "--csv"), newline="")):
                assert not [cell for cell in row if cell.startswith(("=", "@", "\t", "\r"))]
                assert "\x1b" not in "".join(row)
        read = json.loads(say("report", path, "--by", "process", "--json"))
        assert {row["command"] for row in read["rows"]} == {name}


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["--json", "--csv"],
            2,
            "--json and --csv exclude each other: give one of them: `shmtrace report --help` says more",
        ),
        (
            ["--sort", "pages"],
            2,
            "--sort needs a table: add --csv, or --by with anything but parent: `shmtrace report --help` says more",
        ),
        (["--since", "+5s", "--until", "+2s"], 1, "--since +5s is not before --until +2s: swap them"),
        (
            ["--until", "21:00"],
            1,
            "--until 21:00 lies outside the capture: the capture is from 2023-11-14 22:13:20 to 2023-11-14 22:14:01",
        ),
    ],
)
def test_mistakes(arguments: list[str], status: int, line: str, tmp_path: Path) -> None:
    assert fail("report", str(pool(tmp_path / "x")), *arguments) == (status, line)


def test_a_file_that_is_no_capture(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    status, line = fail("diff", str(tmp_path / "x"), str(tmp_path / "y"))
    assert status == 1
    assert line.startswith(f"{tmp_path}/x cannot be read as a capture")


def test_a_capture_that_was_cut_off_at_once(tmp_path: Path) -> None:
    with Capture(tmp_path / "x"):
        pass
    line = "the capture is empty: it was cut off before anything was recorded; record another"
    for arguments in (["report", "x"], ["report", "x", "--by", "time"], ["diff", "x", "x"]):
        command, *paths = (str(tmp_path / word) if word == "x" else word for word in arguments)
        assert fail(command, *paths) == (1, line)


def test_a_report_changes_nothing(tmp_path: Path) -> None:
    path = pool(tmp_path / "x")
    before = path.read_bytes()
    for by in ["parent", *BY]:
        say("report", path, "--by", by)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---- shmtrace diff ----


@pytest.mark.parametrize("moved", [False, True])
def test_diffs(moved: bool, tmp_path: Path) -> None:
    output = say("diff", pool(tmp_path / "a"), pool(tmp_path / "b", more_pages=17, moved=moved))
    compare_with_golden(f"diff{'_of_boots' if moved else ''}.txt", output.removesuffix("\n"))
    assert max(map(formatting.width, output.split("\n"))) <= 80


def test_a_diff_for_a_program(tmp_path: Path) -> None:
    paths = pool(tmp_path / "a"), pool(tmp_path / "b", more_pages=17)
    read = json.loads(say("diff", *paths, "--json"))
    assert read["same_boot"] is True
    assert [row["allocated_change_bytes"] for row in read["regions"]] == [17 * PAGE_BYTES]
    assert read["sums"]["regions"]["allocated_change_bytes"] == 17 * PAGE_BYTES
    assert read["sums"]["processes"]["touched_b_bytes"] == 47 * PAGE_BYTES
    separated = rows(say("diff", *paths, "--csv"))
    assert [(row["of"], row["touched_change_bytes"]) for row in separated] == [
        ("region", str(17 * PAGE_BYTES)),
        ("process", str(17 * PAGE_BYTES)),
        ("process", "0"),
    ]


def test_the_other_way_round(tmp_path: Path) -> None:
    paths = pool(tmp_path / "a"), pool(tmp_path / "b", more_pages=17)
    read = json.loads(say("diff", *reversed(paths), "--json"))
    assert read["sums"]["regions"]["allocated_change_bytes"] == -17 * PAGE_BYTES
