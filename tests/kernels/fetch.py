"""Debian's own cloud kernels, from its archive into a cache. Nothing is installed.

apt verifies what it downloads, down from the archive's signature. Its lists are its own and temporary: neither the
host's sources nor what the host has installed play a part.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from tests.kernels.commands import NoResultError, run

CACHE = Path(os.environ.get("SHMTRACE_KERNELS", "/var/cache/shmtrace/kernels"))
ARCHIVE = "http://deb.debian.org"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Of each kernel series, where in the archive it is.
SUITES = {
    "5.10": "debian bullseye",
    "6.1": "debian-security bookworm-security",
    "6.12": "debian trixie",
    "7.2": "debian sid",
}
# A mirror that is being updated has lists that do not match its files, for a while: apt takes that for an answer.
ATTEMPTS, PAUSE_SECONDS = 3, 20.0
CLOUD_KERNEL = re.compile(r"linux-image-((\d+\.\d+)[^-]*(?:-\d[^-]*)?)-cloud-amd64")


def version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def pick_packages(names: Collection[str], series: str) -> list[str]:
    """The packages of the newest kernel of a series; none if there is none.

    Since 7.x linux-image is empty: the files are in linux-binary and linux-modules.
    """
    kernels = (found for name in names if (found := CLOUD_KERNEL.fullmatch(name)))
    newest = max((found[1] for found in kernels if found[2] == series), key=version, default=None)
    parts = [f"linux-{part}-{newest}-cloud-amd64" for part in ("image", "binary", "modules")]
    return [name for name in parts if name in names]


def pick_series(names: Collection[str]) -> list[str]:
    """All there are, oldest first."""
    return sorted({found[2] for name in names if (found := CLOUD_KERNEL.fullmatch(name))}, key=version)


async def fetch(series: str) -> Path:
    """The directory a kernel's packages are unpacked in: of the suite's newest series where it has that one no more.

    Raises NoResultError.
    """
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(NoResultError):
            return await _fetch(series)
        await asyncio.sleep(PAUSE_SECONDS)
    return await _fetch(series)


async def _fetch(series: str) -> Path:
    if (CACHE / series).exists():
        return CACHE / series
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetch-") as name:
        scratch = Path(name)
        for folder in ("lists/partial", "cache/archives/partial", "tree"):
            (scratch / folder).mkdir(parents=True)
        source = scratch / "sources.list"
        source.write_text(f"deb [arch=amd64 signed-by={KEYRING}] {ARCHIVE}/{SUITES[series]} main\n")
        options = ["-qq"]
        for option in (
            f"Dir::Etc::SourceList={source}",
            "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State::Lists={scratch}/lists",
            "Dir::State::status=/dev/null",
            f"Dir::Cache={scratch}/cache",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "APT::Sandbox::User=root",
            "APT::Update::Error-Mode=any",  # else lists that could not be had are a warning
        ):
            options += ["-o", option]
        await run("apt-get", *options, "update")
        names = (await run("apt-cache", *options, "pkgnames", "linux-")).split()
        there = pick_series(names)
        if not there:
            raise NoResultError(f"Debian's {SUITES[series]} has no cloud kernel: see SUITES of tests/kernels/fetch.py")
        picked = series if series in there else there[-1]
        unpacked = CACHE / picked
        if unpacked.exists():
            return unpacked
        await run("apt-get", *options, "download", *pick_packages(names, picked), cwd=scratch)
        for package in scratch.glob("*.deb"):
            await run("dpkg-deb", "-x", str(package), str(scratch / "tree"))
        (scratch / "tree").rename(unpacked)  # at once: whatever is there is complete
    return unpacked
