"""A moment as a person writes it, looking at a capture: 14:00 of its day, +30s of its start, or in full. Pure."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

from tracer.account import Session, Window
from tracer.errors import ShmtraceError

EXAMPLES = "write 14:00, 14:05:30, '2026-11-25 14:00', 2026-11-25T14:00:00Z, +30s after its start or -5m before its end"
RELATIVE = re.compile(r"[+-](\d{1,9}[smhd])+", re.ASCII)
CLOCK = re.compile(r"\d\d?:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
LONGEST_S = 10**9  # 31 years
MAX_SHOWN = 40  # characters of what cannot be read
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def window(since: str | None, until: str | None, session: Session) -> Window:
    """Raises ShmtraceError, for one that is empty, or has nothing of the capture in it, too."""
    bounds = (session.started_ns, session.ended_ns)
    since_ns, until_ns = (None if text is None else parse(text, *bounds) for text in (since, until))
    if since_ns is not None and until_ns is not None and since_ns >= until_ns:
        raise ShmtraceError(f"--since {since} is not before --until {until}", "turn them round")
    if (since_ns is not None and since_ns > session.ended_ns) or (until_ns is not None and until_ns <= bounds[0]):
        first, last = (datetime.fromtimestamp(ns / 1e9).strftime("%Y-%m-%d %H:%M:%S") for ns in bounds)  # noqa: DTZ006
        asked = " ".join(f"--{name} {text}" for name, text in (("since", since), ("until", until)) if text is not None)
        raise ShmtraceError(f"nothing was captured with {asked}", f"the capture is from {first} to {last}")
    return Window(since_ns, until_ns)


def parse(text: str, started_ns: int, ended_ns: int) -> int:
    """Nanoseconds since 1970 of what is meant in a capture of these times. Where no zone is given it is the viewer's,
    and a time of day alone is of the capture's day.

    Raises ShmtraceError for what cannot be read, and for what was more than once.
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
    """With six digits after the point: Python 3.9 reads no other number of them."""
    return re.sub(r"\.(\d{1,6})(?!\d)", lambda digits: f".{digits[1]:0<6}", text, flags=re.ASCII)


def _of_day(text: str, started_ns: int, ended_ns: int) -> int:
    """That one in the capture, or else the one closest to it."""
    try:
        clock = time.fromisoformat(_whole(text.zfill(len(text) + (text[1] == ":"))))
    except ValueError:
        raise _unreadable(text) from None
    first, last = (datetime.fromtimestamp(ns / 1e9).date() for ns in (started_ns, ended_ns))  # noqa: DTZ006
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    moments = [_unix_ns(datetime.combine(day, clock), text) for day in days]
    inside = [moment for moment in moments if started_ns <= moment <= ended_ns]
    if len(inside) > 1:
        raise ShmtraceError(f"{text} was on {len(inside)} days of the capture", f"say which: '{first} {text}'")
    return inside[0] if inside else min(moments, key=lambda ns: max(started_ns - ns, ns - ended_ns))


def _unix_ns(moment: datetime, text: str) -> int:
    """Local where it has no zone. Raises ShmtraceError for an hour that the clocks were put over."""
    if moment.tzinfo is None:
        early, late = moment.replace(fold=0).astimezone(), moment.replace(fold=1).astimezone()
        if early.utcoffset() != late.utcoffset():
            raise ShmtraceError(
                f"{text} is twice or never, for the clocks were changed", f"write {early.isoformat()} with its zone"
            )
    unix_ns = int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000
    if abs(unix_ns) >= 1 << 63:  # a capture has no such integers
        raise _unreadable(text)
    return unix_ns


def _unreadable(text: str) -> ShmtraceError:
    return ShmtraceError(f"{text[:MAX_SHOWN]!r} is no time", EXAMPLES)
