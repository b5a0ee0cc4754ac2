"""Profiles: what is held and what grew, with the answers known, and such as pprof, Pyroscope, Parca and Alloy take."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests import exported
from tests.exported import Sampled
from tests.recorded import BEGAN_NS, BUILD_ID, CONTAINER, END_S, at, pool, shmtrace, with_labels, with_stacks
from tracer import account, binaries
from tracer.capture.capture import Capture
from tracer.growth import Growth
from tracer.model import Account
from tracer.proc.shmem import PAGE_BYTES
from tracer.views import pprof as pprofs

pytestmark = pytest.mark.needs("protoc")

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/labels-and-stacks.md"
MASTER, WORKER = "php-fpm: master", "php-fpm: pool www"
INDEX = "/srv/www/index.php"
SERVICE = {"command": WORKER, "unit": "php8.2-fpm.service"}
IN_CONTAINER = {"command": WORKER, "unit": f"/docker/{CONTAINER}"}
OPCACHE, APCU = {"segment": "opcache"}, {"segment": "apcu"}


def change(path: Path, *statements: str) -> Path:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)
    return path


def profile_of(path: Path, *options: str | Path) -> Any:
    done = shmtrace("export", path, "--format", "pprof", *options)
    assert done.exit_code == 0, done.output
    return exported.pprof(done.stdout_bytes)


def pages(profile: Any) -> list[tuple[tuple[str, ...], tuple[int, ...], dict[str, str]]]:
    """(frames below the parent, pages by type, labels) of each sample; bytes are as many pages."""
    found = []
    for sample in exported.samples(profile):
        parent, *frames = sample.frames
        assert parent == MASTER
        counts = {kind: value for kind, value in sample.values.items() if kind.endswith("_objects")}
        assert [value * PAGE_BYTES for value in counts.values()] == [
            sample.values[kind.replace("objects", "space")] for kind in counts
        ]
        found.append((tuple(frames), tuple(counts.values()), sample.labels))
    return found


def test_what_grew_and_what_is_held(tmp_path: Path) -> None:
    """Grown is what was freed since, too, and what went with its region; held is all that is there."""
    profile = profile_of(pool(tmp_path / "x"))
    texts = profile.string_table
    assert [(texts[each.type], texts[each.unit]) for each in profile.sample_type] == [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ]
    assert texts[profile.default_sample_type] == "inuse_space"
    assert (texts[profile.period_type.type], texts[profile.period_type.unit]) == ("space", "bytes")
    assert profile.period == PAGE_BYTES
    assert (profile.time_nanos, profile.duration_nanos) == (at(END_S), 0)
    assert [texts[comment] for comment in profile.comment] == ["shared memory of web1, by shmtrace 0.1.0"]
    assert pages(profile) == [
        (("opcache?", WORKER), (26, 23), OPCACHE | SERVICE),
        (("opcache?", WORKER), (7, 7), OPCACHE | IN_CONTAINER),
        (("apcu?", WORKER), (5, 0), APCU | IN_CONTAINER),
        (("opcache?", "[before the trace]"), (0, 11), OPCACHE),
        (("opcache?", "[unseen]"), (0, 2), OPCACHE),
    ]
    [mapping] = profile.mapping
    assert (texts[mapping.filename], mapping.has_functions) == ("[shared memory]", True)


def test_by_label(tmp_path: Path) -> None:
    """What was freed is of none that is known. The frame of a script is in its file."""
    autoload = "/srv/www/vendor/autoload.php"
    profile = profile_of(with_labels(tmp_path / "x"))
    assert pages(profile) == [
        (("opcache?", WORKER, INDEX, autoload), (14, 14), OPCACHE | SERVICE),
        (("opcache?", WORKER, "?", "?"), (12, 9), OPCACHE | SERVICE),
        (("opcache?", WORKER, INDEX, INDEX), (7, 7), OPCACHE | IN_CONTAINER),
        (("apcu?", WORKER, "(none)", "(none)"), (5, 0), APCU | IN_CONTAINER),
        (("opcache?", "[before the trace]"), (0, 11), OPCACHE),
        (("opcache?", "[unseen]"), (0, 2), OPCACHE),
    ]
    texts = profile.string_table
    files = {texts[function.name]: texts[function.filename] for function in profile.function}
    assert {name: file for name, file in files.items() if file} == {INDEX: INDEX, autoload: autoload}


def test_by_a_text_of_ones_own(tmp_path: Path) -> None:
    path = change(
        with_labels(tmp_path / "x"),
        "UPDATE session SET label = 'app:&doing'",
        "UPDATE label SET text = 'job ' || id WHERE id < 3",
    )
    found = {frames[2]: counts for frames, counts, _ in pages(profile_of(path)) if len(frames) == 3}
    assert found == {"job 1": (14, 14), "?": (12, 9), "job 2": (7, 7), "(none)": (5, 0)}


# ---- stacks ----


def test_by_stack(tmp_path: Path) -> None:
    """By how much each grew; what is held is not known by stack."""
    profile = profile_of(with_stacks(tmp_path / "x"))
    assert profile.string_table[profile.default_sample_type] == "alloc_space"
    assert pages(profile) == [
        (("opcache?", WORKER, "main", "zend_shared_alloc"), (20, 0), OPCACHE | SERVICE),
        (("opcache?", WORKER, "main", "php-fpm8.2+0x1f0", "memset"), (4, 0), OPCACHE | SERVICE),
        (("opcache?", WORKER, "?"), (2, 0), OPCACHE | SERVICE),
        (("opcache?", WORKER, "main", "zend_shared_alloc"), (7, 0), OPCACHE | IN_CONTAINER),
        (("apcu?", WORKER, "main", "zend_shared_alloc"), (5, 0), APCU | IN_CONTAINER),
        (("opcache?", "[before the trace]"), (0, 11), OPCACHE),
        (("opcache?", "[unseen]"), (0, 2), OPCACHE),
        (("opcache?", WORKER), (0, 23), OPCACHE | SERVICE),
        (("opcache?", WORKER), (0, 7), OPCACHE | IN_CONTAINER),
    ]


def test_where_code_is(tmp_path: Path) -> None:
    """A mapping for each file, as that is laid out; a name that is not known is left to who knows the build ID."""
    profile = profile_of(with_stacks(tmp_path / "x"))
    texts = profile.string_table
    mappings = {texts[mapping.filename]: mapping for mapping in profile.mapping}
    assert sorted(mappings) == ["/lib/libc.so.6", "/usr/sbin/php-fpm8.2", "[shared memory]"]
    fpm, libc = mappings["/usr/sbin/php-fpm8.2"], mappings["/lib/libc.so.6"]
    assert (texts[fpm.build_id], texts[libc.build_id]) == (BUILD_ID, "")
    assert [mapping.memory_limit - mapping.memory_start for mapping in (fpm, libc)] == [8192, 4096]
    assert [mapping.file_offset for mapping in (fpm, libc)] == [0, 12288]
    assert [mapping.has_functions for mapping in (fpm, libc)] == [False, True]
    names = {function.id: texts[function.name] for function in profile.function}
    places = {
        (location.mapping_id, location.address): [names[line.function_id] for line in location.line]
        for location in profile.location
    }
    assert places[fpm.id, fpm.memory_start + 16] == ["main"]
    assert places[fpm.id, fpm.memory_start + 32] == ["zend_shared_alloc"]
    assert places[fpm.id, fpm.memory_start + 0x1F0] == []
    assert places[libc.id, libc.memory_start + 904] == ["memset"]


def test_the_same_code_has_the_same_address(tmp_path: Path) -> None:
    """In another capture, with other stacks, numbers and containers; and what is no code, too."""
    first = profile_of(with_stacks(tmp_path / "x"))
    other = change(
        with_stacks(tmp_path / "y"),
        "UPDATE binary SET path = '/rootfs' || path WHERE id = 1",
        "UPDATE process SET tgid = tgid + 100",
        "UPDATE region SET ino = ino + 100",
        "DELETE FROM stacked WHERE stack = 2",
    )
    second = profile_of(other)

    def addresses(profile: Any) -> dict[str, int]:
        texts = profile.string_table
        names = {function.id: texts[function.name] for function in profile.function}
        return {names[each.line[0].function_id]: each.address for each in profile.location if each.line}

    before, after = addresses(first), addresses(second)
    assert after.keys() == before.keys() - {"zend_shared_alloc"}
    assert after.items() <= before.items()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE binary SET address = 4611686018427387904",
        "UPDATE binary SET size_bytes = 0",
        "UPDATE binary SET size_bytes = 9223372036854775807",
        "UPDATE frame SET address = 9223372036854775807",
        "UPDATE binary SET path = char(27) || '[2J', build_id = char(10)",
        "UPDATE binary SET path = '[shared memory]', build_id = NULL, address = 0, size_bytes = 281474976710656",
        "UPDATE binary SET path = '', build_id = '', address = 0, size_bytes = 1 << 60",
        "UPDATE frame SET line = 99 + line",
        "UPDATE process SET command = hex(zeroblob(3000)) || char(0x202e)",
        "UPDATE region SET name = '', kind = '', hint = NULL, address = NULL",
        "UPDATE stack SET frames = char(10) || frames",
        "UPDATE session SET host = char(27) || 'executableInfo='",
    ],
)
def test_what_a_stranger_has_made(statement: str, tmp_path: Path) -> None:
    """It is a profile nevertheless, of as many pages."""
    profile = profile_of(change(with_stacks(tmp_path / "x"), statement))
    samples = exported.samples(profile)
    assert sum(sample.values["alloc_objects"] for sample in samples) == 38
    assert sum(sample.values["inuse_objects"] for sample in samples) == 43
    assert all(text.isprintable() for text in profile.string_table)


# ---- growth ----


def later(path: Path, *statements: str) -> Path:
    """A later part of a trace, in which this has happened."""
    after = path.with_name(f"{path.name}-later")
    shutil.copy(path, after)
    return change(after, "UPDATE session SET ended_ns = ended_ns + 60000000000", *statements)


def test_what_grew_since_an_earlier_part(tmp_path: Path) -> None:
    """By stack: 7 by one that had made some, 5 by another process's, 3 of which nothing is known; 4 were freed."""
    path = with_stacks(tmp_path / "x")
    after = later(
        path,
        "UPDATE stacked SET pages = pages + 7 WHERE region = 1 AND process = 2 AND stack = 2",
        "INSERT INTO stacked VALUES (1, 3, 3, 5)",
        "UPDATE stacked SET pages = pages + 3 WHERE region = 1 AND process = 3 AND stack = 1",
        "UPDATE usage SET freed_pages = 7 WHERE process = 2",
        "UPDATE touched SET pages = pages + 3 WHERE region = 1 AND process = 2",
        "UPDATE touched SET pages = pages + 8 WHERE region = 1 AND process = 3",
        "UPDATE region SET allocated_bytes = allocated_bytes + 11 * 4096 WHERE id = 1",
    )
    profile = profile_of(after, "--base", path)
    assert (profile.time_nanos, profile.duration_nanos) == (at(END_S), 60 * 10**9)
    assert pages(profile) == [
        (("opcache?", WORKER, "main", "zend_shared_alloc"), (7, 0), OPCACHE | SERVICE),
        (("opcache?", WORKER, "main", "php-fpm8.2+0x1f0", "memset"), (5, 0), OPCACHE | IN_CONTAINER),
        (("opcache?", WORKER, "?"), (3, 0), OPCACHE | IN_CONTAINER),
        (("opcache?", "[before the trace]"), (0, 11), OPCACHE),
        (("opcache?", "[unseen]"), (0, 2), OPCACHE),
        (("opcache?", WORKER), (0, 26), OPCACHE | SERVICE),
        (("opcache?", WORKER), (0, 15), OPCACHE | IN_CONTAINER),
    ]
    nothing = profile_of(path, "--base", path)
    assert sum(sample.values["alloc_space"] for sample in exported.samples(nothing)) == 0
    assert nothing.duration_nanos == 1  # or Parca takes it for one of all time


