"""Captures of which bytes are not as they were: a bad disk, a download that broke off, a stranger with an editor."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz import captures
from tests.fuzz.captures import INTEGERS
from tests.fuzz.harness import Fuzzer, Given

PAGE_BYTES = 4096
HEADER_BYTES = 100

_anywhere = st.integers(0, INTEGERS)
_number = st.sampled_from([1, 2, 4, 16, 64, 512])
_byte = st.integers(0, 255)
slight = st.one_of(
    st.tuples(st.just("flip"), _anywhere, st.integers(0, 7)),
    st.tuples(st.just("set"), _anywhere, _byte),
    st.tuples(st.just("no UTF-8"), _anywhere),
)
"""What may well leave a sound database, of other figures and names."""
severe = st.one_of(
    st.tuples(st.just("header"), st.integers(0, HEADER_BYTES - 1), _byte),
    st.tuples(st.just("page head"), _anywhere, st.integers(0, 15), _byte),
    st.tuples(st.just("fill"), _anywhere, _number, st.sampled_from([0, 0x7F, 0xFF])),
    st.tuples(st.just("cut out"), _anywhere, _number),
    st.tuples(st.just("cut off"), _anywhere),
    st.tuples(st.just("page"), _anywhere, _anywhere),
)
inputs = st.fixed_dictionaries(
    {
        "capture": captures.names,
        "changes": st.one_of(
            st.lists(slight, min_size=1, max_size=3),
            st.lists(slight, min_size=1, max_size=3),
            st.lists(st.one_of(slight, severe), min_size=1, max_size=16),
        ),
        "command": captures.commands,
    }
)


def changed(data: bytearray, what: str, *how: int) -> None:
    size, pages = len(data), len(data) // PAGE_BYTES
    if not pages:
        return
    at = how[0] % size
    if what == "flip":
        data[at] ^= 1 << how[1]
    elif what in ("set", "header"):
        data[at] = how[1]
    elif what == "page head":
        data[how[0] % pages * PAGE_BYTES + how[1]] = how[2]
    elif what == "fill":
        data[at : at + how[1]] = bytes([how[2]]) * len(data[at : at + how[1]])
    elif what == "cut out":
        del data[at : at + how[1]]
    elif what == "cut off":
        del data[at:]
    elif what == "page":
        here, there = (number % pages * PAGE_BYTES for number in how)
        data[here : here + PAGE_BYTES] = data[there : there + PAGE_BYTES]
    else:
        text = next((place for place in range(at, size) if 32 <= data[place] < 127), at)
        data[text] |= 0x80


def write(given: Given, directory: Path) -> None:
    path = captures.put(given, directory)
    data = bytearray(path.read_bytes())
    for what, *how in given["changes"]:
        changed(data, what, *how)
    path.write_bytes(data)


FUZZER = Fuzzer("capture_bits", inputs, captures.give, 150, write, captures.check, captures.warm)
