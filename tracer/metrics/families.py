"""Figures as metrics of prometheus_client, in OpenMetrics or in Prometheus's older text format.

The names keep to what Prometheus asks for: base units, no label that a target has too (so a kernel's region is a
segment, and a service a unit), and no PID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Optional, Union

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from tracer.metrics.series import Series
from tracer.model import Session

END = b"# EOF\n"
Family = Union[type[GaugeMetricFamily], type[CounterMetricFamily]]
PLAIN, OPEN = "text/plain; version=0.0.4; charset=utf-8", openmetrics.CONTENT_TYPE_LATEST
Moment = tuple[Optional[int], Sequence[Series]]
"""CLOCK_REALTIME in ns of the figures, None: now; and the figures."""


class _Kind(NamedTuple):
    """A metric of each segment."""

    name: str
    help: str
    label: str | None
    """besides unit and segment"""
    values: Callable[[Series], Mapping[str, int | None]]
    """by the value of the label; None: unknown"""
    family: Family = GaugeMetricFamily


def _held(field: str) -> Callable[[Series], Mapping[str, int | None]]:
    return lambda each: {kind: getattr(held, field) for kind, held in each.held.items()}


def _unattributed(each: Series) -> dict[str, int | None]:
    rest = {"moved": each.moved_bytes or None, "freed since": each.freed_since_bytes or None}
    return {"before": each.before_bytes, "unseen": each.unseen_bytes, **rest}


KINDS = [
    _Kind("shmtrace_segment_size", "Size of the shared memory regions that exist.", "kind", _held("size_bytes")),
    _Kind("shmtrace_segment_allocated", "Of it, what has pages.", "kind", _held("allocated_bytes")),
    _Kind("shmtrace_segment_swapped", "Of that, what is swapped out.", "kind", _held("swapped_bytes")),
    _Kind(
        "shmtrace_touched",
        "Pages by who touched them first, since the trace began or the segment was first told apart.",
        "by",
        lambda each: each.touched_bytes,
        CounterMetricFamily,
    ),
    _Kind(
        "shmtrace_freed",
        "Of these, what was given back.",
        None,
        lambda each: {"": each.freed_bytes},
        CounterMetricFamily,
    ),
    _Kind(
        "shmtrace_unattributed",
        "Allocated pages that nobody is charged with here: there before the trace, unseen, or told in another segment.",
        "part",
        _unattributed,
    ),
]


def families(moments: Sequence[Moment], session: Session, more: Mapping[str, str] | None = None) -> Iterator[Metric]:
    """The metrics with their values at these moments, in order of time. more: labels of all of them."""
    of_all = more or {}
    for name, text, label, values, family in KINDS:
        points: dict[tuple[str, ...], list[tuple[float, float | None]]] = {}
        for time_ns, some in moments:
            for each in some:
                for value, size_bytes in values(each).items():
                    if size_bytes is not None:
                        key = each.unit, each.segment, *[value] * bool(label)
                        points.setdefault(key, []).append((size_bytes, _seconds(time_ns)))
        metric = family(name, text, unit="bytes", labels=[*of_all, "unit", "segment", *([label] if label else [])])
        for key, found in points.items():
            for number, time_s in found:
                metric.add_metric([*of_all.values(), *key], number, timestamp=time_s)
        yield metric
    time_s = _seconds(moments[-1][0])
    yield from _of_session(session, of_all, time_s)


def _of_session(session: Session, of_all: Mapping[str, str], time_s: float | None) -> Iterator[Metric]:
    """What is known of the trace as a whole, as of its last moment."""
    lost = CounterMetricFamily(
        "shmtrace_lost", "Events, pages and probes that were lost: the figures have gaps.", labels=[*of_all, "what"]
    )
    for what in ("events", "pages", "probes"):
        lost.add_metric([*of_all.values(), what], getattr(session, f"lost_{what}"), timestamp=time_s)
    yield lost
    about = {"tier": session.tier, "mechanism": session.mechanism, "version": session.version}
    tier = GaugeMetricFamily("shmtrace_tier_info", "How it is traced.", labels=[*of_all, *about])
    tier.add_metric([*of_all.values(), *about.values()], 1, timestamp=time_s)
    yield tier
    for name, text, unit, value, family in (
        ("shmtrace_collected_timestamp", "When these figures were read.", "seconds", session.ended_ns / 1e9, None),
        ("shmtrace_self_resident", "Most memory that shmtrace itself had.", "bytes", session.self_rss_bytes, None),
        ("shmtrace_self_cpu", "CPU time that it took.", "seconds", session.self_cpu_seconds, CounterMetricFamily),
    ):
        metric = (family or GaugeMetricFamily)(name, text, unit=unit, labels=list(of_all))
        if value is not None:
            metric.add_metric(list(of_all.values()), value, timestamp=time_s)
        yield metric


def _seconds(time_ns: int | None) -> float | None:
    return None if time_ns is None else round(time_ns / 1e9, 3)  # Prometheus has milliseconds


class _Collected(Collector):
    """The form in which prometheus_client takes metrics to be written."""

    def __init__(self, some: Iterable[Metric]) -> None:
        self._some = some

    def collect(self) -> Iterable[Metric]:
        return self._some


def plain(some: Iterable[Metric]) -> bytes:
    """The text that node_exporter reads from a file: PLAIN. It takes no timestamps."""
    return exposition.generate_latest(_Collected(some))


def open_metrics(some: Iterable[Metric]) -> Iterator[bytes]:
    """OpenMetrics (OPEN), one metric after the other."""
    for metric in some:
        text: bytes = openmetrics.generate_latest(_Collected([metric]))  # type: ignore[no-untyped-call]
        yield text.removesuffix(END)
    yield END


def accepted(header: str | None) -> str:
    """PLAIN or OPEN, as a request's header Accept has it."""
    return PLAIN if exposition.choose_encoder(header or "")[1].startswith("text/plain") else OPEN
