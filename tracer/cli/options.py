"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from tracer import labels
from tracer.address import Address
from tracer.formatting import UNITS, parse_bytes
from tracer.proc.procfs import Proc
from tracer.proc.shmem import PAGE_BYTES
from tracer.record.schedule import Schedule

TIMES_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Seconds(click.FloatRange):
    """A number of seconds in a range, or 90s, 10m, 2h, 1d.

    Rejects NaN, which click accepts: NaN is neither below nor above a bound.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"(?a)(\d{1,9}(?:\.\d{1,9})?)([smhd])", value) if isinstance(value, str) else None
        if match:
            value = float(match[1]) * TIMES_S[match[2]]
        seconds = super().convert(value, param, ctx)
        return self.fail(f"{value} is not a number of seconds", param, ctx) if math.isnan(seconds) else seconds


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def size(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes for a size such as 512M or 4G. Raises click.BadParameter."""
    if value is None:
        return None
    size_bytes = parse_bytes(value)
    if size_bytes is None:
        raise click.BadParameter(f"{value[:40]!r} is not a size: write 512M or 4G")
    return size_bytes


def rotation(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> Schedule | None:
    """When --rotate ends a part: 1h, 100M, or one of each. Raises click.BadParameter."""
    every_s: float | None = None
    max_bytes: int | None = None
    for text in ",".join(values).split(",") if values else ():
        if match := re.fullmatch(r"(?a)(\d{1,9})([smhd])", text):
            if every_s is not None:
                raise click.BadParameter("two times: give one time and one size at most")
            every_s = float(match[1]) * TIMES_S[match[2]]
            if not every_s:
                raise click.BadParameter(f"{text!r} is no time to wait: write 1h")
        elif match := re.fullmatch(r"(?a)\d{1,19}[KMGT]", text):
            if max_bytes is not None:
                raise click.BadParameter("two sizes: give one time and one size at most")
            max_bytes = size(_ctx, _parameter, text)
        else:
            raise click.BadParameter(f"{text[:40]!r} is neither a time nor a size: write 90s, 10m, 1h, 1d, or 100M, 1G")
    return Schedule(every_s, max_bytes) if values else None


def byte_range(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """(start, end) in bytes, end excluded, for 0x1000-0x5000, 4K-20K or p1-p5. Raises click.BadParameter."""
    if value is None:
        return None
    match = re.fullmatch(r"(?i)(p?)(\w+)-(p?)(\w+)", value)
    try:
        if match and match[1].lower() == match[3].lower():
            unit = PAGE_BYTES if match[1] else 1
            start, end = (_offset(number, bare=bool(match[1])) * unit for number in (match[2], match[4]))
            if start < end < 1 << 63:
                return start, end
    except ValueError:
        pass
    raise click.BadParameter(f"{value[:40]!r} is not a range: write 4K-20K, 0x1000-0x5000 or, in pages, p1-p5")


def _offset(text: str, bare: bool) -> int:
    """The number in 4096, 4K or 0x1000. bare: accept plain digits only. Raises ValueError."""
    match = re.fullmatch(r"(?ai)(\d+)" if bare else r"(?ai)(\d+)([kmgt]?)|0x([0-9a-f]+)", text)
    if not match:
        raise ValueError
    number, unit, hexadecimal = (*match.groups(""), "", "")[:3]
    return int(hexadecimal, 16) if hexadecimal else int(number) * UNITS[unit.upper()]


def address(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> Address | None:
    """Where --listen listens. Raises click.BadParameter."""
    if value is None:
        return None
    match = re.fullmatch(r"(?a)(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})", value)
    try:
        if match and int(match[3]) < 1 << 16:
            place = match[1] or match[2]
            return Address(ip_address("127.0.0.1" if place == "localhost" else place), int(match[3]))
    except ValueError:
        pass
    raise click.BadParameter(f"{value[:40]!r} is not an address and a port: write 127.0.0.1:9109 or [::1]:9109")


def label(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> labels.Source | None:
    """The source that --label names. Raises click.BadParameter."""
    if value is None:
        return None
    try:
        return labels.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def label_names(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Shell completions for --label."""
    return [CompletionItem(name) for name in labels.READY if name.startswith(begun)]


def process_names(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Shell completions for -p: names of running processes, or files after a slash.

    Names with characters that are special to a shell or a regular expression are left out.
    """
    if "/" in begun:
        return [CompletionItem(begun, type="file")]
    names = {process.comm for process in Proc().processes().values() if process.title}  # kernel threads have none
    fitting = (name for name in sorted(names) if name.startswith(begun))
    return [CompletionItem(name) for name in fitting if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)]


A_FILE = click.Path(path_type=Path, readable=False)  # not checked here: the error of opening it says more

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, schema shmtrace/1.")
as_csv = click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values with a header line.")
wait = click.option("--wait", is_flag=True, help="Wait until a process matches -p, if none does yet.")
which_process = click.option(
    "-p",
    "--process",
    "names",
    multiple=True,
    metavar="NAME|PID|PIDFILE|TMPFS",
    shell_complete=process_names,
    help="Select processes and all their descendants: by name (a regular expression, as for pgrep), by PID on the "
    "host, or by pidfile. Repeatable. Or the mount point of a tmpfs: its files, whoever uses them.",
)


def narrowed(command: Callable[..., None]) -> Callable[..., None]:
    """The options that leave only a part of a capture: --region and -p."""
    for decorate in (
        click.option(
            "-p",
            "--process",
            "names",
            multiple=True,
            metavar="NAME|PID",
            help="Show only regions that these processes or their descendants created, map or touched. Repeatable.",
        ),
        click.option(
            "--region",
            "words",
            multiple=True,
            metavar="REGION",
            help="Show only this region: a guess such as opcache, a name, an id, or PID:ADDRESS. Repeatable.",
        ),
    ):
        command = decorate(command)
    return command


a_label = click.option(
    "--label",
    "source",
    callback=label,
    shell_complete=label_names,
    metavar="php|php:file|postgres|BINARY:SYMBOL[+OFFSET]",
    help="Record what a process was doing when it touched a page. php: the script and request. php:file: also the file "
    "being compiled. postgres: the query. BINARY:SYMBOL: the string that this char * points to "
    "(BINARY:&SYMBOL: the string stored at SYMBOL).",
)
everything = click.option("-a", "--all", "everything", is_flag=True, help="Select every process on the host.")


def output(text: str, **more: Any) -> Decorator:
    """The option -o. text: its help, which says what is written to the file."""
    return click.option("-o", "--output", "output_path", metavar="FILE", type=A_FILE, help=text, **more)


def interval(kind: Seconds, default_s: float, text: str) -> Decorator:
    """The option -i, in seconds. text: its help, which says what happens at each interval."""
    return click.option(
        "-i",
        "--interval",
        "interval_s",
        type=kind,
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help=text,
    )


def windowed(command: Callable[..., None]) -> Callable[..., None]:
    """The options --since and --until."""
    until = click.option(
        "--until",
        metavar="TIME",
        help="Count only pages touched before TIME; -5m is 5 minutes before the capture's end.",
    )
    since = click.option(
        "--since",
        metavar="TIME",
        help="Count only pages touched at or after TIME: 14:00, '2026-11-25 14:00', or +30s after the capture's start.",
    )
    return since(until(command))


def which_processes(command: Callable[..., None]) -> Callable[..., None]:
    """The options that select processes: -p and -a."""
    return which_process(everything(command))


def as_document(command: Callable[..., None]) -> Callable[..., None]:
    """The options --json and --csv. Giving both raises click.UsageError."""

    @functools.wraps(command)
    def checked(**how: Any) -> None:
        if how["as_json"] and how["as_csv"]:
            raise click.UsageError("--json and --csv exclude each other: give one of them")
        command(**how)

    return as_json(as_csv(checked))


room = click.option(
    "--room",
    "room_bytes",
    default="4G",
    show_default=True,
    callback=size,
    metavar="SIZE",
    help="Reserve for regions created during the trace (costs 0.24% of it in kernel memory). A larger size also makes "
    "room for more processes and regions.",
)
armed = click.option(
    "--armed", "is_armed", is_flag=True, help="Take what `shmtrace arm` has recorded since; it stays armed."
)


def a_capture(command: Callable[..., None]) -> Callable[..., None]:
    """A capture's file, or --armed instead of it: the path is None then."""

    @functools.wraps(command)
    def checked(capture_path: Path | None, is_armed: bool, **how: Any) -> None:
        if bool(capture_path) + is_armed != 1:
            raise click.UsageError("give one of FILE, --armed")
        command(capture_path=capture_path, **how)

    return click.argument("capture_path", metavar="FILE", type=A_FILE, required=False)(armed(checked))


def how_to_trace(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that traces into a capture, and the COMMAND it may run."""
    for decorate in (
        click.argument("command", nargs=-1, type=click.UNPROCESSED),
        room,
        a_label,
        click.option(
            "--stacks",
            is_flag=True,
            help="Count pages by user stack; needs frame pointers: Debian's php and libc have none, so their stacks "
            "are short. Requires -o.",
        ),
        wait,
        interval(Seconds(0.1, 1), 0.5, "Seconds between samples; each is committed to the capture."),
        click.option(
            "-d",
            "--duration",
            "seconds",
            type=Seconds(min=0, min_open=True),
            metavar="SECONDS",
            help="Stop after this many seconds; or 90s, 10m, 2h, 1d.",
        ),
    ):
        command = decorate(command)
    return command


def how_to_record(command: Callable[..., None]) -> Callable[..., None]:
    """The options of record."""
    for decorate in (
        click.option(
            "--keep-on-oom",
            "oom_path",
            metavar="FILE",
            type=A_FILE,
            help="Instead of -o: write nothing until the OOM killer strikes, and then the last hour.",
        ),
        click.option(
            "--keep",
            type=click.IntRange(min=1),
            metavar="N",
            help="With --rotate: remove the oldest of the other captures, all but N. With --keep-on-oom: of those "
            "after the first; N is 10 unless given.",
        ),
        click.option(
            "--rotate",
            "schedule",
            multiple=True,
            callback=rotation,
            metavar="TIME|SIZE",
            help="Cut the trace into captures that are complete each: after 1h, at 100M, or 1h,100M. FILE is the "
            "current one; the others get the time when they began. SIGHUP rotates, too.",
        ),
        click.option(
            "--max-size",
            "max_bytes",
            callback=size,
            metavar="SIZE",
            help="Keep the capture below this by dropping every other old size sample; pages are never dropped.",
        ),
        click.option(
            "--listen",
            callback=address,
            metavar="ADDRESS:PORT",
            help="Serve metrics for Prometheus at http://ADDRESS:PORT/metrics; 127.0.0.1:9109 serves this host alone.",
        ),
        click.option(
            "--textfile",
            metavar="FILE",
            type=A_FILE,
            help="Write metrics to this file, DIR/shmtrace.prom, which node_exporter reads; all users may, too.",
        ),
        output("Write the capture to this new file."),
        how_to_trace,
        which_processes,
    ):
        command = decorate(command)
    return command
