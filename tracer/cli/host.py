"""The commands that need neither a trace nor a capture: snapshot, read, demo, doctor, prepare and completion."""

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
    from tracer.model import Region
    from tracer.proc.contents import Contents

LEFT_OUT = 3  # exit status of read if it left out swapped pages
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(short_help="List the shared memory there is now, by /proc, without BPF.")
@options.which_processes
@options.as_json
def snapshot(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """List the shared memory there is now: which regions, how big, and whose. It reads /proc and needs no BPF.

    \b
    shmtrace snapshot                    the whole host
    shmtrace snapshot -p php-fpm         a pool, by name
    shmtrace snapshot -p /dev/shm        a tmpfs: how full, and of what
    shmtrace snapshot -p 2472 --json     a process and its descendants, as JSON

    Without -p it lists the whole host. /proc does not record who created a region, so its creator is inferred and
    marked so. Who touched the pages is unknown.
    """
    from tracer import account
    from tracer.capture.capture import Capture
    from tracer.record import snapshot as snapshots

    need_root(bpf=False)
    targets = wanted(names, everything or not names, wait=False)
    with Capture() as capture:
        snapshots.take(capture, targets, ourselves())
        output.report(account.read(capture), as_json)


@click.command(short_help="Print the contents of a region.")
@options.which_process
@options.output("Write to this new file (mode 0600); holes in the region become holes in the file.")
@click.option("--hex", "as_hex", is_flag=True, help="Print it like hexdump -C.")
@click.option("--strings", "as_strings", is_flag=True, help="Print only the text in it, with offsets, like strings.")
@click.option(
    "--range",
    "bounds",
    callback=options.byte_range,
    metavar="A-B",
    help="Read from A up to, but not including, B: bytes (4K-20K, 0x1000-0x5000) or pages (p1-p5).",
)
@click.option("--swapped", is_flag=True, help="Also read swapped-out pages. Reading swaps them in.")
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
    """Print the contents of a region as they are now. Reading allocates no page in the region.

    \b
    shmtrace read opcache -p php-fpm --strings  by its guessed use, within a pool
    shmtrace read 2472:7f1000000000 -o dump     by PID and hexadecimal address
    shmtrace read 0:1/1047/3a9c21f0 --hex       by id, as in --json
    shmtrace read /dev/shm/cache --range p0-p5  by path; its first five pages

    Swapped-out pages are left out as holes, and the exit status is then 3. The region may change while it is read. If
    it goes away, the FILE of -o keeps what was read; after any other error the FILE is removed.
    """
    from tracer.cli.sparse_file import Sink
    from tracer.proc.contents import DATA, GoneError
    from tracer.views import hexdump

    if as_hex and as_strings:
        raise click.UsageError("--hex and --strings exclude each other: give one of them")
    if not (as_hex or as_strings or output_path) and sys.stdout.isatty():
        raise click.UsageError("a terminal cannot show raw bytes: give --hex, --strings or -o FILE")
    need_root(bpf=False)
    contents = _contents(region, names)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    start, end = bounds or (0, contents.size_bytes)
    if end > contents.size_bytes:
        raise ShmtraceError(
            f"the region ends at byte {contents.size_bytes}", "give a --range that ends there or before"
        )
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
            remedy = f"{output_path} holds what was read" if output_path else error.remedy
            raise ShmtraceError(
                f"{error.message}, after {contents.read_bytes} of {end - start} bytes", remedy
            ) from None
        sink.finish()
    if contents.left_out_pages:
        left_out = f"{contents.left_out_pages} swapped-out pages are left out"
        raise ShmtraceError(left_out, "--swapped reads them too", LEFT_OUT)


@click.command(short_help="See ps, pmap and free get it wrong.")
@click.option(
    "--size",
    "size_mb",
    type=click.IntRange(min=4),
    default=200,
    show_default=True,
    metavar="MB",
    help="Size of the demo's region in MB (2**20 bytes); half of it is written.",
)
def demo(size_mb: int) -> None:
    """See ps, pmap and free get it wrong: run a small experiment and print what each tool reports at every stage.

    \b
    shmtrace demo                takes two seconds, with 200 MB
    shmtrace demo --size 2000    the original experiment's size

    A parent maps shared memory; two children write some of it and exit. All processes are the demo's own.
    """
    from tracer.demo import demo as demos

    need_root(bpf=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.closing(demos.run(size_mb << 20)) as texts:
        for text in texts:
            output.say(text)


@click.command(short_help="Check what works on this host, and how to fix the rest.")
def doctor() -> None:
    """Check what works on this host, what shmtrace cannot see here, and print a command that fixes what is missing.

    \b
    shmtrace doctor                   tries everything, leaves nothing behind
    shmtrace doctor && shmtrace -a    trace only if tracing works

    The exit status is 0 if tracing works, and 1 if only snapshot works or nothing does.
    """
    from tracer import doctor as doctors

    checks = doctors.examine()
    output.say(doctors.render(checks))
    sys.exit(0 if doctors.traces(checks) else 1)


@click.command(short_help="Compile the BPF programs ahead, to attach at once.")
def prepare() -> None:
    """Compile every BPF program that a trace on this kernel may need. A trace then attaches at once, without bcc.

    \b
    shmtrace prepare        run it after booting a new kernel

    To trace on a host without bcc, run prepare on a host with the same kernel and copy /var/cache/shmtrace as root.
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


@click.command(short_help="Print the completion script for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script that completes commands, options, files and names of running processes in a shell.

    \b
    eval "$(shmtrace completion bash)"                         in ~/.bashrc
    shmtrace completion bash >/etc/bash_completion.d/shmtrace  for all users
    shmtrace completion zsh >"${fpath[1]}/_shmtrace"
    shmtrace completion fish >~/.config/fish/completions/shmtrace.fish
    """
    output.say(
        SHELLS[shell](click.get_current_context().find_root().command, {}, "shmtrace", "_SHMTRACE_COMPLETE").source()
    )


def _contents(word: str, names: Sequence[str]) -> Contents:
    """What the argument REGION names: a file of a tmpfs, or else as _meant() has it. Raises as that does."""
    from tracer.proc import tmpfs
    from tracer.proc.contents import Contents
    from tracer.proc.shmem import RegionKey

    key = None if names else tmpfs.file(Path(word))
    if key:
        return Contents(Proc(), key, "other", (), Path(word))
    region = _meant(word, names)
    return Contents(Proc(), RegionKey(region.dev, region.ino, region.generation), region.kind, region.mappers)


def _meant(word: str, names: Sequence[str]) -> Region:
    """The one region that the argument REGION names, among those of -p, or else of the whole host.

    Raises ShmtraceError if it names none or several. Several are listed on standard error first.
    """
    from tracer import account, find_region
    from tracer.capture.capture import Capture
    from tracer.record import snapshot as snapshots
    from tracer.views import hexdump

    tgid = find_region.tgid_of(word)
    if tgid is not None and not Proc().process(tgid):
        raise ShmtraceError(f"there is no process {tgid}", "`shmtrace snapshot` lists processes with regions")
    names = names or ([str(tgid)] if tgid is not None else [])
    with Capture() as capture:
        snapshots.take(capture, wanted(names, not names, wait=False), ourselves())
        regions = find_region.known(account.read(capture))
        found = find_region.find(regions, capture, word)
        if len(found) == 1:
            return found[0].region
        if found:
            print(hexdump.choices(found), file=sys.stderr)
            raise ShmtraceError(f"{word} names {len(found)} regions", "give the id of one, or narrow them with -p")
        if tgid is not None:
            print(hexdump.choices(regions), file=sys.stderr)
            raise ShmtraceError(f"{word} lies in none of its regions", "give the id of one of these")
        hint = find_region.did_you_mean(word, find_region.names(regions), "`shmtrace snapshot` lists the regions")
        raise ShmtraceError(f"no region is called {word}", hint)
