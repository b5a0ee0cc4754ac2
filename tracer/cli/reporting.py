"""Commands that look at a capture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer import labels
from tracer.cli import options, output
from tracer.shipped import shipped

if TYPE_CHECKING:
    from tracer.account import Account
    from tracer.tables.table import Table


@click.command(short_help="What a capture says, or a table by region, process or time.")
@options.a_capture
@click.option(
    "--by",
    type=click.Choice(["parent", "region", "process", "unit", "container", "time", "stack", *labels.KINDS]),
    default="parent",
    show_default=True,
    help="Of what.",
)
@click.option("--since", metavar="TIME", help="Touched then or later: 14:00, 2026-11-25 14:00, +30s after the start.")
@click.option("--until", metavar="TIME", help="Touched before then; -5m is five minutes before the capture's end.")
@click.option("--sort", metavar="COLUMN", help="By a column of the table; one that is not there names them.")
@options.as_document
def report(
    capture_path: Path, by: str, since: str | None, until: str | None, sort: str | None, as_json: bool, as_csv: bool
) -> None:
    """What a capture says: the trace's own report, or a table by region, process and more.

    \b
    shmtrace report x.capture                                        as the trace printed it
    shmtrace report x.capture --by time --since 14:00 --until 14:05  who grew it then
    shmtrace report x.capture --by process --sort freed              who gave most back
    shmtrace report x.capture --by unit                              which service; or --by container
    shmtrace report x.capture --csv > shares.csv                     every part of every region
    """
    from tracer import account, window
    from tracer.capture.capture import Capture
    from tracer.tables import by_time, groups, rollup
    from tracer.views import table

    if by == "stack" and (since or until):
        raise click.UsageError("when a stack made its pages is not recorded: --since and --until go without --by stack")
    whole = by == "parent" and not as_csv
    if whole and sort:
        raise click.UsageError("--sort needs a table: --by another than parent, or --csv")
    with Capture.open(capture_path) as capture:
        read = account.read(capture, window.window(since, until, account.read_session(capture)))
        tables: dict[str, Callable[[], Table]] = {
            "parent": lambda: rollup.by_parent(read),
            "region": lambda: rollup.by_region(read, capture),
            "process": lambda: rollup.by_process(read),
            "time": lambda: by_time.by_time(read, capture),
        }
        found = None if whole else (tables[by]() if by in tables else groups.table(read, by)).sort(sort)
    if found is None:
        output.report(read, as_json)
    elif as_csv:
        output.warn(read)
        output.save(None, table.csv(found.columns, found.rows))
    else:
        output.say(table.json(found, read) if as_json else table.report(found, read))


@click.command(short_help="What grew from capture A to capture B.")
@click.argument("path_a", metavar="A", type=options.A_FILE)
@click.argument("path_b", metavar="B", type=options.A_FILE)
@options.as_document
def diff(path_a: Path, path_b: Path, as_json: bool, as_csv: bool) -> None:
    """What grew from capture A to capture B, by region and by process.

    \b
    shmtrace diff monday.capture friday.capture
    shmtrace diff before.capture after.capture --csv > grown.csv
    """
    from tracer.tables import diff as diffs
    from tracer.views import diff as changes
    from tracer.views import table

    a, b = map(_account, (path_a, path_b))
    output.warn(a, b)
    found = diffs.diff(a, b)
    if as_csv:
        both = diffs.both(found)
        output.save(None, table.csv(both.columns, both.rows))
    else:
        output.say(changes.json(found, a, b) if as_json else changes.text(found, a, b))


@click.command(short_help="Draw a capture as a page.")
@options.a_capture
@options.output("The page, in place of an earlier one; - is standard output.", required=True)
def html(capture_path: Path, output_path: Path) -> None:
    """Draw a capture as a page: growth over time, who touched which page, the processes, and every figure in tables.

    \b
    shmtrace html x.capture -o page.html    then open page.html in a browser

    The page is one file that loads nothing else. Who may read it may read the commands of the processes in it: it is
    made for its owner's eyes, as the capture is.
    """
    from tracer import account
    from tracer.capture.capture import Capture
    from tracer.views import html as pages

    with Capture.open(capture_path) as capture, output.patience(f"drawing {capture_path}"):
        page = pages.render(account.read(capture), capture)
    output.save(output_path, [page])


@click.command(short_help="A capture for flame graphs, traces and spreadsheets.")
@options.a_capture
@click.option(
    "--format",
    "form",
    type=click.Choice(["folded", "speedscope", "perfetto", "csv"]),
    required=True,
    help="folded: for flamegraph.pl and inferno, in bytes. csv: a row for what each process touched in each second.",
)
@options.output("Instead of standard output, in place of an earlier one.")
def export(capture_path: Path, form: str, output_path: Path | None) -> None:
    """A capture for other programs: flame graphs, traces, spreadsheets.

    Of a capture with stacks, folded and speedscope have them below each process, with what it has given back since.

    \b
    shmtrace export x.capture --format folded | flamegraph.pl --countname bytes > x.svg
    shmtrace export x.capture --format speedscope -o x.speedscope.json   for speedscope.app
    shmtrace export x.capture --format perfetto -o x.trace.json          for ui.perfetto.dev
    shmtrace export x.capture --format csv -o x.csv                      for a spreadsheet
    """
    from tracer import account
    from tracer.capture.capture import Capture
    from tracer.tables import touches
    from tracer.views import flamegraph, perfetto, table

    with Capture.open(capture_path) as capture, output.patience(f"exporting {capture_path}"):
        read = account.read(capture)
        forms: dict[str, Callable[[], Iterable[str]]] = {
            "folded": lambda: flamegraph.folded(read),
            "speedscope": lambda: flamegraph.speedscope(read),
            "perfetto": lambda: perfetto.render(read, capture),
            "csv": lambda: table.csv(touches.COLUMNS, touches.rows(read, capture, account.read_processes(capture))),
        }
        output.warn(read)
        output.save(output_path, forms[form]())


@click.command(short_help="Print the JSON Schema of all --json documents.")
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of the documents that --json prints.

    \b
    shmtrace schema > shmtrace.schema.json
    """
    output.say(shipped("views/schema.json").read_text().rstrip("\n"))


def _account(path: Path) -> Account:
    from tracer import account
    from tracer.capture.capture import Capture

    with Capture.open(path) as capture:
        return account.read(capture)
