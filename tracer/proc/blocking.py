"""Bounds the time of calls that may never return.

Reading /proc/PID/cmdline or maps, and any access through map_files, takes the process's mmap_lock. A thread that holds
it while it waits for a page, from a dead network mount or a FUSE of its own, blocks all readers. Measured on 6.18:
cmdline and map_files block, maps does not, since it needs no mmap_lock there ("fs/proc/task_mmu: read proc/pid/maps
under per-vma lock"). Only a fatal signal ends such a wait. So another thread makes the call, and is abandoned if the
call does not return; it ends with this process.

The memory that holds a command line cannot block a reader: Linux kernel commit 7f7ccc2ccc2e ("proc: do not access
cmdline nor environ from file-backed areas") (in v4.17), and a userfaultfd is not asked. /proc/PID/mem does wait for a
FUSE, and cannot even be killed.
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
WAITS = 4  # that a call has in which to return: a host that stands still, as a virtual one may, takes no more than one
MAX_STUCK = 500  # limit of abandoned threads
BATCH = 64

Item = TypeVar("Item")
Result = TypeVar("Result")

unanswered: dict[Hashable, None] = {}
"""Processes and files that did not answer in time, in that order."""

_idle: list[_Caller] = []
_stuck: set[Hashable] = set()
_lock = threading.Lock()  # taken to abandon a caller, and by a caller to find out whether it was


class _Caller(threading.Thread):
    """A thread that makes calls, one at a time, until it is abandoned."""

    def __init__(self) -> None:
        super().__init__(name="promptly", daemon=True)
        self.answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self._left_for: list[Hashable] = []
        self.nr_steps = 0
        """Calls made within its calls so far. While this number grows, the caller keeps waiting."""
        self.start()

    def ask(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._calls.put((call, arguments))

    def run(self) -> None:
        while not self._left_for:
            call, arguments = self._calls.get()
            answer: tuple[Any, BaseException | None]
            try:
                answer = call(*arguments), None
            except BaseException as error:  # noqa: BLE001 - passed on to the thread that asked
                answer = None, error
            del call, arguments  # a result that nobody takes must close itself
            with _lock:
                self.answers.put(answer)
                _stuck.difference_update(self._left_for)
            del answer

    def leave(self, whom: Hashable) -> bool:
        """Abandon this thread. False: it has just answered."""
        with _lock:
            if not self.answers.empty():
                return False
            self._left_for.append(whom)
            _stuck.add(whom)
            unanswered[whom] = None
            return True


def forget(is_over: Callable[[Hashable], bool]) -> None:
    """Forget that some did not answer, unless a call for them has not returned yet."""
    with _lock:
        for whom in [whom for whom in unanswered if whom not in _stuck and is_over(whom)]:
            del unanswered[whom]


class NoAnswerError(TimeoutError):
    """A call has not returned in time."""

    def __init__(self, whom: Hashable, nr_done: int = 0) -> None:
        super().__init__(errno.ETIMEDOUT, "does not answer", str(whom))
        self.nr_done = nr_done
        """How many of several calls had returned."""


def stuck(whom: Hashable) -> bool:
    """Whether a call for this process or file has not returned yet."""
    return whom in _stuck


def promptly(whom: Hashable, call: Callable[..., Result], *arguments: Any, patience_s: float = PATIENCE_S) -> Result:
    """Make a call and return its result, or raise what it raises. Raises NoAnswerError if it does not return in time.

    whom: the process or file that may block. Until the call has returned, further calls for it fail at once. Inside
    another such call it runs directly, since that call is already bounded.
    """
    if whom in _stuck:
        raise NoAnswerError(whom)
    caller = threading.current_thread()
    if isinstance(caller, _Caller):
        caller.nr_steps += 1
        return call(*arguments)
    return _made(call, arguments, lambda _: whom, lambda: 0, patience_s)  # type: ignore[no-any-return]


def stream(whom: Hashable, items: Iterator[Result], patience_s: float = PATIENCE_S) -> Iterator[Result]:
    """Yield the items of an iterator, each fetched by promptly(). Raises NoAnswerError."""
    end: Any = object()
    while (item := promptly(whom, next, items, end, patience_s=patience_s)) is not end:
        yield item


def each(
    whom: Callable[[Item], Hashable], call: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result | None]]:
    """Yield (item, result) in the order of the items. The result is None if the call does not return in time.

    One thread handles a batch of items, since handing over a call takes longer than most calls.
    """
    start = 0
    while start < len(items):
        found = _some(whom, call, items[start : start + BATCH])
        yield from zip(items[start:], found)
        start += len(found)


def _some(
    whom: Callable[[Item], Hashable], call: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result | None]:
    """Results for the first items: for all, or up to one that does not answer."""
    found: list[Result | None] = []

    def call_each() -> None:
        for item in items:
            answer = None if whom(item) in _stuck else call(item)
            found.append(answer)  # one by one: the waiting thread reads how far this has come

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
    """Make the call in an idle thread and wait for it.

    The patience shrinks with the number of stuck calls, so that n of them in a row take no more than log n times as
    long as one.
    """
    if len(_stuck) >= MAX_STUCK:
        raise NoAnswerError(whom(0))
    caller = _idle.pop() if _idle else _Caller()
    before, nr_waits = (0, caller.nr_steps), 0
    caller.ask(call, *arguments)
    try:
        while True:
            try:
                in_all_s = max(patience_s / (1 + len(_stuck)), LEAST_PATIENCE_S)
                answer, error = caller.answers.get(timeout=in_all_s / WAITS)
                break
            except Empty:
                now = nr_done(), caller.nr_steps
                nr_waits = nr_waits + 1 if now == before else 0
                if nr_waits >= WAITS and caller.leave(whom(now[0])):
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
    """After a fork the child has none of these threads."""
    _idle.clear()
    _stuck.clear()


os.register_at_fork(after_in_child=_forget)
