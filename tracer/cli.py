"""The command line: all of click is here. A command parses, runs one pipeline, renders."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from tracer import __version__, kernel, targets
from tracer.errors import ShmtraceError
from tracer.procfs import Proc

FOREVER_S = 10**9


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


def _size(_ctx: click.Context, _parameter: click.Parameter, value: str) -> int:
    """Bytes of a size like 512M or 4G."""
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
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document, schema shmtrace/1.")
    return name(everything(as_json(command)))


@click.group(cls=Commands, context_settings={"help_option_names": ["--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shmtrace")
def main() -> None:
    """Who grew the shared memory?

    \b
    shmtrace -p php-fpm           trace a pool and its workers until Ctrl-C, then report
    shmtrace -p php-fpm -d 30     the same for 30 seconds
    shmtrace -- ./server --flag   trace a command from its first instruction to its end
    shmtrace snapshot -p php-fpm  what there is now, from /proc alone
    shmtrace demo                 see ps, pmap and free get it wrong
    shmtrace doctor               what this host allows, and what mends the rest

    `shmtrace -p X` is short for `shmtrace trace -p X`; `shmtrace trace --help` has its options.
    """


@main.command()
@which_processes
@click.option("-d", "--duration", "seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so long.")
@click.option(
    "-i",
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks at the sizes.",
)
@click.option("--wait", is_flag=True, help="Wait for a process that matches, if there is none yet.")
@click.option(
    "--room",
    "room_bytes",
    default="4G",
    show_default=True,
    callback=_size,
    metavar="SIZE",
    help="Of regions still to come; the ledger takes 0.22% of it.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def trace(
    names: tuple[str, ...],
    everything: bool,
    as_json: bool,
    seconds: float | None,
    interval_s: float,
    wait: bool,
    room_bytes: int,
    command: tuple[str, ...],
) -> None:
    """Record who makes and first touches shared memory, until Ctrl-C, SIGTERM or -d; then report.

    \b
    shmtrace -p php-fpm                 by name, workers included
    shmtrace -p /run/php/php-fpm.pid    by pidfile
    shmtrace -p nginx -p php-fpm -d 60  two trees, one minute
    shmtrace -a -d 10 --json            the whole host, for a program to read
    shmtrace -- make test               a command; ends with its status
    """
    from tracer import account
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
        capture = stack.enter_context(Capture())
        running = signals.trace = stack.enter_context(Trace(capture, wanted, _ourselves(), interval_s, room_bytes))
        stack.callback(signals.ignore)
        if started:
            started.go()
        line = live.Line(sys.stderr, alone=not started)
        if not started:
            line.say(f"tracing {running.size()}; Ctrl-C reports")
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
        _print(account.read(capture), as_json)
    if started:
        sys.exit(started.status)


@main.command()
@which_processes
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
@click.argument("capture_path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "page_path",
    required=True,
    metavar="PAGE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The page to write; an earlier one is replaced when this one is complete. -: standard output.",
)
def html(capture_path: Path, page_path: Path) -> None:
    """Draw a capture as a page: growth over time, who touched which page, the processes, and every figure in tables.

    \b
    shmtrace html FILE -o page.html

    The page is one file that loads nothing else. Who may read it may read the commands of the processes in it: it is
    made for its owner's eyes, as the capture is.
    """
    from tracer import account
    from tracer.capture import Capture
    from tracer.views import html as pages

    with Capture.open(capture_path) as capture, _patience(f"drawing {capture_path}"):
        page = pages.render(account.read(capture), capture)
    if str(page_path) == "-":
        _write(page)
    else:
        _replace(page_path, page)


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


def _print(read: Any, as_json: bool) -> None:
    from tracer.views import json, text

    _write(json.render(read) if as_json else text.render(read))


def _write(text: str) -> None:
    """To standard output. Raises ShmtraceError."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit tries again what is left
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            sys.exit(128 + signal.SIGPIPE)
        raise ShmtraceError(f"the report cannot be written ({error.strerror})", "send it elsewhere") from None


@contextlib.contextmanager
def _patience(text: str) -> Iterator[None]:
    """On a terminal, say what takes more than a second."""
    from threading import Timer

    timer = Timer(1.0, lambda: click.echo(f"shmtrace: {text}", err=True))
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _replace(path: Path, text: str) -> None:
    """Write a file of its owner's alone, or again: only one that begins as this one is replaced, and only in the end.

    Raises ShmtraceError.
    """
    from tempfile import NamedTemporaryFile

    try:
        if path.exists() and not (path.is_file() and _begins(path, text.split("\n")[0])):
            raise ShmtraceError(f"{path} is there already, and no page of an earlier run", "name another, or remove it")
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False))  # 0600
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(Path(file.name).unlink)
            file.write(text)
            file.flush()
            Path(file.name).replace(path)
            undo.pop_all()
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "name another place") from None


def _begins(path: Path, line: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(line)) in (line.encode(), b"")


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
