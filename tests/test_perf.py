"""Perf events: what does not come to be leaves no descriptor open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tracer.kernel import host, perf

NO_PROGRAM = 1 << 20  # no descriptor is as high


def some_tracepoint(program: int) -> int:
    with host.tracefs() as directory:
        return perf.tracepoint(program, host.tracepoint_id(directory, "syscalls:sys_exit_mmap"))


def opened() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.bpf
@pytest.mark.parametrize(
    ("hang", "reason"),
    [
        (some_tracepoint, "Bad file descriptor"),
        (lambda program: perf.uprobe(program, Path("/proc/self/exe"), 0), "Bad file descriptor"),
        (lambda program: perf.uprobe(program, Path("/nonexistent"), 0), "No such file"),
        (lambda program: perf.kprobe(program, "nobody_has_such_a_function", at_return=True), "No such file"),
    ],
)
def test_what_fails_leaves_nothing_open(hang: Callable[[int], int], reason: str) -> None:
    before = opened()
    with pytest.raises(OSError, match=reason):
        hang(NO_PROGRAM)
    assert opened() == before


@pytest.mark.bpf
def test_there_is_no_such_tracepoint() -> None:
    with host.tracefs() as directory, pytest.raises(FileNotFoundError):
        host.tracepoint_id(directory, "syscalls:sys_exit_frob")
