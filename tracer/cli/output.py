"""Where a command's output goes: standard output, a terminal, a file."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tracer.errors import ShmtraceError

if TYPE_CHECKING:
    from tracer.model import Account

PATIENCE_S = 1.0
BEGINNING = 15  # bytes that the old and the new file must share for save() to replace the old one
LIBRARIES = {
    "prometheus_client": "install Debian's python3-prometheus-client, or pip's prometheus_client",
    "duckdb": "`pip install 'shmtrace[parquet]'` brings it",
}
"""What an option may need, and what brings it."""

Item = TypeVar("Item")


def say(text: str) -> None:
    """Print to standard output and flush, in its own encoding. click.echo would replace an ASCII encoding."""
    print(text, flush=True)


def tell(text: str) -> None:
    """Print one line to standard error, with control characters made visible."""
    from tracer.formatting import printable

    print(f"shmtrace: {printable(text)}", file=sys.stderr, flush=True)


def alert(text: str) -> None:
    """Like tell(), for what somebody should be woken for: in systemd's journal it is a warning."""
    from tracer.formatting import printable

    priority = "<4>" if _is_journal() else ""  # sd-daemon(3)
    print(f"{priority}shmtrace: {printable(text)}", file=sys.stderr, flush=True)


def _is_journal() -> bool:
    """Whether standard error goes to systemd's journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        stat = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def report(account: Account, as_json: bool) -> None:
    """Print an account to standard output: the text report, or JSON."""
    from tracer.views import json
    from tracer.views import report as text

    if as_json:
        save(None, itertools.chain(json.render(account), "\n"))
    else:
        say(coloured(text.render(account)))


def warn(*accounts: Account) -> None:
    """Print the warnings of these accounts to standard error, for output formats that have no place for them."""
    from tracer.views.report import warnings

    for account in accounts:
        for line in warnings(account):
            click.echo(f"shmtrace: {line}", err=True)


def coloured(text: str) -> str:
    """The report in colour, if standard output is a terminal and NO_COLOR is not set (https://no-color.org)."""
    from tracer.views.report import paint

    wanted = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    return paint(text) if wanted else text


@contextlib.contextmanager
def writing_capture(path: Path | None) -> Iterator[None]:
    """Turn SQLite's error into ShmtraceError if the capture cannot be written. path None: a temporary capture."""
    try:
        yield
    except sqlite3.OperationalError as error:
        where = f"{path}, which holds all that was traced before" if path else "the temporary directory"
        raise ShmtraceError(f"the capture cannot be written ({error})", f"free disk space for {where}") from None


def need(library: str) -> None:
    """Raises ShmtraceError if one of LIBRARIES is not installed."""
    try:
        importlib.import_module(library)
    except ImportError:
        raise ShmtraceError(f"{library} is not installed", LIBRARIES[library]) from None


def is_terminal(path: Path | None) -> bool:
    """Whether save() would write to a terminal."""
    return (not path or str(path) == "-") and sys.stdout.isatty()


def save(path: Path | None, chunks: Iterable[str | bytes]) -> None:
    """Write to a file of mode 0600, or to standard output if path is None or "-". Texts are written as UTF-8.

    An existing file is replaced only if it is empty or begins like the new one, and only once the new one is
    complete. Raises ShmtraceError if the file is another one or cannot be written.
    """
    from tempfile import NamedTemporaryFile

    rest = (chunk.encode() if isinstance(chunk, str) else chunk for chunk in chunks)
    if not path or str(path) == "-":
        sys.stdout.flush()
        sys.stdout.buffer.writelines(rest)
        sys.stdout.buffer.flush()
        return
    first = next(rest, b"")
    try:
        if path.exists() and not (path.is_file() and _begins(path, first)):
            raise ShmtraceError(f"{path} exists and is not an earlier output", "give another name, or remove it")
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(NamedTemporaryFile(dir=path.parent, delete=False))  # 0600
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(Path(file.name).unlink)
            file.write(first)
            file.writelines(rest)
            file.flush()
            Path(file.name).replace(path)
            undo.pop_all()
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "give another path") from None


def _begins(path: Path, new: bytes) -> bool:
    beginning = new[:BEGINNING]
    with path.open("rb") as file:
        return file.read(len(beginning) or 1) in (beginning, b"")


@contextlib.contextmanager
def patience(what: str, anywhere: bool = False) -> Iterator[None]:
    """On a terminal, print `what` if the body takes more than a second. anywhere: if there is no terminal, too."""
    from threading import Timer

    timer = Timer(PATIENCE_S, lambda: tell(what))
    if anywhere or sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watched(
    items: Iterable[Item], size_of: Callable[[Item], int], total: int, shown: bool = True
) -> Generator[Item, None, None]:
    """Yield the items, and show a progress bar on a terminal once that takes more than a second.

    size_of and total are in the same unit. shown False: never show the bar.
    """
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
            elif shown and time.monotonic() - begin > PATIENCE_S:
                bar = stack.enter_context(click.progressbar(length=total, file=sys.stderr))
                bar.update(done)
