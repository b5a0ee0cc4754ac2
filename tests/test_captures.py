"""Recorded captures, looked at in every way there is, without root and without bcc.

Each view of each is compared with tests/golden/captures/ as a whole. SHMTRACE_REFRESH_GOLDEN=1 writes these files anew.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from tests import exported, recorded
from tests.captures import NAMES, load
from tests.captures.__main__ import HOSTILE
from tests.fuzz.outputs import terminal
from tests.recorded import shmtrace
from tracer import account
from tracer.capture.capture import Capture
from tracer.cli import main
from tracer.formatting import COLUMNS, width
from tracer.proc.shmem import PAGE_BYTES

pytestmark = pytest.mark.usefixtures("in_utc")

GOLDEN = Path(__file__).parent / "golden" / "captures"
TEXTS = {
    "report": ["report"],
    "region": ["report", "--by", "region"],
    "process": ["report", "--by", "process"],
    "unit": ["report", "--by", "unit"],
    "container": ["report", "--by", "container"],
    "time": ["report", "--by", "time"],
}
DOCUMENTS = {
    "json": ["report", "--json"],
    "csv": ["report", "--csv"],
    "folded": ["export", "--format", "folded"],
    "speedscope": ["export", "--format", "speedscope"],
    "svg": ["export", "--format", "svg"],
    "perfetto": ["export", "--format", "perfetto"],
    "touches.csv": ["export", "--format", "csv"],
}
KEPT = {"report", "time", "json"}
"""Of these views there is a golden text of each capture; the others are of the same figures."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("captures")
    return {name: load(name, directory / name) for name in NAMES}


def look(path: Path, view: str) -> str:
    command, *options = {**TEXTS, **DOCUMENTS}[view]
    done = shmtrace(command, path, *options)
    assert done.exit_code == 0, done.output
    return done.stdout


BY_LABEL = {"file": "file", "script": "script", "request": "request", "label": "file"}


