"""A capture for other programs: each reads it, and comes to the figures of the account."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from tests.recorded import shmtrace, with_stacks
from tracer import account
from tracer.capture.capture import Capture
from tracer.cli import main
from tracer.proc.shmem import PAGE_BYTES
from tracer.views import perfetto
from tracer.views.json import rfc3339

BEGAN_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
SPEEDSCOPE_SCHEMA = json.loads(Path(__file__).with_name("speedscope-schema.json").read_text())
"""speedscope's own, of its package on npm (MIT, Jamie Wong)."""
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


def export(path: Path, form: str) -> str:
    done = shmtrace("export", path, "--format", form)
    assert done.exit_code == 0, done.output
    return done.stdout


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
    jsonschema.validate(document, SPEEDSCOPE_SCHEMA)
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


def test_with_stacks(tmp_path: Path) -> None:
    """Below who touched; and what has been given back is among it."""
    path = with_stacks(tmp_path / "x", "alloc;\x1b[2J")
    pages: Counter[str] = Counter()
    for line in export(path, "folded").splitlines():
        stack, size = line.rsplit(" ", 1)
        pages[";".join(stack.split(";")[2:])] += int(size) // PAGE_BYTES
    assert pages == {
        "[before the trace]": 11,
        r"812 php-fpm: pool www;main;alloc\x3b\x1b[2J": 20,
        "812 php-fpm: pool www;main;php-fpm8.2+0x1f0;memset": 4,
        "812 php-fpm: pool www;?": 2,
        r"813 php-fpm: pool www;main;alloc\x3b\x1b[2J": 7 + 5,
        "[unseen]": 2,
    }
    document = json.loads(export(path, "speedscope"))
    jsonschema.validate(document, SPEEDSCOPE_SCHEMA)
    assert document["profiles"][0]["endValue"] == sum(pages.values()) * PAGE_BYTES
    assert {"name": r"alloc;\x1b[2J"} in document["shared"]["frames"]


def events(path: Path, ph: str) -> list[dict[str, Any]]:
    document = json.loads(export(path, "perfetto"))
    assert document["otherData"]["started"] == rfc3339(BEGAN_NS)
    for event in document["traceEvents"]:
        assert event["ph"] == "M" or event["ts"] >= 0
    return [event for event in document["traceEvents"] if event["ph"] == ph]


def test_perfetto_counters(path: Path) -> None:
    """A track for each region and each process; the last count of each is the account's."""
    names = {event["pid"]: event["args"]["name"] for event in events(path, "M")}
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


@pytest.mark.parametrize("form", ["folded", "speedscope", "perfetto", "csv"])
def test_into_a_file(form: str, path: Path, tmp_path: Path) -> None:
    """For its owner's eyes, and in place of an earlier one."""
    output = tmp_path / "output"
    output.write_text(export(path, form)[:40])
    output.chmod(0o644)
    done = CliRunner().invoke(main, ["export", str(path), "--format", form, "-o", str(output)])
    assert (done.exit_code, done.output) == (0, "")
    assert output.stat().st_mode & 0o777 == 0o600
    assert output.read_text() == export(path, form)  # both with the ends of lines that are Python's


def test_nothing_else_is_replaced(path: Path) -> None:
    before = path.read_bytes()
    done = CliRunner().invoke(main, ["export", str(path), "--format", "csv", "-o", str(path)])
    assert done.exit_code == 1
    assert "exists and is not an earlier output: give another name, or remove it" in done.output
    assert path.read_bytes() == before


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
    jsonschema.validate(json.loads(export(path, "speedscope")), SPEEDSCOPE_SCHEMA)
    assert events(path, "C") == []
    assert export(path, "csv").count("\n") == 1