@pytest.mark.parametrize(
    ("statement", "grown_pages"),
    [
        ("UPDATE process SET tgid = 913, start_time_ns = start_time_ns + 7 WHERE id = 3", 7 + 5),
        ("UPDATE region SET ino = ino + 1, generation = 9 WHERE id = 1", 26 + 7),
    ],
)
def test_a_row_that_is_used_again_is_another(statement: str, grown_pages: int, tmp_path: Path) -> None:
    """SQLite gives the number of what a part has left to the next."""
    path = with_stacks(tmp_path / "x")
    samples = exported.samples(profile_of(later(path, statement), "--base", path))
    assert sum(sample.values["alloc_objects"] for sample in samples) == grown_pages


def test_another_trace_is_no_base(tmp_path: Path) -> None:
    path = pool(tmp_path / "x")
    other = change(pool(tmp_path / "other"), "UPDATE session SET started_ns = started_ns + 1")
    after = later(path)
    for one, base in ((path, other), (path, after)):
        done = shmtrace("export", one, "--format", "pprof", "--base", base)
        assert (done.exit_code, done.stdout_bytes) == (1, b"")
        assert done.stderr == (
            f"shmtrace: {base} is no earlier part of this trace: --base takes one that `record --rotate` has kept\n"
        )


def test_a_window(tmp_path: Path) -> None:
    """By label: 9 of no known label at 20.5 s, and not what was touched before or after it, or was there."""
    path = with_labels(tmp_path / "x")
    profile = profile_of(path, "--since", "+20s", "--until", "2023-11-14T22:13:40.8Z")
    assert [profile.string_table[each.type] for each in profile.sample_type] == ["alloc_objects", "alloc_space"]
    assert (profile.time_nanos, profile.duration_nanos) == (at(20), 800_000_000)
    assert pages(profile) == [(("opcache?", WORKER, "?", "?"), (9,), OPCACHE | SERVICE)]
    profile = profile_of(path, "--until", "+20s")
    assert (profile.time_nanos, profile.duration_nanos) == (BEGAN_NS, 20 * 10**9)
    assert [counts for _, counts, _ in pages(profile)] == [(14,), (5,)]
    profile = profile_of(path, "--since", "2022-01-01", "--until", "2024-01-01")
    assert (profile.time_nanos, profile.duration_nanos) == (BEGAN_NS, END_S * 10**9)
    assert [counts for _, counts, _ in pages(profile)] == [(14,), (9,), (7,), (5,)]


