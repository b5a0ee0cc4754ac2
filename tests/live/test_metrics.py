"""Metrics of a running trace: what the kernel says, by a file and over HTTP; counters through rotations and renames."""

from __future__ import annotations

import contextlib
import http.client
import os
import stat
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests import exported
from tests.live import tiers
from tests.live.parent import BY_PARENT, Parent, recording, stop
from tests.live.prometheus import free_port
from tests.live.reports import ATTACH_SECONDS, PATIENCE_SECONDS, SHMTRACE
from tests.live.shmem import PAGE_BYTES, read_regions
from tracer import account
from tracer.capture.capture import Capture

pytestmark = [pytest.mark.bpf, pytest.mark.needs("protoc")]

BY_FIRST, BY_SECOND, OF_PASSING = 23, 7, 13
EVERY_S = 5.0

Metrics = dict[str, dict[tuple[str, ...], float]]
"""By name, and the values of the labels in the order of their names."""


def read(text: str) -> Metrics:
    return {
        sample.name: {
            tuple(value for _, value in sorted(other.labels.items())): other.value
            for other in metric.samples
            if other.name == sample.name
        }
        for metric in parse(text)
        for sample in metric.samples
    }


def pages(metrics: Metrics, name: str) -> float:
    """The sum over all segments."""
    return sum(metrics.get(f"shmtrace_{name}", {}).values()) / PAGE_BYTES


def balances(metrics: Metrics) -> None:
    there = pages(metrics, "segment_allocated_bytes") + pages(metrics, "freed_bytes_total")
    assert pages(metrics, "touched_bytes_total") + pages(metrics, "unattributed_bytes") == there


def ask(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == 200, content
    return content


def get(port: int) -> Metrics:
    return read(ask(port, "/metrics").decode())


def profile(port: int) -> Counter[str]:
    """The sums of a profile that is made now, by its sample types."""
    found: Counter[str] = Counter()
    for sample in exported.samples(exported.pprof(ask(port, "/debug/pprof/shmem"))):
        found.update(sample.values)
    return found


def fresh(get_it: Callable[[], Metrics]) -> Metrics:
    """The metrics that are read after now."""
    now_s, end_s = time.time(), time.monotonic() + 3 * EVERY_S
    while time.monotonic() < end_s:
        with contextlib.suppress(AssertionError):  # not yet
            found = get_it()
            if found["shmtrace_collected_timestamp_seconds"][()] >= now_s:
                return found
        time.sleep(0.1)
    pytest.fail("no fresh metrics came")


@contextlib.contextmanager
def serving(parent: Parent, tmp_path: Path, *options: str, shmtrace: list[str] = SHMTRACE) -> Iterator[int]:
    """A trace with a listener; yields its port."""
    port = free_port()
    options = "--listen", f"127.0.0.1:{port}", *options
    with recording(tmp_path / "x.capture", parent.tgid, *options, shmtrace=shmtrace) as recorder:
        yield port
        stop(recorder)


def st_blocks(tgid: int) -> int:
    return sum(region.pages for region in read_regions(tgid).values())


def test_known_answer(tier: str, parent: Parent, tmp_path: Path) -> None:
    """What a child touched, who is dead, and one that came and went: as the kernel counts it, in both ways."""
    path = tmp_path / "shmtrace.prom"
    with serving(parent, tmp_path, "--textfile", str(path), shmtrace=tiers.shmtrace(tier)) as port:
        before = fresh(lambda: get(port))
        balances(before)
        assert pages(before, "segment_allocated_bytes") == st_blocks(parent.tgid)
        assert pages(before, "touched_bytes_total") == 0
        parent.tell("touch", 20, BY_FIRST)
        parent.tell("touch", 100, BY_SECOND)
        parent.tell("pass", OF_PASSING)
        after = fresh(lambda: get(port))
        balances(after)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert read(path.read_text()) == after
        assert pages(after, "segment_allocated_bytes") == st_blocks(parent.tgid)
        profiled = profile(port)
    assert profiled["alloc_objects"] == BY_FIRST + BY_SECOND + OF_PASSING
    assert profiled["inuse_objects"] == BY_FIRST + BY_SECOND + BY_PARENT
    assert pages(after, "touched_bytes_total") == BY_FIRST + BY_SECOND + OF_PASSING
    assert pages(after, "freed_bytes_total") == OF_PASSING
    parts = {labels[0]: size_bytes for labels, size_bytes in after["shmtrace_unattributed_bytes"].items()}
    assert parts == {"before": BY_PARENT * PAGE_BYTES, "unseen": 0}
    assert not path.exists()


def test_counters_go_on_through_rotations(parent: Parent, tmp_path: Path) -> None:
    """What ends just before a part is cut, and is not carried on, is counted, too."""
    with serving(parent, tmp_path, "--rotate", "1s", "--keep", "2") as port:
        parent.tell("touch", 20, BY_FIRST)
        total = BY_FIRST
        before = fresh(lambda: get(port))
        for _ in range(4):
            for _ in range(5):
                parent.tell("pass", OF_PASSING)
                total += OF_PASSING
                time.sleep(0.3)
            now = fresh(lambda: get(port))
            balances(now)
            assert profile(port)["alloc_objects"] == total
            assert pages(now, "touched_bytes_total") == total
            assert pages(now, "freed_bytes_total") == total - BY_FIRST
            for name in now:
                if name.endswith("_total"):
                    assert all(now[name][labels] >= value for labels, value in before[name].items()), name
            before = now


def test_pages_of_the_dead_that_are_given_back(tier: str, tmp_path: Path) -> None:
    """They are known as freed while the trace runs: else what grew would count them once more at its next part."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        parent = Parent(file=Path(directory, "x"))
        with serving(parent, tmp_path, shmtrace=tiers.shmtrace(tier)) as port:
            fresh(lambda: get(port))
            parent.tell("touch", 20, BY_FIRST)
            os.truncate(Path(directory, "x"), (20 + BY_SECOND) * PAGE_BYTES)
            now = fresh(lambda: get(port))
            balances(now)
            assert pages(now, "freed_bytes_total") == BY_FIRST - BY_SECOND
            assert profile(port)["alloc_objects"] == BY_FIRST
            with Capture.open(tmp_path / "x.capture") as capture:
                touchers = [toucher for region in account.read(capture).regions for toucher in region.touchers]
            freed = [toucher.freed_bytes // PAGE_BYTES for toucher in touchers if toucher.freed_bytes]
            assert freed == [BY_FIRST - BY_SECOND]
        parent.end()


def test_a_trace_that_is_killed_leaves_an_old_file(parent: Parent, tmp_path: Path) -> None:
    """Which says how old it is; the next trace takes its place, another tool's file nobody."""
    path = tmp_path / "shmtrace.prom"
    with recording(tmp_path / "x.capture", parent.tgid, "--textfile", str(path)) as process:
        end_s = time.monotonic() + ATTACH_SECONDS
        while not path.exists():
            assert time.monotonic() < end_s
            time.sleep(0.05)
        process.kill()
    old = read(path.read_text())
    assert old["shmtrace_collected_timestamp_seconds"][()] <= time.time()
    with recording(tmp_path / "y.capture", parent.tgid, "--textfile", str(path)):
        new = fresh(lambda: read(path.read_text()))
    balances(new)
    path.write_text("# HELP node_something of another tool\n")
    command = [*SHMTRACE, "record", "-p", str(parent.tgid), "-o", str(tmp_path / "z.capture"), "--textfile", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    assert "not an earlier output" in done.stderr
    assert not (tmp_path / "z.capture").exists()
