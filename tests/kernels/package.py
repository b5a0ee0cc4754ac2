"""The Debian package of the last commit, installed in fresh Debian releases and used there, each in its guest.

Twice: where there is nothing but what the package depends on; and where systemd is the first process, with autopkgtest.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyz import release
from tests.kernels.commands import NoResultError, run
from tests.kernels.fetch import CACHE
from tests.kernels.matrix import DISTROS, Guest
from tests.kernels.results import NO_TIER, Case, failed
from tests.kernels.userlands import Userland, minimal, run_inside
from tracer.kernel.cache import CACHE as COMPILED

PACKAGED = {name: DISTROS[name] for name in ("12", "13")}
PLACE = Path("/opt/package")
"""In a release: what build() has made."""
STEPS = Path(__file__).with_name("installed.py")
ALONE = ["doctor", "demo"]
UNDER_SYSTEMD = ["autopkgtest", "service", "upgrade", "purge"]
INIT = "/sbin/init"
INIT_PACKAGES = ["systemd-sysv", "autopkgtest", "dpkg-dev"]  # the last for autopkgtest, which cannot fetch it there
APT = ["apt-get", "-qy", "--no-install-recommends", "-o", "Acquire::Retries=3"]


def build(directory: Path) -> Path:
    """The package, in a new directory with its sources, a later version of it in newer/, and the steps to try.

    Raises SystemExit.
    """
    directory.mkdir()
    time_s = release.sources(directory / "source")
    package = release.package(directory / "source", directory, time_s)
    (directory / "newer").mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        dpkg_deb = partial(release.run, "dpkg-deb", cwd=directory, environment={})
        dpkg_deb("--raw-extract", package, scratch)
        control = Path(scratch, "DEBIAN/control")
        control.write_text(re.sub("(?m)^Version: .*", r"\g<0>+1", control.read_text()))
        dpkg_deb("--root-owner-group", "--build", scratch, directory / "newer")
    shutil.copy(STEPS, directory)
    return package


async def install(root: Path, packages: Sequence[str]) -> None:
    """By apt, and nothing that is only recommended. Raises NoResultError."""
    for words in (["update"], ["install", *packages]):
        await run_inside(root, "amd64", *APT, *words, DEBIAN_FRONTEND="noninteractive")


async def use(guest: Guest, userland: Userland, steps: Sequence[str], init: str) -> None:
    """Adds a case for each step. Raises NoResultError."""
    record = guest.logs.output.with_name("record.json")
    record.unlink(missing_ok=True)  # of the boot before
    command = [userland.python, f"{PLACE}/{STEPS.name}", str(record), *steps]
    status = await guest.run(", ".join(steps), command, userland, by=init)
    cases = cases_of(record.read_text() if record.exists() else "")
    if status or [case.name for case in cases] != [*steps]:
        raise NoResultError(f"{STEPS.name} ended with {status}, after {len(cases)} of {len(steps)} steps")
    guest.cases.extend(cases)


def cases_of(record: str) -> list[Case]:
    """What installed.py has written."""
    steps = map(json.loads, record.splitlines())
    return [
        Case(name, NO_TIER, "failed" if wrong else "passed", wrong or "", None, seconds)
        for name, wrong, seconds in steps
    ]


async def try_package(guest: Guest) -> None:
    """Raises NoResultError; SystemExit where there is no package."""
    fresh, compiled = await minimal(guest.subject.debian or ""), guest.logs.output.with_name("compiled")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".package-") as scratch:
        root = Path(scratch, "root")
        await run("cp", "--archive", "--reflink=auto", str(fresh), str(root))
        package = await asyncio.to_thread(build, root / PLACE.relative_to("/"))
        # Whatever else is installed for systemd is not there yet when the package has to do without it.
        for packages, steps, init in (
            ([f"{PLACE}/{package.name}"], ALONE, ""),
            (INIT_PACKAGES, UNDER_SYSTEMD, INIT),
        ):
            await install(root, packages)
            if compiled.exists():  # by the boot before: it takes minutes
                shutil.copytree(compiled, root / COMPILED.relative_to("/"), dirs_exist_ok=True)
            await use(guest, Userland(root, "/usr/bin/python3"), steps, init)
            if failed(guest.cases):
                break  # and the output is of what has failed
