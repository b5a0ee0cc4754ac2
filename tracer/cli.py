"""The command line: all of click is here. A command parses, runs one pipeline, renders."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from tracer import __version__, kernel, targets
from tracer.errors import ShmtraceError
from tracer.procfs import PAGE_BYTES, Proc

if TYPE_CHECKING:
    from tracer.account import Region

FOREVER_S = 10**9
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LEFT_OUT = 3  # what read ends with where it left out what is swapped
BAR_AFTER_S = 1.0
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}

Item = TypeVar("Item")


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
    suffix = value[-1:].upper()
    number, unit = (value[:-1], UNITS[suffix]) if suffix and suffix in UNITS else (value, 1)
    if not number.isdecimal() or not int(number):
        raise click.BadParameter(f"{value!r} is no size: write 512M or 4G")
    return int(number) * unit


def _range(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """[start, end) in bytes of 0x1000-0x5000, 4K-20K or p1-p5."""
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
    raise click.BadParameter(f"{value[:40]!r} is no range: write 4K-20K, 0x1000-0x5000 or, in pages, p1-p5")


def _offset(text: str, bare: bool) -> int:
    """Of 4096, 4K or 0x1000; bare: the first only. Raises ValueError."""
    match = re.fullmatch(r"(?ai)(\d+)" if bare else r"(?ai)(\d+)([kmgt]?)|0x([0-9a-f]+)", text)
    if not match:
        raise ValueError
    number, unit, hexadecimal = (*match.groups(""), "", "")[:3]
    return int(hexadecimal, 16) if hexadecimal else int(number) * UNITS[unit.upper()]


def _process_names(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """What -p may go on with. Names that a shell, or a regular expression, would read otherwise are left out."""
    if "/" in begun:
        return [CompletionItem(begun, type="file")]
    names = {process.comm for process in Proc().processes().values() if process.title}  # kernel threads have none
    fitting = (name for name in sorted(names) if name.startswith(begun))
    return [CompletionItem(name) for name in fitting if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)]


NAMES = click.option(
    "-p",
    "--process",
    "names",
    multiple=True,
    metavar="NAME|PID|PIDFILE",
    shell_complete=_process_names,
    help="Processes by name (as pgrep matches), PID or pidfile, with all their descendants. Repeatable.",
)


def which_processes(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say whose regions are meant."""
    everything = click.option("-a", "--all", "everything", is_flag=True, help="Every process of the host.")
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document, schema shmtrace/1.")
    return NAMES(everything(as_json(command)))


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

    \b
    shmtrace snapshot                    the whole host
    shmtrace snapshot -p php-fpm         a pool, by name
    shmtrace snapshot -p 2472 --json     a process and its descendants, for a program to read

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
@NAMES
@click.option(
    "-o",
    "--output",
    "output_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A new file, of mode 0600; holes stay holes.",
)
@click.option("--hex", "as_hex", is_flag=True, help="As hexdump -C shows it.")
@click.option("--strings", "as_strings", is_flag=True, help="Only the text in it, with its offsets.")
@click.option(
    "--range",
    "bounds",
    callback=_range,
    metavar="A-B",
    help="From A up to, not including, B: bytes (4K-20K, 0x1000-0x5000) or pages (p1-p5).",
)
@click.option("--swapped", is_flag=True, help="What is swapped out too, which brings it back into memory.")
@click.argument("region")
def read(
    names: tuple[str, ...],
    output_path: Path | None,
    as_hex: bool,
    as_strings: bool,
    bounds: tuple[int, int] | None,
    swapped: bool,
    region: str,
) -> None:
    """What is in a region now, without a page coming into being by it.

    \b
    shmtrace read opcache -p php-fpm --strings    by what it probably is, among those of a pool
    shmtrace read 2472:7f1000000000 -o dump       by process and address, in hexadecimal
    shmtrace read 0:1/1047/3a9c21f0 --hex         by id, as --json has it
    shmtrace read /dev/shm/cache --range p0-p5    by name; its first five pages

    Pages that are swapped out are left out, as holes, and it then ends with 3. While it reads, the region goes on
    changing, and may go away: what was read by then stays in the FILE of -o. After any other error the FILE is removed.
    """
    from tracer.contents import DATA, Contents, GoneError
    from tracer.procfs import RegionKey
    from tracer.sparse import Sink
    from tracer.views import dump

    if as_hex and as_strings:
        raise click.UsageError("--hex or --strings, not both")
    if not (as_hex or as_strings or output_path) and sys.stdout.isatty():
        raise click.UsageError("a terminal cannot show it as it is: --hex, --strings or -o FILE")
    _need_root(bpf=False)
    meant = _meant(region, names)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    contents = Contents(Proc(), RegionKey(meant.dev, meant.ino, meant.generation), meant.kind, meant.mappers)
    start, end = bounds or (0, contents.size_bytes)
    if end > contents.size_bytes:
        raise ShmtraceError(f"the region ends at byte {contents.size_bytes}", "--range must end there, or before")
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink(output_path, sys.stdout.fileno()))
        stack.enter_context(_writing("output"))
        watched = _watched(
            contents.read(start, end, swapped), lambda piece: piece.end - piece.start, end - start, sink.is_file
        )
        pieces = stack.enter_context(contextlib.closing(watched))
        try:
            if as_hex or as_strings:
                for text in dump.hexdump(pieces) if as_hex else dump.strings(pieces):
                    sink.write(text.encode())
            else:
                for piece in pieces:
                    if piece.state == DATA:
                        sink.write(piece.data)
                    else:
                        sink.skip(piece.end - piece.start)
        except GoneError as error:
            sink.finish()
            remedy = f"{output_path} has these" if output_path else error.remedy
            raise ShmtraceError(
                f"{error.message}, after {contents.read_bytes} of {end - start} bytes", remedy
            ) from None
        sink.finish()
    if contents.left_out_pages:
        left_out = f"{contents.left_out_pages} pages are swapped out, and left out"
        raise ShmtraceError(left_out, "--swapped reads them too", LEFT_OUT)


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

    \b
    shmtrace demo                in two seconds, with 200 MB
    shmtrace demo --size 2000    as big as the experiment this began with

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

    \b
    shmtrace doctor                   found out by trying
    shmtrace doctor && shmtrace -a    only where tracing works

    Ends with 0 where tracing works, with 1 where at most snapshot does.
    """
    from tracer import doctor as doctors

    checks = doctors.examine()
    click.echo(doctors.render(checks))
    sys.exit(0 if doctors.traces(checks) else 1)


@main.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """The script by which a shell completes commands, options, files and the names of running processes.

    \b
    eval "$(shmtrace completion bash)"                           in ~/.bashrc
    shmtrace completion bash >/etc/bash_completion.d/shmtrace    for everybody
    shmtrace completion zsh >"${fpath[1]}/_shmtrace"
    shmtrace completion fish >~/.config/fish/completions/shmtrace.fish
    """
    click.echo(SHELLS[shell](main, {}, "shmtrace", "_SHMTRACE_COMPLETE").source())


def _meant(word: str, names: Sequence[str]) -> Region:
    """The one region that a word means, of what -p names or else of the whole host. Raises ShmtraceError."""
    from tracer import references
    from tracer import snapshot as snapshots
    from tracer.capture import Capture
    from tracer.views import dump

    tgid = references.tgid_of(word)
    if tgid is not None and not Proc().process(tgid):
        raise ShmtraceError(f"there is no process {tgid}", "`shmtrace snapshot` shows who has regions")
    names = names or ([str(tgid)] if tgid is not None else [])
    with Capture() as capture:
        snapshots.take(capture, _wanted(names, not names, wait=False), _ourselves())
        found = references.find(capture, word)
        if len(found) == 1:
            return found[0].region
        if found:
            click.echo(dump.choices(found), err=True)
            raise ShmtraceError(f"{len(found)} regions are {word}", "name one by its id, or narrow them with -p")
        if tgid is not None:
            click.echo(dump.choices(references.known(capture)), err=True)
            raise ShmtraceError(f"{word} is in none of its regions", "name one of these by its id")
        close = references.close_to(capture, word)
        hint = f"did you mean {' or '.join(close)}?" if close else "`shmtrace snapshot` shows which there are"
        raise ShmtraceError(f"no region is {word}", hint)


def _print(read: Any, as_json: bool) -> None:
    from tracer.views import json, text

    with _writing("report"):
        report = json.render(read) if as_json else text.render(read)
        click.echo(text.paint(report) if not as_json and _coloured() else report)


def _coloured() -> bool:
    """On a terminal that can, and where nobody asks for none: https://no-color.org."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    """To standard output, or a file. Raises ShmtraceError where it does not take it."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit tries again what is left
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            sys.exit(128 + signal.SIGPIPE)
        raise ShmtraceError(f"the {what} cannot be written ({error.strerror})", "send it elsewhere") from None


def _watched(
    items: Iterable[Item], size_of: Callable[[Item], int], total: int, shown: bool = True
) -> Generator[Item, None, None]:
    """The items, and a bar on a terminal of how much of the total they are, once that takes longer than a second."""
    shown = shown and sys.stderr.isatty()
    begin = time.monotonic()
    done = 0
    with contextlib.ExitStack() as stack:
        bar: Any = None
        for item in items:
            yield item
            done += size_of(item)
            if bar:
                bar.update(size_of(item))
            elif shown and time.monotonic() - begin > BAR_AFTER_S:
                bar = stack.enter_context(click.progressbar(length=total, file=sys.stderr))
                bar.update(done)


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
