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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import recorded
from tests.test_account import put_mapping, put_process, put_region
from tracer import account, formatting
from tracer.account import Account
from tracer.answer import answer
from tracer.capture.capture import Capture
from tracer.proc.shmem import PAGE_BYTES
from tracer.tables import groups
from tracer.views import html, pictures
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


def test_figures_are_those_of_the_document(filled: tuple[Account, dict[str, Any]]) -> None:
    read, data = filled
    said = json.loads("".join(document.render(read)))
    assert [region["id"] for region in data["regions"]] == [region["id"] for region in said["regions"]]
    tgids, commands = data["processes"]["tgid"], data["commands"]
    for mine, its in zip(data["regions"], said["regions"]):
        assert {name: mine[name] for name in html.FIGURES} == {name: its[name] for name in html.FIGURES}
        touchers = mine["touchers"]
        assert [
            (tgids[process], commands[data["processes"]["command"][process]], touched, freed, faults)
            for process, touched, freed, faults in zip(
                *(touchers[name] for name in ("process", "touched_bytes", "freed_bytes", "faults"))
            )
        ] == [
            (
                row["process"]["tgid"],
                row["process"]["command"],
                row["touched_bytes"],
                row["freed_bytes"],
                row["faults"],
            )
            for row in its["touchers"]
        ]


def test_the_balance_is_of_all_regions(filled: tuple[Account, dict[str, Any]]) -> None:
    assert filled[1]["balance"] == {"allocated": 106, "touched": 73, "before": 20, "unseen": 13}


def test_the_answer_is_the_report_s(filled: tuple[Account, dict[str, Any]]) -> None:
    assert filled[1]["headline"] == answer(filled[0]).text
    assert filled[1]["headline"].startswith("/dev/zero ×2 grew by 300 KiB to 380 KiB of 7.8 MiB in 41 s. ")


def test_the_map_has_every_page(filled: tuple[Account, dict[str, Any]]) -> None:
    _, data = filled
    drawn = data["regions"][0]["map"]
    spans, page = [], 0
    for gap, length, process in zip(drawn["gap"], drawn["length"], drawn["process"]):
        spans.append((page + gap, page + gap + length, process))
        page += gap + length
    assert drawn["cell_pages"] == 1
    assert spans == [(0, 20, -1), (20, 43, 1), (43, 50, 2), (60, 91, 1), (91, 92, 2)]
    assert drawn["first"] == [None, 5_000_000, 7_000_000, 20_000_000, 21_000_000]
    assert set(drawn["lasted"][1:]) == {300_000}


