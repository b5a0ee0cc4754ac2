"""Record the captures that the views are tested with: as root, with php-fpm and PostgreSQL installed.

python -m tests.captures [NAME...]
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.captures import dump
from tests.live.fpm import Fpm, running_fpm, script_names
from tests.live.parent import recording, stop
from tests.live.postgres import running_postgres
from tests.live.reports import ROOT, SHMTRACE
from tests.live.workload import build
from tracer.capture.capture import Capture
from tracer.record import snapshot
from tracer.record.targets import Targets

HOST = "web1"
CGROUP = "/system.slice/pool.service"
SCRIPTS = 120
HOSTILE = {
    "comm": "\x1b]0;pwned\x07\n=1+1",
    "command": "<script>alert(1)</script> ; -- \u202egpj.exe \\xff\\xfe",
    "path": "@SUM(1)\u2028/" + "x" * 4096,
}


@contextmanager
def recorded(path: Path, tgid: int, *options: str) -> Iterator[None]:
    with recording(path, tgid, *options) as recorder:
        yield
        stop(recorder)


def fill(fpm: Fpm, scripts: list[str]) -> None:
    for name in scripts:
        fpm.ask(name)
        time.sleep(0.01)


def php_fpm(path: Path) -> None:
    """Workers are replaced after 25 requests, and the pool is reloaded in between."""
    with running_fpm(SCRIPTS, max_requests=25) as fpm, recorded(path, fpm.tgid):
        fill(fpm, script_names(SCRIPTS)[:70])
        fpm.process.send_signal(signal.SIGUSR2)
        time.sleep(1)
        fpm.wait_until_up()
        fill(fpm, script_names(SCRIPTS))
        fpm.ask("store.php")


def pool(path: Path) -> None:
    """The README's report: a pool whose workers are replaced while it fills."""
    with running_fpm(SCRIPTS, max_requests=25) as fpm, recorded(path, fpm.tgid):
        fill(fpm, script_names(SCRIPTS))
        time.sleep(0.5)


def postgres(path: Path) -> None:
    with running_postgres("64MB") as server, recorded(path, server.tgid):
        server.run("pgbench", "-i", "-s", "1", "-q")
        server.run("pgbench", "-c", "3", "-t", "50")


def cut_off(path: Path) -> None:
    """The recorder is killed while the pool fills."""
    with running_fpm(SCRIPTS, max_requests=25) as fpm, recording(path, fpm.tgid):
        fill(fpm, script_names(SCRIPTS))


def hostile(path: Path) -> None:
    """Names that strangers chose, in place of a small one's."""
    with running_fpm(7, max_requests=5) as fpm, recorded(path, fpm.tgid, "--label", "php:file"):
        fill(fpm, script_names(7))
    database = sqlite3.connect(path)
    database.execute("UPDATE process SET comm = :comm, command = :command || tgid, cgroup = :path", HOSTILE)
    database.execute("UPDATE region SET name = :path || ino", HOSTILE)
    database.execute("UPDATE exec SET comm = :comm, command = :command", HOSTILE)
    database.execute("UPDATE session SET warnings = :command", HOSTILE)
    # each is another still, as they have to be
    database.execute("UPDATE label SET script = :command || id, request = :comm || id, file = :path || id", HOSTILE)
    database.commit()
    database.close()


def labels(path: Path) -> None:
    """Of requests, two of which include what the others are."""
    with running_fpm(23) as fpm:
        for name, included in (("all.php", script_names(23)[5:11]), ("more.php", script_names(23)[11:20])):
            lines = "".join(f"include '{fpm.directory / each}';" for each in included)
            (fpm.directory / name).write_text(f"<?php {lines}")
        with recorded(path, fpm.tgid, "--label", "php:file"):
            fill(fpm, [*script_names(23)[:5], "all.php?page=7", "more.php?page=<b>", "store.php"])


def a_snapshot(path: Path) -> None:
    with running_fpm(SCRIPTS) as fpm, Capture(path) as capture:
        fpm.ask_for(script_names(40))
        snapshot.take(capture, Targets(frozenset([fpm.tgid]), ()))


def exact(path: Path) -> None:
    """Pages that are made without a fault, for others, and given back: to be recorded where there is the exact tier."""
    workloads = ["written", "written_across_child", "uffd_copied", "uring_written", "fallocated", "holed"]
    program = build(path.parent)
    line = 'program=$1; shift; for name; do "$program" "$name" /dev/null </dev/null; done'
    command = [*SHMTRACE, "record", "-o", str(path), "--", "sh", "-c", line, "sh", str(program), *workloads]
    subprocess.run(command, cwd=ROOT, check=True)
    with Capture.open(path) as capture:
        [(tier,)] = capture.rows("SELECT tier FROM session")
    if tier != "exact":
        sys.exit(f"this kernel has the tier {tier}: run it in a guest, as tests/kernels does")


RECORDERS: dict[str, Callable[[Path], None]] = {
    "php_fpm": php_fpm,
    "pool": pool,
    "postgres": postgres,
    "cut_off": cut_off,
    "hostile": hostile,
    "labels": labels,
    "snapshot": a_snapshot,
    "exact": exact,
}


def main() -> None:
    for name in sys.argv[1:] or RECORDERS:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "capture")
            RECORDERS[name](path)
            database = sqlite3.connect(path)
            database.execute("UPDATE session SET host = ?", (HOST,))
            database.execute("UPDATE process SET cgroup = ? WHERE cgroup NOT LIKE '@%'", (CGROUP,))
            database.commit()
            database.close()
            dump(path, name)
        print(name)


if __name__ == "__main__":
    main()
