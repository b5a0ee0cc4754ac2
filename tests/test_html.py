"""The page: what is in it, and what a browser makes of it.

The captures are made up, with answers that are no round numbers; each figure of the page is compared with the account's
document, which comes by another way.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests import captures, recorded
from tests.test_account import put_mapping, put_process, put_region
from tracer import account, formatting, sessions, window
from tracer.answer import answer
from tracer.capture.capture import Capture
from tracer.model import ALL_TIME, Account, Session, Window
from tracer.proc.shmem import PAGE_BYTES
from tracer.tables import groups
from tracer.views import cells, colours, html, notes, pictures
from tracer.views import json as document
from tracer.views import table as tables

BEGAN_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
SESSION = {
    "version": "0.1.0",
    "host": "web1",
    "kernel": "6.1.0-56-amd64",
    "tier": "faults",
    "mechanism": "tracepoint",
    "blind_to": "write(2)\nhuge pages",
    "started_ns": BEGAN_NS,
    "ended_ns": BEGAN_NS + 41 * SECOND_NS,
    "complete": True,
    "sum_of_rss_bytes": 123 * PAGE_BYTES,
    "private_start_bytes": None,
    "private_peak_bytes": None,
    "private_end_bytes": None,
    "private_how": None,
    "shmem_total_bytes": 10_000 * PAGE_BYTES,
    "warnings": "",
}
HOSTILE = [
    pytest.param("</script><script>alert(1)</script>", id="script"),
    pytest.param('"><img src=x onerror=alert(1)>', id="image"),
    pytest.param("<!--<script>", id="comment"),
    pytest.param("a\u2028b\u2029c", id="separators"),
    pytest.param("\x1b[2J\x1b]0;title\x07", id="escape sequences"),
    pytest.param("\u202egpj.exe\u2066", id="reordering"),
    pytest.param("\\xff\\xfe", id="invalid bytes"),
    pytest.param("=HYPERLINK(1)&amp;\n\t${x} $data", id="formula, entity, placeholder"),
    pytest.param("x" * 4096, id="long"),
    pytest.param("__proto__", id="property"),
]


@pytest.fixture
def capture() -> Iterator[Capture]:
    with Capture() as capture:
        yield capture


def at(seconds: float) -> int:
    return BEGAN_NS + round(seconds * SECOND_NS)


def touch(
    capture: Capture,
    region: int,
    start: int,
    pages: int,
    process: int | None,
    seconds: float = 1,
    label: int | None = None,
) -> None:
    times = {} if process is None else {"first_ns": at(seconds), "last_ns": at(seconds + 0.3)}
    capture.insert("extent", region=region, start=start, end=start + pages, process=process, label=label, **times)


def fill(capture: Capture, command: str = "php-fpm: pool www") -> None:
    """A master, its workers of which one is dead, a region that went, and pages nobody saw come."""
    capture.insert("session", **SESSION)
    master = put_process(capture, 811, command="php-fpm: master process", parent_tgid=1, started_ns=at(-9))
    worker = put_process(
        capture, 812, command=command, parent=master, parent_tgid=811, started_ns=at(2), exited_ns=at(30)
    )
    other = put_process(capture, 813, command="php-fpm: pool api", parent=master, parent_tgid=811, started_ns=at(3))
    made = {"creator": master, "creator_how": "traced", "parent": master}
    region = put_region(capture, 95, start_bytes=20 * PAGE_BYTES, **made)
    touch(capture, region, 0, 20, None)
    touch(capture, region, 20, 23, worker, 5)
    touch(capture, region, 43, 7, other, 7)
    touch(capture, region, 60, 31, worker, 20)
    touch(capture, region, 91, 1, other, 21)  # and 13 unseen
    gone = put_region(capture, 11, ino=1048, created_ns=at(4), gone_ns=at(33), **made)
    touch(capture, gone, 0, 11, worker, 6)
    put_region(capture, 0, ino=1049, **made)
    capture.insert("usage", region=region, process=worker, faults=61, freed_pages=3)
    put_mapping(capture, region, master)
    capture.insert("exec", time_ns=at(33.5), process=master, comm="php-fpm", command=command)
    for seconds, pages in [(1, 20), (6, 43), (8, 63), (21, 94), (22, 95)]:
        capture.insert("sample", region=region, time_ns=at(seconds), allocated_bytes=pages * PAGE_BYTES)
    capture.insert("sample", region=gone, time_ns=at(7), allocated_bytes=11 * PAGE_BYTES)
    for seconds in range(1, 41):
        capture.insert("host_sample", time_ns=at(seconds), shmem_bytes=10_000 * PAGE_BYTES)


def embedded(page: str) -> dict[str, Any]:
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.fixture
def filled(capture: Capture) -> tuple[Account, dict[str, Any]]:
    fill(capture)
    read = account.read(capture)
    return read, embedded(html.render(read, capture))


# ---- the figures ----


def cells_of(data: dict[str, Any]) -> Iterator[tuple[int, int, int, int]]:
    """(region, who, bin, pages)"""
    columns = data["cells"]
    rows = iter(zip(columns["bin"], columns["pages"]))
    for region, who, count in zip(columns["region"], columns["who"], columns["bins"]):
        for _, (number, pages) in zip(range(count), rows):
            yield region, who, number, pages


def name_of(data: dict[str, Any], by: str, region: int, who: int) -> Any:
    """A value as people know it: the text, the PID, or the region's id; None: unknown; "others": not told apart."""
    if by == "region":
        return data["regions"][region].get("id", "others")
    place = data["who"][by][who]
    if place < 0:
        return {cells.UNKNOWN: None, cells.OTHERS: "others"}[place]
    if by == "process":
        return data["processes"]["tgid"][place]
    return next(each["values"] for each in data["dimensions"] if each["by"] == by)[place]


def touched_in(data: dict[str, Any], by: str, first: int = 0, until: int | None = None) -> Counter[Any]:
    """Bytes by value that were touched in the bins [first, until); in all, if there is no until."""
    found: Counter[Any] = Counter()
    for region, who, number, pages in cells_of(data):
        if until is None or first <= number < until:
            found[name_of(data, by, region, who)] += pages * PAGE_BYTES
    return found


