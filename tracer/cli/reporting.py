"""The commands that read a capture: report, diff, html and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer import labels
from tracer.cli import options, output
from tracer.shipped import shipped

if TYPE_CHECKING:
    from tracer.account import Account
    from tracer.tables.table import Table


@click.command(short_help="Report on a capture, by parent, region, process or time.")
@options.a_capture
@click.option(
    "--by",
    type=click.Choice(["parent", "region", "process", "unit", "container", "time", "stack", "unmapped", *labels.KINDS]),
    default="parent",
    show_default=True,
    metavar="GROUP",
    help="Group by this: parent, region, process, unit, container, time, stack, unmapped (what no process "
    "maps); with labels in the capture also script, request, file, directory, query (without its values), statement, "
    "label.",
)
@click.option(
    "--depth", type=click.IntRange(min=1), metavar="N", help="With --by directory: only N directories from the root."
)
@click.option(
    "--since",
    metavar="TIME",
    help="Count only pages touched at or after TIME: 14:00, '2026-11-25 14:00', or +30s after the capture's start.",
)
@click.option(
    "--until", metavar="TIME", help="Count only pages touched before TIME; -5m is 5 minutes before the capture's end."
)
@click.option("--summary", is_flag=True, help="Print only the answer, as one paragraph for a chat or a ticket.")
@click.option("--sort", metavar="COLUMN", help="Sort by this column of the table; an unknown name lists the columns.")
@options.as_document
def report(
    capture_path: Path,
    by: str,
    depth: int | None,
    since: str | None,
    until: str | None,
    summary: bool,
    sort: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Report on a capture: the trace's own report, or a table by region, process, time and more.

    \b
    shmtrace report x.capture                            the trace's own report
    shmtrace report x.capture --by time --since 14:00    who grew it, and when
    shmtrace report x.capture --by process --sort freed  whose pages were freed
    shmtrace report x.capture --by unit                  by systemd service
    shmtrace report x.capture --summary                  the answer in a paragraph
    shmtrace report x.capture --csv > shares.csv         each part of each region
    """
    from tracer import account, window
    from tracer import answer as answers
    from tracer.capture.capture import Capture
    from tracer.tables import by_time, groups, rollup
    from tracer.views import table

    if by == "stack" and (since or until):
        raise click.UsageError("--by stack takes no --since or --until: stacks are recorded without times")
    if depth and by != "directory":
        raise click.UsageError("--depth needs --by directory")
    whole = by == "parent" and not as_csv
    if summary and (not whole or as_json or sort):
        raise click.UsageError("--summary takes no --by, --sort, --json or --csv")
    if whole and sort:
        raise click.UsageError("--sort needs a table: add --csv, or --by with anything but parent")
    with Capture.open(capture_path) as capture:
        read = account.read(capture, window.window(since, until, account.read_session(capture)))
        tables: dict[str, Callable[[], Table]] = {
            "parent": lambda: rollup.by_parent(read),
            "region": lambda: rollup.by_region(read, capture),
            "process": lambda: rollup.by_process(read),
            "time": lambda: by_time.by_time(read, capture),
        }
        found = None if whole else (tables[by]() if by in tables else groups.table(read, by, depth)).sort(sort)
    if summary:
        output.say(answers.paragraph(read))
    elif found is None:
        output.report(read, as_json)
    elif as_csv:
        output.warn(read)
        output.save(None, table.csv(found.columns, found.rows))
    else:
        output.say(table.json(found, read) if as_json else table.report(found, read))


@click.command(short_help="Compare two captures: what grew from A to B.")
@click.argument("path_a", metavar="A", type=options.A_FILE)
@click.argument("path_b", metavar="B", type=options.A_FILE)
@options.as_document
def diff(path_a: Path, path_b: Path, as_json: bool, as_csv: bool) -> None:
    """Compare two captures: what grew from A to B, by region and by process.

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


def _marks(_ctx: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> list[tuple[str, str]]:
    """(TIME, TEXT) of each --mark. Raises click.BadParameter."""
    found = []
    for value in values:
        time, _, text = value.partition("=")
        if not time or not text.strip():
            raise click.BadParameter(f"{value[:40]!r} is not a mark: write TIME=TEXT, as in 14:05='deploy 1.7.2'")
        found.append((time, text))
    return found


@click.command(short_help="Draw a capture as a web page.")
@options.a_capture
@options.output("Write the page to this file, replacing an earlier page; - is standard output.", required=True)
@click.option(
    "--mark",
    "marks",
    multiple=True,
    callback=_marks,
    metavar="TIME=TEXT",
    help="Mark this time on the chart, such as that of a deploy; TIME as report --since takes it. Repeatable.",
)
def html(capture_path: Path, output_path: Path, marks: list[tuple[str, str]]) -> None:
    """Draw a capture as a web page: growth over time, who touched which page, the process tree, and tables.

    \b
    shmtrace html x.capture -o page.html    then open page.html in a browser
    shmtrace html x.capture -o page.html --mark 14:05='deploy 1.7.2'

    A window of time that is chosen on the chart filters all of the page. It is one file that loads nothing else. It
    shows the processes' command lines, so only its owner can read it (mode 0600), like the capture.
    """
    from tracer import account, window
    from tracer.capture.capture import Capture
    from tracer.views import html as pages

    with Capture.open(capture_path) as capture, output.patience(f"drawing {capture_path}"):
        session = account.read_session(capture)
        marked = [(window.moment(time, session), text) for time, text in marks]
        page = pages.render(account.read(capture), capture, marked)
    output.save(output_path, [page])


@click.command(short_help="Convert a capture for flame graphs, Perfetto, spreadsheets.")
@options.a_capture
@click.option(
    "--format",
    "form",
    type=click.Choice(["folded", "speedscope", "perfetto", "csv"]),
    required=True,
    help="folded: stacks with bytes, for flamegraph.pl and inferno. speedscope, perfetto: JSON for these viewers. "
    "csv: a row for each second, process and region, with the pages touched.",
)
@options.output("Write to this file instead of standard output, replacing an earlier export.")
def export(capture_path: Path, form: str, output_path: Path | None) -> None:
    """Convert a capture for other programs: flame graphs, trace viewers, spreadsheets.

    If the capture has stacks, folded and speedscope show them below each process. They then include freed pages.

    \b
    shmtrace export x.cap --format folded | flamegraph.pl --countname bytes >x.svg
    shmtrace export x.cap --format speedscope -o x.json    for speedscope.app
    shmtrace export x.cap --format perfetto -o trace.json  for ui.perfetto.dev
    shmtrace export x.cap --format csv -o x.csv            for a spreadsheet
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
