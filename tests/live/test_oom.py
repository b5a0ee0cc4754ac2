"""What the OOM killer did: whose limit was reached, and who had filled it, by the kernel's own account and log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.live.cgroups import Group, comes_to, groups, limit
from tests.live.reports import ROOT, SHMTRACE, Trace, assert_balanced, read_report, trace, trace_command
from tests.live.shmem import PAGE_BYTES
from tests.live.tiers import shmtrace
from tracer.formatting import format_bytes
from tracer.kernel import tiers
from tracer.record.oom import MOST_OF_OTHERS

pytestmark = pytest.mark.bpf

LIMIT_BYTES = (88 << 20) + 2048 * PAGE_BYTES
"""Room for the pool, and for some private memory, whose size is not in pages."""
TOUCHED = {"owner": 13, "filler-7": 1013, "filler-8": 707, "keeper": 29, "victim": 211}
"""Pages of the pool. Both fillers are dead when the victim is killed."""
COUNTED_PAGES = 64 * (os.cpu_count() or 1)  # what memory.stat and the counters of a process may not have added up yet

PRELUDE = """
import ctypes, mmap, os, signal, sys
def named(name):
    ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
def burst():
    open("/proc/self/oom_score_adj", "w").write("1000")
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))
"""
POOL = f"""{PRELUDE}
open(sys.argv[1], "w").write(str(os.getpid()))
pool, end = mmap.mmap(-1, 4096 * {PAGE_BYTES}), 0
def touch(pages):
    global end
    for page in range(end, end + pages):
        pool[page * {PAGE_BYTES}] = 1
    end += pages
def part(name, pages, then):
    global end
    reader, writer = os.pipe()
    tgid = os.fork()
    if not tgid:
        named(name)
        touch(pages)
        os.write(writer, b"x")
        then()
        os._exit(0)
    os.read(reader, 1)
    end += pages
    return tgid
def burst_when_told():
    os.read(go, 1)
    burst()
go, told = os.pipe()
named(b"owner")
print("ready", flush=True)
sys.stdin.readline()
touch({TOUCHED["owner"]})
for name in (b"filler-7", b"filler-8"):
    os.waitpid(part(name, {TOUCHED} [name.decode()], lambda: None), 0)
part(b"keeper", {TOUCHED["keeper"]}, signal.pause)
victim = part(b"victim", {TOUCHED["victim"]}, burst_when_told)
print(victim, flush=True)
sys.stdin.readline()
os.write(told, b"x")
print(os.waitpid(victim, 0)[1], flush=True)
sys.stdin.readline()
os.killpg(0, signal.SIGKILL)
"""
STRANGER = f"""{PRELUDE}
open(sys.argv[1], "w").write(str(os.getpid()))
for number in range(int(sys.argv[2])):
    tgid = os.fork()
    if not tgid:
        named(b"\\x1b[31mevil\\n%d" % number)
        burst()
    os.waitpid(tgid, 0)
"""


class Pool:
    """A pool in a cgroup: each line that it is told takes it a step further, and it says one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.tgid = process.pid

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go(self) -> str:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()


@contextmanager
def pool(group: Group, script: Path) -> Iterator[Pool]:
    script.write_text(POOL)
    line = [sys.executable, script, group.directory / "cgroup.procs"]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield Pool(process)
        finally:
            os.killpg(process.pid, 9)


def adds_up() -> bool:
    """Whether memory.stat comes to be exact in time.

    Before Linux kernel commit 2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in v5.13), what each CPU has was added
    only when it was more than a batch.
    """
    with open("/proc/kallsyms") as symbols:
        return any(" mem_cgroup_css_rstat_flush" in line for line in symbols)


@contextmanager
def tracing_another(*options: object) -> Iterator[Trace]:
    """A trace of a process that has nothing to do with any kill."""
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        try:
            with trace("-p", sleeper.pid, *options) as traced:
                yield traced
        finally:
            sleeper.kill()


def anon_name(group: Group) -> str:
    return "total_rss" if (group.directory / "memory.limit_in_bytes").exists() else "anon"


