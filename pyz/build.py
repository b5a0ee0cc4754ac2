"""Makes shmtrace.pyz: all of shmtrace in one file, with the probes compiled for kernels that are known beforehand.

python3 -m pyz.build [KERNEL...]     for the running kernel, and for these of tests/kernels; all of x86-64 by default

A host of such a kernel needs Python 3.9 and nothing else. A kernel that is not running is booted, to ask its layout.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
import zipapp
from collections.abc import Sequence
from pathlib import Path

import click

from tests.kernels.commands import NoResultError
from tests.kernels.fetch import AMD64, SOURCES
from tests.kernels.layouts import variants_of
from tests.kernels.matrix import Subject, unpacked
from tests.kernels.userlands import lean
from tracer.errors import ShmtraceError
from tracer.kernel import host
from tracer.kernel.bytecode import compiled
from tracer.kernel.cache import COMPILED, Cache, pack
from tracer.prepare import Variant, compile_all, of_kernel

CHECKOUT = Path(__file__).parents[1]
ARCHIVE = CHECKOUT / "shmtrace.pyz"
MAIN = "from tracer.__main__ import main\n\nmain()\n"
PYTHON = "/usr/bin/env python3"


def assemble(wanted: Sequence[Variant], cache: Cache, directory: Path) -> None:
    """What the archive is made of; click is that of the tests, which is held to the last for Python 3.9."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(CHECKOUT / "tracer", directory / "tracer", ignore=ignored)
    shutil.copytree(CHECKOUT / "bpf", directory / "tracer" / "bpf", ignore=ignored)
    (directory / "tracer" / COMPILED).mkdir()
    for key, variant in {variant.wanted.key(): variant for variant in wanted}.items():
        content = pack(key, compiled(variant.wanted, cache).dump())
        (directory / "tracer" / COMPILED / key).write_bytes(content)
    shutil.copytree(Path(click.__file__).parent, directory / "click", ignore=ignored)
    (directory / "__main__.py").write_text(MAIN)


def write(wanted: Sequence[Variant], cache: Cache, archive: Path) -> None:
    """The archive, of what has been compiled."""
    with tempfile.TemporaryDirectory(prefix="shmtrace-pyz-") as scratch:
        assemble(wanted, cache, Path(scratch, "pyz"))
        time_s = int(os.environ.get("SOURCE_DATE_EPOCH", "0")) or int(time.time())  # reproducible-builds.org
        for path in Path(scratch, "pyz").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (time_s, time_s))
        zipapp.create_archive(Path(scratch, "pyz"), archive, interpreter=PYTHON, compressed=True)


async def asked(name: str) -> list[Variant]:
    """Of a kernel that is booted, what it would load. Raises NoResultError."""
    kernel = await unpacked(Subject(name))
    return await variants_of(kernel, await lean(kernel.architecture))


def main(names: Sequence[str]) -> None:
    """Raises NoResultError, ShmtraceError."""
    cache = Cache()
    wanted = of_kernel(cache)
    for name in names:
        wanted += asyncio.run(asked(name))
        print(f"booted {name}", flush=True)
    for number, variant in enumerate(compile_all(wanted, cache), 1):
        print(f"\r{number}/{len(wanted)} {variant.title:<60}", end="", flush=True)
    write(wanted, cache, ARCHIVE)
    print(f"\n{ARCHIVE}: {ARCHIVE.stat().st_size >> 10} KiB, for {', '.join([host.release(), *names])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="./bootstrap pyz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", default=list(AMD64), help=f"of {', '.join(SOURCES)}")
    kernels = parser.parse_args().kernels
    if unknown := set(kernels) - set(SOURCES):
        parser.error(f"nothing is named {', '.join(sorted(unknown))}; there are {', '.join(SOURCES)}")
    try:
        main(kernels)
    except (NoResultError, ShmtraceError) as error:
        sys.exit(f"pyz: {error}")