def bands(data: dict[str, Any]) -> dict[Any, list[int]]:
    """Bytes at each edge by the chosen dimension, and from before: what the page stacks."""
    nr = data["bins"]["count"] + 1
    found: dict[Any, list[int]] = {}

    def add(name: Any, came: Counter[int], gone_edge: int | None) -> None:
        held = list(accumulate(came[edge] * PAGE_BYTES for edge in range(nr)))
        held = held if gone_edge is None else held[:gone_edge] + [0] * (nr - gone_edge)
        found[name] = [sum(both) for both in zip(found.get(name, [0] * nr), held)]

    for region, who, number, pages in cells_of(data):
        edge = 0 if number == nr - 1 else number + 1
        add(name_of(data, data["by"], region, who), Counter({edge: pages}), data["regions"][region]["gone_edge"])
    for entry in data["regions"]:
        add("before", Counter({entry["created_edge"]: entry["before_bytes"] // PAGE_BYTES}), entry["gone_edge"])
    return found


def test_figures_are_those_of_the_document(filled: tuple[Account, dict[str, Any]]) -> None:
    read, data = filled
    said = json.loads("".join(document.render(read)))
    assert [region["id"] for region in data["regions"]] == [region["id"] for region in said["regions"]]
    pages: Counter[tuple[int, int]] = Counter()
    for region, who, _, count in cells_of(data):
        pages[region, name_of(data, "process", region, who)] += count
    for number, (mine, its) in enumerate(zip(data["regions"], said["regions"])):
        assert {name: mine[name] for name in html.FIGURES} == {name: its[name] for name in html.FIGURES}
        assert {tgid: count * PAGE_BYTES for (region, tgid), count in pages.items() if region == number} == {
            row["process"]["tgid"]: row["touched_bytes"] for row in its["touchers"]
        }
    processes = data["processes"]
    assert [data["commands"][command] for command in processes["command"]] == [
        "php-fpm: master process",
        "php-fpm: pool www",
        "php-fpm: pool api",
    ]
    assert (processes["freed_bytes"], processes["faults"]) == ([0, 3 * PAGE_BYTES, 0], [None, 61, None])


def test_the_balance_is_of_all_regions(filled: tuple[Account, dict[str, Any]]) -> None:
    assert filled[1]["balance"] == {"allocated": 106, "touched": 73, "before": 20, "unseen": 13}


def test_the_answer_is_the_report_s(filled: tuple[Account, dict[str, Any]]) -> None:
    assert filled[1]["headline"] == answer(filled[0]).text
    assert filled[1]["headline"].startswith("/dev/zero ×2 grew by 300 KiB to 380 KiB of 7.8 MiB in 41 s. ")


def test_the_map_has_every_page(filled: tuple[Account, dict[str, Any]]) -> None:
    _, data = filled
    drawn = data["regions"][0]["map"]
    spans, page = [], 0
    for gap, length, who in zip(drawn["gap"], drawn["length"], drawn["who"]):
        spans.append((page + gap, page + gap + length, who if who < 0 else name_of(data, "process", 0, who)))
        page += gap + length
    assert (drawn["merged"], drawn["pages"], drawn["present"]) == (1, None, None)
    assert spans == [(0, 20, -1), (20, 43, 812), (43, 50, 813), (60, 91, 812), (91, 92, 813)]
    assert data["bins"] == {"origin": 0, "width": 200_000, "count": 206}
    assert drawn["bin"] == [206, 25, 35, 100, 105]


def test_growth_ends_as_the_account_does(filled: tuple[Account, dict[str, Any]]) -> None:
    read, data = filled
    ends = {name: band[-1] // PAGE_BYTES for name, band in bands(data).items()}
    assert ends == {"php-fpm: pool www": 54, "php-fpm: pool api": 8, "before": 20}
    growth = data["growth"]["all"]
    assert growth["unseen"][-1] == 13 * PAGE_BYTES
    living = [region for region in read.regions if region.gone_ns is None]
    assert growth["allocated"][-1] == sum(region.allocated_bytes for region in living) == 95 * PAGE_BYTES
    for number, region in enumerate(read.regions):
        line = data["growth"]["regions"][str(number)]["allocated"]
        assert line[-1] == (region.allocated_bytes if region.gone_ns is None else 0)


# ---- the line beside its bands ----


@pytest.mark.parametrize("name", captures.NAMES)
def test_the_line_never_contradicts_its_bands(name: str, tmp_path: Path) -> None:
    data = page_of(captures.load(name, tmp_path / "x"))[1]
    growth = data["growth"]["all"]
    stacked = [sum(sizes) for sizes in zip(growth["unseen"], *bands(data).values())]
    assert growth["allocated"][-1] == stacked[-1]
    for size, height in zip(growth["allocated"], stacked):
        assert size is None or size >= height


def line_of(capture: Capture, samples: list[tuple[float, int]]) -> list[int | None]:
    """Pages at each tenth second of 20, of a region of which 10 pages were touched each second, by these samples."""
    capture.insert("session", **{**SESSION, "ended_ns": at(20)})
    process, region = put_process(capture, 5), put_region(capture, 193)
    for second in range(19):
        touch(capture, region, 10 * second, 10, process, second + 0.05)
    for seconds, pages in samples:
        capture.insert("sample", region=region, time_ns=at(seconds), allocated_bytes=pages * PAGE_BYTES)
    line = embedded(html.render(account.read(capture), capture))["growth"]["all"]["allocated"]
    assert len(line) == 202
    return [None if size is None else size // PAGE_BYTES for size in line]


def test_where_samples_starve_the_line_has_a_gap(capture: Capture) -> None:
    """The second sample comes late, and most of the others were thinned out."""
    line = line_of(capture, [(1, 10), (8, 80), (9, 90), (18, 183)])
    assert line[10] == 10
    assert set(line[40:80]) == {None}
    assert (line[80], line[90]) == (80, 90)
    assert set(line[130:180]) == {None}
    assert (line[180], line[-1]) == (183, 193)


def test_a_sample_that_is_a_moment_old_is_raised_to_the_ledger(capture: Capture) -> None:
    """A page counts when it was touched, the inode's count when it was read."""
    line = line_of(capture, [(second, 10 * second) for second in range(20)])
    assert None not in line
    assert [line[edge] for edge in (10, 11, 19, 20, 21)] == [10, 20, 20, 20, 30]


def test_a_peak_between_two_edges_is_in_the_line(capture: Capture) -> None:
    capture.insert("session", **SESSION)
    region = put_region(capture, 7)
    for seconds, pages in [(0, 7), (10.21, 7), (10.25, 977), (10.3, 7)]:
        capture.insert("sample", region=region, time_ns=at(seconds), allocated_bytes=pages * PAGE_BYTES)
    line = embedded(html.render(account.read(capture), capture))["growth"]["all"]["allocated"]
    assert [size // PAGE_BYTES for size in line[50:54]] == [7, 7, 977, 7]


def test_where_a_region_goes_the_line_falls_with_its_bands(capture: Capture) -> None:
    """However much it had grown in the last moment."""
    capture.insert("session", **SESSION)
    process, region = put_process(capture, 5), put_region(capture, 31, gone_ns=at(10.3))
    touch(capture, region, 0, 20, process, 2)
    touch(capture, region, 20, 11, process, 10.1)
    put_region(capture, 7, ino=2, start_bytes=7 * PAGE_BYTES)
    for seconds, pages in [(0, 0), (2.5, 20), (10.25, 31)]:
        capture.insert("sample", region=region, time_ns=at(seconds), allocated_bytes=pages * PAGE_BYTES)
    line = embedded(html.render(account.read(capture), capture))["growth"]["all"]["allocated"]
    assert [size // PAGE_BYTES for size in line[49:54]] == [27, 27, 31, 7, 7]


# ---- a window ----


@pytest.mark.parametrize("name", [*captures.NAMES, recorded.pool, recorded.with_labels])
def test_a_window_is_that_of_the_report(name: Any, tmp_path: Path) -> None:
    """Of each dimension, and for windows that begin and end anywhere."""
    path = captures.load(name, tmp_path / "x") if isinstance(name, str) else name(tmp_path / "x")
    with Capture.open(path) as capture:
        whole = account.read(capture)
        data = embedded(html.render(whole, capture))
        bins = pictures.bins(whole.session)
        assert (bins.origin_ns // 1000) == data["session"]["started"] + data["bins"]["origin"]
        some = [0, bins.number // 7, bins.number // 3, bins.number // 2, bins.number - 2, bins.number]
        windows = {(first, until) for first in some for until in some if 0 <= first < until}
        for first, until in windows:
            since_ns = bins.origin_ns + first * bins.width_ns if first else None
            until_ns = bins.origin_ns + until * bins.width_ns if until < bins.number else None
            read = account.read(capture, Window(since_ns, until_ns))
            is_all = read.window == ALL_TIME
            for by, its in colours.sizes(read, colours.of_labels(read)).items():
                mine = touched_in(data, by, first, None if is_all else until)
                assert sum(mine.values()) == sum(region.touched_bytes for region in read.regions)
                assert mine == known(read, by, its), (by, first, until)


def known(read: Account, by: str, sizes: Counter[Any]) -> Counter[Any]:
    """The same with values as the page has them."""
    tgids = {toucher.process.row: toucher.process.tgid for region in read.regions for toucher in region.touchers}
    ids = {region.row: region.id for region in read.regions}
    found: Counter[Any] = Counter()
    for value, size_bytes in sizes.items():
        shown = tgids[value] if by == "process" else ids[value] if by == "region" else value
        found[html._name(shown or "(none)") if isinstance(shown, str) else shown] += size_bytes
    return found


@pytest.mark.parametrize(
    ("seconds", "width_s"), [(0, 0.001), (0.2, 0.001), (4, 0.02), (41, 0.2), (3 * 3600, 60), (10**9, 56 * 86400)]
)
def test_bins_lie_between_round_times(seconds: float, width_s: float) -> None:
    session = Session(**dict.fromkeys(Session._fields))  # type: ignore[arg-type]
    began_ns = BEGAN_NS + 7_654_321
    ended_ns = began_ns + round(seconds * SECOND_NS)
    bins = pictures.bins(session._replace(started_ns=began_ns, ended_ns=ended_ns))
    assert bins.width_ns == round(width_s * SECOND_NS)
    assert bins.origin_ns % bins.width_ns == 0
    assert bins.number <= pictures.BINS + 1
    assert (bins.of(began_ns), bins.of(ended_ns)) == (0, bins.number - 1)
    assert (bins.of(0), bins.of(1 << 62)) == (0, bins.number - 1)
    assert (bins.edge(began_ns - SECOND_NS * 10**9), bins.edge(began_ns), bins.edge(1 << 62)) == (0, 1, bins.number)


# ---- dimensions ----


def page_of(path: Path) -> tuple[Account, dict[str, Any]]:
    with Capture.open(path) as capture:
        read = account.read(capture)
        return read, embedded(html.render(read, capture))


@pytest.mark.parametrize(
    ("name", "by", "names"),
    [
        ("pool", "region", ["command", "unit", "region", "process"]),  # all is by one group of processes
        ("php_fpm", "command", ["command", "unit", "region", "process"]),
        ("labels", "script", ["command", "file", "script", "request", "directory", "unit", "region", "process"]),
    ],
)
def test_colours_are_of_the_dimension_that_tells_most(name: str, by: str, names: list[str], tmp_path: Path) -> None:
    read, data = page_of(captures.load(name, tmp_path / "x"))
    assert colours.names(read) == names
    assert [each["by"] for each in data["dimensions"]] == names[:-2]
    assert data["by"] == by


def test_of_dimensions_that_explain_as_much_the_first_is_chosen() -> None:
    few, many = Counter({"a": 7, "b": 5}), Counter({str(number): 1 for number in range(12)})
    assert colours.most_telling({"command": many, "unit": few, "region": few}) == "unit"
    assert colours.most_telling({"command": Counter({"a": 12}), "unit": Counter(), "process": many}) == "process"
    assert colours.most_telling({"command": Counter({"a": 12}), "unit": Counter({None: 12})}) == "command"
    assert colours.most_telling({"script": Counter({None: 11, "a": 1}), "process": many}) == "process"
    workers = Counter({str(number): 1 for number in range(21)})  # the ten biggest are less than half
    assert colours.most_telling({"command": Counter({"pool www": 21}), "process": workers}) == "command"


def test_a_pool_of_replaced_workers_is_one_value(capture: Capture) -> None:
    capture.insert("session", **SESSION)
    region = put_region(capture, 259)
    master = put_process(capture, 4, command="php-fpm: master process")
    for number in range(250):
        touch(capture, region, number, 1, put_process(capture, 100 + number, command="php-fpm: pool www"), number / 7)
    touch(capture, region, 250, 9, master)
    data = embedded(html.render(account.read(capture), capture))
    assert data["by"] == "command"
    assert touched_in(data, "command") == {
        "php-fpm: pool www": 250 * PAGE_BYTES,
        "php-fpm: master process": 9 * PAGE_BYTES,
    }


# ---- what it was for ----


def columns_of(table: dict[str, Any]) -> dict[str, list[Any]]:
    return {column["title"]: column["values"] for column in table["columns"]}


@pytest.mark.parametrize("recorder", [recorded.pool, recorded.with_labels, recorded.with_stacks])
def test_tables_are_those_of_the_reports(recorder: Callable[[Path], Path], tmp_path: Path) -> None:
    """Those that the page does not make of its cells."""
    read, data = page_of(recorder(tmp_path / "x"))
    made = colours.names(read)
    assert [table["by"] for table in data["tables"]] == [by for by in groups.telling(read) if by not in made]
    for mine in data["tables"]:
        by = mine["by"]
        its = json.loads(tables.json(groups.table(read, by), read))["rows"]
        said = columns_of(mine)
        size = "made_bytes" if by == "stack" else "allocated_bytes"
        assert next(iter(said[title] for title in ("made", "allocated") if title in said)) == [row[size] for row in its]
        assert said["by" if "by" in said else "processes"] == [row["processes"] for row in its]


def test_labels_are_in_the_cells_and_in_the_map(tmp_path: Path) -> None:
    _, data = page_of(recorded.with_labels(tmp_path / "x"))
    files = {"/srv/www/vendor/autoload.php": 14, None: 9, "/srv/www/index.php": 7, "(none)": 5}
    assert touched_in(data, "file") == {name: pages * PAGE_BYTES for name, pages in files.items()}
    assert [
        [who if who < 0 else name_of(data, "file", number, who) for who in region["map"]["who"]]
        for number, region in enumerate(data["regions"])
    ] == [[-1, "/srv/www/vendor/autoload.php", None, "/srv/www/index.php"], ["(none)"]]
    assert touched_in(data, "directory") == {
        "/srv/www": 21 * PAGE_BYTES,
        None: 9 * PAGE_BYTES,
        "(none)": 5 * PAGE_BYTES,
    }


def test_without_labels_there_is_nothing_of_them(tmp_path: Path) -> None:
    _, data = page_of(recorded.pool(tmp_path / "x"))
    assert set(data["who"]) == {"command", "unit", "process"}
    assert [table["by"] for table in data["tables"]] == ["container"]


def test_of_too_many_values_those_of_most_pages_are_kept(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_VALUES", 3)
    monkeypatch.setattr(cells, "MAX_PROCESSES", 2)
    capture.insert("session", **SESSION, label="php")
    region = put_region(capture, 60)
    touch(capture, region, 50, 3, None)
    for number in range(1, 8):
        row = capture.insert("label", script=f"/{number}.php", request="/")
        process = put_process(capture, 100 + number, command=f"{'abcdefg'[number - 1]} x")
        touch(capture, region, number * 7, number, process, label=row)
    data = embedded(html.render(account.read(capture), capture))
    pages = {by: {name: size // PAGE_BYTES for name, size in touched_in(data, by).items()} for by in data["who"]}
    assert pages["script"] == {"/7.php": 7, "/6.php": 6, "/5.php": 5, "others": 10}
    assert pages["command"] == {"g x": 7, "f x": 6, "e x": 5, "others": 10}
    assert pages["process"] == {107: 7, 106: 6, "others": 15}
    assert data["left_out"]["processes"] == 5


def test_of_too_many_cells_fewer_values_are_told_apart(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_CELLS", 100)
    monkeypatch.setattr(cells, "MAX_PROCESSES", 64)
    capture.insert("session", **SESSION)
    region = put_region(capture, 5000)
    page = 0
    for number in range(1, 41):
        process = put_process(capture, 100 + number, command="php-fpm: pool www")
        for second in range(10):
            touch(capture, region, page, number, process, second)
            page += number
    data = embedded(html.render(account.read(capture), capture))
    assert len(data["cells"]["bin"]) <= 100
    assert touched_in(data, "command") == {"php-fpm: pool www": page * PAGE_BYTES}
    most = touched_in(data, "process")
    assert {tgid: size // PAGE_BYTES for tgid, size in most.items() if tgid != "others"} == {
        100 + number: 10 * number for number in range(33, 41)
    }
    assert touched_in(data, "command", 0, 25)["php-fpm: pool www"] == page // 2 * PAGE_BYTES
    whos = len(data["who"]["process"])
    assert set(data["regions"][0]["map"]["who"]) == set(range(whos))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_labels_and_frames_stay_data(tmp_path: Path, name: str) -> None:
    """And can be told for what they are. Frames are kept a line each."""
    function = name.replace("\n", "")
    for path in (recorded.with_labels(tmp_path / "x", name), recorded.with_stacks(tmp_path / "y", function)):
        with Capture.open(path) as capture:
            page = html.render(account.read(capture), capture)
        assert page.count("<script") == 2
        assert not set(page) & set("\x1b\u2028\u2029\u202e\u2066")
    labelled, stacked = page_of(tmp_path / "x")[1], page_of(tmp_path / "y")[1]
    assert html._name(name) in touched_in(labelled, "file")
    assert columns_of(stacked["tables"][-1])["stack"][0] == html._name(f"{function} < main")


# ---- bounds ----


def test_a_huge_region_is_drawn_in_fewer_spans(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of neighbouring extents stands for them; nothing is lost from the sums."""
    monkeypatch.setattr(pictures, "MAX_SPANS", 100)
    capture.insert("session", **SESSION)
    one, two = put_process(capture, 5), put_process(capture, 6)
    region = put_region(capture, 5000)
    for start in range(0, 5000, 5):
        touch(capture, region, start, 3, one, start / 200)
        touch(capture, region, start + 3, 2, two, start / 200)
    data = embedded(html.render(account.read(capture), capture))
    drawn = data["regions"][0]["map"]
    assert (drawn["merged"], len(drawn["length"])) == (20, 100)
    assert (sum(drawn["present"]), sum(drawn["length"]), sum(drawn["gap"])) == (5000, 5000, 0)
    assert {name_of(data, "process", 0, who) for who in drawn["who"]} == {5}
    assert drawn["pages"] == [3] * 100
    assert drawn["bin"][:3] == [0, 1, 2]
    assert touched_in(data, "process") == {5: 3000 * PAGE_BYTES, 6: 2000 * PAGE_BYTES}


def test_few_spans_are_exact_beside_many(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_SPANS", 100)
    capture.insert("session", **SESSION)
    process, small, large = put_process(capture, 5), put_region(capture, 7), put_region(capture, 600, ino=2)
    touch(capture, small, 3, 7, process)
    for i in range(300):
        touch(capture, large, i * 9, 2, process)
    within = pictures.Bins(BEGAN_NS, SECOND_NS, 41)
    found = {each.region: each for each in pictures.touched(capture, within, {process: 0})}
    assert (found[small].merged, found[small].spans) == (1, [pictures.Span(3, 10, 0, 1, 7, 7)])
    assert (found[large].merged, len(found[large].spans)) == (4, 75)
    assert sum(span.present for span in found[large].spans) == 600
    assert found[large].cells == {1: 600}


def test_the_smallest_of_many_regions_are_left_out(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not of any sum, and those that went not of the chart before."""
    monkeypatch.setattr(cells, "MAX_REGIONS", 5)
    capture.insert("session", **SESSION)
    process = put_process(capture, 5)
    for pages in range(1, 14):
        gone = {"gone_ns": at(20)} if pages == 7 else {}
        touch(capture, put_region(capture, pages, ino=pages, **gone), 0, pages, process)
    data = embedded(html.render(account.read(capture), capture))
    told = [region for region in data["regions"] if region["map"]]
    assert sorted(region["allocated_bytes"] // PAGE_BYTES for region in told) == [9, 10, 11, 12, 13]
    others = {
        region["name"]: region["allocated_bytes"] // PAGE_BYTES for region in data["regions"] if not region["map"]
    }
    assert others == {"7 smaller regions": 29, "1 smaller regions": 7}
    assert (data["left_out"]["regions"], data["left_out"]["peak_bytes"]) == (8, 8 * PAGE_BYTES)
    assert data["balance"]["touched"] == 91
    assert touched_in(data, "region")["others"] == 36 * PAGE_BYTES
    [band] = (
        [band for name, band in bands(data).items() if name != "before"]
        if data["by"] != "region"
        else [[sum(sizes) for sizes in zip(*bands(data).values())]]
    )
    assert (band[50] // PAGE_BYTES, band[-1] // PAGE_BYTES) == (91, 84)


def test_a_large_capture_makes_a_page_of_bounded_size(capture: Capture) -> None:
    """100,000 extents of a 64 GiB region, by 3,000 processes, each for something else, as long as can be: the map has
    fewer spans, and all of the pages."""
    capture.insert("session", **SESSION, label="php")
    labels = ((i + 1, f"/{i:06}{'<é' * 40}", f"/{i:06}{'é' * 60}?{'&' * 128}") for i in range(100_000))
    capture.insert_all("label", "id, script, request", labels)
    processes = [put_process(capture, 1000 + i, command=f"php-fpm: pool site{i}{'é' * 400}") for i in range(3000)]
    region = put_region(capture, 300_000, size_bytes=64 << 30)
    extents = (
        (region, i * 167, i * 167 + 3, processes[i % 2999], at(i / 2500), at(i / 2500 + 0.1), i + 1)
        for i in range(100_000)
    )
    capture.insert_all("extent", 'region, start, "end", process, first_ns, last_ns, label', extents)
    page = html.render(account.read(capture), capture)
    assert len(page) < 5 << 20
    data = embedded(page)
    drawn = data["regions"][0]["map"]
    assert len(drawn["gap"]) <= pictures.MAX_SPANS
    assert sum(drawn["present"]) == 300_000
    assert sum(data["cells"]["pages"]) == 300_000


# ---- notes ----


def test_what_is_replaced_is_a_reload(capture: Capture) -> None:
    """Of each pair of alike regions, whichever came first; what is within a second is one reload."""
    capture.insert("session", **SESSION)
    old = {"created_ns": at(-100)}
    put_region(capture, 11, ino=1, name="/dev/shm/cache.1", gone_ns=at(7), **old)
    put_region(capture, 13, ino=2, name="/dev/shm/cache.2", created_ns=at(7.2), gone_ns=at(30))
    put_region(capture, 17, ino=3, name="/dev/shm/cache.3", created_ns=at(29.5))
    put_region(capture, 19, ino=4, name="/dev/shm/index.1", gone_ns=at(7.1), **old)
    put_region(capture, 23, ino=5, name="/dev/shm/index.2", created_ns=at(7.9))
    found = notes.notes(account.read(capture), capture, [(at(9), "deploy")])
    assert found == [
        (at(7.2), "reload", "/dev/shm/cache.# replaced, 44.0 KiB went, /dev/shm/index.# replaced, 76.0 KiB went"),
        (at(9), "mark", "deploy"),
        (at(29.5), "reload", "/dev/shm/cache.# replaced, 52.0 KiB went"),
    ]


def test_what_merely_comes_and_goes_is_no_reload(capture: Capture) -> None:
    """A database's segments for parallel queries; and one that comes minutes after another has gone."""
    capture.insert("session", **{**SESSION, "ended_ns": at(900)})
    for number in range(20):
        put_region(capture, 5, ino=number, name="/dev/shm/q", created_ns=at(number + 1), gone_ns=at(number + 1.5))
    put_region(capture, 7, ino=30, name="/dev/shm/late", created_ns=at(-1), gone_ns=at(10))
    put_region(capture, 7, ino=31, name="/dev/shm/late", created_ns=at(700))
    assert notes.notes(account.read(capture), capture, []) == []


def test_execs_of_makers_and_oom_kills_are_noted(capture: Capture) -> None:
    capture.insert("session", **SESSION)
    master = put_process(capture, 811, command="php-fpm: master")
    worker = put_process(capture, 812, command="pool www", exited_ns=at(12), exit_status=9, oom_killed=1)
    put_process(capture, 813, command="by others", exited_ns=at(13), exit_status=9, oom_killed=1)
    region = put_region(capture, 7, creator=master, creator_how="traced", parent=master)
    touch(capture, region, 0, 7, worker)
    capture.insert("exec", time_ns=at(3), process=master, comm="php-fpm", command="php-fpm -R")
    capture.insert("exec", time_ns=at(4), process=worker, comm="ls", command="ls")
    assert notes.notes(account.read(capture), capture, []) == [
        (at(3), "exec", "811 php-fpm -R"),
        (at(12), "OOM kill", "812 pool www"),
    ]


def test_oom_kills_of_others_are_noted_too(capture: Capture) -> None:
    """And those of the tree once, when they were chosen rather than when they had gone."""
    capture.insert("session", **SESSION)
    worker = put_process(capture, 812, command="pool www", exited_ns=at(12), exit_status=9, oom_killed=1)
    touch(capture, put_region(capture, 7), 0, 7, worker)
    kill = {"tgid": 812, "comm": "x", "cgroup": "/", "limit_cgroup": "/"}
    capture.insert("oom", time_ns=at(11), process=worker, **kill)
    capture.insert("oom", time_ns=at(17), **{**kill, "tgid": 977})
    assert notes.notes(account.read(capture), capture, []) == [
        (at(11), "OOM kill", "812 pool www"),
        (at(17), "OOM kill", "977 x"),
    ]


# ---- nothing of a stranger's gets out of its place, and nothing comes from outside ----


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_data(capture: Capture, name: str) -> None:
    fill(capture, command=name)
    page = html.render(account.read(capture), capture)
    assert page.count("<script") == 2
    assert page.isascii() or not set(page) & set("\x1b\u2028\u2029\u202e\u2066")
    assert any(text.startswith(html._name(name)[:200]) for text in embedded(page)["commands"])


def test_nothing_is_loaded(capture: Capture) -> None:
    fill(capture)
    page = html.render(account.read(capture), capture)
    assert not re.search(r"(?:src|href|url|@import)\s*[=(]", page.replace("createObjectURL", ""), re.IGNORECASE)
    assert "default-src 'none'" in page
    assert "Permission is hereby granted, free of charge" in page
    assert "innerHTML" not in "".join(path.read_text() for path in html.SCRIPTS[1:])


def test_what_is_vendored_is_what_was_released() -> None:
    for line in (html.VENDOR / "SHA512SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha512((html.VENDOR / name).read_bytes()).hexdigest() == digest
    lock = json.loads((html.VENDOR / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/uplot"]["integrity"].startswith("sha512-")
    assert lock["packages"]["node_modules/uplot"]["version"] in (html.VENDOR / "uPlot.iife.min.js").read_text()[:100]


def test_an_empty_capture(capture: Capture) -> None:
    capture.insert("session", **SESSION)
    data = embedded(html.render(account.read(capture), capture))
    assert data["headline"].startswith("No shared memory")


def test_oom_kills_stand_above_what_grew(tmp_path: Path) -> None:
    _, data = page_of(recorded.with_oom(tmp_path / "x"))
    assert data["kills"].startswith("OOM kill at ")
    assert data["headline"].startswith("opcache? grew by ")


# ---- the command ----


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    with Capture(tmp_path / "kept.capture") as capture:
        fill(capture)
    return tmp_path / "kept.capture"


def test_the_page_is_for_its_owner(
    kept: Path, tmp_path: Path, shmtrace: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html>\nan earlier one")
    done = shmtrace("html", str(kept), "-o", str(page))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert embedded(page.read_text())["balance"]["allocated"] == 106
    assert shmtrace("html", str(kept), "-o", "-").stdout == page.read_text()


def test_marks_are_in_the_page(
    kept: Path, shmtrace: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    marks = ["--mark", "+7s=deploy </script>\x1b[2J", "--mark", "22:13:24.5=a=b"]
    data = embedded(shmtrace("html", str(kept), "-o", "-", *marks).stdout)
    assert [note for note in data["notes"] if note["kind"] == "mark"] == [
        {"time": 4_500_000, "kind": "mark", "text": "a=b"},
        {"time": 7_000_000, "kind": "mark", "text": "deploy </script>\\x1b[2J"},
    ]


@pytest.mark.parametrize(
    ("mark", "says"),
    [("14:00", "not a mark: write TIME"), ("=x", "not a mark"), ("+9m=x", "lies outside"), ("noon=x", "not a time")],
)
def test_a_mark_that_cannot_be_is_refused(
    kept: Path, shmtrace: Callable[..., subprocess.CompletedProcess[str]], mark: str, says: str
) -> None:
    done = shmtrace("html", str(kept), "-o", "-", "--mark", mark)
    assert done.returncode != 0
    assert says in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize("name", ["kept.capture", "notes.txt", "folder", "no/page.html"])
def test_only_a_page_is_replaced(
    kept: Path, tmp_path: Path, shmtrace: Callable[..., subprocess.CompletedProcess[str]], name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("of mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    done = shmtrace("html", str(kept), "-o", str(tmp_path / name))
    assert done.returncode == 1
    assert re.fullmatch(r"shmtrace: .*: give another.*\n", done.stderr)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_page_that_fails_leaves_what_was(
    kept: Path, tmp_path: Path, shmtrace: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("an earlier one")
    kept.write_text("no capture")
    done = shmtrace("html", str(kept), "-o", str(page))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert page.read_text() == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.capture", "page.html"]


# ---- colours ----


def luminance(colour: str) -> float:
    """Of #rrggbb, as WCAG 2.1 has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_from_the_ground(scheme: int) -> None:
    style = (html.PAGE / "page.css").read_text()
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", style.split(":root {")[1 + scheme].split("}")[0]))
    for name in [f"c{i}" for i in range(10)] + ["others", "before"]:
        assert contrast(colours[name], colours["ground"]) >= 3, name
    for name in ("ink", "faint"):
        assert min(contrast(colours[name], colours[on]) for on in ("ground", "raised")) >= 4.5, name


# ---- in a browser ----


@pytest.fixture
def show_capture(browser: Any, tmp_path: Path) -> Iterator[Callable[[Capture], dict[str, Any]]]:
    """Opens the page of a capture, and gives the data in it; in the end the browser has had nothing to say."""
    from selenium.webdriver.support.wait import WebDriverWait

    def open_page(capture: Capture) -> dict[str, Any]:
        page = html.render(account.read(capture), capture)
        (tmp_path / "page.html").write_text(page)
        browser.get((tmp_path / "page.html").as_uri())
        drawn = (
            "return [...document.querySelectorAll('.map[open]')].every((details) => details.map && details.map.grid)"
        )
        WebDriverWait(browser, 20).until(lambda _: browser.execute_script(drawn))
        return embedded(page)

    yield open_page
    assert browser.get_log("browser") == []


@pytest.fixture
def show(show_capture: Callable[[Capture], dict[str, Any]], capture: Capture) -> Callable[[], dict[str, Any]]:
    return lambda: show_capture(capture)


@pytest.fixture
def show_file(show_capture: Callable[[Capture], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    def open_page(path: Path) -> dict[str, Any]:
        with Capture.open(path) as capture:
            return show_capture(capture)

    return open_page


def text_of(browser: Any, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def rows_of(browser: Any, table: str = "main-table", part: str = "tbody") -> list[list[str]]:
    """The cells of a table's rows, which is opened if it is closed."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.execute_script("document.getElementById(arguments[0]).open = true", table)
    body = f"#{table} {part}"
    WebDriverWait(browser, 20).until(
        lambda _: browser.execute_script("return document.querySelector(arguments[0])", body)
    )
    script = """
        const { rows } = document.querySelector(arguments[0]);
        return [...rows].map((row) => [...row.cells].map((cell) => cell.textContent));
    """
    return browser.execute_script(script, body)


def press(browser: Any, selector: str, *keys: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).focus()", selector)
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def choose(browser: Any, by: str) -> None:
    """By the control that people have."""
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", "by")).select_by_value(by)


def brush(browser: Any, first: float, until: float) -> None:
    """Drag over the chart, from one share of its width to another."""
    from selenium.webdriver import ActionChains

    over = browser.find_element("css selector", "#growth .u-over")
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", over)
    width = over.size["width"]
    actions = ActionChains(browser, duration=20)
    actions.move_to_element_with_offset(over, round((first - 0.5) * width), 0).click_and_hold()
    actions.move_by_offset(round((until - first) * width), 3).release().perform()


def picked(browser: Any) -> list[str]:
    """What is pressed in the legend, the main table and the tree."""
    script = """
        return ["#legend", "#main-table", "#tree"].flatMap((part) =>
            [...document.querySelectorAll(`${part} [aria-pressed=true] .name`)].map((name) => name.textContent));
    """
    return browser.execute_script(script)


@pytest.mark.needs("chromium", "chromedriver")
class TestPage:
    def test_shows_what_the_data_says(self, show: Any, browser: Any, capture: Capture) -> None:
        fill(capture)
        data = show()
        assert text_of(browser, "#headline") == data["headline"]
        assert text_of(browser, "#balance") == "balance 106 pages = 73 touched + 20 before + 13 unseen"
        assert [row[:5] for row in rows_of(browser)] == [
            ["260 KiB", "61.3%", "php-fpm: pool www", "1", "2"],
            ["32.0 KiB", "7.5%", "php-fpm: pool api", "1", "1"],
        ]
        assert [[row[0], row[2]] for row in rows_of(browser, part="tfoot")] == [
            ["80.0 KiB", "before the trace"],
            ["52.0 KiB", "unseen"],
            ["424 KiB", "allocated"],
        ]
        regions = rows_of(browser, "table-regions")
        assert [row[0] for row in regions] == [formatting.format_bytes(r["allocated_bytes"]) for r in data["regions"]]
        assert len(rows_of(browser, "table-growth")) == 50  # and a button for the rest
        assert {row[2]: row[0] for row in rows_of(browser, "table-processes")} == {
            "php-fpm: master process": "0 B",
            "php-fpm: pool www": "260 KiB",
            "php-fpm: pool api": "32.0 KiB",
        }

    @pytest.mark.parametrize(
        ("by", "rows"),
        [
            ("process", [["260 KiB", "812 php-fpm: pool www", "61"], ["32.0 KiB", "813 php-fpm: pool api", ""]]),
            ("region", [["248 KiB", "/dev/zero 1047", "2"], ["44.0 KiB", "/dev/zero 1048", "1"]]),
            ("unit", [["292 KiB", "?", "2"]]),
        ],
    )
    def test_the_dimension_is_chosen(
        self, show: Any, browser: Any, capture: Capture, by: str, rows: list[list[str]]
    ) -> None:
        """In the legend and in the table alike; and nothing stays selected that means something else now."""
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        press(browser, "#legend button", Keys.ENTER)
        choose(browser, by)
        assert [[row[0], row[2], row[3]] for row in rows_of(browser)] == rows
        names = "return [...document.querySelectorAll('#legend .pick .name')].map((name) => name.textContent)"
        assert browser.execute_script(names) == [*(row[1] for row in rows), "before the trace"]
        assert picked(browser) == []

    # ---- a window ----

    @pytest.mark.parametrize(("first", "until"), [(0.002, 0.2), (0.13, 0.49), (0.45, 1.0), (0.6, 0.7)])
    def test_a_brush_filters_everything(
        self, show: Any, browser: Any, capture: Capture, monkeypatch: pytest.MonkeyPatch, first: float, until: float
    ) -> None:
        """As the command that the page shows does: it is run, and compared."""
        from selenium.webdriver.support.wait import WebDriverWait

        monkeypatch.setenv("TZ", "UTC")
        fill(capture)
        data = show()
        brush(browser, first, until)
        command = text_of(browser, "#window code").split()
        assert command[:3] == ["shmtrace", "report", "FILE"]
        given = dict(zip(command[3::2], command[4::2]))
        read = account.read(capture, window.window(given.get("--since"), given.get("--until"), sessions.read(capture)))
        said = colours.sizes(read, {})["process"]
        assert text_of(browser, "#headline") == (answer(read).text or "Nothing was touched in this window.")
        touched = sum(said.values()) // PAGE_BYTES
        others = 73 - touched
        assert text_of(browser, "#balance") == (
            f"balance 106 pages = {touched} touched + {others} at other times + 20 before + 13 unseen"
        )
        shown = [formatting.format_bytes(size) for size in sorted(said.values(), reverse=True)]
        assert [row[0] for row in rows_of(browser)] == shown
        assert [row[0] for row in rows_of(browser, "table-processes") if row[0] != "0 B"] == shown or not shown
        figures = "return [...document.querySelectorAll('#tree .figures')].map((figures) => figures.textContent)"

        def is_in_tree() -> bool:  # which is drawn afterwards
            sizes = [text.partition("touched ")[2] for text in browser.execute_script(figures)]
            return [size for size in sizes if size != "0 B"] == shown

        WebDriverWait(browser, 20).until(lambda _: is_in_tree())
        lit = """
            let pages = 0;
            for (const details of document.querySelectorAll("#maps details")) {
                details.open = true;
                const map = details.map || (details.map = new PageMap(details.region, details));
                map.draw();
                pages += map.cells.lit.reduce((sum, count) => sum + count, 0);
            }
            return pages;
        """
        assert round(browser.execute_script(lit)) == touched
        assert (first < 0.01) == ("--since" not in given)
        assert (until == 1) == ("--until" not in given)
        assert data["bins"]["count"] == 206

    def test_a_window_ends_by_escape_or_a_double_click(self, show: Any, browser: Any, capture: Capture) -> None:
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        data = show()
        whole = "balance 106 pages = 73 touched + 20 before + 13 unseen"
        brush(browser, 0.4, 0.8)
        assert text_of(browser, "#balance") != whole
        press(browser, "#growth .u-over", Keys.ESCAPE)
        assert (text_of(browser, "#balance"), text_of(browser, "#window")) == (whole, "")
        brush(browser, 0.4, 0.8)
        assert text_of(browser, "#balance") != whole
        over = browser.find_element("css selector", "#growth .u-over")
        ActionChains(browser).double_click(over).perform()
        assert (text_of(browser, "#headline"), text_of(browser, "#balance")) == (data["headline"], whole)

    def test_a_window_is_chosen_by_keyboard(self, show: Any, browser: Any, capture: Capture) -> None:
        """Edge 100 is 20 s: 31 pages by one and 1 by another come after it."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        press(browser, "#growth .u-over", Keys.HOME, *[Keys.PAGE_DOWN] * 5)
        ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.PAGE_DOWN).key_up(Keys.SHIFT).perform()
        assert browser.execute_script("return [choice.from, choice.until]") == [100, 120]
        assert text_of(browser, "#headline") == (
            "128 KiB touched first in this time. By php-fpm: pool www (exited) 124 KiB, php-fpm: pool api 4.0 KiB."
        )
        press(browser, "#window-from", Keys.ARROW_RIGHT)
        assert text_of(browser, "#headline") == "4.0 KiB touched first in this time. By php-fpm: pool api 4.0 KiB."
        value = browser.execute_script("return document.getElementById('window-from').getAttribute('aria-valuetext')")
        assert value.endswith(":40.200")

    # ---- search, selection, regions ----

    def test_a_search_finds_commands_regions_and_numbers(self, show: Any, browser: Any, capture: Capture) -> None:
        fill(capture)
        show()

        def search(text: str) -> list[list[str]]:
            field = browser.find_element("id", "search")
            field.clear()
            field.send_keys(text)
            return [[row[0], row[2]] for row in rows_of(browser)]

        assert search("POOL A") == [["32.0 KiB", "php-fpm: pool api"]]
        assert [row[2] for row in rows_of(browser, part="tfoot")] == ["found"]
        lit = "const map = document.querySelector('#maps details').map; map.draw(); return map.cells.lit"
        assert round(sum(browser.execute_script(lit))) == 8
        assert search("812") == [["260 KiB", "php-fpm: pool www"]]
        assert search("1048") == [["44.0 KiB", "php-fpm: pool www"]]
        assert search("nobody") == []
        assert text_of(browser, "#legend") == "Nothing that was touched fits."
        assert len(search("zero")) == 2

    def test_a_region_is_looked_at_alone(self, show: Any, browser: Any, capture: Capture) -> None:
        from selenium.webdriver.support.select import Select

        fill(capture)
        show()
        Select(browser.find_element("id", "region")).select_by_value("2")
        assert [row[0] for row in rows_of(browser)] == ["44.0 KiB"]
        assert [[row[0], row[2]] for row in rows_of(browser, part="tfoot")] == [["44.0 KiB", "allocated"]]
        shown = (
            "return [...document.querySelectorAll('#maps details')].map((details) => !details.hidden && details.open)"
        )
        assert browser.execute_script(shown) == [False, True]
        line = (
            "const plot = document.querySelector('#growth'); return DATA.growth.regions[choice.region].allocated[100]"
        )
        assert browser.execute_script(line) == 11 * PAGE_BYTES

    @pytest.mark.parametrize("where", ["band", "cell", "row", "legend", "tree"])
    def test_what_is_pressed_is_selected_everywhere(
        self, show: Any, browser: Any, capture: Capture, where: str
    ) -> None:
        from selenium.webdriver import ActionChains

        fill(capture)
        show()
        if where == "band":  # from 30 s on it has 54 of 108 pages, above the 20 from before
            over = browser.find_element("css selector", "#growth .u-over")
            browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", over)
            height = over.size["height"]
            actions = ActionChains(browser).move_to_element_with_offset(over, over.size["width"] // 4, height // 6)
        elif where == "cell":
            canvas = browser.find_element("css selector", "#maps canvas")
            browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
            size = browser.execute_script("return document.querySelector('#maps details').map.grid.across")
            left = 72 + 25.5 * size - canvas.size["width"] / 2
            actions = ActionChains(browser).move_to_element_with_offset(
                canvas, round(left), 4 - canvas.size["height"] // 2
            )
        else:
            selectors = {
                "row": "#main-table tbody tr td",
                "legend": "#legend button",
                "tree": "#tree li li:first-child button",
            }
            element = browser.find_element("css selector", selectors[where])
            browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
            actions = ActionChains(browser).move_to_element(element)
        actions.click().perform()
        assert picked(browser) == ["php-fpm: pool www", "php-fpm: pool www", "812 php-fpm: pool www"]
        actions.click().perform()
        assert picked(browser) == []

    # ---- notes ----

    def test_notes_are_listed_as_text(self, browser: Any, capture: Capture, tmp_path: Path) -> None:
        fill(capture)
        marks = [(at(9), "deploy <img src=x onerror=alert(1)>")]
        page = tmp_path / "page.html"
        page.write_text(html.render(account.read(capture), capture, marks))
        browser.get(page.as_uri())
        listed = "return [...document.querySelectorAll('#happened li')].map((line) => line.textContent)"
        assert [text.partition(" ")[2] for text in browser.execute_script(listed)] == [
            "mark deploy <img src=x onerror=alert(1)>",
            "exec 811 php-fpm: pool www",
        ]
        assert browser.execute_script("return document.images.length") == 0

    # ---- a phone ----

    def test_a_tap_reads_a_cell_and_what_was_touched_is_on_the_first_screen(
        self, show: Any, browser: Any, capture: Capture
    ) -> None:
        fill(capture)
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 3, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        try:
            show()
            box = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
            legend = browser.execute_script(box, "#legend")
            assert legend["bottom"] < 844
            assert legend["right"] <= 390
            assert text_of(browser, "#legend li:first-child") == "php-fpm: pool www260 KiB"
            touched = browser.execute_script(box, "#main-table td:first-child")
            assert 0 <= touched["left"] < touched["right"] < 200
            browser.execute_script("document.querySelector('#maps canvas').scrollIntoView({ block: 'center' })")
            canvas = browser.execute_script(box, "#maps canvas")
            grid = browser.execute_script(
                "const { size, across, columns } = document.querySelector('#maps details').map.grid; "
                "return [size, across, columns]"
            )
            size, across, columns = grid
            at_cell = {
                "x": canvas["left"] + 72 + (43 % columns + 0.5) * across,
                "y": canvas["top"] + (43 // columns + 0.5) * size,
            }
            for kind, points in (("touchStart", [at_cell]), ("touchEnd", [])):
                browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            from selenium.webdriver.support.wait import WebDriverWait

            cell_pages = browser.execute_script("return document.querySelector('#maps details').map.grid.pagesPerCell")
            first = 43 * cell_pages
            WebDriverWait(browser, 5).until(
                lambda _: re.match(rf"pages? {first}\b", text_of(browser, "#maps .readout"))
            )
        finally:
            browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    # ---- the pictures ----

    def test_pictures_are_drawn_in_the_colours_of_their_processes(
        self, show: Any, browser: Any, capture: Capture
    ) -> None:
        """The 23 and 31 pages of one, the 7 and 1 of another, counted on the canvas."""
        fill(capture)
        show()
        script = """
            const canvas = document.querySelector("#maps canvas"), pen = canvas.getContext("2d");
            const map = document.querySelector("#maps details").map, { size, across, columns } = map.grid;
            const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
            const hex = (x, y) => "#" + [...data.slice(4 * (y * canvas.width + x)).slice(0, 3)]
                .map((value) => value.toString(16).padStart(2, "0")).join("");
            const found = {};
            for (let page = 0; page < 100; page++) {
                const x = 72 + (page % columns) * across + across / 2, y = Math.floor(page / columns) * size + size / 2;
                const at = hex(Math.floor(x), Math.floor(y));
                const name = ["c0", "c1", "absent"].find((name) => css(name) === at) || "else";
                found[name] = (found[name] || 0) + 1;
            }
            return found;
        """
        assert browser.execute_script(script) == {"c0": 54, "c1": 8, "absent": 18, "else": 20}

    def test_the_map_is_read_by_keyboard(self, show: Any, browser: Any, capture: Capture) -> None:
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        canvas, readout = "#maps canvas", "#maps .readout"
        assert browser.execute_script("return document.querySelector(arguments[0]).ariaLive", readout) == "polite"
        press(browser, canvas, *[Keys.ARROW_RIGHT] * 20)
        assert re.fullmatch(
            r"page 20, at 80.0 KiB: 812 php-fpm: pool www \(exited [\d:]+\), [\d:]+25\.000 to [\d:]+25\.200",
            text_of(browser, readout),
        )
        press(browser, canvas, *[Keys.ARROW_RIGHT] * 23)
        assert text_of(browser, readout).startswith("page 43, at 172 KiB: 813 php-fpm: pool api, ")
        press(browser, canvas, Keys.ENTER)
        assert picked(browser)[0] == "php-fpm: pool api"
        press(browser, canvas, *[Keys.ARROW_RIGHT] * 7)
        assert text_of(browser, readout) == "page 50, at 200 KiB: absent"
        press(browser, canvas, Keys.HOME)
        assert text_of(browser, readout) == "page 0, at 0 B: before the trace"

    def test_the_map_says_what_it_was_doing(self, browser: Any, show_file: Any, tmp_path: Path) -> None:
        from selenium.webdriver.common.keys import Keys

        show_file(recorded.with_labels(tmp_path / "x"))
        canvas, readout = "#maps canvas", "#maps .readout"
        press(browser, canvas, *"+" * 12, *[Keys.ARROW_RIGHT] * 11)
        assert re.fullmatch(r"page 11, .*: 812 .*; file /srv/www/vendor/autoload\.php.*", text_of(browser, readout))
        press(browser, canvas, *[Keys.ARROW_RIGHT] * 14)
        assert re.fullmatch(r"page 25, .*: 812 .*; file \?.*", text_of(browser, readout))
        press(browser, canvas, "0", Keys.HOME)
        assert text_of(browser, readout) == "pages 0 to 7, at 0 B: before the trace; 8 of 8 pages"

    def test_the_table_is_sorted_by_keyboard(self, browser: Any, show_file: Any, tmp_path: Path) -> None:
        """And stays sorted in another window."""
        from selenium.webdriver.common.keys import Keys

        show_file(recorded.with_labels(tmp_path / "x"))
        choose(browser, "file")
        files = ["/srv/www/vendor/autoload.php", "?", "/srv/www/index.php", "(none)"]
        sizes = ["56.0 KiB", "36.0 KiB", "28.0 KiB", "20.0 KiB"]
        assert [[row[0], row[2]] for row in rows_of(browser)] == [[size, file] for size, file in zip(sizes, files)]
        touched = "#main-table th:nth-child(1) button"
        press(browser, touched, Keys.ENTER, Keys.ENTER)
        assert [row[2] for row in rows_of(browser)] == files[::-1]
        sort = "return document.querySelector('#main-table th:nth-child(1)').getAttribute('aria-sort')"
        assert browser.execute_script(sort) == "ascending"
        browser.execute_script("choose({ from: choice.from + 5 })")
        assert [row[2] for row in rows_of(browser)] == files[::-1]
        press(browser, "#main-table th:nth-child(3) button", Keys.SPACE)
        assert [row[2] for row in rows_of(browser)] == [files[i] for i in (1, 3, 2, 0)]
        foot = [[row[0], row[2]] for row in rows_of(browser, part="tfoot")]
        assert foot == [
            ["0 B", "at other times"],
            ["44.0 KiB", "before the trace"],
            ["8.0 KiB", "unseen"],
            ["192 KiB", "allocated"],
        ]

    def test_a_long_static_table_sums_up_its_rest(
        self, browser: Any, show_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(html, "MAX_ROWS", 1)
        show_file(recorded.with_stacks(tmp_path / "x"))
        assert rows_of(browser, "table-by-stack")[0][0] == "108 KiB"
        assert [row[0] for row in rows_of(browser, "table-by-stack", "tfoot")] == ["44.0 KiB"]

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_labels_and_frames_are_text(self, browser: Any, show_file: Any, tmp_path: Path, name: str) -> None:
        from selenium.webdriver.common.keys import Keys

        show_file(recorded.with_labels(tmp_path / "labels", name))
        choose(browser, "file")
        press(browser, "#maps canvas", *"+" * 12, *[Keys.ARROW_RIGHT] * 11)
        assert f"; file {html._name(name)}, " in text_of(browser, "#maps .readout")
        assert rows_of(browser)[0][2] == html._name(name)
        browser.find_element("id", "search").send_keys(html._name(name)[:100])
        assert [row[2] for row in rows_of(browser)] == [html._name(name)]
        function = name.replace("\n", "")
        show_file(recorded.with_stacks(tmp_path / "stacks", function))
        assert rows_of(browser, "table-by-stack")[0][-1] == html._name(f"{function} < main")
        assert browser.execute_script("return document.scripts.length") == 2
        assert browser.execute_script("return document.images.length") == 0

    def test_zoom_keeps_the_cursor(self, show: Any, browser: Any, capture: Capture) -> None:
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        press(browser, "#maps canvas", *[Keys.ARROW_RIGHT] * 43)
        span = "const map = document.querySelector('#maps details').map; return [map.from, map.until, map.cursor]"
        assert browser.execute_script(span) == [0, 1000, 43]
        press(browser, "#maps canvas", "+", "+", "+")
        assert browser.execute_script(span) == [0, 125, 43]
        press(browser, "#maps canvas", "+", "+")
        assert browser.execute_script(span) == [27, 59, 43]
        press(browser, "#maps canvas", "-", "0")
        assert browser.execute_script(span) == [0, 1000, 43]

    def test_growth_is_read_by_keyboard(self, show: Any, browser: Any, capture: Capture) -> None:
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        press(browser, "#growth .u-over", Keys.END)
        assert text_of(browser, "#growth-readout").endswith(
            ": 380 KiB — php-fpm: pool www 216 KiB; before the trace 80.0 KiB; unseen 52.0 KiB; "
            "php-fpm: pool api 32.0 KiB"
        )

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_names_are_text(self, show: Any, browser: Any, capture: Capture, name: str) -> None:
        fill(capture, command=name)
        capture.update("region", 1, name=name)
        capture.update("session", 1, warnings=name)
        show()
        shown = html._name(name)
        choose(browser, "process")
        assert rows_of(browser)[0][2] == f"812 {html._name(f'c812 ({name})' if '/' in name.split()[0] else name)}"
        assert rows_of(browser, "table-regions")[0][5] == shown
        assert browser.execute_script("return document.scripts.length") == 2
        assert browser.execute_script("return document.images.length") == 0

    @pytest.mark.parametrize("tier", ["exact", "proc"])
    def test_an_empty_capture_says_so(self, show: Any, browser: Any, capture: Capture, tier: str) -> None:
        capture.insert("session", **{**SESSION, "tier": tier})
        show()
        assert text_of(browser, "#headline").startswith("No shared memory")
        assert text_of(browser, "#maps") == "No region has a page."
        assert text_of(browser, "#tree") == "No process was seen."

    @pytest.mark.parametrize("width", [360, 1280])
    def test_the_page_is_no_wider_than_the_window(self, show: Any, browser: Any, capture: Capture, width: int) -> None:
        fill(capture, command="x" * 4096)
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 2, "mobile": False},
        )
        try:
            show()
            widths = "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]"
            assert len(set(browser.execute_script(widths))) == 1
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    @pytest.mark.parametrize(
        ("page_bytes", "sizes"), [(4096, ["92.0 KiB", "48.0 KiB"]), (65536, ["1.4 MiB", "768 KiB"])]
    )
    def test_bytes_are_those_of_the_captures_pages(
        self, browser: Any, show_file: Any, tmp_path: Path, page_bytes: int, sizes: list[str]
    ) -> None:
        show_file(recorded.with_pages_of(page_bytes, tmp_path / "x"))
        choose(browser, "process")
        assert [row[0] for row in rows_of(browser)] == sizes
        assert text_of(browser, "#balance") == "balance 48 pages = 35 touched + 11 before + 2 unseen"
