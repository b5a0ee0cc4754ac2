"""A capture for other programs: each reads it, and comes to the figures of the account."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from tests import exported
from tests.bench.captures import make
from tests.live.terminal import on_terminal
from tests.recorded import shmtrace, with_labels, with_stacks
from tracer import account
from tracer.capture.capture import Capture
from tracer.cli import main
from tracer.proc.shmem import PAGE_BYTES
from tracer.views import perfetto
from tracer.views.json import rfc3339

BEGAN_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
INDEX = "/srv/www/index.php"
HOSTILE = "=cmd;rm -rf\n\x1b[2J 7"

# region: pages of (seconds after the beginning, process, pages), before, unseen
TOUCHES = {"opcache": [(0, 1, 3), (1, 2, 23), (1, 3, 7), (9, 2, 5)], "apcu": [(4, 3, 11)]}
BEFORE, UNSEEN = {"opcache": 13, "apcu": 0}, {"opcache": 2, "apcu": 0}


def at(seconds: float) -> int:
    return BEGAN_NS + int(seconds * SECOND_NS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.capture"
    with Capture(path) as capture:
        capture.insert(
            "session",
            version="0.1.0",
            host="web1",
            kernel="6.1",
            tier="exact",
            mechanism="kprobe",
            blind_to="",
            started_ns=at(0),
            ended_ns=at(10),
            complete=1,
        )
        commands = {1: "php-fpm: master process", 2: "php-fpm: pool www", 3: HOSTILE}
        for number, command in commands.items():
            exited_ns = at(6) if number == 3 else None
            capture.insert(
                "process", tgid=810 + number, start_time_ns=number, comm="php-fpm", command=command, parent_tgid=811,
                started_ns=at(number - 2), exited_ns=exited_ns,
            )  # fmt: skip
        for number, (name, touches) in enumerate(TOUCHES.items(), 1):
            pages = BEFORE[name] + UNSEEN[name] + sum(pages for _, _, pages in touches)
            size_bytes = pages * PAGE_BYTES
            row = capture.insert(
                "region", dev=1, ino=number, generation=5, kind="anon", name=f"/{name}", parent=1, creator=1,
                size_bytes=1 << 30, allocated_bytes=size_bytes, start_bytes=BEFORE[name] * PAGE_BYTES,
                created_ns=at(2) if name == "apcu" else None, peak_bytes=size_bytes,
            )  # fmt: skip
            if BEFORE[name]:
                capture.insert("extent", region=row, start=0, end=BEFORE[name])
            start = BEFORE[name]
            for seconds, process, pages in touches:
                first_ns = at(seconds)
                capture.insert(
                    "extent", region=row, start=start, end=start + pages, process=process, first_ns=first_ns,
                    last_ns=first_ns + 5,
                )  # fmt: skip
                start += pages
            capture.insert("sample", region=row, time_ns=at(9.5), allocated_bytes=size_bytes, swapped_bytes=0)
        capture.insert("host_sample", time_ns=at(1), shmem_bytes=77 * PAGE_BYTES)
        capture.insert("exec", time_ns=at(3), process=1, comm="php-fpm", command="php-fpm -F")
    return path


def export_bytes(path: Path, form: str, *options: str) -> bytes:
    done = shmtrace("export", path, "--format", form, *options)
    assert done.exit_code == 0, done.output
    return done.stdout_bytes


def export(path: Path, form: str, *options: str) -> str:
    return export_bytes(path, form, *options).decode()


def pages_wanted() -> Iterator[tuple[str, int]]:
    for name, touches in TOUCHES.items():
        yield name, BEFORE[name] + UNSEEN[name] + sum(pages for _, _, pages in touches)


def test_folded(path: Path) -> None:
    """As flamegraph.pl reads it: all but the last word is the stack."""
    leaves: Counter[str] = Counter()
    regions: Counter[str] = Counter()
    for line in export(path, "folded").splitlines():
        found = re.fullmatch(r"([^;]+);([^;]+);([^;]+) (\d+)", line)
        assert found
        assert found[1] == "811 php-fpm: master process"
        regions[found[2]] += int(found[4])
        leaves[found[3]] += int(found[4])
    assert [size // PAGE_BYTES for size in regions.values()] == [pages for _, pages in pages_wanted()]
    assert {leaf: size // PAGE_BYTES for leaf, size in leaves.items()} == {
        "[before the trace]": 13,
        "811 php-fpm: master process": 3,
        "812 php-fpm: pool www": 28,
        r"813 =cmd\x3brm -rf\x0a\x1b[2J 7": 18,
        "[unseen]": 2,
    }


def test_speedscope(path: Path) -> None:
    document = json.loads(export(path, "speedscope"))
    jsonschema.validate(document, exported.SPEEDSCOPE_SCHEMA)
    whole, *regions = document["profiles"]
    wanted = [pages * PAGE_BYTES for _, pages in pages_wanted()]
    assert [profile["endValue"] for profile in regions] == wanted
    assert whole["endValue"] == sum(wanted) == sum(whole["weights"])
    names = [frame["name"] for frame in document["shared"]["frames"]]
    first = [
        (names[sample[-1]], weight // PAGE_BYTES)
        for sample, weight in zip(regions[0]["samples"], regions[0]["weights"])
    ]
    assert first == [
        ("[before the trace]", 13),
        ("811 php-fpm: master process", 3),
        ("812 php-fpm: pool www", 28),
        (r"813 =cmd;rm -rf\x0a\x1b[2J 7", 7),
        ("[unseen]", 2),
    ]  # in the order of first touch


def test_a_window_of_time(path: Path) -> None:
    """What was touched in it, and nothing else."""
    window = ["--since", "+1s", "--until", "+5s"]
    wanted = {
        "812 php-fpm: pool www": 23,
        r"813 =cmd\x3brm -rf\x0a\x1b[2J 7": 7 + 11,
    }
    pages: Counter[str] = Counter()
    for frames, size_bytes in exported.folded(export(path, "folded", *window)).items():
        pages[frames[-1]] += size_bytes // PAGE_BYTES
    assert pages == wanted
    speedscope = json.loads(export(path, "speedscope", *window))
    jsonschema.validate(speedscope, exported.SPEEDSCOPE_SCHEMA)
    assert [profile["endValue"] // PAGE_BYTES for profile in speedscope["profiles"]] == [41, 30, 11]
    root, *_ = exported.svg(export(path, "svg", *window))
    assert root.size_bytes == 41 * PAGE_BYTES


def test_with_stacks(tmp_path: Path) -> None:
    """Below who touched; and what has been given back is among it."""
    path = with_stacks(tmp_path / "x", "alloc;\x1b[2J")
    pages: Counter[str] = Counter()
    for line in export(path, "folded").splitlines():
        stack, size = line.rsplit(" ", 1)
        pages[";".join(stack.split(";")[2:])] += int(size) // PAGE_BYTES
    group = "php-fpm: pool www"
    assert pages == {
        "[before the trace]": 11,
        rf"{group};812 php-fpm: pool www;main;alloc\x3b\x1b[2J": 20,
        f"{group};812 php-fpm: pool www;main;php-fpm8.2+0x1f0;memset": 4,
        f"{group};812 php-fpm: pool www;?": 2,
        rf"{group};813 php-fpm: pool www;main;alloc\x3b\x1b[2J": 7,
        r"813 php-fpm: pool www;main;alloc\x3b\x1b[2J": 5,  # alone in its region
        "[unseen]": 2,
    }
    document = json.loads(export(path, "speedscope"))
    jsonschema.validate(document, exported.SPEEDSCOPE_SCHEMA)
    assert document["profiles"][0]["endValue"] == sum(pages.values()) * PAGE_BYTES
    assert {"name": r"alloc;\x1b[2J"} in document["shared"]["frames"]


LABELLED = {
    ("opcache?", "[before the trace]"): 11,
    ("opcache?", "php-fpm: pool www", "812 php-fpm: pool www", INDEX, "/srv/www/vendor/autoload.php"): 14,
    ("opcache?", "php-fpm: pool www", "812 php-fpm: pool www", "?", "?"): 9,
    ("opcache?", "php-fpm: pool www", "813 php-fpm: pool www", INDEX, INDEX): 7,
    ("opcache?", "[unseen]"): 2,
    ("apcu?", "813 php-fpm: pool www", "(none)", "(none)"): 5,
}
"""Pages by stack below the parent, of recorded.with_labels()."""


def labelled(stacks: Iterable[tuple[tuple[str, ...], int]]) -> Counter[tuple[str, ...]]:
    """Pages by stack, without the parent, and of regions without their numbers."""
    pages: Counter[tuple[str, ...]] = Counter()
    for (_, region, *frames), size_bytes in stacks:
        pages[(region.split()[0], *frames)] += size_bytes // PAGE_BYTES
    return pages


def test_with_labels(tmp_path: Path) -> None:
    """The script above its file, below each process."""
    path = with_labels(tmp_path / "x")
    assert labelled(exported.folded(export(path, "folded")).items()) == LABELLED
    document = json.loads(export(path, "speedscope"))
    jsonschema.validate(document, exported.SPEEDSCOPE_SCHEMA)
    names = [frame["name"] for frame in document["shared"]["frames"]]
    whole = document["profiles"][0]
    stacks = [tuple(names[frame] for frame in sample) for sample in whole["samples"]]
    assert labelled(zip(stacks, whole["weights"])) == LABELLED


def change(path: Path, *statements: str) -> Path:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)
    return path


def test_stacks_leave_no_room_for_labels(tmp_path: Path) -> None:
    """They are recorded by process alone."""
    path = with_stacks(tmp_path / "x")
    before = export(path, "folded")
    assert export(change(path, "UPDATE session SET label = 'php:file'"), "folded") == before


def test_requests_of_one_script_are_one_stack(tmp_path: Path) -> None:
    """Else it would have as many lines as it had requests."""
    path = with_labels(tmp_path / "x", INDEX)
    relabelled = "UPDATE extent SET label = 2 WHERE start = 25"  # of 812, which had /?a=1 before
    change(path, relabelled, "DELETE FROM touched")
    lines = export(path, "folded").splitlines()
    assert len(lines) == len(LABELLED) - 1
    found = labelled(exported.folded("\n".join(lines)).items())
    assert found["opcache?", "php-fpm: pool www", "812 php-fpm: pool www", INDEX, INDEX] == 14 + 9


def test_queries_have_no_values(tmp_path: Path) -> None:
    path = change(
        with_labels(tmp_path / "x"),
        "UPDATE session SET label = 'postgres'",
        "UPDATE label SET query = 'SELECT * FROM a WHERE b = ' || id WHERE id < 3",
    )
    pages: Counter[str] = Counter()
    for frames, size_bytes in exported.folded(export(path, "folded")).items():
        pages[frames[-1]] += size_bytes // PAGE_BYTES
    assert pages["SELECT * FROM a WHERE b = ?"] == 14 + 7


def test_perfetto_by_group_and_label(tmp_path: Path) -> None:
    """A track each; the last counts are all that was touched."""
    path = with_labels(tmp_path / "x")
    assert tracks(path, "touched by group of alike processes") == {"php-fpm: pool www": [(3, 14), (8, 19), (21, 35)]}
    assert tracks(path, "touched by file") == {
        "/srv/www/vendor/autoload.php": [(3, 14)],
        "(none)": [(8, 5)],
        "?": [(21, 9)],
        INDEX: [(21, 7)],
    }


def test_perfetto_has_few_tracks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest, and the others' sum."""
    monkeypatch.setattr(perfetto, "MAX_TRACKS", 1)
    assert tracks(path, "touched by group of alike processes") == {
        "php-fpm: pool www": [(2, 23), (10, 28)],
        "[others]": [(1, 3), (2, 10), (5, 21)],
    }