def records(log: int) -> Iterator[str]:
    while True:
        with suppress(BrokenPipeError):  # it was overwritten meanwhile
            try:
                yield os.read(log, 8192).decode(errors="replace")
            except BlockingIOError:  # there are no more
                return


def killed_by_log(tgid: int) -> dict[str, int]:
    """KiB by name, as the kernel's log has them of this victim."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        lines = list(records(log))
    finally:
        os.close(log)
    (line,) = [line for line in lines if f"Killed process {tgid} " in line]
    return {name: int(kib) for name, kib in re.findall(r"(\w+)-rss:(\d+)kB", line)}


def test_who_filled_what_the_victim_was_killed_for(tier: str, tmp_path: Path) -> None:
    """In the tree. The victim is the one that has least of it: what it is killed for was touched by others."""
    pages = sum(TOUCHED.values())
    within_pages = 0 if adds_up() else COUNTED_PAGES
    with groups(f"shmtrace-oom-{os.getpid()}") as [group], pool(group, tmp_path / "pool.py") as running:
        limit(group, LIMIT_BYTES)
        assert running.says() == "ready"
        with trace("-p", running.tgid, shmtrace=shmtrace(tier)) as traced:
            victim = int(running.go())
            comes_to(group, "total_shmem" if anon_name(group) == "total_rss" else "shmem", pages, within_pages)
            before_bytes = group.stat_bytes(anon_name(group))
            assert running.go() == "9"
            report = traced.stop()
        after_bytes = group.stat_bytes(anon_name(group))
    assert report["nr_ooms"] == 1
    [kill] = report["ooms"]
    assert (kill["tgid"], kill["comm"], kill["process"]["tgid"]) == (victim, "victim", victim)
    assert kill["process"]["oom_killed"]
    assert (kill["cgroup"], kill["limit_cgroup"], kill["limit_bytes"]) == (group.path, group.path, LIMIT_BYTES)
    touched: Counter[str] = Counter()
    for row in kill["touched"]:
        touched[row["process"]["comm"]] += row["touched_bytes"] // PAGE_BYTES
    assert touched == TOUCHED
    assert kill["shmem_before_bytes"] == kill["shmem_after_bytes"]
    assert abs(kill["shmem_before_bytes"] - pages * PAGE_BYTES) <= within_pages * PAGE_BYTES
    assert kill["unnamed_bytes"] == max(kill["shmem_before_bytes"] - pages * PAGE_BYTES, 0)
    log = killed_by_log(victim)
    for name in ("anon", "file", "shmem"):
        assert abs(kill[f"{name}_bytes"] - log[name] * 1024) <= COUNTED_PAGES * PAGE_BYTES, name
    # its private memory is what grew, and what went
    assert kill["anon_bytes"] > LIMIT_BYTES - before_bytes - pages * PAGE_BYTES - (8 << 20)
    assert abs(kill["anon_after_bytes"] - after_bytes) <= COUNTED_PAGES * PAGE_BYTES
    assert kill["anon_after_bytes"] < before_bytes
    first, second, third, *_ = report["answer"]["text"].split(". ")
    assert re.fullmatch(
        rf"OOM kill at [\d:]+: victim \(PID {victim}\) in \S+, limit {format_bytes(LIMIT_BYTES)}", first
    )
    owner, *fillers, keeper, victims = (nr_pages * PAGE_BYTES for nr_pages in TOUCHED.values())
    rows = {"filler-#": sum(fillers), "victim": victims, "keeper": keeper, "others": owner}
    told = ", ".join(f"{name} {format_bytes(size_bytes)}" for name, size_bytes in rows.items())
    charged = f"Shared memory charged there: {format_bytes(kill['shmem_before_bytes'])}"
    assert second.startswith(f"{charged}, first touched by {told}")
    assert re.fullmatch(r"The kill freed at most [\d.]+ MiB of private memory; the shared pages stay", third)


def test_others_are_recorded_too_and_only_so_many(tmp_path: Path) -> None:
    """A stranger has himself killed again and again, with a name and in a cgroup that would paint the terminal."""
    nr_kills = MOST_OF_OTHERS + 5
    capture = tmp_path / "capture"
    name = f"shmtrace-oom-{os.getpid()} \x1b[31m. Nothing grew"
    with groups(name) as [group], tracing_another("-o", capture) as traced:
        limit(group, 24 << 20)
        line = [sys.executable, "-c", STRANGER, group.directory / "cgroup.procs", str(nr_kills)]
        subprocess.run(line, check=True)
        report = traced.stop()
    assert report["nr_ooms"] == nr_kills
    kills: list[dict[str, Any]] = report["ooms"]
    assert [kill["comm"] for kill in kills] == [f"\x1b[31mevil\n{number}" for number in range(MOST_OF_OTHERS)]
    assert {(kill["process"], kill["cgroup"], kill["limit_bytes"]) for kill in kills} == {(None, group.path, 24 << 20)}
    assert all(8 << 20 < kill["anon_bytes"] < 48 << 20 for kill in kills)  # with what its parent made elsewhere
    said = subprocess.run([*SHMTRACE, "report", capture], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert said.startswith(f"{MOST_OF_OTHERS} OOM kills from ")
    assert "5 more OOM kills." in " ".join(said.split())
    assert all(line.isprintable() for line in said.splitlines())


def test_a_limit_above_the_victims_own_cgroup() -> None:
    """The victim's own has a limit, too, and the one beside it has reached its own before."""
    name = f"shmtrace-oom-{os.getpid()}"
    with groups(name, f"{name}/own", f"{name}/beside") as [above, own, beside]:
        for group, limit_bytes in ((above, 40 << 20), (own, 200 << 20), (beside, 24 << 20)):
            limit(group, limit_bytes)
        with tracing_another() as traced:
            for group in (beside, own):
                subprocess.run([sys.executable, "-c", STRANGER, group.directory / "cgroup.procs", "1"], check=True)
            report = traced.stop()
    found = [(kill["cgroup"], kill["limit_cgroup"], kill["limit_bytes"]) for kill in report["ooms"]]
    assert found == [(beside.path, beside.path, 24 << 20), (own.path, above.path, 40 << 20)]


