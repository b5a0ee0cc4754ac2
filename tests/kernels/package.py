"""The Debian package of the last commit, installed in fresh Debian releases and used there, each in its guest.

Twice: where there is nothing but what the package depends on; and where systemd is the first process, with autopkgtest.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyz import release
from tests.kernels.commands import NoResultError, run
from tests.kernels.fetch import CACHE
from tests.kernels.guest import Logs, Share, run_in_guest
from tests.kernels.initramfs import Kernel
from tests.kernels.matrix import DISTROS, Subject, conclude, in_turn, say, stand_in, unpacked
from tests.kernels.results import NO_TIER, Case, Result, failed
from tests.kernels.userlands import minimal, run_inside
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
TIMEOUT_SECONDS = 2400.0  # emulated, LLVM takes a minute and more for each variant


def build(directory: Path) -> Path:
    """The package, in a directory with its sources, a later version of it in newer/, and the steps to try.

    Raises SystemExit.
    """
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


async def use(kernel: Kernel, root: Path, steps: Sequence[str], init: str, logs: Logs, record: Path) -> list[Case]:
    """A case for each step. Raises NoResultError."""
    command = ["/usr/bin/python3", f"{PLACE}/{STEPS.name}", str(record), *steps]
    shares = [Share(record.parent, writable=True)]
    record.unlink(missing_ok=True)  # of the boot before
    status = await run_in_guest(kernel, command, PLACE, shares, logs, TIMEOUT_SECONDS, root, by=init)
    cases = cases_of(record.read_text() if record.exists() else "")
    if status or [case.name for case in cases] != [*steps]:
        raise NoResultError(f"{STEPS.name} ended with {status}, after {len(cases)} of {len(steps)} steps")
    return cases


def cases_of(record: str) -> list[Case]:
    """What installed.py has written."""
    steps = map(json.loads, record.splitlines())
    return [
        Case(name, NO_TIER, "failed" if wrong else "passed", wrong or "", None, seconds)
        for name, wrong, seconds in steps
    ]


async def examine(package: Path, subject: Subject, directory: Path) -> Result:
    """Says when it begins and how it ends. Whatever is wrong is in the result."""
    began = time.monotonic()
    logs = Logs(directory / "output", directory / "console")
    cases: list[Case] = []
    wrong: list[str] = []
    try:
        kernel = await unpacked(subject)
        subject, release_name = stand_in(subject, kernel), subject.debian or ""
        fresh = await minimal(release_name)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".package-") as scratch:
            root = Path(scratch, "root")
            await run("cp", "--archive", "--reflink=auto", str(fresh), str(root))
            shutil.copytree(package.parent, root / PLACE.relative_to("/"))
            # Whatever else is installed for systemd is not there yet when the package has to do without it.
            for packages, steps, init in (
                ([f"{PLACE}/{package.name}"], ALONE, ""),
                (INIT_PACKAGES, UNDER_SYSTEMD, INIT),
            ):
                await install(root, packages)
                if (directory / "compiled").exists():  # by the boot before: it takes minutes
                    shutil.copytree(directory / "compiled", root / COMPILED.relative_to("/"), dirs_exist_ok=True)
                say(subject, f"boots Linux {kernel.release} for {', '.join(steps)}; their output is {logs.output}")
                cases += await use(kernel, root, steps, init, logs, directory / "record.json")
                if failed(cases):
                    break  # and the output is of what has failed
    except NoResultError as error:
        wrong.append(str(error))
    return conclude(subject, cases, wrong, logs, began)


async def examine_package(subjects: Sequence[Subject]) -> bool:
    """Prints the table; whether all is well. Raises SystemExit where there is no package."""
    with tempfile.TemporaryDirectory(prefix="shmtrace-package-") as directory:
        package = build(Path(directory))
        results = await in_turn(subjects, partial(examine, package))
    return not any(result.failed for result in results)
