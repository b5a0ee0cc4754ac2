"""What grew and what is held as a profile, for pprof and for stores of continuous profiles: Pyroscope, Parca.

The format is google/pprof's profile.proto, compressed by gzip. Sample types are those of Go's heap profiles, which all
stores know: alloc is what was touched, what was freed since included, and inuse what is held now. An object is a page.
Of a window of time there is only alloc, and of a profile without a span alloc is since the trace began.

Each location is in a mapping and has an address in it. The same code has the same address in every profile, and no two
mappings share one: a store tells locations, and Alloy tells stacks, by address. So a mapping is no place in a process.
It is the file's own layout, moved by a number that its build ID gives. What is no code is in a mapping of its own, at
an address that its text gives. A frame without a name has no line, so that a store can find its name by build ID.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from tracer.binaries import Binary
from tracer.formatting import printable
from tracer.growth import Frame, Growth, Sample
from tracer.model import ALL_TIME

FILE_NAME = "shmtrace.pb"  # in gzip's header: save() knows an earlier output by it
ALLOC = (("alloc_objects", "count"), ("alloc_space", "bytes"))
INUSE = (("inuse_objects", "count"), ("inuse_space", "bytes"))
# pprof looks for no program where a name is in brackets
NO_BINARY = Binary("[shared memory]", None, 0, 1 << 48, 0)
NO_BINARY_AT = 1 << 62
MOVED_BY = 1 << 29  # times a number of 32 bits
# Numbers of fields in profile.proto
SAMPLE_TYPE, SAMPLE, MAPPING, LOCATION, FUNCTION, STRING_TABLE = 1, 2, 3, 4, 5, 6
TIME_NANOS, DURATION_NANOS, PERIOD_TYPE, PERIOD, COMMENT, DEFAULT_SAMPLE_TYPE = 9, 10, 11, 12, 13, 14
VALUE_TYPE_TYPE, VALUE_TYPE_UNIT = 1, 2
SAMPLE_LOCATION_ID, SAMPLE_VALUE, SAMPLE_LABEL = 1, 2, 3
LABEL_KEY, LABEL_STR = 1, 2
MAPPING_ID, MAPPING_START, MAPPING_LIMIT, MAPPING_OFFSET, MAPPING_FILENAME, MAPPING_BUILD_ID = 1, 2, 3, 4, 5, 6
MAPPING_HAS_FUNCTIONS = 7
LOCATION_ID, LOCATION_MAPPING_ID, LOCATION_ADDRESS, LOCATION_LINE = 1, 2, 3, 4
LINE_FUNCTION_ID = 1
FUNCTION_ID, FUNCTION_NAME, FUNCTION_SYSTEM_NAME, FUNCTION_FILENAME = 1, 2, 3, 4

T = TypeVar("T")


class Numbers(dict[T, int], Generic[T]):
    """Things, each numbered when it is first asked for."""

    def __init__(self, first: int, *things: T) -> None:
        super().__init__((thing, first + i) for i, thing in enumerate(things))
        self._first = first

    def __missing__(self, thing: T) -> int:
        self[thing] = number = self._first + len(self)
        return number


def render(growth: Growth) -> Iterator[bytes]:
    """The compressed profile of the newest account; the same growth makes the same bytes."""
    file = io.BytesIO()
    with gzip.GzipFile(FILE_NAME, "wb", fileobj=file, mtime=0) as compressed:
        compressed.writelines(_profile(growth))
    yield file.getvalue()


def _profile(growth: Growth) -> Iterator[bytes]:
    """The fields of a Profile. Which locations, functions and texts there are is known after the samples."""
    session, span_ns = growth.account.session, growth.span_ns
    types = ALLOC + INUSE if growth.account.window == ALL_TIME else ALLOC
    texts: Numbers[str] = Numbers(0, "")
    locations: Numbers[Frame] = Numbers(1)
    yield from (_bytes(SAMPLE_TYPE, _type(each, texts)) for each in types)
    # with stacks, who looks at what is held sees none
    yield _int(DEFAULT_SAMPLE_TYPE, texts["alloc_space" if growth.has_stacks or span_ns else "inuse_space"])
    yield _bytes(PERIOD_TYPE, _type(("space", "bytes"), texts)) + _int(PERIOD, session.page_bytes)
    if span_ns:  # Parca: with a duration, values are of this time alone
        yield _int(TIME_NANOS, span_ns[0]) + _int(DURATION_NANOS, max(span_ns[1] - span_ns[0], 1))
    else:
        yield _int(TIME_NANOS, session.ended_ns)
    yield _int(COMMENT, texts[f"shared memory of {printable(session.host)}, by shmtrace {session.version}"])
    for sample in dict.fromkeys([*growth.grown, *growth.held]):
        sizes = (growth.grown.get(sample, 0), growth.held[sample])
        values = [value for size_bytes in sizes for value in (size_bytes // session.page_bytes, size_bytes)][
            : len(types)
        ]
        if any(values):
            leaf_first = [locations[frame] for frame in reversed(sample.frames)]
            numbers = _ints(SAMPLE_LOCATION_ID, leaf_first) + _ints(SAMPLE_VALUE, values)
            yield _bytes(SAMPLE, numbers + _labels(sample, texts))
    yield from _code(locations, texts)
    yield from (_bytes(STRING_TABLE, text.encode()) for text in texts)


def _labels(sample: Sample, texts: Numbers[str]) -> bytes:
    found = (("command", sample.command), ("segment", sample.segment), ("unit", sample.unit))
    return b"".join(
        _bytes(SAMPLE_LABEL, _int(LABEL_KEY, texts[key]) + _int(LABEL_STR, texts[text])) for key, text in found if text
    )


def _code(locations: Numbers[Frame], texts: Numbers[str]) -> Iterator[bytes]:
    """Locations, their functions, and the mappings that they are in."""
    mappings: Numbers[Binary] = Numbers(1)
    functions: Numbers[tuple[str, str | None]] = Numbers(1)
    nameless = set()
    for frame, number in locations.items():
        binary = frame.binary or NO_BINARY
        place = _int(LOCATION_MAPPING_ID, mappings[binary]) + _int(LOCATION_ADDRESS, _address(frame))
        if frame.binary and frame.binary.build_id and frame.text.endswith(f"+{frame.address:#x}"):
            nameless.add(binary)
        else:
            line = _int(LINE_FUNCTION_ID, functions[frame.text, frame.file])
            place += _bytes(LOCATION_LINE, line)
        yield _bytes(LOCATION, _int(LOCATION_ID, number) + place)
    for (name, file), number in functions.items():
        names = _int(FUNCTION_NAME, texts[name]) + _int(FUNCTION_SYSTEM_NAME, texts[name])
        if file:
            names += _int(FUNCTION_FILENAME, texts[file])
        yield _bytes(FUNCTION, _int(FUNCTION_ID, number) + names)
    for binary, number in mappings.items():
        start = _start(binary)
        span = _int(MAPPING_START, start) + _int(MAPPING_LIMIT, start + binary.size_bytes)
        names = _int(MAPPING_FILENAME, texts[printable(binary.path)])
        if binary.build_id:
            names += _int(MAPPING_BUILD_ID, texts[printable(binary.build_id)])
        is_named = _int(MAPPING_HAS_FUNCTIONS, binary not in nameless)
        offset = _int(MAPPING_OFFSET, binary.offset_bytes)
        yield _bytes(MAPPING, _int(MAPPING_ID, number) + span + offset + names + is_named)


def _address(frame: Frame) -> int:
    if not frame.binary:
        return NO_BINARY_AT + _hash(frame.text, 48)
    return _start(frame.binary) + frame.address - frame.binary.address


def _start(binary: Binary) -> int:
    if binary == NO_BINARY:
        return NO_BINARY_AT
    return MOVED_BY * _hash(binary.build_id or binary.path, 32) + binary.address


def _hash(text: str, bits: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=bits // 8).digest(), "big")


# ---- protocol buffers ----


def _type(named: tuple[str, str], texts: Numbers[str]) -> bytes:
    return _int(VALUE_TYPE_TYPE, texts[named[0]]) + _int(VALUE_TYPE_UNIT, texts[named[1]])


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
