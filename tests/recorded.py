"""A capture of a pool made by hand, with answers known to the page, in a file."""

from __future__ import annotations

import contextlib
import inspect
import sqlite3
from pathlib import Path

from click.testing import CliRunner, Result

from tracer.capture.capture import SUM_UP, Capture
from tracer.cli import main
from tracer.proc.shmem import PAGE_BYTES

BEGAN_NS = 1_700_000_000_000_000_000  # 22:13:20 UTC, 14 November 2023
END_S = 41
CONTAINER = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
SERVICE, OTHER = "/system.slice/php8.2-fpm.service", f"/docker/{CONTAINER}"
BUILD_ID = "5b0cd6b1" * 5
OTHER_CONTAINER = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
PODS = "/kubepods/burstable"
UID, OTHER_UID = "a5c1f8d5-1919-434d-add7-4afaafdaef89", "0d3f9d0e-7d52-4a63-9a17-2b6f3b1f6a11"
WEB, JOB = ("shop", "web-7d9c8b6f5-x2x7q", "php-fpm"), ("batch", "report-29384760-9xk2p")
BOOT_NS = BEGAN_NS - 10**15
SESSION = {
    "version": "0.1.0",
    "host": "web1",
    "kernel": "6.1.0",
    "tier": "exact",
    "mechanism": "kprobe",
    "blind_to": "",
    "started_ns": BEGAN_NS,
    "ended_ns": BEGAN_NS + END_S * 10**9,
    "complete": 1,
    "shmem_total_bytes": 1000 * PAGE_BYTES,
}


