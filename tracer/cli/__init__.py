"""The command line. Only tracer.cli uses click. A command parses its options, runs one pipeline, renders the result."""

from __future__ import annotations

import shlex
from typing import Any

import click

from tracer import __version__
from tracer.cli import arming, host, merging, output, reporting, service, tracing
from tracer.errors import ShmtraceError

MAX_NAME = 40
WRONG_USE = 2  # exit status, as click has it


class Failure(click.ClickException):
    """An error for the user: one line on standard error. status: the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_code = status

    def show(self, file: Any = None) -> None:
        output.tell(self.format_message())


class Commands(click.Group):
    """The group of commands. Without a command name, the arguments are those of `shmtrace trace`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help", "--version"):
            args = ["trace", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Turns ShmtraceError and click.UsageError into Failure, which prints one line."""
        try:
            return super().invoke(ctx)
        except ShmtraceError as error:
            raise Failure(str(error), error.status) from None
        except click.UsageError as error:
            command = (error.ctx or ctx).command_path
            message = " ".join(error.format_message().split()).rstrip(".")  # click lists choices a line each
            raise Failure(f"{message}: `{command} --help` says more", error.exit_code) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Whoever names a process instead is told how to trace it."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            import difflib  # slow to import, and only needed for an error

            close = difflib.get_close_matches(name, self.commands, n=1)
            meant = f"did you mean {close[0]}? or, " if close else ""
            raise ShmtraceError(
                f"no command is called {name[:MAX_NAME]}",
                f"{meant}to trace processes of that name, `shmtrace -p {shlex.quote(name[:MAX_NAME])}`",
                WRONG_USE,
            )
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # click would sort them; this order is by use


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shmtrace")
def main() -> None:
    """Who grew the shared memory?

    \b
    shmtrace -p php-fpm                  trace a pool until Ctrl-C, then report
    shmtrace -p php-fpm -d 30            the same for 30 seconds
    shmtrace -- ./server --flag          trace a command from start to exit
    shmtrace top -p php-fpm              watch live who grows it
    shmtrace record -p php-fpm -o x.capture
                                         trace into a file, to analyse later
    shmtrace report x.capture --by time  analyse it; also diff, html, export
    shmtrace merge captures/ -o fleet.db many hosts' captures in one file
    shmtrace snapshot -p php-fpm         list regions now, from /proc, without BPF
    shmtrace demo                        see ps, pmap and free get it wrong
    shmtrace doctor                      check what works on this host
    shmtrace prepare                     compile ahead, to attach at once
    shmtrace install-service             a systemd unit that records for weeks

    `shmtrace -p X` is short for `shmtrace trace -p X`; `shmtrace trace --help` lists its options.
    """


for command in (
    *(tracing.trace, tracing.top, tracing.record, arming.arm, arming.disarm),
    *(reporting.report, reporting.diff, reporting.html, reporting.export, merging.merge, reporting.schema),
    *(host.snapshot, host.read, host.demo, host.doctor, host.prepare, service.install_service, host.completion),
):
    main.add_command(command)
