"""The demo: run a small experiment and print, at each stage, what each tool reports about it, side by side.

The first half collects the figures into a Stage. The second half, which renders a Stage, is pure.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from importlib import resources
from types import TracebackType
from typing import NamedTuple

from tracer import account, formatting
from tracer.capture.capture import Capture
from tracer.demo import ps_pmap_free
from tracer.errors import ShmtraceError
from tracer.kernel import tiers
from tracer.model import Account
from tracer.proc import shmem
from tracer.proc.procfs import Mapping, Proc
from tracer.proc.shmem import PAGE_BYTES
from tracer.record import snapshot
from tracer.record.targets import Targets
from tracer.record.trace import Trace
from tracer.shipped import shipped
from tracer.views import report

CATCH_UP_S = 2.0  # longest wait until the trace has accounted for all pages
STEP_S = 0.05


class Row(NamedTuple):
    """What the tools report about one process. None: nothing, because it has exited, or unknown."""

    name: str
    tgid: int
    ps: ps_pmap_free.Ps | None
    pmap_bytes: int | None
    """RSS of the region in this process"""
    pss_bytes: int | None
    """PSS of the region in this process, from smaps"""
    made: str | None
    """how it is known that this process created the region: traced or inferred; None: it did not"""
    touched_pages: int | None


class Stage(NamedTuple):
    """What the tools report at one stage."""

    rows: list[Row]
    shared_bytes: int
    """of the whole host, from free"""
    size_bytes: int
    allocated_bytes: int
    """from stat(2) of the file behind the region"""


class ToldByShmtrace(NamedTuple):
    """What shmtrace knows about the region so far."""

    creator: int | None
    """tgid; None: unknown"""
    how: str
    """how the creator is known: traced or inferred"""
    touched_pages: dict[int, int] | None
    """by tgid; None: unknown"""


def run(size_bytes: int) -> Generator[str, None, None]:
    """Run the demo and yield its text piece by piece. Closing the generator ends all its processes and probes.

    Raises ShmtraceError if there is not enough memory, or if the experiment fails.
    """
    before_bytes, available_bytes = ps_pmap_free.free()
    if available_bytes is not None and size_bytes // 2 > available_bytes:
        lack = (
            f"the demo writes {format_mb(size_bytes // 2)} MB, but only {format_mb(available_bytes)} MB are available"
        )
        raise ShmtraceError(lack, "give a smaller --size")
    with contextlib.ExitStack() as stack:
        play = stack.enter_context(Experiment(size_bytes))
        refusal = None
        watch: Tracing | Snapshots
        try:
            watch = stack.enter_context(_tracing(play.parent, size_bytes))
        except ShmtraceError as error:
            watch, refusal = Snapshots(play.parent), error
        yield _opening(size_bytes, refusal)
        mapping = play.map()
        yield _proof(play.parent, mapping)
        for number, (title, lesson) in enumerate(_script(size_bytes), 1):
            if number > 1:
                play.go_on()
            stage = _look(play, mapping, watch)
            yield "\n".join(["", f"{number}  {title}", render(stage, before_bytes), _wrap(lesson, indent="  ")])
        yield _wrap(moral(stage), indent="  ")
        yield _report(watch.account())


# ---- what the tools report ----


class Experiment:
    """A running demo/experiment.py. A context manager that ends it."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._kept = contextlib.ExitStack()
        self.processes: dict[str, int] = {}
        """tgid by name, in the order they started, including those that have exited"""

    def __enter__(self) -> Experiment:
        self._socket, theirs = socket.socketpair()
        with theirs:
            # A fresh interpreter, so that the parent's RSS is its own. A new session, so that Ctrl-C reaches only us.
            program = self._kept.enter_context(resources.as_file(shipped("demo/experiment.py")))
            self._process = subprocess.Popen(
                [sys.executable, "-IS", str(program), str(self._size_bytes >> 20)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,
            )
        self._lines = self._socket.makefile()
        self._hear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()
        self._process.kill()  # its children end with it
        self._process.wait()
        self._kept.close()

    @property
    def parent(self) -> int:
        """tgid of the experiment's parent process."""
        return self._process.pid

    def map(self) -> Mapping:
        """Go to the first stage; returns the parent's mapping of the region."""
        self.go_on()
        return next(mapping for mapping in Proc().mappings(self.parent) if mapping.shared)

    def go_on(self) -> None:
        """Go to the next stage; returns once it is reached. Raises ShmtraceError if the experiment has ended."""
        with contextlib.suppress(OSError):  # it has ended: _hear() raises then
            self._socket.sendall(b"\n")
        self._hear()

    def _hear(self) -> None:
        line = ""
        with contextlib.suppress(OSError):
            line = self._lines.readline()
        name, _, tgid = line.strip().rpartition(" ")
        if not name:
            raise ShmtraceError("the experiment ended early, maybe for lack of memory", "give a smaller --size")
        self.processes[name] = int(tgid)


@contextlib.contextmanager
def _tracing(parent: int, size_bytes: int) -> Iterator[Tracing]:
    with Capture() as capture, Trace(capture, _only(parent), room_bytes=size_bytes) as trace:
        yield Tracing(capture, trace)


class Tracing:
    """What shmtrace reports where tracing works."""

    def __init__(self, capture: Capture, trace: Trace) -> None:
        self._capture = capture
        self._trace = trace

    def tell(self, allocated_pages: int) -> ToldByShmtrace:
        """What the trace knows, once it has accounted for this many pages, or after CATCH_UP_S.

        Raises ShmtraceError if it does not see the region.
        """
        end_s = time.monotonic() + CATCH_UP_S
        touched: dict[int, int] = {}
        region = None
        while (not region or sum(touched.values()) < allocated_pages) and time.monotonic() < end_s:
            self._trace.run(STEP_S)
            region = next(iter(self._trace.regions.values()), None)
            touched = self._trace.touched_pages(region) if region else {}
        if region is None:
            raise ShmtraceError("the trace does not see the experiment", "`shmtrace doctor` says why")
        return ToldByShmtrace(region.creator.tgid if region.creator else None, "traced", touched)

    def account(self) -> Account:
        """End the trace; returns its account."""
        self._trace.finish()
        return account.read(self._capture)


class Snapshots:
    """What shmtrace reports where tracing does not work."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def tell(self, _: int) -> ToldByShmtrace:
        """What a snapshot knows now."""
        creator = self.account().regions[0].creator
        return ToldByShmtrace(creator.process.tgid, creator.how, None) if creator else ToldByShmtrace(None, "", None)

    def account(self) -> Account:
        """The account of a new snapshot."""
        with Capture() as capture:
            snapshot.take(capture, _only(self._parent))
            return account.read(capture)


def _only(tgid: int) -> Targets:
    return Targets(frozenset([tgid]), ())


def _look(play: Experiment, mapping: Mapping, watch: Tracing | Snapshots) -> Stage:
    """What all tools report now."""
    stat = shmem.region_stat(Proc().map_file(play.parent, mapping))
    if stat is None:
        raise ShmtraceError("the experiment's region is gone", "check whether its processes were killed")
    told = watch.tell(stat.allocated_bytes // PAGE_BYTES)
    listed = ps_pmap_free.ps(list(play.processes.values()))
    rows = [
        Row(
            name,
            tgid,
            listed.get(tgid),
            ps_pmap_free.pmap_rss_bytes(tgid, mapping),
            ps_pmap_free.smaps(tgid, mapping).get("Pss"),
            made=told.how if tgid == told.creator else None,
            touched_pages=None if told.touched_pages is None else told.touched_pages.get(tgid, 0),
        )
        for name, tgid in play.processes.items()
    ]
    return Stage(rows, ps_pmap_free.free().shared_bytes, *stat)


# ---- how it is shown ----


def _script(size_bytes: int) -> list[tuple[str, str]]:
    """The stages: (what happens, what it shows)."""
    whole, quarter, half = (format_mb(size_bytes // part) for part in (1, 4, 2))
    return [
        (
            f"the parent maps {whole} MB and touches none of it",
            "VSZ counts all of it, but nothing is allocated yet: mapping is not using.",
        ),
        (
            f"child A writes the first {quarter} MB",
            "VSZ counts it twice. RSS counts it for A, never for the parent, who created the region.",
        ),
        (
            f"child B writes the first {half} MB, of which A had written {quarter}",
            "RSS counts what both wrote twice. PSS adds up, but splits A's pages between A and B.",
        ),
        (
            "A exits; C, which does nothing, takes its place",
            "A's pages left RSS when A exited, but they are still allocated. PSS now counts them for B.",
        ),
        (
            "B exits; D, which does nothing, takes its place",
            "According to ps, pmap and smaps nobody has any of it. All of it is still allocated.",
        ),
        (
            "C and D exit; only the parent is left, which never touched it",
            "free and stat tell how much is allocated, but not who touched it.",
        ),
    ]


def _opening(size_bytes: int, refusal: ShmtraceError | None) -> str:
    whole, quarter, half = (format_mb(size_bytes // part) for part in (1, 4, 2))
    synopsis = (
        f"A parent maps {whole} MB of shared memory and touches none of it. Child A writes the first {quarter} MB, "
        f"child B the first {half}; then both exit. Who filled it? Ask the usual tools, and shmtrace. All in MB."
    )
    paragraphs = [synopsis]
    paragraphs += [
        f"{tool} is not installed, so {ps_pmap_free.STAND_INS[tool]} is read instead." for tool in ps_pmap_free.absent()
    ]
    if refusal:
        paragraphs.append(f"Tracing does not work here, so who touched the pages stays unknown: {refusal}")
    return "\n".join(map(_wrap, paragraphs))


def _proof(parent: int, mapping: Mapping) -> str:
    path = Proc().map_file(parent, mapping)
    return "\n".join(
        [
            "",
            "The region in the parent's maps, and what `stat -f` says of the file behind it:",
            f"  {ps_pmap_free.maps_line(parent, mapping)}",
            f"  {path}: {ps_pmap_free.file_system(path)}",
            "Its stat gives the size (VSS, st_size) and what is allocated (RSS, st_blocks).",
        ]
    )


def render(stage: Stage, before_bytes: int) -> str:
    """The table of a stage, in 80 columns. before_bytes: shared memory of the host before the first stage."""
    lines = ["                   ps VSZ  ps RSS  pmap RSS     PSS  shmtrace: touched first"]
    for row in stage.rows:
        if not row.ps and row.touched_pages == 0:
            continue  # it has exited and touched nothing
        lines.append(_line(row.name, str(row.tgid), _said(row), row.touched_pages, _note(row)))
    if len(stage.rows) > 1:
        sums = map(_sum, zip(*(_said(row) for row in stage.rows if row.ps)))
        lines.append(_line("together", "", sums, _sum(row.touched_pages for row in stage.rows), ""))
    lines.append(
        f"  free -m: shared {format_mb(stage.shared_bytes)}, {format_mb(before_bytes)} before · "
        f"stat of map_files: VSS {format_mb(stage.size_bytes)}, RSS {format_mb(stage.allocated_bytes)}"
    )
    return "\n".join(formatting.fit(line, formatting.COLUMNS) for line in lines)


def moral(stage: Stage) -> str:
    """The conclusion at the end."""
    if any(row.touched_pages is None for row in stage.rows):
        return "Only a trace could have told who filled it."
    owners = [
        f"{row.name} touched {format_mb(row.touched_pages * PAGE_BYTES)} first"
        for row in stage.rows
        if row.touched_pages
    ]
    return (
        f"shmtrace traced it: of {format_mb(stage.allocated_bytes)} MB allocated, {' and '.join(owners)}. "
        "Both have exited."
    )


def _note(row: Row) -> str:
    said = [
        {None: "", "traced": "made it"}.get(row.made, f"made it ({row.made})"),
        f"{row.touched_pages} pages" if row.touched_pages else "",
        "" if row.ps else "exited",
    ]
    return ", ".join(filter(None, said))


def _said(row: Row) -> Sequence[int | None]:
    """VSZ, RSS, pmap RSS and PSS."""
    return [*(row.ps or (None, None)), row.pmap_bytes, row.pss_bytes]


def _line(name: str, tgid: str, said: Iterable[int | None], touched_pages: int | None, note: str) -> str:
    columns = ["" if value is None else format_mb(value) for value in said]
    touched = "?" if touched_pages is None else format_mb(touched_pages * PAGE_BYTES)
    vsz, rss, pmap, pss = columns
    return f"  {name:<8} {tgid:>7} {vsz:>6} {rss:>7} {pmap:>9} {pss:>7} {touched:>6}  {note}".rstrip()


def _sum(values: Iterable[int | None]) -> int | None:
    """None if any value is unknown."""
    known = list(values)
    return None if None in known else sum(value or 0 for value in known)


def _report(read: Account) -> str:
    command = "shmtrace snapshot -p" if read.session.tier == tiers.PROC.name else "shmtrace -p"
    return f"\nThis is the report that `{command}` prints for any process:\n\n{report.render(read)}"


def format_mb(size_bytes: int) -> str:
    """In MB (2**20 bytes), with one decimal below 100 unless it is 0."""
    size_mb = size_bytes / 2**20
    return f"{size_mb:.0f}" if size_mb >= 100 else f"{size_mb:.1f}".removesuffix(".0")


def _wrap(paragraph: str, indent: str = "") -> str:
    return textwrap.fill(paragraph, formatting.COLUMNS, initial_indent=indent, subsequent_indent=indent)
