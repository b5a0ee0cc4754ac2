"""Commands that look at the host as it is: without a trace, without a capture."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from tracer.cli import options, output, streams
from tracer.cli.preflight import need_root, ourselves, wanted
from tracer.errors import ShmtraceError
from tracer.proc.procfs import Proc

if TYPE_CHECKING:
    from tracer.account import Region

LEFT_OUT = 3  # what read ends with where it left out what is swapped
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(short_help="What shared memory there is now, from /proc alone.")
@options.which_processes
@options.as_json
def snapshot(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """What shared memory there is now, whose, and how much: from /proc alone, without BPF.

    \b
    shmtrace snapshot                    the whole host
    shmtrace snapshot -p php-fpm         a pool, by name
    shmtrace snapshot -p 2472 --json     a process and its descendants, for a program to read

    Who made a region is inferred, and labelled so; who touched it cannot be known. Without -p: the whole host.
    """
    from tracer import account
    from tracer.capture.capture import Capture
    from tracer.record import snapshot as snapshots

    need_root(bpf=False)
    targets = wanted(names, everything or not names, wait=False)
    with Capture() as capture:
        snapshots.take(capture, targets, ourselves())
        output.report(account.read(capture), as_json)


@click.command(short_help="What is in a region now.")
@options.which_process
@options.output("A new file, of mode 0600; holes stay holes.")
@click.option("--hex", "as_hex", is_flag=True, help="As hexdump -C shows it.")
@click.option("--strings", "as_strings", is_flag=True, help="Only the text in it, with its offsets.")
@click.option(
    "--range",
    "bounds",
    callback=options.byte_range,
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
    from tracer.cli.sparse_file import Sink
    from tracer.proc.contents import DATA, Contents, GoneError
    from tracer.proc.shmem import RegionKey
    from tracer.views import hexdump

    if as_hex and as_strings:
        raise click.UsageError("--hex or --strings, not both")
    if not (as_hex or as_strings or output_path) and sys.stdout.isatty():
        raise click.UsageError("a terminal cannot show it as it is: --hex, --strings or -o FILE")
    need_root(bpf=False)
    meant = _meant(region, names)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    contents = Contents(Proc(), RegionKey(meant.dev, meant.ino, meant.generation), meant.kind, meant.mappers)
    start, end = bounds or (0, contents.size_bytes)
    if end > contents.size_bytes:
        raise ShmtraceError(f"the region ends at byte {contents.size_bytes}", "--range must end there, or before")
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink(output_path, sys.stdout.fileno()))
        stack.enter_context(streams.writing())
        watched = output.watched(
            contents.read(start, end, swapped), lambda piece: piece.end - piece.start, end - start, sink.is_file
        )
        pieces = stack.enter_context(contextlib.closing(watched))
        try:
            if as_hex or as_strings:
                for text in hexdump.hexdump(pieces) if as_hex else hexdump.strings(pieces):
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


@click.command(short_help="See ps, pmap and free get it wrong.")
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
    from tracer.demo import demo as demos

    need_root(bpf=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.closing(demos.run(size_mb << 20)) as texts:
        for text in texts:
            output.say(text)


@click.command(short_help="What this host allows, and what mends the rest.")
def doctor() -> None:
    """What this host allows, what shmtrace is blind to here, and the command that mends what is missing.

    \b
    shmtrace doctor                   found out by trying
    shmtrace doctor && shmtrace -a    only where tracing works

    Ends with 0 where tracing works, with 1 where at most snapshot does.
    """
    from tracer import doctor as doctors

    checks = doctors.examine()
    output.say(doctors.render(checks))
    sys.exit(0 if doctors.traces(checks) else 1)


@click.command(short_help="Compile beforehand what a trace takes.")
def prepare() -> None:
    """Compile beforehand all that a trace on this kernel may take, so that it attaches at once and needs no compiler.

    \b
    shmtrace prepare        after a new kernel has been booted

    A host of the same kernel that has no bcc can use what is in /var/cache/shmtrace, copied there as root.
    """
    from tracer.kernel.cache import Cache
    from tracer.prepare import compile_all, of_kernel

    need_root(bpf=True)
    cache = Cache()
    variants = of_kernel(cache)
    for number, variant in enumerate(compile_all(variants, cache), 1):
        output.say(f"{number}/{len(variants)} {variant.title}")
    for text in cache.warnings:
        output.tell(text)
    output.say(f"kept in {cache.directory}")


@click.command(short_help="Completion for bash, zsh and fish.")
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """The script by which a shell completes commands, options, files and the names of running processes.

    \b
    eval "$(shmtrace completion bash)"                           in ~/.bashrc
    shmtrace completion bash >/etc/bash_completion.d/shmtrace    for everybody
    shmtrace completion zsh >"${fpath[1]}/_shmtrace"
    shmtrace completion fish >~/.config/fish/completions/shmtrace.fish
    """
    output.say(
        SHELLS[shell](click.get_current_context().find_root().command, {}, "shmtrace", "_SHMTRACE_COMPLETE").source()
    )


def _meant(word: str, names: Sequence[str]) -> Region:
    """The one region that a word means, of what -p names or else of the whole host. Raises ShmtraceError."""
    from tracer import find_region
    from tracer.capture.capture import Capture
    from tracer.record import snapshot as snapshots
    from tracer.views import hexdump

    tgid = find_region.tgid_of(word)
    if tgid is not None and not Proc().process(tgid):
        raise ShmtraceError(f"there is no process {tgid}", "`shmtrace snapshot` shows who has regions")
    names = names or ([str(tgid)] if tgid is not None else [])
    with Capture() as capture:
        snapshots.take(capture, wanted(names, not names, wait=False), ourselves())
        found = find_region.find(capture, word)
        if len(found) == 1:
            return found[0].region
        if found:
            print(hexdump.choices(found), file=sys.stderr)
            raise ShmtraceError(f"{len(found)} regions are {word}", "name one by its id, or narrow them with -p")
        if tgid is not None:
            print(hexdump.choices(find_region.known(capture)), file=sys.stderr)
            raise ShmtraceError(f"{word} is in none of its regions", "name one of these by its id")
        close = find_region.close_to(capture, word)
        hint = f"did you mean {' or '.join(close)}?" if close else "`shmtrace snapshot` shows which there are"
        raise ShmtraceError(f"no region is {word}", hint)
