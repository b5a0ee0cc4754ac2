"""The web page of a capture: one file that loads no other.

The data is embedded as JSON. The page's script inserts every value as text, never as markup.

What was touched is embedded once, as cells: the pages that one toucher touched of one region in one interval. The page
adds them up by the dimension and in the window that its reader chooses.
"""

from __future__ import annotations

import base64
import hashlib
import json
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tracer import answer as answers
from tracer import guess
from tracer.capture.capture import Capture
from tracer.formatting import fit, printable
from tracer.model import NAMELESS, Account, Process
from tracer.shipped import shipped
from tracer.tables import groups
from tracer.tables.table import Column, Table, told
from tracer.views import colours, pictures
from tracer.views.cells import Cells, Entry, Owners, cells, entries
from tracer.views.growth import growth
from tracer.views.notes import notes

PAGE, VENDOR = shipped("views/page"), shipped("views/vendor")
STYLES = [VENDOR / "uPlot.min.css", PAGE / "page.css"]
PARTS = ("data", "choice", "growth", "map", "tree", "table", "head")
SCRIPTS = [VENDOR / "uPlot.iife.min.js", *(PAGE / f"{name}.js" for name in PARTS)]
MAX_NAME = 200  # characters; a command line may have megabytes
MAX_ROWS = 500  # of a table by container or stack; one more row sums up the rest
MAX_EXECS = 500  # in the table


def render(account: Account, capture: Capture, marks: Sequence[tuple[int, str]] = ()) -> str:
    """The page of a capture and its account. marks: (CLOCK_REALTIME, text) of what a user knows to have happened."""
    style = "\n".join(path.read_text("utf-8") for path in STYLES)
    licence = (VENDOR / "LICENSE.uPlot").read_text("utf-8")
    script = "\n".join([f"/*! uPlot\n\n{licence}\n*/", *(path.read_text("utf-8") for path in SCRIPTS)])
    return string.Template((PAGE / "page.html").read_text("utf-8")).substitute(
        script_hash=_hash(script),
        style_hash=_hash(style),
        script=script,
        style=style,
        data=_json(data(account, capture, marks)),
    )


def _hash(text: str) -> str:
    """The hash of a script or style, as a Content-Security-Policy wants it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(document: dict[str, Any]) -> str:
    """JSON that is safe in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True)  # U+2028 and all else beyond ASCII as \u….
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ---- what the page shows ----


class Lists:
    """Convert references for the page's data.

    A process becomes its position among those that the page has, a time microseconds since the capture began.
    """

    def __init__(
        self, capture: Capture, began_ns: int, processes: Mapping[int, Process], wanted: Iterable[int]
    ) -> None:
        """processes: all, by row. wanted: those that the page has; those above them come with them."""
        self.began_ns = began_ns // 1000 * 1000
        self.all = processes
        parents: dict[int, int] = dict(capture.each("SELECT id, parent FROM process WHERE parent IS NOT NULL"))
        kept: set[int] = set()
        for row in wanted:
            while row in self.all and row not in kept:
                kept.add(row)
                row = parents.get(row, 0)
        self.processes = [self.all[row] for row in sorted(kept)]
        self.positions = {process.row: position for position, process in enumerate(self.processes)}
        self.parents = [self.positions.get(parents.get(process.row, 0)) for process in self.processes]
        self.commands: dict[str, int] = {}

    def who(self, process: Process | None) -> int | None:
        """Position of a process."""
        return self.positions[process.row] if process else None

    def when(self, time_ns: int | None) -> int | None:
        """Microseconds since the capture began; None stays None."""
        return None if time_ns is None else (time_ns - self.began_ns) // 1000

    def command(self, text: str) -> int:
        """Position of a command line, which is added if it is new."""
        return self.commands.setdefault(_name(text), len(self.commands))


