"""The difference of two captures, as text and as JSON."""

from __future__ import annotations

from tracer.formatting import COLUMNS, fit, moment, printable
from tracer.model import Account
from tracer.tables.diff import Diff
from tracer.views import table
from tracer.views.json import SCHEMA, rfc3339

MAX_ROWS = 20


def text(found: Diff, a: Account, b: Account) -> str:
    """The two captures and tables of what changed, in 80 columns and at most MAX_ROWS rows each."""
    lines = []
    for name, account in (("A", a), ("B", b)):
        session = account.session
        cut_off = "" if session.complete else ", cut off"
        lines.append(
            f"{name}  {printable(session.host)}  {moment(session.started_ns)} to {moment(session.ended_ns)}{cut_off}"
        )
    lines += [
        "same boot: matched by inode and start time, then by name"
        if found.same_boot
        else "different boots or hosts: matched by name"
    ]
    if found.hosts:
        lines += ["", *table.text(found.hosts, limit=MAX_ROWS)]
    lines += ["", *table.text(found.regions, limit=MAX_ROWS), ""]
    lines += table.text(found.processes, limit=MAX_ROWS)
    if found.labels:
        lines += ["", *table.text(found.labels, limit=MAX_ROWS)]
    return "\n".join(fit(line, COLUMNS) for line in lines)


def json(found: Diff, a: Account, b: Account) -> str:
    """One JSON document, with all rows and their sums."""
    times = [
        {"host": one.session.host, "started": rfc3339(one.session.started_ns), "ended": rfc3339(one.session.ended_ns)}
        for one in (a, b)
    ]
    document = {"schema": SCHEMA, "by": "diff", "a": times[0], "b": times[1], "same_boot": found.same_boot}
    sums = {}
    parts = {"regions": found.regions, "processes": found.processes, "labels": found.labels, "hosts": found.hosts}
    for name, part in parts.items():
        document[name] = table.records(part) if part else None
        sums[name] = table.record(part.columns, part.total) if part else None
    return table.dumps({**document, "sums": sums})
