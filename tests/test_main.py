"""The last resort: what no command has expected ends in one line, with the traceback for whoever asks for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
REPORT_IT = "this is a fault of shmtrace's; please report it, with what SHMTRACE_TRACEBACK=1 shows"
INSTALL_IT = "it is not installed whole; `pip install` of it brings what it needs"
# What a command does is these statements.
IN_DOCTOR = """
from tracer import cli
def faulty():
    {}
cli.main.commands["doctor"].callback = faulty
"""
LOADING = """
import sys
class Loading:
    def find_spec(self, name, path, target=None):
        if name == "tracer.cli":
            {}
sys.meta_path.insert(0, Loading())
"""


def ended(statements: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """(exit status, all that was said) of a shmtrace that runs these statements first."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statements}\nfrom tracer.__main__ import main\nmain()", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def line(statements: str, *arguments: str, **environment: str) -> str:
    """The one line that was said, without where in the package it was."""
    status, said = ended(statements, *arguments, **environment)
    assert status == os.EX_SOFTWARE
    assert said.count("\n") == 1
    return re.sub(r" \([a-z_/]+\.py:\d+\)", "", said.rstrip("\n"), count=1)


@pytest.mark.parametrize(
    ("faulty", "said"),
    [
        ("{}['key']", f"KeyError: 'key': {REPORT_IT}"),
        ("assert not 1", f"AssertionError: no more is known: {REPORT_IT}"),
        ("faulty()", f"RecursionError: maximum recursion depth exceeded: {REPORT_IT}"),
        ("raise OSError(24, 'Too many open files')", f"OSError: [Errno 24] Too many open files: {REPORT_IT}"),
        ("raise MemoryError", "MemoryError: no more is known: let it have more memory, or give it less to look at"),
        (
            "import nobody_has_this",
            f"ModuleNotFoundError: No module named 'nobody_has_this': {INSTALL_IT}",
        ),
        (r"raise ValueError('\x1b[2J\n\ud800 \xfc')", rf"ValueError: \x1b[2J\n\ud800 \xfc: {REPORT_IT}"),
        ("raise ValueError('x' * (1 << 24))", f"ValueError: {'x' * 200}...: {REPORT_IT}"),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", f"Odd: no more is known: {REPORT_IT}"),
        ("raise BaseException('base')", f"BaseException: base: {REPORT_IT}"),
    ],
)
def test_one_line(faulty: str, said: str) -> None:
    found = line(IN_DOCTOR.format(faulty), "doctor")
    assert (
        found.replace(" while calling a Python object", "") == f"shmtrace: `shmtrace doctor` ended unexpectedly: {said}"
    )


def test_the_line_says_where_it_was() -> None:
    _, said = ended("from tracer import doctor; doctor.examine = lambda: 1 / 0", "doctor")
    assert re.search(r"ZeroDivisionError \(cli/host\.py:\d+\): division by zero", said)


def test_the_command_line_is_cut_and_escaped() -> None:
    found = line(
        IN_DOCTOR.format("1 / 0") + "cli.main.commands['doctor'].ignore_unknown_options = True\n"
        "cli.main.commands['doctor'].allow_extra_args = True",
        "doctor",
        "a\nb",
        "x" * 999,
    )
    assert found.startswith(r"shmtrace: `shmtrace doctor 'a\nb' xxx")
    assert "xxx...` ended" in found
    assert len(found) < 300


def test_the_traceback_for_whoever_asks_for_it() -> None:
    status, said = ended(IN_DOCTOR.format("{}['key']"), "doctor", SHMTRACE_TRACEBACK="1")
    assert status == os.EX_SOFTWARE
    assert said.startswith("shmtrace: Traceback (most recent call last):\n")
    assert "in faulty" in said
    assert said.endswith("KeyError: 'key'\n")


def test_while_options_are_parsed() -> None:
    faulty = "from tracer import labels; labels.parse = lambda _: 1 / 0"
    assert line(faulty, "-a", "--label", "php").startswith(
        "shmtrace: `shmtrace -a --label php` ended unexpectedly: Zero"
    )


def test_while_a_shell_completes() -> None:
    faulty = "from tracer.cli import options; options.Proc = lambda: 1 / 0"
    environment = {"_SHMTRACE_COMPLETE": "bash_complete", "COMP_WORDS": "shmtrace -p x", "COMP_CWORD": "2"}
    statements = f"{faulty}\nimport sys; sys.argv[0] = 'shmtrace'"
    assert "ended unexpectedly: ZeroDivisionError: division by zero" in line(statements, **environment)


def test_while_it_is_loaded() -> None:
    assert line(LOADING.format("raise ImportError('torn')")).startswith(
        "shmtrace: `shmtrace` ended unexpectedly: ImportError: torn: it is not installed whole"
    )


def test_in_a_thread() -> None:
    """It goes on."""
    status, said = ended(
        IN_DOCTOR.format(
            "import threading; thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
        ),
        "doctor",
    )
    assert status == 0
    assert said.count("\n") == 1
    assert "ZeroDivisionError" in said


def test_where_python_would_ignore_it() -> None:
    status, said = ended(IN_DOCTOR.format("type('Odd', (), {'__del__': lambda self: 1 / 0})()"), "doctor")
    assert status == 0
    assert said.count("\n") == 1
    assert "ZeroDivisionError" in said


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("statements", [LOADING.format(INTERRUPT), IN_DOCTOR.format(f"{INTERRUPT}; print('goes on')")])
def test_interrupted(statements: str) -> None:
    assert ended(statements, "doctor") == (128 + signal.SIGINT, "")


def test_where_interrupts_are_ignored_they_stay_so() -> None:
    statements = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert ended(statements + IN_DOCTOR.format(f"{INTERRUPT}; print('goes on')"), "doctor") == (0, "goes on\n")


def test_its_own_mistakes_are_no_faults() -> None:
    said = "no command is called frobnicate: to trace processes of that name, `shmtrace -p frobnicate`"
    assert ended("import sys; sys.argv[0] = 'shmtrace'", "frobnicate") == (2, f"shmtrace: {said}\n")
