"""What shmtrace itself takes: CPU by page touched, and memory by what is touched, whatever the size of a region."""

from __future__ import annotations

import re
import signal
import statistics
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.bench.rounds import run_rounds
from tests.live import many
from tests.live.reports import Report, trace
from tests.live.shmem import PAGE_BYTES

MIB = 1 << 20
PAGES, PROCESSES, FOR_S = 1_000_000, 8, 5
TURNS = {"a slice each": PAGES // PROCESSES, "16 pages by turns": 16}
SAMPLED_S = 2.0  # it has looked at what was touched by then
SPARSE = [(gib, pages) for gib in (1, 16, 64) for pages in (1 << 10, 1 << 18)]


class Traced(NamedTuple):
    cpu_s: float
    """of shmtrace, from when it traces to its end"""
    touching_cpu_s: float
    """of the processes, while they touched"""


def owned_pages(report: Report) -> int:
    touchers = (toucher for region in report["regions"] for toucher in region["touchers"])
    return sum(toucher["touched_bytes"] for toucher in touchers) // PAGE_BYTES


def traced(program: Path, pages: int, turn: int) -> Traced:
    with (
        many.waiting(program, f"touch {pages} {PROCESSES} {turn} {FOR_S}") as touching,
        trace("-p", touching.tgid) as tracing,
    ):
        began_s = many.cpu_seconds(tracing.process.pid)
        found = touching.go()
        touching.end()  # and the trace with it: one that is told to stop has no time for all of it on a busy host
        report = many.read(tracing.process)
    assert owned_pages(report.report) == pages
    return Traced(report.cpu_s - began_s, found["cpu"])


def bench_cpu(directory: Path, rounds: int) -> None:
    """Against the same without a touch, of the same round."""
    program = many.build(directory)
    spent: dict[str, list[Traced]] = {name: [] for name in ("none", *TURNS)}

    def measure(name: str) -> float:
        spent[name].append(traced(program, PAGES if name in TURNS else 0, TURNS.get(name, 1)))
        return spent[name][-1].cpu_s

    run_rounds({name: partial(measure, name) for name in spent}, rounds)
    print(f"\nshmtrace's own CPU, {PAGES:,} pages touched by {PROCESSES} processes in {FOR_S} s; {rounds} rounds")
    print(f"  {'':<24}{'s a million touches':>22}{'worst':>8}{'of the CPU of the faults':>28}  goal")
    for name in TURNS:
        own_s = [(one.cpu_s - idle.cpu_s) * 1e6 / PAGES for one, idle in zip(spent[name], spent["none"])]
        shares = [own / (one.touching_cpu_s * 1e6 / PAGES) for own, one in zip(own_s, spent[name])]
        print(f"  {name:<24}{statistics.median(own_s):>22.2f}{max(own_s):>8.2f}", end="")
        print(f"{statistics.median(shares):>28.2f}  0.5 s")


def map_bytes(tgid: int) -> int:
    """Of all BPF maps that a process has open, in the kernel."""
    found = {}
    for path in Path(f"/proc/{tgid}/fdinfo").iterdir():
        fields = dict(re.findall(r"^(map_id|memlock):\s+(\d+)$", path.read_text(), re.MULTILINE))
        if "map_id" in fields:
            found[fields["map_id"]] = int(fields["memlock"])
    return sum(found.values())


def anonymous_bytes(tgid: int) -> int:
    """Of its RSS what is its own: maps that are mapped, and libraries, are not."""
    (size_kib,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{tgid}/status").read_text(), re.MULTILINE)
    return int(size_kib) * 1024


def bench_ledger(directory: Path) -> None:
    """Of a sparse region, for its size is what a ledger must not be as large as."""
    program = many.build(directory)
    print(f"\n{'memory of a trace, MiB':<34}{'BPF maps before':>18}{'after':>10}{'RssAnon before':>18}{'after':>10}")
    for gib, pages in SPARSE:
        with many.waiting(program, f"sparse {gib} {pages}") as process, trace("-p", process.tgid) as tracing:
            tgid = tracing.process.pid
            before = map_bytes(tgid), anonymous_bytes(tgid)
            process.go()
            time.sleep(SAMPLED_S)
            after = map_bytes(tgid), anonymous_bytes(tgid)
            tracing.process.send_signal(signal.SIGINT)
            report = many.read(tracing.process).report
        assert owned_pages(report) + report["lost"]["pages"] == pages
        lost = f"  {report['lost']['pages']} pages had no room" if report["lost"]["pages"] else ""
        figures = [before[0], after[0], before[1], after[1]]
        print(f"  {gib:>3} GiB, {pages:>7,} pages touched  ", end="")
        print("".join(f"{size / MIB:>{width}.1f}" for size, width in zip(figures, (18, 10, 18, 10))) + lost)