def events(path: Path, ph: str) -> list[dict[str, Any]]:
    document = json.loads(export(path, "perfetto"))
    for event in document["traceEvents"]:
        assert event["ph"] == "M" or event["ts"] >= 0
    return [event for event in document["traceEvents"] if event["ph"] == ph]


def tracks(path: Path, process: str) -> dict[str, list[tuple[float, int]]]:
    """(seconds, pages) by track, of what stands under one name."""
    (number,) = (event["pid"] for event in events(path, "M") if event["args"]["name"] == process)
    found: dict[str, list[tuple[float, int]]] = {}
    for event in events(path, "C"):
        if event["pid"] == number:
            count = event["ts"] / 1e6, event["args"]["bytes"] // PAGE_BYTES
            found.setdefault(event["name"], []).append(count)
    return found


def test_perfetto_counters(path: Path) -> None:
    """A track for each region and each process; the last count of each is the account's."""
    names = {event["pid"]: event["args"]["name"] for event in events(path, "M")}
    assert json.loads(export(path, "perfetto"))["otherData"]["started"] == rfc3339(BEGAN_NS)
    tracks: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for event in events(path, "C"):
        counts = tracks.setdefault((names[event["pid"]], event["name"]), [])
        counts.append((event["ts"] / 1e6, event["args"]["bytes"] // PAGE_BYTES))
    allocated = {name: counts[-1][1] for (name, what), counts in tracks.items() if what == "allocated"}
    assert list(allocated.values()) == [pages for _, pages in pages_wanted()]
    assert tracks["php-fpm: pool www", "touched"] == [(2, 23), (10, 28)]
    assert tracks[r"=cmd;rm -rf\x0a\x1b[2J 7", "touched"] == [(2, 7), (5, 18)]
    assert tracks["host web1", "Shmem"] == [(1, 77)]


def test_perfetto_lives(path: Path) -> None:
    lives = {event["pid"]: (event["ts"] / 1e6, event["dur"] / 1e6) for event in events(path, "X")}
    assert lives == {811: (0, 10), 812: (0, 10), 813: (1, 5)}  # 811 is older than the capture, 813 has exited
    instants = [(event["name"], event["ts"] / 1e6) for event in events(path, "i")]
    assert sorted(instants) == [("created", 2), ("exec php-fpm -F", 3)]


@pytest.fixture
def contradictory(tmp_path: Path) -> Path:
    """A PID in two lives, which touched 17 and 7 pages of a region that has 20."""
    path = tmp_path / "contradictory.capture"
    with Capture(path) as capture:
        capture.insert(
            "session", version="0.1.0", host="web1", kernel="6.1", tier="exact", mechanism="kprobe", blind_to="",
            started_ns=at(0), ended_ns=at(10), complete=1,
        )  # fmt: skip
        for start_time_ns, from_s, to_s in ((5, 6, None), (1, 0, 4)):  # rows are in no order of time
            exited_ns = None if to_s is None else at(to_s)
            capture.insert(
                "process", tgid=812, start_time_ns=start_time_ns, command=f"from {from_s}", started_ns=at(from_s),
                exited_ns=exited_ns,
            )  # fmt: skip
        sizes = {"allocated_bytes": 20 * PAGE_BYTES, "start_bytes": 0, "peak_bytes": 24 * PAGE_BYTES}
        for ino in (1, 2):
            capture.insert("region", dev=1, ino=ino, generation=5, kind="anon", name="/dev/zero", parent=2, **sizes)
            sizes = dict.fromkeys(sizes, PAGE_BYTES)
        extents = [(2, seconds, pages) for seconds, pages in enumerate((3, 5, 7, 2))]
        extents += [(1, 6 + seconds, pages) for seconds, pages in enumerate((4, 2, 1))]
        start = 0
        for process, seconds, pages in extents:
            first_ns = at(seconds)
            capture.insert(
                "extent", region=1, start=start, end=start + pages, process=process, first_ns=first_ns,
                last_ns=first_ns,
            )  # fmt: skip
            start += pages
        capture.insert("extent", region=2, start=0, end=1, process=1, first_ns=at(7), last_ns=at(7))
    return path


def test_a_stack_is_never_less_than_nothing(contradictory: Path) -> None:
    """speedscope refuses a file with such a weight, and flamegraph.pl such a line."""
    sizes = [int(line.rsplit(" ", 1)[1]) // PAGE_BYTES for line in export(contradictory, "folded").splitlines()]
    assert sorted(sizes) == [1, 7, 17]
    for profile in json.loads(export(contradictory, "speedscope"))["profiles"]:
        assert all(weight > 0 for weight in profile["weights"])
        assert profile["endValue"] == sum(profile["weights"])


def touched_tracks(path: Path) -> dict[str, list[tuple[float, int]]]:
    names = {event["pid"]: event["args"]["name"] for event in events(path, "M")}
    assert len(names) == len(events(path, "M"))  # else the last name is that of all
    tracks: dict[str, list[tuple[float, int]]] = {}
    for event in events(path, "C"):
        if event["name"] == "touched":
            count = event["ts"] / 1e6, event["args"]["bytes"] // PAGE_BYTES
            tracks.setdefault(names[event["pid"]], []).append(count)
    return tracks


def test_perfetto_of_a_pid_used_again(contradictory: Path) -> None:
    """A track a life, the PID's number for the first, and a count a second for all regions together."""
    assert touched_tracks(contradictory) == {
        "from 0": [(1, 3), (2, 8), (3, 15), (4, 17)],
        "from 6 (PID 812, used again)": [(7, 4), (8, 7), (9, 8)],
    }
    lives = {event["pid"]: (event["args"]["tgid"], event["ts"] / 1e6) for event in events(contradictory, "X")}
    assert lives.pop(812) == (812, 0)
    assert list(lives.values()) == [(812, 6)]


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        pytest.param(4, [[(2, 8), (4, 17)], [(8, 7), (10, 8)]], id="every two seconds"),
        pytest.param(1, [[(10, 8)], [(10, 17)]], id="one each is the least"),
    ],
)
def test_perfetto_is_bounded(
    most: int, wanted: list[list[tuple[float, int]]], contradictory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer counts, of the same sums at the end, and none after it."""
    monkeypatch.setattr(perfetto, "MAX_COUNTS", most)
    assert sorted(touched_tracks(contradictory).values()) == wanted


def test_csv(path: Path) -> None:
    """Its bytes add up to what is allocated, region by region; and what is no number is no formula."""
    rows = list(csv.DictReader(io.StringIO(export(path, "csv"), newline="")))
    pages: Counter[str] = Counter()
    for row in rows:
        assert int(row["bytes"]) == int(row["pages"]) * PAGE_BYTES
        pages[row["name"]] += int(row["pages"])
    assert pages == {f"/{name}": pages for name, pages in pages_wanted()}
    touched = [(row["time"], row["tgid"], row["pages"]) for row in rows if row["part"] == "touched"]
    assert touched == [
        (rfc3339(at(seconds)), str(810 + process), str(pages))
        for seconds, process, pages in sorted([*TOUCHES["opcache"], *TOUCHES["apcu"]], key=lambda touch: touch[:2])
    ]
    assert {row["command"] for row in rows if row["tgid"] == "813"} == {r"'=cmd;rm -rf\x0a\x1b[2J 7"}
    assert {(row["tgid"], row["group"]) for row in rows} == {
        ("", ""),
        ("811", "php-fpm: master process"),
        ("812", "php-fpm: pool www"),
        ("813", r"'=cmd;rm -rf \x1b[#J"),
    }


def test_csv_with_labels(tmp_path: Path) -> None:
    """A column for each text of the label."""
    path = with_labels(tmp_path / "x")
    change(path, "UPDATE extent SET first_ns = 1700000002500000000, label = 2 WHERE start = 25")  # in one second
    rows = list(csv.DictReader(io.StringIO(export(path, "csv"), newline="")))
    assert [(row["tgid"], row["file"], row["script"], row["request"], row["pages"]) for row in rows] == [
        ("", "", "", "", "11"),
        ("812", "/srv/www/vendor/autoload.php", INDEX, "/?a=1", "14"),
        ("812", INDEX, INDEX, "/?a=2", "9"),
        ("813", "", "", "", "5"),
        ("813", INDEX, INDEX, "/?a=2", "7"),
        ("", "", "", "", "2"),
    ]


def test_a_terminal_gets_no_profile(path: Path) -> None:
    with on_terminal([sys.executable, "-m", "tracer", "export", str(path), "--format", "pprof"]) as terminal:
        assert terminal.finish() == 2
    assert "a terminal cannot show a compressed profile: give -o FILE" in terminal.seen


@pytest.mark.needs("protoc")
def test_a_large_capture(tmp_path: Path) -> None:
    """Each export is of all that is allocated."""
    path = tmp_path / "large.capture"
    make(path, nr_extents=30_011, nr_processes=1_009)
    with Capture.open(path) as capture:
        regions = account.read(capture).regions
    allocated_bytes = sum(region.allocated_bytes for region in regions)
    touched_bytes = sum(region.touched_bytes for region in regions)
    assert sum(exported.folded(export(path, "folded")).values()) == allocated_bytes
    samples = exported.samples(exported.pprof(export_bytes(path, "pprof")))
    held_bytes = sum(region.allocated_bytes for region in regions if region.gone_ns is None)
    freed_bytes = sum(toucher.freed_bytes for region in regions for toucher in region.touchers)
    assert sum(sample.values["inuse_space"] for sample in samples) == held_bytes
    assert sum(sample.values["alloc_space"] for sample in samples) == touched_bytes + freed_bytes
    root, *below = exported.svg(export(path, "svg"))
    assert root.size_bytes == allocated_bytes
    assert sum(frame.size_bytes for frame in below if frame.row == 1) == allocated_bytes
    assert min(frame.width for frame in below) >= 0.1
    rows = csv.DictReader(io.StringIO(export(path, "csv"), newline=""))
    assert sum(int(row["bytes"]) for row in rows) == allocated_bytes
    of_groups = tracks(path, "touched by group of alike processes")
    assert sum(counts[-1][1] for counts in of_groups.values()) == touched_bytes // PAGE_BYTES


@pytest.mark.parametrize("form", ["folded", "speedscope", "svg", "pprof", "perfetto", "csv"])
def test_into_a_file(form: str, path: Path, tmp_path: Path) -> None:
    """For its owner's eyes, and in place of an earlier one."""
    output = tmp_path / "output"
    output.write_bytes(export_bytes(path, form)[:40])
    output.chmod(0o644)
    done = CliRunner().invoke(main, ["export", str(path), "--format", form, "-o", str(output)])
    assert (done.exit_code, done.output) == (0, "")
    assert output.stat().st_mode & 0o777 == 0o600
    assert output.read_bytes() == export_bytes(path, form)


def test_nothing_else_is_replaced(path: Path) -> None:
    before = path.read_bytes()
    done = CliRunner().invoke(main, ["export", str(path), "--format", "csv", "-o", str(path)])
    assert done.exit_code == 1
    assert "exists and is not an earlier output: give another name, or remove it" in done.output
    assert path.read_bytes() == before


def test_nothing_is_replaced_by_nothing(path: Path, tmp_path: Path) -> None:
    """As of a capture without regions."""
    empty = change(path, "DELETE FROM extent", "DELETE FROM sample", "DELETE FROM region")
    other = tmp_path / "other"
    other.write_text("mine")
    done = shmtrace("export", empty, "--format", "folded", "-o", other)
    assert (done.exit_code, other.read_text()) == (1, "mine")


def test_nothing_is_lost_by_a_failure(path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(path), "--format", "csv", "-o", str(tmp_path / "absent" / "output")])
    assert done.exit_code == 1
    assert "cannot be written (No such file or directory): give another path" in done.output


def test_an_account_without_regions(tmp_path: Path) -> None:
    path = tmp_path / "empty.capture"
    with Capture(path) as capture:
        capture.insert(
            "session", version="0.1.0", host="web1", kernel="6.1", tier="proc", mechanism="", blind_to="",
            started_ns=at(0), ended_ns=at(2), complete=1,
        )  # fmt: skip
        assert not account.read(capture).regions
    assert export(path, "folded") == ""
    jsonschema.validate(json.loads(export(path, "speedscope")), exported.SPEEDSCOPE_SCHEMA)
    assert events(path, "C") == []
    assert export(path, "csv").count("\n") == 1
