"""The command line: all of click is here. A command parses, runs one pipeline, renders."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracer import __version__, kernel, targets
from tracer.errors import ShmtraceError
from tracer.procfs import Proc

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Future

    from tracer.account import Account
    from tracer.capture import Capture
    from tracer.signals import Signals

FOREVER_S = 10**9
BETWEEN_READINGS = 4  # times as long as one takes, for a region of a million fragments must not hold up its trace
A_FILE = click.Path(path_type=Path, readable=False)  # whoever opens it says better what is wrong


class Failure(click.ClickException):
    """Whatever is wrong, on one line."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_code = status

    def show(self, file: Any = None) -> None:
        click.echo(f"shmtrace: {self.format_message()}", file=file or sys.stderr)


class Commands(click.Group):
    """`shmtrace -p X` and `shmtrace -- COMMAND` are short for `shmtrace trace …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args = ["trace", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _open_standard_files()
            return super().invoke(ctx)
        except ShmtraceError as error:
            raise Failure(str(error), error.status) from None
        except click.UsageError as error:
            command = (error.ctx or ctx).command_path
            message = error.format_message().rstrip(".")
            raise Failure(f"{message}: `{command} --help` says more", error.exit_code) from None


def _size(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes of a size like 512M or 4G."""
    if value is None:
        return None
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = (value[:-1], units[value[-1:].upper()]) if value[-1:].upper() in units else (value, 1)
    if not number.isdecimal() or not int(number):
        raise click.BadParameter(f"{value!r} is no size: write 512M or 4G")
    return int(number) * unit


