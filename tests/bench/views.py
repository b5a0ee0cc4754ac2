"""What looking at a large capture takes: seconds and peak memory of each view, a process a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from tests.bench.observers import ROOT, SHMTRACE
from tests.bench.rounds import print_table, run_rounds

VIEWS = {
    "report": ["report", "{}"],
    "report --json": ["report", "{}", "--json"],
    "report --by process": ["report", "{}", "--by", "process"],
    "report --by time": ["report", "{}", "--by", "time"],
    "report --csv": ["report", "{}", "--csv"],
    "html": ["html", "{}", "-o", "-"],
    "export --format folded": ["export", "{}", "--format", "folded"],
    "export --format svg": ["export", "{}", "--format", "svg"],
    "export --format pprof": ["export", "{}", "--format", "pprof"],
    "export --format perfetto": ["export", "{}", "--format", "perfetto"],
    "export --format csv": ["export", "{}", "--format", "csv"],
}
GOALS = {"report": "1", "html": "3"}


def bench(directory: Path, rounds: int) -> None:
    """Of a million extents and ten thousand processes."""
    path = directory / "large.capture"
    # by itself: wait4 tells of a program no less than what who forked it had, and that is much after a million extents
    subprocess.run([sys.executable, "-m", "tests.bench.captures", path], cwd=ROOT, check=True)
    output = directory / "output"
    views = {name: [word.format(path) for word in words] for name, words in VIEWS.items()}
    peaks_mib: dict[str, float] = {}
    sizes_mib: dict[str, float] = {}

    def seconds(name: str) -> float:
        began_s = time.monotonic()
        with open(output, "wb") as file, subprocess.Popen([*SHMTRACE, *views[name]], cwd=ROOT, stdout=file) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        took_s = time.monotonic() - began_s
        if process.returncode:
            raise RuntimeError(f"{name} ended with {process.returncode}")
        peaks_mib[name] = max(peaks_mib.get(name, 0), usage.ru_maxrss / 1024)
        sizes_mib[name] = output.stat().st_size / (1 << 20)
        return took_s

    measured = run_rounds({name: partial(seconds, name) for name in views}, min(rounds, 3))
    print_table(f"a capture of {path.stat().st_size >> 20} MiB, looked at", "seconds", measured, GOALS)
    for name, peak_mib in peaks_mib.items():
        print(f"{name}: peak RSS {peak_mib:.0f} MiB, output {sizes_mib[name]:.1f} MiB")
