"""The demo: the experiment itself, which needs no root, and how a stage is shown."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tracer.demo import demo
from tracer.demo.demo import Experiment, Row, Stage
from tracer.demo.ps_pmap_free import Ps
from tracer.errors import ShmtraceError
from tracer.formatting import width
from tracer.proc.procfs import Mapping, Proc
from tracer.proc.shmem import PAGE_BYTES

MB = 1 << 20
SIZE_MB = 11
QUARTER_PAGES, HALF_PAGES = SIZE_MB * MB // 4 // PAGE_BYTES, SIZE_MB * MB // 2 // PAGE_BYTES
PATIENCE_S = 10


def rss_shmem_pages(tgid: int) -> int:
    lines = Path(f"/proc/{tgid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 // PAGE_BYTES for line in lines if line.startswith("RssShmem"))


def wait_until_gone(tgids: list[int]) -> None:
    """Not the demo's children, but those of the experiment: whoever is PID 1 reaps them, in its own time."""
    deadline = time.monotonic() + PATIENCE_S
    for tgid in tgids:
        while (stat := Path(f"/proc/{tgid}/stat")).exists() and ") Z " not in stat.read_text():
            assert time.monotonic() < deadline, f"{tgid} is still there"
            time.sleep(0.01)


def test_the_experiment_touches_what_it_says() -> None:
    with Experiment(SIZE_MB * MB) as play:
        mapping = play.map()
        assert mapping.end - mapping.start == SIZE_MB * MB
        assert rss_shmem_pages(play.parent) == 0
        play.go_on()
        assert rss_shmem_pages(play.processes["A"]) == QUARTER_PAGES
        play.go_on()
        assert rss_shmem_pages(play.processes["B"]) == HALF_PAGES
        play.go_on()
        assert list(play.processes) == ["parent", "A", "B", "C"]
        assert not Path(f"/proc/{play.processes['A']}").exists()
        play.go_on()
        assert not Path(f"/proc/{play.processes['B']}").exists()
        assert [rss_shmem_pages(play.processes[name]) for name in ("parent", "C", "D")] == [0, 0, 0]
        play.go_on()
        assert {name for name, tgid in play.processes.items() if Path(f"/proc/{tgid}").exists()} == {"parent"}


def test_its_processes_have_names_as_a_service_has() -> None:
    with Experiment(SIZE_MB * MB) as play:
        play.map()
        play.go_on()
        titles = {name: Proc().process(tgid) for name, tgid in play.processes.items()}
        assert {name: (found.comm, found.title) for name, found in titles.items() if found} == {
            "parent": ("parent", "demo: parent"),
            "A": ("child A", "demo: child A"),
        }


def test_nothing_of_it_outlives_the_demo() -> None:
    with Experiment(SIZE_MB * MB) as play:
        play.map()
        play.go_on()
        play.go_on()
    assert len(play.processes) == 3
    wait_until_gone(list(play.processes.values()))


def test_nothing_of_it_outlives_a_killed_demo() -> None:
    told, tell = os.pipe()
    tgid = os.fork()
    if tgid == 0:
        with contextlib.suppress(BaseException), Experiment(SIZE_MB * MB) as play:
            play.map()
            play.go_on()
            os.write(tell, " ".join(map(str, play.processes.values())).encode())
            time.sleep(PATIENCE_S)
        os._exit(1)
    tgids = [int(word) for word in os.read(told, 100).split()]
    os.kill(tgid, signal.SIGKILL)
    os.waitpid(tgid, 0)
    assert len(tgids) == 2
    wait_until_gone(tgids)


def test_an_experiment_that_dies_is_said_to() -> None:
    with Experiment(SIZE_MB * MB) as play:
        os.kill(play.parent, signal.SIGKILL)
        with pytest.raises(ShmtraceError, match=r"ended early.*--size"):
            play.map()


def test_what_is_too_big_for_the_host_is_refused_before_it_begins() -> None:
    with pytest.raises(ShmtraceError, match=r"MB are available: give a smaller --size"):
        next(demo.run(1 << 60))