def which_processes(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say whose regions are meant."""
    everything = click.option("-a", "--all", "everything", is_flag=True, help="Every process of the host.")
    name = click.option(
        "-p",
        "--process",
        "names",
        multiple=True,
        metavar="NAME|PID|PIDFILE",
        help="Processes by name (as pgrep matches), PID or pidfile, with all their descendants. Repeatable.",
    )
    return name(everything(command))


def how_to_trace(command: Callable[..., None]) -> Callable[..., None]:
    """The options of all that trace, and the command that may be run."""
    for decorate in (
        click.argument("command", nargs=-1, type=click.UNPROCESSED),
        click.option(
            "--room",
            "room_bytes",
            default="4G",
            show_default=True,
            callback=_size,
            metavar="SIZE",
            help="Of regions still to come; the ledger takes 0.22% of it.",
        ),
        click.option("--wait", is_flag=True, help="Wait for a process that matches, if there is none yet."),
        click.option(
            "-i",
            "--interval",
            "interval_s",
            type=click.FloatRange(0.1, 1),
            default=0.5,
            show_default=True,
            metavar="SECONDS",
            help="Between two looks at the sizes, each written into the capture; at most 1.",
        ),
        click.option(
            "-d", "--duration", "seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so long."
        ),
    ):
        command = decorate(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document, schema shmtrace/1.")


@click.group(cls=Commands, context_settings={"help_option_names": ["--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shmtrace")
def main() -> None:
    """Who grew the shared memory?

    \b
    shmtrace -p php-fpm           trace a pool and its workers until Ctrl-C, then report
    shmtrace -p php-fpm -d 30     the same for 30 seconds
    shmtrace -- ./server --flag   trace a command from its first instruction to its end
    shmtrace record -p php-fpm -o pool.capture
                                  trace into a file, to be looked at later
    shmtrace snapshot -p php-fpm  what there is now, from /proc alone
    shmtrace demo                 see ps, pmap and free get it wrong
    shmtrace doctor               what this host allows, and what mends the rest

    `shmtrace -p X` is short for `shmtrace trace -p X`; `shmtrace trace --help` has its options.
    """


@main.command()
@which_processes
@as_json
@how_to_trace
@click.option("-o", "output", metavar="FILE", type=A_FILE, help="Keep the capture, as record does.")
def trace(as_json: bool, **options: Any) -> None:
    """Record who makes and first touches shared memory, until Ctrl-C, SIGTERM or -d; then report.

    \b
    shmtrace -p php-fpm                 by name, workers included
    shmtrace -p /run/php/php-fpm.pid    by pidfile
    shmtrace -p nginx -p php-fpm -d 60  two trees, one minute
    shmtrace -a -d 10 --json            the whole host, for a program to read
    shmtrace -- make test               a command; ends with its status
    """
    from tracer import account

    status = _trace(lambda capture: _print(account.read(capture), as_json), **options)
    if status is not None:
        sys.exit(status)


@main.command()
@which_processes
@how_to_trace
@click.option(
    "-o",
    "output",
    metavar="FILE",
    type=A_FILE,
    required=True,
    help="The capture; must be a new file.",
)
@click.option(
    "--max-size",
    "max_bytes",
    callback=_size,
    metavar="SIZE",
    help="Of the capture: beyond it, older samples of sizes are thinned out; never pages.",
)
def record(output: Path, **options: Any) -> None:
    """Trace into a capture, to be looked at later, by others, in many ways.

    It is an SQLite file for its owner's eyes (0600), written once a second: what is cut off, by kill -9 or a full disk,
    is all there but for the last second. `shmtrace report FILE` prints what a trace would have.

    \b
    shmtrace record -p php-fpm -o pool.capture           until Ctrl-C
    shmtrace record -p php-fpm -o day.capture -d 86400   a day
    shmtrace record -o build.capture -- make test        a command; ends with its status
    """
    status = _trace(
        lambda _: click.echo(f"shmtrace: recorded into {output}; `shmtrace report {output}`", err=True),
        output=output,
        **options,
    )
    if status is not None:
        sys.exit(status)


def _trace(
    then: Callable[[Capture], None],
    names: tuple[str, ...],
    everything: bool,
    seconds: float | None,
    interval_s: float,
    wait: bool,
    room_bytes: int,
    command: tuple[str, ...],
    output: Path | None,
    max_bytes: int | None = None,
) -> int | None:
    """Trace into a capture, then do that with it; the command's status, if one was run."""
    from tracer.capture import Capture
    from tracer.command import Started
    from tracer.signals import Signals
    from tracer.trace import Trace
    from tracer.views import live

    if bool(names) + everything + bool(command) != 1:
        raise click.UsageError("name one of: -p NAME, -a (all), -- COMMAND")
    _need_root(bpf=True)
    kernel.need_host_pids()
    started = Started(command) if command else None
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        if started:
            stack.enter_context(started)
            wanted = targets.Targets(frozenset([started.tgid]), ())
        else:
            wanted = _wanted(names, everything, wait)
        stack.enter_context(_written(output))
        capture = stack.enter_context(Capture(output, max_bytes))
        running = signals.trace = stack.enter_context(Trace(capture, wanted, _ourselves(), interval_s, room_bytes))
        stack.callback(signals.ignore)
        if started:
            started.go()
        line = live.Line(sys.stderr, alone=not started)
        if not started:
            line.say(f"tracing {running.size()}; Ctrl-C {'ends' if output else 'reports'}")
        end = time.monotonic() + (seconds or FOREVER_S)
        while not running.stopping and (left := end - time.monotonic()) > 0:
            running.run(min(left, interval_s, 0.05 if started else FOREVER_S))
            if line.shown:
                line.show(running.summary())
            if started and started.ended():
                break
            if not (started or wanted.patterns or everything or wait) and running.over():
                line.say("all of the traced processes have ended")
                break
        line.clear()
        if started and not started.ended():
            started.end(patience_s=1.0 if signals.first == signal.SIGINT else 0)  # Ctrl-C went to both
        running.finish()
        then(capture)
    return started.status if started else None


@main.command()
@which_processes
@as_json
def snapshot(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """What shared memory there is now, whose, and how much: from /proc alone, without BPF.

    Who made a region is inferred, and labelled so; who touched it cannot be known. Without -p: the whole host.
    """
    from tracer import account
    from tracer import snapshot as snapshots
    from tracer.capture import Capture

    _need_root(bpf=False)
    wanted = _wanted(names, everything or not names, wait=False)
    with Capture() as capture:
        snapshots.take(capture, wanted, _ourselves())
        _print(account.read(capture), as_json)


@main.command()
@which_processes
@click.option(
    "-i",
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--wait", is_flag=True, help="Wait for a process that matches, if there is none yet.")
def top(names: tuple[str, ...], everything: bool, interval_s: float, wait: bool) -> None:
    """Watch regions and who grows them, live; q, Ctrl-C or SIGTERM ends, and prints the report.

    Sort, pause, look into a region: ? has the keys. Where it is not on a terminal, a line for whatever changes.

    \b
    shmtrace top -p php-fpm            a pool and its workers
    shmtrace top -a -i 5               the whole host, every 5 seconds
    shmtrace top -p php-fpm | tee log  plain lines
    """
    from concurrent.futures import ThreadPoolExecutor

    from tracer.signals import Signals

    if bool(names) + everything != 1:
        raise click.UsageError("name one of: -p NAME, -a (all)")
    _need_root(bpf=True)
    kernel.need_host_pids()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        wanted = _wanted(names, everything, wait)
        stack.enter_context(_written(None))
        # all of the trace is in one thread, as SQLite wants it, and keeps up with the kernel while this one draws
        thread = stack.enter_context(ThreadPoolExecutor(1))
        accounts = _accounts(signals, wanted, interval_s, lasting=wait or everything or bool(wanted.patterns))
        stack.callback(lambda: thread.submit(accounts.close).result())
        stack.callback(lambda: _stop(signals))
        stack.callback(signals.ignore)
        final = _watch(lambda: thread.submit(next, accounts, None), lambda: _stop(signals))
        if final:
            _print(final, as_json=False)


def _accounts(
    signals: Signals, wanted: targets.Targets, interval_s: float, lasting: bool
) -> Generator[Account, None, None]:
    """Of a trace: as it begins, at every interval, and, complete, at its end.

    lasting: others may come when all that is traced has ended.
    """
    from tracer import account
    from tracer.capture import Capture
    from tracer.trace import Trace

    with Capture() as capture, Trace(capture, wanted, _ourselves(), min(interval_s, 0.5)) as running:
        signals.trace = running
        running.run(0.01)
        while not running.stopping and (lasting or not running.over()):
            began_s = time.monotonic()
            now = account.read(capture)
            reading_s = time.monotonic() - began_s
            yield now
            running.run(max(interval_s, BETWEEN_READINGS * reading_s))
        running.finish()
        yield account.read(capture)


def _stop(signals: Signals) -> None:
    if signals.trace:
        signals.trace.stopping = True


def _watch(following: Callable[[], Future[Account | None]], stop: Callable[[], None]) -> Account | None:
    """Show the accounts as they come, on a terminal or in plain lines; the complete one, that comes last."""
    from tracer.views import top as views

    now = following().result()
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if (
        now
        and not now.session.complete
        and all(stream.isatty() for stream in streams)
        and os.environ.get("TERM") != "dumb"
    ):
        import asyncio

        from tracer.views import screen

        return screen.show(now, lambda: asyncio.wrap_future(following()), stop)
    view = None
    while now:
        view = views.compare(now, view)
        for line in views.changes(view):
            _write(line)
        if now.session.complete:
            return now
        now = following().result()
    return None


@main.command()
@click.argument("capture_path", metavar="FILE", type=A_FILE)
@click.option(
    "--by",
    type=click.Choice(["parent", "region", "process", "time"]),
    default="parent",
    show_default=True,
    help="Of what.",
)
@click.option("--since", metavar="TIME", help="Touched then or later: 14:00, 2026-11-25 14:00, +30s after the start.")
@click.option("--until", metavar="TIME", help="Touched before then; -5m is five minutes before the capture's end.")
@click.option("--sort", metavar="COLUMN", help="By a column of the table; one that is not there names them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, schema shmtrace/1.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with a heading.")
def report(
    capture_path: Path, by: str, since: str | None, until: str | None, sort: str | None, as_json: bool, as_csv: bool
) -> None:
    """What a capture says: the trace's own report, or a table by region, process or time.

    \b
    shmtrace report x.capture                                        as the trace printed it
    shmtrace report x.capture --by time --since 14:00 --until 14:05  who grew it then
    shmtrace report x.capture --by process --sort freed              who gave most back
    shmtrace report x.capture --csv > shares.csv                     every part of every region
    """
    from tracer import account, moments, rollup
    from tracer.capture import Capture
    from tracer.views import json, table, text

    if as_json and as_csv:
        raise click.UsageError("name one of: --json, --csv")
    with Capture.open(capture_path) as capture:
        read = account.read(capture, moments.window(since, until, account.read_session(capture)))
        if by == "parent" and not as_csv:
            if sort:
                raise click.UsageError("--sort needs a table: --by region, process or time, or --csv")
            _write(json.render(read) if as_json else text.render(read))
            return
        found = {
            "parent": lambda: rollup.by_parent(read),
            "region": lambda: rollup.by_region(read, capture),
            "process": lambda: rollup.by_process(read),
            "time": lambda: rollup.by_time(read, capture),
        }[by]().sort(sort)
    if as_csv:
        _write(table.csv(found), end="")
    else:
        _write(table.json(found, read) if as_json else table.report(found, read))


@main.command()
@click.argument("path_a", metavar="A", type=A_FILE)
@click.argument("path_b", metavar="B", type=A_FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, schema shmtrace/1.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with a heading.")
def diff(path_a: Path, path_b: Path, as_json: bool, as_csv: bool) -> None:
    """What grew from capture A to capture B, by region and by process."""
    from tracer import account
    from tracer import diff as diffs
    from tracer.capture import Capture
    from tracer.views import changes, table

    if as_json and as_csv:
        raise click.UsageError("name one of: --json, --csv")
    with Capture.open(path_a) as capture_a, Capture.open(path_b) as capture_b:
        a, b = account.read(capture_a), account.read(capture_b)
    found = diffs.diff(a, b)
    if as_csv:
        _write(table.csv(diffs.both(found)), end="")
    else:
        _write(changes.json(found, a, b) if as_json else changes.text(found, a, b))


@main.command()
@click.argument("capture_path", metavar="FILE", type=A_FILE)
@click.option(
    "--format",
    "form",
    type=click.Choice(["folded", "speedscope", "perfetto", "csv"]),
    required=True,
    help="folded: for flamegraph.pl and inferno, in bytes. csv: a row for what each process touched in each second.",
)
@click.option("-o", "output", metavar="FILE", type=A_FILE, help="Instead of standard output.")
def export(capture_path: Path, form: str, output: Path | None) -> None:
    """A capture for other programs: flame graphs, traces, spreadsheets.

    \b
    shmtrace export x.capture --format folded | flamegraph.pl --countname bytes > x.svg
    shmtrace export x.capture --format speedscope -o x.speedscope.json   for speedscope.app
    shmtrace export x.capture --format perfetto -o x.trace.json          for ui.perfetto.dev
    shmtrace export x.capture --format csv -o x.csv                      for a spreadsheet
    """
    from tracer import account, touches
    from tracer.capture import Capture
    from tracer.views import perfetto, stacks, table

    with Capture.open(capture_path) as capture:
        read = account.read(capture)
        forms: dict[str, Callable[[], Iterable[str]]] = {
            "folded": lambda: stacks.folded(read),
            "speedscope": lambda: stacks.speedscope(read),
            "perfetto": lambda: perfetto.render(read, capture),
            "csv": lambda: [table.csv(touches.table(read, capture, account.read_processes(capture)))],
        }
        chunks = forms[form]()
        if output:
            _replace(output, chunks)
        else:
            for chunk in chunks:
                _write(chunk, end="")


@main.command()
@click.option(
    "--size",
    "size_mb",
    type=click.IntRange(min=4),
    default=200,
    show_default=True,
    metavar="MB",
    help="Of the region, half of which is written; the original had 2000.",
)
def demo(size_mb: int) -> None:
    """See ps, pmap and free get it wrong: a small experiment, and what each tool says of it at every stage.

    A parent maps shared memory, two children fill some of it and exit. All processes are the demo's own.
    """
    from tracer import demo as demos

    _need_root(bpf=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.closing(demos.run(size_mb << 20)) as texts:
        for text in texts:
            click.echo(text)


@main.command()
def doctor() -> None:
    """What this host allows, what shmtrace is blind to here, and the command that mends what is missing.

    Ends with 0 where tracing works, with 1 where at most snapshot does.
    """
    from tracer import doctor as doctors

    checks = doctors.examine()
    click.echo(doctors.render(checks))
    sys.exit(0 if doctors.traces(checks) else 1)


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[None]:
    """Where a capture is written. Raises ShmtraceError where there is no room for it any more."""
    try:
        yield
    except sqlite3.OperationalError as error:
        where = f"{output}: what was traced until then is in it" if output else "the temporary directory"
        raise ShmtraceError(f"the capture cannot be written ({error})", f"make room for {where}") from None


def _print(read: Any, as_json: bool) -> None:
    from tracer.views import json, text

    _write(json.render(read) if as_json else text.render(read))


def _write(text: str, end: str = "\n") -> None:
    try:
        click.echo(text + end, nl=False)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit tries again what is left
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            sys.exit(128 + signal.SIGPIPE)
        raise ShmtraceError(f"the report cannot be written ({error.strerror})", "send it elsewhere") from None


def _replace(path: Path, chunks: Iterable[str]) -> None:
    """Write a file of its owner's alone; what was there before is there until all is written. Raises ShmtraceError."""
    from tempfile import NamedTemporaryFile

    try:
        if path.exists() and not path.is_file():
            raise ShmtraceError(f"{path} is no file", "name another place")
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False))  # 0600
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(Path(file.name).unlink)
            file.writelines(chunks)
            file.flush()
            Path(file.name).replace(path)
            undo.pop_all()
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "name another place") from None


def _open_standard_files() -> None:
    """What the caller closed is opened on nothing, or files of our own would take its place.

    Raises ShmtraceError for the one that the report goes to.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
    if "stdout" in closed:
        raise ShmtraceError("standard output is closed", "the report needs a place to go, if only /dev/null")


def _need_root(bpf: bool) -> None:
    missing = kernel.missing_capabilities(bpf)
    if missing:
        # root without them is in a container
        adding = " ".join(f"--cap-add={name.removeprefix('CAP_')}" for name in missing)
        remedy = f"docker run {adding} …" if os.geteuid() == 0 else "run it as root (sudo shmtrace …)"
        raise ShmtraceError(f"lacks {', '.join(missing)}", remedy)


def _ourselves() -> list[int]:
    """This process and those that started it: sudo, a shell, bootstrap; their command lines hold the name too."""
    proc, found = Proc(), [os.getpid()]
    while (process := proc.process(found[-1])) and process.parent:
        found.append(process.parent)
    return found


def _wanted(names: Sequence[str], everything: bool, wait: bool) -> targets.Targets:
    """The targets, once there is at least one to be found now.

    Raises ShmtraceError where there is none and wait is not asked for.
    """
    waiting = False
    while True:
        try:
            wanted = targets.parse(names)._replace(everything=everything)
        except targets.NoPidfileError:
            if not wait:
                raise
        else:
            processes, ours = Proc().processes(), _ourselves()
            if wanted.everything or wanted.roots(processes, ours) or (wait and wanted.patterns):
                absent = [name for name in names if not targets.parse([name]).roots(processes, ours)]
                for name in absent if len(names) > 1 else ():
                    click.echo(f"shmtrace: no process matches -p {name} now; the others are traced", err=True)
                return wanted
            if wanted.tgids.intersection(ours):
                raise ShmtraceError(f"-p {' -p '.join(names)} is shmtrace itself, or what started it", "name another")
            if not wait:
                close = wanted.close_to(processes)
                hint = f"did you mean {' or '.join(close)}? " if close else ""
                raise ShmtraceError(
                    f"no process matches -p {' -p '.join(names)}",
                    f"{hint}--wait waits for one, -a takes the whole host",
                )
        if not waiting:
            click.echo(f"shmtrace: waiting for -p {' -p '.join(names)}; Ctrl-C ends", err=True)
        waiting = True
        time.sleep(0.2)