@pytest.mark.parametrize("form", ["folded", "svg", "speedscope", "pprof"])
def test_a_window_of_stacks(form: str, tmp_path: Path) -> None:
    done = shmtrace("export", with_stacks(tmp_path / "x"), "--format", form, "--since", "+1s")
    assert (done.exit_code, done.stdout_bytes) == (1, b"")
    assert done.stderr == (
        "shmtrace: --since and --until do not go with stacks, which are recorded without times: --base shows what grew "
        "since an earlier part of the trace\n"
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--format", "csv", "--since", "+1s"], "--format csv takes no --since or --until: it has times itself"),
        (["--format", "perfetto", "--until", "+1s"], "--format perfetto takes no --since or --until"),
        (["--format", "svg", "--base", "x"], "--base needs a FILE and --format pprof, and takes no --since or --until"),
        (["--format", "pprof", "--base", "x", "--since", "+1s"], "--base needs a FILE and --format pprof"),
    ],
)
def test_what_does_not_go_together(options: list[str], error: str, tmp_path: Path) -> None:
    done = shmtrace("export", pool(tmp_path / "x"), *options)
    assert done.exit_code == 2
    assert error in done.stderr


class Store(BaseHTTPRequestHandler):
    """Takes what is sent to Pyroscope."""

    taken: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.taken.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.needs("bash", "curl")
