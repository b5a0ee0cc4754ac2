"""Weeks in minutes: short-lived processes and regions without end, and a rotation every few seconds."""

from __future__ import annotations

import mmap
import os
import re
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.parent import recording, stop
from tracer import account
from tracer.capture import parts
from tracer.capture.capture import Capture

PAGE_BYTES = 4096
RING_PAGES = 4099  # of the region that stays: its pages are made by one child, and freed some thousand children later
OF_CHILD, OF_PASSING = 3, 7
KEEP = 5
EVERY_S = 3
SECONDS = 240.0
QUARTERS = 4


def work(log: Path) -> None:
    """Children without end. Each makes some pages of a region that stays, and a region that goes with it."""
    ring = mmap.mmap(-1, RING_PAGES * PAGE_BYTES)
    made = 0
    with log.open("w", buffering=1) as counted:
        while True:
            first = OF_CHILD * made % (RING_PAGES - OF_CHILD)
            ring.madvise(mmap.MADV_REMOVE, first * PAGE_BYTES, OF_CHILD * PAGE_BYTES)
            child = os.fork()
            if not child:
                passing = mmap.mmap(-1, OF_PASSING * PAGE_BYTES)
                for page in range(OF_CHILD):
                    ring[(first + page) * PAGE_BYTES] = 1
                for page in range(OF_PASSING):
                    passing[page * PAGE_BYTES] = 1
                os._exit(0)
            os.waitpid(child, 0)
            made += 1
            print(made, file=counted)


@contextmanager
def working(log: Path) -> Iterator[int]:
    tgid = os.fork()
    if not tgid:
        try:
            work(log)
        finally:
            os._exit(1)
    try:
        yield tgid
    finally:
        os.kill(tgid, signal.SIGKILL)
        os.waitpid(tgid, 0)


def rss_mib(tgid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{tgid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def bench(directory: Path) -> None:
    """Weeks, then some with labels and stacks."""
    measure(directory, SECONDS)
    measure(directory, SECONDS / 2, "--stacks", "--label", "php")


def measure(directory: Path, seconds: float, *options: str) -> None:
    """Print the recorder's memory in each quarter of the time, and the size of the captures."""
    path, log = directory / f"weeks{len(options)}.capture", directory / "log"
    used: list[float] = []
    sizes: list[int] = []
    with working(log) as tgid:
        with recording(path, tgid, "--rotate", f"{EVERY_S}s", "--keep", str(KEEP), *options) as recorder:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                time.sleep(1)
                used.append(rss_mib(recorder.pid))
                sizes.append(sum(part.path.stat().st_size for part in parts.over(path)) // KEEP)
            stop(recorder)
        made = int(log.read_text().split()[-1])
    with Capture.open(path) as capture:
        found = account.read(capture)
        processes = len(account.read_processes(capture))
    [ring] = [region for region in found.regions if region.size_bytes == RING_PAGES * PAGE_BYTES]
    print(f"{made:,} processes and regions in {found.session.part} parts of {EVERY_S} s, {' '.join(options)}")
    for number in range(QUARTERS):
        quarter = slice(len(used) * number // QUARTERS, len(used) * (number + 1) // QUARTERS)
        memory = f"RSS {statistics.median(used[quarter]):.1f} MiB, at most {max(used[quarter]):.1f}"
        print(f"  quarter {number + 1}: {memory}; a capture has {statistics.median(sizes[quarter]):,.0f} bytes")
    print(f"  the last capture has {path.stat().st_size:,} bytes and {processes:,} processes")
    print(f"  unseen {ring.unseen_bytes} bytes; warnings: {found.session.warnings}")
