"""Many regions, many ranges, short lives, late ends: every page is accounted for, however many there are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import many
from tests.live.reports import ROOT, Report, read_report, trace, trace_command
from tests.live.shmem import PAGE_BYTES
from tests.live.tiers import shmtrace

pytestmark = pytest.mark.bpf
needs_cc = pytest.mark.needs("cc")

IMPORTS = "import ctypes, mmap, os, sys, time\n"


def python(tier: str, program: str, *arguments: object) -> Report:
    return trace_command(sys.executable, "-c", IMPORTS + program, *arguments, shmtrace=shmtrace(tier))


def pages(report: Report, column: str) -> int:
    """Sums over all regions. Touched and freed pages are those of known owners."""
    if column in ("touched", "freed"):
        found = [toucher[f"{column}_bytes"] for region in report["regions"] for toucher in region["touchers"]]
    else:
        found = [region[f"{column}_bytes"] for region in report["regions"]]
    return sum(found) // PAGE_BYTES


def skipped(report: Report, tier: str) -> int:
    """For fentry: what the kernel skipped, and shmtrace reports."""
    return report["lost"]["probes"] if tier == "fentry" else 0


# ---- many ----

AT_ONCE = """
regions = [mmap.mmap(-1, 5 * 4096) for _ in range(1511)]
for region in regions:
    region[0] = region[3 * 4096] = 1
if os.fork() == 0:  # it has all of the ranges, too
    for region in regions[::7]:
        region[4096] = 1
    os._exit(0)
os.wait()
"""


def test_many_regions_at_once(tier: str) -> None:
    report = python(tier, AT_ONCE)
    assert len(report["regions"]) == 1511
    assert pages(report, "allocated") == 2 * 1511 + 216
    assert pages(report, "unseen") <= skipped(report, tier)
    by_child = [toucher for region in report["regions"] for toucher in region["touchers"][1:]]
    assert len(by_child) == 216 or skipped(report, tier)
    assert not any(report["lost"][what] for what in ("events", "pages"))


def test_more_regions_than_the_events_of_one_look(tier: str) -> None:
    """Regions come and go faster than user space reads about them. At the end none is missing."""
    burst = """
for _ in range(3):
    if os.fork() == 0:
        for _ in range(701):
            region = mmap.mmap(-1, 3 * 4096)
            region[4096] = 1
            region.close()
        os._exit(0)
for _ in range(3):
    os.wait()
"""
    report = python(tier, burst)
    assert len(report["regions"]) == pages(report, "allocated") == 2103
    assert pages(report, "unseen") <= skipped(report, tier)


STOPPED = """
print("ready", flush=True)
sys.stdin.readline()
for worker in range(3):
    if os.fork() == 0:
        for number in range(17):
            if os.fork() == 0:
                regions = [mmap.mmap(-1, 5 * 4096) for _ in range(7)]
                for region in regions:
                    region[0] = region[3 * 4096] = 1
                os._exit(0)
            os.wait()
        os._exit(0)
for _ in range(3):
    os.wait()
print("done", flush=True)
sys.stdin.readline()
"""


def test_a_tracer_that_was_stopped_meanwhile(tier: str) -> None:
    """A stopped tracer finds all that happened meanwhile: 357 regions with creators, names and parents."""
    line = [sys.executable, "-c", IMPORTS + STOPPED]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        with trace("-p", process.pid, shmtrace=shmtrace(tier)) as tracing:
            tracing.process.send_signal(signal.SIGSTOP)
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
            tracing.process.send_signal(signal.SIGCONT)
            report = tracing.stop()
        process.stdin.close()
    assert len(report["regions"]) == 3 * 17 * 7
    assert pages(report, "allocated") == 2 * 3 * 17 * 7
    assert pages(report, "unseen") <= skipped(report, tier)
    assert report["lost"]["events"] == 0
    children = {}
    for region in report["regions"]:
        (toucher,) = region["touchers"]
        child = toucher["process"]
        children[child["tgid"]] = child
        assert region["creator"]["tgid"] == child["tgid"]
        assert child["exited"] >= child["started"]
    assert len(children) == 3 * 17
    assert len({child["parent"] for child in children.values()}) == 3
    assert {child["comm"] for child in children.values()} == {report["parents"][0]["process"]["comm"]}


def test_a_large_region_among_many_small_ones(tier: str) -> None:
    """Many regions exist before: the filter is full when the large one is mapped."""
    program = (
        IMPORTS
        + """
large = mmap.mmap(-1, 2 * 1021 * 4096)
small = [mmap.mmap(-1, 4096) for _ in range(101)]
print("ready", flush=True)
sys.stdin.readline()
for worker in range(2):
    if os.fork() == 0:
        for page in range(worker * 1021, (worker + 1) * 1021):
            large[page * 4096] = 1
        os._exit(0)
