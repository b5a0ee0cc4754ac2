"""Writes man/shmtrace.1: what --help says of every command, and what no command says of itself.

python3 man/generate.py
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

PAGE = Path(__file__).with_name("shmtrace.1")
sys.path.insert(0, str(PAGE.parents[1]))

from tracer import __version__, cli  # noqa: E402

HEAD = r"""
.SH NAME
shmtrace \- who grew the shared memory
.SH SYNOPSIS
"""

# roff, each section as it is to be.
DESCRIPTION = r"""
.SH DESCRIPTION
Shared memory is in the resident size of no process that made it, leaves that of the process that filled it when this
exits, and is counted again by each that has it mapped.
.B shmtrace
records, with BPF, who makes each region of it and who first touches each of its pages, and reports that with a balance:
what a region has allocated, by its inode's own count, is what processes touched, what was there before, and what could
not be seen.
.PP
A region is one such inode: shared anonymous memory, a memfd, a segment of System V or of POSIX, or hugetlb.
.PP
Without a command,
.B shmtrace
with options is
.BR "shmtrace trace" .
What looks at live processes needs root, or the capabilities that the error names; what reads a file does not.
"""

TAIL = r"""
.SH EXIT STATUS
.TP
.B 0
All is well. A trace that Ctrl-C, SIGTERM or
.B \-d
ends is.
.TP
.B 1
Something is wrong; a line on standard error says what, and what mends it.
.B doctor
ends so where tracing does not work.
.TP
.B 2
The command line is wrong.
.TP
.B 3
.B read
has left out pages that are swapped out.
.TP
.B 70
A fault of shmtrace's own, in one line; please report it.
.TP
.BI 128+ N
Signal
.I N
ended it; 141 is a reader who had seen enough.
.PP
.B shmtrace \-\- COMMAND
ends with the status of the command.
.SH ENVIRONMENT
.TP
.B NO_COLOR
Where it is set, and not empty, nothing is coloured. Nor is anything that does not go to a terminal.
.TP
.B SHMTRACE_TRACEBACK
Where it is 1, such a fault is told in all its lines.
.TP
.B TZ
The time of day in reports.
.TP
.BR SQLITE_TMPDIR ", " TMPDIR
Where the capture of a trace is that nobody asked to keep. Its file has no name, and goes with the trace.
.TP
.B _SHMTRACE_COMPLETE
Set by the scripts of
.B shmtrace completion
alone.
.SH FILES
.TP
.I /proc/PID/map_files
Where regions are looked at. None is kept open, and no page of one comes into being by it.
.TP
.I /sys/kernel/btf/vmlinux
Where the kernel says how its structures are laid out; its headers are not needed.
.TP
.I /sys/kernel/tracing
Mounted for the moment of attaching where it is not.
.SH SEE ALSO
.BR ps (1),
.BR pmap (1),
.BR free (1),
.BR proc (5),
.BR shm_overview (7),
.BR tmpfs (5)
"""


def roff(text: str) -> str:
    """Text of a line, as it is; a word in `backticks` bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "\\[u2026]")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def paragraphs(text: str) -> Iterator[str]:
    """A docstring as click reads it: what begins with \\b is left as it is."""
    for number, paragraph in enumerate(inspect.cleandoc(text).split("\n\n")):
        lines = paragraph.split("\n")
        if number:
            yield ".PP"
        if lines[0] == "\b":
            yield from [".EX", *map(roff, lines[1:]), ".EE"]
        else:
            yield from map(roff, lines)


def described(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f".SS {context.command_path}"
    yield from paragraphs(command.help or "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and "--help" not in parameter.opts:
            yield from [".TP", f"\\fB{roff(record[0])}\\fR", roff(record[1])]


def render() -> str:
    main = click.Context(cli.main, info_name="shmtrace")
    commands = {
        name: click.Context(command, info_name=name, parent=main) for name, command in cli.main.commands.items()
    }
    lines = [f'.TH SHMTRACE 1 "" "shmtrace {__version__}" "User Commands"', HEAD.strip()]
    for context in commands.values():
        pieces = " ".join(context.command.collect_usage_pieces(context))
        lines += [f"\\fB{context.command_path}\\fR {roff(pieces)}", ".br"]
    lines[-1] = DESCRIPTION.strip()
    lines += [".SH EXAMPLES", *paragraphs("\b" + inspect.cleandoc(cli.main.help or "").split("\b")[1].split("\n\n")[0])]
    lines.append(".SH COMMANDS")
    for context in commands.values():
        lines += described(context.command, context)
    return "\n".join([*lines, TAIL.strip(), ""])


if __name__ == "__main__":
    PAGE.write_text(render())
