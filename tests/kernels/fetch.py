"""Debian's own kernels, from its archive into a cache. Nothing is installed.

apt verifies what it downloads, down from the archive's signature. Its lists are its own and temporary: of the host's
sources only the mirrors play a part, and nothing of what the host has installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.kernels.commands import NoResultError, run

CACHE = Path(os.environ.get("SHMTRACE_KERNELS", "/var/cache/shmtrace/kernels"))
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
HOST_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine())
"""Debian's name of it."""


class Source(NamedTuple):
    """Where Debian has a kernel."""

    suite: str
    series: str
    architecture: str = "amd64"
    flavour: str = "cloud-amd64"

    def name(self, series: str) -> str:
        """Of the kernel of a series, from here."""
        return series if self.flavour == "cloud-amd64" else f"{series}-{self.flavour.removeprefix('cloud-')}"


AMD64 = {
    "5.10": Source("bullseye", "5.10"),
    "6.1": Source("bookworm-security", "6.1"),
    "6.12": Source("trixie", "6.12"),
    "7.2": Source("sid", "7.2"),
}
ARM64 = {
    "6.1-arm64": Source("bookworm-security", "6.1", "arm64", "cloud-arm64"),
    "6.12-arm64": Source("trixie", "6.12", "arm64", "cloud-arm64"),
    "6.12-arm64-16k": Source("trixie", "6.12", "arm64", "arm64-16k"),  # pages of 16 KiB
    "7.2-arm64": Source("sid", "7.2", "arm64", "cloud-arm64"),
}
RT = {
    "6.1-rt-amd64": Source("bookworm-security", "6.1", flavour="rt-amd64"),
    "6.12-rt-amd64": Source("trixie", "6.12", flavour="rt-amd64"),
}
"""Of PREEMPT_RT."""
SOURCES = {**AMD64, **RT, **ARM64}
"""Of each kernel, oldest first of each kind."""
# A mirror that is being updated has lists that do not match its files, for a while: apt takes that for an answer.
ATTEMPTS, PAUSE_SECONDS = 3, 20.0
# As apt prints what it would fetch of a source: 'http://deb.debian.org/debian/dists/bookworm/InRelease' …
RELEASE_FILE = re.compile(r"'(?!cdrom:)(\S+?)/dists/(\S+)/InRelease'")
SECURITY = ("-security", "/updates")
KERNEL = re.compile(r"linux-image-((\d+\.\d+)[^-]*(?:-\d[^-]*)?)-([a-z].*)")

Taken = TypeVar("Taken")


def version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def kernels(names: Collection[str], flavour: str) -> Iterator[tuple[str, str]]:
    """Version and series of each kernel of a flavour that some packages are of."""
    found = (match.groups() for match in map(KERNEL.fullmatch, names) if match)
    return ((number, series) for number, series, of in found if of == flavour)


def pick_packages(names: Collection[str], series: str, flavour: str) -> list[str]:
    """The packages of the newest kernel of a series; none if there is none.

    Since 7.x linux-image is empty: the files are in linux-binary and linux-modules.
    """
    newest = max((found for found, of in kernels(names, flavour) if of == series), key=version, default=None)
    parts = [f"linux-{part}-{newest}-{flavour}" for part in ("image", "binary", "modules")]
    return [name for name in parts if name in names]


def pick_series(names: Collection[str], flavour: str) -> list[str]:
    """All there are, oldest first."""
    return sorted({series for _, series in kernels(names, flavour)}, key=version)


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


async def fetch(source: Source) -> Path:
    """The directory a kernel's packages are unpacked in: of the suite's newest series where it has that one no more.

    Raises NoResultError.
    """
    unpacked = CACHE / source.name(source.series)
    return unpacked if unpacked.exists() else await from_mirror(source.suite, lambda mirror: _fetch(source, mirror))


async def _fetch(source: Source, mirror: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetch-") as name:
        scratch = Path(name)
        for folder in ("lists/partial", "cache/archives/partial", "tree"):
            (scratch / folder).mkdir(parents=True)
        listed = scratch / "sources.list"
        listed.write_text(f"deb [arch={source.architecture} signed-by={KEYRING}] {mirror} {source.suite} main\n")
        options = ["-qq"]
        for option in (
            f"Dir::Etc::SourceList={listed}",
            "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State::Lists={scratch}/lists",
            "Dir::State::status=/dev/null",
            f"Dir::Cache={scratch}/cache",
            "Acquire::Languages=none",
            f"APT::Architecture={source.architecture}",
            f"APT::Architectures={source.architecture}",
            "Acquire::Retries=3",
            "APT::Sandbox::User=root",
            "APT::Update::Error-Mode=any",  # else lists that could not be had are a warning
        ):
            options += ["-o", option]
        await run("apt-get", *options, "update")
        names = (await run("apt-cache", *options, "pkgnames", "linux-")).split()
        there = pick_series(names, source.flavour)
        if not there:
            raise NoResultError(
                f"Debian's {source.suite} has no kernel of flavour {source.flavour}: see tests/kernels/fetch.py"
            )
        picked = source.series if source.series in there else there[-1]
        unpacked = CACHE / source.name(picked)
        if unpacked.exists():
            return unpacked
        await run("apt-get", *options, "download", *pick_packages(names, picked, source.flavour), cwd=scratch)
        for package in scratch.glob("*.deb"):
            await run("dpkg-deb", "-x", str(package), str(scratch / "tree"))
        (scratch / "tree").rename(unpacked)  # at once: whatever is there is complete
    return unpacked
