"""The demo's experiment, as a program that imports nothing of shmtrace.

    python3 tracer/demo/experiment.py 2000

A parent maps this many MB of shared memory and touches none of them. Child A writes the first quarter, child B the
first half; then idle children take their places. Each line on standard input (an Enter) starts the next stage. A
process's name and PID are printed when it has done its part. `shmtrace demo` drives it.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys

PAGE = b"x" * mmap.PAGESIZE


def main(size_bytes: int) -> None:
    """Run the experiment with a region of this size, one stage for each line on standard input."""
    # The children read this pipe, and only the parent holds its write end: when the parent ends, they end too.
    hold, kept_by_parent = os.pipe()

    def child(name: str, pages: int) -> int:
        done, tell = os.pipe()
        tgid = os.fork()
        if tgid == 0:
            os.close(kept_by_parent)
            rename(f"child {name}")
            for _ in range(pages):
                region.write(PAGE)
            os.write(tell, b".")
            os.read(hold, 1)
            os._exit(0)
        os.close(tell)
        if not os.read(done, 1):
            sys.exit(f"child {name} was killed")
        os.close(done)
        say(name, tgid)
        return tgid

    rename("parent")
    say("parent", os.getpid())
    next_stage()
    region = mmap.mmap(-1, size_bytes)  # MAP_SHARED | MAP_ANONYMOUS
    say("parent", os.getpid())
    next_stage()
    a = child("A", size_bytes // 4 // len(PAGE))
    next_stage()
    b = child("B", size_bytes // 2 // len(PAGE))
    next_stage()
    end(a)
    c = child("C", 0)
    next_stage()
    end(b)
    d = child("D", 0)
    next_stage()
    end(c)
    end(d)
    say("parent", os.getpid())
    next_stage()


def next_stage() -> None:
    """Wait for a line on standard input; exit at its end."""
    if not sys.stdin.readline():
        sys.exit()


def say(name: str, tgid: int) -> None:
    """Report that a process has done its part."""
    print(name, tgid, flush=True)


def end(tgid: int) -> None:
    """Terminate a child and wait for it."""
    os.kill(tgid, signal.SIGTERM)
    os.waitpid(tgid, 0)


def rename(name: str) -> None:
    """Set the name that ps shows, by overwriting the arguments in place, like setproctitle of PHP and PostgreSQL."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)
    with open("/proc/self/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, the 48th and 49th of proc(5)
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(f"demo: {name}".encode()[: end - start - 1].ljust(end - start, b"\0"))


if __name__ == "__main__":
    main(int(sys.argv[1]) << 20)
