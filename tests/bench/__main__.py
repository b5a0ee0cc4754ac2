"""What shmtrace costs, beside what else one could have used.

    python -m tests.bench [--rounds N] [--mib N] [--alone] [touch] [record] [bystander] [attach] ...

Every figure is from this host and this run: variants take turns, and ratios are between neighbours in time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench import bounds, fleet, own, prometheus, reading, requests, views, weeks
from tests.bench.observers import COLD, NOBODY, OBSERVERS, ROOT, SHMTRACE, Observer, Starter, cold, started, starters
from tests.bench.rounds import ROUNDS, print_table, run_rounds

MIB = 1 << 20


class Storm:
    """tests/bench/storm.c, built."""

    def __init__(self, directory: Path, mib: int, alone: bool) -> None:
        self.mib = mib
        self.alone = alone
        self.program = directory / "storm"
        self.result = directory / "result"
        source = Path(__file__).with_name("storm.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", self.program, source], check=True)

    def asks_for(self, watcher: Observer | Starter) -> bool:
        """Alone: for shmtrace, and for nobody else to compare it with."""
        return not self.alone or watcher.program == sys.executable

    def ns_per_page(self, observer: Observer, sharing: str) -> float:
        self.result.unlink(missing_ok=True)
        command = observer.around(str(self.program), sharing, str(self.mib), str(self.result))
        subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        return float(self.result.read_text())


def bench_touch(storm: Storm, rounds: int) -> None:
    """First touch of shared memory, by a process that is watched."""
    variants = {}
    for observer in filter(storm.asks_for, OBSERVERS):
        if why := observer.missing():
            print(f"not run: {observer.name}: {why}")
        else:
            variants[observer.name] = partial(storm.ns_per_page, observer, "shared")
    measured = run_rounds(variants, rounds)
    print_table(
        f"first touch of {storm.mib} MiB of shared memory, page by page",
        "ns a page",
        measured,
        {name: "1.10" for name in measured if name.startswith("shmtrace")},
    )


def bench_record(storm: Storm, rounds: int) -> None:
    """First touch while the trace is recorded, with stacks and without, against the same while it is only traced."""
    capture = storm.result.with_name("capture")
    line = [*SHMTRACE, "record", "-o", str(capture)]
    record = Observer("shmtrace record --", sys.executable, [*line, "--"])
    stacks = Observer("shmtrace record --stacks --", sys.executable, [*line, "--stacks", "--"])

    def recorded(observer: Observer) -> float:
        capture.unlink(missing_ok=True)
        return storm.ns_per_page(observer, "shared")

    trace = Observer("shmtrace --", sys.executable, [*SHMTRACE, "--json", "--"])
    variants: dict[str, Callable[[], float]] = {
        trace.name: partial(storm.ns_per_page, trace, "shared"),
        **{observer.name: partial(recorded, observer) for observer in (record, stacks)},
    }
    title = f"first touch of {storm.mib} MiB of shared memory, page by page"
    print_table(title, "ns a page", run_rounds(variants, rounds), {record.name: "1.00"})
    print(f"  the capture of it has {capture.stat().st_size:,} bytes")


def bench_bystander(storm: Storm, rounds: int) -> None:
    """Faults of a process that is not watched, while another one is: on private memory, and on shared."""
    for sharing in ("private", "shared"):
        with subprocess.Popen(["sleep", "infinity"]) as target:
            try:

                def beside(starter: Starter, sharing: str = sharing) -> float:
                    with started(starter):
                        return storm.ns_per_page(NOBODY, sharing)

                variants: dict[str, Callable[[], float]] = {NOBODY.name: partial(storm.ns_per_page, NOBODY, sharing)}
                watching = list(filter(storm.asks_for, starters(target.pid)))
                variants.update({starter.name: partial(beside, starter) for starter in watching if runs(starter)})
                measured = run_rounds(variants, rounds)
            finally:
                target.kill()
        title = f"a bystander touches {storm.mib} MiB of {sharing} memory, page by page"
        goals = {name: "1.02" if "exact" in name else "1.10" for name in measured if name.startswith("shmtrace")}
        print_table(title, "ns a page", measured, goals)


def bench_attach(storm: Storm, rounds: int) -> None:
    """From exec to the moment a tool says that it watches."""
    with subprocess.Popen(["sleep", "infinity"]) as target:
        try:

            def seconds(starter: Starter) -> float:
                with started(starter) as took:
                    return took

            watching = list(filter(storm.asks_for, [*starters(target.pid), cold(target.pid)]))
            variants = {starter.name: partial(seconds, starter) for starter in watching if runs(starter)}
            measured = run_rounds(variants, rounds)
        finally:
            target.kill()
    print_table("from exec to attached", "seconds", measured, {watching[0].name: "0.15 s"})


def bench_memory(storm: Storm, rounds: int) -> None:
    """Peak resident memory of shmtrace alone."""
    watched = [str(storm.program), "shared", str(storm.mib), str(storm.result)]
    tracing = f"shmtrace -- storm of {storm.mib} MiB"
    commands = {
        tracing: [*SHMTRACE, "--json", "--", *watched],
        "the same, nothing compiled yet": [*COLD, "--json", "--", *watched],
        "shmtrace snapshot": [*SHMTRACE, "snapshot", "--json"],
    }
    measured = run_rounds({name: partial(peak_mib, command) for name, command in commands.items()}, min(rounds, 3))
    print_table("peak RSS", "MiB", measured, {tracing: "35 MB"})


def bench_cpu(storm: Storm, rounds: int) -> None:
    """What shmtrace spends on a page itself."""
    own.bench_cpu(storm.program.parent, rounds)


def bench_ledger(storm: Storm, _: int) -> None:
    """Memory of a trace, by the size of a region and by what is touched of it."""
    own.bench_ledger(storm.program.parent)


def bench_bounds(storm: Storm, rounds: int) -> None:
    """Much of everything."""
    bounds.bench(storm.program.parent, rounds)


def bench_weeks(storm: Storm, _: int) -> None:
    """What a trace takes that is rotated for weeks."""
    weeks.bench(storm.program.parent)


def bench_views(storm: Storm, rounds: int) -> None:
    """Each view of a large capture."""
    views.bench(storm.program.parent, rounds)


def bench_fleet(storm: Storm, rounds: int) -> None:
    """The captures of many hosts."""
    fleet.bench(storm.program.parent, rounds)


def bench_reading(_: Storm, rounds: int) -> None:
    """What it takes to read the ledger of a large region."""
    reading.bench(rounds)


def bench_requests(_: Storm, rounds: int) -> None:
    """What labels cost, and what they cost the requests of a real php-fpm."""
    requests.bench(rounds)


def bench_label(storm: Storm, rounds: int) -> None:
    """First touch with a label that stays the same, against the same without."""
    label = ["--label", "storm:doing"]
    trace = Observer("shmtrace --", sys.executable, [*SHMTRACE, "--json", "--"])
    labelled = Observer("shmtrace --label --", sys.executable, [*SHMTRACE, "--json", *label, "--"])
    variants: dict[str, Callable[[], float]] = {
        observer.name: partial(storm.ns_per_page, observer, "shared") for observer in (NOBODY, trace, labelled)
    }
    print_table(
        f"first touch of {storm.mib} MiB of shared memory, page by page", "ns a page", run_rounds(variants, rounds), {}
    )


def bench_prometheus(*_: object) -> None:
    """A fleet in Prometheus."""
    prometheus.bench()


def peak_mib(command: list[str]) -> float:
    """By its high-water mark, looked at until its end: what wait4 tells counts the command it has run, too."""
    peak_kib = 0
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            if mark := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
                peak_kib = int(mark[1])
            time.sleep(0.002)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return peak_kib * 1024 / MIB


def runs(starter: Starter) -> bool:
    """Whether it can be run here; says so if not."""
    why = starter.missing()
    if not why:
        try:
            with started(starter):
                return True
        except RuntimeError as error:
            why = str(error)
    print(f"not run: {starter.name}: {why}")
    return False


BENCHES: dict[str, Callable[[Storm, int], None]] = {
    "touch": bench_touch,
    "record": bench_record,
    "bystander": bench_bystander,
    "attach": bench_attach,
    "memory": bench_memory,
    "cpu": bench_cpu,
    "ledger": bench_ledger,
    "bounds": bench_bounds,
    "reading": bench_reading,
    "views": bench_views,
    "fleet": bench_fleet,
    "weeks": bench_weeks,
    "label": bench_label,
    "requests": bench_requests,
    "prometheus": bench_prometheus,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--mib", type=int, default=1024, help="how much memory is touched")
    parser.add_argument("--alone", action="store_true", help="shmtrace only, without the others")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("of fewer than two rounds there are no quartiles")
    if unknown := set(arguments.names) - set(BENCHES):
        parser.error(f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, Python {sys.version.partition(' ')[0]}")
    with tempfile.TemporaryDirectory() as directory:
        storm = Storm(Path(directory), arguments.mib, arguments.alone)
        for name in arguments.names or BENCHES:
            BENCHES[name](storm, arguments.rounds)


if __name__ == "__main__":
    main()
