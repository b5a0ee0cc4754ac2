"""The live tests under Debian's kernels, each in a guest.

    python -m tests.kernels [KERNEL...]             with the host's Python, bcc and compiler
    python -m tests.kernels --pressure [KERNEL...]  only a million additions under memory pressure: minutes each
    python -m tests.kernels --distros [RELEASE...]  with those of the Debian release the kernel belongs to

As root, on Debian 12. Kernels and releases are fetched once, into /var/cache/shmtrace/kernels or SHMTRACE_KERNELS.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from tests.kernels.matrix import DISTROS, KERNELS, PRESSURE, TESTS, Subject, examine_all


async def examine(subjects: list[Subject], tests: list[str]) -> bool:
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # guests end with it
    return await examine_all(subjects, tests)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KERNELS)}; all by default")
    parser.add_argument("--distros", action="store_true", help=f"names are of {', '.join(DISTROS)}")
    parser.add_argument("--pressure", action="store_true", help="only the test under memory pressure")
    arguments = parser.parse_args()
    there_are = DISTROS if arguments.distros else KERNELS
    if unknown := set(arguments.names) - set(there_are):
        parser.error(f"nothing is named {', '.join(sorted(unknown))}; there are {', '.join(there_are)}")
    tests = PRESSURE if arguments.pressure else TESTS
    try:
        well = asyncio.run(examine([there_are[name] for name in arguments.names or there_are], tests))
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