os.wait(), os.wait()
"""
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        with trace("-p", process.pid, shmtrace=shmtrace(tier)) as tracing:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            report = tracing.finish()
    (region,) = (region for region in report["regions"] if region["size_bytes"] == 2 * 1021 * PAGE_BYTES)
    touched = [toucher["touched_bytes"] // PAGE_BYTES for toucher in region["touchers"]]
    assert touched == [1021, 1021] or sum(touched) + skipped(report, tier) >= 2042


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.build(tmp_path_factory.mktemp("many"))


@needs_cc
@pytest.mark.parametrize(
    ("what", "regions", "touchers", "touched"),
    [
        ("forks 701 0 0", 1, 701, 3 * 701),
        ("forks 211 400 1", 1, 211, 3 * 211),  # most of them are there at once
        ("mapped 67 11", 67, 67 * 11, 67 * 11),
        ("burst 1009 0", 1009, 1009, 13 * 1009),
        ("sparse 3 1009", 1, 1, 1009),
    ],
)
def test_many(tier: str, crowd: Path, what: str, regions: int, touchers: int, touched: int) -> None:
    report = many.run(crowd, what, shmtrace=shmtrace(tier)).report
    missing = skipped(report, tier)
    assert len(report["regions"]) == regions
    assert pages(report, "allocated") == touched
    assert pages(report, "touched") == touched - pages(report, "unseen")
    assert pages(report, "unseen") <= missing
    assert touchers - missing <= sum(len(region["touchers"]) for region in report["regions"]) <= touchers
    assert not any(report["lost"][what] for what in ("events", "pages"))


@needs_cc
def test_a_page_every_few_microseconds(tier: str, crowd: Path) -> None:
    """Regions are made faster than they can be forgotten: missing room is reported, and what is shown is right."""
    found = many.run(crowd, "churn 2", shmtrace=shmtrace(tier))
    report, made = found.report, int(found.values["made"])
    assert pages(report, "touched") == pages(report, "allocated") - min(pages(report, "unseen"), skipped(report, tier))
    assert len(report["regions"]) == pages(report, "allocated") <= made
    assert pages(report, "allocated") == made or any("regions" in warning for warning in report["warnings"])


@needs_cc
def test_what_happened_while_the_trace_was_stopped(tier: str, crowd: Path) -> None:
    line = shmtrace(tier)
    with (
        many.waiting(crowd, "unheard 2100 17") as waiting,
        trace("-p", waiting.tgid, "-d", 2, shmtrace=line) as tracing,
    ):
        tracing.process.send_signal(signal.SIGSTOP)
        waiting.go()
        tracing.process.send_signal(signal.SIGCONT)
        report = tracing.finish()
    assert pages(report, "touched") == 2100 - min(pages(report, "unseen"), skipped(report, tier))
    assert len(report["regions"]) == pages(report, "allocated") == 2100


@needs_cc
def test_eight_writers_on_one_cpu(crowd: Path) -> None:
    """In the default tier: processes are preempted anywhere, also inside a program."""
    report = many.run(crowd, "pinned 8 1021").report
    (region,) = report["regions"]
    touched = [toucher["touched_bytes"] // PAGE_BYTES for toucher in region["touchers"]]
    assert touched == [1021] * 8
    assert pages(report, "unseen") == 0


# ---- read only ----


@pytest.fixture
def holes() -> Iterator[str]:
    """An empty file of 101 pages in /dev/shm."""
    path = Path(f"/dev/shm/shmtrace-test-{os.getpid()}")
    with path.open("wb") as file:
        file.truncate(101 * PAGE_BYTES)
    yield str(path)
    path.unlink()


def test_who_may_only_read_makes_pages_too(tier: str, holes: str) -> None:
    """Reading a hole of a shared mapping makes its page."""
    reader = """
fd = os.open(sys.argv[1], os.O_RDONLY)
region = mmap.mmap(fd, 101 * 4096, mmap.MAP_SHARED, mmap.PROT_READ)
sum(region[page * 4096] for page in range(3, 40))
"""
    report = python(tier, reader, holes)
    (region,) = report["regions"]
    assert pages(report, "touched") == 37 - min(skipped(report, tier), 37)
    assert (region["allocated_bytes"], region["before_bytes"]) == (37 * PAGE_BYTES, 0)


# ---- short lives ----

SHORT = """
for _ in range(7):
    fd = os.memfd_create("short")
    os.ftruncate(fd, 13 * 4096)
    region = mmap.mmap(fd, 13 * 4096)
    for page in range(11):
        region[page * 4096] = 1
    if sys.argv[1:]:
        os.ftruncate(fd, 0)
    region.close()
    os.close(fd)
"""


def test_a_region_of_a_moment_has_a_size_and_pages(tier: str) -> None:
    report = python(tier, SHORT)
    assert [region["size_bytes"] for region in report["regions"]] == [13 * PAGE_BYTES] * 7
    assert pages(report, "allocated") == pages(report, "peak") == 77
    assert pages(report, "touched") == 77 - pages(report, "unseen")


def test_a_region_of_a_moment_that_gave_all_back(tier: str) -> None:
    report = python(tier, SHORT, "truncate")
    assert [region["size_bytes"] for region in report["regions"]] == [13 * PAGE_BYTES] * 7
    assert (pages(report, "allocated"), pages(report, "peak")) == (0, 77)
    assert pages(report, "freed") == 77 - min(skipped(report, tier), 77)


# ---- growth ----

GROWER = (
    IMPORTS
    + """
