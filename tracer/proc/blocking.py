"""Calls that may never come back, made so that they are waited for only so long.

A read of /proc/PID/cmdline or maps, and whatever goes by way of map_files, takes the process's mmap_lock. Whoever waits
for a page with that held, of a dead network mount or of a FUSE of its own, makes every reader wait. Measured on 6.18:
for cmdline and map_files, and not for maps, which does without that lock there ("fs/proc/task_mmu: read proc/pid/maps
under per-vma lock"). No signal but one that kills ends such a wait. So another thread makes the call, and is left
behind where it does not come back; it ends with this process.

What a command line is in makes nobody wait: Linux kernel commit 7f7ccc2ccc2e ("proc: do not access cmdline nor environ
from file-backed areas") (in v4.17), and a userfaultfd is not asked. /proc/PID/mem does wait for a FUSE, and cannot even
be killed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Hashable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Callable, TypeVar

PATIENCE_S = 1.0
LEAST_PATIENCE_S = 0.01
MAX_STUCK = 500  # threads that are left behind
BATCH = 64

Item = TypeVar("Item")
Result = TypeVar("Result")

unanswered: dict[Hashable, None] = {}
"""Whoever has been waited for in vain, in that order."""

_idle: list[_Caller] = []
_stuck: set[Hashable] = set()
_lock = threading.Lock()  # held by who leaves a caller behind, and by a caller that finds out whether it was


class _Caller(threading.Thread):
    """Makes calls, one at a time, until one has taken too long."""

    def __init__(self) -> None:
        super().__init__(name="promptly", daemon=True)
        self.answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self._left_for: list[Hashable] = []
        self.nr_steps = 0
        """calls within its calls, so far: as long as these come back it is waited for"""
        self.start()

    def ask(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._calls.put((call, arguments))

    def run(self) -> None:
        while not self._left_for:
            call, arguments = self._calls.get()
            answer: tuple[Any, BaseException | None]
            try:
                answer = call(*arguments), None
            except BaseException as error:  # noqa: BLE001 - it is whoever asked that gets it
                answer = None, error
            del call, arguments  # what was left behind closes itself
            with _lock:
                self.answers.put(answer)
                _stuck.difference_update(self._left_for)
            del answer

    def leave(self, whom: Hashable) -> bool:
        """To wait for it no more; False: it has just answered."""
        with _lock:
            if not self.answers.empty():
                return False
            self._left_for.append(whom)
            _stuck.add(whom)
            unanswered[whom] = None
            return True


class NoAnswerError(TimeoutError):
    """A call has not come back in time."""

    def __init__(self, whom: Hashable, nr_done: int = 0) -> None:
        super().__init__(errno.ETIMEDOUT, "does not answer", str(whom))
        self.nr_done = nr_done
        """of several calls"""


def stuck(whom: Hashable) -> bool:
    """Whether it is still to answer."""
    return whom in _stuck


def promptly(whom: Hashable, call: Callable[..., Result], *arguments: Any, patience_s: float = PATIENCE_S) -> Result:
    """What the call returns, or raises; NoAnswerError where it does not come back in time.

    whom: the process, or the file, that is waited for. Nothing more is asked of it until the call has come back. Within
    another such call it is made at once, for whoever waits for that waits for this.
    """
    if whom in _stuck:
        raise NoAnswerError(whom)
    caller = threading.current_thread()
    if isinstance(caller, _Caller):
        caller.nr_steps += 1
        return call(*arguments)
    return _made(call, arguments, lambda _: whom, lambda: 0, patience_s)  # type: ignore[no-any-return]


def stream(whom: Hashable, items: Iterator[Result], patience_s: float = PATIENCE_S) -> Iterator[Result]:
    """The items as they come, each of them promptly. Raises NoAnswerError."""
    end: Any = object()
    while (item := promptly(whom, next, items, end, patience_s=patience_s)) is not end:
        yield item


def each(
    whom: Callable[[Item], Hashable], call: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result | None]]:
    """(item, what the call returns for it) in the order of the items; None where that does not come back in time.

    A thread is asked once for many of them: to ask takes longer than most calls. They run in that thread.
    """
    start = 0
    while start < len(items):
        found = _some(whom, call, items[start : start + BATCH])
        yield from zip(items[start:], found)
        start += len(found)


def _some(
    whom: Callable[[Item], Hashable], call: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result | None]:
    """Of the first items, to the end or to one that does not answer."""
    found: list[Result | None] = []

    def call_each() -> None:
        for item in items:
            answer = None if whom(item) in _stuck else call(item)
            found.append(answer)  # one by one: how far it has come is looked at meanwhile

    try:
        _made(call_each, (), lambda nr: whom(items[min(nr, len(items) - 1)]), lambda: len(found), PATIENCE_S)
    except NoAnswerError as error:
        return [*found[: error.nr_done], None][: len(items)]
    return found


def _made(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    whom: Callable[[int], Hashable],
    nr_done: Callable[[], int],
    patience_s: float,
) -> Any:
    """By a thread that has nothing else to do. The more are stuck the less patience is left, so that n of them, one
    after the other, take no more than log n times as long as one."""
    if len(_stuck) >= MAX_STUCK:
        raise NoAnswerError(whom(0))
    caller = _idle.pop() if _idle else _Caller()
    before = 0, caller.nr_steps
    caller.ask(call, *arguments)
    try:
        while True:
            try:
                answer, error = caller.answers.get(timeout=max(patience_s / (1 + len(_stuck)), LEAST_PATIENCE_S))
                break
            except Empty:
                now = nr_done(), caller.nr_steps
                if now == before and caller.leave(whom(now[0])):
                    raise NoAnswerError(whom(now[0]), now[0]) from None
                before = now
    except KeyboardInterrupt:
        caller.leave(caller)
        raise
    _idle.append(caller)
    if error:
        raise error
    return answer


def _forget() -> None:
    """A forked child has none of the threads."""
    _idle.clear()
    _stuck.clear()


os.register_at_fork(after_in_child=_forget)
