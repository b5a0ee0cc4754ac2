"""What -p and -a mean: who is traced, and who is not."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.reports import ROOT, SHMTRACE, Report, find_region, pages_by_part, trace
from tests.live.shmem import PAGE_BYTES
from tests.live.workload import Notes, Stepped, stepped

PATIENCE_S = 20.0

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]


@pytest.fixture
def word() -> str:
    """A name that nothing else on this host has."""
    return f"w{secrets.token_hex(5)}"


@pytest.fixture
def other_word() -> str:
    return f"v{secrets.token_hex(5)}"


def copy(program: Path, directory: Path, name: str) -> Path:
    """The program under another name."""
    directory.mkdir(exist_ok=True)
    return Path(shutil.copy(program, directory / name))


@contextmanager
def named(program: Path, notes: Path, env: Mapping[str, str]) -> Iterator[Stepped]:
    """The workload of that name: it calls itself what env says, and has 5 pages from before."""
    with stepped(program, "named", notes, **env) as workload:
        workload.wait_for("running")
        yield workload


def assert_named(report: Report, notes: Notes) -> None:
    region = find_region(report, notes.regions["pool"].id)
    assert pages_by_part(region, notes.parts, "touched_bytes") == {"A": 17}
    assert region["before_bytes"] == 5 * PAGE_BYTES
    assert region["unseen_bytes"] == 0


def assert_anon(report: Report, notes: Notes) -> None:
    """The workload "anon", from its first instruction to its end."""
    region = find_region(report, notes.regions["pool"].id)
    assert pages_by_part(region, notes.parts, "touched_bytes") == {"A": 13, "B": 6}
    assert region["before_bytes"] == region["unseen_bytes"] == 0
    assert region["creator"]["how"] == "traced"
    assert region["gone"] is not None


# ---- names ----


@pytest.mark.parametrize(
    ("comm", "title", "pattern"),
    [
        ("{}", "innocent", "{}"),
        ("a-{}-b", "innocent", "{}"),
        ("innocent", "{}: master process", "{}"),
        ("innocent", "{}: master process", "{}: m.*ss$"),
        ("innocent", "/usr/sbin/{}", "sbin.{}"),
    ],
)
def test_by_name(program: Path, tmp_path: Path, word: str, comm: str, title: str, pattern: str) -> None:
    names = {"COMM": comm.format(word), "TITLE": title.format(word)}
    with named(program, tmp_path / "notes", names) as workload, trace("-p", pattern.format(word)) as tracing:
        workload.go()
        notes = workload.wait_for("grown")
        report = tracing.stop()
    assert_named(report, notes)
    [parent] = report["parents"]
    assert parent["process"]["comm"] == names["COMM"]
    assert parent["process"]["command"].startswith(names["TITLE"])


def test_by_pid_and_pidfile(program: Path, tmp_path: Path) -> None:
    with named(program, tmp_path / "one", {}) as one, named(program, tmp_path / "two", {}) as two:
        (tmp_path / "pid").write_text(f"{two.tgid}\nand more\n")
        with trace("-p", one.tgid, "-p", tmp_path / "pid") as tracing:
            one.go()
            two.go()
            notes = one.wait_for("grown"), two.wait_for("grown")
            report = tracing.stop()
    for each in notes:
        assert_named(report, each)
    assert {parent["process"]["tgid"] for parent in report["parents"]} == {one.tgid, two.tgid}


def test_two_names_at_once(program: Path, tmp_path: Path, word: str, other_word: str) -> None:
    with (
        named(program, tmp_path / "one", {"COMM": word}) as one,
        named(program, tmp_path / "two", {"TITLE": other_word}) as two,
        named(program, tmp_path / "neighbour", {}) as neighbour,
        trace("-p", word, "-p", other_word) as tracing,
    ):
        for each in (one, two, neighbour):
            each.go()
        notes = [each.wait_for("grown") for each in (one, two, neighbour)]
        report = tracing.stop()
    assert_named(report, notes[0])
    assert_named(report, notes[1])
    assert len(report["regions"]) == 2


# ---- names of what comes later ----


def test_a_name_goes_on_matching(program: Path, tmp_path: Path, word: str) -> None:
    """A service that is restarted, twice; and first was not there at all."""
    service = copy(program, tmp_path / "bin", word)
    paths = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    with trace("-p", word, "--wait") as tracing:
        for path in paths:
            subprocess.run([service, "anon", path], stdin=subprocess.DEVNULL, check=True)
        report = tracing.stop()
    for path in paths:
        assert_anon(report, Notes.read(path))
    assert len(report["regions"]) == 3


def test_a_running_service_and_its_successor(program: Path, tmp_path: Path, word: str) -> None:
    service = copy(program, tmp_path / "bin", word)
    with named(service, tmp_path / "old", {}) as old, trace("-p", word) as tracing:
        old.go()
        notes_of_old = old.wait_for("grown")
        old.go()
        old.finish()
        time.sleep(0.5)
        assert tracing.process.poll() is None  # it is a name, and may come again
        subprocess.run([service, "anon", tmp_path / "new"], stdin=subprocess.DEVNULL, check=True)
        report = tracing.stop()
    assert_named(report, notes_of_old)
    assert_anon(report, Notes.read(tmp_path / "new"))


@pytest.mark.parametrize("script", ['"$0" anon "$1"; true', 'exec "$0" anon "$1"', '( "$0" anon "$1" ) & wait'])
def test_what_a_match_turns_into_or_starts_is_of_the_tree(
    program: Path, tmp_path: Path, word: str, script: str
) -> None:
    shell = copy(Path("/bin/sh"), tmp_path / "bin", word)
    with trace("-p", f"^{word}", "--wait") as tracing:
        line = [shell, "-c", script, program, tmp_path / "notes"]
        subprocess.run(line, stdin=subprocess.DEVNULL, check=True)
        report = tracing.stop()
    assert_anon(report, Notes.read(tmp_path / "notes"))


def test_strangers_that_exec_meanwhile_are_not_taken_in(program: Path, tmp_path: Path, word: str) -> None:
    """Every exec on the host is watched until its name is known: a hundred of them leave nothing in the report."""
    service = copy(program, tmp_path / "bin", word)
    with trace("-p", word, "--wait") as tracing:
        for _ in range(50):
            subprocess.run([program, "anon", tmp_path / "stranger"], stdin=subprocess.DEVNULL, check=True)
        subprocess.run([service, "anon", tmp_path / "notes"], stdin=subprocess.DEVNULL, check=True)
        for _ in range(50):
            subprocess.run([program, "anon", tmp_path / "stranger"], stdin=subprocess.DEVNULL, check=True)
        report = tracing.stop()
    assert_anon(report, Notes.read(tmp_path / "notes"))
    assert len(report["regions"]) == 1


# ---- who is not meant ----


def none_matches(*command: object) -> bool:
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode == 1 and "no process matches" in done.stderr


def test_a_name_in_the_arguments_is_none(word: str) -> None:
    """Else -p php-fpm would take in the editor that has php-fpm.conf open."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", word, f"/etc/{word}.conf"]) as editor:
        assert none_matches(*SHMTRACE, "-p", word)
        editor.kill()


