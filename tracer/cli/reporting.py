"""The commands that read a capture: report, diff, html and export."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from tracer.cli import options, output
from tracer.errors import ShmtraceError
from tracer.shipped import shipped

if TYPE_CHECKING:
    from tracer.capture.capture import Capture
    from tracer.model import Account


class By(click.ParamType):
    """A grouping of a report, or two with a comma between them."""

    name = "by"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value, if there is such a table."""
        from tracer.tables import groups

        names = value.split(",")
        for name in names:
            if name not in groups.NAMES:
                self.fail(f"{name[:40]!r} is none of {', '.join(groups.NAMES)}", param, ctx)
        if len(names) > 1 and (len(names) > 2 or names[0] == names[1] or not set(names) <= set(groups.DIMENSIONS)):
            self.fail(f"{value!r} is not two of {', '.join(groups.DIMENSIONS)}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The groupings; after a comma, those that go with another."""
        from tracer.tables import groups

        first, comma, begun = incomplete.rpartition(",")
        names = groups.DIMENSIONS if comma else groups.NAMES
        return [CompletionItem(f"{first}{comma}{name}") for name in names if name.startswith(begun) and name != first]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """An account is much, and in no circle: looking for garbage in it takes a third of the time to read it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@click.command(short_help="Report on a capture, by parent, region, process or time.")
@options.a_capture
@click.option(
    "--by",
    type=By(),
    default="parent",
    show_default=True,
    metavar="GROUP",
    help="Group by this: parent, region, process, command (processes that are alike), creator (of the region), what "
    "(regions that are alike), unit, container, pod, namespace, time, stack, unmapped (what no process maps); with "
    "labels in the capture also script, request, file, directory, query (without its values), statement, label; host, "
    "of merged captures. Or by two of them, as in script,command.",
)
@click.option(
    "--depth", type=click.IntRange(min=1), metavar="N", help="With --by directory: only N directories from the root."
)
@options.narrowed
@options.windowed
@click.option("--summary", is_flag=True, help="Print only the answer, as one paragraph for a chat or a ticket.")
@click.option("--sort", metavar="COLUMN", help="Sort by this column of the table; an unknown name lists the columns.")
@click.option("--verify", is_flag=True, help="First hold the sums in the capture against its pages, one by one.")
@options.as_document
@_uncollected()
def report(
    capture_path: Path | None,
    by: str,
    depth: int | None,
    words: tuple[str, ...],
    names: tuple[str, ...],
    since: str | None,
    until: str | None,
    summary: bool,
    sort: str | None,
    verify: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Report on a capture: the trace's own report, or a table by region, process, time and more.

    \b
    shmtrace report x.capture                            the trace's own report
    shmtrace report x.capture --by time --since 14:00    who grew it, and when
    shmtrace report x.capture --by process --sort freed  whose pages were freed
    shmtrace report x.capture --by unit                  by systemd service
    shmtrace report x.capture --by pod,script            by pod and script
    shmtrace report x.capture --summary                  the answer in a paragraph
    shmtrace report x.capture --csv > shares.csv         each part of each region
    """
    from tracer import account, sessions, window
    from tracer import answer as answers
    from tracer.tables import groups
    from tracer.views import report as text
    from tracer.views import table

    if by == "stack" and (since or until):
        raise click.UsageError("--by stack takes no --since or --until: stacks are recorded without times")
    if depth and "directory" not in by.split(","):
        raise click.UsageError("--depth needs --by directory")
    whole = by == "parent" and not as_csv
    if summary and (not whole or as_json or sort):
        raise click.UsageError("--summary takes no --by, --sort, --json or --csv")
    if whole and sort:
        raise click.UsageError("--sort needs a table: add --csv, or --by with anything but parent")
    by_time = "time" in by.split(",")
    reads_pages = verify or by_time or bool(since or until)
    with _opened(capture_path, words, names, reads_pages, verify) as capture:
        session = sessions.read(capture)
        if by_time and session.since_ns > session.started_ns:  # what it has no samples of is no row of a table
            since = since or "+0s"
        read = account.read(capture, window.window(since, until, session))
        found = None if whole else groups.table(read, by, capture, depth).sort(sort)
    if summary:
        output.say(answers.paragraph(read))
    elif found is None:
        output.report(read, as_json)
    elif as_csv:
        output.warn(read)
        output.save(None, table.csv(found.columns, found.rows))
    else:
        output.say(table.json(found, read) if as_json else text.of_table(found, read))


@click.command(short_help="Compare two captures: what grew from A to B.")
@click.argument("path_a", metavar="A", type=options.A_FILE)
@click.argument("path_b", metavar="B", type=options.A_FILE)
@options.as_document
@_uncollected()
def diff(path_a: Path, path_b: Path, as_json: bool, as_csv: bool) -> None:
    """Compare two captures: what grew from A to B, by region and by process.

    \b
    shmtrace diff monday.capture friday.capture
    shmtrace diff before.capture after.capture --csv > grown.csv
    """
    from tracer.capture.capture import limit_heap
    from tracer.tables import diff as diffs
    from tracer.views import diff as changes
    from tracer.views import table

    limit_heap([path_a, path_b])
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
@options.narrowed
@click.option(
    "--mark",
    "marks",
    multiple=True,
    callback=_marks,
    metavar="TIME=TEXT",
    help="Mark this time on the chart, such as that of a deploy; TIME as report --since takes it. Repeatable.",
)
@_uncollected()
def html(
    capture_path: Path | None,
    output_path: Path,
    words: tuple[str, ...],
    names: tuple[str, ...],
    marks: list[tuple[str, str]],
) -> None:
    """Draw a capture as a web page: growth over time, who touched which page, the process tree, and tables.

    \b
    shmtrace html x.capture -o page.html    then open page.html in a browser
    shmtrace html x.capture -o page.html --mark 14:05='deploy 1.7.2'

    A window of time that is chosen on the chart filters all of the page. It is one file that loads nothing else. It
    shows the processes' command lines, so only its owner can read it (mode 0600), like the capture.
    """
    from tracer import account, sessions, window
    from tracer.views import html as pages

    with (
        _opened(capture_path, words, names, reads_pages=True) as capture,
        output.patience("drawing the page"),
    ):
        session = sessions.read(capture)
        marked = [(window.moment(time, session), text) for time, text in marks]
        page = pages.render(account.read(capture), capture, marked)
    output.save(output_path, [page])


@click.command(short_help="Convert a capture for flame graphs, Perfetto, spreadsheets.")
@options.a_capture
@click.option(
    "--format",
    "form",
    type=click.Choice(["folded", "speedscope", "svg", "pprof", "perfetto", "csv", "openmetrics"]),
    required=True,
    help="svg: a flame graph for a browser. folded: stacks with bytes, for flamegraph.pl and inferno. speedscope, "
    "perfetto: JSON for these viewers. pprof: a profile for pprof, Pyroscope and Parca. csv: a row for each second, "
    "process, label and region, with the pages touched. openmetrics: the metrics of record --listen over time, for "
    "promtool.",
)
@options.output("Write to this file instead of standard output, replacing an earlier export.")
@options.narrowed
@options.windowed
@click.option(
    "--base",
    "base_path",
    metavar="FILE",
    type=options.A_FILE,
    help="With pprof: growth since this capture, an earlier part of the same trace.",
)
@_uncollected()
def export(
    capture_path: Path | None,
    form: str,
    output_path: Path | None,
    words: tuple[str, ...],
    names: tuple[str, ...],
    since: str | None,
    until: str | None,
    base_path: Path | None,
) -> None:
    """Convert a capture for other programs: flame graphs, trace viewers, spreadsheets.

    Flame graphs (svg, folded, speedscope, pprof) show below each process what its label says. If the capture has
    stacks, they show these instead, and then include freed pages.

    \b
    shmtrace export x.cap --format svg -o x.svg            open it in a browser
    shmtrace export x.cap --format folded | flamegraph.pl --countname bytes >x.svg
    shmtrace export x.cap --format speedscope -o x.json    for speedscope.app
    shmtrace export x.cap --format pprof -o x.pb.gz        go tool pprof x.pb.gz
    shmtrace export x.cap --format pprof --base earlier.cap -o x.pb.gz  what grew
    shmtrace export x.cap --format perfetto -o trace.json  for ui.perfetto.dev
    shmtrace export x.cap --format csv -o x.csv            for a spreadsheet
    shmtrace export x.cap --format openmetrics -o x.om     to be backfilled
    """
    from tracer import account, sessions, window
    from tracer.capture.capture import limit_heap
    from tracer.tables import touches
    from tracer.views import flamegraph, perfetto, svg, table

    if form == "pprof" and output.is_terminal(output_path):
        raise click.UsageError("a terminal cannot show a compressed profile: give -o FILE, or pipe it to a program")
    if form == "openmetrics":
        output.need("prometheus_client")
        from tracer.metrics import backfill
    timed = form in ("perfetto", "csv", "openmetrics")
    if timed and (since or until):
        raise click.UsageError(f"--format {form} takes no --since or --until: it has times itself")
    if base_path and (form != "pprof" or not capture_path or since or until):
        raise click.UsageError("--base needs a FILE and --format pprof, and takes no --since or --until")
    reads_pages = timed or bool(since or until)
    if capture_path and base_path:
        limit_heap([capture_path, base_path])
    with (
        _opened(capture_path, words, names, reads_pages, takes_fleets=False) as capture,
        output.patience("exporting"),
    ):
        read = account.read(capture, window.window(since, until, sessions.read(capture)))
        if (since or until) and read.has_stacks:
            raise ShmtraceError(
                "--since and --until do not go with stacks, which are recorded without times",
                "--base shows what grew since an earlier part of the trace",
            )
        forms: dict[str, Callable[[], Iterable[str | bytes]]] = {
            "folded": lambda: flamegraph.folded(read),
            "speedscope": lambda: flamegraph.speedscope(read),
            "svg": lambda: svg.render(read),
            "pprof": lambda: _profile(capture, read, base_path),
            "perfetto": lambda: perfetto.render(read, capture),
            "csv": lambda: table.csv(
                touches.columns(read), touches.rows(read, capture, account.read_processes(capture))
            ),
            "openmetrics": lambda: backfill.render(read, capture),
        }
        output.warn(read)
        output.save(output_path, forms[form]())


def _profile(capture: Capture, read: Account, base_path: Path | None) -> Iterable[bytes]:
    """Raises ShmtraceError if the base is no earlier moment of the same trace."""
    from tracer import binaries
    from tracer.growth import Growth, is_later
    from tracer.views import pprof

    base = _account(base_path) if base_path else None
    if base and not is_later(read, base):
        raise ShmtraceError(
            f"{base_path} is no earlier part of this trace", "--base takes one that `record --rotate` has kept"
        )
    growth = Growth(base)
    growth.add(read, binaries.read(capture))
    return pprof.render(growth)


@click.command(short_help="Print the JSON Schema of all --json documents.")
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of the documents that --json prints.

    \b
    shmtrace schema > shmtrace.schema.json
    """
    output.say(shipped("views/schema.json").read_text().rstrip("\n"))


@contextlib.contextmanager
def _opened(
    path: Path | None,
    words: Sequence[str],
    names: Sequence[str],
    reads_pages: bool,
    verify: bool = False,
    takes_fleets: bool = True,
) -> Iterator[Capture]:
    """A capture or fleet; only the part of it that --region and -p leave. path None: what is armed, up to now.

    reads_pages: more than the account of all time will be read from it. verify: first hold its sums against its pages.
    """
    from tracer import find_region
    from tracer.capture import fleet
    from tracer.capture.capture import Capture

    read = fleet.open_any if takes_fleets else Capture.open
    with read(path, reads_pages) if path else _armed() as capture:
        if verify:
            capture.verify_sums()
        if words or names:
            find_region.narrow(capture, words, names)
        yield capture


def _armed() -> contextlib.AbstractContextManager[Capture]:
    from tracer.cli.preflight import need_root, ourselves
    from tracer.record import armed

    need_root(bpf=True)
    return armed.now(ourselves())


def _account(path: Path) -> Account:
    from tracer import account

    with _opened(path, (), (), reads_pages=False) as capture:
        return account.read(capture)
