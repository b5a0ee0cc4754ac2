"""Finds what a tracer could leave behind in the kernel: programs and maps without an owner, a mounted tracefs."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import BPF_SYSCALL

NEXT_ID = {"prog_id": 11, "map_id": 12}  # BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID, by their names in fdinfo
PATIENCE_S = 10.0

Objects = set[tuple[str, int]]

libc = ctypes.CDLL(None, use_errno=True)


def loaded() -> Objects:
    """All programs and maps in the kernel."""
    found: Objects = set()
    for kind, command in NEXT_ID.items():
        attributes = ctypes.create_string_buffer(struct.pack("=III", 0, 0, 0), 128)
        while not libc.syscall(BPF_SYSCALL, command, attributes, len(attributes)):
            _, number, _ = struct.unpack_from("=III", attributes)
            found.add((kind, number))
            struct.pack_into("=III", attributes, 0, number, 0, 0)
    return found


def held(processes: str = "[0-9]*") -> Objects:
    """Those that any process has open, or only this PID."""
    found: Objects = set()
    for path in Path("/proc").glob(f"{processes}/fdinfo/*"):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for kind, _, number in (line.partition(":") for line in lines):
            if kind in NEXT_ID:
                found.add((kind, int(number)))
    return found


def mounted_tracefs() -> bool:
    return " tracefs " in Path("/proc/self/mounts").read_text()


@contextmanager
def nothing_remains() -> Iterator[None]:
    """Other tracers may run meanwhile: left behind is what is new and has no owner."""
    before, was_mounted = loaded(), mounted_tracefs()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while True:
        orphans = loaded() - before - held()  # in this order: what is loaded is already held
        mounted = mounted_tracefs() and not was_mounted
        if not orphans and not mounted:
            return
        assert time.monotonic() < deadline, f"left behind: {sorted(orphans)}{', tracefs mounted' * mounted}"
        time.sleep(0.1)


def children(tgid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{tgid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
            found += map(int, (task / "children").read_text().split())
    return found


def alive(tgid: int) -> bool:
    """Not even as a zombie."""
    try:
        os.kill(tgid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{tgid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
