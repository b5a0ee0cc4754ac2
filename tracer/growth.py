"""What is held, and what grew since a moment, by stack or by label: what a profile shows. Pure.

A sample has no PID and no inode, so that profiles of one trace, a minute apart, have the same samples. Its frames are
the group of the parent, the region, the group of the toucher, and a user stack or the texts of a label.

What grew includes what was freed since, and never goes back. By process it is exact. By stack or label it is what the
capture tells: pages whose stack is not known, and pages that a label's own frees hide, are of "?".
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tracer import alike, labels
from tracer.binaries import Binary, Places
from tracer.formatting import printable
from tracer.model import ALL_TIME, Account, Identity, Labelled, Process, Region, Toucher

PATHS = ("script", "file")  # kinds of text that are the path of a source file
MAX_LABEL = 255  # characters: Pyroscope refuses a profile with a label of more than 2048 bytes


class Frame(NamedTuple):
    """A frame of a sample, printable."""

    text: str
    binary: Binary | None = None
    """where its code is; None: unknown, or it is no code"""
    address: int = 0
    """in the binary: of a function that has a name, where it begins"""
    file: str | None = None
    """the source file, if it is known"""


class Sample(NamedTuple):
    """Where pages came from. The texts are printable, and cut."""

    frames: tuple[Frame, ...]
    """callers first"""
    segment: str
    command: str | None = None
    """group of alike processes; None: before the trace, or unseen"""
    unit: str | None = None
    """systemd unit, or else cgroup; None: unknown"""


OTHERS = Sample((Frame("[other]"),), "other")
"""What there is no room for any more."""


class _Leaf(NamedTuple):
    """What stands below a process: a user stack, or the texts of a label."""

    texts: tuple[str, ...]
    stack: int | None = None
    """row"""


_Key = tuple[Identity, int, int, int]
_Touched = tuple[int, dict[_Leaf, int]]
"""Bytes that a process has touched in a region in all, and those of them whose leaf is known."""
Framer = Callable[[_Leaf], tuple[Frame, ...]]


class Growth:
    """What accounts of one trace say, one after the other."""

    def __init__(self, since: Account | None = None, most: int | None = None) -> None:
        """since: what was touched by then does not count. None: all that the trace has seen counts.

        most: samples, first of what grew; what would be another one counts for OTHERS. None: any number.
        """
        self._most = most
        self._since = since
        self._before = _touched(since, kinds(since)) if since else {}
        self._net: Counter[Sample] = Counter()
        self.held: Counter[Sample] = Counter()
        """Bytes that existed at the end of the newest account; empty if that was of a window of time."""
        self.grown: dict[Sample, int] = {}
        """Bytes that were touched since, or in the window. None of them ever goes back."""

    def add(self, account: Account, places: Places) -> None:
        """Add what an account says. places: where the frames of its stacks are."""
        self.account = account
        self.has_stacks = account.has_stacks
        texts = kinds(account)
        frames = functools.cache(_code(places) if self.has_stacks else _told(texts))
        unknown = _Leaf(("?",) * (1 if self.has_stacks else len(texts)))
        now = _touched(account, texts)
        held: Counter[Sample] = Counter()
        for parent in account.parents:
            for region in parent.regions:
                root = _root(region, parent.process)
                for toucher in region.touchers:
                    key = _key(region, toucher.process)
                    for leaf, size_bytes in _more(now[key], self._before.get(key, (0, {})), unknown):
                        self._net[self._place(_below(root, toucher.process, frames(leaf)))] += size_bytes
                if account.window == ALL_TIME and region.gone_ns is None:
                    for sample, size_bytes in _held(root, region, texts, frames):
                        held[sample] += size_bytes
        self.held = self._placed(held)
        self._before = now
        for sample, size_bytes in self._net.items():
            self.grown[sample] = max(self.grown.get(sample, 0), size_bytes)

    def _place(self, sample: Sample) -> Sample:
        is_room = self._most is None or len(self._net) < self._most
        return sample if is_room or sample in self._net else OTHERS

    def _placed(self, held: Counter[Sample]) -> Counter[Sample]:
        """Of what did not grow, there are as many as what grew leaves room for."""
        if self._most is not None:
            beside = [sample for sample in held if sample not in self._net]
            for sample in beside[max(self._most - len(self._net), 0) :]:
                held[OTHERS] += held.pop(sample)
        return held

    @property
    def span_ns(self) -> tuple[int, int] | None:
        """[from, to) of what grew, in CLOCK_REALTIME; None: since the trace began."""
        session, window = self.account.session, self.account.window
        if self._since:
            return self._since.session.ended_ns, session.ended_ns
        if window == ALL_TIME:
            return None
        from_ns = max(window.since_ns or 0, session.started_ns)
        to_ns = session.ended_ns if window.until_ns is None else min(window.until_ns, session.ended_ns)
        return from_ns, to_ns


def is_later(account: Account, than: Account) -> bool:
    """Whether an account is of the same trace as another, and not of an earlier moment."""
    session, earlier = account.session, than.session
    is_same = (session.host, session.started_ns) == (earlier.host, earlier.started_ns)
    return is_same and earlier.ended_ns <= session.ended_ns


def kinds(account: Account) -> list[str]:
    """The kinds of text that stand below a process; none with stacks, which are recorded without labels."""
    label = account.session.label
    return labels.frames(label) if label and not account.has_stacks else []


# ---- what was touched ----


def _key(region: Region, process: Process) -> _Key:
    return region.identity, process.row, process.tgid, process.start_time_ns


def _touched(account: Account, texts: Sequence[str]) -> dict[_Key, _Touched]:
    found = {}
    for region in account.regions:
        labelled: dict[int, list[Labelled]] = {}
        for each in region.labelled if texts else ():
            labelled.setdefault(each.process.row, []).append(each)
        for toucher in region.touchers:
            freed_bytes = toucher.freed_bytes if account.window == ALL_TIME else 0
            made_bytes = sum(made.size_bytes for made in toucher.made_by)
            whole = max(toucher.touched_bytes + freed_bytes, made_bytes)
            found[_key(region, toucher.process)] = whole, _leaves(toucher, labelled, texts)
    return found


def _leaves(toucher: Toucher, labelled: Mapping[int, Sequence[Labelled]], texts: Sequence[str]) -> dict[_Leaf, int]:
    leaves: Counter[_Leaf] = Counter()
    for made in toucher.made_by:
        if made.frames:
            leaves[_Leaf(made.frames, made.row)] += made.size_bytes
    for each in labelled.get(toucher.process.row, ()):
        if each.label:
            leaves[_Leaf(each.frames(texts))] += each.touched_bytes
    return leaves


def _more(now: _Touched, before: _Touched, unknown: _Leaf) -> list[tuple[_Leaf, int]]:
    """What was touched meanwhile. What is left for the unknown leaf is less than nothing if some became known."""
    (whole, leaves), (whole_before, leaves_before) = now, before
    more = [(leaf, size_bytes - leaves_before.get(leaf, 0)) for leaf, size_bytes in leaves.items()]
    found = [(leaf, size_bytes) for leaf, size_bytes in more if size_bytes > 0]
    rest = max(whole - whole_before, 0) - sum(size_bytes for _, size_bytes in found)
    return [*found, (unknown, rest)] if rest else found


def _held(root: Sample, region: Region, texts: Sequence[str], frames: Framer) -> Iterator[tuple[Sample, int]]:
    """By stack it is unknown: which pages were freed is not recorded by stack."""
    for text, size_bytes in (("[before the trace]", region.before_bytes), ("[unseen]", region.unseen_bytes)):
        if size_bytes > 0:
            yield root._replace(frames=(*root.frames, Frame(text))), size_bytes
    for each in region.labelled if texts else ():
        yield _below(root, each.process, frames(_Leaf(each.frames(texts)))), each.touched_bytes
    for toucher in () if texts else region.touchers:
        yield _below(root, toucher.process, ()), toucher.touched_bytes


# ---- samples ----


def _root(region: Region, parent: Process | None) -> Sample:
    above = "?" if parent is None else alike.of_process(parent), alike.of_region(region, parent)
    return Sample(tuple(Frame(printable(text)) for text in above), _short(alike.segment(region, parent)))


def _below(root: Sample, process: Process, frames: tuple[Frame, ...]) -> Sample:
    group = alike.of_process(process)
    unit = process.unit
    return Sample(
        (*root.frames, Frame(printable(group)), *frames), root.segment, _short(group), _short(unit) if unit else None
    )


def _code(places: Places) -> Framer:
    def frames(leaf: _Leaf) -> tuple[Frame, ...]:
        known = places.get(leaf.stack or 0, {})
        return tuple(Frame(printable(text), *known.get(line, (None, 0))) for line, text in enumerate(leaf.texts))

    return frames


def _told(texts: Sequence[str]) -> Framer:
    def frames(leaf: _Leaf) -> tuple[Frame, ...]:
        return tuple(
            Frame(printable(text), file=printable(text) if kind in PATHS and text.startswith("/") else None)
            for kind, text in zip(texts, leaf.texts)
        )

    return frames


def _short(text: str) -> str:
    text = printable(text) or "?"
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
