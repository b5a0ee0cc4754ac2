"""Write man/shmtrace.1 from the help texts of all commands and the sections below.

Run it after changing a help text: python3 man/generate.py
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

# The sections that no command's help provides, in roff.
DESCRIPTION = r"""
.SH DESCRIPTION
The usual tools cannot tell who grew shared memory.
It does not count in the resident size (RSS) of the process that created it.
When the process that filled it exits, no RSS contains it any more.
While several processes use it, each RSS counts it again.
.PP
.B shmtrace
uses BPF to record who creates each region and who first touches each of its pages.
It reports this with a balance:
the pages that a region has allocated, by its inode's own count, are the pages that processes touched,
the pages that were there before, and the pages that could not be seen.
.PP
A region is one inode of shared memory: a shared anonymous mapping, a memfd, a System V or POSIX segment, or hugetlb.
.PP
Without a command, the options are those of
.BR "shmtrace trace" .
Commands that look at live processes need root, or the capabilities that the error names.
Commands that read a capture need neither.
"""

TAIL = r"""
.SH EXIT STATUS
.TP
.B 0
Success, also of a trace that Ctrl-C, SIGTERM or
.B \-d
ended.
.TP
.B 1
Failure. One line on standard error says what is wrong and how to fix it.
.B doctor
exits with it where tracing does not work.
.TP
.B 2
A wrong command line.
.TP
.B 3
.B read
left out swapped-out pages.
.TP
.B 70
A bug in shmtrace, in one line on standard error. Please report it.
.TP
.BI 128+ N
Signal
.I N
ended it. 141 means that the reader of its output closed the pipe.
.PP
.B shmtrace \-\- COMMAND
exits with the status of the command.
.SH ENVIRONMENT
.TP
.B NO_COLOR
If it is set and not empty, output is not coloured. Only output to a terminal is coloured at all.
.TP
.B SHMTRACE_TRACEBACK
If it is 1, a bug in shmtrace prints its whole traceback.
.TP
.B TZ
The time zone of the times in reports.
.TP
.B NOTIFY_SOCKET
Where systemd is told that the probes are attached.
.TP
.BR SQLITE_TMPDIR ", " TMPDIR
The directory of the temporary capture of a trace without
.BR \-o .
Its file has no name and is gone when the trace ends.
.TP
.B _SHMTRACE_COMPLETE
For internal use by the scripts of
.BR "shmtrace completion" .
.SH FILES
.TP
.I /proc/PID/map_files
Regions are examined through these links. None is kept open, and no page is allocated by looking.
.TP
.I /sys/kernel/btf/vmlinux
The layout of the kernel's structures. Kernel headers are not needed.
.TP
.I /sys/kernel/tracing
Mounted while attaching, if it is not mounted already.
.TP
.I /etc/systemd/system/shmtrace.service
What
.B install-service
writes.
.TP
.I /var/lib/shmtrace
The captures of that service.
.SH SEE ALSO
.BR ps (1),
.BR pmap (1),
.BR free (1),
.BR proc (5),
.BR shm_overview (7),
.BR tmpfs (5)
"""


def roff(text: str) -> str:
    """One line of text, escaped for roff; words in `backticks` become bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "\\[u2026]")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def paragraphs(text: str) -> Iterator[str]:
    """The lines of a docstring in roff. A paragraph that begins with \\b keeps its lines, as in click."""
    for number, paragraph in enumerate(inspect.cleandoc(text).split("\n\n")):
        lines = paragraph.split("\n")
        if number:
            yield ".PP"
        if lines[0] == "\b":
            yield from [".EX", *map(roff, lines[1:]), ".EE"]
        else:
            yield from map(roff, lines)


def described(command: click.Command, context: click.Context) -> Iterator[str]:
    """The lines of one command's section: its help and its options."""
    yield f".SS {context.command_path}"
    yield from paragraphs(command.help or "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and "--help" not in parameter.opts:
            yield from [".TP", f"\\fB{roff(record[0])}\\fR", roff(record[1])]


def render() -> str:
    """The whole page."""
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