region, page = mmap.mmap(-1, 1 << 30), 0
for page in range(211):
    region[page * 4096] = 1
print("ready", flush=True)
while page < 200_000:
    for page in range(page + 1, page + 8):
        region[page * 4096] = 1
    time.sleep(0.002)
"""
)


def test_what_it_grew_by_is_what_was_touched(tier: str) -> None:
    """A region that grows before the trace, while it starts, and during it."""
    with subprocess.Popen([sys.executable, "-c", GROWER], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            with trace("-p", process.pid, "-d", "1", shmtrace=shmtrace(tier)) as tracing:
                report = tracing.finish()
        finally:
            process.kill()
    grown_bytes = sum(parent["grown_bytes"] for parent in report["parents"])
    assert grown_bytes // PAGE_BYTES == pages(report, "touched") + pages(report, "unseen")
    assert pages(report, "before") >= 211
    assert pages(report, "touched") > 7


HUGE = """
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0, 3 << 21, 0o1000 | 0o4000 | 0o600)
assert segment >= 0, os.strerror(ctypes.get_errno())
at = libc.shmat(segment, None, 0)
libc.shmctl(segment, 0, None)
ctypes.c_char.from_address(at).value = b"x"
if os.fork() == 0:
    ctypes.c_char.from_address(at + (1 << 21)).value = b"x"
    os._exit(0)
os.wait()
time.sleep(1.2)
"""


def test_huge_pages_that_were_made_meanwhile_are_not_from_before(tier: str, huge_pages: None) -> None:
    knob = Path("/proc/sys/vm/nr_hugepages")
    if not knob.exists() or int(knob.read_text()) < 3:
        pytest.skip("the kernel has no three huge pages to give")
    report = python(tier, HUGE)
    (region,) = (region for region in report["regions"] if region["kind"] == "hugetlb")
    assert region["allocated_bytes"] == 2 << 21
    assert region["before_bytes"] == 0
    assert region["unseen_bytes"] == (2 << 21 if tier == "faults" else 0)


# ---- an end that comes late ----

# User space may have old values of a region that is gone: it has grown since, and its teardown was not read.
STALL = """
import os, signal, time
from tracer.record import trace
finish = trace.Trace.finish
def stalled(self, *arguments):
    os.kill({tgid}, signal.SIGUSR1)
    while open("/proc/{tgid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.01)
    return finish(self, *arguments)
trace.Trace.finish = stalled
trace.TEARDOWN_S = {teardown_s}
"""
GROWS_AND_GOES = (
    IMPORTS
    + """
import signal
region = mmap.mmap(-1, 2003 * 4096)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
sys.stdin.readline()
for page in range(503):
    region[page * 4096] = 1
signal.sigwait([signal.SIGUSR1])
for page in range(503, 1512):
    region[page * 4096] = 1
"""
)


@pytest.mark.parametrize("teardown_s", [1.0, -1.0])
def test_a_late_end_has_the_last_account_all_the_same(tier: str, teardown_s: float) -> None:
    program = [sys.executable, "-c", GROWS_AND_GOES]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        *python, statements = shmtrace(tier)
        stall = STALL.format(tgid=process.pid, teardown_s=teardown_s)
        line = [*python, stall + statements, "--json", "-p", str(process.pid), "-d", "1.5"]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tracing:
            assert tracing.stderr
            said = tracing.stderr.readline()
            process.stdin.write(b"go\n" if b"tracing" in said else b"")
            process.stdin.flush()
            output, errors = tracing.communicate(timeout=300)
            process.kill()
    assert tracing.returncode == 0, said + errors
    report = read_report(output)
    assert pages(report, "allocated") == 1512
    assert pages(report, "touched") == 1512 - min(pages(report, "unseen"), skipped(report, tier))


def test_the_last_account_of_a_region_that_is_still_torn_down(tier: str) -> None:
    """The teardown takes longer than the trace waits for, as that of many GiB does."""
    program = (
        IMPORTS
        + """
region = mmap.mmap(-1, 100_003 * 4096)
print("ready", flush=True)
sys.stdin.readline()
for page in range(100_003):
    region[page * 4096] = 1
"""
    )
    *python, statements = shmtrace(tier)
    impatient = (
        "from tracer.record import region_writer; region_writer.RegionWriter.is_over = lambda *_: True\n" + statements
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        with trace("-p", process.pid, shmtrace=[*python, impatient]) as tracing:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            report = tracing.finish()
    assert pages(report, "allocated") == 100_003
    assert pages(report, "touched") == 100_003 - min(pages(report, "unseen"), skipped(report, tier))
