"""Calls that do not come back: of pipes that nobody writes to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tracer.proc import blocking as module
from tracer.proc.blocking import NoAnswerError, each, promptly, stream, stuck

PATIENCE_S = 0.2
ENOUGH_S = 30.0  # for what takes a moment, on a machine that is busy


class Pipe:
    """A file that is not answered for until it is told what to say."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()

    def read(self) -> bytes:
        return os.read(self.read_end, 100)

    def say(self, text: bytes) -> None:
        os.write(self._write_end, text)

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self._write_end)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr(module, "PATIENCE_S", PATIENCE_S)
    pipe = Pipe()
    yield pipe
    pipe.say(b"at last")
    until(lambda: not module._stuck)
    module.unanswered.clear()
    pipe.close()


def until(holds: object) -> None:
    end = time.monotonic() + ENOUGH_S
    assert callable(holds)
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_comes_back_is_returned_or_raised() -> None:
    assert promptly("x", divmod, 17, 5) == (3, 2)
    with pytest.raises(ZeroDivisionError):
        promptly("x", divmod, 17, 0)
    assert not stuck("x")


def test_calls_share_a_thread() -> None:
    assert len({promptly("x", threading.get_ident) for _ in range(100)}) == 1
    assert promptly("x", threading.get_ident) != threading.get_ident()


def test_one_that_does_not_answer(pipe: Pipe) -> None:
    """It is left behind; nobody else waits for it, and it is not asked again until it has answered."""
    with pytest.raises(NoAnswerError, match="does not answer: 'pipe'"):
        promptly("pipe", pipe.read, patience_s=PATIENCE_S)
    assert stuck("pipe")
    assert promptly("other", len, "four") == 4
    began_s = time.monotonic()
    for _ in range(100):
        with pytest.raises(NoAnswerError):
            promptly("pipe", pipe.read)
    assert time.monotonic() - began_s < 100 * module.PATIENCE_S / 2
    pipe.say(b"first")
    until(lambda: not stuck("pipe"))
    pipe.say(b"second")
    assert promptly("pipe", pipe.read) == b"second"
    assert list(module.unanswered) == ["pipe"]


def test_patience_wears_out() -> None:
    """20 that are stuck, one after the other, take 3.6 times as long as one, and not 20 times."""
    pipes = [Pipe() for _ in range(20)]
    began_s = time.monotonic()
    for number, pipe in enumerate(pipes):
        with pytest.raises(NoAnswerError):
            promptly(number, pipe.read, patience_s=0.4)
    took_s = time.monotonic() - began_s
    for pipe in pipes:
        pipe.say(b"x")
    until(lambda: not module._stuck)
    for pipe in pipes:
        pipe.close()
    module.unanswered.clear()
    assert 1.4 < took_s < 4, "0.4 s (1 + 1/2 + ... + 1/20) is 1.44 s"


def test_no_more_threads_than_so_many(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STUCK", 1)
    with pytest.raises(NoAnswerError):
        promptly("pipe", pipe.read, patience_s=PATIENCE_S)
    with pytest.raises(NoAnswerError):
        promptly("other", len, "four")


def test_many_calls_go_around_who_is_stuck(pipe: Pipe) -> None:
    asked = []

    def call(number: int) -> int:
        asked.append(number)
        if number == 70:
            pipe.read()
        return number * number

    found = dict(each(lambda number: f"number {number}", call, range(200)))
    assert found == {number: number * number if number != 70 else None for number in range(200)}
    assert [number for number in asked if number == 70] == [70]
    assert stuck("number 70")
    assert dict(each(lambda number: f"number {number}", call, [69, 70, 71])) == {69: 4761, 70: None, 71: 5041}


def test_many_calls_may_take_their_time(pipe: Pipe) -> None:
    """As long as one after the other comes back."""
    calls = 8
    found = dict(each(lambda number: number, lambda _: time.sleep(PATIENCE_S / 2), range(calls)))
    assert found == dict.fromkeys(range(calls))
    assert not module.unanswered


def test_a_host_that_stands_still_is_waited_for() -> None:
    """As a virtual one may: nobody could answer in that time, and who asked has not waited."""

    def call() -> int:
        time.sleep(PATIENCE_S / 8)  # until it is waited for
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(PATIENCE_S / 4)
        return 7

    child = os.fork()
    if not child:
        try:
            os._exit(promptly("x", call, patience_s=PATIENCE_S))
        finally:
            os._exit(1)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    time.sleep(2 * PATIENCE_S)
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_nothing_to_ask() -> None:
    assert list(each(lambda number: number, lambda number: number, [])) == []


def test_what_many_calls_raise() -> None:
    with pytest.raises(ZeroDivisionError):
        list(each(lambda number: number, lambda number: 1 // number, [1, 0]))


def test_a_stream_that_runs_dry(pipe: Pipe) -> None:
    """Whatever it has open is closed when it comes back."""
    closed = threading.Event()

    def items() -> Iterator[bytes]:
        try:
            while True:
                yield pipe.read()
        finally:
            closed.set()

    pipe.say(b"one")
    found = stream("pipe", items(), PATIENCE_S)
    assert next(found) == b"one"
    with pytest.raises(NoAnswerError):
        next(found)
    assert not closed.is_set()
    pipe.say(b"two")
    assert closed.wait(ENOUGH_S)


def test_a_child_has_threads_of_its_own() -> None:
    promptly("x", len, "")
    child = os.fork()
    if not child:
        os._exit(promptly("x", len, "seven77"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_call_within_a_call_is_made_at_once() -> None:
    assert promptly("x", lambda: promptly("y", threading.get_ident) == threading.get_ident())
    with pytest.raises(ZeroDivisionError):
        promptly("x", lambda: promptly("y", divmod, 17, 0))


def test_calls_within_a_call_are_signs_of_life(pipe: Pipe) -> None:
    """It takes four times as long as one of them may, and is waited for; and not when one does not come back."""

    def call() -> str:
        for _ in range(8):
            promptly("x", time.sleep, PATIENCE_S / 2)
        return "done"

    assert promptly("x", call, patience_s=PATIENCE_S) == "done"
    with pytest.raises(NoAnswerError):
        promptly("x", lambda: promptly("pipe", pipe.read), patience_s=PATIENCE_S)
    assert stuck("x")


def test_whoever_is_stuck_is_not_asked_within_a_call(pipe: Pipe) -> None:
    with pytest.raises(NoAnswerError):
        promptly("pipe", pipe.read, patience_s=PATIENCE_S)
    with pytest.raises(NoAnswerError, match="'pipe'"):
        promptly("x", lambda: promptly("pipe", pipe.read))
    assert not stuck("x")
