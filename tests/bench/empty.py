"""The least that a program at the entry of shmem_add_to_page_cache() can cost: one that does nothing.

python -m tests.bench.empty kprobe|fentry [COMMAND...]     while the command runs; without one, until a signal comes
"""

from __future__ import annotations

import signal
import subprocess
import sys

from tracer.kernel import bpf_syscall, perf, tiers
from tracer.kernel.btf import Btf

FUNCTION = "shmem_add_to_page_cache"


def attach(by: str) -> tuple[int, int]:
    """What keeps it there."""
    if by == "fentry":
        number = Btf().function(FUNCTION)
        assert number
        program = bpf_syscall.load(bpf_syscall.NOTHING, bpf_syscall.TRACING, number)
        return program, bpf_syscall.attach(program)
    program = bpf_syscall.load(bpf_syscall.NOTHING, bpf_syscall.KPROBE)
    return program, perf.kprobe(program, FUNCTION, False)


def main(by: str, *command: str) -> int:
    _kept = attach(by)
    if command:
        return subprocess.run(command).returncode
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("watching", flush=True)
    signal.sigwait([signal.SIGTERM])
    return 0


if __name__ == "__main__":
    assert sys.argv[1] in (tiers.KPROBE.by, tiers.FENTRY.by)
    sys.exit(main(*sys.argv[1:]))
