"""Captures of many hosts, made by hand with answers known to the page: a php-fpm each, before and after a deploy."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path

from tests.recorded import BOOT_NS, SESSION, at
from tracer.capture.capture import SUM_UP, Capture
from tracer.proc.shmem import PAGE_BYTES

SCRIPTS = [f"/srv/www/f{number:05}.php" for number in range(20)]
DEPLOYED_S = 20.0
"""seconds after the trace began"""
SCRIPT, PLANTED = SCRIPTS[7], 104
NR_WORKERS, NR_EXTENTS, EXTENT_PAGES = 30, 400, 3
BEFORE_PAGES, UNSEEN_PAGES = 11, 2
OPCACHE, APCU = 1, 2


def host_name(number: int) -> str:
    return f"web{number:04}"


def grown_pages(number: int, planted: int = PLANTED) -> int:
    """What SCRIPT has grown the opcache of a host by, since the deploy."""
    return 23 + 7 * number if number < planted else 0


def make(directory: Path, hosts: int = 1000, planted: int = PLANTED) -> list[Path]:
    """A capture a host. What was touched before the deploy is the same on all; since then some grew by SCRIPT."""
    template = _template(directory / "template")
    content = template.read_bytes()
    template.unlink()
    paths = []
    for number in range(hosts):
        path = directory / f"{host_name(number)}.capture"
        path.write_bytes(content)
        path.chmod(0o600)
        _grow(path, number, grown_pages(number, planted))
        paths.append(path)
    return paths


def _template(path: Path) -> Path:
    """A host that has not grown since the deploy: NR_EXTENTS of EXTENT_PAGES pages, by all workers and scripts."""
    pages = BEFORE_PAGES + NR_EXTENTS * EXTENT_PAGES + UNSEEN_PAGES
    with Capture(path) as capture:
        capture.insert("session", **{**SESSION, "label": "php", "host": "template"})
        master = {"comm": "php-fpm8.2", "cgroup": "/system.slice/php8.2-fpm.service"}
        capture.insert(
            "process",
            tgid=811,
            start_time_ns=at(-60) - BOOT_NS,
            started_ns=at(-60),
            command="php-fpm: master",
            **master,
        )
        for worker in range(NR_WORKERS):
            capture.insert(
                "process",
                tgid=900 + worker,
                start_time_ns=at(worker / 10) - BOOT_NS,
                started_ns=at(worker / 10),
                parent=1,
                parent_tgid=811,
                command="php-fpm: pool www",
                exited_ns=at(30 + worker / 10) if worker % 2 else None,
                **master,
            )
        for row, (address, size_pages, held) in {
            OPCACHE: (0x10000000, 65536, pages),
            APCU: (0x7F0000000000, 8192, 5),
        }.items():
            capture.insert(
                "region",
                id=row,
                dev=1,
                ino=1046 + row,
                generation=7,
                kind="anon",
                name="/dev/zero",
                size_bytes=size_pages * PAGE_BYTES,
                allocated_bytes=held * PAGE_BYTES,
                peak_bytes=held * PAGE_BYTES,
                start_bytes=(BEFORE_PAGES if row == OPCACHE else 5) * PAGE_BYTES,
                address=address,
                creator=1,
                creator_how="traced",
                parent=1,
            )
        for script in SCRIPTS:
            capture.insert("label", script=script, request=script.removeprefix("/srv/www"))
        capture.insert("extent", region=OPCACHE, start=0, end=BEFORE_PAGES)
        capture.insert("extent", region=APCU, start=0, end=5)
        for number in range(NR_EXTENTS):
            start, time_ns = 100 + number * (EXTENT_PAGES + 1), at(DEPLOYED_S * number / NR_EXTENTS)
            _touch(capture, start, EXTENT_PAGES, 2 + number % NR_WORKERS, time_ns, 1 + number % len(SCRIPTS))
        for second in range(41):
            capture.insert("sample", region=OPCACHE, time_ns=at(second), allocated_bytes=pages * PAGE_BYTES)
            capture.insert("host_sample", time_ns=at(second), shmem_bytes=SESSION["shmem_total_bytes"])
        capture.sum_up([OPCACHE, APCU])
    return path


def _touch(capture: Capture, start: int, pages: int, process: int, time_ns: int, label: int) -> None:
    times = {"first_ns": time_ns, "last_ns": time_ns}
    capture.insert("extent", region=OPCACHE, start=start, end=start + pages, process=process, label=label, **times)


def _grow(path: Path, number: int, pages: int) -> None:
    """Make the template a host's. SCRIPT touches the pages half by one worker, half by another, so far as they go."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN")
        database.execute("UPDATE session SET host = ?, ended_ns = ended_ns + ?", (host_name(number), number))
        label = 1 + SCRIPTS.index(SCRIPT)
        for process, start, size in ((2, 5000, pages // 2), (5, 30000, pages - pages // 2)):
            if size:
                time_ns = at(DEPLOYED_S + 1 + process)
                row = (OPCACHE, start, start + size, process, time_ns, time_ns, label)
                database.execute("INSERT INTO extent VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        if pages:
            sizes = "allocated_bytes = allocated_bytes + :more, peak_bytes = peak_bytes + :more"
            database.execute(f"UPDATE region SET {sizes} WHERE id = 1", {"more": pages * PAGE_BYTES})  # noqa: S608
            database.execute("DELETE FROM touched WHERE region = 1")
            database.execute(SUM_UP, (1,))
        database.execute("COMMIT")


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