def shmtrace(*arguments: str | Path) -> Result:
    """What a command comes to; its stdout and stderr apart, as they are of themselves since click 8.2."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(main, [str(argument) for argument in arguments])


def at(seconds: float) -> int:
    return BEGAN_NS + int(seconds * 1e9)


def pool(
    path: Path, command: str = "php-fpm: pool www", name: str = "/dev/zero", more_pages: int = 0, moved: bool = False
) -> Path:
    """The opcache: 11 pages before, 23 by 812 (9 of them after 20 s), 7 by 813, 2 unseen. One more region, of 5 pages,
    went at 13 s. 813 is in a container. moved: the same on another boot, where processes and regions have other
    numbers.
    """
    shift = 100 if moved else 0
    boot_ns = BOOT_NS + (10**14 if moved else 0)
    with Capture(path) as capture:
        capture.insert("session", **SESSION)
        for row, (tgid, title, cgroup, started_s, exited_s) in enumerate(
            [
                (811, "php-fpm: master", SERVICE, -60, None),
                (812, command, SERVICE, 1, 30),
                (813, command, OTHER, 5, None),
            ],
            start=1,
        ):
            capture.insert(
                "process",
                id=row,
                tgid=tgid + shift,
                start_time_ns=at(started_s) - boot_ns,
                comm="php-fpm8.2",
                command=title,
                parent_tgid=1 if row == 1 else 811 + shift,
                cgroup=cgroup,
                started_ns=at(started_s),
                exited_ns=None if exited_s is None else at(exited_s),
            )
        for row, pages, gone_s, place in ((1, 43 + more_pages, None, name), (2, 5, 13, "/dev/zero")):
            capture.insert(
                "region",
                id=row,
                dev=1,
                ino=1046 + row + shift,
                generation=7,
                kind="anon",
                name=place,
                size_bytes=256 << 20,
                allocated_bytes=pages * PAGE_BYTES,
                peak_bytes=pages * PAGE_BYTES,
                start_bytes=11 * PAGE_BYTES if row == 1 else 0,
                address=0x10000000 if row == 1 else 0x7F0000000000,
                gone_ns=None if gone_s is None else at(gone_s),
                creator=1,
                creator_how="traced",
                parent=1,
            )
        for region, start, end, process, seconds in [
            (1, 0, 11, None, None),
            (1, 11, 25, 2, 2.5),
            (1, 25, 34, 2, 20.5),
            (1, 50, 57, 3, 20.9),
            (1, 100, 100 + more_pages, 3, 40),
            (2, 0, 5, 3, 7),
        ]:
            times = {} if seconds is None else {"first_ns": at(seconds), "last_ns": at(seconds)}
            if end > start:
                capture.insert("extent", region=region, start=start, end=end, process=process, **times)
        capture.sum_up([1, 2])
        capture.insert("usage", region=1, process=2, faults=None, freed_pages=3)
        for region, seconds, pages in ((1, 0, 11), (1, 3, 27), (2, 8, 5), (1, 21, 43)):
            capture.insert("sample", region=region, time_ns=at(seconds), allocated_bytes=pages * PAGE_BYTES)
    return path


def of_host(path: Path) -> Path:
    """Of the whole host: besides a pool, shared memory of each kind that no process maps."""
    pool(path)
    held = {"holders": 2, "holder": 2063, "holder_command": "/usr/bin/renderer"}
    segment = {"creator": 900, "last_user": 901, "last_user_command": "report-writer", "used_ns": at(-7200)}
    rows: list[tuple[str, str, str, int, int | None, dict[str, object]]] = [
        ("held", "/memfd:cache", "/proc/2063/fd/7", 2063, 2063, held),
        ("sysv", "SysV 0x0000002a", "32769", 1031, 1031, segment),
        ("tmpfs", "/dev/shm", "/dev/shm", 4128, 65536, {"files": 3}),
        ("file", "/dev/shm/export", "/dev/shm/export", 4111, None, {}),
    ]
    with contextlib.closing(sqlite3.connect(path)) as database:
        for kind, name, reach, pages, size_pages, more in rows:
            size_bytes = None if size_pages is None else size_pages * PAGE_BYTES
            row = {"kind": kind, "name": name, "reach": reach, "allocated_bytes": pages * PAGE_BYTES}
            row |= {"size_bytes": size_bytes, **more}
            places = ", ".join(f":{column}" for column in row)
            database.execute(f"INSERT INTO unmapped ({', '.join(row)}) VALUES ({places})", row)  # noqa: S608
        database.execute("UPDATE session SET shmem_total_bytes = 31 * 1048576")
        database.commit()
    return path


def with_oom(path: Path) -> Path:
    """A pool whose 812 was killed by the OOM killer at 30 s, and a process that is none of the pool's at 31 s. Of 47
    pages that the service is charged for, 21 are of 812; by a limit above the container, 813's are charged."""
    pool(path)
    database = sqlite3.connect(path)
    database.execute("UPDATE session SET nr_ooms = 9")
    database.execute("UPDATE process SET exit_status = 9, oom_killed = 1 WHERE id = 2")
    pages = [(31, 5, 17, 47, 40, 47, 9), (101, None, None, 12, 101, 12, 0)]
    kills = [(1, 30, 2, 812, "php-fpm8.2", SERVICE, 4096), (2, 31, None, 977, "stress", "/docker", 128)]
    for (number, second, process, tgid, comm, limit, limit_pages), counts in zip(kills, pages):
        sizes = [None if count is None else count * PAGE_BYTES for count in (limit_pages, *counts)]
        row = (number, at(second), process, tgid, comm, None, f"{limit}/a", limit, *sizes)
        database.execute(f"INSERT INTO oom VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
    database.executemany("INSERT INTO oom_touched VALUES (?, ?, ?, ?)", [(1, 1, 2, 21), (2, 1, 3, 7)])
    database.commit()
    database.close()
    return path


def with_pods(path: Path) -> Path:
    """A pool whose 812 is in a container of a pod, and 813 in one of another pod, whose own name is unknown. 812 was
    killed by the OOM killer, by the limit of its pod."""
    pool(path)
    web, job = f"{PODS}/pod{UID}", f"{PODS}/pod{OTHER_UID}"
    database = sqlite3.connect(path)
    database.execute("UPDATE process SET cgroup = ? WHERE id = 2", (f"{web}/{CONTAINER}",))
    database.execute("UPDATE process SET cgroup = ? WHERE id = 3", (f"{job}/{OTHER_CONTAINER}",))
    names = [(f"{web}/{CONTAINER}", *WEB), (web, *WEB[:2], None), (f"{job}/{OTHER_CONTAINER}", *JOB, None)]
    database.executemany("INSERT INTO cgroup VALUES (?, ?, ?, ?)", names)
    columns = "time_ns, process, tgid, comm, cgroup, limit_cgroup, limit_bytes"
    kill = at(30), 2, 812, "php-fpm8.2", f"{web}/{CONTAINER}", web, 128 * PAGE_BYTES
    database.execute(f"INSERT INTO oom ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", kill)  # noqa: S608
    database.commit()
    database.close()
    return path


def of_tmpfs(path: Path) -> Path:
    """Of a tmpfs of 16 MiB: what one process has written to until it was full, one of before, one deleted and held."""
    with Capture(path) as capture:
        capture.insert("session", **SESSION, tmpfs="/dev/shm")
        for tgid, command, status in [(902, "/usr/bin/exporter --all", 28 << 8), (903, "/usr/bin/renderer", None)]:
            ended = {} if status is None else {"exited_ns": at(9), "exit_status": status}
            comm = command.split()[0].rpartition("/")[2]
            capture.insert("process", tgid=tgid, start_time_ns=tgid, comm=comm, command=command, **ended)
        files = [("/dev/shm/export", 3001, 1), ("/dev/shm/cache/a", 511, 2), ("/dev/shm/old", 377, None)]
        for number, (name, pages, process) in enumerate(files, 1):
            size_bytes = pages * PAGE_BYTES
            sizes = {"size_bytes": size_bytes, "allocated_bytes": size_bytes, "peak_bytes": size_bytes}
            made = {"creator": process, "creator_how": "traced", "parent": process} if process else {}
            start = {"start_bytes": 0 if process else size_bytes}
            places = {"dev": 27, "ino": number, "generation": number, "kind": "posix", "name": name}
            capture.insert("region", **places, **sizes, **start, **made)
            times = {"first_ns": at(1), "last_ns": at(8)} if process else {}
            capture.insert("extent", region=number, start=0, end=pages, process=process, **times)
            capture.sum_up([number])
        rest = {"allocated_bytes": 0, "size_bytes": 4096 * PAGE_BYTES, "files": 5}
        held = {"allocated_bytes": 207 * PAGE_BYTES, "holders": 1, "holder": 903, "holder_command": "/usr/bin/renderer"}
        capture.insert("unmapped", kind="held", name="/dev/shm/gone", reach="/proc/903/fd/7", **held)
        capture.insert("unmapped", kind="tmpfs", name="/dev/shm", reach="/dev/shm", **rest)
        capture.commit()
    return path


def with_stacks(path: Path, function: str = "zend_shared_alloc") -> Path:
    """A pool whose stacks were recorded. 812 made 26 pages, of which it gave 3 back: 20 by that function, 4 by another,
    and of 2 none is known, which the capture says of 1; 813 made its 7 and its 5 by the first.
    """
    pool(path)
    database = sqlite3.connect(path)
    stacks = [(1, None), (2, f"main\n{function}"), (3, "main\nphp-fpm8.2+0x1f0\nmemset")]
    database.executemany("INSERT INTO stack VALUES (?, ?)", stacks)
    made = [(1, 2, 1, 1), (1, 2, 2, 20), (1, 2, 3, 4), (1, 3, 1, 0), (1, 3, 2, 7), (2, 3, 2, 5)]
    database.executemany("INSERT INTO stacked VALUES (?, ?, ?, ?)", made)
    binaries = [(1, "/usr/sbin/php-fpm8.2", BUILD_ID, 0, 8192, 0), (2, "/lib/libc.so.6", None, 4096, 4096, 12288)]
    database.executemany("INSERT INTO binary VALUES (?, ?, ?, ?, ?, ?)", binaries)
    frames = [(2, 0, 1, 16), (2, 1, 1, 32), (3, 0, 1, 16), (3, 1, 1, 0x1F0), (3, 2, 2, 5000)]
    database.executemany("INSERT INTO frame VALUES (?, ?, ?, ?)", frames)
    database.commit()
    database.close()
    return path


def with_labels(path: Path, text: str = "/srv/www/vendor/autoload.php") -> Path:
    """A pool whose labels are PHP's. 812 had its first 14 pages for that file, of its 9 later ones it is not known; 813
    had 7 for one more file of the same script, and the 5 that are gone between two requests.
    """
    pool(path)
    database = sqlite3.connect(path)
    database.execute("UPDATE session SET label = 'php:file'")
    script = "/srv/www/index.php"
    labels = [(1, script, "/?a=1", text), (2, script, "/?a=2", script), (3, None, None, None)]
    database.executemany("INSERT INTO label (id, script, request, file) VALUES (?, ?, ?, ?)", labels)
    for label, region, start in [(1, 1, 11), (2, 1, 50), (3, 2, 0)]:
        database.execute("UPDATE extent SET label = ? WHERE region = ? AND start = ?", (label, region, start))
    database.execute("DELETE FROM touched")
    database.executemany(SUM_UP, [(1,), (2,)])
    database.commit()
    database.close()
    return path
