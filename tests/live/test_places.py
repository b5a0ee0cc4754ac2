"""Containers, made by namespaces and cgroups: who is charged, by the kernel's own account, and who is called what."""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.cgroups import Group, comes_to, groups
from tests.live.reports import ROOT, SHMTRACE, find_region, trace, trace_command
from tests.live.shmem import PAGE_BYTES
from tests.live.workload import Stepped, stepped
from tracer.proc.procfs import Proc

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc", "unshare")]

KPAGECGROUP = Path("/proc/kpagecgroup")  # of CONFIG_PROC_PAGE_MONITOR
PRESENT = 1 << 63
PFN = (1 << 55) - 1


def charged_pages(tgid: int) -> Counter[int]:
    """By the inode of the cgroup: what a process has mapped of its memfd, page frame for page frame."""
    (mapping,) = [mapping for mapping in Proc().mappings(tgid) if mapping.path.startswith("/memfd:pool")]
    pages = (mapping.end - mapping.start) // PAGE_BYTES
    with open(f"/proc/{tgid}/pagemap", "rb") as pagemap, KPAGECGROUP.open("rb") as owners:
        entries = struct.unpack(f"={pages}Q", os.pread(pagemap.fileno(), 8 * pages, mapping.start // PAGE_BYTES * 8))
        frames = [entry & PFN for entry in entries if entry & PRESENT]
        return Counter(struct.unpack("=Q", os.pread(owners.fileno(), 8, 8 * frame))[0] for frame in frames)


@contextmanager
def contained(program: Path, notes: Path, name: str, *in_groups: Group) -> Iterator[Stepped]:
    """A workload of places.c."""
    env = {f"GROUP_{letter}": str(group.directory / "cgroup.procs") for letter, group in zip("AB", in_groups)}
    with stepped(program, name, notes, **env) as workload:
        workload.wait_for("running")
        yield workload


def report(capture: Path, *options: str) -> dict[str, object]:
    done = subprocess.run([*SHMTRACE, "report", str(capture), *options], cwd=ROOT, capture_output=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_two_containers_share_a_memfd(program: Path, tmp_path: Path) -> None:
    """A, which makes it and 23 pages of it, and B, which uses these, and makes 7."""
    web, job = f"lxc.payload.web{os.getpid()}", secrets.token_hex(32)
    with groups(web, job) as (a, b), contained(program, tmp_path / "notes", "contained", a, b) as workload:
        capture = tmp_path / "capture"
        with trace("-p", workload.tgid, "-o", capture) as running:
            workload.go()
            notes = workload.wait_for("grown")
            comes_to(a, "shmem", 23)
            comes_to(b, "shmem", 7)
            if KPAGECGROUP.exists():
                assert charged_pages(b.tgids()[-1]) == {row.directory.stat().st_ino: n for row, n in ((a, 23), (b, 7))}
            hosts = {row.directory: row.tgids() for row in (a, b)}
            found = running.stop()
        workload.go()
        workload.finish()
    region = find_region(found, notes.regions["pool"].id)
    assert region["unseen_bytes"] == region["before_bytes"] == 0
    assert region["creator"]["cgroup"] == a.path
    assert (region["creator"]["container"], region["creator"]["ns_tgid"]) == (web.partition("payload.")[2], 1)
    assert region["charged"] == [
        {"cgroup": a.path, "bytes": 23 * PAGE_BYTES},
        {"cgroup": b.path, "bytes": 7 * PAGE_BYTES},
    ]
    touched = [
        (row["process"]["tgid"], row["process"]["ns_tgid"], row["touched_bytes"] // PAGE_BYTES)
        for row in region["touchers"]
    ]
    assert touched == [(hosts[a.directory][-1], 1, 23), (hosts[b.directory][-1], 2, 7)]
    rows = report(capture, "--by", "container", "--json")["rows"]
    assert isinstance(rows, list)
    held = {row["container"]: row["allocated_bytes"] // PAGE_BYTES for row in rows if row["part"] == "touched"}
    assert held == {web.partition("payload.")[2]: 23, job: 7}
    text = subprocess.run([*SHMTRACE, "report", capture], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    assert "charged 92.0 KiB to" in text
    assert re.search(rf"^ +{hosts[b.directory][-1]} .* \(2\) ", text, re.MULTILINE)


# ---- private memory ----

LAG_PAGES = 64 * (os.cpu_count() or 1)
"""That memory.stat may leave out; and each process has some for its stack and its libc."""


def private_pages(found: Mapping[str, Any]) -> tuple[int, int]:
    return found["private_start_bytes"] // PAGE_BYTES, found["private_end_bytes"] // PAGE_BYTES


def test_private_memory_of_a_cgroup_is_exact(program: Path, tmp_path: Path) -> None:
    """Each of 3 children shares 2003 pages with its parent, and 101 of these not any more."""
    name = f"shmtrace-{os.getpid()}"
    with groups(name) as (group,), contained(program, tmp_path / "notes", "forked", group) as workload:
        with trace("-p", workload.tgid) as running:
            workload.go()
            workload.wait_for("grown")
            found = running.stop()
        workload.go()
        workload.finish()
    start, end = private_pages(found)
    assert found["private_how"] == "memory.stat"
    assert 2003 <= start + LAG_PAGES <= 2003 + 2 * LAG_PAGES
    assert 303 <= end - start + LAG_PAGES <= 303 + 2 * LAG_PAGES


def test_private_memory_beside_others_is_at_most_that(program: Path, tmp_path: Path) -> None:
    """What forked processes share counts for each of them."""
    with contained(program, tmp_path / "notes", "forked") as workload:
        with trace("-p", workload.tgid) as running:
            workload.go()
            workload.wait_for("grown")
            found = running.stop()
        workload.go()
        workload.finish()
    start, end = private_pages(found)
    assert found["private_how"] == "status"
    assert 2003 <= start <= 2003 + LAG_PAGES
    assert 4 * 2003 <= end <= 4 * (2003 + LAG_PAGES)


def test_private_memory_of_the_dead_is_none(program: Path, tmp_path: Path) -> None:
    with contained(program, tmp_path / "notes", "forked") as workload, trace("-p", workload.tgid) as running:
        workload.go()
        workload.wait_for("grown")
        workload.go()
        workload.finish()
        found = running.finish()
    assert private_pages(found)[0] >= 2003
    assert private_pages(found)[1] == 0


LEAVER = """
import mmap, time
mmap.mmap(-1, 23 * 4096).write(b"x" * (7 * 4096))
private = bytearray(b"x") * (101 << 20)
time.sleep(2.5)
"""


def test_private_memory_that_came_and_went() -> None:
    """Who ends with it has none at the end, but had it."""
    found = trace_command(sys.executable, "-c", LEAVER)
    start_bytes, peak_bytes = found["private_start_bytes"], found["private_peak_bytes"]
    assert private_pages(found)[1] == 0
    assert 101 << 20 <= peak_bytes < 160 << 20
    assert found["answer"]["private_peak_grown_bytes"] == peak_bytes - start_bytes
    assert "then shrank by" in found["answer"]["text"]


# ---- PID namespaces ----


IN_ITS_OWN = ["unshare", "--pid", "--fork", "--mount-proc"]


def test_a_process_of_another_pid_namespace(program: Path, tmp_path: Path) -> None:
    """The host's number is what -p takes; both are told, in a snapshot too."""
    notes = tmp_path / "notes"
    with subprocess.Popen([*IN_ITS_OWN, program, "grown", notes], stdin=subprocess.PIPE) as process:
        try:
            workload = Stepped(process, notes)
            workload.wait_for("running")
            (main,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            line = [*SHMTRACE, "snapshot", "-p", str(main), "--json"]
            seen = json.loads(subprocess.run(line, cwd=ROOT, capture_output=True, check=True).stdout)
            assert seen["parents"][0]["process"]["ns_tgid"] == 1
            with trace("-p", main) as running:
                workload.go()
                noted = workload.wait_for("grown")
                found = running.stop()
            workload.go()
            workload.finish()
        finally:
            process.kill()
    region = find_region(found, noted.regions["pool"].id)
    assert (region["creator"]["tgid"], region["creator"]["ns_tgid"]) == (main, 1)
    touched = {row["process"]["ns_tgid"]: row["touched_bytes"] // PAGE_BYTES for row in region["touchers"]}
    numbers = {part: tgid for tgid, part in noted.parts.items()}
    assert touched[numbers["B"]] == 8  # which lives long enough to be looked at


def test_in_a_pid_namespace_of_its_own() -> None:
    """It cannot trace, and says so in a line; the doctor says it, and a snapshot works."""
    done = subprocess.run([*IN_ITS_OWN, *SHMTRACE, "-a", "-d", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    assert "this PID namespace is not the host's" in done.stderr
    assert "docker run --pid=host …" in done.stderr
    doctor = subprocess.run([*IN_ITS_OWN, *SHMTRACE, "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert doctor.returncode == 1
    assert re.search(
        r"^missing  PID namespace .*\n(?:  .*\n)*? +fix: docker run --pid=host …", doctor.stdout, re.MULTILINE
    )
    snapshot = subprocess.run([*IN_ITS_OWN, *SHMTRACE, "snapshot"], cwd=ROOT, capture_output=True, text=True)
    assert (snapshot.returncode, snapshot.stderr) == (0, "")


LIMIT_BYTES = 48 << 20
LIMITS = "memory.max", "memory.limit_in_bytes"
GREEDY = f"""
import mmap, os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
pool = mmap.mmap(-1, {LIMIT_BYTES * 2})
for page in range(len(pool) // {PAGE_BYTES}):
    pool[page * {PAGE_BYTES}] = 1
"""


def test_who_was_killed_by_the_oom_killer() -> None:
    """It had filled what its cgroup may have: the pages are its own, and it is said how it ended."""
    with groups(f"shmtrace-oom-{os.getpid()}") as [group]:
        limit = next(group.directory / name for name in LIMITS if (group.directory / name).exists())
        limit.write_text(str(LIMIT_BYTES))
        line = [sys.executable, "-c", GREEDY, group.directory / "cgroup.procs"]
        report = trace_command("sh", "-c", '"$@"; exit 0', "sh", *line)
    [row] = [toucher for region in report["regions"] for toucher in region["touchers"] if toucher["touched_bytes"]]
    assert (row["process"]["exit_code"], row["process"]["exit_signal"]) == (None, "SIGKILL")
    assert row["process"]["oom_killed"]
    assert LIMIT_BYTES / 2 < row["touched_bytes"] <= LIMIT_BYTES
    assert not any(
        parent["process"]["oom_killed"] for parent in report["parents"] if parent["process"] != row["process"]
    )