def test_a_kernel_without_the_tracepoint() -> None:
    """Whether there was a kill is unknown then, and said to be."""
    elsewhere = "probe._replace(points=('oom:absent',)) if probe.program == 'mark_victim' else probe"
    statement = f"tiers.FAULTS.probes[:] = [{elsewhere} for probe in tiers.FAULTS.probes]"
    report = trace_command("true", shmtrace=shmtrace("faults", statement))
    assert report["nr_ooms"] is None
    assert tiers.OOM in report["blind_to"]


def test_what_led_to_a_kill_is_kept(tmp_path: Path) -> None:
    """record --keep-on-oom: there is no file until it happens; then it has the kill, and who had filled it."""
    path = tmp_path / "oom.capture"
    with groups(f"shmtrace-oom-{os.getpid()}") as [group], pool(group, tmp_path / "pool.py") as running:
        limit(group, LIMIT_BYTES)
        assert running.says() == "ready"
        command = [*SHMTRACE, "record", "-p", str(running.tgid), "--keep-on-oom", str(path)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as recording:
            try:
                assert recording.stderr
                assert "tracing" in recording.stderr.readline()
                victim = int(running.go())
                assert not path.exists()
                assert running.go() == "9"
                assert f"an OOM kill: the last hour is in {path}" in recording.stderr.readline()
            finally:
                recording.terminate()
                recording.communicate()
    said = subprocess.run([*SHMTRACE, "report", path, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    report = read_report(said)
    assert_balanced(report)
    [kill] = report["ooms"]
    assert (kill["tgid"], report["nr_ooms"]) == (victim, 1)
    touched: Counter[str] = Counter()
    for row in kill["touched"]:
        touched[row["process"]["comm"]] += row["touched_bytes"] // PAGE_BYTES
    assert touched == TOUCHED
