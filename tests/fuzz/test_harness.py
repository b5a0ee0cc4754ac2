"""The fuzzers' own ground: what does not end well is told as what it is, once, and kept so that it can be run again."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import strategies as st

from tests.fuzz import __main__ as command
from tests.fuzz import harness, outputs
from tests.fuzz.campaign import Campaign
from tests.fuzz.harness import HANG, REFUSED, RESULT, TRACEBACK, WRONG, Fuzzer, Given
from tracer.errors import ShmtraceError


def fuzzer(give: Callable[[Given], Any], **more: Any) -> Fuzzer:
    """Of numbers."""
    return Fuzzer("numbers", st.fixed_dictionaries({"number": st.integers(0, 1000)}), give, 10, **more)


def ended(give: Callable[[Given], Any], **more: Any) -> tuple[str, str]:
    found = harness.run(fuzzer(give, **more), {"number": 7})
    return found.how, found.what


def say(*lines: str, status: int) -> None:
    print(*lines, sep="\n", file=sys.stderr)
    sys.exit(status)


def refuse(_: Given) -> None:
    raise ShmtraceError("it cannot be read", "mend it")


def wait(_: Given) -> None:
    time.sleep(60)


def spin(_: Given) -> None:
    while True:
        pass


def faulty(_: Given) -> None:
    {}["key"]


@pytest.mark.parametrize(
    ("give", "how"),
    [
        (lambda _: None, (RESULT, "")),
        (lambda _: sys.exit(0), (RESULT, "")),
        (refuse, (REFUSED, "")),
        (lambda _: say("shmtrace: no", status=2), (REFUSED, "")),
        (lambda _: say("shmtrace: warning: old", "shmtrace: no", status=1), (REFUSED, "")),
        (lambda _: say("shmtrace: no", "shmtrace: nor this", status=1), (WRONG, "an error of 2 lines")),
        (lambda _: sys.exit(1), (WRONG, "an error of 0 lines")),
        (lambda _: say("no", status=1), (WRONG, "an error that does not begin with shmtrace:")),
        (lambda _: say("shmtrace: \x1b[2J", status=1), (WRONG, "an error that is not printable")),
        (lambda _: say(f"shmtrace: {'x' * 9000}", status=1), (WRONG, "an error that is too long")),
        (lambda _: say("shmtrace: no", status=70), (WRONG, "status 70")),
        (lambda _: os.kill(os.getpid(), 9), (WRONG, "killed by SIGKILL")),
        (lambda _: os._exit(0), (WRONG, "it ended itself")),
        (lambda _: Path("new").touch(), (WRONG, "files are not as they were")),
        (lambda _: Path(os.environ["TMPDIR"], "new").touch(), (WRONG, "files are not as they were")),
        (lambda _: Path("was").write_text("others"), (WRONG, "files are not as they were")),
        (lambda _: Path("was").unlink(), (WRONG, "files are not as they were")),
        (lambda _: bytearray(os.urandom(1)) * (400 << 20), (WRONG, "too much memory")),
        (lambda _: bytearray(2 << 30), (TRACEBACK, "MemoryError in test_harness.py: <lambda>")),
        (faulty, (TRACEBACK, "KeyError in test_harness.py: faulty")),
    ],
)
def test_how_it_ended(give: Callable[[Given], Any], how: tuple[str, str]) -> None:
    assert ended(give, write=lambda _, directory: (directory / "was").write_text("mine")) == how


def test_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what works, and of what waits; neither is there any more."""
    monkeypatch.setattr(harness, "CPU_S", 1)
    assert ended(spin) == (HANG, "over 1 s of CPU")
    monkeypatch.setattr(harness, "WALL_S", 0.2)
    assert ended(wait) == (HANG, "no answer in 0.2 s")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_what_is_asked_for_may_be_made() -> None:
    make = lambda _: Path("new").touch()  # noqa: E731
    assert ended(make, made=lambda _: {"new"}) == (RESULT, "")
    assert ended(make, made=lambda _: {"old"}) == (WRONG, "files are not as they were")


def test_what_is_printed_is_looked_at() -> None:
    def check(_given: Given, _directory: Path, stdout: str) -> None:
        outputs.terminal(stdout)

    assert ended(lambda _: print("plain"), check=check) == (RESULT, "")
    assert ended(lambda _: print("\x1b[2J"), check=check) == (WRONG, "what hides or moves is printed")


def test_a_campaign(tmp_path: Path) -> None:
    """The smallest input that shows a fault is kept, and is what is run again."""

    def give(given: Given) -> None:
        if given["number"] >= 23:
            raise KeyError

    ran = []
    for seed in ("1", "1", "2"):
        campaign = Campaign(fuzzer(give), tmp_path / seed)
        campaign.random(seed, 40)
        assert campaign.tried == 40 == sum(campaign.ended.values())
        assert campaign.ended[TRACEBACK] > 1
        assert campaign.ended[RESULT] + campaign.ended[TRACEBACK] == 40
        [(what, path)] = campaign.failures.items()
        assert what == "traceback: KeyError in test_harness.py: give"
        assert json.loads(path.read_text())["input"] == {"number": 23}
        ran.append(campaign.ended)
    assert ran[0] == ran[1]


def test_a_campaign_without_a_fault(tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    def give(given: Given) -> None:
        with seen.open("a") as file:
            print(given["number"], file=file)

    runs = []
    for seed in ("1", "1", "2"):
        campaign = Campaign(fuzzer(give), tmp_path / "kept")
        campaign.random(seed, 30)
        assert (campaign.failures, campaign.ended) == ({}, {RESULT: 30})
        runs.append(seen.read_text().split())
        seen.unlink()
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 15
    assert not (tmp_path / "kept").exists()


def test_hangs_end_a_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "WALL_S", 0.1)
    campaign = Campaign(fuzzer(wait), tmp_path)
    campaign.random("1", 100)
    assert campaign.ended == {HANG: 3}


def test_the_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each fuzzer; and the command that runs again what failed, which fails again until it is mended."""

    def give(given: Given) -> None:
        if given["number"] >= 23 and not (tmp_path / "mended").exists():
            raise KeyError

    monkeypatch.setattr(command, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(command, "FUZZERS", {"numbers": fuzzer(give)})
    assert not command.run(3.0, "7", ["numbers"])
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("numbers ")).split()
    tried, results, refused, tracebacks, hangs, wrong = map(int, row[1:7])
    assert tried == results + tracebacks
    assert (refused, hangs, wrong) == (0, 0, 0)
    assert tracebacks > 0
    [kept] = (tmp_path / "kept").iterdir()
    assert f"    ./bootstrap fuzz --again {kept}" in printed.splitlines()
    assert not command.again(kept)
    assert "KeyError" in capsys.readouterr().out
    (tmp_path / "mended").touch()
    assert command.again(kept)
    assert command.run(0.2, "7", ["numbers"])
