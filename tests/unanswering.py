"""A FUSE file system with one file, which a child of this maps; it answers until that has it, and then nobody any more.

usage: unshare --mount python3 unanswering.py DIRECTORY FILE     as root; DIRECTORY/file is as FILE

Says the child's PID once it is silent, and stays so until it is killed; the child ends with it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import signal
import stat
import struct
import sys
from pathlib import Path

REQUEST, REPLY = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
ATTRIBUTES, ENTRY = struct.Struct("=6Q10I"), struct.Struct("=QQQQII")
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT = 1, 2, 3, 14, 15, 18, 25, 26, 36
ROOT, FILE = 1, 2
PR_SET_PDEATHSIG = 1


def attributes(node: int, size: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o755
    return ATTRIBUTES.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(code: int, node: int, body: bytes, content: bytes) -> bytes | int:
    """What is sent back, or which error."""
    if code == INIT:
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
    if code == LOOKUP and body.rstrip(b"\0") == b"file":
        return ENTRY.pack(FILE, 1, 0, 0, 0, 0) + attributes(FILE, len(content))
    if code == GETATTR:
        return struct.pack("=QII", 0, 0, 0) + attributes(node, len(content))
    if code == OPEN:
        return struct.pack("=QII", 1, 0, 0)
    if code == READ:
        _, offset, size = struct.unpack_from("=QQI", body)
        return content[offset : offset + size]
    if code in (FLUSH, RELEASE):
        return b""
    return errno.ENOENT if code == LOOKUP else errno.ENOSYS


def main(directory: str, file: str) -> None:
    content = Path(file).read_bytes()
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"unanswering", directory.encode(), b"fuse", 0, options):
        sys.exit(os.strerror(ctypes.get_errno()))
    inlet, outlet = os.pipe()
    child = os.fork()
    if not child:
        os.close(device)  # else the end of this waits for an answer, and this for its end
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with open(f"{directory}/file", "rb") as mapped:
            kept = mmap.mmap(mapped.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
        os.write(outlet, kept[:1])
        while True:
            signal.pause()
    while inlet not in select.select([device, inlet], [], [])[0]:
        request = os.read(device, 1 << 18)
        _, code, unique, node, *_ = REQUEST.unpack_from(request)
        if code in (FORGET, INTERRUPT):
            continue
        found = answer(code, node, request[REQUEST.size :], content)
        error, data = (-found, b"") if isinstance(found, int) else (0, found)
        os.write(device, REPLY.pack(REPLY.size + len(data), error, unique) + data)
    print(child, flush=True)
    while True:
        os.read(device, 1 << 18)  # taken, so that who waits for it cannot even be killed


if __name__ == "__main__":
    main(*sys.argv[1:])
