"""The command install-service: a unit for systemd that records for weeks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tracer.address import Address
from tracer.cli import options, output
from tracer.errors import ShmtraceError
from tracer.record import targets

NAME = "shmtrace.capture"
PRINT = "--print"
WORDS = "tracer.cli.service.words"


class Verbatim(click.Command):
    """A command that also has its arguments as they were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse them, and note them in ctx.meta."""
        ctx.meta[WORDS] = [word for word in args if word != PRINT]
        return super().parse_args(ctx, args)


@click.command("install-service", cls=Verbatim, short_help="Write a systemd unit that records for weeks.")
@options.how_to_record
@click.option(PRINT, "prints", is_flag=True, help="Print the unit instead of writing it.")
@click.pass_context
def install_service(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    everything: bool,
    command: tuple[str, ...],
    seconds: float | None,
    wait: bool,
    output_path: Path | None,
    schedule: object,
    keep: int | None,
    oom_path: Path | None,
    textfile: Path | None,
    listen: Address | None,
    prints: bool,
    **_: Any,
) -> None:
    """Write /etc/systemd/system/shmtrace.service, which runs `shmtrace record` with these options, hardened.

    \b
    shmtrace install-service -p php-fpm --rotate 1h --keep 24
    shmtrace install-service -a --keep-on-oom /var/lib/shmtrace/oom.capture
    shmtrace install-service -p php-fpm --rotate 1d --keep 7 --print

    Captures go to /var/lib/shmtrace, unless -o or --keep-on-oom names another place. With -p it waits for the first
    process. A unit that somebody has edited is not overwritten.

    `systemctl enable --now shmtrace` starts it, now and at boot; `systemctl reload shmtrace` ends the current capture
    and begins another. `systemctl disable --now shmtrace` and `rm /etc/systemd/system/shmtrace.service` remove it.
    """
    from tracer.record.armed import STATE
    from tracer.service import unit

    if command or seconds:
        raise click.UsageError("a service runs until it is stopped: leave out -d and COMMAND")
    if bool(names) + everything != 1:
        raise click.UsageError("give one of -p NAME, -a (all)")
    if bool(oom_path) == bool(schedule and keep) or (oom_path and output_path):
        raise click.UsageError("a service runs for weeks: give --rotate 1h --keep 24, or --keep-on-oom FILE")
    for name in names:
        if "/" in name and not Path(name).is_absolute():
            raise ShmtraceError(f"{name} is relative, and a service has another directory", "give an absolute path")
        if "/" not in name:
            targets.pattern(name)
    given = [word for word in ctx.meta[WORDS] if word != "--"]  # there is no COMMAND behind it
    words = [*given, *["--wait"] * bool(names and not wait)]
    place = output_path or oom_path
    if not place:
        place = STATE / NAME
        words += ["-o", str(place)]
    paths = [place, *([textfile] if textfile else [])]
    for path in paths:
        if not path.is_absolute():
            raise ShmtraceError(f"{path} is relative, and a service has another directory", "give an absolute path")
        if not path.name or path.is_dir():
            raise ShmtraceError(f"{path} is a directory", "name a file in it")
    text = unit.render(words, [Path(os.path.normpath(path)) for path in paths], listen and listen.ip)
    if prints:
        output.say(text.rstrip("\n"))
        return
    then = "restart" if unit.install(text) else "enable --now"
    output.say(f"wrote {unit.PLACE}; next: systemctl daemon-reload && systemctl {then} shmtrace")
