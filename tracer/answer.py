"""The answer: what grew, by how much, and by whom. It stands first in every view. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tracer import alike
from tracer.account import ALL_TIME, Account, Parent, Process, Region
from tracer.formatting import clock, duration, fit, format_bytes, format_change, moment, printable
from tracer.tables import dimensions

MOST = 3  # groups named in a sentence
WHOLE = 0.9  # a group with this share of the growth stands for all of it
NAME_COLUMNS = 44


class Grown(NamedTuple):
    """Regions that are alike."""

    what: str
    """their guessed use, or their name with what varies folded"""
    nr_regions: int
    grown_bytes: int
    """of those that are gone: what they had when they went"""
    allocated_bytes: int
    size_bytes: int | None
    """None: unknown"""


class Grower(NamedTuple):
    """Processes that are alike."""

    who: str
    """their title, or their program, with what varies folded"""
    nr_processes: int
    nr_exited: int
    touched_bytes: int


class Answer(NamedTuple):
    """What an account comes to."""

    seconds: float
    grown_bytes: int
    """of all regions that exist, since the capture first saw them"""
    regions: Sequence[Grown]
    """groups of regions that exist and grew, most first"""
    gone: Sequence[Grown]
    """groups of regions that grew and are gone, most first"""
    growers: Sequence[Grower]
    """groups that touched something first, most first"""
    unseen_bytes: int
    private_grown_bytes: int | None
    """None: unknown"""
    private_is_exact: bool
    sentences: Sequence[str]
    """the answer in words, the most important first"""

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(self.sentences)


def answer(account: Account) -> Answer:
    """What grew, by how much, and by whom."""
    session = account.session
    exist = [(region, parent) for parent in account.parents for region in parent.regions if region.gone_ns is None]
    gone = [(region, parent) for parent in account.parents for region in parent.regions if region.gone_ns is not None]
    found = Answer(
        seconds=(session.ended_ns - session.started_ns) / 1e9,
        grown_bytes=sum(region.grown_bytes for region, _ in exist) - sum(region.start_bytes for region, _ in gone),
        regions=_groups(exist),
        gone=_groups(gone),
        growers=_growers(account),
        unseen_bytes=sum(max(region.unseen_bytes, 0) for region in account.regions),
        private_grown_bytes=account.private_grown_bytes,
        private_is_exact=session.private_is_exact,
        sentences=(),
    )
    return found._replace(sentences=_sentences(found, account))


NO_ANSWER = "No shared memory: none of these processes maps any, or has mapped any."


def paragraph(account: Account) -> str:
    """The answer with its host and time, as one paragraph."""
    session = account.session
    when = f"{printable(session.host)}, {moment(session.started_ns)} to {clock(session.ended_ns)}"
    return f"{when}: {answer(account).text or NO_ANSWER}"


def _groups(regions: Sequence[tuple[Region, Parent]]) -> list[Grown]:
    alikes: dict[str, list[tuple[Region, Process | None]]] = {}
    for region, parent in regions:
        alikes.setdefault(alike.of_region(region, parent.process), []).append((region, parent.process))
    found = [
        Grown(
            alike.regions_called(some),
            len(some),
            sum(region.grown_bytes for region, _ in some),
            sum(region.allocated_bytes for region, _ in some),
            None
            if any(region.size_bytes is None for region, _ in some)
            else sum(region.size_bytes or 0 for region, _ in some),
        )
        for some in alikes.values()
    ]
    return sorted((each for each in found if each.grown_bytes > 0), key=lambda each: -each.grown_bytes)


def _growers(account: Account) -> list[Grower]:
    return [
        Grower(str(row.texts[0]), row.nr_processes, row.nr_exited, row.size_bytes)
        for row in dimensions.by(account, ["command"]).rows
        if row.part == "touched"
    ]


# ---- in words ----


def _sentences(found: Answer, account: Account) -> list[str]:
    if not account.regions:
        return []
    if account.session.tier == "proc":
        return [_held(account)]
    if account.window != ALL_TIME:
        return [sentence for sentence in [_who(found)] if sentence]
    sentences = _unseen(found), _what(found, account), _gone(found), _who(found), _private(found)
    return [sentence for sentence in sentences if sentence]


def _held(account: Account) -> str:
    """Of a snapshot, which knows no growth."""
    whats: Counter[str] = Counter()
    whose: Counter[str] = Counter()
    for parent in account.parents:
        for region in parent.regions:
            whats[alike.of_region(region, parent.process)] += region.allocated_bytes
            whose[alike.of_process(parent.process) if parent.process else "unknown processes"] += region.allocated_bytes
    total = f"{format_bytes(sum(whats.values()))} of shared memory in {_count(len(account.regions), 'region')}"
    return f"{total}: {_listed(whats)}. Made by {_listed(whose)}."


def _listed(sizes: Counter[str]) -> str:
    most = sizes.most_common(MOST)
    words = [f"{_short(name)} {format_bytes(size_bytes)}" for name, size_bytes in most]
    rest_bytes = sum(sizes.values()) - sum(size_bytes for _, size_bytes in most)
    return ", ".join([*words, f"others {format_bytes(rest_bytes)}"] if len(sizes) > MOST else words)


def _unseen(found: Answer) -> str:
    """Said first if it is more than what was seen."""
    seen_bytes = sum(grower.touched_bytes for grower in found.growers)
    if found.unseen_bytes <= seen_bytes:
        return ""
    return (
        f"Most was unseen: {format_bytes(found.unseen_bytes)} that this tier gives no name; `shmtrace doctor` says why."
    )


def _what(found: Answer, account: Account) -> str:
    lasted = f"in {duration(found.seconds)}"
    if not found.regions:
        nr_regions = sum(region.gone_ns is None for region in account.regions)
        held = f": {_count(nr_regions, 'region')}, {format_change(found.grown_bytes)}" * bool(nr_regions)
        return "" if found.gone else f"Nothing grew {lasted}{held}."
    first, all_bytes = found.regions[0], sum(group.grown_bytes for group in found.regions)
    if first.grown_bytes < WHOLE * all_bytes:
        return f"Shared memory grew by {format_bytes(all_bytes)} {lasted}: {_groups_listed(found.regions)}."
    now = f" to {format_bytes(first.allocated_bytes)}"
    now += f" of {format_bytes(first.size_bytes)}" if first.size_bytes else ""
    return f"{_many(first)} grew by {format_bytes(first.grown_bytes)}{now} {lasted}."


def _gone(found: Answer) -> str:
    if not found.gone:
        return ""
    number = sum(group.nr_regions for group in found.gone)
    size = format_bytes(sum(group.grown_bytes for group in found.gone))
    lasted = "" if found.regions else f" in {duration(found.seconds)}"
    return f"{_count(number, 'region')} with {size} came and went{lasted}: {_groups_listed(found.gone)}."


def _groups_listed(groups: Sequence[Grown]) -> str:
    words = [f"{_many(group)} {format_bytes(group.grown_bytes)}" for group in groups[:MOST]]
    if len(groups) > MOST:
        words.append(f"others {format_bytes(sum(group.grown_bytes for group in groups[MOST:]))}")
    return ", ".join(words)


def _who(found: Answer) -> str:
    if not found.growers:
        return ""
    growers = []
    for grower in found.growers[:MOST]:
        many, exited = "", " (exited)" * bool(grower.nr_exited)
        if grower.nr_processes > 1:
            many, exited = f" ×{grower.nr_processes}", f" ({grower.nr_exited} exited)" * bool(grower.nr_exited)
        growers.append(f"{_short(grower.who)}{many}{exited} {format_bytes(grower.touched_bytes)}")
    rest = found.growers[MOST:]
    if rest:
        growers.append(f"others {format_bytes(sum(grower.touched_bytes for grower in rest))}")
    return f"By {', '.join(growers)}."


def _private(found: Answer) -> str:
    size_bytes = found.private_grown_bytes
    if size_bytes is None or size_bytes <= 0:
        return ""
    return f"Private memory grew by {'' if found.private_is_exact else 'at most '}{format_bytes(size_bytes)}."


def _many(group: Grown) -> str:
    return f"{_short(group.what)} ×{group.nr_regions}" if group.nr_regions > 1 else _short(group.what)


def _short(name: str) -> str:
    return fit(printable(name), NAME_COLUMNS)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
