"""The web page of a capture: one file that loads no other.

The data is embedded as JSON. The page's script inserts every value as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tracer import guess, labels
from tracer.account import NAMELESS, Account, Parent, Process, Region
from tracer.answer import NO_ANSWER, answer
from tracer.capture.capture import PAGE_BYTES, Capture
from tracer.formatting import printable
from tracer.shipped import shipped
from tracer.tables import groups
from tracer.tables.table import Column, Table, told
from tracer.views import pictures

PAGE, VENDOR = shipped("views/page"), shipped("views/vendor")
STYLES = [VENDOR / "uPlot.min.css", PAGE / "page.css"]
SCRIPTS = [VENDOR / "uPlot.iife.min.js", *(PAGE / f"{name}.js" for name in ("data", "growth", "map", "tree", "table"))]
MAX_NAME = 300  # characters; a command line may have megabytes
MAX_REGIONS = 1000  # shown, the biggest; a database may create a region for every parallel query
MAX_ROWS = 500  # of a table by label, unit, container or stack; one more row sums up the rest
MAX_TEXTS = 1 << 11  # label texts in the maps, those with most pages
OTHER_TEXT = -2  # instead of a text beyond MAX_TEXTS


def render(account: Account, capture: Capture) -> str:
    """The page of a capture and its account."""
    style = "\n".join(path.read_text("utf-8") for path in STYLES)
    licence = (VENDOR / "LICENSE.uPlot").read_text("utf-8")
    script = "\n".join([f"/*! uPlot\n\n{licence}\n*/", *(path.read_text("utf-8") for path in SCRIPTS)])
    return string.Template((PAGE / "page.html").read_text("utf-8")).substitute(
        script_hash=_hash(script),
        style_hash=_hash(style),
        script=script,
        style=style,
        data=_json(data(account, capture)),
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

    A process becomes its position in the list of all processes, a label text its position among the most frequent ones,
    a time microseconds since the capture began.
    """

    def __init__(self, capture: Capture, began_ns: int) -> None:
        self.began_ns = began_ns
        self.processes = capture.rows("SELECT * FROM process ORDER BY id")
        self.positions = {row["id"]: position for position, row in enumerate(self.processes)}
        self.commands: dict[str, int] = {}
        self.texts: dict[int, int] = {}

    def who(self, process: Process | None) -> int | None:
        """Position of a process."""
        return self.positions[process.row] if process else None

    def when(self, time_ns: int | None) -> int | None:
        """Microseconds since the capture began; None stays None."""
        return None if time_ns is None else (time_ns - self.began_ns) // 1000

    def choose_texts(self, spans: Iterable[pictures.Span]) -> None:
        """Keep the MAX_TEXTS texts that have most pages in these spans."""
        pages: Counter[int] = Counter()
        for span in spans:
            pages[span.text] += span.pages
        del pages[pictures.UNKNOWN]
        self.texts = {number: position for position, (number, _) in enumerate(pages.most_common(MAX_TEXTS))}

    def text(self, number: int) -> int:
        """Position of a label text; UNKNOWN or OTHER_TEXT if it is not in the page."""
        return number if number == pictures.UNKNOWN else self.texts.get(number, OTHER_TEXT)

    def command(self, row: sqlite3.Row) -> int:
        """Position of a command line, which is added if it is new."""
        return self.commands.setdefault(_name(row["command"] or row["comm"]), len(self.commands))


def data(account: Account, capture: Capture) -> dict[str, Any]:
    """The page's data, as a JSON document."""
    session = account.session
    lists = Lists(capture, session.started_ns)
    regions = {region.row: region for region in account.regions}
    shown = sorted(regions, key=lambda row: (-regions[row].peak_bytes, row))[:MAX_REGIONS]
    kind = labels.columns(session.label)[0] if session.label else None
    texts, numbers = _texts(capture, kind) if kind else ([], {})
    maps = pictures.maps(capture, set(shown), numbers)
    lists.choose_texts(span for _, spans in maps.values() for span in spans)
    drawn = {row: maps.get(row, (1, [])) for row in shown}
    left_out = [region for region in account.regions if region.row not in drawn]
    coloured = [process.row for process in pictures.coloured(account)]
    execs = capture.rows("SELECT * FROM exec ORDER BY time_ns")
    return {
        "headline": headline(account),
        "balance": balance(account),
        "session": {
            **{name: _name(getattr(session, name)) for name in ("host", "kernel", "version", "tier", "mechanism")},
            "blind_to": session.blind_to,
            "warnings": [printable(text) for text in session.warnings],
            "started": session.started_ns // 1000,
            "ended": lists.when(session.ended_ns),
            "complete": session.complete,
            "sum_of_rss_bytes": session.sum_of_rss_bytes,
            "shmem_total_bytes": session.shmem_total_bytes,
            "shmem_unexplained_bytes": account.shmem_unexplained_bytes,
            "lost_events": session.lost_events,
            "lost_pages": session.lost_pages,
            "lost_probes": session.lost_probes,
        },
        "processes": {
            "tgid": [row["tgid"] for row in lists.processes],
            "parent": [lists.positions.get(row["parent"]) for row in lists.processes],
            "command": [lists.command(row) for row in lists.processes],
            "started": [lists.when(row["started_ns"]) for row in lists.processes],
            "exited": [lists.when(row["exited_ns"]) for row in lists.processes],
            "outside_tree": [row["outside_tree"] for row in lists.processes],
        },
        "execs": {
            "time": [lists.when(row["time_ns"]) for row in execs],
            "process": [lists.positions.get(row["process"]) for row in execs],
            "command": [lists.command(row) for row in execs],
        },
        "regions": [
            {**_region(region, parent, lists), "map": _map(*drawn[region.row], lists, kind)}
            for parent in account.parents
            for region in parent.regions
            if region.row in drawn
        ],
        "left_out": {
            "regions": len(left_out),
            "peak_bytes": max((region.peak_bytes for region in left_out), default=0),
        },
        **({"doing": {"kind": kind, "texts": [printable(texts[i]) or NAMELESS for i in lists.texts]}} if kind else {}),
        "tables": [
            _table(groups.table(account, by), lists)
            for by in [*groups.telling(account), *["unmapped"] * bool(account.unmapped)]
        ],
        "coloured": [lists.positions[row] for row in coloured],
        "growth": pictures.growth(capture, account, regions, coloured),
        "commands": list(lists.commands),  # last, when all are in it
    }