@pytest.mark.parametrize("name", ["labels", "hostile"])
@pytest.mark.parametrize("by", BY_LABEL)
def test_by_label(by: str, name: str, paths: dict[str, Path]) -> None:
    """What was touched for one thing, in a table and in the document; and all of it is what is allocated."""
    report = ["report", str(paths[name]), "--by", by]
    text = CliRunner().invoke(main, report).stdout
    assert not [c for c in text.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert all(width(line) <= COLUMNS or line.startswith("warning: ") for line in text.splitlines())
    rows = json.loads(CliRunner().invoke(main, [*report, "--json"]).stdout)["rows"]
    regions = json.loads(look(paths[name], "json"))["regions"]
    assert sum(row["allocated_bytes"] for row in rows) == sum(region["allocated_bytes"] for region in regions)
    touched: Counter[str] = Counter()
    for region in regions:
        for label in region["labels"]:
            assert label["known"]
            touched[label[BY_LABEL[by]] or ""] += label["touched_bytes"]
    assert {row[BY_LABEL[by]]: row["allocated_bytes"] for row in rows if row["part"] == "touched"} == touched


@pytest.mark.parametrize("name", ["labels", "hostile"])
def test_labels_of_a_window(name: str, paths: dict[str, Path]) -> None:
    report = ["report", str(paths[name]), "--by", "file", "--json"]
    whole = json.loads(CliRunner().invoke(main, report).stdout)["rows"]
    middle = sorted(row["first"] for row in whole if row["first"])[len(whole) // 2]
    early, late = (
        json.loads(CliRunner().invoke(main, [*report, option, middle]).stdout)["rows"]
        for option in ("--until", "--since")
    )
    parts = [
        {row["file"]: row["allocated_bytes"] for row in rows if row["part"] == "touched"}
        for rows in (whole, early, late)
    ]
    assert Counter(parts[1]) + Counter(parts[2]) == Counter(parts[0])
    assert len(parts[1]) < len(parts[0])
    assert sum(row["allocated_bytes"] for row in early) == sum(row["allocated_bytes"] for row in whole)


@pytest.mark.parametrize(
    ("name", "by", "has"),
    [("labels", "query", "it has file, script, request"), ("php_fpm", "file", "record it with --label")],
)
def test_a_label_that_is_not_there(name: str, by: str, has: str, paths: dict[str, Path]) -> None:
    done = CliRunner().invoke(main, ["report", str(paths[name]), "--by", by])
    assert done.exit_code == 1
    assert f"the capture has no {by} to group by: " in done.output
    assert has in done.output


def test_there_are_all_that_are_recorded() -> None:
    assert NAMES == ["cut_off", "exact", "hostile", "labels", "php_fpm", "pool", "postgres", "snapshot"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("view", sorted(KEPT))
def test_it_looks_as_it_did(view: str, name: str, paths: dict[str, Path]) -> None:
    golden = GOLDEN / f"{name}.{view}"
    found = look(paths[name], view)
    if os.environ.get("SHMTRACE_REFRESH_GOLDEN") == "1":
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_its_sums_are_those_of_its_extents(name: str, paths: dict[str, Path]) -> None:
    """Of what was cut off there are none."""
    with Capture.open(paths[name]) as capture:
        capture.verify_sums()
        assert capture.is_summed() == (name != "cut_off")


@pytest.mark.parametrize("name", NAMES)
def test_it_balances(name: str, paths: dict[str, Path]) -> None:
    """By SQL alone, and by the account."""
    with Capture.open(paths[name]) as capture:
        sums = capture.rows(
            'SELECT region.allocated_bytes, sum("end" - start), sum(("end" - start) * (process IS NULL))'
            " FROM region LEFT JOIN extent ON extent.region = region.id GROUP BY region.id ORDER BY region.id"
        )
        found = account.read(capture)
    by_sql = sorted(
        (allocated, (pages or 0) * PAGE_BYTES, (before or 0) * PAGE_BYTES) for allocated, pages, before in sums
    )
    by_account = sorted(
        (region.allocated_bytes, region.touched_bytes + region.before_bytes, region.before_bytes)
        for region in found.regions
    )
    assert by_sql == by_account
    assert sum(allocated for allocated, _, _ in by_sql) > 0
    for region in found.regions:
        assert region.unseen_bytes == region.allocated_bytes - region.touched_bytes - region.before_bytes
        if name == "cut_off":  # the two sides are not of the same moment, but nearly
            assert 0 <= region.unseen_bytes <= 23 * PAGE_BYTES
        elif name != "snapshot" and region.kind != "posix":  # which PostgreSQL makes with fallocate
            assert region.unseen_bytes == 0
    assert found.session.complete == (name != "cut_off")


@pytest.mark.parametrize("name", NAMES)
def test_every_view_has_the_same_sums(name: str, paths: dict[str, Path]) -> None:
    document = json.loads(look(paths[name], "json"))
    allocated = sum(region["allocated_bytes"] for region in document["regions"])
    assert sum(exported.folded(look(paths[name], "folded")).values()) == allocated
    speedscope = json.loads(look(paths[name], "speedscope"))
    jsonschema.validate(speedscope, exported.SPEEDSCOPE_SCHEMA)
    assert speedscope["profiles"][0]["endValue"] == allocated
    rows = csv.DictReader(io.StringIO(look(paths[name], "touches.csv"), newline=""))
    assert sum(int(row["bytes"]) for row in rows) == allocated
    frames = exported.svg(look(paths[name], "svg"))
    assert [sum(frame.size_bytes for frame in frames if frame.row == row) for row in (0, 1)] == [allocated] * 2


@pytest.mark.needs("protoc")
@pytest.mark.parametrize("name", NAMES)
def test_pprof_has_all_that_is_held_and_grew(name: str, paths: dict[str, Path]) -> None:
    regions = json.loads(look(paths[name], "json"))["regions"]
    touchers = [toucher for region in regions for toucher in region["touchers"]]
    samples = exported.samples(exported.pprof(shmtrace("export", paths[name], "--format", "pprof").stdout_bytes))
    for kind, size_bytes in {
        "inuse": sum(region["allocated_bytes"] for region in regions if region["gone"] is None),
        "alloc": sum(toucher["touched_bytes"] + toucher["freed_bytes"] for toucher in touchers),
    }.items():
        assert sum(sample.values[f"{kind}_space"] for sample in samples) == size_bytes
        assert sum(sample.values[f"{kind}_objects"] for sample in samples) == size_bytes // PAGE_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_perfetto_counts_all_that_was_touched(name: str, paths: dict[str, Path]) -> None:
    """By process, by group, and by text of the labels if there are any."""
    regions = json.loads(look(paths[name], "json"))["regions"]
    touched = sum(toucher["touched_bytes"] for region in regions for toucher in region["touchers"])
    events = exported.trace_events(look(paths[name], "perfetto"))
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    last = {(event["pid"], event["name"]): event["args"]["bytes"] for event in events if event["ph"] == "C"}
    sums = Counter({"touched": 0, "touched by group of alike processes": 0})
    for (number, track), size_bytes in last.items():
        sums[track if track == "touched" else names[number]] += size_bytes
    found = {kind: size_bytes for kind, size_bytes in sums.items() if kind.startswith("touched")}
    assert found.keys() >= {"touched by file"} or name not in ("hostile", "labels")
    assert set(found.values()) == {touched}


@pytest.mark.parametrize("view", [*TEXTS, *DOCUMENTS])
def test_two_regions_of_one_identity_are_two(view: str, paths: dict[str, Path], tmp_path: Path) -> None:
    """The kernel gives a number again once its region has gone, and not every file system tells generations apart."""
    twins = load("postgres", tmp_path / "twins")
    with contextlib.closing(sqlite3.connect(twins, isolation_level=None)) as database:
        one, other = database.execute("SELECT id, dev, ino, generation FROM region ORDER BY peak_bytes DESC LIMIT 2")
        database.execute("UPDATE region SET dev = ?, ino = ?, generation = ? WHERE id = ?", (*one[1:], other[0]))
    identity = rf"\w+:\w+/({one[2]}|{other[2]})/[0-9a-f]+(/2)?|\b({one[2]}|{other[2]})\b|\b(dev|generation)\b.*"
    identity += r"|frame c\d"  # its colour comes of the name
    nameless = [" ".join(re.sub(identity, "…", look(path, view)).split()) for path in (paths["postgres"], twins)]
    assert nameless[0] == nameless[1]
    assert nameless[0].count("…") > 1 or view in ("unit", "container", "time")


# ---- names that strangers chose ----


@pytest.mark.parametrize("view", TEXTS)
def test_a_terminal_is_safe(view: str, paths: dict[str, Path]) -> None:
    text = look(paths["hostile"], view)
    assert not [c for c in text.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert "<script>alert(1)" in text or view not in ("report", "process")
    for line in text.splitlines():
        assert width(line) <= COLUMNS or line.startswith("warning: ")


@pytest.mark.parametrize("make", [recorded.with_stacks, recorded.with_pods, recorded.of_host, recorded.of_tmpfs])
def test_words_that_only_a_trace_writes(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """A stranger's capture has other ones: whatever is no name of somebody's, as the tier, is made printable, too."""
    path, merged = make(tmp_path / "x"), tmp_path / "fleet.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, _, _, key in database.execute(f"PRAGMA table_info({table})").fetchall():
                if kind == "TEXT" and not key and (table, column) != ("session", "label"):
                    database.execute(f"UPDATE {table} SET {column} = ?", (f"\x1b[2J\u202e\u2028{column}",))  # noqa: S608
        database.commit()
    assert shmtrace("merge", path, "-o", merged).exit_code == 0
    for command in ([path], [merged], [path, "--summary"], [path, "--by", "unit"], [merged, "--by", "host"]):
        terminal(shmtrace("report", *command).stdout)
    terminal(shmtrace("diff", path, path).stdout)
    terminal(shmtrace("export", path, "--format", "openmetrics").stdout)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE region SET creator_how = NULL")
        database.commit()
    assert shmtrace("report", path).exit_code == 0


@pytest.mark.parametrize("view", DOCUMENTS)
def test_other_programs_are_safe(view: str, paths: dict[str, Path]) -> None:
    """And what it was can be told."""
    text = look(paths["hostile"], view)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text.replace("\r\n", "\n"))
    if view == "svg":  # tests/test_svg.py parses it
        assert "&lt;script&gt;alert(1)&lt;/script&gt; " in text
    elif view == "json":
        names = {
            toucher["process"]["command"] for region in json.loads(text)["regions"] for toucher in region["touchers"]
        }
        assert names
        assert all(name.startswith(HOSTILE["command"]) for name in names)
    else:
        assert r"<script>alert(1)</script> " in text
        assert r"\x202egpj.exe" in text
    if view.endswith("csv"):
        assert not re.search(r'(^|,|")[=+@-]', text, re.MULTILINE)
        assert "'@SUM(1)" in text


# ---- who may look ----


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_it_takes_no_root(paths: dict[str, Path], tmp_path: Path) -> None:
    path = load("php_fpm", tmp_path / "theirs.capture")
    os.chown(path, 65534, 65534)
    for parent in list(path.parents)[:-2]:
        parent.chmod(0o755)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            assert "php-fpm: pool www" in look(path, "report")
            path.chmod(0)
            done = CliRunner().invoke(main, ["report", str(path)])
            assert (done.exit_code, "may not be read: only its owner may read a capture" in done.output) == (1, True)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
