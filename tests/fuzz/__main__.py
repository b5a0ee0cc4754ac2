"""The long run: as many hostile inputs as the time allows, over all CPUs.

python -m tests.fuzz [SECONDS] [--seed N] [--only NAME...]     1200 seconds by default, and a fresh seed
python -m tests.fuzz --again FILE                              one input that was kept
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import secrets
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import captures, harness
from tests.fuzz.campaign import Campaign, told
from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.harness import HANG, REFUSED, RESULT, TRACEBACK, WRONG

SECONDS = 1200
KEPT = Path("fuzz-failures")
AT_ONCE = 1000  # inputs, of which hypothesis keeps account
SHOWN = 4000  # characters of what an input that is run again has printed
HEADS = ("class", "inputs", RESULT, REFUSED, TRACEBACK, HANG, WRONG, "peak MB", "slowest s")


class Row(NamedTuple):
    """What came of one class."""

    name: str
    ended: Counter[str]
    peak_bytes: int
    slowest_s: float
    failures: dict[str, Path]


def work(name: str, seed: str, seconds: float) -> Row:
    """In one of several processes: as many as this takes."""
    until_s = time.monotonic() + seconds
    campaign = Campaign(FUZZERS[name], KEPT)
    for number in itertools.count():
        if campaign.over:
            break
        campaign.random(f"{seed} {number}", AT_ONCE, until_s)
    return Row(name, campaign.ended, campaign.peak_bytes, campaign.slowest_s, campaign.failures)


def summed(rows: list[Row]) -> Row:
    return Row(
        rows[0].name,
        sum((row.ended for row in rows), Counter()),
        max(row.peak_bytes for row in rows),
        max(row.slowest_s for row in rows),
        {what: path for row in rows for what, path in row.failures.items()},
    )


def line(row: Row) -> tuple[str, ...]:
    ended = (row.ended[how] for how in (RESULT, REFUSED, TRACEBACK, HANG, WRONG))
    numbers = (sum(row.ended.values()), *ended, row.peak_bytes >> 20)
    return (row.name, *map(str, numbers), f"{row.slowest_s:.1f}")


def run(seconds: float, seed: str, names: list[str]) -> bool:
    """Whether all ended well."""
    workers = os.cpu_count() or 1
    print(f"seed {seed}: {len(names)} classes, {seconds:.0f} s on {workers} CPUs")
    rows = []
    print(" ".join(f"{head:>9}" if number else f"{head:<17}" for number, head in enumerate(HEADS)))
    with ProcessPoolExecutor(workers) as pool:
        for name in names:
            jobs = [pool.submit(work, name, f"{seed} {number}", seconds / len(names)) for number in range(workers)]
            rows.append(summed([job.result() for job in jobs]))
            cells = line(rows[-1])
            print(" ".join(f"{cell:>9}" if number else f"{cell:<17}" for number, cell in enumerate(cells)), flush=True)
    for row in rows:
        print(*told(row.failures), sep="\n", end="\n" if row.failures else "")
    return not any(row.failures for row in rows)


def again(path: Path) -> bool:
    """One input that was kept: how it ends now, with what it said."""
    document = json.loads(path.read_text())
    fuzzer = FUZZERS[document["fuzzer"]]
    fuzzer.warm()
    ended = harness.run(fuzzer, document["input"])
    how = f"{ended.how}: {ended.what}" if ended.what else ended.how
    print(f"{how} ({ended.seconds:.1f} s, {ended.peak_bytes >> 20} MB)")
    print(ended.detail[:SHOWN])
    return ended.well


def main() -> None:
    parser = argparse.ArgumentParser(prog="bootstrap fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help=f"for all of it; {SECONDS} by default")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9), help="that of an earlier run")
    parser.add_argument(
        "--only", nargs="+", choices=FUZZERS, default=list(FUZZERS), metavar="CLASS", help="some of them"
    )
    parser.add_argument("--again", type=Path, metavar="FILE", help="run one input that was kept, and no others")
    arguments = parser.parse_args()
    try:
        well = (
            again(arguments.again) if arguments.again else run(arguments.seconds, str(arguments.seed), arguments.only)
        )
    finally:
        captures.close()
    sys.exit(not well)


if __name__ == "__main__":
    main()
