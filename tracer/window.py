"""Parse --since and --until: 14:00 on the capture's day, +30s after its start, or a whole date and time. Pure."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

from tracer.errors import ShmtraceError
from tracer.model import Session, Window

EXAMPLES = "write 14:00, 14:05:30, '2026-11-25 14:00', 2026-11-25T14:00:00Z, +30s after its start or -5m before its end"
RELATIVE = re.compile(r"[+-](\d{1,9}[smhd])+", re.ASCII)
CLOCK = re.compile(r"\d\d?:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
LONGEST_S = 10**9  # 31 years
MAX_SHOWN = 40  # characters of an invalid time that the error repeats
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def window(since: str | None, until: str | None, session: Session) -> Window:
    """The window that --since and --until select; of a part, +0s is when that began. None: open on that side.

    Raises ShmtraceError for a time that cannot be parsed, an empty window, and one outside the capture.
    """
    bounds = (session.since_ns, session.ended_ns)
    since_ns, until_ns = (None if text is None else parse(text, *bounds) for text in (since, until))
    if since_ns is not None and until_ns is not None and since_ns >= until_ns:
        raise ShmtraceError(f"--since {since} is not before --until {until}", "swap them")
    is_late = since_ns is not None and since_ns > session.ended_ns
    if is_late or (until_ns is not None and until_ns <= session.started_ns):
        asked = " ".join(f"--{name} {text}" for name, text in (("since", since), ("until", until)) if text is not None)
        raise _outside(asked, session)
    return Window(since_ns, until_ns)


def moment(text: str, session: Session) -> int:
    """Nanoseconds since 1970 for a time in a capture. Raises ShmtraceError, also if it lies outside the capture."""
    time_ns = parse(text, session.since_ns, session.ended_ns)
    if not session.since_ns <= time_ns <= session.ended_ns:
        raise _outside(text, session)
    return time_ns


def _outside(asked: str, session: Session) -> ShmtraceError:
    bounds = (session.since_ns, session.ended_ns)
    first, last = (datetime.fromtimestamp(ns / 1e9).strftime("%Y-%m-%d %H:%M:%S") for ns in bounds)  # noqa: DTZ006
    return ShmtraceError(f"{asked} lies outside the capture", f"the capture is from {first} to {last}")


def parse(text: str, started_ns: int, ended_ns: int) -> int:
    """Nanoseconds since 1970 for a time in a capture that lasted from started_ns to ended_ns.

    Without a zone, the time is in the local zone. A time of day alone is on a day of the capture. Raises ShmtraceError
    if the text cannot be parsed, or if it means more than one moment.
    """
    if RELATIVE.fullmatch(text):
        seconds = sum(int(part[:-1]) * UNIT_S[part[-1]] for part in re.findall(r"\d+[smhd]", text))
        if seconds > LONGEST_S:
            raise _unreadable(text)
        return started_ns + seconds * 10**9 if text[0] == "+" else ended_ns - seconds * 10**9
    if CLOCK.fullmatch(text):
        return _of_day(text, started_ns, ended_ns)
    try:
        return _unix_ns(datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", _whole(text))), text)
    except (ValueError, OverflowError):
        raise _unreadable(text) from None


def _whole(text: str) -> str:
    """The text with six digits after the point: Python 3.9 parses only three or six."""
    return re.sub(r"\.(\d{1,6})(?!\d)", lambda digits: f".{digits[1]:0<6}", text, flags=re.ASCII)


def _of_day(text: str, started_ns: int, ended_ns: int) -> int:
    """The moment with this time of day that lies in the capture, or else the closest one."""
    try:
        clock = time.fromisoformat(_whole(text.zfill(len(text) + (text[1] == ":"))))
    except ValueError:
        raise _unreadable(text) from None
    first, last = (datetime.fromtimestamp(ns / 1e9).date() for ns in (started_ns, ended_ns))  # noqa: DTZ006
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    moments = [_unix_ns(datetime.combine(day, clock), text) for day in days]
    inside = [moment for moment in moments if started_ns <= moment <= ended_ns]
    if len(inside) > 1:
        raise ShmtraceError(
            f"{text} occurs on {len(inside)} days of the capture", f"add the day, as in '{first} {text}'"
        )
    return inside[0] if inside else min(moments, key=lambda ns: max(started_ns - ns, ns - ended_ns))


def _unix_ns(moment: datetime, text: str) -> int:
    """In the local zone if it has none. Raises ShmtraceError for an hour that a clock change skips or repeats."""
    if moment.tzinfo is None:
        early, late = moment.replace(fold=0).astimezone(), moment.replace(fold=1).astimezone()
        if early.utcoffset() != late.utcoffset():
            raise ShmtraceError(
                f"{text} occurs twice or never, because of a clock change", f"add the zone, as in {early.isoformat()}"
            )
    unix_ns = int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000
    if abs(unix_ns) >= 1 << 63:  # more than an integer of SQLite holds
        raise _unreadable(text)
    return unix_ns


def _unreadable(text: str) -> ShmtraceError:
    return ShmtraceError(f"{text[:MAX_SHOWN]!r} is not a time", EXAMPLES)
