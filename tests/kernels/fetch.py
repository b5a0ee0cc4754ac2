"""Debian's own cloud kernels, from its archive into a cache. Nothing is installed.

apt verifies what it downloads, down from the archive's signature. Its lists are its own and temporary: of the host's
sources only the mirrors play a part, and nothing of what the host has installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TypeVar

from tests.kernels.commands import NoResultError, run

CACHE = Path(os.environ.get("SHMTRACE_KERNELS", "/var/cache/shmtrace/kernels"))
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Of each kernel series, oldest first, the suite it is in.
SUITES = {"5.10": "bullseye", "6.1": "bookworm-security", "6.12": "trixie", "7.2": "sid"}
# A mirror that is being updated has lists that do not match its files, for a while: apt takes that for an answer.
ATTEMPTS, PAUSE_SECONDS = 3, 20.0
# As apt prints what it would fetch of a source: 'http://deb.debian.org/debian/dists/bookworm/InRelease' …
RELEASE_FILE = re.compile(r"'(?!cdrom:)(\S+?)/dists/(\S+)/InRelease'")
SECURITY = ("-security", "/updates")
CLOUD_KERNEL = re.compile(r"linux-image-((\d+\.\d+)[^-]*(?:-\d[^-]*)?)-cloud-amd64")

Taken = TypeVar("Taken")


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


def pick_mirrors(uris: str, suite: str) -> list[str]:
    """Those that can have a suite, of the sources whose URIs apt has printed: Debian's security fixes are apart."""
    sources = (found.groups() for found in RELEASE_FILE.finditer(uris))
    return list(dict.fromkeys(uri for uri, of in sources if of.endswith(SECURITY) == suite.endswith(SECURITY)))


async def from_mirror(suite: str, take: Callable[[str], Awaitable[Taken]]) -> Taken:
    """What is taken from the first mirror of the host's sources that has the suite, with Debian's signature.

    Raises NoResultError.
    """
    mirrors = pick_mirrors(await run("apt-get", "update", "--print-uris"), suite)
    if not mirrors:
        raise NoResultError(f"apt knows no mirror that could have Debian's {suite}: see sources.list(5)")
    *tries, last = mirrors * ATTEMPTS
    for mirror in tries:
        with contextlib.suppress(NoResultError):
            return await take(mirror)
        await asyncio.sleep(PAUSE_SECONDS)
    return await take(last)


async def fetch(series: str) -> Path:
    """The directory a kernel's packages are unpacked in: of the suite's newest series where it has that one no more.

    Raises NoResultError.
    """
    if (CACHE / series).exists():
        return CACHE / series
    return await from_mirror(SUITES[series], lambda mirror: _fetch(series, mirror))


async def _fetch(series: str, mirror: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetch-") as name:
        scratch = Path(name)
        for folder in ("lists/partial", "cache/archives/partial", "tree"):
            (scratch / folder).mkdir(parents=True)
        source = scratch / "sources.list"
        source.write_text(f"deb [arch=amd64 signed-by={KEYRING}] {mirror} {SUITES[series]} main\n")
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
