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
    """A profile that pprof and the stores take. Each rule is theirs, from the sources that are named."""
    profile = _profile().FromString(gzip.decompress(data))
    size = profile.ByteSize()
    profile.DiscardUnknownFields()
    assert profile.ByteSize() == size
    for check in (_pprof_takes_it, _parca_takes_it, _pprof_finds_code, _pyroscope_takes_it, _alloy_tells_stacks):
        check(profile)
    return profile


def _pprof_takes_it(profile: Any) -> None:
    """google/pprof: CheckValid() and postDecode() in profile/, and the comments of proto/profile.proto."""
    texts = profile.string_table
    mappings, locations, functions = (
        Counter(each.id for each in some) for some in (profile.mapping, profile.location, profile.function)
    )
    for ids in (mappings, locations, functions):
        assert 0 not in ids
        assert set(ids.values()) <= {1}
    assert profile.sample_type
    for sample in profile.sample:
        assert len(sample.value) == len(profile.sample_type)
        assert set(sample.location_id) <= locations.keys()
        for label in sample.label:
            assert texts[label.key]
            assert bool(label.str) != bool(label.num)
    for location in profile.location:
        assert location.mapping_id in mappings
        assert {line.function_id for line in location.line} <= functions.keys()
    types = [texts[each.type] for each in profile.sample_type]
    assert texts[profile.default_sample_type] in types
    assert len(set(types)) == len(types)


def _pprof_finds_code(profile: Any) -> None:
    """google/pprof: FindTextProgHeader() and GetBase() in internal/elfexec, of a mapping from and to whole pages."""
    mappings = {mapping.id: mapping for mapping in profile.mapping}
    for mapping in profile.mapping:
        assert mapping.memory_start < mapping.memory_limit < 1 << 63
        assert mapping.file_offset % 4096 == mapping.memory_start % 4096
    for location in profile.location:
        mapping = mappings[location.mapping_id]
        assert mapping.memory_start <= location.address < mapping.memory_limit
        assert location.line or profile.string_table[mapping.build_id]


def _parca_takes_it(profile: Any) -> None:
    """parca-dev/parca: ValidatePprofProfile() in pkg/normalizer/validate.go, processScrapeResp() in pkg/scrape."""
    texts = profile.string_table
    assert texts[0] == ""
    for some in (profile.mapping, profile.location, profile.function):
        assert [each.id for each in some] == list(range(1, len(some) + 1))
    numbers = [number for each in profile.mapping for number in (each.filename, each.build_id)]
    numbers += [number for each in profile.function for number in (each.name, each.system_name, each.filename)]
    numbers += [number for sample in profile.sample for label in sample.label for number in (label.key, label.str)]
    assert all(0 <= number < len(texts) for number in numbers)
    assert not any(texts[comment].startswith("executableInfo=") for comment in profile.comment)


def _pyroscope_takes_it(profile: Any) -> None:
    """grafana/pyroscope: pkg/validation/validate.go with the limits that it has of itself; what Normalize() and
    sanitizeProfile() in pkg/pprof would drop; metricName() and fixTime() in pkg/og/convert/pprof/profile.go."""
    texts = profile.string_table
    assert profile.HasField("period_type")  # visitAllNameReferences() does not ask
    assert profile.time_nanos > 366 * 86400 * 10**9
    assert len(profile.sample) <= 16000
    assert not any("-" in texts[each.type] for each in profile.sample_type)
    assert any("alloc_" in texts[each.type] for each in profile.sample_type)  # "memory"
    for location in profile.location:
        assert location.line or location.address
    for sample in profile.sample:
        assert any(value > 0 for value in sample.value)
        assert min(sample.value) >= 0
        keys = [texts[label.key] for label in sample.label]
        assert len(keys) <= 20  # of 30; the store and who sends it add some
        assert len(set(keys)) == len(keys)
        assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", key) and not key.startswith("__") for key in keys)
        assert all(0 < len(texts[label.str].encode()) <= 2048 for label in sample.label)


def _alloy_tells_stacks(profile: Any) -> None:
    """grafana/alloy: internal/component/pyroscope/scrape/internal/fastdelta, to which a stack is its addresses."""
    addresses = {location.id: location.address for location in profile.location}
    assert len(set(addresses.values())) == len(addresses)
    told = Counter(
        (
            tuple(addresses[number] for number in sample.location_id),
            tuple((each.key, each.str) for each in sample.label),
        )
        for sample in profile.sample
    )
    assert set(told.values()) <= {1}


class Sampled(NamedTuple):
    """A sample of a profile."""

    frames: tuple[str, ...]
    """From the root; of code without a name, its file and address in it."""
    values: dict[str, int]
    labels: dict[str, str]


def samples(profile: Any) -> list[Sampled]:
    texts = profile.string_table
    names = {function.id: texts[function.name] for function in profile.function}
    mappings = {mapping.id: mapping for mapping in profile.mapping}
    frames = {}
    for location in profile.location:
        mapping = mappings[location.mapping_id]
        place = f"{Path(texts[mapping.filename]).name}+{location.address - mapping.memory_start:#x}"
        frames[location.id] = names[location.line[0].function_id] if location.line else place
    types = [texts[each.type] for each in profile.sample_type]
    return [
        Sampled(
            tuple(frames[number] for number in reversed(sample.location_id)),
            dict(zip(types, sample.value)),
            {texts[label.key]: texts[label.str] for label in sample.label},
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
