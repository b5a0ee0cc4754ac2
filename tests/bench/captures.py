"""A capture as large as one gets, made up: a pool and a database, a worker after the other, three hours.

`python3 -m tests.bench.captures FILE` makes one. The same numbers make the same capture, and it balances: a region has
what its extents have, and a known number of pages unseen.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tracer.capture.capture import Capture
from tracer.proc.shmem import PAGE_BYTES

SEED = 811
BEGAN_NS = 1_764_054_000_000_000_000  # 2025-11-25 07:00:00 UTC
SECOND_NS = 1_000_000_000
DURATION_S = 3 * 3600
LIFE_S = 600  # of a worker, on average
FIRST_TGID, NR_TGIDS = 1000, 4093  # so PIDs are used again
UNSEEN_PAGES = 7  # of every region
SERVERS = [
    ("php-fpm8.2", "php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)", "php-fpm: pool {}", ["www", "api", "池"]),
    ("postgres", "/usr/lib/postgresql/15/bin/postgres -D /srv", "postgres: {}", ["checkpointer", "app app [local]"]),
]


class Life(NamedTuple):
    row: int
    from_s: float
    to_s: float


class Extent(NamedTuple):
    start: int
    end: int
    process: int | None
    first_ns: int | None
    last_ns: int | None


def make(path: Path, nr_extents: int = 1_000_000, nr_processes: int = 10_000, nr_regions: int = 7) -> None:
    """Every fourth region is the database's; the last one went away in between, as by a reload."""
    chance = random.Random(SEED)
    with Capture(path) as capture:
        capture.insert(
            "session",
            version="0.1.0",
            host="web1",
            kernel="6.1.0-56-amd64",
            tier="exact",
            mechanism="kprobe",
            blind_to="",
            started_ns=BEGAN_NS,
            ended_ns=BEGAN_NS + DURATION_S * SECOND_NS,
            complete=1,
            sum_of_rss_bytes=40 << 30,
            shmem_total_bytes=64 << 30,
            self_cpu_seconds=41.3,
            self_rss_bytes=131_000_000,
            attach_seconds=0.31,
        )
        workers = _processes(capture, nr_processes, chance)
        held = [0] * (DURATION_S + 1)
        for number in range(nr_regions):
            # the first has half of all, the next half of the rest
            nr = nr_extents - nr_extents // 2 if number == 0 else nr_extents // 2 // max(nr_regions - 1, 1)
            nr += (nr_extents // 2) % max(nr_regions - 1, 1) if number == 1 else 0
            server = number % 4 == 3
            gone_s = DURATION_S * 3 // 4 if number and number == nr_regions - 1 else None
            living = [life for life in workers[server] if life.from_s < (gone_s or DURATION_S)]
            _region(capture, number, int(server), gone_s, list(_extents(nr, living, gone_s, chance)), held, chance)
        capture.sum_up(range(1, nr_regions + 1))
        capture.insert_all(
            "host_sample",
            "time_ns, shmem_bytes",
            [(BEGAN_NS + second * SECOND_NS, pages * PAGE_BYTES) for second, pages in enumerate(held)],
        )


def _processes(capture: Capture, nr_processes: int, chance: random.Random) -> list[list[Life]]:
    """The masters have the first ids. The workers' lives, by server."""
    masters = [
        capture.insert(
            "process",
            tgid=811 + number,
            start_time_ns=5_210_000_000 + number,
            parent_tgid=1,
            comm=comm,
            command=command,
            cgroup=f"/system.slice/{comm}.service",
            started_ns=BEGAN_NS - 3600 * SECOND_NS,
        )
        for number, (comm, command, _, _) in enumerate(SERVERS)
    ]
    workers: list[list[Life]] = [[] for _ in SERVERS]
    rows = []
    for number in range(nr_processes - len(masters)):
        server = number % 5 == 4
        comm, _, command, pools = SERVERS[server]
        from_s = DURATION_S * number / nr_processes
        to_s = from_s + chance.expovariate(1 / LIFE_S) + 0.01
        rows.append(
            (
                len(masters) + 1 + number,
                FIRST_TGID + number % NR_TGIDS,
                3600 * SECOND_NS + int(from_s * SECOND_NS),
                masters[server],
                811 + server,
                comm,
                command.format(chance.choice(pools)),
                f"/system.slice/{comm}.service",
                BEGAN_NS + int(from_s * SECOND_NS),
                BEGAN_NS + int(to_s * SECOND_NS) if to_s < DURATION_S else None,
            )
        )
        workers[server].append(Life(rows[-1][0], from_s, min(to_s, DURATION_S)))
    capture.insert_all(
        "process",
        "id, tgid, start_time_ns, parent, parent_tgid, comm, command, cgroup, started_ns, exited_ns",
        rows,
    )
    return workers


def _extents(nr: int, workers: list[Life], gone_s: float | None, chance: random.Random) -> Iterator[Extent]:
    page = 0
    for number in range(nr):
        page += chance.randrange(3)  # a hole, or none
        start, page = page, page + 1 + chance.randrange(15)
        if not workers or number % 50 == 0:
            yield Extent(start, page, None, None, None)
            continue
        life = workers[chance.randrange(len(workers))]
        to_s = min(life.to_s, gone_s or DURATION_S)
        first_ns = BEGAN_NS + int(chance.uniform(life.from_s, to_s) * SECOND_NS)
        yield Extent(start, page, life.row, first_ns, min(first_ns + chance.randrange(SECOND_NS), _at(to_s)))


def _region(
    capture: Capture,
    number: int,
    server: int,
    gone_s: int | None,
    extents: list[Extent],
    held: list[int],
    chance: random.Random,
) -> None:
    grown = [0] * (DURATION_S + 1)  # pages, by the second that they were there in
    before = 0
    for extent in extents:
        if extent.first_ns is None:
            before += extent.end - extent.start
        else:
            grown[-(-(extent.first_ns - BEGAN_NS) // SECOND_NS)] += extent.end - extent.start
    grown[1] += UNSEEN_PAGES
    samples, pages = [], before
    for second in range((gone_s or DURATION_S) + 1):
        pages += grown[second]
        held[second] += pages
        if grown[second] or not second:
            samples.append((number + 1, _at(second), pages * PAGE_BYTES, pages * PAGE_BYTES, 0))
    size_bytes = pages * PAGE_BYTES
    region = capture.insert(
        "region",
        dev=1,
        ino=1047 + number,
        generation=0x3A9C21F0 + number,
        kind="anon",
        name="/dev/zero",
        created_ns=BEGAN_NS - 3600 * SECOND_NS,
        gone_ns=gone_s and _at(gone_s),
        creator=1 + server,
        creator_how="traced",
        parent=1 + server,
        size_bytes=-(-(extents[-1].end if extents else 1) // 262_144) << 30,
        allocated_bytes=size_bytes,
        peak_bytes=size_bytes,
        resident_bytes=size_bytes,
        swapped_bytes=0,
        start_bytes=before * PAGE_BYTES,
        address=0x10000000 if number == 0 else 0x7F0000000000 + (number << 36),
    )
    capture.insert_all(
        "extent",
        'region, start, "end", process, first_ns, last_ns',
        ((region, *extent) for extent in extents),
    )
    capture.insert_all("sample", "region, time_ns, allocated_bytes, resident_bytes, swapped_bytes", samples)
    touchers = sorted({extent.process for extent in extents if extent.process})
    capture.insert_all(
        "usage",
        "region, process, faults, freed_pages",
        ((region, process, None, chance.choice((0, 0, 3))) for process in touchers),
    )
    capture.insert_all(
        "mapping",
        "region, process, address, first_page, pages",
        ((region, process, 0x10000000, 0, 262_144) for process in touchers[-200:] if not gone_s),
    )


def _at(second: float) -> int:
    return BEGAN_NS + int(second * SECOND_NS)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
