"""The live tests under Debian's kernels, each in a guest.

    python -m tests.kernels [KERNEL...]             with the host's Python, bcc and compiler; oldest and newest are
                                                    names too
    python -m tests.kernels --pressure [KERNEL...]  only a million additions under memory pressure: minutes each
    python -m tests.kernels --servers [KERNEL...]   only php-fpm, PostgreSQL, labels and stacks: half an hour each
    python -m tests.kernels --bench [KERNEL...]     only what tracing costs there, tests/bench: ten minutes each
    python -m tests.kernels --pyz [KERNEL...]       only the workloads, by the shmtrace.pyz that `./bootstrap pyz` has
                                                    made, where there is Python and nothing else: minutes each
    python -m tests.kernels --deb [RELEASE...]      only the Debian package of the last commit, installed in a fresh
                                                    Debian 12 and 13 and used there: a quarter of an hour each
    python -m tests.kernels --smoke [KERNEL...]     only ten workloads, in the exact tier: minutes each
    python -m tests.kernels --preempt [NAME...]     only the exact tier, under each preemption model, as in 6.12-full
                                                    and 6.12-rt-amd64
    python -m tests.kernels --arm64 [KERNEL...]     under those of arm64, from its Debian 12; with the others, too
    python -m tests.kernels --distros [RELEASE...]  with those of the Debian release the kernel belongs to; with
                                                    --pressure and --servers, too

A KERNEL with a slash is the directory that one of your own is unpacked in: lib/modules/RELEASE, boot/vmlinuz-RELEASE.

As root, on Debian 12. Kernels and releases are fetched once, into /var/cache/shmtrace/kernels or SHMTRACE_KERNELS.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable

from tests.kernels.matrix import (
    ARCHIVE,
    ARM64_KERNELS,
    DISTRO_TESTS,
    DISTROS,
    IN_ARCHIVE,
    KERNELS,
    PREEMPT,
    PREEMPTED,
    PRESSURE,
    SERVERS,
    SMOKE,
    TESTS,
    Subject,
    examine_all,
    measure_all,
)
from tests.kernels.package import PACKAGED, examine_package


async def until_terminated(work: Awaitable[bool]) -> bool:
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # guests end with it
    return await work


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KERNELS)}; all by default")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--pressure", action="store_true", help="only the test under memory pressure")
    what.add_argument("--bench", action="store_true", help="only what tracing costs, no test")
    what.add_argument("--servers", action="store_true", help="only php-fpm, PostgreSQL, labels and stacks")
    what.add_argument("--smoke", action="store_true", help="only ten workloads, in the exact tier")
    what.add_argument("--pyz", action="store_true", help="only the workloads, by shmtrace.pyz, without bcc")
    what.add_argument("--deb", action="store_true", help=f"only the Debian package; names are of {', '.join(PACKAGED)}")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--distros", action="store_true", help=f"names are of {', '.join(DISTROS)}")
    where.add_argument("--arm64", action="store_true", help=f"names are of {', '.join(ARM64_KERNELS)}")
    where.add_argument("--preempt", action="store_true", help=f"names are of {', '.join(PREEMPT)}; only the exact tier")
    arguments = parser.parse_args()
    sets = {"deb": PACKAGED, "distros": DISTROS, "arm64": ARM64_KERNELS, "preempt": PREEMPT}
    there_are = next((subjects for name, subjects in sets.items() if getattr(arguments, name)), KERNELS)
    oldest, *_, newest = there_are.values()
    architecture = "arm64" if arguments.arm64 else "amd64"
    own = {name: Subject(name, own=architecture) for name in arguments.names if "/" in name}
    named = {**there_are, "oldest": oldest, "newest": newest, **own}
    if own and (arguments.distros or arguments.preempt):
        parser.error("--distros and --preempt are of Debian's kernels")
    if (arguments.bench or arguments.pyz) and arguments.distros:
        parser.error("--bench and --pyz are of kernels")
    if arguments.deb and (arguments.distros or arguments.arm64 or arguments.preempt):
        parser.error("--deb has releases of its own, of x86-64")
    if arguments.pyz and not ARCHIVE.exists():
        parser.error(f"there is no {ARCHIVE}: make it with `./bootstrap pyz`")
    if unknown := set(arguments.names) - set(named):
        parser.error(f"nothing is named {', '.join(sorted(unknown))}; there are {', '.join(named)}")
    subjects = list(dict.fromkeys(named[name] for name in arguments.names or there_are))
    ones = {"pressure": PRESSURE, "servers": SERVERS, "smoke": SMOKE, "pyz": IN_ARCHIVE}
    usual = DISTRO_TESTS if arguments.distros else PREEMPTED if arguments.preempt else TESTS
    tests = next((tests for name, tests in ones.items() if getattr(arguments, name)), usual)
    try:
        if arguments.deb:
            work = examine_package(subjects)
        else:
            work = measure_all(subjects) if arguments.bench else examine_all(subjects, tests)
        well = asyncio.run(until_terminated(work))
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
