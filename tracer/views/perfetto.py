"""A capture as a trace for ui.perfetto.dev: region sizes, what was touched, and the processes' lifetimes.

What was touched is counted by process, by group of alike processes, and by the most telling text of the labels. Groups
and texts have a track each, the largest ones; the last track has the others' sum.

The format is JSON trace events. Times are microseconds since the capture began; earlier events are placed at its
beginning. Counters are in bytes. A process is numbered by its PID. If a PID was used again, each later process gets
another number, because Perfetto would merge them; its name then contains the PID.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tracer import alike, guess, labels
from tracer.account import read_labels, read_processes
from tracer.capture.capture import Capture
from tracer.formatting import printable
from tracer.model import NAMELESS, Account, Process
from tracer.views.json import rfc3339

HOST = 1 << 22  # the host's number, above every PID (PID_MAX_LIMIT); the regions' numbers follow
BY_GROUP, BY_LABEL = (1 << 30) - 2, (1 << 30) - 1  # the tracks of groups, and of texts
LATER = 1 << 30  # above those: processes whose PID was used before
MAX_COUNTS = 100_000  # counter events of one kind of track; with more, the time between two is made longer
MAX_TRACKS = 50  # of groups, and of texts
OTHERS = "[others]"

Event = dict[str, Any]
Counts = dict[tuple[int, int], int]
"""Pages by (step of time, row of a process or label)."""

TOUCHED = """
SELECT (first_ns - :began) / :step, {}, sum("end" - start) FROM extent WHERE process IS NOT NULL GROUP BY 1, 2
"""


def render(account: Account, capture: Capture) -> Iterator[str]:
    """The JSON document, one event to a line."""
    session = account.session
    about = {"exporter": f"shmtrace {session.version}", "started": rfc3339(session.started_ns)}
    head = {"displayTimeUnit": "ms", "otherData": about}
    yield json.dumps(head)[:-1] + ', "traceEvents": [\n'
    before = ""
    for event in _events(account, capture):
        yield f"{before}{json.dumps(event)}"
        before = ",\n"
    yield "\n]}\n"


def _events(account: Account, capture: Capture) -> Iterator[Event]:
    session = account.session
    began_ns = session.started_ns
    yield _name(HOST, f"host {printable(session.host)}")
    for time_ns, shmem_bytes in capture.rows("SELECT time_ns, shmem_bytes FROM host_sample ORDER BY time_ns"):
        yield _count(HOST, "Shmem", time_ns - began_ns, shmem_bytes)
    yield from _regions(account, capture)
    processes = read_processes(capture)
    numbers = _numbers(processes)
    yield from _lives(processes, numbers, session.ended_ns, began_ns)
    for time_ns, row, command in capture.rows("SELECT time_ns, process, command FROM exec ORDER BY time_ns"):
        yield _instant(numbers[row], f"exec {printable(command or '?')}", time_ns - began_ns)
    yield from _touched(account, capture, processes, numbers)


def _regions(account: Account, capture: Capture) -> Iterator[Event]:
    began_ns = account.session.started_ns
    for parent in account.parents:
        for region in parent.regions:
            number = HOST + region.row
            name = f"{guess.called(region, parent.process)} {region.id}"
            yield _name(number, f"region {printable(name)}")
            if region.created_ns and region.created_ns >= began_ns:
                yield _instant(number, "created", region.created_ns - began_ns)
            for time_ns, *sizes in capture.rows(
                "SELECT time_ns, allocated_bytes, resident_bytes, swapped_bytes FROM sample WHERE region = ?"
                " ORDER BY time_ns",
                (region.row,),
            ):
                for what, size_bytes in zip(("allocated", "resident", "swapped"), sizes):
                    if size_bytes is not None:
                        yield _count(number, what, time_ns - began_ns, size_bytes)
            if region.gone_ns:
                yield _instant(number, "gone", region.gone_ns - began_ns)
                yield _count(number, "allocated", region.gone_ns - began_ns, 0)


def _numbers(processes: dict[int, Process]) -> dict[int, int]:
    """The number of each process in the trace, by its row."""
    first: dict[int, int] = {}
    for row, process in sorted(processes.items(), key=lambda item: item[1].start_time_ns):
        first.setdefault(process.tgid, row)
    return {row: process.tgid if first[process.tgid] == row else LATER + row for row, process in processes.items()}


def _lives(processes: dict[int, Process], numbers: dict[int, int], ended_ns: int, began_ns: int) -> Iterator[Event]:
    for row, process in processes.items():
        number = numbers[row]
        started_ns = max(process.started_ns or 0, began_ns)
        command = printable(process.command or process.comm or "?")
        yield _name(number, command if number == process.tgid else f"{command} (PID {process.tgid}, used again)")
        yield {
            "ph": "X",
            "name": command,
            "pid": number,
            "tid": number,
            "ts": (started_ns - began_ns) / 1000,
            "dur": max((process.exited_ns or ended_ns) - started_ns, 0) / 1000,
            "args": {
                "tgid": process.tgid,
                "parent": process.parent,
                "cgroup": printable(process.cgroup or "?"),
                "unit": printable(process.unit or "?"),
                "started": rfc3339(process.started_ns),
                "exited": rfc3339(process.exited_ns),
                "exit_code": process.exit_code,
                "exit_signal": process.exit_signal,
                "oom_killed": process.oom_killed,
            },
        }


def _touched(
    account: Account, capture: Capture, processes: dict[int, Process], numbers: dict[int, int]
) -> Iterator[Event]:
    """Counter events: the bytes touched so far, of pages that are still allocated at the end."""
    step_ns, counts = _counts(account, capture, "process")
    yield from _counters(account, step_ns, counts, lambda row: (numbers[row], "touched"))
    groups = {row: alike.of_process(process) for row, process in processes.items()}
    yield _name(BY_GROUP, "touched by group of alike processes")
    yield from _tracks(account, step_ns, counts, BY_GROUP, groups)
    source = account.session.label
    if source:
        kind = labels.frames(source)[-1]
        texts = {row: label.told(kind) or NAMELESS for row, label in read_labels(capture).items()}
        yield _name(BY_LABEL, f"touched by {kind}")
        yield from _tracks(account, *_counts(account, capture, "ifnull(label, 0)"), BY_LABEL, texts)


def _counts(account: Account, capture: Capture, column: str) -> tuple[int, Counts]:
    """How long a step is, in nanoseconds, and the pages touched in each by the rows of a column."""
    session = account.session
    (extents,) = capture.rows("SELECT count(*) FROM extent")[0]
    step_ns = 1_000_000_000 * max(1, extents // MAX_COUNTS)
    found = capture.each(TOUCHED.format(column), {"began": session.started_ns, "step": step_ns})
    counts = {(step, row): pages for step, row, pages in found}
    lasted_ns = session.ended_ns - session.started_ns
    while len(counts) > MAX_COUNTS and step_ns < lasted_ns:  # one event a row is the minimum
        step_ns *= 2
        closer, counts = counts, {}
        for (step, row), pages in closer.items():
            counts[step // 2, row] = counts.get((step // 2, row), 0) + pages
    return step_ns, counts


def _tracks(account: Account, step_ns: int, counts: Counts, number: int, names: dict[int, str]) -> Iterator[Event]:
    """Counter events of the tracks of one number, by name. Rows without one are unknown."""
    shown = {row: printable(name) for row, name in names.items()}  # tracks of one name would be one in Perfetto
    totals: Counter[str] = Counter()
    for (_, row), pages in counts.items():
        totals[shown.get(row, "?")] += pages
    largest = {name for name, _ in totals.most_common(MAX_TRACKS)}

    def track(row: int) -> tuple[int, str]:
        name = shown.get(row, "?")
        return number, name if name in largest else OTHERS

    yield from _counters(account, step_ns, counts, track)


def _counters(
    account: Account, step_ns: int, counts: Counts, track: Callable[[int], tuple[int, str]]
) -> Iterator[Event]:
    """Counter events of the tracks that rows belong to, each a number and a name."""
    lasted_ns, page_bytes = account.session.ended_ns - account.session.started_ns, account.session.page_bytes
    grown: Counter[tuple[int, tuple[int, str]]] = Counter()
    for (step, row), pages in sorted(counts.items()):
        grown[step, track(row)] += pages
    sums: Counter[tuple[int, str]] = Counter()
    for (step, of), pages in grown.items():
        sums[of] += pages
        yield _count(*of, min((step + 1) * step_ns, lasted_ns), sums[of] * page_bytes)


def _name(number: int, name: str) -> Event:
    return {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}


def _count(number: int, name: str, since_ns: int, size_bytes: int) -> Event:
    return {"ph": "C", "name": name, "pid": number, "ts": max(since_ns, 0) / 1000, "args": {"bytes": size_bytes}}


def _instant(number: int, name: str, since_ns: int) -> Event:
    return {"ph": "i", "s": "p", "name": name, "pid": number, "tid": number, "ts": max(since_ns, 0) / 1000}
