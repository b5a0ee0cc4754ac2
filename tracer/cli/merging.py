"""The command that merges the captures of many hosts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tracer.cli import options, output
from tracer.errors import ShmtraceError

PIECE_BYTES = 1 << 20
HEADER_BYTES = 16  # what an SQLite file begins with


@click.command(short_help="Merge the captures of many hosts into one file.")
@click.argument("paths", metavar="FILE|DIRECTORY...", nargs=-1, required=True, type=options.A_FILE)
@options.output("Write the merged file here, replacing an earlier one; an SQLite file for SQL.", required=True)
@click.option(
    "--parquet",
    "parquet_path",
    metavar="FILE",
    type=options.A_FILE,
    help="Write what was touched, the view growth, as Parquet, too. Needs duckdb.",
)
def merge(paths: tuple[Path, ...], output_path: Path, parquet_path: Path | None) -> None:
    """Merge the captures of many hosts into one file, for report, diff, html, and SQL.

    \b
    shmtrace merge captures/ -o fleet.db          all that are in a directory
    shmtrace merge web*.capture db1.capture -o fleet.db
    shmtrace report fleet.db                      which hosts grew, and by whom

    Of several captures of one host the latest counts, and what other services had recorded at the time; SQL reaches
    all. A file that cannot be read is named, and the others are merged all the same; the exit status is 1 then.
    """
    from tracer import merge as merging
    from tracer.capture.capture import limit_heap
    from tracer.capture.fleet import is_fleet
    from tracer.formatting import count
    from tracer.views import parquet

    if output.is_terminal(output_path):
        raise click.UsageError("a terminal cannot show an SQLite file: give -o FILE")
    if parquet_path == output_path:
        raise click.UsageError("-o and --parquet write a file each: give them different names")
    _need_earlier(output_path, is_fleet)
    if parquet_path:
        output.need("duckdb")
        _need_earlier(parquet_path, parquet.is_parquet)
    with tempfile.TemporaryDirectory(prefix="shmtrace-") as directory:
        into, parquet_into = Path(directory, "fleet"), Path(directory, "parquet")
        found = list(merging.files(paths))
        limit_heap(found)
        merged = merging.merge(output.watched(found, lambda _: 1, len(found)), into)
        for line in (*merged.remarks, *merged.problems):
            output.tell(f"warning: {line}")
        if not merged.nr_captures:
            raise ShmtraceError("there is nothing to merge", "name captures, or a directory that has some")
        if parquet_path:
            parquet.write(into, parquet_into)
        _need_earlier(output_path, is_fleet)
        output.save(output_path, _content(into, HEADER_BYTES))
        if parquet_path:
            output.save(parquet_path, _content(parquet_into, len(parquet.MAGIC)))
    told = f"merged {count(merged.nr_captures, 'capture')} of {count(len(merged.hosts), 'host')} into {output_path}"
    if merged.problems:
        missing = f"{len(merged.problems)} of {len(found)} files"
        raise ShmtraceError(f"{told}, without {missing}", "they are named above, with what helps")
    output.tell(f"{told}: `shmtrace report` shows it")


def _need_earlier(path: Path, is_earlier: Callable[[Path], bool]) -> None:
    """Raises ShmtraceError if there is something that is neither empty nor an earlier output, or cannot be read."""
    try:
        if str(path) == "-" or not path.exists():
            return
        if not path.is_file() or (path.stat().st_size and not is_earlier(path)):
            raise ShmtraceError(f"{path} exists and is not an earlier output", "give another name, or remove it")
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be replaced ({error.strerror})", "give another path") from None


def _content(path: Path, first_bytes: int) -> Iterator[bytes]:
    """A file in pieces, the first as long as what all files of its kind begin with."""
    with path.open("rb") as file:
        yield file.read(first_bytes)
        while piece := file.read(PIECE_BYTES):
            yield piece
