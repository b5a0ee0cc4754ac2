"""An account as a profile for pprof: the stacks of views/flamegraph.py, each with labels that say what it is of.

The format is google/pprof's profile.proto, compressed by gzip. A sample has bytes and pages. Its labels are the region,
the process (its PID), the group of alike processes, and the texts of its label, by their kinds.
"""

from __future__ import annotations

import functools
import gzip
import io
from collections.abc import Callable, Iterable, Iterator

from tracer import alike, labels
from tracer.account import NAMELESS, Account, Process
from tracer.formatting import printable
from tracer.views import flamegraph

FILE_NAME = "shmtrace.pb"  # in gzip's header: save() knows an earlier output by it
# Numbers of fields in profile.proto
SAMPLE_TYPE, SAMPLE, MAPPING, LOCATION, FUNCTION, STRING_TABLE = 1, 2, 3, 4, 5, 6
TIME_NANOS, DURATION_NANOS, COMMENT, DEFAULT_SAMPLE_TYPE = 9, 10, 13, 14
VALUE_TYPE_TYPE, VALUE_TYPE_UNIT = 1, 2
SAMPLE_LOCATION_ID, SAMPLE_VALUE, SAMPLE_LABEL = 1, 2, 3
LABEL_KEY, LABEL_STR, LABEL_NUM = 1, 2, 3
MAPPING_ID, MAPPING_FILENAME, MAPPING_HAS_FUNCTIONS = 1, 5, 7
LOCATION_ID, LOCATION_MAPPING_ID, LOCATION_LINE = 1, 2, 4
LINE_FUNCTION_ID = 1
FUNCTION_ID, FUNCTION_NAME, FUNCTION_SYSTEM_NAME = 1, 2, 3


class Numbers(dict[str, int]):
    """Texts, each numbered when it is first asked for."""

    def __init__(self, first: int, *texts: str) -> None:
        super().__init__((text, first + i) for i, text in enumerate(texts))
        self._first = first

    def __missing__(self, text: str) -> int:
        self[text] = number = self._first + len(self)
        return number


def render(account: Account) -> Iterator[bytes]:
    """The compressed profile; the same account makes the same bytes."""
    file = io.BytesIO()
    with gzip.GzipFile(FILE_NAME, "wb", fileobj=file, mtime=0) as compressed:
        compressed.writelines(_profile(account))
    yield file.getvalue()


def _profile(account: Account) -> Iterator[bytes]:
    """The fields of a Profile. Which locations, functions and texts there are is known after the samples."""
    session = account.session
    texts, functions = Numbers(0, ""), Numbers(1)
    for kind, unit in (("touched", "bytes"), ("pages", "count")):
        yield _bytes(SAMPLE_TYPE, _int(VALUE_TYPE_TYPE, texts[kind]) + _int(VALUE_TYPE_UNIT, texts[unit]))
    yield _int(DEFAULT_SAMPLE_TYPE, texts["touched"])
    yield _int(TIME_NANOS, session.started_ns)
    yield _int(DURATION_NANOS, session.ended_ns - session.started_ns)
    yield _int(COMMENT, texts[f"shared memory of {printable(session.host)}, by shmtrace {session.version}"])
    # pprof looks for no program where a name is in brackets
    named = _int(MAPPING_FILENAME, texts["[shared memory]"]) + _int(MAPPING_HAS_FUNCTIONS, 1)
    yield _bytes(MAPPING, _int(MAPPING_ID, 1) + named)
    labels_of = _labels(account, texts)
    for stack in flamegraph.stacks(account):
        leaf_first = [functions[printable(frame)] for frame in reversed(stack.frames)]
        values = stack.size_bytes, stack.size_bytes // session.page_bytes
        yield _bytes(SAMPLE, _ints(SAMPLE_LOCATION_ID, leaf_first) + _ints(SAMPLE_VALUE, values) + labels_of(stack))
    for name, number in functions.items():
        line = _bytes(LOCATION_LINE, _int(LINE_FUNCTION_ID, number))
        yield _bytes(LOCATION, _int(LOCATION_ID, number) + _int(LOCATION_MAPPING_ID, 1) + line)
        names = _int(FUNCTION_NAME, texts[name]) + _int(FUNCTION_SYSTEM_NAME, texts[name])
        yield _bytes(FUNCTION, _int(FUNCTION_ID, number) + names)
    for text in texts:
        yield _bytes(STRING_TABLE, text.encode())


def _labels(account: Account, texts: Numbers) -> Callable[[flamegraph.Stack], bytes]:
    """A function from a stack to the fields of its labels."""
    label = None if account.has_stacks else account.session.label
    columns = {kind: labels.meant(label, kind) for kind in labels.kinds(label)}

    def text(key: str, value: str) -> bytes:
        return _bytes(SAMPLE_LABEL, _int(LABEL_KEY, texts[key]) + _int(LABEL_STR, texts[printable(value)]))

    @functools.cache
    def of_process(process: Process) -> bytes:
        number = _int(LABEL_KEY, texts["process"]) + _int(LABEL_NUM, process.tgid)
        return _bytes(SAMPLE_LABEL, number) + text("group", alike.of_process(process))

    def of_stack(stack: flamegraph.Stack) -> bytes:
        found = text("region", stack.frames[1])
        if not stack.process:
            return found
        told = {kind: stack.label.told(column) or NAMELESS if stack.label else "?" for kind, column in columns.items()}
        return found + of_process(stack.process) + b"".join(text(kind, value) for kind, value in told.items())

    return of_stack


# ---- protocol buffers ----


def _int(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _ints(field: int, numbers: Iterable[int]) -> bytes:
    return _bytes(field, b"".join(map(_varint, numbers)))


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """A number that is not negative, seven bits in a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
