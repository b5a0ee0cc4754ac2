"""What is tried under each kernel, in a guest, and what it came to: one frame for all, and the live tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

from tests.kernels.commands import NoResultError
from tests.kernels.fetch import AMD64, ARM64, HOST_ARCHITECTURE, RT, SOURCES, fetch
from tests.kernels.guest import Logs, Share, complaints, run_in_guest
from tests.kernels.initramfs import Kernel
from tests.kernels.layouts import compile_for
from tests.kernels.results import NO_TIER, Case, Result, describe, failed, found, read_cases, table
from tests.kernels.userlands import CHECKOUT, RELEASES, Userland, bare, lean, prepare

# What is tried in every tier: to start shmtrace takes a guest ten seconds and more, and the host tries the rest.
TIERS = ["-k", "kprobe or fentry or faults"]
SAYING = "tests/live/test_labels.py::test_what_a_program_says"
STARTING = "tests/live/test_start.py::test_a_second_start_needs_no_compiler"
ARMED = "tests/live/test_armed.py::test_known_answer"
TESTS = [*(f"tests/live/test_{name}.py" for name in ("answers", "attach", "oom")), SAYING, ARMED, *TIERS]
DISTRO_TESTS = [STARTING, *TESTS]  # of a compiler that is not the host's
SERVERS = [*(f"tests/live/test_{name}.py" for name in ("php_fpm", "postgres", "labels", "stacks")), *TIERS]
WORKLOADS = "strided hundred generations exec removed_by_owner twins reserved_around spliced uffd_copied huge_punched"
EXACT = ["tests/live/test_answers.py", "-k", "test_known_answer and (kprobe or fentry)"]
SMOKE = [*EXACT[:-1], f"{EXACT[-1]} and ({' or '.join(WORKLOADS.split())})"]  # for CI
PRESSURE = ["tests/live/test_pressure.py"]  # minutes each
PREEMPTED = ["tests/live/test_answers.py", "tests/live/test_attach.py", "-k", "kprobe or fentry"]
BENCH = ["-m", "tests.bench", "--rounds", "3", "--mib", "64", "--alone", "touch", "bystander"]  # hardly varies
BARE, ARCHIVE = Path(__file__).with_name("bare.sh"), CHECKOUT / "shmtrace.pyz"
FOUND = Path(__file__).with_name("found.json")
"""What all kernels came to when they were last run together to write it; docs/tiers-and-limits.md has it as a table."""
TIMEOUT_SECONDS = 2400.0  # with other work on the CPUs
AT_ONCE = min(2, os.cpu_count() or 1)  # a guest keeps one CPU busy
OUTPUT_LINES, CONSOLE_LINES = 150, 40
HEADS = ["debian", "kernel"]
# A kernel that has not the model which it is to have goes on with its own.
UNDER = 'grep -F "($0)" /sys/kernel/debug/sched/preempt && exec "$@"'


class Subject(NamedTuple):
    """What the tests are run on."""

    kernel: str
    debian: str | None = None
    """None: what the host has"""
    preempt: str | None = None
    """The preemption model; None: the kernel's own choice"""
    own: str | None = None
    """The architecture of a kernel of one's own, and `kernel` is its directory; None: it is Debian's"""

    @property
    def names(self) -> tuple[str, ...]:
        name = Path(self.kernel).name
        kernel = f"{name} preempt={self.preempt}" if self.preempt else name
        return (self.debian, kernel) if self.debian else (kernel,)


KERNELS = {kernel: Subject(kernel) for kernel in AMD64}
ARM64_KERNELS = {kernel: Subject(kernel) for kernel in ARM64}
# Of the kernels that can be told: 5.10 and those of arm64 are built for one, and 7.0 took two of four away.
MODELS = {"6.12": ("none", "voluntary", "full"), "7.2": ("lazy", "full")}
PREEMPT = {
    **{f"{kernel}-{model}": Subject(kernel, preempt=model) for kernel, models in MODELS.items() for model in models},
    **{kernel: Subject(kernel) for kernel in RT},
}
DISTROS = {name: Subject(release.kernel, name) for name, release in RELEASES.items()}


def say(subject: Subject, what: str) -> None:
    print(f"{' '.join(subject.names)}: {what}", flush=True)


def stand_in(subject: Subject, kernel: Kernel) -> Subject:
    """With the kernel there is, where the archive has the series that was meant no more."""
    if subject.own:
        return subject
    name = SOURCES[subject.kernel].name(".".join(kernel.release.split(".")[:2]))
    return subject if name == subject.kernel else subject._replace(kernel=f"{name} (for {subject.kernel})")


async def unpacked(subject: Subject) -> Kernel:
    """One's own, or one of Debian's, fetched if it is not there. Raises NoResultError."""
    if subject.own:
        return Kernel.find(Path(subject.kernel), subject.own)
    source = SOURCES[subject.kernel]
    return Kernel.find(await fetch(source), source.architecture)._replace(preempt=subject.preempt)


def end_of(path: Path, nr_lines: int) -> str:
    lines = path.read_text(errors="replace").splitlines()[-nr_lines:] if path.exists() else []
    return "\n".join([f"--- the end of {path}:", *lines])


