"""Perf events to attach BPF programs to, made by perf_event_open(2). They leave no trace in any file system.

bcc can create events in tracefs instead. Those outlive a process that is killed, and removing one needs tracefs
mounted.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from tracer.kernel import bpf_syscall

_NUMBER = {"x86_64": 298, "aarch64": 241, "riscv64": 241}  # of the system call
TYPE_TRACEPOINT = 2
AT_RETURN = 1  # bit of config, as in format/retprobe of the kprobe and uprobe PMUs
SAMPLE_PERIOD = WAKEUP_EVENTS = 1
FLAG_FD_CLOEXEC = 8
IOC_ENABLE, IOC_SET_BPF = 0x2400, 0x40042408
ATTRIBUTES = struct.Struct("=IIQQQQQIIQQ")  # struct perf_event_attr up to config2
PMUS = Path("/sys/bus/event_source/devices")  # PMUs whose type number is not fixed

_libc = ctypes.CDLL(None, use_errno=True)


def tracepoint(program: int, number: int) -> int:
    """Attach a program to a tracepoint, given by its id in tracefs, until the returned descriptor is closed.

    Raises OSError, like all functions here.
    """
    return _hang(program, TYPE_TRACEPOINT, number)


def kprobe(program: int, function: str, at_return: bool) -> int:
    """Attach a program to the entry or the return of a kernel function; likewise."""
    return _hang(program, _type("kprobe"), AT_RETURN if at_return else 0, function.encode())


def uprobe(program: int, path: Path, offset: int) -> int:
    """Attach a program to the instruction at an offset in a file, for all processes that run it; likewise."""
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
    # The program runs on all CPUs, but the event needs one. Those in this process's own affinity mask are online.
    cpu = min(os.sched_getaffinity(0))
    event: int = _libc.syscall(_NUMBER[os.uname().machine], attributes, -1, cpu, -1, FLAG_FD_CLOEXEC)
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        link = _attach(program, event)
        fcntl.ioctl(event, IOC_ENABLE, 0)
    except BaseException:
        os.close(event)
        raise
    if link is None:
        return event
    os.close(event)
    return link


def _attach(program: int, event: int) -> int | None:
    """A link, which can be pinned. None: the program is attached to the event itself."""
    try:
        return bpf_syscall.link(program, event)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Linux kernel commit b89fbfbb854c ("bpf: Implement minimal BPF perf link")
            raise
    fcntl.ioctl(event, IOC_SET_BPF, program)
    return None
