"""The question itself, asked of a real php-fpm: who grew the opcache?"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.live.fpm import APCU_BYTES, OPCACHE_BYTES, Fpm, running_fpm, script_names
from tests.live.reports import Report, find_region, skipped_at_most, trace
from tests.live.shmem import PAGE_BYTES, Region, RegionId, read_regions
from tests.live.tiers import shmtrace

pytestmark = [pytest.mark.bpf, pytest.mark.needs("php-fpm*")]

SCRIPTS = 2000


@pytest.fixture
def fpm() -> Iterator[Fpm]:
    with running_fpm(SCRIPTS, max_requests=150) as fpm:
        yield fpm


def of_size(regions: dict[RegionId, Region], low: int, high: int) -> RegionId:
    [found] = [region for region, held in regions.items() if low <= held.size_bytes < high]
    return found


def opcache_of(regions: dict[RegionId, Region]) -> RegionId:
    """Since PHP 8.4 it has room for its JIT, too."""
    return of_size(regions, OPCACHE_BYTES, 2 * OPCACHE_BYTES)


def apcu_of(regions: dict[RegionId, Region]) -> RegionId:
    return of_size(regions, APCU_BYTES, APCU_BYTES + 1)


def scoreboard_of(regions: dict[RegionId, Region]) -> RegionId:
    return of_size(regions, 1, 1 << 20)


def assert_grown(report: Report, region: RegionId, before: Region, after: Region, tier: str = "") -> int:
    """Every page that st_blocks has grown by has its toucher; how many pages those are."""
    row = find_region(report, region)
    touched: int = sum(toucher["touched_bytes"] for toucher in row["touchers"]) // PAGE_BYTES
    unseen: int = row["unseen_bytes"] // PAGE_BYTES
    assert unseen <= skipped_at_most(report, tier)
    assert touched + unseen == after.pages - before.pages
    assert row["before_bytes"] == before.pages * PAGE_BYTES
    assert row["allocated_bytes"] == after.pages * PAGE_BYTES
    assert row["size_bytes"] == after.size_bytes
    return touched


@pytest.mark.parametrize("clients", [1, 4])
def test_who_grew_the_opcache(fpm: Fpm, clients: int) -> None:
    before = read_regions(fpm.tgid)
    assert len(before) == 3
    with trace("-p", fpm.tgid) as tracing:
        workers = set(fpm.workers())
        fpm.ask_for(script_names(SCRIPTS), clients)
        assert fpm.ask("status.php") == str(SCRIPTS + 1)
        assert fpm.ask("store.php") == "stored"
        after = read_regions(fpm.tgid)
        replaced = workers - set(fpm.workers())
        report = tracing.stop()

    assert replaced
    assert set(before) == set(after)
    opcache, apcu, scoreboard = opcache_of(after), apcu_of(after), scoreboard_of(after)
    assert assert_grown(report, opcache, before[opcache], after[opcache]) > 10_000
    assert assert_grown(report, apcu, before[apcu], after[apcu]) >= 1000
    assert_grown(report, scoreboard, before[scoreboard], after[scoreboard])

    rows = {region: find_region(report, region) for region in after}
    for row in rows.values():
        assert row["creator"]["tgid"] == fpm.tgid
        assert row["creator"]["how"] == "inferred"
    touchers = {toucher["process"]["tgid"]: toucher["process"] for toucher in rows[opcache]["touchers"]}
    assert replaced <= set(touchers)
    for tgid in replaced:
        assert touchers[tgid]["command"] == "php-fpm: pool www"
        assert touchers[tgid]["exited"] is not None
        assert touchers[tgid]["parent"] == fpm.tgid
    [parent] = report["parents"]
    assert parent["process"]["tgid"] == fpm.tgid
    assert parent["allocated_bytes"] == sum(held.pages for held in after.values()) * PAGE_BYTES


def test_reload_shows_old_and_new(fpm: Fpm) -> None:
    old = read_regions(fpm.tgid)
    with trace("-p", fpm.tgid) as tracing:
        fpm.ask_for(script_names(300))
        grown = read_regions(fpm.tgid)
        fpm.process.send_signal(signal.SIGUSR2)
        while set(read_regions(fpm.tgid)) & set(old):
            pass
        fpm.wait_until_up()
        fpm.ask_for(script_names(500))
        new = read_regions(fpm.tgid)
        report = tracing.stop()

    assert len(new) == 3
    for region, held in grown.items():
        row = find_region(report, region)
        assert row["gone"] is not None
        assert row["allocated_bytes"] == held.pages * PAGE_BYTES
        assert row["before_bytes"] == old[region].pages * PAGE_BYTES
        assert row["unseen_bytes"] == 0
    for region, held in new.items():
        row = find_region(report, region)
        assert row["gone"] is None
        assert row["allocated_bytes"] == held.pages * PAGE_BYTES
        assert row["before_bytes"] == row["unseen_bytes"] == 0
        assert row["creator"]["tgid"] == fpm.tgid
        assert row["creator"]["how"] == "traced"


def test_by_name(tier: str, record_property: Callable[[str, object], None]) -> None:
    """php-fpm finds php-fpm8.2, the master and its workers, as one tree."""
    with running_fpm(100, max_requests=30) as fpm, trace("-p", "php-fpm", shmtrace=shmtrace(tier)) as tracing:
        before = read_regions(fpm.tgid)
        fpm.ask_for(script_names(100))
        after = read_regions(fpm.tgid)
        report = tracing.stop()
    opcache = opcache_of(after)
    grown = after[opcache].pages - before[opcache].pages
    record_property("unseen_pages", grown - assert_grown(report, opcache, before[opcache], after[opcache], tier))
