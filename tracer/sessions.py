"""The facts about a capture as a whole; of a fleet, what its captures have in common, or their sum. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.formatting import printable
from tracer.labels import parse as parse_label
from tracer.model import Session
from tracer.proc.private_memory import EXACT

MAX_WARNINGS = 20  # of many hosts
MAX_WARNING = 200  # characters, of a host
WORDS = ("kernel", "version", "tier", "mechanism")
"""What a trace writes of itself. A stranger's capture may have anything there, so it is made printable here."""


def read(capture: Capture) -> Session:
    """The facts about a capture; about those of a fleet, together.

    Raises ShmtraceError if it was cut off before anything was recorded.
    """
    return together(capture, read_each(capture).values())


def by_host(found: Iterable[Session]) -> list[Session]:
    """One for each host."""
    hosts: dict[str, list[Session]] = {}
    for session in found:
        hosts.setdefault(session.host, []).append(session)
    return [_sum(some) for some in hosts.values()]


def read_each(capture: Capture) -> dict[int | None, Session]:
    """The facts about a capture, by None; about those of a fleet, by row. Raises ShmtraceError if there are none."""
    found: dict[int | None, Session] = {}
    for row in capture.rows("SELECT * FROM session"):
        try:
            parse_label(row["label"] or "php")
        except ValueError as error:
            raise capture.damaged(f"session.label: {error}") from None
        known = {
            **{name: printable(row[name]) for name in WORDS},
            "blind_to": [*map(printable, _lines(row["blind_to"]))],
            "warnings": _lines(row["warnings"]),
            "complete": bool(row["complete"]),
            "ended_ns": max(row["started_ns"], row["ended_ns"]),  # the clock may have been set back
        }
        session = Session(**{**{name: row[name] for name in Session._fields}, **known})
        found[row["id"] if capture.is_fleet else None] = session
    if not found:
        raise ShmtraceError("the capture is empty", "it was cut off before anything was recorded; record another")
    return found


def together(capture: Capture, found: Iterable[Session]) -> Session:
    """The facts about all of a capture, of which these are the sessions."""
    summed = _sum(list(found))
    return summed._replace(warnings=[*capture.remarks, *summed.warnings])


def _sum(sessions: Sequence[Session]) -> Session:
    """What sessions have in common, or their sum. None: it is not known of all of them."""
    first = sessions[0]
    if len(sessions) == 1:
        return first
    nr_hosts = len({session.host for session in sessions})

    def each(name: str) -> list[Any]:
        """The different values, in the order of how many have them."""
        return [value for value, _ in Counter(getattr(session, name) for session in sessions).most_common()]

    def total(name: str) -> Any:
        values = [getattr(session, name) for session in sessions]
        return None if None in values else sum(values)

    texts: dict[str, Any] = {name: ", ".join(filter(None, each(name))) for name in WORDS}
    sums = (
        *("sum_of_rss_bytes", "private_start_bytes", "private_end_bytes"),
        *("lost_events", "lost_pages", "lost_probes", "self_cpu_seconds", "self_rss_bytes"),
    )
    started_ns = min(session.started_ns for session in sessions)
    since_ns = min(session.since_ns for session in sessions)
    return Session(
        host=first.host if nr_hosts == 1 else f"{nr_hosts} hosts",
        **texts,
        page_bytes=first.page_bytes,
        blind_to=list(dict.fromkeys(line for session in sessions for line in session.blind_to)),
        started_ns=started_ns,
        ended_ns=max(session.ended_ns for session in sessions),
        complete=all(session.complete for session in sessions),
        private_how=EXACT if each("private_how") == [EXACT] else next(iter(each("private_how"))),
        warnings=_warnings(sessions),
        shmem_total_bytes=None,
        attach_seconds=None,
        label="\n".join(filter(None, each("label"))) or None,
        part_started_ns=since_ns if since_ns > started_ns else None,
        nr_ooms=_nr_ooms(sessions),
        **{name: total(name) for name in sums},
    )


def _nr_ooms(sessions: Sequence[Session]) -> int | None:
    """Of each host the most: each of its traces has counted all kills while it ran."""
    most: dict[str, int] = {}
    for session in sessions:
        if session.nr_ooms is None:
            return None
        most[session.host] = max(most.get(session.host, 0), session.nr_ooms)
    return sum(most.values())


def _warnings(sessions: Sequence[Session]) -> list[str]:
    """Those of most hosts, each once, with a host that has it."""
    hosts: dict[str, dict[str, None]] = {}
    for session in sessions:
        for text in session.warnings:
            hosts.setdefault(text, {})[session.host] = None
    found = sorted(hosts.items(), key=lambda item: -len(item[1]))
    told = [
        f"{next(iter(some))}{f' and {len(some) - 1} more' * (len(some) > 1)}: {textwrap.shorten(text, MAX_WARNING)}"
        for text, some in found[:MAX_WARNINGS]
    ]
    more = len(found) - MAX_WARNINGS
    return [*told, f"there are {more} more warnings, in the table session"] if more > 0 else told


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]
