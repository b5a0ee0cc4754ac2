"""The workloads, built once; the tiers, tried once; all workloads under one trace, per tier."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.live.reports")

from tests.live import tiers  # noqa: E402
from tests.live.answers import HUGE_PAGE  # noqa: E402
from tests.live.parent import Parent  # noqa: E402
from tests.live.shmem import PAGE_BYTES  # noqa: E402
from tests.live.workload import build  # noqa: E402

KNOBS = Path("/sys/kernel/mm")
SHMEM_HUGE = {
    KNOBS / "transparent_hugepage/shmem_enabled": "advise",
    # Since 6.11, and so by default where a page of this size fills a page table.
    KNOBS / f"transparent_hugepage/hugepages-{HUGE_PAGE * PAGE_BYTES >> 10}kB/shmem_enabled": "inherit",
}
NR_HUGE = KNOBS / "hugepages/hugepages-2048kB/nr_hugepages"
HUGETLB_PAGES = 3
LONGEST_S = 1200
"""A test may take: in a guest on a busy host some take minutes."""


@pytest.fixture(autouse=True)
def no_waiting_in_vain() -> Iterator[None]:
    def end(*_: object) -> None:
        raise TimeoutError(f"it has waited for {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("workloads"))


@functools.cache
def _why_not(name: str) -> str | None:
    return tiers.why_not(tiers.TIERS[name])


@pytest.fixture(scope="session", params=tiers.TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Each tier that this kernel can have."""
    name = str(request.param)
    reason = _why_not(name)
    if reason:
        pytest.skip(f"no {name}: {reason}")
    return name


@pytest.fixture
def parent() -> Iterator[Parent]:
    made = Parent()
    yield made
    made.end()


@pytest.fixture(scope="module")
def huge_pages() -> Iterator[None]:
    """For shared memory that asks for them, as APCu does; and three huge ones for MAP_HUGETLB, where there are any."""
    changed: dict[Path, str] = {}
    for knob, value in (*SHMEM_HUGE.items(), (NR_HUGE, None)):
        if knob.exists():
            before = knob.read_text()
            changed[knob] = before.partition("[")[2].partition("]")[0] or before
            knob.write_text(value or str(int(before) + HUGETLB_PAGES))
    yield
    for knob, before in changed.items():
        knob.write_text(before)
