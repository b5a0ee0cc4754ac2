"""What `record --when` says and starts: the wait for a condition, the line once it holds, and the command of --run."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer.cli import output
from tracer.cli.preflight import ourselves
from tracer.conditions import MAX_SHOWN, Condition, parse
from tracer.errors import ShmtraceError
from tracer.formatting import printable
from tracer.record.targets import Lasting

if TYPE_CHECKING:
    from subprocess import Popen

    from tracer.record.signals import Signals
    from tracer.triggers import Fired, Watch
    from tracer.views.status_line import Line

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME")
"""All that --run's command has of our environment: what changes how we run ourselves is not meant for it."""


def parsed_conditions(_ctx: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions that --when names. Raises click.BadParameter."""
    try:
        return tuple(dict.fromkeys(map(parse, values)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parsed_command(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    """The program and arguments that --run names. Raises click.BadParameter."""
    if value is None:
        return None
    try:
        arguments = shlex.split(value)
    except ValueError as error:
        raise click.BadParameter(f"{value[:MAX_SHOWN]!r} cannot be split into arguments ({error})") from None
    if not arguments:
        raise click.BadParameter("it names no command")
    return arguments


class Waiting:
    """Stands in for the trace until there is one: a signal that sets `stopping` ends the search or the rest at once."""

    def __init__(self) -> None:
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether to give up."""
        return self._stopping

    @stopping.setter
    def stopping(self, stopping: bool) -> None:
        self._stopping = stopping  # for where an exception is ignored, as in a destructor
        raise KeyboardInterrupt


def wait_for(
    conditions: Sequence[Condition],
    names: Sequence[str],
    everything: bool,
    wait: bool,
    path: Path | None,
    run: Sequence[str] | None,
    signals: Signals,
) -> Fired | None:
    """Wait until one of these conditions holds, and say so. None: a signal came first, or nothing is left to look at.

    names, everything, wait, run: of -p, -a, --wait and --run. path: where a new file will be made. Raises ShmtraceError
    for what can be known to fail later.
    """
    from tracer import triggers
    from tracer.capture.capture import need_place

    if path:
        need_place(path)
    if run and not shutil.which(run[0]):
        raise ShmtraceError(f"--run {run[0][:MAX_SHOWN]!r} is no program", "give the path of one; there is no shell")
    lasting = Lasting(names, everything)
    state = signals.trace = Waiting()
    said: list[str] = []

    def searched(watch: Watch) -> None:
        has_ended = not (watch.has_targets or lasting.may_come or wait)
        if has_ended and not said:
            raise ShmtraceError(_no_process(names), "--wait waits for one, -a looks at the whole host")
        if has_ended:
            output.tell("all processes of -p have exited")
            state.stopping = True
        if not said:
            said.append(f"waiting for {' or '.join(each.text for each in conditions)}; Ctrl-C stops")
            said.extend(_absent(watch, names))
            for line in said:
                output.tell(line)

    fired = None
    with contextlib.suppress(KeyboardInterrupt):
        fired = triggers.wait_for(conditions, lasting, ourselves(), searched, lambda: state.stopping)
    signals.trace = None
    if fired:
        output.alert(f"{fired.condition.text} holds: {fired.said}")
    else:
        output.tell("none of the conditions held" if len(conditions) > 1 else "the condition did not hold")
    return fired


def _no_process(names: Sequence[str]) -> str:
    return f"no process matches -p {' -p '.join(names)}"


def _absent(watch: Watch, names: Sequence[str]) -> Iterator[str]:
    """A line for each name that means nothing yet."""
    from tracer import find_region

    if not watch.has_targets:
        close = watch.targets.close_to(watch.processes)
        yield f"{_no_process(names)} yet" + (f": did you mean {' or '.join(close)}?" if close else "")
        return
    for name in watch.absent:
        hint = find_region.did_you_mean(name, watch.names, "")
        yield f"no region is called {name[:MAX_SHOWN]} yet" + (f": {hint}" if hint else "")


@contextlib.contextmanager
def then(run: Sequence[str] | None, fired: Fired | None, path: Path | None, line: Line) -> Iterator[None]:
    """After the body, even if it fails: start the command of --run. line: is cleared before anything is said."""
    try:
        yield
    finally:
        if run and fired and path:
            _start(run, fired, path.absolute(), line)


def _start(run: Sequence[str], fired: Fired, path: Path, line: Line) -> None:
    from subprocess import DEVNULL, Popen
    from threading import Thread

    try:
        # It gets none of our descriptors, and no signal that the terminal sends to us.
        running = Popen(
            [*run, fired.condition.text, str(path)],
            env=environment(fired, path, os.environ),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        line.clear()
        output.alert(f"--run {run[0]} cannot be run ({error})")
        return
    Thread(target=_see_end, args=(running, run[0], line), daemon=True).start()


def _see_end(running: Popen[bytes], name: str, line: Line) -> None:
    status = running.wait()
    if status:
        how = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
        line.clear()
        output.alert(f"--run {name} {how}")


def environment(fired: Fired, path: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """What the command of --run has in its environment. ours: our own."""
    facts = {
        "CONDITION": fired.condition.text,
        "CAPTURE": str(path),
        "VALUE_BYTES": fired.allocated_bytes,
        "SIZE_BYTES": fired.size_bytes,
        "REGION": fired.region and fired.region.id,
        "REGION_NAME": fired.region and printable(fired.region.name),
    }
    told = {f"SHMTRACE_{name}": str(value) for name, value in facts.items() if value is not None}
    return {**{name: ours[name] for name in PASSED_ON if name in ours}, **told}
