"""What the usual tools say: ps, pmap, free and stat, run where they are installed, else read where they read.

They are shown beside shmtrace's own figures, and are no part of them. This is also where smaps is read, which is slow
on big processes; only the demo asks for it, of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tracer.proc import shmem
from tracer.proc.procfs import Mapping, Proc

# Each with what is read in its place.
STAND_INS = {
    "ps": "/proc/PID/statm",
    "pmap": "/proc/PID/smaps",
    "free": "/proc/meminfo",
    "stat": "statfs(2)",
}
PATIENCE_S = 10
ADDRESS_DIGITS = 16  # in pmap's first column, padded


class Ps(NamedTuple):
    """A line of ps."""

    vsz_bytes: int
    rss_bytes: int


class Free(NamedTuple):
    """Of the whole host, whoever's it is."""

    shared_bytes: int
    available_bytes: int | None


def absent() -> list[str]:
    """The tools that are not installed."""
    return [tool for tool in STAND_INS if not shutil.which(tool)]


def ps(tgids: Sequence[int]) -> dict[int, Ps]:
    """VSZ and RSS of each process that is there."""
    output = _run("ps", "-o", "pid=,vsz=,rss=", "-p", ",".join(map(str, tgids)))
    if output is not None:
        return parse_ps(output)
    return {tgid: found for tgid in tgids if (found := _statm(tgid))}


def parse_ps(output: str) -> dict[int, Ps]:
    rows = (map(int, line.split()) for line in output.splitlines())
    return {tgid: Ps(vsz_kib << 10, rss_kib << 10) for tgid, vsz_kib, rss_kib in rows}


def pmap_rss_bytes(tgid: int, mapping: Mapping) -> int | None:
    """RSS of one mapping, by ``pmap -x``; None if it is gone."""
    output = _run("pmap", "-x", str(tgid))
    found = parse_pmap(output).get(mapping.start) if output else None
    return smaps(tgid, mapping).get("Rss") if found is None else found


def parse_pmap(output: str) -> dict[int, int]:
    """RSS in bytes by address; nothing where there is no such column (busybox)."""
    found: dict[int, int] = {}
    column = None
    for fields in map(str.split, output.splitlines()):
        if fields[:1] == ["Address"] and "RSS" in fields:
            column = fields.index("RSS")
        elif column and len(fields[0]) == ADDRESS_DIGITS and fields[column].isdigit():
            found[int(fields[0], 16)] = int(fields[column]) << 10
    return found


def smaps(tgid: int, mapping: Mapping) -> dict[str, int]:
    """All that smaps says of one mapping, in bytes: Rss, Pss, …; nothing if it is gone."""
    try:
        text = Path(f"/proc/{tgid}/smaps").read_text(errors="backslashreplace")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return parse_smaps(text, f"{mapping.start:08x}-{mapping.end:08x}")


def parse_smaps(text: str, addresses: str) -> dict[str, int]:
    found: dict[str, int] = {}
    inside = False
    for fields in map(str.split, text.splitlines()):
        if not fields[0].endswith(":"):  # of a mapping, its line of maps
            inside = fields[0] == addresses
        elif inside and fields[-1] == "kB":
            found[fields[0][:-1]] = int(fields[1]) << 10
    return found


def free() -> Free:
    """``free -m``."""
    output = _run("free", "-m")
    return parse_free(output) if output else Free(Proc().memory().shmem_bytes, None)


def parse_free(output: str) -> Free:
    header, row = (line.split() for line in output.splitlines()[:2])
    mib = {name: int(value) for name, value in zip(header, row[1:])}  # the row has a label
    return Free(mib["shared"] << 20, mib["available"] << 20)


def file_system(path: Path) -> str:
    """Type of the file system that a file is on, by ``stat -f``."""
    output = _run("stat", "-f", "-c", "%T", str(path))
    if output:
        return output.strip()
    magic = shmem.magic(path)
    return "tmpfs" if magic == shmem.TMPFS_MAGIC else hex(magic or 0)


def maps_line(tgid: int, mapping: Mapping) -> str:
    """The mapping as /proc/PID/maps has it, but for the padding; empty if it is gone."""
    try:
        lines = Path(f"/proc/{tgid}/maps").read_text(errors="backslashreplace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next((" ".join(line.split()) for line in lines if line.startswith(f"{mapping.start:08x}-")), "")


def _statm(tgid: int) -> Ps | None:
    try:
        vsz_pages, rss_pages, *_ = map(int, Path(f"/proc/{tgid}/statm").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Ps(vsz_pages * shmem.PAGE_BYTES, rss_pages * shmem.PAGE_BYTES)


def _run(*command: str) -> str | None:
    """What it printed; None if it is not installed, or does not know these options."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