# ---- how it is shown ----

PARENT = Row("parent", 4194304, Ps(2014 * MB, 9 * MB), 0, 0, "traced", 0)
DEAD_A = Row("A", 4194301, None, None, None, None, 128000)
B = Row("B", 4194302, Ps(2014 * MB, 1008 * MB), 1000 * MB, 750 * MB, None, 128000)
IDLE = Row("C", 4194303, Ps(2014 * MB, 7 * MB + MB // 2), 0, 0, None, 0)
DEAD_C = IDLE._replace(ps=None, pmap_bytes=None, pss_bytes=None)


def stage(*rows: Row) -> Stage:
    return Stage(list(rows), 1442 * MB, 2000 * MB, 1000 * MB)


def rendered(*rows: Row) -> dict[str, list[str]]:
    """The words of each line, by the first."""
    lines = demo.render(stage(*rows), 442 * MB).splitlines()
    assert max(map(width, lines)) <= 80
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_a_stage_has_every_tool_beside_the_other() -> None:
    lines = rendered(PARENT, DEAD_A, B, IDLE)
    assert lines["parent"] == ["4194304", "2014", "9", "0", "0", "0", "made", "it"]
    assert lines["A"] == ["4194301", "500", "128000", "pages,", "exited"]
    assert lines["B"] == ["4194302", "2014", "1008", "1000", "750", "500", "128000", "pages"]
    assert lines["together"] == ["6042", "1024", "1000", "750", "1000"]
    assert " ".join(lines["free"]) == "-m: shared 1442, 442 before · stat of map_files: VSS 2000, RSS 1000"


def test_figures_stand_under_their_heading() -> None:
    heading, *_, b, _, _ = demo.render(stage(PARENT, DEAD_A, B), 0).splitlines()
    for title, value in (("VSZ", "2014"), ("pmap RSS", "1000"), ("PSS", "750")):
        assert heading.index(title) + len(title) == b.index(value) + len(value)


def test_one_process_is_not_added_up() -> None:
    assert "together" not in rendered(PARENT)


def test_who_did_nothing_and_is_dead_is_not_shown() -> None:
    assert "C" not in rendered(PARENT, B, DEAD_C)


def test_without_tracing_what_was_touched_is_a_question_mark() -> None:
    lines = rendered(PARENT._replace(made="inferred", touched_pages=None), DEAD_C._replace(touched_pages=None))
    assert lines["parent"][-4:] == ["?", "made", "it", "(inferred)"]
    assert lines["C"] == ["4194303", "?", "exited"]
    assert lines["together"][-1] == "?"


def test_the_moral_says_whose_it_was() -> None:
    dead_b = DEAD_A._replace(name="B")
    assert demo.moral(stage(PARENT, DEAD_A, dead_b)) == (
        "shmtrace traced it: of 1000 MB allocated, A touched 500 first and B touched 500 first. Both have exited."
    )
    assert "Only a trace could have told" in demo.moral(stage(PARENT._replace(touched_pages=None)))


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0"), (50 * MB, "50"), (11 * MB // 2, "5.5"), (214 * MB + 5, "214"), (9 * MB + MB // 4, "9.2"), (4096, "0")],
)
def test_megabytes(size_bytes: int, shown: str) -> None:
    assert demo.format_mb(size_bytes) == shown


@pytest.mark.parametrize("size_mb", [22, 200, 2000, 200000])
def test_all_that_is_said_fits(size_mb: int) -> None:
    said = [demo._opening(size_mb * MB, ShmtraceError("why not " * 20, "what to do"))]
    for title, lesson in demo._script(size_mb * MB):
        said += [f"1  {title}", demo._wrap(lesson, "  ")]
    said.append(demo._proof(os.getpid(), Mapping(0x7FFF00000000, 0x7FFFF0000000, True, 0, 1, 1, "")))
    assert max(width(line) for text in said for line in text.splitlines()) <= 80
