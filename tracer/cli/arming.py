"""The commands that begin and end an armed trace. It needs no process: others read it with --armed."""

from __future__ import annotations

import click

from tracer.cli import options, output
from tracer.cli.preflight import need_root, ourselves
from tracer.errors import ShmtraceError
from tracer.formatting import format_bytes
from tracer.kernel import host
from tracer.proc.procfs import Proc
from tracer.record import targets

READ = "`shmtrace report --armed` reads it, `shmtrace disarm` ends it"


@click.command(short_help="Let the kernel keep the record, with no process running.")
@options.which_processes
@options.room
def arm(names: tuple[str, ...], everything: bool, room_bytes: int) -> None:
    """Attach the probes and end: the kernel keeps the record, for weeks, until disarm or a reboot.

    \b
    shmtrace arm -p php-fpm         before the incident
    shmtrace arm -a --room 16G      all of the host, with more room

    `shmtrace report --armed` then tells all since, also of processes that have exited; so do html and export. top and
    record go on from there, live. They change nothing: it stays armed until `shmtrace disarm`.

    No process has to run yet: -p php-fpm takes whatever is called so later. Where room gets short, processes and
    regions that are over are forgotten, the oldest first, and a report says how many. Labels and stacks need a process
    that reads them: record has these.
    """
    from tracer.record import armed
    from tracer.record.signals import Signals

    if bool(names) + everything != 1:
        raise click.UsageError("give one of -p NAME, -a (all)")
    need_root(bpf=True)
    host.need_host_pids()
    found = targets.parse(names)
    found = found._replace(everything=everything or found.everything)
    if not (found.everything or found.roots(Proc().processes(), ourselves())):
        if not found.patterns:
            raise ShmtraceError(
                f"no process matches -p {' -p '.join(names)}", "name it, to take what is called so later"
            )
        output.tell(f"nothing is called {' or '.join(names)} now; what is called so later is taken")
    with Signals(), output.patience("attaching …", anywhere=True):
        note = armed.arm(names, found, ourselves(), room_bytes)
    memory = f"{note.tier} by {note.by}, {format_bytes(note.memory_bytes)} of kernel memory"
    output.say(f"armed {note.said}: {note.size}; {memory}")
    output.say(READ)


@click.command(short_help="End what arm began; leaves nothing.")
def disarm() -> None:
    """End what `shmtrace arm` began. Its programs, maps and pins, and the record, are gone then.

    \b
    shmtrace disarm
    """
    from tracer.record import armed

    need_root(bpf=True)
    output.say("disarmed" if armed.disarm() else "nothing was armed")
