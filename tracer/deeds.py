"""Tables of an account by what pages were made for: by label, and by stack. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tracer import sources
from tracer.account import NAMELESS, Account, Labelled, Region
from tracer.errors import ShmtraceError
from tracer.rollup import PARTS, what
from tracer.tables import Column, Table


class StackRow(NamedTuple):
    region: Region
    what: str
    frames: tuple[str, ...] | None
    """callers first; None: unknown"""
    made_bytes: int
    """given back since or not"""
    processes: int
    """how many of them"""


BY_STACK = [
    Column("made_bytes", "made", lambda row: row.made_bytes),
    Column("processes", "by", lambda row: row.processes),
    Column("region", "", lambda row: row.region.id, "<"),
    Column("ino", "region", lambda row: row.region.ino),
    Column("what", "what", lambda row: row.what, "<"),
    Column(
        "stack",
        "stack",
        lambda row: row.frames and ";".join(frame.replace(";", "\\x3b") for frame in row.frames),
        "<",
        shown=lambda row: " < ".join(reversed(row.frames)) if row.frames else "?",
    ),
]


def by_stack(account: Account) -> Table:
    """Of each region, the code that made it. Raises ShmtraceError for a capture without stacks."""
    if not account.has_stacks:
        raise ShmtraceError("the capture has no stacks", "record with --stacks")
    rows = []
    for parent in account.parents:
        for region in parent.regions:
            sizes: Counter[tuple[str, ...] | None] = Counter()
            processes: Counter[tuple[str, ...] | None] = Counter()
            for toucher in region.touchers:
                for made in toucher.stacks:
                    sizes[made.frames] += made.size_bytes
                    processes[made.frames] += 1
            rows += [
                StackRow(region, what(region, parent), frames, made_bytes, processes[frames])
                for frames, made_bytes in sizes.items()
            ]
    return Table("stack", BY_STACK, sorted(rows, key=lambda row: (-row.made_bytes, row.frames or ())))


class Deed(NamedTuple):
    """What all processes first touched while they did one thing; or a part that has no label."""

    part: str
    """touched, outside the window, before the capture, or unseen"""
    text: str | None
    """None: unknown; empty: nothing that has a name"""
    size_bytes: int
    nr_processes: int | None = None
    first_ns: int | None = None
    last_ns: int | None = None
    regions: Sequence[str] = ()
    """by what was touched of them, most first"""

    @property
    def key(self) -> str | None:
        return self.text

    @property
    def nr_regions(self) -> int:
        return len(self.regions)


def by_label(account: Account, kind: str) -> Table:
    """By one kind of text of the labels; "label": the most telling kind. The rows add up to what is allocated.

    Raises ShmtraceError where the capture has none of that kind.
    """
    source = account.session.label
    kinds = sources.columns(source) if source else []
    if not kinds or kind not in ["label", *kinds]:
        has = f"it has {', '.join(kinds)}" if kinds else "it has no labels: record it with --label"
        raise ShmtraceError(f"the capture tells nothing by {kind}", has)
    of = kinds[0] if kind == "label" else kind
    found: dict[str | None, list[tuple[Labelled, str]]] = {}
    for parent in account.parents:
        for region in parent.regions:
            name = f"{what(region, parent)} {region.ino}"
            for labelled in region.labelled:
                found.setdefault(labelled.text(of), []).append((labelled, name))
    rows = []
    for text, touched in found.items():
        regions: Counter[str] = Counter()
        for labelled, name in touched:
            regions[name] += labelled.touched_bytes
        rows.append(
            Deed(
                "touched",
                text,
                sum(regions.values()),
                len({process for labelled, _ in touched for process in labelled.processes}),
                min(labelled.first_ns for labelled, _ in touched),
                max(labelled.last_ns for labelled, _ in touched),
                [name for name, _ in regions.most_common()],
            )
        )
    rows.sort(key=lambda row: (-row.size_bytes, row.text is None, row.text))
    rows += [
        Deed(part, None, size_bytes)
        for part in ("outside", "before", "unseen")
        if (size_bytes := sum(getattr(region, f"{part}_bytes") for region in account.regions))
    ]
    columns = [Column("part", "", lambda row: row.part, "<"), *BY_LABEL, Column(of, of, _text, "<", shown=_shown_text)]
    return Table(kind, columns, rows)


BY_LABEL = [
    Column("allocated_bytes", "touched", lambda row: row.size_bytes),
    Column("processes", "by", lambda row: row.nr_processes, shown=lambda row: str(row.nr_processes or "")),
    Column("first_ns", "first", lambda row: row.first_ns),
    Column("last_ns", "last", lambda row: row.last_ns),
    Column("regions", "", lambda row: ", ".join(row.regions), "<"),
]


def _text(row: Deed) -> str | None:
    return row.text


def _shown_text(row: Deed) -> str:
    if row.part in PARTS:
        return PARTS[row.part]
    return "?" if row.text is None else row.text or NAMELESS
