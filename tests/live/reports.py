"""Runs shmtrace, and reads its report in pages and by the parts that the workload's processes play."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.live.shmem import PAGE_BYTES, RegionId

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("SHMTRACE_PYTHON", "").split() or [sys.executable]
SHMTRACE = [*PYTHON, "-m", "tracer"]
"""The command line of this checkout, run from ROOT; or of another that PYTHON finds."""
PATIENCE_SECONDS = 600.0  # in an emulated guest, on CPUs that have other work
ATTACH_SECONDS = 300.0  # in an emulated guest, on CPUs that have other work

Report = dict[str, Any]


def patched(*statements: str) -> list[str]:
    """A shmtrace that executes these statements first."""
    return [*PYTHON, "-c", "\n".join([*statements, "from tracer.__main__ import main", "main()"])]


def without_bcc(directory: Path) -> list[str]:
    """A shmtrace that can compile nothing and has an empty cache; its error says "there is none"."""
    (directory / "bcc.py").write_text("raise ImportError('there is none')\n")
    return patched(
        "import pathlib, sys",
        f"sys.path.insert(0, {str(directory)!r})",
        "from tracer.kernel.cache import Cache",
        f"Cache.__init__.__defaults__ = (pathlib.Path({str(directory)!r}, 'cache'),)",
    )


def find_region(report: Report, region: RegionId) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        row for row in report["regions"] if (row["dev"], row["ino"], row["generation"] or 0) == region
    ]
    assert len(found) == 1, f"{len(found)} regions are {region}: {[row['id'] for row in report['regions']]}"
    return found[0]


def part_of(process: Mapping[str, Any], parts: Mapping[int, str]) -> str:
    return parts.get(process["tgid"], f"{process['comm']} {process['tgid']}")


def pages_by_part(region: Mapping[str, Any], parts: Mapping[int, str], column: str) -> dict[str, int]:
    """touched_bytes or freed_bytes as pages, of the parts that have any."""
    pages: Counter[str] = Counter()
    for toucher in region["touchers"]:
        assert toucher[column] % PAGE_BYTES == 0
        pages[part_of(toucher["process"], parts)] += toucher[column] // PAGE_BYTES
    return {part: count for part, count in pages.items() if count}


def assert_touched(
    report: Report, region: Mapping[str, Any], parts: Mapping[int, str], expected: Mapping[str, int], tier: str = ""
) -> int:
    """Each part has touched what it must have, in pages. Returns how many are missing of that.

    By kprobe none may be; else what the kernel skipped is unseen, to the page, and owned up to.
    """
    touched = pages_by_part(region, parts, "touched_bytes")
    missing = {part: expected.get(part, 0) - touched.get(part, 0) for part in {*expected, *touched}}
    skipped = sum(missing.values())
    if not 0 < skipped <= skipped_at_most(report, tier):
        assert touched == expected
        return 0
    assert min(missing.values()) >= 0, f"{touched} of {expected}"
    assert skipped == region["unseen_bytes"] // PAGE_BYTES
    return skipped


def skipped_at_most(report: Report, tier: str) -> int:
    """How many pages a tier other than kprobe may miss because the kernel skipped programs: as many as the report
    admits."""
    return int(report["lost"]["probes"]) if tier in ("fentry", "faults") else 0


def assert_balanced(report: Report) -> None:
    """Every page of every region has an owner, is from before, or is reported as unseen."""
    for region in report["regions"]:
        touched = sum(toucher["touched_bytes"] for toucher in region["touchers"])
        assert region["allocated_bytes"] == touched + region["before_bytes"] + region["unseen_bytes"], region
        assert min(region["before_bytes"], region["unseen_bytes"]) >= 0, region
        assert region["peak_bytes"] >= region["allocated_bytes"], region


def read_report(output: bytes) -> Report:
    report: Report = json.loads(output)
    assert_balanced(report)
    return report


def trace_command(
    *command: object,
    shmtrace: Sequence[str] = SHMTRACE,
    options: Sequence[str] = (),
    patience_s: float = PATIENCE_SECONDS,
) -> Report:
    """Run shmtrace OPTIONS -- COMMAND, which must succeed."""
    line = [*shmtrace, "--json", *options, "--", *map(str, command)]
    done = subprocess.run(line, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience_s)
    assert done.returncode == 0, done.stderr.decode()
    return read_report(done.stdout)


class Trace:
    """A running shmtrace that has attached."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def stop(self, number: signal.Signals = signal.SIGINT) -> Report:
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> Report:
        output, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        assert self.process.returncode == 0, errors.decode()
        assert all(line.startswith(b"shmtrace: ") for line in errors.splitlines()), errors.decode()
        return read_report(output)


@contextmanager
def trace(*arguments: object, shmtrace: Sequence[str] = SHMTRACE) -> Iterator[Trace]:
    """shmtrace ARGUMENTS, from the moment it reports that it is tracing."""
    line = [*shmtrace, "--json", *map(str, arguments)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            said = b""
            while b"tracing" not in said:
                assert select.select([process.stderr], [], [], ATTACH_SECONDS)[0], "shmtrace does not say it traces"
                more = os.read(process.stderr.fileno(), 4096)
                assert more, f"shmtrace ended: {said.decode()}"
                said += more
            yield Trace(process)
        finally:
            process.kill()
