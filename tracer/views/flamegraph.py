"""An account as stacks for flame graphs, folded and for speedscope.

The frames of a stack are the parent, the region, the group of alike processes, the toucher, and the texts of its label.
A group of one process is left out. In a capture with user stacks their functions follow the toucher, and no label:
stacks are recorded by process alone.

The bytes of all stacks add up to what is allocated. If unseen is negative, it is left out, and they add up to what the
ledger has: speedscope refuses a file with a negative weight. With user stacks the bytes include what was freed since,
because it is unknown from which stack the freed pages came. Of a window of time, they are what was touched in it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tracer import alike, growth, guess
from tracer.formatting import printable
from tracer.model import ALL_TIME, Account, Process, Region, Toucher

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


class Stack(NamedTuple):
    """One stack of a flame graph and its weight."""

    frames: tuple[str, ...]
    """from the root to the leaf, not yet printable"""
    size_bytes: int
    region: Region
    process: Process | None = None
    """None: before the trace, or unseen"""


def folded(account: Account) -> Iterator[str]:
    """One line for each stack: its frames, joined by ";", a space, and its bytes.

    flamegraph.pl, inferno and speedscope read this format.
    """
    for frames, size_bytes in merged(stacks(account)).items():
        yield f"{';'.join(map(_escaped, frames))} {size_bytes}\n"


def speedscope(account: Account) -> Iterator[str]:
    """A document in speedscope's own format: one profile of all regions, and one of each, in order of first touch."""
    session = account.session
    everything = list(stacks(account))
    regions: dict[int, list[Stack]] = {}
    for stack in everything:
        regions.setdefault(stack.region.row, []).append(stack)
    frames = {
        frame: i for i, frame in enumerate(dict.fromkeys(frame for stack in everything for frame in stack.frames))
    }
    document = {
        "$schema": SPEEDSCOPE_SCHEMA,
        "name": f"shared memory of {printable(session.host)}",
        "exporter": f"shmtrace@{session.version}",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": printable(frame)} for frame in frames]},
        "profiles": [
            _profile("all regions", everything, frames),
            *(_profile(theirs[0].frames[1], theirs, frames) for theirs in regions.values()),
        ],
    }
    yield json.dumps(document)


def merged(some: Iterable[Stack]) -> dict[tuple[str, ...], int]:
    """The bytes of stacks by their frames, in the order of the first of each."""
    sizes: dict[tuple[str, ...], int] = {}
    for stack in some:
        sizes[stack.frames] = sizes.get(stack.frames, 0) + stack.size_bytes
    return sizes


def stacks(account: Account) -> Iterator[Stack]:
    """All stacks of an account. Of a region, before comes first, then the touchers by first touch, unseen last."""
    group_of = functools.cache(alike.of_process)
    kinds = growth.kinds(account)
    for parent in account.parents:
        for region in parent.regions:
            root = _process(parent.process), _region(region, parent.process)
            found = [*_touched(region, kinds, group_of)]
            if account.window == ALL_TIME:
                before = Stack(("[before the trace]",), region.before_bytes, region)
                found = [before, *found, Stack(("[unseen]",), region.unseen_bytes, region)]
            yield from (stack._replace(frames=(*root, *stack.frames)) for stack in found if stack.size_bytes > 0)


def _touched(region: Region, kinds: Sequence[str], group_of: Callable[[Process], str]) -> Iterator[Stack]:
    """Stacks of the processes that touched a region, by group, without parent and region."""
    below = _below(region, kinds)
    groups: dict[str, list[Toucher]] = {}
    for toucher in sorted(region.touchers, key=lambda toucher: toucher.first_ns or 0):
        if toucher.process.row in below:
            groups.setdefault(group_of(toucher.process), []).append(toucher)
    for group, touchers in groups.items():
        for toucher in touchers:
            above = *(group,) * (len(touchers) > 1), _process(toucher.process)
            for stack in below[toucher.process.row]:
                yield stack._replace(frames=(*above, *stack.frames))


def _below(region: Region, kinds: Sequence[str]) -> dict[int, list[Stack]]:
    """What stands below each process: user stacks, texts of labels, or nothing. By the process's row."""
    if any(toucher.made_by for toucher in region.touchers):
        made = [(toucher.process, made) for toucher in region.touchers for made in toucher.stacks]
        found = [Stack(made.frames or ("?",), made.size_bytes, region, process) for process, made in made]
    elif kinds:
        found = [
            Stack(labelled.frames(kinds), labelled.touched_bytes, region, labelled.process)
            for labelled in region.labelled
        ]
    else:
        found = [Stack((), toucher.touched_bytes, region, toucher.process) for toucher in region.touchers]
    below: dict[int, list[Stack]] = {}
    for stack in found:
        if stack.process and stack.size_bytes:
            below.setdefault(stack.process.row, []).append(stack)
    return below


def _profile(name: str, some: Iterable[Stack], frames: dict[str, int]) -> dict[str, Any]:
    theirs = merged(some)
    return {
        "type": "sampled",
        "name": printable(name),
        "unit": "bytes",
        "startValue": 0,
        "endValue": sum(theirs.values()),
        "samples": [[frames[frame] for frame in stack] for stack in theirs],
        "weights": list(theirs.values()),
    }


def _process(process: Process | None) -> str:
    return "?" if process is None else f"{process.tgid} {process.command or process.comm or '?'}"


def _region(region: Region, parent: Process | None) -> str:
    gone = ", gone" if region.gone_ns else ""
    return f"{guess.called(region, parent)} {region.id}{gone}"


def _escaped(frame: str) -> str:
    return printable(frame).replace(";", "\\x3b")