def _texts(capture: Capture, kind: str) -> tuple[list[str], dict[int, int]]:
    """(distinct label texts of one kind, the number of a label's text by the label's row). "": the text was empty."""
    numbers: dict[str, int] = {}
    rows = capture.each(f"SELECT id, {kind} FROM label")  # noqa: S608
    by_row = {row: numbers.setdefault(text or "", len(numbers)) for row, text in rows}
    return list(numbers), by_row


FIGURES = "size_bytes allocated_bytes peak_bytes resident_bytes swapped_bytes before_bytes unseen_bytes".split()  # noqa: SIM905


def _region(region: Region, parent: Parent, lists: Lists) -> dict[str, Any]:
    return {
        "id": region.id,
        "kind": region.kind,
        "name": _name(region.name),
        "label": guess.guess(region, parent.process),
        "creator": lists.who(region.creator.process) if region.creator else None,
        "how": region.creator.how if region.creator else None,
        "created": lists.when(region.created_ns),
        "gone": lists.when(region.gone_ns),
        "grown_bytes": region.grown_bytes,
        **{name: getattr(region, name) for name in FIGURES},
        "mappers": len(region.mappers),
        "touchers": {
            "process": [lists.who(toucher.process) for toucher in region.touchers],
            "touched_bytes": [toucher.touched_bytes for toucher in region.touchers],
            "freed_bytes": [toucher.freed_bytes for toucher in region.touchers],
            "faults": [toucher.faults for toucher in region.touchers],
            "first": [lists.when(toucher.first_ns) for toucher in region.touchers],
            "last": [lists.when(toucher.last_ns) for toucher in region.touchers],
        },
    }


def _map(cell_pages: int, spans: list[pictures.Span], lists: Lists, kind: str | None) -> dict[str, Any]:
    """The spans of a map as columns; each span begins at a distance (gap) from the end of the one before.

    In an exact map, with cells of one page, pages and present are left out: they equal the length.
    """
    exact = cell_pages == 1
    firsts = [lists.when(span.first_ns) for span in spans]
    lasts = [lists.when(span.last_ns) for span in spans]
    return {
        "cell_pages": cell_pages,
        "gap": [span.start - end for span, end in zip(spans, [0, *(span.end for span in spans)])],
        "length": [span.end - span.start for span in spans],
        "process": [pictures.BEFORE if span.process is None else lists.positions[span.process] for span in spans],
        "pages": None if exact else [span.pages for span in spans],
        "present": None if exact else [span.present for span in spans],
        "first": firsts,
        "lasted": [None if first is None or last is None else last - first for first, last in zip(firsts, lasts)],
        **({"text": [lists.text(span.text) for span in spans]} if kind else {}),
    }


def _table(table: Table, lists: Lists) -> dict[str, Any]:
    """A table as columns. Rows beyond MAX_ROWS are summed up, except the parts that no process touched."""
    part = next((column for column in table.columns if column.name == "part"), None)
    touched = [row for row in table.rows if not part or part.get(row) == "touched"]
    columns = told(table.columns, table.rows)
    rest, rows = touched[MAX_ROWS:], [*touched[:MAX_ROWS], *table.rows[len(touched) :]]
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


def _rest(columns: list[Column], rows: list[Any]) -> list[int | str | None]:
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


# ---- the answer ----


def headline(account: Account) -> str:
    """The answer, or that there is none."""
    return answer(account).text or NO_ANSWER


def balance(account: Account) -> dict[str, int]:
    """The balance in pages of all regions. A region that is gone counts with what it had when it went."""
    regions = account.regions
    return {
        "allocated": sum(region.allocated_bytes for region in regions) // PAGE_BYTES,
        "touched": sum(region.touched_bytes for region in regions) // PAGE_BYTES,
        "before": sum(region.before_bytes for region in regions) // PAGE_BYTES,
        "unseen": sum(region.unseen_bytes for region in regions) // PAGE_BYTES,
    }
