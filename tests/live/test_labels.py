"""Labels: what processes said they were doing when they touched pages."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.live.fpm import running_fpm, script_names
from tests.live.postgres import running_postgres
from tests.live.reports import SHMTRACE, Report, find_region, skipped_at_most, trace, trace_command
from tests.live.shmem import PAGE_BYTES, RegionId, read_regions
from tests.live.test_php_fpm import opcache_of
from tests.live.tiers import shmtrace
from tests.live.workload import Notes, stepped

pytestmark = pytest.mark.bpf

ROWS = "FROM generate_series(1, 30000) AS g"

Pages = dict["str | None", int]
"""Pages by one text of the labels; None: unknown."""


def pages_by(region: dict[str, Any], kind: str) -> Pages:
    pages: Counter[str | None] = Counter()
    for label in region["labels"]:
        pages[(label[kind] or "") if label["known"] else None] += label["touched_bytes"] // PAGE_BYTES
    return dict(pages)


def traced(program: Path, name: str, label: str, notes: Path, tier: str = "", *more: object) -> tuple[Report, RegionId]:
    """A workload traced from its first step to its last. tier: the best there is, unless given."""
    with stepped(program, name, notes) as workload:
        workload.wait_for("ready")
        with trace(
            "-p", workload.tgid, "--label", label, *more, shmtrace=shmtrace(tier) if tier else SHMTRACE
        ) as tracing:
            workload.go()
            region = workload.wait_for("done").regions["pool"]
            report = tracing.stop()
            workload.go()
            workload.finish()
    return report, region.id


# the tier is the first parameter: see tests/kernels
@pytest.mark.needs("cc")
def test_what_a_program_says(tier: str, program: Path, tmp_path: Path) -> None:
    # with stacks, so that every kernel has to load all programs there are
    more = "--stacks", "-o", tmp_path / "x.capture"
    report, pool = traced(program, "labelled", f"{program}:doing", tmp_path / "notes", tier, *more)
    region = find_region(report, pool)
    said = {
        "alpha": 28,
        "beta": 9,
        "gamma": 17,
        "": 11,
        "long " + "x" * 123 + "…": 3,
        "\x1b[31m<b>\\xff\n'": 13,
        None: 9,
        "y" * 128 + "…": 4,
    }
    pages, skipped = pages_by(region, "text"), region["unseen_bytes"] // PAGE_BYTES
    assert skipped <= skipped_at_most(report, tier)
    assert pages == said or (sum(pages.values()) + skipped == 94 and not Counter(pages) - Counter(said))


@pytest.mark.needs("cc")
def test_a_string_in_place(program: Path, tmp_path: Path) -> None:
    report, pool = traced(program, "labelled", "workload:&doing_here", tmp_path / "notes")
    pages = pages_by(find_region(report, pool), "text")
    assert pages["alpha"] == 28
    assert pages["beta"] == 9
    assert pages[""] == 11
    assert sum(pages.values()) == 94


@pytest.mark.needs("cc")
def test_labels_that_come_too_fast(program: Path, tmp_path: Path) -> None:
    """Each page has its own label or none, never another's, and no page is lost."""
    capture = tmp_path / "x.capture"
    report, pool = traced(program, "hurried", "workload:doing", tmp_path / "notes", "", "-o", capture)
    region = find_region(report, pool)
    pages = pages_by(region, "text")
    assert sum(pages.values()) == 60_000
    assert region["unseen_bytes"] == 0
    unknown = pages.pop(None, 0)
    assert set(pages.values()) == {1}
    with closing(sqlite3.connect(capture)) as db:
        wrong = "SELECT count(*) FROM extent JOIN label ON label.id = label WHERE text <> 'page ' || start"
        assert db.execute(wrong).fetchone() == (0,)
    assert unknown > 0
    assert any("labels came faster" in warning for warning in report["warnings"])


@pytest.mark.needs("cc", "unshare")
def test_a_program_in_a_container(program: Path, tmp_path: Path) -> None:
    """Where the binary's file is cannot be seen from here."""
    room = tmp_path / "room"
    room.mkdir()
    start = f'mount -t tmpfs none {room} && cp {program} {room}/hidden && exec {room}/hidden "$@"'
    container = tmp_path / "container"
    container.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{start}' sh \"$@\"\n")
    container.chmod(0o755)
    report, pool = traced(container, "labelled", "hidden:doing", tmp_path / "notes")
    assert not (room / "hidden").exists()
    pages = pages_by(find_region(report, pool), "text")
    assert pages["alpha"] == 28
    assert sum(pages.values()) == 94


@pytest.mark.needs("cc")
def test_a_program_that_is_executed_during_the_trace(program: Path, tmp_path: Path) -> None:
    """What the process does a second later has its label, and so does its child."""
    notes = tmp_path / "notes"
    line = '(sleep 1; echo; echo) | "$0" labelled "$1"'
    report = trace_command("sh", "-c", line, program, notes, options=["--label", "workload:doing"])
    pages = pages_by(find_region(report, Notes.read(notes).regions["pool"].id), "text")
    assert pages["alpha"] == 28
    assert pages["gamma"] == 17
    assert sum(pages.values()) == 94


@pytest.mark.needs("cc")
def test_a_program_without_that_symbol(program: Path, tmp_path: Path) -> None:
    """What can be reported is reported."""
    report, pool = traced(program, "labelled", "workload:absent", tmp_path / "notes")
    assert pages_by(find_region(report, pool), "text") == {None: 94}
    assert report["warnings"] == [
        "no process had what --label workload:absent reads: all labels are ?",
        f"{program} has no symbol absent: its labels are ?",
    ]