def data(account: Account, capture: Capture, marks: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
    """The page's data, as a JSON document."""
    session = account.session
    within = pictures.bins(session)
    owners = Owners(account, capture)
    told = entries(account, within)
    touched = list(pictures.touched(capture, within, owners))
    found, moved = cells(touched, owners, told, within).narrowed()
    execs = capture.rows("SELECT * FROM exec ORDER BY time_ns DESC LIMIT ?", (MAX_EXECS,))[::-1]
    makers = [entry.region.creator.process.row for entry in told if entry.region and entry.region.creator]
    parents = [entry.parent.row for entry in told if entry.parent]
    wanted = [*map(_row, owners.places["process"]), *makers, *parents, *(row["process"] for row in execs)]
    lists = Lists(capture, session.started_ns, owners.processes, wanted)
    left_out = [region for entry in told if not entry.region for region in entry.regions]
    maps = {each.region: _map(each, moved) for each in touched}
    return {
        "kills": " ".join(answers.kills(account)),
        "headline": answers.grown(account),
        "balance": balance(account),
        "session": _session(account, lists),
        "bins": {
            "origin": (within.origin_ns - lists.began_ns) // 1000,
            "width": within.width_ns // 1000,
            "count": within.number,
        },
        "dimensions": [
            {"by": by, "values": [_name(str(value) or NAMELESS) for value in values]}
            for by, values in owners.places.items()
            if by != "process"
        ],
        "by": colours.most_telling(owners.sizes),
        "short": [fit(printable(str(value)), answers.NAME_COLUMNS) for value in owners.places["command"]],
        "who": _whos(found.whos, owners, lists),
        "cells": _columns(found),
        "regions": [_entry(entry, lists, maps) for entry in told],
        "processes": _processes(account, owners, lists),
        "execs": {
            "time": [lists.when(row["time_ns"]) for row in execs],
            "process": [lists.positions.get(row["process"]) for row in execs],
            "command": [lists.command(row["command"] or row["comm"] or "?") for row in execs],
        },
        "left_out": {
            "regions": len(left_out),
            "peak_bytes": max((region.peak_bytes for region in left_out), default=0),
            "processes": len(lists.all) - len(lists.processes),
        },
        "notes": [
            {"time": lists.when(note.time_ns), "kind": note.kind, "text": _name(note.text)}
            for note in notes(account, capture, marks)
        ],
        "events": _events(account, capture, lists.all.values(), within),
        "growth": growth(account, capture, told, touched, within),
        "tables": [
            _table(groups.table(account, by), lists)
            for by in [*groups.telling(account), *["unmapped"] * bool(account.unmapped)]
            if by not in owners.sizes
        ],
        "commands": list(lists.commands),  # last, when all are in it
    }


def _row(value: colours.Value) -> int:
    """A process as a value: its row."""
    return int(value or 0)


def _session(account: Account, lists: Lists) -> dict[str, Any]:
    session = account.session
    return {
        **{name: _name(getattr(session, name)) for name in ("host", "kernel", "version", "tier", "mechanism")},
        "blind_to": session.blind_to,
        "warnings": [printable(text) for text in session.warnings],
        "page_bytes": session.page_bytes,
        "started": session.started_ns // 1000,
        "ended": lists.when(session.ended_ns),
        "complete": session.complete,
        "sum_of_rss_bytes": session.sum_of_rss_bytes,
        "shmem_total_bytes": session.shmem_total_bytes,
        "shmem_unexplained_bytes": account.shmem_unexplained_bytes,
        "lost_events": session.lost_events,
        "lost_pages": session.lost_pages,
        "lost_probes": session.lost_probes,
    }


# ---- regions ----


FIGURES = "size_bytes allocated_bytes peak_bytes resident_bytes swapped_bytes before_bytes unseen_bytes".split()  # noqa: SIM905


def _entry(entry: Entry, lists: Lists, maps: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    region = entry.region
    edges = {"created_edge": entry.created_edge, "gone_edge": entry.gone_edge}
    if region is None:
        name = f"{len(entry.regions)} smaller regions"
        return {"name": name, "label": None, **edges, **{figure: entry.sum(figure) for figure in FIGURES}, "map": None}
    return {
        "host": region.host,
        "id": region.id,
        "kind": region.kind,
        "name": _name(region.name),
        "label": guess.guess(region, entry.parent),
        "creator": lists.who(region.creator.process) if region.creator else None,
        "how": region.creator.how if region.creator else None,
        "created": lists.when(region.created_ns),
        "gone": lists.when(region.gone_ns),
        **edges,
        "grown_bytes": region.grown_bytes,
        **{figure: getattr(region, figure) for figure in FIGURES},
        "mappers": len(region.mappers),
        "map": maps.get(region.row, NO_MAP),
    }


def _map(touched: pictures.Touched, moved: Sequence[int]) -> dict[str, Any]:
    """The spans of a map as columns; each span begins at a distance (gap) from the end of the one before.

    In an exact map pages and present are left out: they equal the length. moved: the page's number of each who.
    """
    exact, spans = touched.merged == 1, touched.spans
    return {
        "merged": touched.merged,
        "gap": [span.start - end for span, end in zip(spans, [0, *(span.end for span in spans)])],
        "length": [span.end - span.start for span in spans],
        "who": [span.who if span.who < 0 else moved[span.who] for span in spans],
        "bin": [span.bin for span in spans],
        "pages": None if exact else [span.pages for span in spans],
        "present": None if exact else [span.present for span in spans],
    }


NO_MAP = _map(pictures.Touched(0, {}, 1, []), [])


# ---- what was touched, and when ----


def _columns(cells: Cells) -> dict[str, list[int]]:
    """The cells as columns: for each region and who, how many bins follow. A bin is as far from the one before."""
    ordered = sorted((key, sorted(bins.items())) for key, bins in cells.pages.items())
    return {
        "region": [region for (region, _), _ in ordered],
        "who": [who for (_, who), _ in ordered],
        "bins": [len(bins) for _, bins in ordered],
        "bin": [interval for _, bins in ordered for interval, _ in bins],
        "pages": [pages for _, bins in ordered for _, pages in bins],
    }


def _whos(whos: Sequence[tuple[int, ...]], owners: Owners, lists: Lists) -> dict[str, list[int]]:
    """The place of each who in each dimension; of a process its position."""
    columns = zip(owners.places, zip(*whos)) if whos else ((by, ()) for by in owners.places)
    found = {by: list(places) for by, places in columns}
    rows = list(owners.places["process"])
    found["process"] = [place if place < 0 else lists.positions[_row(rows[place])] for place in found["process"]]
    return found


def _processes(account: Account, owners: Owners, lists: Lists) -> dict[str, Any]:
    freed: Counter[int] = Counter()
    faults: dict[int, int] = {}
    for region in account.regions:
        for toucher in region.touchers:
            freed[toucher.process.row] += toucher.freed_bytes
            if toucher.faults is not None:
                faults[toucher.process.row] = faults.get(toucher.process.row, 0) + toucher.faults
    return {
        "tgid": [process.tgid for process in lists.processes],
        "parent": lists.parents,
        "command": [lists.command(process.who.partition(" ")[2]) for process in lists.processes],
        "started": [lists.when(process.started_ns) for process in lists.processes],
        "exited": [lists.when(process.exited_ns) for process in lists.processes],
        "ending": {
            position: process.ending for position, process in enumerate(lists.processes) if process.ending != "exited"
        },
        "outside_tree": [int(process.outside_tree) for process in lists.processes],
        "freed_bytes": [freed[process.row] for process in lists.processes],
        "faults": [faults.get(process.row) for process in lists.processes],
        "group": [owners.place_of("command", process) for process in lists.processes],
        "unit": [owners.place_of("unit", process) for process in lists.processes],
        "host": [owners.place_of("host", process) for process in lists.processes] if "host" in owners.places else [],
    }


def _events(
    account: Account, capture: Capture, processes: Iterable[Process], within: pictures.Bins
) -> dict[str, list[int]]:
    """How many of what happened in each interval."""
    processes = list(processes)
    session = account.session
    regions = [region for region in account.regions if region.peak_bytes]
    times: dict[str, Iterable[int | None]] = {
        "starts": (process.started_ns for process in processes),
        "exits": (process.exited_ns for process in processes),
        "execs": (time_ns for (time_ns,) in capture.each("SELECT time_ns FROM exec")),
        "made": (region.created_ns for region in regions),
        "gone": (region.gone_ns for region in regions),
    }
    return {
        name: _counts(
            within, (time for time in found if time is not None and session.since_ns < time <= session.ended_ns)
        )
        for name, found in times.items()
    }


def _counts(within: pictures.Bins, times: Iterable[int]) -> list[int]:
    found = Counter(map(within.of, times))
    return [found[number] for number in range(within.number)]


# ---- tables ----


def _table(table: Table, lists: Lists) -> dict[str, Any]:
    """A table as columns. Rows beyond MAX_ROWS are summed up, except the parts that no process touched."""
    columns = told(table.columns, table.rows)
    first, rest, parts = table.cut(MAX_ROWS)
    rows = [*first, *parts]
    foot = [_rest(columns, rest)] if rest else []
    foot += [] if table.total is None else [[_value(column, table.total, lists) for column in columns]]
    return {
        "by": table.by,
        "columns": [
            {
                "title": column.title,
                "unit": column.name.rpartition("_")[2] if column.align == ">" else "text",
                "values": [_value(column, row, lists) for row in rows],
            }
            for column in columns
        ],
        "foot": foot,
    }


def _rest(columns: list[Column], rows: Sequence[Any]) -> list[int | str | None]:
    """One row that sums up the bytes of these rows."""
    sums = [
        sum(int(column.get(row) or 0) for row in rows) if column.name.endswith("_bytes") else None for column in columns
    ]
    name = next(place for place, column in enumerate(columns) if column.align == "<")
    return [*sums[:name], f"…{len(rows)} more", *sums[name + 1 :]]


def _value(column: Column, row: Any, lists: Lists) -> int | str | None:
    value = column.get(row)
    if column.align == "<":
        return _name(column.shown(row) if column.shown else None if value is None else str(value))
    return None if value is None else lists.when(int(value)) if column.name.endswith("_ns") else value


def _name(text: str | None) -> str:
    name = printable(text or "?")
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


# ---- the balance ----


def balance(account: Account) -> dict[str, int]:
    """The balance in pages of all regions. A region that is gone counts with what it had when it went."""
    regions, page_bytes = account.regions, account.session.page_bytes
    return {
        "allocated": sum(region.allocated_bytes for region in regions) // page_bytes,
        "touched": sum(region.touched_bytes for region in regions) // page_bytes,
        "before": sum(region.before_bytes for region in regions) // page_bytes,
        "unseen": sum(region.unseen_bytes for region in regions) // page_bytes,
    }