def test_it_does_not_match_itself(tmp_path: Path, word: str) -> None:
    itself = tmp_path / word
    itself.symlink_to(sys.executable)
    line = ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", itself, "-m", "tracer", "-p", word]
    assert none_matches(*line)


def test_it_does_not_match_who_started_it(tmp_path: Path, word: str) -> None:
    shell = copy(Path("/bin/sh"), tmp_path / "bin", word)
    assert none_matches(shell, "-c", '"$@"; exit $?', word, *SHMTRACE, "-p", word)


# ---- the whole host ----


def test_all_takes_in_who_was_there_and_who_comes_and_goes(program: Path, tmp_path: Path) -> None:
    with named(program, tmp_path / "there", {}) as there, trace("-a") as tracing:
        subprocess.run([program, "anon", tmp_path / "brief"], stdin=subprocess.DEVNULL, check=True)
        there.go()
        notes = there.wait_for("grown")
        report = tracing.stop()
    assert_named(report, notes)
    assert_anon(report, Notes.read(tmp_path / "brief"))


def test_without_all_a_neighbour_is_absent(program: Path, tmp_path: Path) -> None:
    with named(program, tmp_path / "meant", {}) as meant, trace("-p", meant.tgid) as tracing:
        subprocess.run([program, "anon", tmp_path / "neighbour"], stdin=subprocess.DEVNULL, check=True)
        meant.go()
        notes = meant.wait_for("grown")
        report = tracing.stop(signal.SIGTERM)
    assert_named(report, notes)
    assert [region["ino"] for region in report["regions"]] == [notes.regions["pool"].id.ino]


def test_duration(program: Path, tmp_path: Path) -> None:
    with named(program, tmp_path / "notes", {}) as workload, trace("-p", workload.tgid, "-d", "1.5") as tracing:
        began = time.monotonic()
        workload.go()
        notes = workload.wait_for("grown")
        report = tracing.finish()  # by itself: nobody stops it
        assert time.monotonic() - began > 1
    assert_named(report, notes)


def test_snapshot_by_name(program: Path, tmp_path: Path, word: str) -> None:
    with stepped(program, "grown", tmp_path / "neighbour") as neighbour:
        neighbour.wait_for("running")
        with named(program, tmp_path / "notes", {"TITLE": word}):
            line = [*SHMTRACE, "snapshot", "-p", word]
            done = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
    assert word in done.stdout
    assert done.stdout.count("/dev/zero  anon") == 1
