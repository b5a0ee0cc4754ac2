"""An account as stacks, for flame graphs: whose region, which one, who touched it, and how many bytes of it.

The bytes of all stacks add up to what is allocated; where the ledger has more than the inode, and unseen is less than
nothing, to what the ledger has: a stack has no room for that, and speedscope refuses the whole file. Of a capture with
user stacks, they are below who touched, and add up to what has been given back, too: by which it was is not known.
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
    """From the root to the leaf."""

    frames: tuple[str, ...]
    """parent, region, toucher, and the toucher's own"""
    size_bytes: int


def folded(account: Account) -> Iterator[str]:
    """A line a stack, as flamegraph.pl, inferno and speedscope read it: frames with ; between, a space, bytes."""
    for stack in stacks(account.parents):
        yield f"{';'.join(map(_escaped, stack.frames))} {stack.size_bytes}\n"


def speedscope(account: Account) -> Iterator[str]:
    """A document of speedscope's own format: a profile of all regions, and one of each, in the order of first touch."""
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
    """What is from before the first, then by first touch, what is unseen last."""
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
