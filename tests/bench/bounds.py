"""How soon the answer is there, and how much of it, of more than a host has on most days: tests/live/many.c."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any, NamedTuple

from tests.bench.rounds import run_rounds
from tests.live import many
from tests.live.reports import Report, trace
from tests.live.shmem import PAGE_BYTES

COUNTS = (400, 1600, 6400, 12000)
CHURN_S = 30
UNHEARD_REGIONS, IDLE = 15981, 400


class Case(NamedTuple):
    title: str
    what: str
    pages: int | None
    """that it makes; None: the program says"""
    goal_s: float | None
    """for the report to be there, after the last of it"""


CASES = [
    Case("20,000 regions in 5 s", "burst 20000 4000", 20000 * 13, None),
    Case("5,000 regions at once", "at_once 5000", 5000 * 2, None),
    Case("40 processes, 256 regions each", "mapped 256 40", 256 * 40, None),
    Case("30,000 children of a moment in 30 s", "forks 30000 1000 0", 30000 * 3, 1.0),
    Case("the same, 10,000 of them at once", "forks 30000 1000 10", 30000 * 3, 1.0),
    Case(f"regions of a page, {CHURN_S} s long", f"churn {CHURN_S}", None, None),
]


class Sums(NamedTuple):
    regions: int
    allocated_pages: int
    owned_pages: int
    unseen_pages: int

    @classmethod
    def of(cls, report: Report) -> Sums:
        regions = report["regions"]
        touchers = [toucher for region in regions for toucher in region["touchers"]]

        def pages(rows: Sequence[dict[str, Any]], column: str) -> int:
            return sum(row[column] for row in rows) // PAGE_BYTES

        return cls(
            len(regions),
            pages(regions, "allocated_bytes"),
            pages(touchers, "touched_bytes"),
            pages(regions, "unseen_bytes"),
        )


def bench(directory: Path, rounds: int) -> None:
    program = many.build(directory)
    bench_growth(program, min(rounds, 3))
    print(f"\n{'once each':<38}{'took':>8}{'owned':>9}{'of':>9}{'unseen':>9}{'lost':>8}", end="")
    print(f"{'CPU':>9}{'report after':>14}  goal")
    for case in CASES:
        found = many.run(program, case.what)
        pages = int(found.values["made"]) if case.pages is None else case.pages
        print_row(case, found.values.get("took"), pages, found)
    bench_unheard(program)


def bench_growth(program: Path, rounds: int) -> None:
    """Of many short regions, from the last of them to the report. CPU is of all of the trace, whatever else the host
    does: what one region more takes of it must not grow."""
    cpu_s: dict[int, list[float]] = {count: [] for count in COUNTS}

    def seconds(count: int) -> float:
        found = many.run(program, f"burst {count} 0")
        assert Sums.of(found.report)[:3] == (count, count * 13, count * 13)
        cpu_s[count].append(found.cpu_s)
        return found.after_s

    measured = run_rounds({str(count): partial(seconds, count) for count in COUNTS}, rounds)
    print(f"\nfrom the last of many short regions to the report; {rounds} rounds, median [all of them]")
    known: tuple[int, float] | None = None
    for count, values in zip(COUNTS, measured.values()):
        spent_s = statistics.median(cpu_s[count])
        each = f"{(spent_s - known[1]) * 1000 / (count - known[0]):.2f} ms each more" if known else ""
        print(f"  {count:>6} regions {statistics.median(values):>7.2f} s [{min(values):.2f} {max(values):.2f}]", end="")
        print(
            f"{spent_s:>10.2f} s of CPU {each:>20}{'  goal 10 s' if count == COUNTS[-1] else ''}".rstrip(), flush=True
        )
        known = count, spent_s


def bench_unheard(program: Path) -> None:
    """The trace is stopped while more happens than there are events for, and let go on after its end has come."""
    with (
        many.waiting(program, f"unheard {UNHEARD_REGIONS} {IDLE}") as process,
        trace("-p", process.tgid, "-d", 2) as tracing,
    ):
        began_s = time.monotonic()
        tracing.process.send_signal(SIGSTOP)
        process.go()
        time.sleep(max(began_s + 2 - time.monotonic(), 0))
        began_s = time.monotonic()
        tracing.process.send_signal(SIGCONT)
        found = many.read(tracing.process)
    found = found._replace(after_s=found.after_s - began_s)
    report = found.report
    case = Case(f"{UNHEARD_REGIONS} regions while stopped, {IDLE} idle", "", UNHEARD_REGIONS, 5.0)
    print_row(case, None, UNHEARD_REGIONS, found)
    touchers = [toucher["process"] for region in report["regions"] for toucher in region["touchers"]]
    named = sum(region["name"] != "?" for region in report["regions"])
    print(f"  {named} of {UNHEARD_REGIONS} regions have a name, and ", end="")
    print(f"{sum(bool(process['comm']) for process in touchers)} of {UNHEARD_REGIONS} touchers")


def print_row(case: Case, took_s: float | None, pages: int, found: many.Found) -> None:
    sums = Sums.of(found.report)
    took = "" if took_s is None else f"{took_s:.1f} s"
    goal = "" if case.goal_s is None else f"{case.goal_s:g} s"
    lost = sum(found.report["lost"].values())
    print(f"  {case.title:<36}{took:>8}{sums.owned_pages:>9}{pages:>9}{sums.unseen_pages:>9}{lost:>8}", end="")
    print(f"{found.cpu_s:>7.1f} s{found.after_s:>12.2f} s  {goal}".rstrip(), flush=True)
    for warning in found.report["warnings"]:
        print(f"    {warning}")
