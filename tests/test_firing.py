"""What `record --when` says, and the command of --run."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from pathlib import Path

import click
import pytest

from tracer.capture.capture import need_place
from tracer.cli import firing, output
from tracer.conditions import parse
from tracer.errors import ShmtraceError
from tracer.record.signals import Signals
from tracer.record.targets import Targets
from tracer.triggers import Fired, Watch
from tracer.views.status_line import Line

CONTEXT, PARAMETER = click.Context(click.Command("record")), click.Option(["--run"])
FIRED = Fired(parse("a > 1%"), "a had 7 B of 8 B", Targets(frozenset(), ()), 7, 8)


def test_a_command_is_split() -> None:
    found = firing.parsed_command(CONTEXT, PARAMETER, "env 'a b' \"$(id)\" ; '' `x` > y")
    assert found == ["env", "a b", "$(id)", ";", "", "`x`", ">", "y"]
    assert firing.parsed_command(CONTEXT, PARAMETER, None) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("a 'b", "cannot be split into arguments"), ("", "it names no command"), ("  ", "it names no command")],
)
def test_what_is_no_command(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        firing.parsed_command(CONTEXT, PARAMETER, text)


@pytest.mark.parametrize("program", ["", "/etc/passwd", "no-such-program"])
def test_what_is_no_program(program: str, tmp_path: Path) -> None:
    """It is told at the start."""
    with pytest.raises(
        ShmtraceError, match=f"--run '{program}' is no program: give the path of one; there is no shell"
    ):
        firing.wait_for([parse("a > 1%")], [], True, False, tmp_path / "x", [program, "y"], Signals())
    assert not list(tmp_path.iterdir())


def test_a_signal_ends_the_wait_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long a search takes, or a rest; and no later one is the trace's."""

    def search(_watch: Watch) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    monkeypatch.setattr(Watch, "search", search)
    with Signals() as signals:
        assert not firing.wait_for([parse("a > 1%")], [], True, False, tmp_path / "x", None, signals)
        assert signals.trace is None
    assert capsys.readouterr().err == "shmtrace: the condition did not hold\n"


def test_a_signal_whose_exception_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the wait all the same, after the look."""

    def search(_watch: Watch) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)

    monkeypatch.setattr(Watch, "search", search)
    with Signals() as signals:
        assert not firing.wait_for([parse("a > 1%")], [], True, False, tmp_path / "x", None, signals)


def test_its_environment(tmp_path: Path) -> None:
    """Little of ours, and what is known."""
    ours = {"PATH": "/bin", "LANG": "C", "LD_PRELOAD": "x.so", "NOTIFY_SOCKET": "/run/x", "SHMTRACE_REGION": "0"}
    assert firing.environment(FIRED, tmp_path / "x", ours) == {
        "PATH": "/bin",
        "LANG": "C",
        "SHMTRACE_CONDITION": "a > 1%",
        "SHMTRACE_CAPTURE": str(tmp_path / "x"),
        "SHMTRACE_VALUE_BYTES": "7",
        "SHMTRACE_SIZE_BYTES": "8",
    }


def test_a_command_that_cannot_be_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It has gone since: a line, and the trace goes on."""
    firing._start(["./gone"], FIRED, tmp_path, Line(io.StringIO()))
    assert capfd.readouterr().err.startswith("shmtrace: --run ./gone cannot be run ([Errno 2] No such file")


@pytest.mark.parametrize("fired", [FIRED, None])
def test_it_is_run_even_if_the_trace_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fired: Fired | None
) -> None:
    """Somebody has to be told; but not where nothing was waited for."""
    ran: list[object] = []
    monkeypatch.setattr(firing, "_start", lambda *what: ran.append(what[:3]))
    with pytest.raises(ShmtraceError), firing.then(["x"], fired, tmp_path, Line(io.StringIO())):
        raise ShmtraceError("no memory for the maps")
    assert ran == ([(["x"], FIRED, tmp_path)] if fired else [])


# ---- journal ----


@pytest.mark.parametrize(("offset", "prefix"), [(0, "<4>"), (1, "")])
def test_a_warning_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, prefix: str) -> None:
    """Only if it is standard error that goes there: the variable is inherited by all below."""
    with (tmp_path / "err").open("w+") as file:
        stat = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino + offset}")
        monkeypatch.setattr(sys, "stderr", file)
        output.alert("a\nb")
        output.tell("c")
    assert (tmp_path / "err").read_text() == f"{prefix}shmtrace: a\\x0ab\nshmtrace: c\n"


# ---- the capture's place ----


def test_a_place_is_left_as_it_was(tmp_path: Path) -> None:
    need_place(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["x", "x-journal"])
def test_a_taken_place(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(ShmtraceError, match="is there already"):
        need_place(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    with pytest.raises(ShmtraceError, match="cannot be written"):
        need_place(tmp_path / "none" / "x")