def test_what_the_documents_send(tmp_path: Path) -> None:
    """Each part that is over, once, as what grew since the one before; a trace that began anew is none."""
    [loop] = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    paths = [tmp_path / f"pool.20231114-2213{second}.capture" for second in (20, 30, 40, 50)]
    with_stacks(paths[0])
    grew = "UPDATE stacked SET pages = pages + 7 WHERE region = 1 AND process = 2 AND stack = 2"
    for path, before in zip(paths[1:], paths):
        later(before, grew).rename(path)
    for path in paths[2:]:
        change(path, "UPDATE session SET started_ns = started_ns + 1")
    with_stacks(tmp_path / "pool.capture")  # which is being written
    for number, path in enumerate(paths):
        os.utime(path, (1700000000 + 10 * number,) * 2)
    program = tmp_path / "bin" / "shmtrace"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tracer "$@"\n')
    program.chmod(0o755)
    with HTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        more = {"PYROSCOPE": f"http://127.0.0.1:{server.server_port}", "HOSTNAME": "web1"}
        environment = {**os.environ, **more, "PATH": f"{program.parent}:{os.environ['PATH']}"}
        once = loop.replace("while sleep 5; do", "for _ in 1 2; do")
        command = ["bash", "-c", once]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        server.shutdown()
    sent = [(path, body) for path, body in Store.taken if body]
    assert [path for path, _ in sent] == [
        "/ingest?name=shmtrace%7Bhost%3Dweb1%7D&format=pprof&from=1700000000&until=1700000010",
        "/ingest?name=shmtrace%7Bhost%3Dweb1%7D&format=pprof&from=1700000020&until=1700000030",
    ]
    for _, body in sent:
        samples = exported.samples(exported.pprof(body))
        assert sum(sample.values["alloc_objects"] for sample in samples) == 7
    assert done.stderr.count("is no earlier part of this trace") == 1


