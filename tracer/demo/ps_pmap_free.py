"""Run ps, pmap, free and stat for the demo. A tool that is not installed is replaced by the file that it reads.

Their figures are shown beside shmtrace's own and never mixed with them. Only this module reads smaps, which is slow on
big processes, and only for the demo's own processes.
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

# What is read if the tool is not installed.
STAND_INS = {
    "ps": "/proc/PID/statm",
    "pmap": "/proc/PID/smaps",
    "free": "/proc/meminfo",
    "stat": "statfs(2)",
}
PATIENCE_S = 10
ADDRESS_DIGITS = 16  # pmap pads its first column to this width


class Ps(NamedTuple):
    """One process, as ps reports it."""

    vsz_bytes: int
    rss_bytes: int


class Free(NamedTuple):
    """The whole host, as free reports it."""

    shared_bytes: int
    available_bytes: int | None
    """None: unknown, because free is not installed"""


def absent() -> list[str]:
    """The tools that are not installed."""
    return [tool for tool in STAND_INS if not shutil.which(tool)]


def ps(tgids: Sequence[int]) -> dict[int, Ps]:
    """VSZ and RSS of the processes that still exist, by tgid."""
    output = _run("ps", "-o", "pid=,vsz=,rss=", "-p", ",".join(map(str, tgids)))
    if output is not None:
        return parse_ps(output)
    return {tgid: found for tgid in tgids if (found := _statm(tgid))}


def parse_ps(output: str) -> dict[int, Ps]:
    """By tgid. ps prints KiB."""
    rows = (map(int, line.split()) for line in output.splitlines())
    return {tgid: Ps(vsz_kib << 10, rss_kib << 10) for tgid, vsz_kib, rss_kib in rows}


def pmap_rss_bytes(tgid: int, mapping: Mapping) -> int | None:
    """RSS of one mapping in bytes, from ``pmap -x``; None if it is gone."""
    output = _run("pmap", "-x", str(tgid))
    found = parse_pmap(output).get(mapping.start) if output else None
    return smaps(tgid, mapping).get("Rss") if found is None else found


def parse_pmap(output: str) -> dict[int, int]:
    """RSS in bytes by address; empty if pmap prints no such column (busybox)."""
    found: dict[int, int] = {}
    column = None
    for fields in map(str.split, output.splitlines()):
        if fields[:1] == ["Address"] and "RSS" in fields:
            column = fields.index("RSS")
        elif column and len(fields[0]) == ADDRESS_DIGITS and fields[column].isdigit():
            found[int(fields[0], 16)] = int(fields[column]) << 10
    return found


def smaps(tgid: int, mapping: Mapping) -> dict[str, int]:
    """The fields of one mapping in smaps (Rss, Pss, …), in bytes; empty if it is gone."""
    try:
        text = Path(f"/proc/{tgid}/smaps").read_text(errors="backslashreplace")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return parse_smaps(text, f"{mapping.start:08x}-{mapping.end:08x}")


def parse_smaps(text: str, addresses: str) -> dict[str, int]:
    """The fields of the mapping with these addresses, as "7f00-7f80", in bytes by name."""
    found: dict[str, int] = {}
    inside = False
    for fields in map(str.split, text.splitlines()):
        if not fields[0].endswith(":"):  # the first line of a mapping
            inside = fields[0] == addresses
        elif inside and fields[-1] == "kB":
            found[fields[0][:-1]] = int(fields[1]) << 10
    return found


def free() -> Free:
    """Shared and available memory of the host, from ``free -m``."""
    output = _run("free", "-m")
    return parse_free(output) if output else Free(Proc().memory().shmem_bytes, None)


def parse_free(output: str) -> Free:
    """free prints MiB."""
    header, row = (line.split() for line in output.splitlines()[:2])
    mib = {name: int(value) for name, value in zip(header, row[1:])}  # the row begins with a label
    return Free(mib["shared"] << 20, mib["available"] << 20)


def file_system(path: Path) -> str:
    """Type of the file system that a file is on, from ``stat -f``; its magic number if stat is not installed."""
    output = _run("stat", "-f", "-c", "%T", str(path))
    if output:
        return output.strip()
    magic = shmem.magic(path)
    return "tmpfs" if magic == shmem.TMPFS_MAGIC else hex(magic or 0)


def maps_line(tgid: int, mapping: Mapping) -> str:
    """The mapping's line in /proc/PID/maps, without its padding; empty if it is gone."""
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
    """The command's output; None if it is not installed, fails, or does not know these options."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
