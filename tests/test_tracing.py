"""What `shmtrace top` says while it attaches, and its lines where there is no screen."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import Future
from typing import Optional

import pytest

from tests.test_top import BEFORE, NOW
from tracer.cli import output, tracing
from tracer.model import Account
from tracer.record.targets import Targets

ATTACHING = "attaching to 33 processes …"
FINAL = NOW._replace(session=NOW.session._replace(complete=True))


class Waited(Future[Optional[Account]]):
    """An account that is there as soon as one asks for it, or some seconds later."""

    def __init__(self, found: Account | None, after_s: float = 0.0) -> None:
        super().__init__()
        self._found, self._after_s = found, after_s

    def result(self, timeout: float | None = None) -> Account | None:
        time.sleep(self._after_s)
        return self._found


@pytest.mark.parametrize(("after_s", "said"), [(0.0, ""), (0.5, f"shmtrace: {ATTACHING}\n")])
def test_what_takes_long_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, after_s: float, said: str
) -> None:
    monkeypatch.setattr(output, "PATIENCE_S", 0.2)
    following = iter([Waited(BEFORE, after_s), Waited(NOW, after_s), Waited(FINAL, after_s)])
    assert tracing._tell_changes(ATTACHING, lambda: next(following), None) == FINAL
    assert capsys.readouterr().err == said


def test_lines_of_what_changed_come_below_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing comes where nothing changed."""
    following = iter([Waited(BEFORE), Waited(BEFORE), Waited(NOW), Waited(None)])
    assert tracing._tell_changes(ATTACHING, lambda: next(following), "command") is None
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["answer", "region", "region", "grower", "answer", "region", "region", "grower", "grower"]


def test_it_says_to_how_many_it_attaches() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert tracing._attaching(Targets(frozenset([child.pid]), ())) == "attaching to 1 process …"
        assert child.stdin
        child.stdin.close()
    assert tracing._attaching(Targets(frozenset(), ())) == "attaching to 0 processes …"
