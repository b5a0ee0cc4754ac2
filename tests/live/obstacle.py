"""A process that obstructs whoever looks at it: python -m tests.live.obstacle leased COUNT | long MEGABYTES | held
DIRECTORY

The process maps a region of 31 pages and has written to 13 of them. It prints "ready", then executes the lines of its
standard input and prints the results. "touch" writes to 5 more pages; "give" removes the obstacle.

leased: it holds leases on COUNT files of /dev/shm that it maps, of 29 pages each. At "give" it prints how many leases
it still held, and how often it was told to give one back.
long: its command line has this many megabytes.
held: it has a child that maps a region of 23 pages, has written to 7 of them, and writes to 3 more at "touch". The
child's mmap_lock is held for as long as a FUSE on DIRECTORY does not answer. Needs root and unshare --mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Callable

from tests.unanswering import FORGET, INTERRUPT, READ, REPLY, REQUEST, answer

PAGE_BYTES = mmap.PAGESIZE
PR_SET_NAME, PR_SET_MM, PR_SET_MM_MAP, PR_SET_PDEATHSIG = 15, 35, 14, 1
MAP_NORESERVE = 0x4000
STALLED = 2 << 20  # beyond what read-ahead reads

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.sbrk.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

Acts = tuple[Callable[[], str], Callable[[], None]]
"""The functions to remove the obstacle, and to touch more pages."""


def checked(failed: int) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def leased(count: str) -> Acts:
    fds, kept, told = [], [], []
    signal.signal(signal.SIGIO, lambda *_: told.append(True))
    for number in range(int(count)):
        path = Path(f"/dev/shm/obstacle-{os.getpid()}-{number}")
        fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        path.unlink()
        os.ftruncate(fds[-1], 29 * PAGE_BYTES)
        kept.append(mmap.mmap(fds[-1], 29 * PAGE_BYTES))
        for page in range(29):
            kept[-1][page * PAGE_BYTES] = 1
        fcntl.fcntl(fds[-1], fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def give() -> str:
        held = [fd for fd in fds if fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK]
        for fd in held:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return f"{len(held)} {len(told)} {len(kept)}"

    return give, lambda: None


def long(megabytes: str) -> Acts:
    size_bytes = int(megabytes) << 20
    stat = Path("/proc/self/stat").read_text()
    field = ["", "", "", *stat[stat.rindex(")") + 2 :].split()]  # indexed as in proc(5)
    code, data, stack = map(int, field[26:28]), map(int, field[45:47]), int(field[28])
    at = libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    end = at + size_bytes - PAGE_BYTES
    bounds = *code, *data, int(field[47]), libc.sbrk(0), stack, at, end, end, end + 8
    raw = ctypes.create_string_buffer(struct.pack("=11QQIi", *bounds, 0, 0, -1))
    checked(libc.prctl(PR_SET_MM, PR_SET_MM_MAP, ctypes.addressof(raw), len(raw) - 1, 0))
    return lambda: "", lambda: None


def held(directory: str) -> Acts:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    checked(libc.mount(b"obstacle", directory.encode(), b"fuse", 0, options))
    server = forked(lambda: serve(device))
    os.close(device)
    orders, reports = [os.pipe() for _ in range(3)], os.pipe()
    child = forked(lambda: be_held(f"{directory}/file", [order for order, _ in orders], reports[1]))
    _, write, touch = [to_child for _, to_child in orders]
    writer = os.read(reports[0], 20).decode()
    os.write(orders[0][1], b"x")  # one thread waits for the FUSE and holds mmap_lock for reading
    time.sleep(0.2)
    os.write(write, b"x")  # another waits for mmap_lock for writing, so that all later readers wait behind it
    while state(child, writer) != "D":
        time.sleep(0.01)

    def give() -> str:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        while state(child, writer) == "D":
            time.sleep(0.01)
        return "given"

    def touch_more() -> None:
        os.write(touch, b"x")
        os.read(reports[0], 20)

    return give, touch_more


def be_held(path: str, orders: list[int], reports: int) -> None:
    pool = mmap.mmap(-1, 23 * PAGE_BYTES)
    for page in range(7):
        pool[page * PAGE_BYTES] = 1
    at = libc.mmap(None, 2 * STALLED, mmap.PROT_READ, mmap.MAP_PRIVATE, os.open(path, os.O_RDONLY), 0)
    memory = os.open("/proc/self/mem", os.O_RDONLY)

    def read() -> None:
        os.read(orders[0], 1)
        with contextlib.suppress(OSError):  # the FUSE is gone
            os.pread(memory, 1, at + STALLED)

    def write() -> None:
        os.read(orders[1], 1)
        libc.mmap(None, PAGE_BYTES, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)

    reader, writer = [threading.Thread(target=act, daemon=True) for act in (read, write)]
    reader.start()
    writer.start()
    os.write(reports, str(writer.native_id).encode())
    os.read(orders[2], 1)
    for page in range(7, 10):
        pool[page * PAGE_BYTES] = 1
    os.write(reports, b"touched")
    signal.pause()


def forked(act: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        act()
    return child


def state(tgid: int, tid: str) -> str:
    """The state of a thread; empty if it has ended."""
    try:
        stat = Path(f"/proc/{tgid}/task/{tid}/stat").read_text()
    except OSError:
        return ""
    return stat[stat.rindex(")") + 2]


def serve(device: int) -> None:
    """Answer all reads except those of the file's second half."""
    content = bytes(2 * STALLED)
    while True:
        request = os.read(device, 1 << 18)
        _, code, unique, node, *_ = REQUEST.unpack_from(request)
        body = request[REQUEST.size :]
        if code in (FORGET, INTERRUPT) or (code == READ and struct.unpack_from("=QQ", body)[1] >= STALLED // 2):
            continue
        found = answer(code, node, body, content)
        error, data = (-found, b"") if isinstance(found, int) else (0, found)
        os.write(device, REPLY.pack(REPLY.size + len(data), error, unique) + data)


def main() -> None:
    kind, argument = sys.argv[1:]
    libc.prctl(PR_SET_NAME, ctypes.addressof(ctypes.create_string_buffer(f"obstacle {kind}".encode())), 0, 0, 0)
    pool = mmap.mmap(-1, 31 * PAGE_BYTES)
    pages = iter(range(31))
    for _ in range(13):
        pool[next(pages) * PAGE_BYTES] = 1
    give, touch_more = {"leased": leased, "long": long, "held": held}[kind](argument)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        if line == "touch\n":
            touch_more()
            for _ in range(5):
                pool[next(pages) * PAGE_BYTES] = 1
        print(give() if line == "give\n" else "touched", flush=True)


if __name__ == "__main__":
    main()
