"""Perf events that BPF programs hang on: what perf_event_open(2) gives is all there is of them, in no file system.

bcc would hang some on events that it makes in tracefs: these outlive a process that is killed, and to take one away
tracefs has to be mounted still.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

_NUMBER = {"x86_64": 298, "aarch64": 241, "riscv64": 241}  # of the system call
TYPE_TRACEPOINT = 2
AT_RETURN = 1  # in config, of the kprobe's and the uprobe's type (format/retprobe)
SAMPLE_PERIOD = WAKEUP_EVENTS = 1
FLAG_FD_CLOEXEC = 8
IOC_ENABLE, IOC_SET_BPF = 0x2400, 0x40042408
ATTRIBUTES = struct.Struct("=IIQQQQQIIQQ")  # struct perf_event_attr as far as config2
PMUS = Path("/sys/bus/event_source/devices")  # the types that have no fixed number

_libc = ctypes.CDLL(None, use_errno=True)


def tracepoint(program: int, number: int) -> int:
    """Hang a program on a tracepoint, by the id tracefs has for it; until the descriptor that this returns is closed.

    Raises OSError, as all of these do.
    """
    return _hang(program, TYPE_TRACEPOINT, number)


def kprobe(program: int, function: str, at_return: bool) -> int:
    """Hang it on the entry or the return of a kernel function; likewise."""
    return _hang(program, _type("kprobe"), AT_RETURN if at_return else 0, function.encode())


def uprobe(program: int, path: Path, offset: int) -> int:
    """Hang it on the instruction at this offset in a file, in all processes that run it; likewise."""
    return _hang(program, _type("uprobe"), 0, os.fsencode(path), offset)


def _type(pmu: str) -> int:
    return int((PMUS / pmu / "type").read_text())


def _hang(program: int, kind: int, config: int, where: bytes = b"", offset: int = 0) -> int:
    name = ctypes.create_string_buffer(where)
    address = ctypes.addressof(name) if where else 0
    attributes = ctypes.create_string_buffer(
        ATTRIBUTES.pack(kind, ATTRIBUTES.size, config, SAMPLE_PERIOD, 0, 0, 0, WAKEUP_EVENTS, 0, address, offset),
        ATTRIBUTES.size,
    )
    # The program runs on all CPUs: the event has to be on one, and this process's own are online.
    cpu = min(os.sched_getaffinity(0))
    event: int = _libc.syscall(_NUMBER[os.uname().machine], attributes, -1, cpu, -1, FLAG_FD_CLOEXEC)
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        fcntl.ioctl(event, IOC_SET_BPF, program)
        fcntl.ioctl(event, IOC_ENABLE, 0)
    except BaseException:
        os.close(event)
        raise
    return event
