"""Exports as other programs read them: flamegraph.pl's grammar, an XML parser, and protoc with pprof's own schema."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

PPROF_SCHEMA = Path("/usr/share/gocode/src/github.com/google/pprof/proto")
"""Debian's golang-github-google-pprof-dev."""
SPEEDSCOPE_SCHEMA = json.loads(Path(__file__).with_name("speedscope-schema.json").read_text())
"""speedscope's own, of its package on npm (MIT, Jamie Wong)."""
SVG = "{http://www.w3.org/2000/svg}"


class Drawn(NamedTuple):
    """A frame of an SVG."""

    name: str
    row: int
    from_bytes: int
    size_bytes: int
    x: float
    width: float
    text: str


def folded(text: str) -> Counter[tuple[str, ...]]:
    """Bytes by stack. All but the last word is the stack."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in text.splitlines():
        match = re.fullmatch(r"(\S.*) (\d+)", line)
        assert match, line
        found[tuple(match[1].split(";"))] += int(match[2])
    return found


def svg(text: str) -> list[Drawn]:
    """The frames of an SVG, in which each lies within one of the row above."""
    frames = []
    for element in ElementTree.fromstring(text).iter(f"{SVG}svg"):  # noqa: S314
        if "frame" in element.get("class", "").split():
            name = element.findtext(f"{SVG}title", "").split("\n")[0]
            places = [float(element.get(key, "")) for key in ("x", "width")]
            numbers = [int(element.get(key, "")) for key in ("y", "data-from", "data-bytes")]
            frames.append(Drawn(name, *numbers, *places, element.findtext(f"{SVG}text", "")))
    rows = sorted({frame.row for frame in frames})
    by_row = [[frame for frame in frames if frame.row == y] for y in rows]
    for above, below in zip(by_row, by_row[1:]):
        within = (any(_lies_in(frame, other) for other in above) for frame in below)
        assert all(within), "a frame without one above it"
    return [frame._replace(row=rows.index(frame.row)) for frame in frames]


def _lies_in(frame: Drawn, other: Drawn) -> bool:
    starts, ends = frame.from_bytes, frame.from_bytes + frame.size_bytes
    return other.from_bytes <= starts and ends <= other.from_bytes + other.size_bytes


@functools.cache
def _profile() -> Any:
    """pprof's message Profile, as protoc makes it of the schema."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["protoc", "-I", PPROF_SCHEMA, "--python_out", directory, "profile.proto"], check=True)
        spec = importlib.util.spec_from_file_location("profile_pb2", f"{directory}/profile_pb2.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.Profile


def pprof(data: bytes) -> Any:
    """A profile in which all that google/pprof's CheckValid() asks for is so, and no more than the schema has."""
    profile = _profile().FromString(gzip.decompress(data))
    size = profile.ByteSize()
    profile.DiscardUnknownFields()
    assert profile.ByteSize() == size
    texts = profile.string_table
    assert texts[0] == ""
    assert len(set(texts)) == len(texts)
    mappings, locations, functions = (
        Counter(each.id for each in some) for some in (profile.mapping, profile.location, profile.function)
    )
    for ids in (mappings, locations, functions):
        assert 0 not in ids
        assert set(ids.values()) <= {1}
    for sample in profile.sample:
        assert len(sample.value) == len(profile.sample_type)
        assert set(sample.location_id) <= locations.keys()
        for label in sample.label:
            assert texts[label.key]
            assert bool(label.str) != bool(label.num)
    for location in profile.location:
        assert location.mapping_id in mappings
        assert {line.function_id for line in location.line} <= functions.keys()
    return profile


def samples(profile: Any) -> list[tuple[tuple[str, ...], tuple[int, ...], dict[str, Any]]]:
    """(frames from the root, values, labels) of each sample of a profile."""
    texts = profile.string_table
    names = {function.id: texts[function.name] for function in profile.function}
    frames = {location.id: names[location.line[0].function_id] for location in profile.location}
    return [
        (
            tuple(frames[number] for number in reversed(sample.location_id)),
            tuple(sample.value),
            {texts[label.key]: texts[label.str] if label.str else label.num for label in sample.label},
        )
        for sample in profile.sample
    ]


def trace_events(text: str) -> list[dict[str, Any]]:
    """The events of a trace in JSON, each with the fields that the Trace Event Format gives its kind."""
    events = json.loads(text)["traceEvents"]
    for event in events:
        kind, arguments = event["ph"], event.get("args", {})
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert event["pid"] < 1 << 32
        if kind == "M":
            assert (event["name"], list(arguments)) == ("process_name", ["name"])
            assert isinstance(arguments["name"], str)
            continue
        assert event["ts"] >= 0
        if kind == "C":
            assert all(value >= 0 for value in arguments.values())
            assert arguments
        elif kind == "X":
            assert event["dur"] >= 0
            assert isinstance(event["tid"], int)
        else:
            assert (kind, event["s"]) == ("i", "p")
    return events
