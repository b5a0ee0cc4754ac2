"""The commands that trace: trace prints a report, record writes a capture, top shows a live table."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from tracer import labels, status
from tracer.cli import firing, options, output
from tracer.cli.preflight import need_root, ourselves, wanted
from tracer.kernel import host
from tracer.proc.procfs import Proc
from tracer.record.schedule import Schedule
from tracer.record.targets import Targets, tree
from tracer.views import status_line

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tracer.address import Address
    from tracer.capture.capture import Capture
    from tracer.conditions import Condition
    from tracer.metrics.exporter import Exporter
    from tracer.model import Account
    from tracer.record.armed import Note
    from tracer.record.rotation import OomKeeper, Rotation
    from tracer.record.signals import Signals
    from tracer.record.trace import Trace

FOREVER_S = 10**9
# top waits this many times as long as reading the account took: a region of a million extents must not stall its trace
BETWEEN_READINGS = 4
# top -a looks at what no process maps so often, and waits so many times as long as looking took
HOST_S, HOST_IDLE = 5.0, 20


@click.command(short_help="Trace who creates and first touches shared memory.")
@options.which_processes
@options.armed
@options.as_json
@options.how_to_trace
@options.output("Keep the capture in this new file, as record does.")
def trace(as_json: bool, **how: Any) -> None:
    """Trace who creates and first touches shared memory, then print a report. Ctrl-C, SIGTERM or -d ends the trace.

    \b
    shmtrace -p php-fpm                 by name, workers included
    shmtrace -p /run/php/php-fpm.pid    by pidfile
    shmtrace -p nginx -p php-fpm -d 60  two process trees, one minute
    shmtrace -p /dev/shm                a tmpfs: who fills it
    shmtrace -a -d 10 --json            the whole host, as JSON
    shmtrace -- make test               a command; exits with its status
    """
    from tracer import account

    _trace(lambda capture: output.report(account.read(capture), as_json), **how)


@click.command(short_help="Trace into a capture file, to analyse later.")
@options.how_to_record
@options.armed
@click.option(
    "--when",
    "conditions",
    multiple=True,
    callback=firing.parsed_conditions,
    metavar="CONDITION",
    help="Look at /proc alone until this holds, and trace from then on: 'opcache > 80%' (of a region's size), "
    "'opcache > 900M', 'opcache +50M/min' (grown; s, min or h), 'shmem +100M/min' (all that the targets map, or with "
    "-a the host's), 'pressure > 10%' (memory pressure). Repeatable: any of them.",
)
@click.option(
    "--run",
    callback=firing.parsed_command,
    metavar="COMMAND",
    help="Once --when holds, also run this program, without a shell; the condition and the capture's path are appended "
    "to its arguments.",
)
def record(
    output_path: Path | None, schedule: Schedule | None, keep: int | None, oom_path: Path | None, **how: Any
) -> None:
    """Trace into a capture file, to analyse later with report, diff, html and export.

    A capture is an SQLite file that only its owner can read (mode 0600). It is committed at least once a second, so a
    trace that is cut off by kill -9 or a full disk loses only its last second.

    \b
    shmtrace record -p php-fpm -o pool.capture          until Ctrl-C
    shmtrace record -p php-fpm -o day.capture -d 86400  one day
    shmtrace record -o build.capture -- make test       exits with make's status
    shmtrace record -p php-fpm -o pool.capture --rotate 1h --keep 24
    shmtrace record -a --keep-on-oom oom.capture        only if memory runs out
    shmtrace record -p php-fpm -o x.capture --when 'opcache > 80%'
    shmtrace record -p php-fpm -o x.capture --listen 127.0.0.1:9109
    """
    if bool(output_path) + bool(oom_path) != 1:
        raise click.UsageError("give one of -o FILE, --keep-on-oom FILE")
    if oom_path and (schedule or how["conditions"]):
        raise click.UsageError("--rotate and --when need -o FILE")
    if keep and not (schedule or oom_path):
        raise click.UsageError("--keep needs --rotate or --keep-on-oom")
    done = f"recorded into {output_path}: `shmtrace report {output_path}` shows it"

    def then(_: Capture) -> None:
        if output_path:
            output.tell(done)

    _trace(then, output_path=output_path, keeping=Keeping(schedule, keep, oom_path), **how)


class Keeping(NamedTuple):
    """What record keeps besides the capture of the whole trace, or instead."""

    schedule: Schedule | None = None
    keep: int | None = None
    """How many captures; None: as many as there are, or a few of OOM kills."""
    oom_path: Path | None = None


class Attaching:
    """Stands in for the trace until there is one: what is told to stop by then stops as soon as it is there."""

    stopping = False


@click.command(short_help="Watch regions and who grows them, live.")
@options.which_processes
@options.armed
@options.interval(options.Seconds(min=0.1), 1.0, "Seconds between updates of the table.")
@options.wait
@options.a_label
@click.option(
    "--by",
    type=click.Choice(["command", "process", "creator", "unit", "container", "pod", *labels.KINDS]),
    metavar="GROUP",
    help="Group growers by this: command, process, creator, unit, container, pod; with --label also script, request, "
    "file, directory, query, statement, label. Without it by process, or by command once there are more than 5.",
)
@options.output("Keep the capture in this new file, as record does.")
def top(
    names: tuple[str, ...],
    everything: bool,
    is_armed: bool,
    interval_s: float,
    wait: bool,
    source: labels.Source | None,
    by: str | None,
    output_path: Path | None,
) -> None:
    """Watch regions and who grows them, live. q, Ctrl-C or SIGTERM ends the trace and prints its report.

    Press ? for the keys that sort, filter, group, pause and open a row. Without a terminal, it prints a line for each
    change.

    \b
    shmtrace top -p php-fpm            a pool and its workers
    shmtrace top -a -i 5               the whole host, every 5 seconds
    shmtrace top -p php-fpm | tee log  plain lines, one for each change
    shmtrace top -p php-fpm --label php --by script
    shmtrace top -p php-fpm -o pool.capture
    """
    from concurrent.futures import ThreadPoolExecutor

    from tracer.record import armed, trace  # noqa: F401 see _watch() for why here
    from tracer.record.signals import Signals

    if bool(names) + everything + is_armed != 1:
        raise click.UsageError("give one of -p NAME, -a (all), --armed")
    _need_no_more(is_armed, wait, source)
    if by in labels.KINDS and not (source and by in ["label", *labels.kinds(source.name)]):
        telling = [name for name in labels.READY if by in ["label", *labels.kinds(name)]]
        telling += ["BINARY:SYMBOL"] if by == "label" else []
        raise click.UsageError(f"--by {by} needs --label {' or '.join(telling)}")
    need_root(bpf=True)
    host.need_host_pids()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        note = armed.note() if is_armed else None
        targets = note.targets() if note else wanted(names, everything, wait)
        stack.enter_context(output.writing_capture(output_path))
        # The trace runs in one thread, as SQLite requires, and reads the kernel's events while this thread draws.
        thread = stack.enter_context(ThreadPoolExecutor(1))
        lasting = wait or everything or is_armed or bool(targets.patterns)
        accounts = _accounts(signals, targets, note, interval_s, source, lasting, output_path)
        stack.callback(lambda: thread.submit(accounts.close).result())
        stack.callback(lambda: _stop(signals))
        stack.callback(signals.ignore)
        signals.trace = Attaching()
        final = _watch(_attaching(targets), lambda: thread.submit(next, accounts, None), lambda: _stop(signals), by)
        if final:
            output.report(final, as_json=False)


def _need_no_more(is_armed: bool, *others: object) -> None:
    """Raises click.UsageError where --armed is given along with what cannot be had then."""
    if is_armed and any(others):
        others_said = "--wait, --label, --stacks, --rotate, --keep-on-oom"
        raise click.UsageError(f"--armed takes what was armed as it is: give none of {others_said}")


def _trace(
    then: Callable[[Capture], None],
    names: tuple[str, ...],
    everything: bool,
    is_armed: bool,
    seconds: float | None,
    interval_s: float,
    wait: bool,
    room_bytes: int,
    source: labels.Source | None,
    stacks: bool,
    command: tuple[str, ...],
    output_path: Path | None,
    max_bytes: int | None = None,
    conditions: tuple[Condition, ...] = (),
    run: list[str] | None = None,
    keeping: Keeping | None = None,
    textfile: Path | None = None,
    listen: Address | None = None,
) -> None:
    """Trace into a capture, then call then() with it. Exits with the command's status if there is a command.

    conditions: trace only from when one of them holds. run: start this then. textfile, listen: metrics go there.

    Raises click.UsageError for options that contradict each other, ShmtraceError where tracing is impossible.
    """
    from tracer import prepare
    from tracer.capture import parts
    from tracer.capture.capture import Capture
    from tracer.record import armed
    from tracer.record.child import Started
    from tracer.record.rotation import OomKeeper, Rotation
    from tracer.record.signals import Signals
    from tracer.service import notify

    if bool(names) + everything + is_armed + bool(command) != 1:
        raise click.UsageError("give one of -p NAME, -a (all), --armed, -- COMMAND")
    _need_no_more(is_armed, wait, source, stacks, keeping and any(keeping))
    if stacks and not (output_path or (keeping and keeping.oom_path)):
        raise click.UsageError("--stacks needs -o FILE, for `shmtrace report FILE --by stack`")
    if conditions and command:
        raise click.UsageError("--when waits for processes of -p or -a; a COMMAND is traced from its start")
    if run and not conditions:
        raise click.UsageError("--run needs --when CONDITION")
    need_root(bpf=True)
    host.need_host_pids()
    fired = None
    started = Started(command) if command else None
    note = armed.note() if is_armed else None
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        line = status_line.Line(sys.stderr, alone=not started)
        exporter = stack.enter_context(_exporter(textfile, listen, line)) if textfile or listen else None
        rotated = output_path if keeping and keeping.schedule else None
        if rotated:
            parts.check(rotated)
        elif keeping and keeping.oom_path:
            parts.check_new(keeping.oom_path)
        if started:
            stack.enter_context(started)
            targets = Targets(frozenset([started.tgid]), ())
        elif conditions and output_path:
            prepare.trace_here(source, stacks)  # not when it holds: compiling takes time and memory, and may fail
            words, all_of_host = (note.words, note.everything) if note else (names, everything)
            new_path = None if rotated else output_path
            fired = firing.wait_for(conditions, words, all_of_host, wait, new_path, run, signals)
            if not fired:
                return
            targets = fired.targets
        elif note:
            targets = note.targets()
        else:
            targets = wanted(names, everything, wait)
        earlier = parts.set_aside(rotated) if rotated else None
        if earlier:
            line.say(f"what an earlier trace has left in {rotated} is in {earlier} now")
        stack.enter_context(output.writing_capture(output_path))
        capture = stack.enter_context(Capture(output_path, max_bytes))
        trace = _begun(capture, targets, note, interval_s, room_bytes=room_bytes, source=source, stacks=stacks)
        with firing.then(run, fired, output_path, line), line.showing(status_line.ATTACHING):
            running = signals.trace = stack.enter_context(trace)
        stack.callback(signals.ignore)
        if started:
            started.go()
        settle = exporter.settle if exporter else _nothing
        keeper = _keeper(keeping, output_path, capture, running, line, settle) if keeping else None
        if isinstance(keeper, Rotation):
            signals.on_hangup = keeper.ask
        notify.tell(notify.READY, f"tracing {running.size()}")
        if not started:
            line.say(f"tracing {running.size()}; Ctrl-C {'stops' if output_path or keeper else 'stops and reports'}")
        doubt = running.doubt()
        if doubt and not started:
            line.say(doubt)
        end = time.monotonic() + (seconds or FOREVER_S)
        while not running.stopping and (left := end - time.monotonic()) > 0:
            running.run(min(left, interval_s, 0.05 if started else FOREVER_S))
            if exporter:
                exporter.look(capture)
            if keeper and keeper.look():
                notify.tell("", keeper.status)
            if line.shown:
                line.show(status.render(running.status()))
            if started and started.ended():
                break
            if not (started or targets.patterns or everything or wait or note) and running.over():
                line.say("all traced processes have exited")
                break
        line.clear()
        if started and not started.ended():
            # The terminal sends Ctrl-C to the command too: give it a second to end by itself.
            started.end(patience_s=1.0 if signals.first == signal.SIGINT else 0)
        notify.tell(notify.STOPPING)
        running.finish(line.say)
        if isinstance(keeper, OomKeeper):
            keeper.end()
        then(capture)
    if started:
        sys.exit(started.status)


def _begun(capture: Capture, targets: Targets, note: Note | None, interval_s: float, **how: Any) -> Trace:
    """The trace that is to be entered. note: of what is armed, which has its own targets. how: as Trace takes it."""
    from tracer.record.armed import Armed
    from tracer.record.trace import Trace

    if note:
        return Armed(capture, note, ourselves(), interval_s)
    return Trace(capture, targets, ourselves(), interval_s, **how)


def _keeper(
    keeping: Keeping,
    path: Path | None,
    capture: Capture,
    trace: Trace,
    line: status_line.Line,
    told: Callable[[Capture], None],
) -> Rotation | OomKeeper | None:
    """What keeps parts of the trace, if that is asked for. told: as for Rotation."""
    from tracer.record.rotation import OomKeeper, Rotation

    if keeping.schedule and path:
        return Rotation(path, capture, trace, keeping.schedule, keeping.keep, line.say, told)
    return OomKeeper(keeping.oom_path, capture, trace, keeping.keep, line.say, told) if keeping.oom_path else None


def _nothing(_: Capture) -> None:
    """There are no metrics to bring up to date."""


def _exporter(textfile: Path | None, address: Address | None, line: status_line.Line) -> Exporter:
    """What hands out metrics, to be entered. Raises ShmtraceError if the library for it is missing."""
    output.need("prometheus_client")
    from tracer.metrics.exporter import Exporter

    return Exporter(textfile, address, line.say)


def _attaching(targets: Targets) -> str:
    """What is said before the first account is there."""
    processes = Proc().processes()
    number = len(tree(processes, targets.roots(processes, ourselves())))
    return f"{status_line.ATTACHING} to {number} process{'es' * (number != 1)} …"


def _accounts(
    signals: Signals,
    targets: Targets,
    note: Note | None,
    interval_s: float,
    source: labels.Source | None,
    lasting: bool,
    output_path: Path | None,
) -> Generator[Account, None, None]:
    """Accounts of a trace: one at its start, one at every interval, and the complete one at its end.

    lasting: go on after all traced processes have exited, because others may still come.
    """
    from tracer import account
    from tracer.capture.capture import Capture

    every_s = min(interval_s, 0.5)
    with Capture(output_path) as capture, _begun(capture, targets, note, every_s, source=source) as running:
        attaching, signals.trace = signals.trace, running
        running.stopping = running.stopping or attaching.stopping
        running.run(0.01)
        look_at_s = 0.0  # time.monotonic()
        while not running.stopping and (lasting or not running.over()):
            began_s = time.monotonic()
            if targets.everything and began_s >= look_at_s:
                running.look_at_host()
                look_at_s = time.monotonic() + max(HOST_S, HOST_IDLE * (time.monotonic() - began_s))
            now = account.read(capture)
            reading_s = time.monotonic() - began_s
            yield now
            running.run(max(interval_s, BETWEEN_READINGS * reading_s))
        running.finish()
        final = account.read(capture)
    yield final  # the capture has been closed, with all that is in it


def _stop(signals: Signals) -> None:
    signals.trace.stopping = True


def _watch(
    attaching: str, following: Callable[[], Future[Account | None]], stop: Callable[[], None], by: str | None
) -> Account | None:
    """Show the accounts that following() delivers, on a terminal's screen or as plain lines.

    attaching: what is said before the first. Returns the complete account, or None if the trace delivered none.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if all(stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb":
        # All is imported before there is another thread: a signal may end an import halfway, and leave a lock that the
        # other thread would wait for.
        try:
            with status_line.Line(sys.stderr).showing(attaching):
                from tracer.views import top_screen
        except ImportError:
            output.tell("textual is not installed, so changes are printed as lines: `pip install textual`")
        else:
            import asyncio

            return top_screen.show(attaching, lambda: asyncio.wrap_future(following()), stop, by)
    return _tell_changes(attaching, following, by)


def _tell_changes(attaching: str, following: Callable[[], Future[Account | None]], by: str | None) -> Account | None:
    """Print a line for each change. Returns as _watch() does."""
    from tracer.views import top as views

    with output.patience(attaching, anywhere=True):
        now = following().result()
    view = None
    while now:
        view = views.compare(now, view)
        for line in views.changes(view, by or views.by_default(view)):
            output.say(line)
        if now.session.complete:
            return now
        now = following().result()
    return None
