"""An account as stacks for flame graphs: the parent, the region, the toucher, and the bytes it touched.

The bytes of all stacks add up to what is allocated. If unseen is negative, it is left out, and they add up to what the
ledger has: speedscope refuses a file with a negative weight. In a capture with user stacks, these follow the toucher.
The bytes then include what was freed since, because it is unknown from which stack the freed pages came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tracer import guess
from tracer.account import Account, Made, Parent, Process, Region
from tracer.formatting import printable

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


class Stack(NamedTuple):
    """One stack of a flame graph and its weight."""

    frames: tuple[str, ...]
    """from the root to the leaf: parent, region, toucher, then the frames of the toucher's user stack"""
    size_bytes: int


def folded(account: Account) -> Iterator[str]:
    """One line for each stack: its frames, joined by ";", a space, and its bytes.

    flamegraph.pl, inferno and speedscope read this format.
    """
    for stack in stacks(account.parents):
        yield f"{';'.join(map(_escaped, stack.frames))} {stack.size_bytes}\n"


def speedscope(account: Account) -> Iterator[str]:
    """A document in speedscope's own format: one profile of all regions, and one of each, in order of first touch."""
    session = account.session
    everything = list(stacks(account.parents))
    frames = {
        frame: i for i, frame in enumerate(dict.fromkeys(frame for stack in everything for frame in stack.frames))
    }
    profiles = [_profile("all regions", everything, frames)]
    for parent in account.parents:
        for region in parent.regions:
            theirs = list(stacks([Parent(parent.process, [region])]))
            if theirs:
                profiles.append(_profile(_region(region, parent.process), theirs, frames))
    document = {
        "$schema": SPEEDSCOPE_SCHEMA,
        "name": f"shared memory of {printable(session.host)}",
        "exporter": f"shmtrace@{session.version}",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": printable(frame)} for frame in frames]},
        "profiles": profiles,
    }
    yield json.dumps(document)


def stacks(parents: list[Parent]) -> Iterator[Stack]:
    """The stacks of these parents. Of a region, before comes first, then the touchers by first touch, unseen last."""
    for parent in parents:
        for region in parent.regions:
            has_stacks = any(toucher.made_by for toucher in region.touchers)
            root = _process(parent.process), _region(region, parent.process)
            touchers = sorted(region.touchers, key=lambda toucher: toucher.first_ns or 0)
            rows: list[tuple[tuple[str, ...], int]] = [(("[before the trace]",), region.before_bytes)]
            rows += [(("[at other times]",), region.other_times_bytes)]
            for toucher in touchers:
                made_by = toucher.stacks if has_stacks else [Made((), toucher.touched_bytes)]
                rows += [((_process(toucher.process), *_frames(made)), made.size_bytes) for made in made_by]
            rows += [(("[unseen]",), region.unseen_bytes)]
            yield from (Stack((*root, *rest), size_bytes) for rest, size_bytes in rows if size_bytes > 0)


def _frames(made: Made) -> tuple[str, ...]:
    return ("?",) if made.frames is None else made.frames


def _profile(name: str, theirs: list[Stack], frames: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "sampled",
        "name": printable(name),
        "unit": "bytes",
        "startValue": 0,
        "endValue": sum(stack.size_bytes for stack in theirs),
        "samples": [[frames[frame] for frame in stack.frames] for stack in theirs],
        "weights": [stack.size_bytes for stack in theirs],
    }


def _process(process: Process | None) -> str:
    return "?" if process is None else f"{process.tgid} {process.command or process.comm or '?'}"


def _region(region: Region, parent: Process | None) -> str:
    gone = ", gone" if region.gone_ns else ""
    return f"{guess.guess(region, parent) or region.name} {region.id}{gone}"


def _escaped(frame: str) -> str:
    return printable(frame).replace(";", "\\x3b")
