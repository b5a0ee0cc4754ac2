"""What becomes of tests that are skipped, and of those that are not, by a table of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import skips
from tests.kernels.results import read_cases
from tests.skips import Row

CHECKOUT = Path(skips.__file__).parents[1]

TABLE = """
from tests import skips

skips.ROWS = [
    skips.Row("test_swap", "no swap of .* bytes", lambda: False),
    skips.Row("test_swap|test_room", "no room", lambda: True),
    skips.Row("test_runs", "no disk", lambda: False),
]
"""
TESTS = """
import pytest

@pytest.fixture
def swap():
    pytest.skip("no swap of 23 bytes")

def test_swap(swap):
    pass

def test_swap_too():
    pytest.skip("no swap of 7 bytes at all")

@pytest.mark.skipif(True, reason="no room")
def test_room():
    pass

@pytest.mark.needs("no-such-program")
def test_program():
    pass

def test_runs():
    pass

def test_fails():
    assert 23 == 7
"""
MODULE = 'import pytest\npytest.importorskip("no_such_module")\n'
UNEXPECTED = "skipped, and tests/skips.py does not expect that here: "
TOLD = "NO LONGER SKIPPED [1] no disk: see tests/skips.py"


def run(directory: Path, must_run: str) -> tuple[str, dict[str, tuple[str, str, str]]]:
    """What pytest says, and of each test the outcome, why, and for what it should have been skipped."""
    (directory / "conftest.py").write_text(TABLE)
    (directory / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "--junitxml=record"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SHMTRACE_REQUIRE_BPF": must_run}
    done = subprocess.run([*command, "-o", "junit_family=xunit1"], cwd=directory, env=environment, capture_output=True)
    cases = read_cases((directory / "record").read_text())
    return done.stdout.decode(), {
        case.name.partition("::")[2]: (case.outcome, case.message, case.expected_skip) for case in cases
    }


def test_what_is_not_expected_fails(tmp_path: Path) -> None:
    said, cases = run(tmp_path, "1")
    assert {name: outcome for name, (outcome, *_) in cases.items()} == {
        "test_swap": "skipped",
        "test_swap_too": "failed",
        "test_room": "failed",
        "test_program": "failed",
        "test_runs": "passed",
        "test_fails": "failed",
    }
    assert f"{UNEXPECTED}no swap of 7 bytes at all" in cases["test_swap_too"][1]
    assert f"{UNEXPECTED}no room" in cases["test_room"][1]
    assert f"{UNEXPECTED}no-such-program is not installed" in cases["test_program"][1]
    assert [name for name, (*_, expected) in cases.items() if expected] == ["test_runs"]
    assert cases["test_runs"][2] == "no disk"
    assert TOLD in said


def test_elsewhere_it_is_skipped(tmp_path: Path) -> None:
    said, cases = run(tmp_path, "0")
    skipped = {"test_swap", "test_swap_too", "test_room", "test_program"}
    assert {name for name, (outcome, *_) in cases.items() if outcome == "skipped"} == skipped
    assert cases["test_runs"] == ("passed", "", "")
    assert TOLD not in said


@pytest.mark.parametrize(("must_run", "outcome"), [("1", "1 error"), ("0", "5 skipped")])
def test_a_whole_file(tmp_path: Path, must_run: str, outcome: str) -> None:
    (tmp_path / "test_all.py").write_text(MODULE)
    said, _ = run(tmp_path, must_run)
    assert outcome in said.splitlines()[-1]
    assert (UNEXPECTED in said) == (must_run == "1")


def test_functions_of_the_running_kernel() -> None:
    assert skips.function("no_such_function", "schedule")()
    assert not skips.function("no_such_function", "chedule")()


def test_a_reason_is_expected_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(r"\[faults", "no faults: .*", lambda: False), Row("test_23", "swap", lambda: True)]
    monkeypatch.setattr(skips, "ROWS", rows)
    assert skips.is_expected("tests/test_7.py::test_23[faults-7]", "no faults: 23")
    assert not skips.is_expected("tests/test_7.py::test_23[faults-7]", "there are no faults: 23")
    assert not skips.is_expected("tests/test_7.py::test_23[faults-7]", "swap")
    assert not skips.is_expected("tests/test_7.py::test_23[kprobe-faults]", "no faults: 23")
