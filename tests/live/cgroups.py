"""Cgroups with an account of their memory, of v1 or v2."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.shmem import PAGE_BYTES
from tests.live.workload import PATIENCE_SECONDS


class Group(NamedTuple):
    """A cgroup with an account of its memory."""

    directory: Path
    path: str
    """as /proc/PID/cgroup has it"""

    def stat_bytes(self, name: str) -> int:
        found = re.search(rf"^{name} (\d+)$", (self.directory / "memory.stat").read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    def tgids(self) -> list[int]:
        return [int(line) for line in (self.directory / "cgroup.procs").read_text().split()]


@contextmanager
def groups(*names: str) -> Iterator[list[Group]]:
    """New ones, under this process's own in v1; in v2, where one with processes in it can have none, under the root."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    v1 = next(
        (Path(place) for _, place, kind, options, *_ in mounts if kind == "cgroup" and "memory" in options.split(",")),
        None,
    )
    v2 = next((Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"), None)
    with ExitStack() as stack:
        if v1:
            root, above = v1, next(path for names, path in own.items() if "memory" in names.split(","))
        elif v2 and "memory" in (v2 / "cgroup.controllers").read_text():
            root, above = v2, "/"
            enabled = v2 / "cgroup.subtree_control"
            if "memory" not in enabled.read_text():
                with suppress(OSError):
                    enabled.write_text("+memory")
                    stack.callback(enabled.write_text, "-memory")
        else:
            pytest.skip("no cgroup has the memory controller: neither v1's is mounted nor has v2 one")
        found = []
        for name in names:
            path = f"{above.rstrip('/')}/{name}"
            directory = root / path.lstrip("/")
            try:
                directory.mkdir()
            except OSError as error:
                pytest.skip(f"no cgroup can be made in {directory.parent}: {error.strerror}")
            stack.callback(remove, directory)
            if not (directory / "memory.stat").exists():
                pytest.skip(f"no memory controller in {directory.parent}")
            if any(inner.startswith(f"{name}/") for inner in names) and not v1:
                (directory / "cgroup.subtree_control").write_text("+memory")
            found.append(Group(directory, path))
        yield found


def remove(directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (directory / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    directory.rmdir()


def comes_to(group: Group, name: str, pages: int, within_pages: int = 0) -> None:
    """The kernel adds up what each CPU has every two seconds."""
    deadline = time.monotonic() + 10
    while abs(group.stat_bytes(name) - pages * PAGE_BYTES) > within_pages * PAGE_BYTES and time.monotonic() < deadline:
        time.sleep(0.05)
    assert abs(group.stat_bytes(name) - pages * PAGE_BYTES) <= within_pages * PAGE_BYTES


def limit(group: Group, limit_bytes: int) -> None:
    """What it may have. Nothing of it is swapped out."""
    limits = "memory.max", "memory.limit_in_bytes"
    next(path for name in limits if (path := group.directory / name).exists()).write_text(str(limit_bytes))
    for name in ("memory.swap.max", "memory.swappiness"):
        if (group.directory / name).exists():
            (group.directory / name).write_text("0")