class Guest(NamedTuple):
    """A kernel that is there, to be booted, and what is known of it so far."""

    subject: Subject
    kernel: Kernel
    logs: Logs
    cases: list[Case]

    async def run(self, what: str, command: Sequence[str], userland: Userland, *shared: Path, **how: Any) -> int:
        """The exit status of what watchers are told. Where its root is not the host's, it is given what is shared.

        Raises NoResultError.
        """
        if self.kernel.preempt:
            command = ["sh", "-c", UNDER, self.kernel.preempt, *command]
        say(self.subject, f"boots Linux {self.kernel.release} for {what}; the output is {self.logs.output}")
        shares = [Share(self.logs.output.parent, writable=True), *userland.shares(*shared)]
        where = CHECKOUT if CHECKOUT in shared else Path("/")
        return await run_in_guest(self.kernel, command, where, shares, self.logs, TIMEOUT_SECONDS, userland.root, **how)


Attempt = Callable[[Guest], Awaitable[None]]
"""What is done with a guest: it adds cases, and raises NoResultError where there cannot be more."""


async def examine(subject: Subject, attempt: Attempt, directory: Path) -> Result:
    """Says how it ends, and what the logs have where it ended badly. Whatever is wrong is in the result."""
    began = time.monotonic()
    logs = Logs(directory / "output", directory / "console")
    cases: list[Case] = []
    wrong: list[str] = []
    try:
        kernel = await unpacked(subject)
        subject = stand_in(subject, kernel)
        await attempt(Guest(subject, kernel, logs, cases))
    except NoResultError as error:
        wrong.append(str(error))
    wrong += complaints(logs.console.read_text(errors="replace") if logs.console.exists() else "")
    result = Result(subject.names, cases, wrong, time.monotonic() - began)
    if result.failed:
        said = [*wrong, *map(describe, failed(cases)), end_of(logs.output, OUTPUT_LINES)]
        print("\n".join([*said, end_of(logs.console, CONSOLE_LINES)]), flush=True)
    say(subject, f"{'failed' if result.failed else 'passed'}, after {result.seconds:.0f} s")
    return result


async def in_turn(subjects: Sequence[Subject], attempt: Attempt, at_once: int) -> list[Result]:
    """Prints the table. Logs are kept where a test, or a guest, failed."""
    directory = Path(tempfile.mkdtemp(prefix="shmtrace-kernels-"))
    turns = asyncio.Semaphore(at_once)
    results: list[Result] = []

    async def examine_in_turn(subject: Subject) -> Result:
        async with turns:
            own = directory / "-".join(subject.names)
            own.mkdir()
            return await examine(subject, attempt, own)

    try:
        results = await asyncio.gather(*map(examine_in_turn, subjects))
    finally:
        if not any(result.failed for result in results):
            shutil.rmtree(directory)
    print(f"\n{table(HEADS[-len(subjects[0].names) :], results)}")
    if directory.exists():
        print(f"\nlogs are in {directory}")
    return results


def write_found(results: Sequence[Result], kernels: Collection[str]) -> None:
    """What all these came to, beside what is known of the others."""
    others = [name for name in SOURCES if name not in kernels]
    FOUND.write_text(found(results, FOUND.read_text() if FOUND.exists() else "{}", others))


async def set_up(guest: Guest, whole: bool = False) -> Userland:
    """Its Debian, or else the least that will do; whole: for what that lacks. Raises NoResultError."""
    architecture = guest.kernel.architecture
    release = guest.subject.debian or ("12" if whole and architecture != HOST_ARCHITECTURE else None)
    userland = await (prepare(release, architecture) if release else lean(architecture))
    if not guest.subject.debian:  # which compiles itself
        await compile_for(guest.kernel, userland)
    return userland


async def try_tests(tests: Sequence[str], guest: Guest, whole: bool = False, in_archive: bool = False) -> None:
    """tests: pytest's arguments; in_archive: by shmtrace.pyz, in a root that has only Python. Raises NoResultError."""
    if in_archive:
        userland, bare_root = await lean(guest.kernel.architecture), await bare(guest.kernel.architecture)
        environment, beside = [f"SHMTRACE_PYTHON={BARE} {bare_root} {ARCHIVE}"], [bare_root]
    else:
        userland, environment, beside = await set_up(guest, whole), [], []
    record = guest.logs.output.with_name("record.xml")
    pytest = [userland.python, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={record}"]
    command = ["env", "SHMTRACE_REQUIRE_BPF=1", *environment, *pytest, *tests]
    status = await guest.run("the tests", command, userland, CHECKOUT, *beside)
    try:
        guest.cases.extend(read_cases(record.read_text()))
    except (OSError, ParseError) as error:
        raise NoResultError(f"pytest ended with {status}, and left no record: {error}") from None
    outcomes = {case.outcome for case in guest.cases}
    if not outcomes - {"skipped"}:
        raise NoResultError(f"of {len(guest.cases)} tests none was run")
    if status and "failed" not in outcomes:
        raise NoResultError(f"no test has failed, but pytest ended with {status}")


async def measure(guest: Guest) -> None:
    """Prints what the benchmarks print there. Raises NoResultError.

    Emulation has no time of its own: a guest's nanoseconds are the instructions it runs. So the figures do not depend
    on the host, and the ratios are of work done, not of caches missed.
    """
    began = time.monotonic()
    userland = await set_up(guest)
    status = await guest.run("the benchmarks", [userland.python, *BENCH], userland, CHECKOUT, counting=True)
    if status:
        raise NoResultError(f"the benchmarks ended with {status}")
    print(guest.logs.output.read_text(errors="replace"), flush=True)
    guest.cases.append(Case("benchmarks", NO_TIER, "passed", "", None, time.monotonic() - began))
