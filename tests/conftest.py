"""What a test may need of the host, and the command line as a fixture.

A test that cannot have what it needs is skipped with the reason; with SHMTRACE_REQUIRE_BPF=1 it fails with it instead,
so that a run that is meant to try everything cannot pass by skipping: but for what tests/skips.py expects.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import functools
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import skips
from tests.kernels.results import EXPECTED_SKIP
from tracer.kernel.cache import CACHE

CHECKOUT = Path(__file__).parent.parent
MUST_RUN = os.environ.get("SHMTRACE_REQUIRE_BPF") == "1"

# Services are in no user's PATH, and Debian keeps each PostgreSQL's programs apart.
FOLDERS = [
    *map(Path, os.get_exec_path()),
    *map(Path, ("/usr/local/sbin", "/usr/sbin", "/sbin")),
    *Path("/usr/lib/postgresql").glob("*/bin"),
]

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 0)
BPF_PROG_LOAD = 5
BPF_PROG_TYPE_TRACEPOINT = 5
# bpf_probe_read_kernel(r10 - 8, 8, NULL); return 0; It is what lockdown refuses, where an empty program still loads.
PROGRAM = b"".join(
    struct.pack("<BBhi", code, registers, 0, constant)
    for code, registers, constant in [
        (0xBF, 0xA1, 0),  # r1 = r10
        (0x07, 0x01, -8),  # r1 += -8
        (0xB7, 0x02, 8),  # r2 = 8
        (0xB7, 0x03, 0),  # r3 = 0
        (0x85, 0x00, 113),  # call bpf_probe_read_kernel
        (0xB7, 0x00, 0),  # r0 = 0
        (0x95, 0x00, 0),  # exit
    ]
)

CHROMIUM = """
    headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update
    disable-sync disable-dev-shm-usage window-size=1280,900
"""


@functools.cache
def why_no_bpf() -> str | None:
    """Why shmtrace cannot trace here, None if it can."""
    if os.geteuid() != 0:
        return "tracing needs root"
    if not BPF_SYSCALL:
        return f"shmtrace is tried on x86-64 and arm64, and this is {platform.machine()}"
    try:
        import bcc  # noqa: F401
    except ImportError as error:
        if not any(CACHE.glob("*")):  # else what it would compile may be there, as in a guest
            return f"{sys.executable} cannot import bcc ({error}): Debian's python3-bpfcc is for /usr/bin/python3"
    program, licence = ctypes.create_string_buffer(PROGRAM), ctypes.create_string_buffer(b"GPL")
    head = (BPF_PROG_TYPE_TRACEPOINT, len(PROGRAM) // 8, ctypes.addressof(program), ctypes.addressof(licence))
    attributes = struct.pack("=IIQQ", *head).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(BPF_SYSCALL, BPF_PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        return f"the kernel refuses BPF: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return None


def find_program(pattern: str) -> Path | None:
    readable = (folder for folder in FOLDERS if os.access(folder, os.R_OK | os.X_OK))
    return next((path for folder in readable for path in folder.glob(pattern) if os.access(path, os.X_OK)), None)


def reasons_not_to_run(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("needs"):
        yield from (f"{program} is not installed" for program in mark.args if not find_program(program))
    if item.get_closest_marker("bpf") and (reason := why_no_bpf()):
        yield reason


def pytest_configure() -> None:
    # a shell has what it runs in the background ignore it, and all that tests start would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if reasons := "; ".join(reasons_not_to_run(item)):
        pytest.skip(reasons)


def fail_unexpected_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if MUST_RUN and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not skips.is_expected(report.nodeid, reason):
            report.outcome = "failed"
            report.longrepr = f"skipped, and tests/skips.py does not expect that here: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    fail_unexpected_skip((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    report = (yield).get_result()
    if MUST_RUN and report.when == "call" and not report.skipped:
        item.user_properties += [(EXPECTED_SKIP, reason) for reason in skips.expected(item.nodeid)]
    fail_unexpected_skip(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """In a guest, the table says it."""
    notes = [note for report in terminalreporter.getreports("") for note in report.user_properties]
    told = Counter(reason for name, reason in notes if name == EXPECTED_SKIP)
    for reason, count in told.items():
        terminalreporter.write_line(f"NO LONGER SKIPPED [{count}] {reason}: see tests/skips.py")


@pytest.fixture(autouse=True)
def heap() -> Iterator[None]:
    """What reads a capture limits SQLite's memory for the whole process: it is lifted, for the tests to come."""
    yield
    ctypes.CDLL(_sqlite3.__file__).sqlite3_hard_heap_limit64(ctypes.c_int64(0))


@pytest.fixture
def shmtrace() -> Callable[..., subprocess.CompletedProcess[str]]:
    """shmtrace("snapshot", "-p", "812", "--json"): runs this checkout's command line to its end."""

    def run(*arguments: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tracer", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, **options)

    return run


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where reports are written in the host's own time."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for name in CHROMIUM.split():
        options.add_argument(f"--{name}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()
