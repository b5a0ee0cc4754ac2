"""The account as one JSON document, of the schema that schema.json writes down. Fields are only ever added to it."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from json.encoder import encode_basestring_ascii
from types import GeneratorType
from typing import Any

from tracer.answer import Answer, answer
from tracer.model import Account, Label, OomKill, Process, Region, Toucher, charged, dev_text
from tracer.tables.by_host import HostRow, by_host
from tracer.unmapped import UnmappedRow

SCHEMA = "shmtrace/1"
MAX_GROUPS = 20  # of regions and of growers, in the answer


# Most values have these types. json.dumps() would be slow for them, because it makes an encoder each time.
PLAIN: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    int: int.__repr__,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): lambda _: "null",
}


def render(account: Account) -> Iterator[str]:
    """The text of json.dumps(…, indent=1), in pieces, because it may be large.

    Most of it is touchers. The same process occurs many times, so its text is cached by its row and margin.
    """
    texts: dict[tuple[int, str], str] = {}

    def process_text(process: Process, margin: str) -> str:
        key = process.row, margin
        if key not in texts:
            texts[key] = text(_process(process), margin)
        return texts[key]

    def toucher_text(toucher: Toucher, margin: str) -> str:
        inner = margin + " "
        made_for = [{"process": process, "made_bytes": made_bytes} for process, made_bytes in toucher.made_for]
        return _template(TOUCHER, margin) % (
            process_text(toucher.process, inner),
            toucher.touched_bytes,
            toucher.freed_bytes,
            "null" if toucher.faults is None else toucher.faults,
            _quoted(toucher.first_ns),
            _quoted(toucher.last_ns),
            text(made_for, inner) if made_for else "[]",
        )

    def text(value: Any, margin: str) -> str:
        if plain := PLAIN.get(type(value)):
            return plain(value)
        inner = margin + " "
        if isinstance(value, Process):
            return process_text(value, margin)
        if isinstance(value, dict):
            items = ",".join([f'{inner}"{name}": {text(item, inner)}' for name, item in value.items()])
            return f"{{{items}{margin}}}"
        if isinstance(value, list):
            return "[" + ",".join([inner + text(item, inner) for item in value]) + margin + "]" if value else "[]"
        return json.dumps(value)

    def pieces(value: Any, margin: str) -> Iterator[str]:
        """Like text(), but a generator in a dict becomes a list, one item at a time."""
        inner = margin + " "
        if isinstance(value, dict) and any(isinstance(item, GeneratorType) for item in value.values()):
            before = "{"
            for name, item in value.items():
                before += f'{inner}"{name}": '
                if isinstance(item, GeneratorType):
                    yield before
                    yield from pieces(item, inner)
                    before = ","
                else:
                    before += text(item, inner) + ","
            yield before.removesuffix(",") + margin + "}"
        elif isinstance(value, GeneratorType):
            before = "["
            for item in value:
                if isinstance(item, Toucher):
                    yield before + inner + toucher_text(item, inner)
                else:
                    yield before + inner
                    yield from pieces(item, inner)
                before = ","
            yield "[]" if before == "[" else margin + "]"
        else:
            yield text(value, margin)

    return pieces(_document(account), "\n")


TOUCHER = "process", "touched_bytes", "freed_bytes", "faults", "first", "last", "made_for"


@functools.cache
def _template(names: tuple[str, ...], margin: str) -> str:
    """An object of these names, with %s for each value."""
    return "{" + ",".join(f'{margin} "{name}": %s' for name in names) + margin + "}"


def _quoted(unix_ns: int | None) -> str:
    return "null" if unix_ns is None else f'"{rfc3339(unix_ns)}"'


def _document(account: Account) -> dict[str, Any]:
    session = account.session
    return {
        "schema": SCHEMA,
        "host": session.host,
        "kernel": session.kernel,
        "version": session.version,
        "tier": session.tier,
        "mechanism": session.mechanism or None,
        "label": session.label,
        "tmpfs": session.tmpfs,
        "blind_to": session.blind_to,
        "started": rfc3339(session.started_ns),
        "ended": rfc3339(session.ended_ns),
        "complete": session.complete,
        "part": session.part,
        "part_started": rfc3339(session.part_started_ns),
        "hosts": [_host(row) for row in by_host(account).rows] if account.hosts else [],
        "nr_older": account.nr_older,
        "since": rfc3339(account.window.since_ns),
        "until": rfc3339(account.window.until_ns),
        "answer": _answer(answer(account)),
        "regions": (_region(region) for region in account.regions),
        "parents": [
            {
                "process": parent.process,
                "allocated_bytes": parent.allocated_bytes,
                "grown_bytes": parent.grown_bytes,
                "regions": [region.id for region in parent.regions],
            }
            for parent in account.parents
        ],
        "sum_of_rss_bytes": session.sum_of_rss_bytes,
        "private_start_bytes": session.private_start_bytes,
        "private_end_bytes": session.private_end_bytes,
        "private_peak_bytes": session.private_peak_bytes,
        "private_how": session.private_how,
        "shmem_total_bytes": session.shmem_total_bytes,
        "shmem_unexplained_bytes": account.shmem_unexplained_bytes,
        "unmapped": [_unmapped(row) for row in account.unmapped],
        "shmem_rest_bytes": account.shmem_rest_bytes,
        "nr_ooms": session.nr_ooms,
        "ooms": [_oom(kill) for kill in account.ooms],
        "lost": {"events": session.lost_events, "pages": session.lost_pages, "probes": session.lost_probes},
        "warnings": session.warnings,
        "self": {
            "cpu_seconds": session.self_cpu_seconds,
            "rss_bytes": session.self_rss_bytes,
            "attach_seconds": session.attach_seconds,
        },
    }


def _host(row: HostRow) -> dict[str, Any]:
    document = {**row._asdict(), "ended": rfc3339(row.ended_ns)}
    del document["ended_ns"]
    return document


def _region(region: Region) -> dict[str, Any]:
    creator = region.creator
    return {
        "host": region.host,
        "id": region.id,
        "dev": dev_text(region.dev),
        "ino": region.ino,
        "generation": region.generation,
        "kind": region.kind,
        "name": region.name,
        "hint": region.hint,
        "created": rfc3339(region.created_ns),
        "gone": rfc3339(region.gone_ns),
        "size_bytes": region.size_bytes,
        "allocated_bytes": region.allocated_bytes,
        "peak_bytes": region.peak_bytes,
        "resident_bytes": region.resident_bytes,
        "swapped_bytes": region.swapped_bytes,
        "creator": {**_process(creator.process), "how": creator.how} if creator else None,
        "charged": [
            {"cgroup": process.cgroup if process else None, "bytes": size_bytes}
            for process, size_bytes in charged(region)
        ],
        "before_bytes": region.before_bytes,
        "other_times_bytes": region.other_times_bytes,
        "unseen_bytes": region.unseen_bytes,
        "touchers": (toucher for toucher in region.touchers),
        "labels": _labels(region),
        "mappers": region.mappers,
    }


def _unmapped(row: UnmappedRow) -> dict[str, Any]:
    document = {**row._asdict(), "used": rfc3339(row.used_ns), "remedy": row.remedy}
    del document["used_ns"]
    return document


def _oom(kill: OomKill) -> dict[str, Any]:
    document = {**kill._asdict(), "time": rfc3339(kill.time_ns), "unnamed_bytes": kill.unnamed_bytes}
    del document["time_ns"]
    document["touched"] = [
        {"region": region, "process": process, "touched_bytes": size_bytes}
        for region, process, size_bytes in kill.touched
    ]
    return document


def _answer(found: Answer) -> dict[str, Any]:
    document = found._asdict()
    del document["kills"], document["sentences"]  # both are in its text
    lists = ("regions", "gone", "growers", "hosts")
    document |= {name: [row._asdict() for row in getattr(found, name)[:MAX_GROUPS]] for name in lists}
    return {"text": found.text, **document}


def _labels(region: Region) -> list[dict[str, Any]]:
    """The touched bytes by label, most first."""
    touched: Counter[Label | None] = Counter()
    for labelled in region.labelled:
        touched[labelled.label] += labelled.touched_bytes
    return [
        {**(label or Label())._asdict(), "known": label is not None, "touched_bytes": touched_bytes}
        for label, touched_bytes in sorted(touched.items(), key=lambda item: (-item[1], repr(item[0])))
    ]


def _process(process: Process) -> dict[str, Any]:
    where = process.place
    names = where.names
    return {
        "host": process.host,
        "tgid": process.tgid,
        "ns_tgid": process.ns_tgid,
        "start_time_ns": process.start_time_ns or None,
        "comm": process.comm,
        "command": process.command,
        "parent": process.parent,
        "started": rfc3339(process.started_ns),
        "exited": rfc3339(process.exited_ns),
        "exit_code": process.exit_code,
        "exit_signal": process.exit_signal,
        "oom_killed": process.oom_killed,
        "cgroup": process.cgroup,
        "unit": where.unit,
        "container": where.container,
        "pod": where.pod,
        "namespace": names and names.namespace,
        "pod_name": names and names.pod,
        "container_name": names and names.container,
        "in_tree": not process.outside_tree,
    }


def rfc3339(unix_ns: int | None) -> str | None:
    """Nanoseconds since 1970 in RFC 3339, in UTC, with microseconds; None stays None."""
    if unix_ns is None:
        return None
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return f"{_second(seconds)}.{ns // 1000:06}Z"


@functools.lru_cache(maxsize=1 << 14)  # room for 4 hours of seconds; most times of a capture lie close together
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).replace(tzinfo=None).isoformat()