# ---- a trace that runs ----


def add(growth: Growth, path: Path) -> list[Sampled]:
    with Capture.open(path) as capture:
        growth.add(account.read(capture), binaries.read(capture))
    return exported.samples(exported.pprof(b"".join(pprofs.render(growth))))


def grown(samples: list[Sampled]) -> dict[tuple[str, ...], int]:
    """Pages by the frames below the group."""
    found: dict[tuple[str, ...], int] = {}
    for sample in samples:
        if sample.values["alloc_objects"]:
            found[sample.frames[3:]] = found.get(sample.frames[3:], 0) + sample.values["alloc_objects"]
    return found


def test_what_grew_never_goes_back(tmp_path: Path) -> None:
    """Not with a label whose pages are freed, one that becomes known, or what the next part does not have any more."""
    path = with_labels(tmp_path / "x")
    growth = Growth()
    autoload, index = (INDEX, "/srv/www/vendor/autoload.php"), (INDEX, INDEX)
    assert grown(add(growth, path)) == {autoload: 14, ("?", "?"): 12, index: 7, ("(none)",) * 2: 5}
    change(
        path,  # 812 has freed 6 of its 14, and touched 2 of them again
        "UPDATE touched SET pages = pages - 4 WHERE process = 2 AND label = 1",
        "UPDATE usage SET freed_pages = 9 WHERE process = 2",
    )
    assert grown(add(growth, path)) == {autoload: 14, ("?", "?"): 14, index: 7, ("(none)",) * 2: 5}
    change(
        path,  # the script that its 9 pages were for is known now
        "UPDATE touched SET label = 2 WHERE process = 2 AND label IS NULL",
    )
    assert grown(add(growth, path)) == {autoload: 14, ("?", "?"): 14, index: 16, ("(none)",) * 2: 5}
    change(
        path,  # it touches 11 of which the script is not known yet: as many of ? as there were too many
        "UPDATE usage SET freed_pages = freed_pages + 11 WHERE process = 2",
    )
    assert grown(add(growth, path)) == {autoload: 14, ("?", "?"): 16, index: 16, ("(none)",) * 2: 5}
    change(
        path,  # the next part
        *(f"DELETE FROM {table} WHERE region = 2" for table in ("extent", "touched", "sample")),  # noqa: S608
        "DELETE FROM region WHERE id = 2",
        "UPDATE touched SET pages = pages + 1 WHERE process = 3 AND region = 1",
    )
    assert grown(add(growth, path)) == {autoload: 14, ("?", "?"): 16, index: 17, ("(none)",) * 2: 5}


