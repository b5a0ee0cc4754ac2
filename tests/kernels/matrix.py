"""The live tests under each kernel, in a guest, and what they came to."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import ParseError

from tests.kernels.commands import NoResultError
from tests.kernels.fetch import AMD64, ARM64, HOST_ARCHITECTURE, RT, SOURCES, fetch
from tests.kernels.guest import Logs, Share, complaints, run_in_guest
from tests.kernels.initramfs import Kernel
from tests.kernels.layouts import compile_for
from tests.kernels.results import Case, Result, describe, failed, found, read_cases, table
from tests.kernels.userlands import CHECKOUT, HOST, RELEASES, Userland, bare, lean, prepare

# What is tried in every tier: to start shmtrace takes a guest ten seconds and more, and the host tries the rest.
TIERS = ["-k", "kprobe or fentry or faults"]
SAYING = "tests/live/test_labels.py::test_what_a_program_says"
STARTING = "tests/live/test_start.py::test_a_second_start_needs_no_compiler"
ARMED = "tests/live/test_armed.py::test_known_answer"
TESTS = [*(f"tests/live/test_{name}.py" for name in ("answers", "attach", "oom")), SAYING, ARMED, *TIERS]
DISTRO_TESTS = [STARTING, *TESTS]  # of a compiler that is not the host's
SERVERS = [*(f"tests/live/test_{name}.py" for name in ("php_fpm", "postgres", "labels", "stacks")), *TIERS]
WORKLOADS = "strided hundred generations exec removed_by_owner twins reserved_around spliced uffd_copied huge_punched"
EXACT = "test_known_answer and (kprobe or fentry)"
SMOKE = ["tests/live/test_answers.py", "-k", f"{EXACT} and ({' or '.join(WORKLOADS.split())})"]  # for CI
PRESSURE = ["tests/live/test_pressure.py"]  # minutes each
IN_ARCHIVE = ["tests/live/test_answers.py", "-k", EXACT]
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


async def run_tests(
    kernel: Kernel, userland: Userland, tests: Sequence[str], logs: Logs, record: Path, bare_root: Path | None
) -> tuple[int, list[Case]]:
    """pytest's exit status and record. bare_root: where shmtrace.pyz runs. Raises NoResultError."""
    pytest = [userland.python, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={record}"]
    environment = [f"SHMTRACE_PYTHON={BARE} {bare_root} {ARCHIVE}"] if bare_root else []
    command = ["env", "SHMTRACE_REQUIRE_BPF=1", *environment, *pytest, *tests]
    if kernel.preempt:
        command = ["sh", "-c", UNDER, kernel.preempt, *command]
    shares = [Share(record.parent, writable=True)]
    if userland is not HOST:
        shares += [Share(path, writable=False) for path in (CHECKOUT, bare_root) if path]
    status = await run_in_guest(kernel, command, CHECKOUT, shares, logs, TIMEOUT_SECONDS, userland.root)
    try:
        return status, read_cases(record.read_text())
    except (OSError, ParseError) as error:
        raise NoResultError(f"pytest ended with {status}, and left no record: {error}") from None


async def examine(subject: Subject, tests: Sequence[str], directory: Path) -> Result:
    """Says when it begins and how it ends. Whatever is wrong is in the result."""
    began = time.monotonic()
    logs = Logs(directory / "output", directory / "console")
    cases: list[Case] = []
    wrong: list[str] = []
    try:
        kernel = await unpacked(subject)
        architecture = kernel.architecture
        foreign = architecture != HOST_ARCHITECTURE
        release = subject.debian or ("12" if foreign and tests is SERVERS else None)
        userland = await (prepare(release, architecture) if release else lean(architecture))
        subject = stand_in(subject, kernel)
        bare_root = await bare(architecture) if tests is IN_ARCHIVE else None
        if not subject.debian and not bare_root:  # else what is compiled comes with what they run
            await compile_for(kernel, userland)
        say(subject, f"boots Linux {kernel.release}; the tests' output is {logs.output}")
        status, cases = await run_tests(kernel, userland, tests, logs, directory / "record.xml", bare_root)
        outcomes = {case.outcome for case in cases}
        if not outcomes - {"skipped"}:
            wrong.append(f"of {len(cases)} tests none was run")
        elif status and "failed" not in outcomes:
            wrong.append(f"no test has failed, but pytest ended with {status}")
    except NoResultError as error:
        wrong.append(str(error))
    return conclude(subject, cases, wrong, logs, began)


def conclude(subject: Subject, cases: list[Case], wrong: list[str], logs: Logs, began: float) -> Result:
    """Says how it ended, and what the logs have where it ended badly. wrong: apart from what the kernel says."""
    wrong += complaints(logs.console.read_text(errors="replace") if logs.console.exists() else "")
    result = Result(subject.names, cases, wrong, time.monotonic() - began)
    if result.failed:
        said = [*wrong, *map(describe, failed(cases)), end_of(logs.output, OUTPUT_LINES)]
        print("\n".join([*said, end_of(logs.console, CONSOLE_LINES)]), flush=True)
    say(subject, f"{'failed' if result.failed else 'passed'}, after {result.seconds:.0f} s")
    return result


async def in_turn(subjects: Sequence[Subject], examine: Callable[[Subject, Path], Awaitable[Result]]) -> list[Result]:
    """Prints the table. examine is given a directory for logs, which are kept where a test, or a guest, failed."""
    directory = Path(tempfile.mkdtemp(prefix="shmtrace-kernels-"))
    turns = asyncio.Semaphore(AT_ONCE)
    results: list[Result] = []

    async def examine_in_turn(subject: Subject) -> Result:
        async with turns:
            own = directory / "-".join(subject.names)
            own.mkdir()
            return await examine(subject, own)

    try:
        results = await asyncio.gather(*map(examine_in_turn, subjects))
    finally:
        if not any(result.failed for result in results):
            shutil.rmtree(directory)
    print(f"\n{table(HEADS[-len(subjects[0].names) :], results)}")
    if directory.exists():
        print(f"\nlogs are in {directory}")
    return results


async def examine_all(subjects: Sequence[Subject], tests: Sequence[str]) -> bool:
    """Whether all is well."""
    results = await in_turn(subjects, lambda subject, directory: examine(subject, tests, directory))
    if os.environ.get("SHMTRACE_REFRESH_GOLDEN") == "1" and tests is TESTS:
        for kernels in KERNELS, ARM64_KERNELS:
            if subjects == list(kernels.values()):
                others = [name for name in SOURCES if name not in kernels]
                FOUND.write_text(found(results, FOUND.read_text() if FOUND.exists() else "{}", others))
    return not any(result.failed for result in results)


async def measure(subject: Subject, directory: Path) -> bool:
    """Prints what the benchmarks print there; whether all is well.

    Emulation has no time of its own: a guest's nanoseconds are the instructions it runs. So the figures do not depend
    on the host, and the ratios are of work done, not of caches missed.
    """
    logs = Logs(directory / "output", directory / "console")
    wrong: list[str] = []
    try:
        kernel = await unpacked(subject)
        userland = await lean(kernel.architecture)
        await compile_for(kernel, userland)
        command = [userland.python, *BENCH]
        shares = [] if userland is HOST else [Share(CHECKOUT, writable=False)]
        status = await run_in_guest(
            kernel, command, CHECKOUT, shares, logs, TIMEOUT_SECONDS, userland.root, counting=True
        )
        wrong += [f"the benchmarks ended with {status}"] if status else []
    except NoResultError as error:
        wrong.append(str(error))
    wrong += complaints(logs.console.read_text(errors="replace") if logs.console.exists() else "")
    print(logs.output.read_text(errors="replace") if logs.output.exists() else "", flush=True)
    for line in wrong:
        say(subject, line)
    return not wrong


async def measure_all(subjects: Sequence[Subject]) -> bool:
    """One after another: they would be in each other's way."""
    well = True
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="shmtrace-bench-") as directory:
            well &= await measure(subject, Path(directory))
    return well
