"""The live tests under Debian's kernels, each in a guest; or only WHAT, or WHERE else.

    python -m tests.kernels [WHAT] [WHERE] [NAME...]

A NAME with a slash is the directory that a kernel of one's own is unpacked in: lib/modules/RELEASE,
boot/vmlinuz-RELEASE. oldest and newest are names too; all there are is what is tried by default.

As root, on Debian 12. Kernels and releases are fetched once, into /var/cache/shmtrace/kernels or SHMTRACE_KERNELS.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import NamedTuple

from tests.kernels import matrix
from tests.kernels.matrix import ARCHIVE, ARM64_KERNELS, DISTROS, KERNELS, PREEMPT, Attempt, Subject, measure, try_tests
from tests.kernels.package import PACKAGED, try_package
from tests.kernels.results import Result


class Where(NamedTuple):
    help: str
    subjects: Mapping[str, Subject]
    usual: Attempt
    own: str | None = None
    """The architecture of a kernel of one's own; None: there is none of these."""


USUAL = partial(try_tests, matrix.TESTS)
PLACES = {
    "": Where("with the host's Python, bcc and compiler", KERNELS, USUAL, "amd64"),
    "arm64": Where("of arm64, over packages of its Debian 12", ARM64_KERNELS, USUAL, "arm64"),
    "distros": Where("Debian releases, each with its own kernel", DISTROS, partial(try_tests, matrix.DISTRO_TESTS)),
    "preempt": Where("preemption models; only the exact tier", PREEMPT, partial(try_tests, matrix.PREEMPTED)),
    "deb": Where("fresh releases; only the Debian package, a quarter of an hour each", PACKAGED, try_package),
}
ONLY: dict[str, tuple[str, Attempt]] = {
    "smoke": ("ten workloads, in the exact tier: minutes each", partial(try_tests, matrix.SMOKE)),
    "pressure": ("a million pages under memory pressure: minutes each", partial(try_tests, matrix.PRESSURE)),
    "servers": (
        "php-fpm, PostgreSQL, labels, stacks: half an hour each",
        partial(try_tests, matrix.SERVERS, whole=True),
    ),
    "pyz": (
        "the workloads, by shmtrace.pyz where there is only Python",
        partial(try_tests, matrix.EXACT, in_archive=True),
    ),
    "bench": ("what tracing costs: ten minutes each", measure),
}


async def until_terminated(work: Awaitable[list[Result]]) -> list[Result]:
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # guests end with it
    return await work


def options() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__, formatter_class=raw)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KERNELS)}")
    what, where = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    for name, (text, _) in ONLY.items():
        what.add_argument(f"--{name}", dest="what", action="store_const", const=name, help=f"only {text}")
    for name, place in list(PLACES.items())[1:]:
        text = f"{place.help}: {', '.join(place.subjects)}"
        where.add_argument(f"--{name}", dest="where", action="store_const", const=name, default="", help=text)
    return parser


def main() -> None:
    parser = options()
    given = parser.parse_args()
    place = PLACES[given.where]
    attempt = ONLY[given.what][1] if given.what else place.usual
    if given.what and place.usual is try_package:
        parser.error(f"--{given.what} is not for --{given.where}")
    if given.what == "pyz" and not ARCHIVE.exists():
        parser.error(f"there is no {ARCHIVE}: make it with `./bootstrap pyz`")
    own = {name: Subject(name, own=place.own) for name in given.names if "/" in name}
    if own and not place.own:
        parser.error(f"--{given.where} is for no kernel of one's own")
    oldest, *_, newest = place.subjects.values()
    named = {**place.subjects, "oldest": oldest, "newest": newest, **own}
    if unknown := set(given.names) - set(named):
        parser.error(f"nothing is named {', '.join(sorted(unknown))}; there are {', '.join(named)}")
    subjects = list(dict.fromkeys(named[name] for name in given.names or place.subjects))
    at_once = 1 if attempt is measure else matrix.AT_ONCE  # they would be in each other's way
    try:
        results = asyncio.run(until_terminated(matrix.in_turn(subjects, attempt, at_once)))
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    all_usual = attempt is USUAL and subjects == list(place.subjects.values())
    if all_usual and os.environ.get("SHMTRACE_REFRESH_GOLDEN") == "1":
        matrix.write_found(results, place.subjects)
    sys.exit(any(result.failed for result in results))


if __name__ == "__main__":
    main()
