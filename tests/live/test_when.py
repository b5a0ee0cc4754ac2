"""`record --when`: nothing is traced until the condition holds, and all of it is known from then on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.fpm import OPCACHE_BYTES, running_fpm, script_names
from tests.live.remains import children, held, nothing_remains
from tests.live.reports import PATIENCE_SECONDS, ROOT, SHMTRACE, pages_by_part, read_report, skipped_at_most
from tests.live.running import running
from tests.live.shmem import PAGE_BYTES, read_regions
from tests.live.test_obstacles import held as silent
from tests.live.test_obstacles import needs_fuse
from tests.live.test_places import LIMITS, groups
from tests.live.tiers import shmtrace
from tracer import conditions, triggers
from tracer.proc import shmem

pytestmark = pytest.mark.bpf

# It looks often, says so each time, and searches often.
EAGER = (
    "import sys; from tracer import triggers as t; look = t.Watch.look; search = t.Watch.search",
    "t.LOOK_S, t.LOOK_IDLE, t.SEARCH_S, t.SEARCH_REST, t.SEARCH_IDLE = .05, 1, .5, 1, 1",
    "t.Watch.look = lambda self: [look(self), print('looked', file=sys.stderr, flush=True)][0]",
    "t.Watch.search = lambda self: [search(self), print('searched', file=sys.stderr, flush=True)][0]",
)
POOL_PAGES, LIMIT, FILLED_PAGES = 137, "61.5%", 85  # of 137 pages that is 84.3
NAME = "po ol'\"\\ $(touch fired)\n;>+"
CALLED = f"/memfd:{NAME}"
NOTE = """
import json, os, sys, time
fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
open_now = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")}
told = {"argv": sys.argv[1:], "env": dict(os.environ), "fds": open_now, "session": os.getsid(0) == os.getpid()}
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(told, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
while not os.path.exists(sys.argv[1] + ".end"):
    time.sleep(0.01)
sys.exit(7)
"""


FILL_TMPFS = """
mount -t tmpfs -o size=16M mine "$1" && echo ready
while read pages; do
    dd if=/dev/zero of="$1/$pages" bs=4096 count="$pages" 2>/dev/null && echo done
done
"""
THRASH_BYTES, THRASH_LIMIT_BYTES = 64 << 20, 24 << 20
THRASH = f"""
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
fd = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
for _ in range({THRASH_BYTES} >> 20):
    os.write(fd, bytes(1 << 20))
os.fsync(fd)
while True:
    os.lseek(fd, 0, os.SEEK_SET)
    while os.read(fd, 1 << 20):
        pass
"""


class Filler:
    """A running tests/live/filler.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.tgid = process.pid

    def said(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def fill(self, *words: object) -> None:
        assert self.process.stdin
        print(*words, file=self.process.stdin, flush=True)
        assert self.said() == "done"


@contextmanager
def filler(*pools: object) -> Iterator[Filler]:
    line = [sys.executable, "-m", "tests.live.filler", *map(str, pools)]
    with running(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        found = Filler(process)
        assert found.said() == "ready"
        yield found


class Waiting:
    """A running `record --when`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def until(self, word: str, count: int = 1) -> None:
        """So many more lines with this word."""
        assert self.process.stderr
        while count:
            line = self.process.stderr.readline()
            assert line, f"shmtrace ended: {self.lines}"
            self.lines.append(line.rstrip("\n"))
            count -= word in line

    def looks(self) -> None:
        """It has looked again, at all that there was when this was called."""
        self.until("looked", 3)

    def finish(self) -> list[str]:
        """What it said, but for its looks. It ended well."""
        _, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        said = [*self.lines, *errors.splitlines()]
        assert self.process.returncode == 0, said
        return [line for line in said if line not in ("looked", "searched")]

    def stop(self, number: signal.Signals = signal.SIGINT) -> list[str]:
        self.process.send_signal(number)
        return self.finish()


@contextmanager
def waiting(
    path: Path, *arguments: object, command: Sequence[str], env: dict[str, str] | None = None
) -> Iterator[Waiting]:
    """From its first look on."""
    line = [*command, "record", "-o", str(path), *map(str, arguments)]
    with subprocess.Popen(
        line, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            found = Waiting(process)
            found.looks()
            yield found
        finally:
            process.kill()


def report(path: Path) -> dict[str, Any]:
    done = subprocess.run([*SHMTRACE, "report", path, "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return read_report(done.stdout)


def test_a_region_that_fills(tier: str, tmp_path: Path) -> None:
    """By the page: one less is not enough. Then the account is whole, and --run's program has been told, verbatim."""
    path, told = tmp_path / "a pool.capture", tmp_path / "to ld"
    note = tmp_path / "note.py"
    note.write_text(NOTE)
    run = shlex.join([sys.executable, str(note), str(told), "$(id)", "a\nb", "'"])
    condition = f"{CALLED} > {LIMIT}"
    with filler(NAME, POOL_PAGES) as pool, nothing_remains():
        before = set(tmp_path.iterdir())
        arguments = ("-p", pool.tgid, "--when", condition, "--when", "shmem > 4G", "--run", run)
        with waiting(path, *arguments, command=shmtrace(tier, *EAGER), env={**os.environ, "SECRET": "x"}) as waits:
            pool.fill(0, 0, FILLED_PAGES - 1)
            waits.looks()
            assert not held(str(waits.process.pid))
            assert set(tmp_path.iterdir()) == before
            pool.fill(0, FILLED_PAGES - 1, FILLED_PAGES)
            waits.until("tracing 1 process, 1 region(s)")
            Path(f"{told}.end").touch()  # or on a busy host it might end before that was said
            pool.fill(0, FILLED_PAGES, FILLED_PAGES + 5)
            pool.fill("child", 0, FILLED_PAGES + 5, FILLED_PAGES + 12)
            waits.until("--run")
            assert held(str(waits.process.pid))
            [(_, region)] = read_regions(pool.tgid).items()
            assert not children(waits.process.pid)  # no zombie either
            said = waits.stop()
    assert said == [
        f"shmtrace: waiting for {printed(condition)} or shmem > 4G; Ctrl-C stops",
        said[1],
        "shmtrace: tracing 1 process, 1 region(s); Ctrl-C stops",
        f"shmtrace: --run {sys.executable} ended with status 7",
        f"shmtrace: recorded into {path}: `shmtrace report {path}` shows it",
    ]
    assert said[1].startswith(f"shmtrace: {printed(condition)} holds: ")
    assert said[1].endswith(" had 340 KiB of 548 KiB")
    found = report(path)
    [row] = found["regions"]
    assert (row["name"], row["before_bytes"], row["unseen_bytes"]) == (CALLED, FILLED_PAGES * PAGE_BYTES, 0)
    assert sorted(pages_by_part(row, {}, "touched_bytes").values()) == [5, 7]
    assert pages_by_part(row, {pool.tgid: "A"}, "touched_bytes")["A"] == 5
    assert row["allocated_bytes"] == region.pages * PAGE_BYTES
    facts = json.loads(told.read_text())
    assert facts["argv"] == [str(told), "$(id)", "a\nb", "'", condition, str(path)]
    assert set(facts["fds"].values()) == {"/dev/null"}
    assert facts["session"]
    assert "SECRET" not in facts["env"]
    assert {name: value for name, value in facts["env"].items() if name.startswith("SHMTRACE_")} == {
        "SHMTRACE_CONDITION": condition,
        "SHMTRACE_CAPTURE": str(path),
        "SHMTRACE_VALUE_BYTES": str(FILLED_PAGES * PAGE_BYTES),
        "SHMTRACE_SIZE_BYTES": str(POOL_PAGES * PAGE_BYTES),
        "SHMTRACE_REGION": row["id"],
        "SHMTRACE_REGION_NAME": printed(CALLED),
    }


def printed(text: str) -> str:
    return text.replace("\n", "\\x0a")


def test_growth_of_all_that_the_targets_map(tier: str, tmp_path: Path) -> None:
    """By the page, of two processes together; what there was before does not count. -d counts from then on."""
    path = tmp_path / "growth.capture"
    with filler("a", 200, "b", 200) as one, filler("c", 200) as other:
        one.fill(0, 0, 101)
        arguments = ("-p", one.tgid, "-p", other.tgid, "--when", "shmem +1M/h", "-d", "0.5")
        with waiting(path, *arguments, command=shmtrace(tier, *EAGER)) as waits:
            one.fill(0, 101, 150)
            one.fill(1, 0, 100)
            other.fill(0, 0, 106)
            waits.looks()
            other.fill(0, 106, 107)
            waits.until("shmtrace: tracing 2 processes, 3 region(s)")
            said = waits.finish()
    assert "shmtrace: shmem +1M/h holds: 3 regions together had 1.4 MiB" in said
    assert sorted(row["before_bytes"] // PAGE_BYTES for row in report(path)["regions"]) == [100, 107, 150]


def test_growth_of_the_regions_of_one_name(tmp_path: Path) -> None:
    """Of all of them, and of no others."""
    with filler("torch_11_4", 100, "torch_12_7", 100, "other", 100) as pool:
        arguments = ("-p", pool.tgid, "--when", "/memfd:torch_#_# +64K/min", "-d", "0.5")
        with waiting(tmp_path / "x", *arguments, command=shmtrace("faults", *EAGER)) as waits:
            pool.fill(2, 0, 90)
            pool.fill(0, 0, 8)
            pool.fill(1, 0, 7)
            waits.looks()
            pool.fill(1, 7, 8)
            said = waits.finish()
    assert any(line.endswith("holds: /memfd:torch_#_#, 2 regions, had 64.0 KiB") for line in said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_does_not_hold(number: signal.Signals, tmp_path: Path) -> None:
    """That is no error, and leaves nothing."""
    path = tmp_path / "none.capture"
    with filler("pool", 3) as pool:
        arguments = ("-p", pool.tgid, "--when", "/memfd:pool > 40%")
        with waiting(path, *arguments, command=shmtrace("faults", *EAGER)) as waits:
            said = waits.stop(number)
    assert said[-1] == "shmtrace: the condition did not hold"
    assert not list(tmp_path.iterdir())


def test_processes_that_come_and_go(tmp_path: Path) -> None:
    """One may come after it began to wait, and another instead of it."""
    word = f"w{os.getpid()}x"
    arguments = ("-p", f"^{word}$", "--when", "/memfd:pool > 64K", "-d", "0.5")
    link = tmp_path / word
    link.symlink_to(sys.executable)

    @contextmanager
    def named() -> Iterator[Filler]:
        line = [str(link), "-m", "tests.live.filler", "pool", "31"]
        with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield Filler(process)
            finally:
                process.kill()

    with waiting(tmp_path / "x", *arguments, command=shmtrace("faults", *EAGER)) as waits:
        with named() as first:
            assert first.said() == "ready"
            first.fill(0, 0, 16)
            waits.until("searched", 2)
            waits.looks()
        with named() as second:
            assert second.said() == "ready"
            second.fill(0, 0, 17)
            said = waits.finish()
    assert f"shmtrace: no process matches -p ^{word}$ yet" in said
    assert any(line.endswith("had 68.0 KiB of 124 KiB") for line in said)


def test_a_pid_that_has_ended(tmp_path: Path) -> None:
    """Nobody will have it again whom the user meant."""
    with filler("pool", 31) as pool:
        arguments = ("-p", pool.tgid, "--when", "/memfd:pool > 64K")
        with waiting(tmp_path / "x", *arguments, command=shmtrace("faults", *EAGER)) as waits:
            pool.process.kill()
            pool.process.wait()
            said = waits.finish()
    assert said[-2:] == ["shmtrace: all processes of -p have exited", "shmtrace: the condition did not hold"]


@needs_fuse
@pytest.mark.needs("unshare")
def test_beside_a_process_that_does_not_answer(tmp_path: Path) -> None:
    """It holds up nothing."""
    with silent(tmp_path) as found, filler("pool", 31) as pool:
        arguments = ("-p", found.tgid, "-p", pool.tgid, "--when", "/memfd:pool > 50%", "-d", "0.5")
        with waiting(tmp_path / "x", *arguments, command=shmtrace("faults", *EAGER)) as waits:
            pool.fill(0, 0, 16)
            said = waits.finish()
    assert any(line.endswith("had 64.0 KiB of 124 KiB") for line in said)


@pytest.mark.needs("php-fpm*")
def test_an_opcache_by_its_guess(tmp_path: Path) -> None:
    """With all that a trace may be asked for."""
    path = tmp_path / "pool.capture"
    with running_fpm(scripts=400) as fpm:
        arguments = ("-p", fpm.tgid, "--when", "opcache > 3%", "--label", "php", "--stacks")
        with waiting(path, *arguments, command=shmtrace("faults", *EAGER)) as waits:
            fpm.ask_for(script_names(10))
            waits.looks()
            fpm.ask_for(script_names(300))
            waits.until("shmtrace: tracing 5 processes, 3 region(s)")
            fpm.ask_for(script_names(400)[300:])
            said = waits.stop()
    assert any(line.startswith("shmtrace: opcache > 3% holds: opcache? ") for line in said)
    found = report(path)
    [row] = [row for row in found["regions"] if row["size_bytes"] == OPCACHE_BYTES]
    assert 0.03 * OPCACHE_BYTES < row["before_bytes"] < row["allocated_bytes"]
    assert row["unseen_bytes"] // PAGE_BYTES <= skipped_at_most(found, "faults")
    scripts = {Path(deed["script"]).name for deed in row["labels"] if deed["script"]}
    assert scripts & set(script_names(400)[300:])


@pytest.mark.needs("unshare", "mount")
def test_a_tmpfs_that_fills(tmp_path: Path) -> None:
    """By the page, whether anybody maps its files or not; one that is made later counts at once."""
    directory = tmp_path / "mine"
    directory.mkdir()
    line = ["unshare", "--mount", "sh", "-c", FILL_TMPFS, "sh", str(directory)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        fills = Filler(process)
        assert fills.said() == "ready"
        arguments = ("-p", f"/proc/{process.pid}/root{directory}", "--when", "shmem > 400K", "-d", "0.5")
        with waiting(tmp_path / "x", *arguments, command=shmtrace("faults", *EAGER)) as waits:
            fills.fill(29)
            fills.fill(71)
            waits.looks()
            fills.fill(1)
            said = waits.finish()
        process.kill()
    assert f"shmtrace: shmem > 400K holds: {directory} had 404 KiB" in said


# ---- memory pressure ----


@contextmanager
def thrashing(path: Path) -> Iterator[None]:
    """A process that reads a file again and again, and has room for a third of it."""
    with groups(f"shmtrace-when-{os.getpid()}") as [group]:
        limit = next(group.directory / name for name in LIMITS if (group.directory / name).exists())
        limit.write_text(str(THRASH_LIMIT_BYTES))
        line = [sys.executable, "-c", THRASH, group.directory / "cgroup.procs", path]
        with subprocess.Popen(line) as process:
            try:
                yield
            finally:
                process.kill()


needs_pressure = pytest.mark.skipif(not triggers.PRESSURE_PATH.exists(), reason="the kernel has no PSI")
needs_disk = pytest.mark.skipif(
    shmem.magic(Path("/var/tmp")) == shmem.TMPFS_MAGIC, reason="no page of a tmpfs can be dropped"
)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    path = Path(f"/var/tmp/shmtrace-when-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


@needs_pressure
@needs_disk
def test_memory_pressure(tmp_path: Path, on_disk: Path) -> None:
    """Of whatever process of the host."""
    path = tmp_path / "pressure.capture"
    with filler("pool", 31) as pool:
        pool.fill(0, 0, 13)
        arguments = ("-p", pool.tgid, "--when", "pressure > 2%", "-d", "0.5")
        with waiting(path, *arguments, command=shmtrace("faults", *EAGER)) as waits, thrashing(on_disk):
            said = waits.finish()
    assert said[1] == "shmtrace: pressure > 2% holds: processes waited for memory during more than 2% of 10 s"
    assert [row["before_bytes"] for row in report(path)["regions"]] == [13 * PAGE_BYTES]


@needs_pressure
@needs_disk
def test_the_kernel_wakes_who_waits_for_pressure(on_disk: Path) -> None:
    with triggers.Pressure(conditions.parse("pressure > 2%")) as pressure:
        assert pressure.fd is not None
        assert triggers._woken([pressure], 0.1) is None
        with thrashing(on_disk):
            assert triggers._woken([pressure], PATIENCE_SECONDS) is pressure
