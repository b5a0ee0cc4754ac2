"""What bpf/ writes, into a ring buffer or a map: of its size and kind, with whatever strangers can put in."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.harness import Fuzzer, Given
from tracer import wire
from tracer.kernel import events
from tracer.kernel.updates import KernelProcess, KernelRegion, text

EVENTS = {"news": wire.EVENT_NEWS, "punch": wire.EVENT_PUNCH, "label": wire.EVENT_LABEL}
KINDS = {
    "news": 0,
    "punch": wire.PUNCH.size,
    "label": wire.LABEL_SINCE.size + wire.TEXTS.size,
    "process": wire.PROCESS.size,
    "region": wire.REGION.size,
}
LENGTHS_AT, LENGTH_BYTES = wire.LABEL_SINCE.size, 8
PIECES = [
    b"\xff\xfe",
    b"\xc3",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\x1b]0;x\x07",
    b"\0",
    b"\n",
    b"a" * 99,
    "é漢\u202e".encode(),
]

_bytes = st.one_of(st.binary(max_size=64), st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)).map(bytes.hex)
_label = st.integers(wire.TEXT_UNREADABLE, wire.TEXT_BYTES)
inputs = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(KINDS)),
        "at": st.integers(0, 560),
        "bytes": _bytes,
        "fill": st.sampled_from([0, 1, 0x41, 0x80, 0xFF]),
        "lengths": st.lists(_label, min_size=wire.MAX_TEXTS, max_size=wire.MAX_TEXTS),
    }
)


def raw(given: Given) -> bytes:
    kind, size_bytes = given["kind"], KINDS[given["kind"]]
    rest = bytearray([given["fill"]]) * size_bytes
    text = bytes.fromhex(given["bytes"])
    rest[given["at"] : given["at"] + len(text)] = text
    del rest[size_bytes:]
    if kind == "label":  # these are the kernel side's own
        for number, length in enumerate(given["lengths"]):
            at = LENGTHS_AT + LENGTH_BYTES * number
            rest[at : at + LENGTH_BYTES] = length.to_bytes(LENGTH_BYTES, "little", signed=True)
    return wire.EVENT.pack(7, 812, EVENTS[kind]) + rest if kind in EVENTS else bytes(rest)


def give(given: Given) -> None:
    found: object
    if given["kind"] == "process":
        process = KernelProcess.unpack(raw(given))
        found = text(process.comm), process.titles()
    else:
        found = KernelRegion.unpack(raw(given)) if given["kind"] == "region" else events.decode(raw(given))
    for value in _texts(found):
        assert "\0" not in value
        assert len(value) <= 4 * wire.TITLE_BYTES
        assert value.encode().decode() == value  # what SQLite, JSON and a terminal take


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in _texts(item)] if isinstance(value, tuple) else []


FUZZER = Fuzzer("ring", inputs, give, 80)