def test_growth_ends_as_the_account_does(filled: tuple[Account, dict[str, Any]]) -> None:
    read, data = filled
    growth = data["growth"]
    assert [data["processes"]["tgid"][process] for process in data["coloured"]] == [812, 813]
    living = [region for region in read.regions if region.gone_ns is None]
    ends = [*(band[-1] for band in growth["bands"]), growth["others"][-1], growth["before"][-1], growth["unseen"][-1]]
    assert [size // PAGE_BYTES for size in ends] == [54, 8, 0, 20, 13]
    assert sum(ends) == sum(region.allocated_bytes for region in living) == growth["allocated"]["bytes"][-1]


def test_two_sources_meet(filled: tuple[Account, dict[str, Any]]) -> None:
    """Where the inodes were read, the bands have as much: a bin's width aside."""
    growth = filled[1]["growth"]
    stacked = [sum(bands) for bands in zip(*growth["bands"], growth["others"], growth["before"], growth["unseen"])]
    width = growth["edges"][1]
    for time, size in zip(growth["allocated"]["times"], growth["allocated"]["bytes"]):
        around = [height for edge, height in zip(growth["edges"], stacked) if abs(edge - time) <= 2 * width]
        if size:
            assert min(around) <= size <= max(around), time


# ---- what it was for ----


def page_of(path: Path) -> tuple[Account, dict[str, Any]]:
    with Capture.open(path) as capture:
        read = account.read(capture)
        return read, embedded(html.render(read, capture))


def columns_of(table: dict[str, Any]) -> dict[str, list[Any]]:
    return {column["title"]: column["values"] for column in table["columns"]}


@pytest.mark.parametrize("recorder", [recorded.pool, recorded.with_labels, recorded.with_stacks])
def test_tables_are_those_of_the_reports(recorder: Callable[[Path], Path], tmp_path: Path) -> None:
    read, data = page_of(recorder(tmp_path / "x"))
    assert [table["by"] for table in data["tables"]] == groups.telling(read)
    for mine in data["tables"]:
        by = mine["by"]
        its = json.loads(tables.json(groups.table(read, by), read))["rows"]
        said = columns_of(mine)
        size, name = ("made_bytes", "stack") if by == "stack" else ("allocated_bytes", by)
        assert next(iter(said[title] for title in ("made", "touched", "allocated") if title in said)) == [
            row[size] for row in its
        ]
        assert said["by" if "by" in said else "processes"] == [row["processes"] for row in its]
        for shown, row in zip(said[name], its):
            if row.get("part", "touched") == "touched" and row[name] and by not in ("stack", "container"):
                assert shown == row[name]


def test_labels_are_in_the_map(tmp_path: Path) -> None:
    _, data = page_of(recorded.with_labels(tmp_path / "x"))
    assert data["doing"] == {"kind": "file", "texts": ["/srv/www/vendor/autoload.php", "/srv/www/index.php", "(none)"]}
    assert [region["map"]["text"] for region in data["regions"]] == [[-1, 0, -1, 1], [2]]
    assert columns_of(data["tables"][0])["allocated"] == [size * PAGE_BYTES for size in (14, 9, 7, 5, 11, 2)]
    assert columns_of(data["tables"][0])["file"][-2:] == ["before the trace", "unseen"]


def test_without_labels_there_is_nothing_of_them(tmp_path: Path) -> None:
    _, data = page_of(recorded.pool(tmp_path / "x"))
    assert "doing" not in data
    assert not any("text" in region["map"] for region in data["regions"])
    assert [table["by"] for table in data["tables"]] == ["unit", "container"]


def test_a_cell_has_the_text_that_most_of_its_pages_have(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its process's pages: two labels of one text count as one, and so do those of which it is not known."""
    monkeypatch.setattr(pictures, "MAX_SPANS", 1)
    monkeypatch.setattr(pictures, "MIN_SPANS", 2)
    process, other, region = put_process(capture, 5), put_process(capture, 6), put_region(capture, 200)
    spans = [(0, 30, 1), (30, 5, 2), (40, 27, 3), (70, 10, None), (128, 9, 1), (140, 11, None), (152, 3, 2)]
    for start, pages, label in spans:
        touch(capture, region, start, pages, process, label=label)
    touch(capture, region, 80, 40, other, label=4)
    [(cell, found)] = pictures.maps(capture, {region}, {1: 0, 2: 1, 3: 1, 4: 2}).values()
    assert (cell, [span.text for span in found]) == (128, [1, pictures.UNKNOWN])


def test_of_too_many_texts_those_of_most_pages_are_kept(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MAX_TEXTS", 3)
    monkeypatch.setattr(html, "MAX_ROWS", 4)
    capture.insert("session", **SESSION, label="php")
    process, region = put_process(capture, 5), put_region(capture, 60)
    touch(capture, region, 50, 3, None)
    for number in range(1, 8):
        row = capture.insert("label", script=f"/{number}.php", request="/")
        touch(capture, region, number * 7, number, process, label=row)
    data = embedded(html.render(account.read(capture), capture))
    assert data["doing"]["texts"] == ["/7.php", "/6.php", "/5.php"]
    assert data["regions"][0]["map"]["text"] == [-2, -2, -2, -2, 2, 1, 0, -1]
    by_script = data["tables"][0]
    assert columns_of(by_script)["script"] == [*(f"/{i}.php" for i in (7, 6, 5, 4)), "before the trace", "unseen"]
    assert by_script["foot"] == [[6 * PAGE_BYTES, None, None, None, "…3 more"]]
    assert sum([*columns_of(by_script)["allocated"], by_script["foot"][0][0]]) == 60 * PAGE_BYTES


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
    assert labelled["doing"]["texts"][0] == formatting.printable(name)
    assert columns_of(labelled["tables"][0])["file"][0] == html._name(name)
    assert columns_of(stacked["tables"][-1])["stack"][0] == html._name(f"{function} < main")


# ---- bounds ----


def test_a_huge_region_is_drawn_in_cells(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has most of a cell has the cell; nothing is lost from the sums."""
    monkeypatch.setattr(pictures, "MAX_SPANS", 100)
    capture.insert("session", **SESSION)
    one, two = put_process(capture, 5), put_process(capture, 6)
    region = put_region(capture, 5000)
    for start in range(0, 5000, 5):
        touch(capture, region, start, 3, one, start / 1000)
        touch(capture, region, start + 3, 2, two, start / 1000)
    [(cell, spans)] = pictures.maps(capture, {region}).values()
    assert cell == 64
    assert len(spans) <= 100
    assert sum(span.present for span in spans) == 5000
    assert {span.process for span in spans} == {one}
    assert sum(span.pages for span in spans) == 3000
    assert spans[0].first_ns == at(0)


def test_few_spans_are_exact_beside_many(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_SPANS", 100)
    process, small, large = put_process(capture, 5), put_region(capture, 7), put_region(capture, 600, ino=2)
    touch(capture, small, 3, 7, process)
    for i in range(300):
        touch(capture, large, i * 9, 2, process)
    found = pictures.maps(capture, {small, large})
    assert (found[small][0], [span[:4] for span in found[small][1]]) == (1, [(3, 10, process, 7)])
    assert sum(span.present for span in found[large][1]) == 600


def test_the_smallest_of_many_regions_are_left_out(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MAX_REGIONS", 5)
    capture.insert("session", **SESSION)
    process = put_process(capture, 5)
    for pages in range(1, 14):
        touch(capture, put_region(capture, pages, ino=pages), 0, pages, process)
    data = embedded(html.render(account.read(capture), capture))
    assert sorted(region["allocated_bytes"] // PAGE_BYTES for region in data["regions"]) == [9, 10, 11, 12, 13]
    assert data["left_out"] == {"regions": 8, "peak_bytes": 8 * PAGE_BYTES}
    assert data["balance"]["touched"] == 91
    assert data["growth"]["bands"][0][-1] == 91 * PAGE_BYTES


def test_a_large_capture_makes_a_page_of_bounded_size(capture: Capture) -> None:
    """100,000 extents of a 64 GiB region, by 1,000 processes, each for something else, as long as can be: the map has
    fewer spans, and all of the pages."""
    capture.insert("session", **SESSION, label="php")
    labels = ((i + 1, f"/{i:06}{'<é' * 40}", f"/{i:06}{'é' * 60}?{'&' * 128}") for i in range(100_000))
    capture.insert_all("label", "id, script, request", labels)
    processes = [put_process(capture, 1000 + i, command=f"php-fpm: pool site{i}") for i in range(1000)]
    region = put_region(capture, 300_000, size_bytes=64 << 30)
    extents = (
        (region, i * 167, i * 167 + 3, processes[i % 997], at(i / 2500), at(i / 2500 + 0.1), i + 1)
        for i in range(100_000)
    )
    capture.insert_all("extent", 'region, start, "end", process, first_ns, last_ns, label', extents)
    page = html.render(account.read(capture), capture)
    assert len(page) < 5 << 20
    drawn = embedded(page)["regions"][0]["map"]
    assert len(drawn["gap"]) <= pictures.MAX_SPANS
    assert sum(drawn["present"]) == 300_000


def test_a_line_keeps_its_peaks() -> None:
    line = [(time, 0) for time in range(100_000)]
    line[54_321] = (54_321, 7)
    thin = pictures._thin(line)
    assert len(thin) <= pictures.MAX_POINTS + 2
    assert (54_321, 7) in thin
    assert (thin[0], thin[-1]) == (line[0], line[-1])


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
    for name in [f"c{i}" for i in range(pictures.MAX_COLOURS)] + ["others", "before"]:
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


def rows_of(browser: Any, table: str) -> list[list[str]]:
    browser.execute_script("document.getElementById(arguments[0]).open = true", table)
    script = """
        const body = document.querySelector(`#${arguments[0]} tbody`);
        return [...body.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
    """
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 20).until(
        lambda _: browser.execute_script(f"if (!document.querySelector('#{table} tbody')) return null; {script}", table)
    )


def press(browser: Any, selector: str, *keys: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).focus()", selector)
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


@pytest.mark.needs("chromium", "chromedriver")
class TestPage:
    def test_shows_what_the_data_says(self, show: Any, browser: Any, capture: Capture) -> None:
        fill(capture)
        data = show()
        assert text_of(browser, "#headline") == data["headline"]
        assert text_of(browser, "#balance") == "balance 106 pages = 73 touched + 20 before + 13 unseen"
        shown = [row[:2] + row[2:4] for row in rows_of(browser, "table-touched")]
        assert shown == [
            ["812", "php-fpm: pool www", "/dev/zero", "216 KiB"],
            ["813", "php-fpm: pool api", "/dev/zero", "32.0 KiB"],
            ["812", "php-fpm: pool www", "/dev/zero", "44.0 KiB"],
        ]
        regions = rows_of(browser, "table-regions")
        assert [row[8] for row in regions] == [formatting.format_bytes(r["allocated_bytes"]) for r in data["regions"]]
        assert len(rows_of(browser, "table-growth")) == 50  # and a button for the rest
        assert {row[1]: row[5] for row in rows_of(browser, "table-processes")} == {
            "php-fpm: master process": "0 B",
            "php-fpm: pool www": "216 KiB",
            "php-fpm: pool api": "32.0 KiB",
        }

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
        assert text_of(browser, readout).startswith("page 20, at 80.0 KiB: 812 php-fpm: pool www (exited ")
        press(browser, canvas, *[Keys.ARROW_RIGHT] * 23)
        assert text_of(browser, readout).startswith("page 43, at 172 KiB: 813 php-fpm: pool api, ")
        press(browser, canvas, *[Keys.ARROW_RIGHT] * 7)
        assert text_of(browser, readout) == "page 50, at 200 KiB: absent"
        press(browser, canvas, Keys.HOME)
        assert text_of(browser, readout) == "page 0, at 0 B: before the trace"

    def test_the_map_says_what_it_was_doing(self, browser: Any, show_file: Any, tmp_path: Path) -> None:
        from selenium.webdriver.common.keys import Keys

        show_file(recorded.with_labels(tmp_path / "x"))
        canvas, readout = "#maps canvas", "#maps .readout"
        press(browser, canvas, *"+" * 12, *[Keys.ARROW_RIGHT] * 11)
        assert re.fullmatch(r"page 11, .*: 812 .*; file /srv/www/vendor/autoload\.php", text_of(browser, readout))
        press(browser, canvas, *[Keys.ARROW_RIGHT] * 14)
        assert re.fullmatch(r"page 25, .*: 812 .*; file \?", text_of(browser, readout))
        press(browser, canvas, "0", Keys.HOME)
        assert text_of(browser, readout) == "pages 0 to 7, at 0 B: before the trace; 8 of 8 pages"
        script = "const map = document.querySelector('#maps details').map; return map.text(1, 0, 40)"
        assert browser.execute_script(script) == 0

    def test_a_table_by_label_is_sorted_by_keyboard(
        self, browser: Any, show_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from selenium.webdriver.common.keys import Keys

        monkeypatch.setattr(html, "MAX_ROWS", 3)
        show_file(recorded.with_labels(tmp_path / "x"))
        files = ["/srv/www/vendor/autoload.php", "?", "/srv/www/index.php", "before the trace", "unseen"]
        assert [[*row[:2], row[-1]] for row in rows_of(browser, "table-by-file")] == [
            [*figures, file]
            for file, figures in zip(
                files, [["56.0 KiB", "1"], ["36.0 KiB", "1"], ["28.0 KiB", "1"], ["44.0 KiB", ""], ["8.0 KiB", ""]]
            )
        ]
        touched = "#table-by-file th:nth-child(1) button"
        press(browser, touched, Keys.ENTER, Keys.ENTER)
        assert [row[-1] for row in rows_of(browser, "table-by-file")] == [files[i] for i in (4, 2, 1, 3, 0)]
        foot = (
            "return [...document.querySelector('#table-by-file tfoot').rows[0].cells].map((cell) => cell.textContent)"
        )
        assert browser.execute_script(foot) == ["20.0 KiB", "", "", "", "…1 more"]
        assert [row[0] for row in rows_of(browser, "table-by-unit")][:2] == [
            "php8.2-fpm.service",
            "/docker/" + recorded.CONTAINER,
        ]

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_labels_and_frames_are_text(self, browser: Any, show_file: Any, tmp_path: Path, name: str) -> None:
        from selenium.webdriver.common.keys import Keys

        show_file(recorded.with_labels(tmp_path / "labels", name))
        press(browser, "#maps canvas", *"+" * 12, *[Keys.ARROW_RIGHT] * 11)
        assert text_of(browser, "#maps .readout").endswith(f"; file {formatting.printable(name)}")
        assert rows_of(browser, "table-by-file")[0][-1] == html._name(name)
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

    def test_a_table_is_sorted_by_keyboard(self, show: Any, browser: Any, capture: Capture) -> None:
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        rows_of(browser, "table-touched")
        touched = "#table-touched th:nth-child(4) button"
        press(browser, touched, Keys.ENTER)
        assert [row[3] for row in rows_of(browser, "table-touched")] == ["216 KiB", "44.0 KiB", "32.0 KiB"]
        press(browser, touched, Keys.SPACE)
        assert [row[3] for row in rows_of(browser, "table-touched")] == ["32.0 KiB", "44.0 KiB", "216 KiB"]
        sort = "return document.querySelector('#table-touched th:nth-child(4)').getAttribute('aria-sort')"
        assert browser.execute_script(sort) == "ascending"

    def test_growth_is_read_by_keyboard(self, show: Any, browser: Any, capture: Capture) -> None:
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        press(browser, "#growth .u-over", Keys.END)
        assert text_of(browser, "#growth-readout").endswith(
            ": 380 KiB — 812 php-fpm: pool www 216 KiB; before the trace 80.0 KiB; unseen 52.0 KiB; "
            "813 php-fpm: pool api 32.0 KiB"
        )

    def test_one_process_is_told_from_all_others(self, show: Any, browser: Any, capture: Capture) -> None:
        """Pressed in the legend, it is pressed in the tree too, and its 54 pages stay what they were."""
        from selenium.webdriver.common.keys import Keys

        fill(capture)
        show()
        press(browser, "#legend li:nth-child(2) button", Keys.ENTER)
        pressed = "return [...document.querySelectorAll('[aria-pressed=true]')].map((button) => button.textContent)"
        assert browser.execute_script(pressed) == ["812 php-fpm: pool www260 KiB", "812 php-fpm: pool www"]
        press(browser, "#tree li li:first-child button", Keys.ENTER)
        assert browser.execute_script(pressed) == []

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_names_are_text(self, show: Any, browser: Any, capture: Capture, name: str) -> None:
        fill(capture, command=name)
        capture.update("region", 1, name=name)
        capture.update("session", 1, warnings=name)
        show()
        shown = html._name(name)
        assert rows_of(browser, "table-touched")[0][1] == shown
        assert rows_of(browser, "table-regions")[0][3] == shown
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
