"""The answer: what grew, by how much, and by whom. It stands first in every view. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tracer import alike
from tracer.formatting import (
    clock,
    count,
    duration,
    format_bytes,
    format_change,
    moment,
    printable,
    shorten,
    shorten_command,
)
from tracer.model import ALL_TIME, Account, OomKill, Parent, Process, Region, Session
from tracer.tables.by_host import by_host
from tracer.tables.by_time import bounds

MOST = 3  # groups named in a sentence
MOST_KILLS = 2  # groups of OOM kills told of
WHOLE = 0.9  # a group with this share of the growth stands for all of it
NAME_COLUMNS = 60
PEAK_BYTES = 1 << 20  # of private memory that came and went


class Grown(NamedTuple):
    """Regions that are alike."""

    what: str
    """their guessed use, or their name with what varies folded"""
    nr_regions: int
    nr_new: int
    """of them, made since the capture began"""
    grown_bytes: int
    """since the capture first saw them"""
    allocated_bytes: int
    """of those that are gone: when they went"""
    size_bytes: int | None
    """None: unknown"""

    @property
    def is_new(self) -> bool:
        """All of them were made since the capture began."""
        return self.nr_new == self.nr_regions


class Grower(NamedTuple):
    """Processes that are alike."""

    who: str
    """their title, or their program, with what varies folded"""
    nr_processes: int
    nr_exited: int
    touched_bytes: int
    gone_bytes: int
    """of it, in regions that are gone"""


class GrownHost(NamedTuple):
    """A host of several."""

    host: str
    grown_bytes: int
    """of its regions that exist; in a window, what was touched"""


class Answer(NamedTuple):
    """What an account comes to."""

    seconds: float
    grown_bytes: int
    """of all regions that exist, since the capture first saw them"""
    regions: Sequence[Grown]
    """groups of regions that exist and grew, most first"""
    gone: Sequence[Grown]
    """groups of regions that are gone and had something, most first"""
    growers: Sequence[Grower]
    """groups that touched something first, most first"""
    unseen_bytes: int
    private_grown_bytes: int | None
    """None: unknown"""
    private_peak_grown_bytes: int | None
    """to its peak; None: unknown"""
    private_is_exact: bool
    hosts: Sequence[GrownHost]
    """hosts whose regions grew, or in a window were touched, most first; empty: it is of one capture"""
    kills: Sequence[str]
    """what the OOM killer did, in words"""
    sentences: Sequence[str]
    """what grew, in words, the most important first"""

    @property
    def text(self) -> str:
        """All of it as one paragraph."""
        return " ".join([*self.kills, *self.sentences])


def answer(account: Account) -> Answer:
    """What grew, by how much, and by whom."""
    session = account.session
    exist = [(region, parent) for parent in account.parents for region in parent.regions if region.gone_ns is None]
    gone = [(region, parent) for parent in account.parents for region in parent.regions if region.gone_ns is not None]
    found = Answer(
        seconds=(session.ended_ns - session.started_ns) / 1e9,
        grown_bytes=sum(region.grown_bytes for region, _ in exist) - sum(region.start_bytes for region, _ in gone),
        regions=_most_first(_groups(exist, session), lambda group: group.grown_bytes),
        gone=_most_first(_groups(gone, session), lambda group: group.allocated_bytes),
        growers=_growers(account),
        unseen_bytes=sum(max(region.unseen_bytes, 0) for region in account.regions),
        private_grown_bytes=account.private_grown_bytes,
        private_peak_grown_bytes=account.private_peak_grown_bytes,
        private_is_exact=session.private_is_exact,
        hosts=_hosts(account),
        kills=kills(account),
        sentences=(),
    )
    return found._replace(sentences=_sentences(found, account))


NO_ANSWER = "No shared memory: none of these processes maps any, or has mapped any."


def grown(account: Account) -> str:
    """What grew, or that there is nothing that could."""
    return " ".join(answer(account).sentences) or NO_ANSWER


def headline(account: Account) -> str:
    """The answer: what the OOM killer did, and what grew."""
    return " ".join([*kills(account), grown(account)])


def paragraph(account: Account) -> str:
    """The answer with its host and time, as one paragraph."""
    since_ns, until_ns = bounds(account)
    until = moment(until_ns) if account.session.has_days else clock(until_ns)
    return f"{printable(account.session.host)}, {moment(since_ns)} to {until}: {headline(account)}"


def _groups(regions: Sequence[tuple[Region, Parent]], session: Session) -> list[Grown]:
    alikes: dict[str, list[tuple[Region, Process | None]]] = {}
    for region, parent in regions:
        alikes.setdefault(alike.of_region(region, parent.process), []).append((region, parent.process))
    return [
        Grown(
            alike.regions_called(some),
            len(some),
            sum(_is_new(region, session) for region, _ in some),
            sum(region.grown_bytes for region, _ in some),
            sum(region.allocated_bytes for region, _ in some),
            None
            if any(region.size_bytes is None for region, _ in some)
            else sum(region.size_bytes or 0 for region, _ in some),
        )
        for some in alikes.values()
    ]


def _is_new(region: Region, session: Session) -> bool:
    """Whether it was made since the capture began. Of what existed before, it is mostly known when it was made."""
    return region.created_ns >= session.started_ns if region.created_ns else not region.start_bytes


def _most_first(groups: Sequence[Grown], size: Callable[[Grown], int]) -> list[Grown]:
    """Those that have any of it."""
    return sorted((group for group in groups if size(group) > 0), key=lambda group: -size(group))


def _growers(account: Account) -> list[Grower]:
    """As the table by command, in a fifth of its time: there may be very many touchers."""
    touched: dict[int, int] = {}
    gone: dict[int, int] = {}
    processes: dict[int, Process] = {}
    for region in account.regions:
        for process, touched_bytes, *_ in region.touchers:
            if touched_bytes:
                row = process.row
                processes[row] = process
                touched[row] = touched.get(row, 0) + touched_bytes
                if region.gone_ns is not None:
                    gone[row] = gone.get(row, 0) + touched_bytes
    groups: dict[str, list[Process]] = {}
    for process in processes.values():
        groups.setdefault(alike.of_process(process), []).append(process)
    growers = [
        Grower(
            alike.called(some),
            len(some),
            sum(process.exited_ns is not None for process in some),
            sum(touched[process.row] for process in some),
            sum(gone.get(process.row, 0) for process in some),
        )
        for some in groups.values()
    ]
    return sorted(growers, key=lambda grower: (-grower.touched_bytes, grower.who))


def _hosts(account: Account) -> list[GrownHost]:
    if not account.hosts:
        return []
    rows = by_host(account).rows  # the most first
    grown = [GrownHost(row.host, row.touched_bytes if row.grown_bytes is None else row.grown_bytes) for row in rows]
    return [host for host in grown if host.grown_bytes > 0]


# ---- in words: what the OOM killer did ----


def kills(account: Account) -> list[str]:
    """Sentences about the OOM killer, the most important first; none: it killed nothing, or that is unknown."""
    groups: dict[tuple[object, ...], list[OomKill]] = {}
    for kill in account.ooms:
        key = kill.host, alike.of_victim(kill), kill.limit_cgroup, kill.is_of_host, kill.process is None
        groups.setdefault(key, []).append(kill)
    # those of the tree first, then the last ones
    told = sorted(groups.values(), key=lambda group: (group[-1].process is None, -group[-1].time_ns))[:MOST_KILLS]
    nr_kills = account.session.nr_ooms if account.window == ALL_TIME else None
    nr_more = max(nr_kills or 0, len(account.ooms)) - sum(map(len, told))
    more = [f"{count(nr_more, 'more OOM kill') if told else count(nr_more, 'OOM kill')}."] if nr_more else []
    days = account.session.has_days
    return [sentence for group in told for sentence in _killed(group, days)] + more


def _killed(alikes: Sequence[OomKill], days: bool) -> Iterator[str]:
    """alikes: kills of alike victims, by one limit. days: a time has its day."""
    first, last = alikes[0], alikes[-1]
    who = _short_command(alike.victims_called(alikes))
    where = f" on {_short(last.host)}" if last.host else ""
    if last.is_of_host:
        where += ", the host was short of memory"
    else:
        limit = "?" if last.limit_bytes is None else format_bytes(last.limit_bytes)
        where += f" in {_short(last.limit_pod or last.limit_cgroup or last.cgroup or '?')}, limit {limit}"
    if len(alikes) == 1:
        yield f"OOM kill at {clock(last.time_ns, days)}: {who} (PID {last.tgid}){where}."
    else:
        yield f"{len(alikes)} OOM kills from {clock(first.time_ns, days)} to {clock(last.time_ns, days)}: {who}{where}."
    if last.shmem_before_bytes is not None or last.touched:
        yield _charged(last, "" if len(alikes) == 1 else " at the last")
    freed = [kill.anon_bytes for kill in alikes if kill.anon_bytes is not None]
    if freed:
        what = "The kill" if len(alikes) == 1 else "The kills"
        yield f"{what} freed at most {format_bytes(sum(freed))} of private memory{_stay(last)}."


def _charged(kill: OomKill, when: str) -> str:
    charged_bytes = kill.shmem_before_bytes
    what = "Shared memory of the host" if kill.is_of_host else "Shared memory charged there"
    if charged_bytes == 0:
        return f"{what}{when}: none."
    touched: dict[str, list[tuple[Process, int]]] = {}
    for _, process, size_bytes in kill.touched:
        touched.setdefault(alike.of_process(process), []).append((process, size_bytes))
    sizes = [
        (_short_command(alike.called(process for process, _ in some)), sum(size_bytes for _, size_bytes in some))
        for some in touched.values()
    ]
    words = [_listed(sorted(sizes, key=lambda size: -size[1]))] * bool(sizes)
    if kill.unnamed_bytes:
        words.append(f"unknown processes {format_bytes(kill.unnamed_bytes)}")
    if charged_bytes is None:  # it was heard of late: of an armed trace
        return f"{what}{when}, as far as it is known: first touched by {', '.join(words)}."
    return f"{what}{when}: {format_bytes(charged_bytes)}, first touched by {', '.join(words)}."


def _stay(kill: OomKill) -> str:
    """Shared pages do not go with a process that has them mapped."""
    if not kill.shmem_after_bytes or not kill.shmem_before_bytes:
        return ""
    if kill.shmem_after_bytes < kill.shmem_before_bytes:
        return f"; of the shared pages {format_bytes(kill.shmem_after_bytes)} stay"
    return "; the shared pages stay"


# ---- in words: what grew ----


def _sentences(found: Answer, account: Account) -> list[str]:
    if not account.regions:
        return []
    if account.session.tier == "proc":
        return [_held(account)]
    if account.window != ALL_TIME:
        touched_bytes = sum(grower.touched_bytes for grower in found.growers)
        touched = f"{format_bytes(touched_bytes)} touched first in this time."
        return (
            [touched, *filter(None, [_where(found, account)]), _who(found, whole=False)] if touched_bytes else [touched]
        )
    sentences = (
        *(_unseen(found, account), _what(found, account), _where(found, account), _gone(found)),
        *(_who(found, whole=True), _private(found)),
    )
    return [sentence for sentence in sentences if sentence]


def _held(account: Account) -> str:
    """Of a snapshot, which knows no growth."""
    owned = [(region, parent) for parent in account.parents for region in parent.regions]
    what = [(_short(group.what), group.allocated_bytes) for group in _groups(owned, account.session)]
    whose: dict[str | None, list[Parent]] = {}
    for parent in account.parents:
        whose.setdefault(parent.process and alike.of_process(parent.process), []).append(parent)
    who = []
    for parents in whose.values():
        processes = [parent.process for parent in parents if parent.process]
        name = alike.called(processes) if processes else "unknown processes"
        who.append((_short(name), sum(region.allocated_bytes for parent in parents for region in parent.regions)))
    whats, whos = (_listed(sorted(sizes, key=lambda size: -size[1])) for sizes in (what, who))
    total_bytes = sum(size_bytes for _, size_bytes in what)
    total = f"{format_bytes(total_bytes)} of shared memory in {count(len(owned), 'region')}"
    return f"{total}: {whats}. Made by {whos}."


def _listed(sizes: Sequence[tuple[str, int]]) -> str:
    """The first few of these names with their bytes, and the sum of the others."""
    words = [f"{name} {format_bytes(size_bytes)}" for name, size_bytes in sizes[:MOST]]
    rest_bytes = sum(size_bytes for _, size_bytes in sizes[MOST:])
    return ", ".join([*words, f"others {format_bytes(rest_bytes)}"] if sizes[MOST:] else words)


def _unseen(found: Answer, account: Account) -> str:
    """Said first if it is more than what was seen."""
    seen_bytes = sum(grower.touched_bytes for grower in found.growers)
    if found.unseen_bytes <= seen_bytes:
        return ""
    remedy = "the exact tier would name it: `shmtrace doctor` says what that needs"
    if account.session.lost_pages:
        remedy = "there was no room to note it: give a larger --room"
    elif account.session.tier == "exact":
        remedy = "the warnings below say why"
    return f"Most was unseen: {format_bytes(found.unseen_bytes)}; {remedy}."


def _what(found: Answer, account: Account) -> str:
    lasted = f"in {duration(found.seconds)}"
    if not found.regions:
        exist = [region for region in account.regions if region.gone_ns is None]
        held = f"{format_bytes(sum(region.allocated_bytes for region in exist))} in {count(len(exist), 'region')}"
        shrank = f", {format_change(found.grown_bytes)}" * (found.grown_bytes < 0)
        return "" if found.gone else f"Nothing grew {lasted}: {held}{shrank}{_emptied(account)}."
    first, all_bytes = found.regions[0], sum(group.grown_bytes for group in found.regions)
    if first.grown_bytes < WHOLE * all_bytes:
        listed = _listed([(_many(group), group.grown_bytes) for group in found.regions])
        return f"Shared memory grew by {format_bytes(all_bytes)} {lasted}: {listed}."
    now = f"to {format_bytes(first.allocated_bytes)}"
    if first.size_bytes and first.size_bytes != first.allocated_bytes:
        now += f" of {format_bytes(first.size_bytes)}"
    if first.is_new:
        return f"{_many(first)} {'is' if first.nr_regions == 1 else 'are'} new and grew {now} {lasted}."
    return f"{_many(first)} grew by {format_bytes(first.grown_bytes)} {now} {lasted}."


def _emptied(account: Account) -> str:
    """What had pages, and gave all of them back before it went."""
    emptied = [region for region in account.regions if region.gone_ns is not None and region.peak_bytes]
    had = format_bytes(sum(region.peak_bytes for region in emptied))
    return f"; {count(len(emptied), 'region')} went that had had {had}" if emptied else ""


def _where(found: Answer, account: Account) -> str:
    """On which hosts most of it was."""
    if not found.hosts:
        return ""
    listed = _listed([(_short(host.host), host.grown_bytes) for host in found.hosts])
    return f"On {len(found.hosts)} of {count(len(account.hosts), 'host')}: {listed}."


def _gone(found: Answer) -> str:
    if not found.gone:
        return ""
    number = sum(group.nr_regions for group in found.gone)
    size = format_bytes(sum(group.allocated_bytes for group in found.gone))
    went = "came and went" if all(group.is_new for group in found.gone) else "went"
    lasted = "" if found.regions else f" in {duration(found.seconds)}"
    change = f" In all, shared memory changed by {format_change(found.grown_bytes)}." if went == "went" else ""
    if len(found.gone) == 1:
        return f"{_many(found.gone[0])} with {size} {went}{lasted}.{change}"
    listed = _listed([(_many(group), group.allocated_bytes) for group in found.gone])
    return f"{count(number, 'region')} with {size} {went}{lasted}: {listed}.{change}"


def _who(found: Answer, whole: bool) -> str:
    """whole: of all the capture's time."""
    if not found.growers:
        return ""
    growers = []
    for grower in found.growers[:MOST]:
        many, exited = "", " (exited)" * bool(grower.nr_exited)
        gone = f" ({format_bytes(grower.gone_bytes)} gone)" if grower.gone_bytes and found.regions and whole else ""
        if grower.nr_processes > 1:
            many, exited = f" ×{grower.nr_processes}", f" ({how_many(grower.nr_exited, grower.nr_processes)} exited)"
            exited *= bool(grower.nr_exited)
        growers.append(f"{_short_command(grower.who)}{many}{exited} {format_bytes(grower.touched_bytes)}{gone}")
    rest = found.growers[MOST:]
    if rest:
        growers.append(f"others {format_bytes(sum(grower.touched_bytes for grower in rest))}")
    return f"By {', '.join(growers)}."


def how_many(some: int, of: int) -> str:
    """A number of several: "all", if it is."""
    return "all" if some == of else str(some)


def _private(found: Answer) -> str:
    end_bytes, at_most = found.private_grown_bytes or 0, "" if found.private_is_exact else "at most "
    peak_bytes = found.private_peak_grown_bytes or 0
    if peak_bytes >= PEAK_BYTES and peak_bytes >= 2 * end_bytes:
        shrank = format_bytes(peak_bytes - end_bytes)
        return f"Private memory grew by about {format_bytes(peak_bytes)}, then shrank by {shrank}."
    return f"Private memory grew by {at_most}{format_bytes(end_bytes)}." if end_bytes > 0 else ""


def _many(group: Grown) -> str:
    return f"{_short(group.what)} ×{group.nr_regions}" if group.nr_regions > 1 else _short(group.what)


def _short(name: str) -> str:
    return shorten(printable(name), NAME_COLUMNS)


def _short_command(name: str) -> str:
    return shorten_command(printable(name), NAME_COLUMNS)
