"""Where a command's output goes: standard output, a terminal, a file."""

from __future__ import annotations

import contextlib
import io
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
    from tracer.account import Account

PATIENCE_S = 1.0
BEGINNING = 15  # characters, by which a file is told to be of an earlier run

Item = TypeVar("Item")


def say(text: str) -> None:
    """To standard output, at once, in its own encoding: click.echo would take another than ASCII."""
    print(text, flush=True)


def tell(text: str) -> None:
    """A line to whoever watches."""
    from tracer.formatting import printable

    print(f"shmtrace: {printable(text)}", file=sys.stderr, flush=True)


def report(account: Account, as_json: bool) -> None:
    """What every trace ends with."""
    from tracer.views import json
    from tracer.views import report as text

    if as_json:
        save(None, itertools.chain(json.render(account), "\n"))
    else:
        say(coloured(text.render(account)))


def warn(*accounts: Account) -> None:
    """Beside what has no place for warnings, what a report would say of these."""
    from tracer.views.report import warnings

    for account in accounts:
        for line in warnings(account):
            click.echo(f"shmtrace: {line}", err=True)


def coloured(text: str) -> str:
    """A report as the terminal wants it, where it can and nobody asks for none: https://no-color.org."""
    from tracer.views.report import paint

    wanted = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    return paint(text) if wanted else text


@contextlib.contextmanager
def writing_capture(path: Path | None) -> Iterator[None]:
    """Raises ShmtraceError where there is no room for it any more."""
    try:
        yield
    except sqlite3.OperationalError as error:
        where = f"{path}: what was traced until then is in it" if path else "the temporary directory"
        raise ShmtraceError(f"the capture cannot be written ({error})", f"make room for {where}") from None


def save(path: Path | None, chunks: Iterable[str]) -> None:
    """To standard output, or to a file of its owner's alone. One that is there is replaced only if it begins as this
    one does, and only when this one is complete.

    Raises ShmtraceError.
    """
    from tempfile import NamedTemporaryFile

    if not path or str(path) == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as in a file: these are for programs to read
        sys.stdout.writelines(chunks)
        sys.stdout.flush()
        return
    rest = iter(chunks)
    first = next(rest, "")
    try:
        if path.exists() and not (path.is_file() and _begins(path, first)):
            raise ShmtraceError(f"{path} is there already, and not of an earlier run", "name another, or remove it")
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False))  # 0600
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(Path(file.name).unlink)
            file.write(first)
            file.writelines(rest)
            file.flush()
            Path(file.name).replace(path)
            undo.pop_all()
    except OSError as error:
        raise ShmtraceError(f"{path} cannot be written ({error.strerror})", "name another place") from None


def _begins(path: Path, text: str) -> bool:
    beginning = text[:BEGINNING].encode()
    with path.open("rb") as file:
        return file.read(len(beginning)) in (beginning, b"")


@contextlib.contextmanager
def patience(what: str) -> Iterator[None]:
    """On a terminal, say what takes more than a second."""
    from threading import Timer

    timer = Timer(PATIENCE_S, lambda: tell(what))
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watched(
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
            elif shown and time.monotonic() - begin > PATIENCE_S:
                bar = stack.enter_context(click.progressbar(length=total, file=sys.stderr))
                bar.update(done)
