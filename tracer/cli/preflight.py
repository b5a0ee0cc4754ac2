"""Checks before a command starts: its privileges, and the processes that -p selects."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from tracer.cli import output
from tracer.errors import ShmtraceError
from tracer.kernel import host
from tracer.proc.procfs import Proc
from tracer.record import targets


def need_root(bpf: bool) -> None:
    """Raises ShmtraceError if /proc or a capability is missing. bpf: the command loads BPF programs."""
    host.need_proc()
    host.need_host_users()
    missing = host.missing_capabilities(bpf)
    if missing:
        # root lacks capabilities only in a container
        adding = " ".join(f"--cap-add={name.removeprefix('CAP_')}" for name in missing)
        remedy = f"docker run {adding} …" if os.geteuid() == 0 else "run it as root (sudo shmtrace …)"
        raise ShmtraceError(f"this process lacks {', '.join(missing)}", remedy)


def ourselves() -> list[int]:
    """PIDs of this process and its ancestors (sudo, a shell, bootstrap), whose command lines match -p too."""
    proc, found = Proc(), [os.getpid()]
    while (process := proc.process(found[-1])) and process.parent:
        found.append(process.parent)
    return found


def wanted(names: Sequence[str], everything: bool, wait: bool) -> targets.Targets:
    """The targets that -p or -a selects. wait: wait until at least one process matches.

    Raises ShmtraceError if no process matches and wait is false.
    """
    waiting = False
    while True:
        try:
            wanted = targets.parse(names)
            wanted = wanted._replace(everything=everything or wanted.everything)
        except targets.NoPidfileError:
            if not wait:
                raise
        else:
            processes, ours = Proc().processes(), ourselves()
            if wanted.everything or wanted.roots(processes, ours) or (wait and wanted.patterns):
                absent = [name for name in names if not targets.parse([name]).roots(processes, ours)]
                for name in absent if len(names) > 1 else ():
                    output.tell(f"no process matches -p {name} now; tracing the others")
                return wanted
            if wanted.tgids.intersection(ours):
                raise ShmtraceError(
                    f"-p {' -p '.join(names)} is shmtrace itself or what started it", "give another process"
                )
            if not wait:
                close = wanted.close_to(processes)
                hint = f"did you mean {' or '.join(close)}? " if close else ""
                raise ShmtraceError(
                    f"no process matches -p {' -p '.join(names)}",
                    f"{hint}--wait waits for one, -a traces the whole host",
                )
        if not waiting:
            output.tell(f"waiting for -p {' -p '.join(names)}; Ctrl-C stops")
        waiting = True
        time.sleep(0.2)
