"""PostgreSQL fills its buffers by read(2): nearly all of its faults are the kernel's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.postgres import Postgres, running_postgres
from tests.live.reports import find_region, skipped_at_most, trace
from tests.live.shmem import PAGE_BYTES, nowhere_pages, read_regions
from tests.live.tiers import shmtrace

pytestmark = [pytest.mark.bpf, pytest.mark.needs("postgres", "pgbench")]


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def test_nothing_is_unseen(postgres: Postgres) -> None:
    before = read_regions(postgres.tgid)
    with trace("-p", postgres.tgid) as tracing:
        postgres.run("pgbench", "-i", "-s", "10", "-q")
        postgres.run("pgbench", "-c", "4", "-T", "5")
        postgres.run("psql", "-c", "SELECT count(*), sum(abalance) FROM pgbench_accounts")
        after = read_regions(postgres.tgid)
        report = tracing.stop()

    assert {held.name.split(".")[0].split("0")[0] for held in after.values()} == {
        "/dev/zero (deleted)",
        "/dev/shm/PostgreSQL",
        "/SYSV",
    }
    for region, held in after.items():
        row = find_region(report, region)
        touched = sum(toucher["touched_bytes"] for toucher in row["touchers"]) // PAGE_BYTES
        assert touched == held.pages - before[region].pages
        assert row["unseen_bytes"] == 0
        assert row["before_bytes"] == before[region].pages * PAGE_BYTES
        assert row["creator"]["tgid"] == postgres.tgid
    grown = max(find_region(report, region)["allocated_bytes"] for region in after)
    assert grown > 60 << 20


def test_backends_are_named_after_their_end(tier: str, postgres: Postgres) -> None:
    postgres.run("pgbench", "-i", "-s", "1", "-q")
    nowhere = nowhere_pages(postgres.tgid)
    with trace("-p", postgres.tgid, shmtrace=shmtrace(tier)) as tracing:
        postgres.run("psql", "-c", "CREATE TABLE more AS SELECT * FROM pgbench_accounts")
        postgres.run("pgbench", "-S", "-c", "4", "-T", "3")
        after = read_regions(postgres.tgid)
        report = tracing.stop()
    unseen_bytes = sum(find_region(report, region)["unseen_bytes"] for region in after)
    assert 0 <= unseen_bytes // PAGE_BYTES - nowhere <= skipped_at_most(report, tier)
    touchers = [toucher["process"] for row in report["regions"] for toucher in row["touchers"]]
    backends = [process for process in touchers if process["exited"] is not None]
    assert backends
    assert all(process["command"] for process in backends)
