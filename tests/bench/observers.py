"""Those who watch: shmtrace, and what else counts page faults."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.live.reports import patched
from tests.live.tiers import TIERS, shmtrace, why_not

ROOT = Path(__file__).parents[2]
SHMTRACE = [sys.executable, "-m", "tracer"]
PATIENCE_SECONDS = 600.0  # in an emulated guest
COLD = patched(
    "import pathlib, tempfile",
    "from tracer.kernel.cache import Cache",
    "scratch = tempfile.TemporaryDirectory()",
    "Cache.__init__.__defaults__ = (pathlib.Path(scratch.name, 'cache'),)",
)
"""shmtrace where nothing has been compiled before."""
TIERS_HERE = [name for name, tier in TIERS.items() if not why_not(tier)]
EMPTY = {
    f"an empty hook, by {name}": [sys.executable, "-m", "tests.bench.empty", name]
    for name in TIERS_HERE
    if TIERS[name].functions
}
"""What the exact tiers cannot do without."""

FAULTS = "tracepoint:exceptions:page_fault_user, tracepoint:exceptions:page_fault_kernel"
COUNT_BY_PROCESS = FAULTS + " { @[pid] = count(); }"
SAY_WHEN_UP = 'interval:ms:1 { printf("up\\n"); }'

# bpftrace 0.17 and bcc look for tracepoints where not every host has them mounted.
WITH_TRACEFS = """
[ -d /sys/kernel/debug/tracing/events ] || {
    mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
    mount -t tracefs tracefs /sys/kernel/debug/tracing
}
[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing
exec "$@"
"""


def with_tracefs(*command: str) -> list[str]:
    """The command in a mount namespace of its own, where tracefs is: nothing of the host is changed."""
    return ["unshare", "--mount", "sh", "-c", WITH_TRACEFS, "sh", *command]


class Observer(NamedTuple):
    """A program that watches a command: the command is its last argument, or several."""

    name: str
    program: str
    command: Sequence[str]
    takes_a_line: bool = False
    """the command as one argument, as a shell would read it"""

    def around(self, *command: str) -> list[str]:
        return [*self.command, " ".join(command)] if self.takes_a_line else [*self.command, *command]

    def missing(self) -> str | None:
        return None if shutil.which(self.program) else f"{self.program} is not installed"


NOBODY = Observer("untraced", sys.executable, [])
OBSERVERS = [
    NOBODY,
    *(Observer(name, sys.executable, command) for name, command in EMPTY.items()),
    *(
        Observer(f"shmtrace --, {TIERS[name].title}", sys.executable, [*shmtrace(name), "--json", "--"])
        for name in TIERS_HERE
    ),
    Observer(
        "bpftrace, faults by process",
        "bpftrace",
        with_tracefs("bpftrace", "-e", COUNT_BY_PROCESS, "-c"),
        takes_a_line=True,
    ),
    Observer(
        "perf record -e page-faults -c 1 -d",
        "perf",
        ["perf", "record", "-q", "-e", "page-faults", "-c", "1", "-d", "-o", "/dev/null", "--"],
    ),
    Observer(
        "perf trace -F all",
        "perf",
        with_tracefs("perf", "trace", "-F", "all", "--no-syscalls", "-o", "/dev/null", "--"),
    ),
]


class Starter(NamedTuple):
    """A program that watches until it is interrupted, and what it prints once it does."""

    name: str
    program: str
    command: Sequence[str]
    says: bytes
    environment: dict[str, str]

    def missing(self) -> str | None:
        return None if shutil.which(self.program) else f"{self.program} is not installed"


def starters(tgid: int) -> list[Starter]:
    """shmtrace on a process, and others on the whole host."""
    count = with_tracefs("bpftrace", "-B", "none", "-e", f"{COUNT_BY_PROCESS} {SAY_WHEN_UP}")
    bcc = with_tracefs("funccount-bpfcc", "t:exceptions:page_fault_user")
    unbuffered = {"PYTHONUNBUFFERED": "1"}
    headers = Path(f"/lib/modules/{os.uname().release}/build").exists()
    stubs = {} if headers else {"BCC_KERNEL_SOURCE": str(ROOT / "bpf" / "stubs")}
    target = ["--json", "-p", str(tgid)]
    return [
        *(Starter(name, sys.executable, command, b"watching", {}) for name, command in EMPTY.items()),
        *(
            Starter(f"shmtrace -p PID, {TIERS[name].title}", sys.executable, [*shmtrace(name), *target], b"tracing", {})
            for name in TIERS_HERE
        ),
        Starter("bpftrace, faults by process", "bpftrace", count, b"up\n", {}),
        Starter(
            "bcc's funccount" + (", with our stub headers" if stubs else ""),
            "funccount-bpfcc",
            bcc,
            b"Tracing",
            {**unbuffered, **stubs},
        ),
    ]


def cold(tgid: int) -> Starter:
    """shmtrace where nothing has been compiled."""
    command = [*COLD, "--json", "-p", str(tgid)]
    return Starter("shmtrace -p PID, nothing compiled yet", sys.executable, command, b"tracing", {})


@contextmanager
def started(starter: Starter) -> Iterator[float]:
    """Runs it meanwhile; how many seconds it took until it watched."""
    began = time.monotonic()
    with subprocess.Popen(
        starter.command,
        cwd=ROOT,
        env={**os.environ, **starter.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout
            said = b""
            while starter.says not in said:
                if not select.select([process.stdout], [], [], PATIENCE_SECONDS)[0]:
                    raise RuntimeError(f"{starter.name} does not say that it watches")
                more = os.read(process.stdout.fileno(), 4096)
                if not more:
                    raise RuntimeError(f"{starter.name} ended: {said.decode()[-300:]}")
                said += more
            yield time.monotonic() - began
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_SECONDS)
