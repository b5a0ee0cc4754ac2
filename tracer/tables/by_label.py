"""The table of an account by label: what processes were doing when they touched the pages first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tracer import labels
from tracer.account import NAMELESS, Account, Labelled
from tracer.errors import ShmtraceError
from tracer.tables.rollup import PARTS, what
from tracer.tables.table import Column, Table


class Deed(NamedTuple):
    """What all processes touched first under one label; or a part that has no label."""

    part: str
    """touched, other_times, before or unseen"""
    text: str | None
    """of the label; None: unknown; "": it was empty"""
    size_bytes: int
    nr_processes: int | None = None
    first_ns: int | None = None
    last_ns: int | None = None
    regions: Sequence[str] = ()
    """names of the regions, most touched first"""

    @property
    def key(self) -> str | None:
        """Identity of a touched row."""
        return self.text

    @property
    def nr_regions(self) -> int:
        return len(self.regions)


def by_label(account: Account, kind: str, depth: int | None = None) -> Table:
    """Touched bytes by one kind of label text; "label" means the most specific kind that the capture has.

    The rows add up to what is allocated. depth: as in Labelled.text(). Raises ShmtraceError if the capture has no
    labels of that kind.
    """
    source = account.session.label
    kinds = labels.kinds(source) if source else []
    if not kinds or kind not in ["label", *kinds]:
        has = f"it has {', '.join(kinds)}" if kinds else "it has no labels; record it with --label"
        raise ShmtraceError(f"the capture has no {kind} to group by", has)
    of = labels.columns(source or "")[0] if kind == "label" else kind
    found: dict[str | None, list[tuple[Labelled, str]]] = {}
    for parent in account.parents:
        for region in parent.regions:
            name = f"{what(region, parent)} {region.ino}"
            for labelled in region.labelled:
                found.setdefault(labelled.text(of, depth), []).append((labelled, name))
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
                len({labelled.process for labelled, _ in touched}),
                min(labelled.first_ns for labelled, _ in touched),
                max(labelled.last_ns for labelled, _ in touched),
                [name for name, _ in regions.most_common()],
            )
        )
    rows.sort(key=lambda row: (-row.size_bytes, row.text is None, row.text))
    rows += [
        Deed(part, None, size_bytes)
        for part in ("other_times", "before", "unseen")
        if (size_bytes := sum(getattr(region, f"{part}_bytes") for region in account.regions))
    ]
    columns = [Column("part", "", lambda row: row.part, "<"), *BY_LABEL, Column(of, of, _text, "<", shown=_shown_text)]
    return Table(kind, columns, rows)


BY_LABEL = [
    Column("allocated_bytes", "allocated", lambda row: row.size_bytes),
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
