"""What the page's colours can stand for: dimensions of touched pages, such as the group of processes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Union

from tracer import alike, labels
from tracer.model import Account, Label, Process

Value = Union[str, int, None]
"""The text of a command, label or unit; the row of a region or process. None: unknown."""
MOST = 10  # values that a dimension is judged by


def names(account: Account) -> list[str]:
    """The dimensions of an account: command, the kinds of label it has, unit, host if several, region, process."""
    return ["command", *labels.kinds(account.session.label), *of_processes(account)[1:], "region", "process"]


def of_processes(account: Account) -> list[str]:
    """Those of its dimensions in which a process has one value, but process itself."""
    return ["command", "unit", *["host"] * (len(account.hosts) > 1)]


def of_process(process: Process, by: str) -> str | None:
    """The value of a process in one of of_processes(). Without a unit, its cgroup stands for one."""
    if by == "host":
        return process.host
    return alike.of_process(process) if by == "command" else process.unit


def of_labels(account: Account) -> dict[str, dict[Label, str]]:
    """The text of each known label by kind. "": it was empty."""
    source = account.session.label
    found = {labelled.label for region in account.regions for labelled in region.labelled if labelled.label}
    return {kind: {label: label.told(labels.meant(source, kind)) for label in found} for kind in labels.kinds(source)}


def sizes(account: Account, texts: Mapping[str, Mapping[Label, str]]) -> dict[str, Counter[Value]]:
    """Touched bytes by value, for each dimension. texts: as of_labels() has them."""
    found: dict[str, Counter[Value]] = {by: Counter() for by in names(account)}
    touchers: dict[int, Process] = {}
    for region in account.regions:
        found["region"][region.row] += region.touched_bytes
        for toucher in region.touchers:
            touchers[toucher.process.row] = toucher.process
            found["process"][toucher.process.row] += toucher.touched_bytes
        for labelled in region.labelled:
            for kind, told in texts.items():
                found[kind][told[labelled.label] if labelled.label else None] += labelled.touched_bytes
    for row, process in touchers.items():
        for by in of_processes(account):
            found[by][of_process(process, by)] += found["process"][row]
    return {by: +sizes_bytes for by, sizes_bytes in found.items()}


def most_telling(found: Mapping[str, Counter[Value]]) -> str:
    """The dimension whose biggest values explain most of the touched bytes, and at least half; of equal ones the first.

    A dimension with only one value tells nothing apart. If no other is left, it is the first: one colour for a pool
    says more than grey for its many workers.
    """
    telling = {by: _explained_bytes(sizes_bytes) for by, sizes_bytes in found.items() if len(sizes_bytes) > 1}
    half = {by: size_bytes for by, size_bytes in telling.items() if 2 * size_bytes >= sum(found[by].values())}
    return max(half, key=lambda by: half[by]) if half else next(iter(found))


def _explained_bytes(sizes_bytes: Counter[Value]) -> int:
    known = Counter({value: size_bytes for value, size_bytes in sizes_bytes.items() if value is not None})
    return sum(size_bytes for _, size_bytes in known.most_common(MOST))
