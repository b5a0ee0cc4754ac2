"""Captures of kernels whose pages have 16 or 64 KiB, read here: the same pages, and bytes to match, in every view."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests import exported
from tests.recorded import FREE_OF_PAGES, at, pool, shmtrace, with_labels, with_oom, with_pages_of, with_stacks
from tests.schema import validate
from tracer import account, find_region
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.views import html

USUAL = 4096
SIZES = [16384, 65536]
MAKERS = [pool, with_labels, with_stacks, with_oom]


def scaled(value: Any, factor: int, name: str = "") -> Any:
    """A document whose figures in bytes are so many times larger."""
    if isinstance(value, dict):
        return {key: scaled(inner, factor, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [scaled(inner, factor, name) for inner in value]
    return value * factor if name.endswith("bytes") and name not in FREE_OF_PAGES and value else value


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=MAKERS, ids=lambda make: str(make.__name__))
def pair(request: pytest.FixtureRequest, size: int, tmp_path: Path) -> tuple[Path, Path, int]:
    """Of usual pages, of others, and how much larger these are."""
    usual = with_pages_of(USUAL, tmp_path / "usual", request.param)
    return usual, with_pages_of(size, tmp_path / "other", request.param), size // USUAL


def said(*arguments: str | Path) -> str:
    result = shmtrace(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_account(pair: tuple[Path, Path, int]) -> None:
    usual, other, factor = pair
    found = [validate(said("report", path, "--verify", "--json")) for path in (usual, other)]
    texts = [document["answer"].pop("text") for document in found]
    assert texts[0] != texts[1]  # it has sizes
    assert found[1] == scaled(found[0], factor)


def test_the_answer_is_known(size: int, tmp_path: Path) -> None:
    with Capture.open(with_pages_of(size, tmp_path / "x")) as capture:
        region, gone = account.read(capture).regions
    assert (region.allocated_bytes, region.before_bytes, region.unseen_bytes) == (43 * size, 11 * size, 2 * size)
    assert [toucher.touched_bytes for toucher in region.touchers] == [23 * size, 7 * size]
    assert [toucher.freed_bytes for toucher in region.touchers] == [3 * size, 0]
    assert gone.touched_bytes == gone.allocated_bytes == 5 * size


GROUPS = ["parent", "region", "process", "command", "creator", "what", "unit", "container", "time", "time,command"]


@pytest.mark.parametrize("by", GROUPS)
def test_every_table(by: str, size: int, tmp_path: Path) -> None:
    usual, other = with_pages_of(USUAL, tmp_path / "usual"), with_pages_of(size, tmp_path / "other")
    ours, theirs = (
        [*csv.DictReader(said("report", path, "--by", by, "--csv").splitlines())] for path in (usual, other)
    )
    assert ours
    assert any(row.get("allocated_bytes") or row.get("touched_bytes") for row in ours)
    for one, its in zip(ours, theirs):
        assert its == {name: scaled_text(text, name, size // USUAL) for name, text in one.items()}


def scaled_text(text: str, name: str, factor: int) -> str:
    return str(int(text) * factor) if name.endswith("bytes") and text else text


def test_a_window(size: int, tmp_path: Path) -> None:
    path = with_pages_of(size, tmp_path / "x")
    found = json.loads(said("report", path, "--since", "+20s", "--json"))
    opcache = max(found["regions"], key=lambda region: int(region["allocated_bytes"]))
    assert opcache["other_times_bytes"] == 14 * size
    assert [toucher["touched_bytes"] for toucher in opcache["touchers"]] == [9 * size, 7 * size]


def test_the_balance_is_in_pages(pair: tuple[Path, Path, int]) -> None:
    usual, other, _ = pair
    lines = [re.findall(r"balance .*(?:\n  .*)?", said("report", path)) for path in (usual, other)]
    assert lines[0] == lines[1] == ["balance 48 pages = 35 touched + 11 before + 2 unseen"]


def test_csv_has_pages_and_bytes(pair: tuple[Path, Path, int]) -> None:
    usual, other, factor = pair
    ours, theirs = ([*csv.DictReader(said("export", path, "--format", "csv").splitlines())] for path in (usual, other))
    assert [row["pages"] for row in theirs] == [row["pages"] for row in ours]
    assert [int(row["bytes"]) for row in theirs] == [int(row["pages"]) * USUAL * factor for row in ours]


def test_flame_graphs(pair: tuple[Path, Path, int]) -> None:
    usual, other, factor = pair
    ours, theirs = (said("export", path, "--format", "folded").splitlines() for path in (usual, other))
    grown = [f"{line.rpartition(' ')[0]} {int(line.rpartition(' ')[2]) * factor}" for line in ours]
    assert theirs == grown
    ours, theirs = (re.findall(r", (\d+) pages,", said("export", path, "--format", "svg")) for path in (usual, other))
    assert ours == theirs != []


def test_pprof(size: int, tmp_path: Path) -> None:
    target = tmp_path / "x.pb.gz"
    path = with_pages_of(size, tmp_path / "x", with_stacks)
    assert shmtrace("export", path, "--format", "pprof", "-o", target).exit_code == 0
    profile = exported.pprof(target.read_bytes())
    assert profile.period == size
    samples = exported.samples(profile)
    for kind, pages in (("alloc", 38), ("inuse", 43)):  # with what was freed; with what was before, and unseen
        assert sum(sample.values[f"{kind}_objects"] for sample in samples) == pages
        assert all(sample.values[f"{kind}_space"] == sample.values[f"{kind}_objects"] * size for sample in samples)


@pytest.mark.parametrize("form", ["perfetto", "openmetrics", "speedscope"])
def test_other_formats(form: str, pair: tuple[Path, Path, int]) -> None:
    """Each number of bytes is larger by the same factor."""
    usual, other, factor = pair
    ours, theirs = (numbers(said("export", path, "--format", form), form) for path in (usual, other))
    assert theirs == [number * factor for number in ours]
    assert any(ours)


def numbers(text: str, form: str) -> list[int]:
    if form == "perfetto":
        events = json.loads(text)["traceEvents"]
        return [event["args"]["bytes"] for event in events if event["ph"] == "C"]
    if form == "speedscope":
        return [weight for profile in json.loads(text)["profiles"] for weight in profile["weights"]]
    samples = [line.split() for line in text.splitlines() if re.match(r"\w+_bytes(_total)?\b", line)]
    return [int(float(words[-2])) for words in samples]


def test_the_page(pair: tuple[Path, Path, int]) -> None:
    """Cells and maps are in pages; the page multiplies."""
    usual, other, factor = pair
    documents = []
    for path in (usual, other):
        with Capture.open(path) as capture:
            documents.append(html.data(account.read(capture), capture))
    ours, theirs = documents
    assert (ours["session"]["page_bytes"], theirs["session"]["page_bytes"]) == (USUAL, USUAL * factor)
    assert theirs["balance"] == ours["balance"]
    assert [[row[name] for name in html.FIGURES] for row in theirs["regions"]] == [
        [value and value * factor for value in (row[name] for name in html.FIGURES)] for row in ours["regions"]
    ]
    assert [row["map"] for row in theirs["regions"]] == [row["map"] for row in ours["regions"]]
    assert theirs["growth"]["all"] == {
        name: [value and value * factor for value in line] for name, line in ours["growth"]["all"].items()
    }


def test_a_region_is_found_at_its_last_byte(size: int, tmp_path: Path) -> None:
    path = with_pages_of(size, tmp_path / "x")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO mapping VALUES (1, 2, ?, 0, 97)", (0x10000000,))
        database.commit()
    with Capture.open(path) as capture:
        known = find_region.known(account.read(capture))
        inside = find_region.find(known, capture, f"812:{0x10000000 + 97 * size - 1:x}")
        outside = find_region.find(known, capture, f"812:{0x10000000 + 97 * size:x}")
    assert ([each.region.ino for each in inside], outside) == ([1047], [])


def test_the_view_for_people(size: int, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(with_pages_of(size, tmp_path / "x"))) as database:
        found = database.execute("SELECT tgid, sum(bytes) FROM growth GROUP BY 1").fetchall()
    assert found == [(812, 23 * size), (813, 12 * size)]


def test_a_diff_of_two_kernels(size: int, tmp_path: Path) -> None:
    """What counts is bytes: of a page more here, and pages of another size there."""
    before, after = with_pages_of(USUAL, tmp_path / "before"), with_pages_of(size, tmp_path / "after")
    found = json.loads(said("diff", before, after, "--json"))
    opcache = next(region for region in found["regions"] if "1047" in json.dumps(region))
    assert 43 * (size - USUAL) in [value for name, value in walk(opcache) if name.endswith("bytes")]


def walk(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in walk(inner, key)]
    if isinstance(value, list):
        return [pair for inner in value for pair in walk(inner, name)]
    return [(name, value)]


@pytest.mark.parametrize("page_bytes", [0, 1, 4095, 8192, 1 << 20, -4096, 1 << 62, "'x'", "16384.5", "x'10'"])
def test_sizes_that_no_page_has(page_bytes: object, tmp_path: Path) -> None:
    pool(tmp_path / "x")
    with contextlib.closing(sqlite3.connect(tmp_path / "x")) as database:
        database.execute(f"UPDATE session SET page_bytes = {page_bytes}")  # noqa: S608
        database.commit()
    result = shmtrace("report", tmp_path / "x")
    assert result.exit_code == 1
    assert "is damaged: invalid session.page_bytes" in result.stderr


@pytest.mark.parametrize(("page_bytes", "last"), [(4096, 1 << 51), (16384, 1 << 49), (65536, 1 << 47)])
def test_no_file_has_more_pages_than_bytes(page_bytes: int, last: int, tmp_path: Path) -> None:
    """The largest file's last page has a place here; the next would be beyond what 63 bits can count."""
    path = with_pages_of(page_bytes, tmp_path / "x")
    insert = "REPLACE INTO extent VALUES (1, ?, ?, 3, ?, ?, NULL)"
    for end, reason in (
        (last, contextlib.nullcontext()),
        (last + 1, pytest.raises(ShmtraceError, match=r"extent\.end")),
    ):
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(insert, (last - 1, end, at(21), at(21)))
            database.commit()
        with reason, Capture.open(path):
            pass
