"""The workloads in workloads/*.c: how to build, run and step them, and what they note."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.live.running import running
from tests.live.shmem import RegionId

SOURCES = Path(__file__).parent / "workloads"
PATIENCE_SECONDS = 120.0  # in an emulated guest, on CPUs that have other work


def build(directory: Path) -> Path:
    program = directory / "workload"
    flags = [f"-DPAGE={mmap.PAGESIZE}UL", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    # before glibc 2.34, shm_open is in librt
    subprocess.run(["cc", *flags, "-o", program, *sorted(SOURCES.glob("*.c")), "-lrt"], check=True)
    return program


class Held(NamedTuple):
    """What the kernel told the workload of one of its regions."""

    id: RegionId
    pages: int
    """By st_blocks."""
    data_pages: int
    """By SEEK_DATA: without those that are only reserved, by fallocate."""


class Notes(NamedTuple):
    """What a workload noted, up to now."""

    parts: dict[int, str]
    """The part each process plays, by tgid. One that turns into another program by exec keeps its part."""
    regions: dict[str, Held]
    """As last noted."""
    steps: list[str]
    pages: dict[str, int]
    """What a part was found to have made, where that cannot be foretold."""
    absent: str = ""
    """What the kernel lacks that the workload is about; it did nothing then."""

    @classmethod
    def read(cls, path: Path) -> Notes:
        notes = cls({}, {}, [], {})
        if not path.exists():
            return notes
        for line in path.read_text().splitlines():
            what, name, *values = line.split()
            if what == "process":
                notes.parts.setdefault(int(values[0]), name)
            elif what == "region":
                dev, ino, generation, pages, data_pages = values
                notes.regions[name] = Held(RegionId(dev, int(ino), int(generation)), int(pages), int(data_pages))
            elif what == "pages":
                notes.pages[name] = int(values[0])
            elif what == "absent":
                return notes._replace(absent=" ".join([name, *values]))
            else:
                notes.steps.append(name)
        return notes


class Stepped:
    """A running workload that waits at each of its steps."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.path = path
        self.tgid = process.pid

    def wait_for(self, step: str) -> Notes:
        """Its notes, once it has come to the step."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while step not in (notes := Notes.read(self.path)).steps:
            assert self.process.poll() is None, f"the workload ended before it came to {step}"
            assert time.monotonic() < deadline, f"the workload did not come to {step}"
            time.sleep(0.002)
        return notes

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def finish(self) -> None:
        self.process.communicate(timeout=PATIENCE_SECONDS)
        assert self.process.returncode == 0


@contextmanager
def stepped(program: Path, name: str, path: Path, **env: str) -> Iterator[Stepped]:
    with running([program, name, path], stdin=subprocess.PIPE, env={**os.environ, **env}) as process:
        yield Stepped(process, path)