@pytest.mark.needs("php-fpm*")
def test_php_in_every_tier(tier: str) -> None:
    with running_fpm(30, max_requests=7) as fpm:
        before = read_regions(fpm.tgid)
        with trace("-p", fpm.tgid, "--label", "php:file", shmtrace=shmtrace(tier)) as tracing:
            fpm.ask_for(script_names(30))
            after = read_regions(fpm.tgid)
            report = tracing.stop()
        opcache = opcache_of(after)
        region = find_region(report, opcache)
    by_script, by_file = pages_by(region, "script"), pages_by(region, "file")
    assert set(by_file) == {str(fpm.directory / name) for name in script_names(30)}
    assert by_script == by_file
    missing = after[opcache].pages - before[opcache].pages - sum(by_file.values())
    assert 0 <= missing <= skipped_at_most(report, tier)


@pytest.mark.needs("postgres")
def test_postgres_in_every_tier(tier: str) -> None:
    with (
        running_postgres("32MB") as server,
        trace("-p", server.tgid, "--label", "postgres", shmtrace=shmtrace(tier)) as tracing,
    ):
        server.run("psql", "-c", f"CREATE TABLE numbers AS SELECT g, repeat('x', 100) AS t {ROWS}")
        after = read_regions(server.tgid)
        report = tracing.stop()
    [shared] = [region for region, held in after.items() if held.size_bytes > 32 << 20]
    region = find_region(report, shared)
    by_query = pages_by(region, "query")
    assert (
        max(by_query, key=lambda query: by_query[query])
        == f"CREATE TABLE numbers AS SELECT g, repeat('x', 100) AS t {ROWS}"
    )
    # attaching takes half a minute in a guest; other processes of the server go on meanwhile
    grown = after[shared].pages - region["before_bytes"] // PAGE_BYTES
    assert 0 <= grown - sum(by_query.values()) <= skipped_at_most(report, tier)


@pytest.mark.needs("php-fpm*")
@pytest.mark.parametrize("clients", [4, 16])
def test_scripts_of_php(clients: int) -> None:
    """By the script of the request, read when the page is touched, and by the file whose compilation a uprobe saw."""
    scripts = 300
    with running_fpm(scripts, max_requests=70) as fpm:
        before = read_regions(fpm.tgid)
        with trace("-p", fpm.tgid, "--label", "php:file") as tracing:
            fpm.ask_for([f"{name}?x={name[1:6]}" for name in script_names(scripts)], clients)
            after = read_regions(fpm.tgid)
            report = tracing.stop()
        opcache = opcache_of(after)
        region = find_region(report, opcache)
    by_script, by_file, by_request = (pages_by(region, kind) for kind in ("script", "file", "request"))
    paths = {str(fpm.directory / name) for name in script_names(scripts)}
    assert set(by_file) == paths
    assert by_script == by_file
    assert by_request == {f"/{Path(path).name}?x={Path(path).name[1:6]}": by_file[path] for path in paths}
    assert sum(by_file.values()) == after[opcache].pages - before[opcache].pages
    assert report["warnings"] == []


@pytest.mark.needs("php-fpm*")
def test_included_files_of_php(tmp_path: Path) -> None:
    """A request names its script. Files it includes are only seen when they are compiled."""
    with running_fpm(160) as fpm:
        for number in range(3):
            names = script_names(160)[50 * number : 50 * number + 50]
            lines = [f"include '{fpm.directory / name}';" for name in names]
            (fpm.directory / f"all{number}.php").write_text("<?php " + "\n".join(lines))
        before = read_regions(fpm.tgid)
        with trace("-p", fpm.tgid, "--label", "php:file") as tracing:
            fpm.ask_for([f"all{number}.php" for number in range(3)], 3)
            after = read_regions(fpm.tgid)
            report = tracing.stop()
        opcache = opcache_of(after)
        region = find_region(report, opcache)
    by_file = pages_by(region, "file")
    expected = {str(fpm.directory / name) for name in script_names(160)[:150]}
    assert expected <= set(by_file)
    assert set(by_file) - expected <= {str(fpm.directory / f"all{number}.php") for number in range(3)}
    assert set(pages_by(region, "script")) == {str(fpm.directory / f"all{number}.php") for number in range(3)}
    assert sum(by_file.values()) == after[opcache].pages - before[opcache].pages


@pytest.mark.needs("postgres", "pgbench")
def test_queries_of_postgres() -> None:
    with running_postgres("64MB") as server:
        before = read_regions(server.tgid)
        with trace("-p", server.tgid, "--label", "postgres") as tracing:
            server.run("psql", "-c", f"CREATE TABLE numbers AS SELECT g, repeat('x', 100) AS t {ROWS}")
            server.run(
                "psql", "-c", f"CREATE TABLE more AS /* {'long ' * 40} */ SELECT g, repeat('y', 100) AS t {ROWS}"
            )
            server.run("pgbench", "-i", "-s", "2", "-q")
            after = read_regions(server.tgid)
            report = tracing.stop()
    [shared] = [region for region, held in after.items() if held.size_bytes > 64 << 20]
    region = find_region(report, shared)
    by_query = pages_by(region, "query")
    assert sum(by_query.values()) == after[shared].pages - before[shared].pages
    created = {query[:20]: pages for query, pages in by_query.items() if query and query.startswith("CREATE TABLE")}
    assert created.keys() == {"CREATE TABLE numbers", "CREATE TABLE more AS"}
    assert min(created.values()) > 300
    [cut] = [query for query in by_query if query and "long" in query]
    assert len(cut) == 129
    assert cut.endswith("…")
    assert any(query and query.startswith("copy pgbench_accounts") for query in by_query)
