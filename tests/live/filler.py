"""Maps memfds and fills them as it is told: python -m tests.live.filler NAME PAGES [NAME PAGES]…

Each line of its standard input is NUMBER FIRST END: the pages of that memfd, the first is 0, to write to. With the word
"child" before it, a child does so, and exits. It says "done" after each, and "ready" at first.
"""

from __future__ import annotations

import mmap
import os
import sys

PAGE_BYTES = mmap.PAGESIZE


def mapped(name: str, pages: int) -> mmap.mmap:
    fd = os.memfd_create(name)
    os.ftruncate(fd, pages * PAGE_BYTES)
    memory = mmap.mmap(fd, pages * PAGE_BYTES)
    os.close(fd)
    return memory


def fill(memory: mmap.mmap, first: int, end: int) -> None:
    for page in range(first, end):
        memory[page * PAGE_BYTES] = 1


def main() -> None:
    pools = [mapped(name, int(pages)) for name, pages in zip(sys.argv[1::2], sys.argv[2::2])]
    print("ready", flush=True)
    for line in sys.stdin:
        *by, number, first, end = line.split()
        child = os.fork() if by else None
        if not child:
            fill(pools[int(number)], int(first), int(end))
        if child == 0:
            os._exit(0)
        if child:
            os.waitpid(child, 0)
        print("done", flush=True)


if __name__ == "__main__":
    main()
