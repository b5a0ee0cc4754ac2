"""A capture as a trace that ui.perfetto.dev opens: sizes of regions, what each process touched, and the lives of all.

In the JSON form of trace events: times are microseconds since the capture began, and what took place before it began is
put at its beginning. Counters are in bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tracer import labels
from tracer.account import Account, Process, read_processes, region_id
from tracer.capture import Capture
from tracer.procfs import PAGE_BYTES
from tracer.views.json import rfc3339
from tracer.views.text import printable

HOST = 1 << 22  # above every PID (PID_MAX_LIMIT): the host, and then a region each
MAX_COUNTS = 100_000  # of what processes touched; where there are more, they are told less often

Event = dict[str, Any]

TOUCHED = """
SELECT process, region, (first_ns - :began) / :step AS step, sum("end" - start)
FROM extent WHERE process IS NOT NULL GROUP BY process, region, step ORDER BY step
"""


def render(account: Account, capture: Capture) -> Iterator[str]:
    """One event to a line."""
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
    yield from _lives(processes, session.ended_ns, began_ns)
    for time_ns, row, command in capture.rows("SELECT time_ns, process, command FROM exec ORDER BY time_ns"):
        yield _instant(processes[row].tgid, f"exec {printable(command or '?')}", time_ns - began_ns)
    yield from _touched(capture, processes, began_ns)


def _regions(account: Account, capture: Capture) -> Iterator[Event]:
    began_ns = account.session.started_ns
    rows = {tuple(key): row for row, *key in capture.rows("SELECT id, dev, ino, generation FROM region")}
    for parent in account.parents:
        for region in parent.regions:
            row = rows[region.dev, region.ino, region.generation]
            number = HOST + row
            name = f"{labels.guess(region, parent.process) or region.name} {region_id(region)}"
            yield _name(number, f"region {printable(name)}")
            if region.created_ns and region.created_ns >= began_ns:
                yield _instant(number, "created", region.created_ns - began_ns)
            for time_ns, *sizes in capture.rows(
                "SELECT time_ns, allocated_bytes, resident_bytes, swapped_bytes FROM sample WHERE region = ?"
                " ORDER BY time_ns",
                (row,),
            ):
                for what, size_bytes in zip(("allocated", "resident", "swapped"), sizes):
                    if size_bytes is not None:
                        yield _count(number, what, time_ns - began_ns, size_bytes)
            if region.gone_ns:
                yield _instant(number, "gone", region.gone_ns - began_ns)
                yield _count(number, "allocated", region.gone_ns - began_ns, 0)


def _lives(processes: dict[int, Process], ended_ns: int, began_ns: int) -> Iterator[Event]:
    for process in processes.values():
        started_ns = max(process.started_ns or 0, began_ns)
        command = printable(process.command or process.comm or "?")
        yield _name(process.tgid, command)
        yield {
            "ph": "X",
            "name": command,
            "pid": process.tgid,
            "tid": process.tgid,
            "ts": (started_ns - began_ns) / 1000,
            "dur": max((process.exited_ns or ended_ns) - started_ns, 0) / 1000,
            "args": {
                "parent": process.parent,
                "cgroup": printable(process.cgroup or "?"),
                "started": rfc3339(process.started_ns),
                "exited": rfc3339(process.exited_ns),
            },
        }


def _touched(capture: Capture, processes: dict[int, Process], began_ns: int) -> Iterator[Event]:
    """What each process has touched of all regions, of the pages that are there at the end: a sum that grows."""
    (extents,) = capture.rows("SELECT count(*) FROM extent")[0]
    step_ns = 1_000_000_000 * max(1, extents // MAX_COUNTS)
    sums: dict[int, int] = {}
    for row, _, step, pages in capture.rows(TOUCHED, {"began": began_ns, "step": step_ns}):
        sums[row] = sums.get(row, 0) + pages * PAGE_BYTES
        yield _count(processes[row].tgid, "touched", (step + 1) * step_ns, sums[row])


def _name(number: int, name: str) -> Event:
    return {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}


def _count(number: int, name: str, since_ns: int, size_bytes: int) -> Event:
    return {"ph": "C", "name": name, "pid": number, "ts": max(since_ns, 0) / 1000, "args": {"bytes": size_bytes}}


def _instant(number: int, name: str, since_ns: int) -> Event:
    return {"ph": "i", "s": "p", "name": name, "pid": number, "tid": number, "ts": max(since_ns, 0) / 1000}