def test_no_more_samples_than_there_is_room_for(tmp_path: Path) -> None:
    """Of a trace that goes on; each keeps its place, and all that grew is there."""
    path = with_labels(tmp_path / "x")
    growth, few = Growth(), Growth(most=3)
    all_pages = sum(grown(add(growth, path)).values())
    first = grown(add(few, path))
    assert (len(first), sum(first.values())) == (4, all_pages)
    change(path, "UPDATE usage SET freed_pages = freed_pages + 11 WHERE process = 2")
    now = grown(add(few, path))
    assert now.keys() == first.keys()
    assert sum(now.values()) == all_pages + 11
    assert any(sample.frames == ("[other]",) for sample in add(few, path))
    assert len({*few.grown, *few.held}) == 4  # what is held, too, in those and in no others
    assert sum(few.held.values()) == sum(growth.held.values()) == 43 * PAGE_BYTES


def test_growth_in_a_span_is_exact_by_process(tmp_path: Path) -> None:
    """As of a scrape that asks for the growth of some seconds."""
    path = with_labels(tmp_path / "x")
    with Capture.open(path) as capture:
        before: Account = account.read(capture)
    change(
        path,
        "UPDATE touched SET pages = pages - 4 WHERE process = 2 AND label = 1",
        "UPDATE usage SET freed_pages = 9 WHERE process = 2",
        "UPDATE session SET ended_ns = ended_ns + 10000000000",
    )
    growth = Growth(before)
    assert grown(add(growth, path)) == {("?", "?"): 2}
    assert growth.span_ns == (at(END_S), at(END_S + 10))


# ---- the rules ----


def broken(break_it: Callable[[Any], None], path: Path) -> bytes:
    profile = profile_of(path)
    break_it(profile)
    return gzip.compress(profile.SerializeToString())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda profile: setattr(profile.location[3], "mapping_id", 0),
        lambda profile: setattr(profile.location[3], "mapping_id", 9),
        lambda profile: setattr(profile.location[3], "address", 0),
        lambda profile: setattr(profile.location[3], "address", profile.location[2].address),
        lambda profile: setattr(profile.location[3], "id", 17),
        lambda profile: setattr(profile.function[0], "id", 0),
        lambda profile: setattr(profile.function[0], "name", 999),
        lambda profile: setattr(profile.mapping[0], "memory_limit", profile.mapping[0].memory_start),
        lambda profile: setattr(profile.mapping[0], "build_id", 999),
        lambda profile: [each.ClearField("build_id") for each in profile.mapping],
        lambda profile: profile.ClearField("period_type"),
        lambda profile: profile.ClearField("time_nanos"),
        lambda profile: profile.ClearField("sample_type"),
        lambda profile: profile.ClearField("default_sample_type"),
        lambda profile: profile.sample[0].value.append(1),
        lambda profile: profile.sample[0].value.__setitem__(0, -1),
        lambda profile: profile.sample[0].value.__setitem__(slice(None), [0, 0, 0, 0]),
        lambda profile: profile.sample[0].location_id.append(999),
        lambda profile: profile.sample.append(profile.sample[0]),
        lambda profile: setattr(profile.sample[0].label[0], "key", 0),
        lambda profile: setattr(profile.sample[0].label[0], "num", 7),
        lambda profile: setattr(profile.sample[0].label[0], "str", 0),
        lambda profile: profile.string_table.__setitem__(0, "x"),
        lambda profile: profile.string_table.__setitem__(profile.sample[0].label[0].key, "a b"),
        lambda profile: profile.string_table.__setitem__(profile.sample[0].label[0].str, "x" * 2049),
        lambda profile: profile.string_table.__setitem__(profile.sample_type[0].type, "alloc-objects"),
    ],
)
def test_the_rules_are_asked_for(break_it: Callable[[Any], None], tmp_path: Path) -> None:
    path = with_stacks(tmp_path / "x")
    assert profile_of(path)
    with pytest.raises(AssertionError):
        exported.pprof(broken(break_it, path))
