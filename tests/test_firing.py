"""What `record --when` says, and the command of --run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import pytest

from tracer.capture.capture import need_place
from tracer.cli import firing, output
from tracer.conditions import parse
from tracer.errors import ShmtraceError
from tracer.record.targets import Targets
from tracer.triggers import Fired

CONTEXT, PARAMETER = click.Context(click.Command("record")), click.Option(["--run"])
FIRED = Fired(parse("a > 1%"), "a had 7 B of 8 B", Targets(frozenset(), ()), 7, 8)


def test_a_command_is_split_and_found() -> None:
    found = firing.parsed_command(CONTEXT, PARAMETER, "env 'a b' \"$(id)\" ; '' `x` > y")
    assert found
    assert found.arguments == ["env", "a b", "$(id)", ";", "", "`x`", ">", "y"]
    assert Path(found.program).is_absolute()
    assert Path(found.program).name == "env"
    assert firing.parsed_command(CONTEXT, PARAMETER, None) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a 'b", "cannot be split into arguments"),
        ("", "it names no command"),
        ("  ", "it names no command"),
        ("''", "is no program"),
        ("/etc/passwd", "is no program"),
        ("no-such-program x", "is no program: give the path of one; there is no shell"),
    ],
)
def test_what_is_no_command(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        firing.parsed_command(CONTEXT, PARAMETER, text)


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
    firing._start(firing.Command(str(tmp_path / "gone"), ["gone"]), FIRED, tmp_path, Nothing())
    assert capfd.readouterr().err.startswith("shmtrace: --run gone cannot be run ([Errno 2] No such file")


class Nothing:
    """Where no line is shown."""

    def clear(self) -> None:
        pass


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
