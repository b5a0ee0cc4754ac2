"""A trace that is cut into captures: each tells all, none lacks a page, and what is over is told once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import tiers
from tests.live.fpm import running_fpm, script_names
from tests.live.parent import BY_PARENT, OF_REGION, Parent, recording, stop
from tests.live.reports import ATTACH_SECONDS, PATIENCE_SECONDS, ROOT, SHMTRACE, patched
from tests.live.shmem import PAGE_BYTES, read_regions
from tracer import account
from tracer.capture import parts
from tracer.capture.capture import Capture
from tracer.model import Account, Region

pytestmark = pytest.mark.bpf

UNIT = ROOT / "tracer/service/shmtrace.service"
BY_FIRST, BY_SECOND, BY_LATER = 23, 7, 11
OF_PASSING = 13
CAPABILITIES = {  # include/uapi/linux/capability.h
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}


def rotate(process: subprocess.Popen[bytes], path: Path, number: int) -> list[Path]:
    """Returns the parts that are over, once there are so many."""
    process.send_signal(signal.SIGHUP)
    end_s = time.monotonic() + ATTACH_SECONDS
    while len(found := parts.over(path)) < number:
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.01)
    return [part.path for part in found]


def read(path: Path) -> Account:
    with Capture.open(path) as capture:
        capture.verify_sums()
        assert capture.is_summed()
        found = account.read(capture)
    assert found.session.complete
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return found


def the_region(found: Account) -> Region:
    [region] = [region for region in found.regions if region.size_bytes == OF_REGION * PAGE_BYTES]
    return region


def pages(region: Region) -> dict[int, int]:
    return {row.process.tgid: row.touched_bytes // PAGE_BYTES for row in region.touchers if row.touched_bytes}


def st_blocks(tgid: int) -> int:
    [region] = [region for region in read_regions(tgid).values() if region.size_bytes == OF_REGION * PAGE_BYTES]
    return region.pages


def test_each_part_tells_all(tier: str, parent: Parent, tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    with recording(path, parent.tgid, "--rotate", "1h", shmtrace=tiers.shmtrace(tier)) as process:
        first = parent.tell("touch", 20, BY_FIRST)
        parent.tell("pass", OF_PASSING)
        allocated = [st_blocks(parent.tgid)]
        rotate(process, path, 1)
        second = parent.tell("touch", 100, BY_SECOND)
        allocated.append(st_blocks(parent.tgid))
        rotate(process, path, 2)
        later = parent.tell("touch", 200, BY_LATER)
        idle = parent.tell("touch", 20, BY_FIRST)  # finds them there
        allocated.append(st_blocks(parent.tgid))
        over = rotate(process, path, 3)
        said = stop(process)
    assert f"recorded into {path}" in said
    found = [read(each) for each in [*over, path]]
    assert [each.session.part for each in found] == [1, 2, 3, 4]
    assert allocated == [BY_PARENT + BY_FIRST, BY_PARENT + BY_FIRST + BY_SECOND, 44]
    touched = [{first: BY_FIRST}, {first: BY_FIRST, second: BY_SECOND}]
    touched += [{first: BY_FIRST, second: BY_SECOND, later: BY_LATER}] * 2
    for each, number, expected in zip(found, [*allocated, allocated[-1]], touched):
        region = the_region(each)
        assert region.allocated_bytes == number * PAGE_BYTES
        assert pages(region) == expected
        assert region.before_bytes == BY_PARENT * PAGE_BYTES
        assert region.unseen_bytes == 0
        assert all(row.process.parent == parent.tgid for row in region.touchers)
        assert all(row.process.exited_ns for row in region.touchers if row.process.tgid != parent.tgid)
    # the one that came and went is told once; of who only looked nothing is carried over
    gone = [[region.size_bytes for region in each.regions if region.gone_ns] for each in found]
    assert gone == [[OF_PASSING * PAGE_BYTES], [], [], []]
    known = [idle in {row.process.tgid for row in the_region(each).touchers} for each in found]
    assert (known[:2], known[3]) == ([False, False], False)
    # one part begins when the one before was closed
    for before, after in zip(found, found[1:]):
        assert after.session.started_ns == before.session.started_ns
        assert 0 <= after.session.since_ns - before.session.ended_ns < 10**9
    assert [name.split(".")[1][:8].isdigit() for name in (each.name for each in over)] == [True] * 3


def test_by_time_and_size(parent: Parent, tmp_path: Path) -> None:
    """Whichever comes first; only so many are kept, and a part that takes much over is not cut at once again."""
    path = tmp_path / "pool.capture"
    stranger = tmp_path / "pool.20010101-000000.capture"
    stranger.write_text("somebody's")
    with recording(path, parent.tgid, "--rotate", "1s,100K", "--keep", "2") as process:
        touchers = {}
        for number in range(7):
            touchers[parent.tell("touch", 20 + 29 * number, 17 + number)] = 17 + number
            time.sleep(0.6)
        stop(process)
    kept = [part.path for part in parts.over(path)]
    assert len(kept) == 2
    found = [read(each) for each in [*kept, path]]
    assert [each.session.part for each in found] == [
        *range(found[0].session.part or 0, (found[0].session.part or 0) + 3)
    ]
    assert (found[0].session.part or 0) >= 2
    assert pages(the_region(found[-1])) == touchers
    assert stranger.read_text() == "somebody's"


def test_the_next_trace_sets_aside_what_was_left(parent: Parent, tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    with recording(path, parent.tgid, "--rotate", "1h") as process:
        toucher = parent.tell("touch", 20, BY_FIRST)
        time.sleep(1.5)
        process.kill()
        process.wait()
    with recording(path, parent.tgid, "--rotate", "1h") as process:
        later = parent.tell("touch", 100, BY_SECOND)
        stop(process)
    [left] = [part.path for part in parts.over(path)]
    with Capture.open(left) as capture:
        found = account.read(capture)
    assert not found.session.complete
    assert pages(the_region(found)) == {toucher: BY_FIRST}
    assert pages(the_region(read(path))) == {later: BY_SECOND}
    assert the_region(read(path)).before_bytes == (BY_PARENT + BY_FIRST) * PAGE_BYTES
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([left.name, path.name])


KILLS = 20  # a rotation makes about 30 such calls here, and each sample after it some more
KILLED_AT = """
import os, pathlib, sys
from tracer.capture import capture, carry, parts
from tracer.record import trace
left = iter(range(int(sys.argv.pop(1))))
rotates = []
def counted(function):
    def call(*arguments, **named):
        if rotates and next(left, None) is None:
            os.kill(os.getpid(), 9)
        return function(*arguments, **named)
    return call
for module, names in (
    (parts.os, "link unlink"),
    (parts, "keep _link remove_oldest"),
    (carry, "choose copy drop_others reopen"),
    (capture.Capture, "copy commit used_bytes update insert_all insert"),
    (trace.Trace, "needed prune begin_part"),
    (pathlib.Path, "unlink"),
):
    for name in names.split():
        setattr(module, name, counted(getattr(module, name)))
closed = trace.Trace.closed
trace.Trace.closed = lambda self: (rotates.append(1), closed(self))[1]
"""


@pytest.mark.parametrize("number", range(KILLS))
def test_it_is_killed_while_it_rotates(number: int, parent: Parent, tmp_path: Path) -> None:
    """At the call of some function, two further on each time: all captures open, and each has every page."""
    path = tmp_path / "pool.capture"
    killed = [*patched(KILLED_AT), str(2 * number)]
    with recording(path, parent.tgid, "--rotate", "1h", shmtrace=killed) as process:
        toucher = parent.tell("touch", 20, BY_FIRST)
        time.sleep(1.2)  # by then it was committed
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -signal.SIGKILL
    captures = [path, *(part.path for part in parts.over(path))]
    found = []
    for each in captures:
        with Capture.open(each) as capture:
            assert [tuple(row) for row in capture.rows("PRAGMA integrity_check")] == [("ok",)]
            assert capture.rows("PRAGMA foreign_key_check") == []
            found.append(account.read(capture))
    for each in found:
        region = the_region(each)
        assert pages(region) == {toucher: BY_FIRST}
        assert region.before_bytes == BY_PARENT * PAGE_BYTES
    # the next trace goes on from there
    with recording(path, parent.tgid, "--rotate", "1h") as again:
        stop(again)
    assert the_region(read(path)).before_bytes == (BY_PARENT + BY_FIRST) * PAGE_BYTES
    assert not [each for each in tmp_path.iterdir() if each.suffix != ".capture"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_without_room_for_another_part(parent: Parent, small_disk: Path) -> None:
    """One line says so, and the trace goes on: the next part has all."""
    path, ballast = small_disk / "pool.capture", small_disk / "ballast"
    quick = patched("from tracer.record import rotation", "rotation.RETRY_S = 0.3")
    with recording(path, parent.tgid, "--rotate", "1h", shmtrace=quick) as process:
        first = parent.tell("touch", 20, BY_FIRST)
        ballast.write_bytes(bytes(1 << 20))
        process.send_signal(signal.SIGHUP)
        time.sleep(2)
        assert parts.over(path) == []
        ballast.unlink()
        second = parent.tell("touch", 100, BY_SECOND)
        end_s = time.monotonic() + ATTACH_SECONDS
        while not parts.over(path):
            assert time.monotonic() < end_s
            time.sleep(0.05)
        said = stop(process).splitlines()
    [kept] = parts.over(path)
    assert pages(the_region(read(kept.path))) == {first: BY_FIRST, second: BY_SECOND}
    assert pages(the_region(read(path))) == {first: BY_FIRST, second: BY_SECOND}
    warning = f"shmtrace: the part stays in {path} and goes on: there is no room in {small_disk}: make some"
    assert said == [warning, f"shmtrace: recorded into {path}: `shmtrace report {path}` shows it"]


def test_what_it_is_called_by_is_in_the_way(parent: Parent, tmp_path: Path) -> None:
    """Where an unfinished part would be written there is somebody's file."""
    path = tmp_path / "pool.capture"
    with recording(path, parent.tgid, "--rotate", "1h") as process:
        unfinished = tmp_path / ".pool.capture.unfinished"
        unfinished.write_text("somebody's")
        toucher = parent.tell("touch", 20, BY_FIRST)
        process.send_signal(signal.SIGHUP)
        time.sleep(2)
        said = stop(process).splitlines()
    assert said[0].startswith(f"shmtrace: the part stays in {path} and goes on: {unfinished} is in the way")
    assert unfinished.read_text() == "somebody's"
    assert pages(the_region(read(path))) == {toucher: BY_FIRST}


@pytest.mark.parametrize("what", ["directory moved and back", "directory deleted", "file deleted", "file moved"])
def test_its_place_is_gone(what: str, parent: Parent, tmp_path: Path) -> None:
    """One line says so, the kernel's side remembers, and nothing is lost once there is a place again."""
    directory, elsewhere = tmp_path / "captures", tmp_path / "elsewhere"
    directory.mkdir()
    path = directory / "pool.capture"
    with recording(path, parent.tgid, "--rotate", "1h") as process:
        touchers = {parent.tell("touch", 20, BY_FIRST): BY_FIRST}
        time.sleep(1)
        if what == "directory moved and back":
            directory.rename(elsewhere)
        elif what == "directory deleted":
            shutil.rmtree(directory)
        elif what == "file deleted":
            path.unlink()
        else:
            path.rename(elsewhere)
        touchers[parent.tell("touch", 100, BY_SECOND)] = BY_SECOND
        time.sleep(1.5)
        if what == "directory moved and back":
            elsewhere.rename(directory)
        elif what == "directory deleted":
            directory.mkdir()
        time.sleep(1.5)
        touchers[parent.tell("touch", 200, BY_LATER)] = BY_LATER
        [over] = rotate(process, path, 1)
        said = stop(process).splitlines()
    for each in (over, path):
        region = the_region(read(each))
        assert (pages(region), region.unseen_bytes, region.before_bytes) == (touchers, 0, BY_PARENT * PAGE_BYTES)
    waits = "shmtrace: the capture was moved or deleted, and the trace waits until it can be written: "
    anew = f"shmtrace: {path} was moved or deleted, and is written anew with all that it had"
    was_away = what.startswith("directory")
    assert [line.startswith(waits) for line in said[:was_away]] == [True] * was_away
    assert said[was_away:-1] == [anew] * (what != "directory moved and back")


def test_without_rotation_sighup_stops(parent: Parent, tmp_path: Path) -> None:
    path = tmp_path / "pool.capture"
    with recording(path, parent.tgid) as process:
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert read(path).session.part is None


def test_told_to_stop_while_it_rotates(parent: Parent, tmp_path: Path) -> None:
    """The part is not kept under another name half closed: the end of the trace closes it."""
    path = tmp_path / "pool.capture"
    slow = patched(
        "import time",
        "from tracer.record import ending, trace",
        "trace.PATIENCE_S = 60",
        "close = ending.Ending.close",
        "ending.Ending.close = lambda *arguments: (time.sleep(1), close(*arguments))[1]",
    )
    with recording(path, parent.tgid, "--rotate", "1h", shmtrace=slow) as process:
        toucher = parent.tell("touch", 20, BY_FIRST)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.7)
        stop(process)
    found = read(path)
    assert (pages(the_region(found)), found.session.part, found.session.warnings) == ({toucher: BY_FIRST}, 1, [])
    assert list(tmp_path.iterdir()) == [path]


# ---- as a service ----


@pytest.mark.needs("setpriv", "unshare")
def test_it_runs_with_the_capabilities_of_its_unit(tmp_path: Path) -> None:
    """And no others, in a mount namespace that has tracefs; it looks at files of another user that nobody else may
    read, and tells the service manager when it is ready."""
    [bounding] = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    caps = ",".join(f"+cap_{CAPABILITIES[name]}" for name in bounding.split())  # older libraries do not know all names
    only = ["setpriv", f"--bounding-set=-all,{caps}", "--inh-caps=-all", "--no-new-privs", "--"]
    shared = Path(f"/dev/shm/rotate-{os.getpid()}")
    parent = Parent(uid=1234, file=shared)
    path, place = tmp_path / "pool.capture", tmp_path / "socket"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(place))
            script = 'mount -t tracefs none /sys/kernel/tracing && ulimit -l unlimited; exec "$@"'
            command = ["unshare", "-m", "sh", "-c", script, "sh", *only, "env", f"NOTIFY_SOCKET={place}", *SHMTRACE]
            with recording(path, parent.tgid, "--rotate", "1h", shmtrace=command) as process:
                assert manager.recv(1000).startswith(b"READY=1\nSTATUS=tracing 1 process, 1 region(s)")
                toucher = parent.tell("touch", 20, BY_FIRST)
                rotate(process, path, 1)
                assert manager.recv(1000).startswith(b"STATUS=part 2 of ")
                stop(process)
                assert manager.recv(1000) == b"STOPPING=1"
    finally:
        parent.end()
        shared.unlink()
    region = the_region(read(path))
    assert (region.name, pages(region), region.before_bytes) == (
        str(shared),
        {toucher: BY_FIRST},
        BY_PARENT * PAGE_BYTES,
    )
    assert region.unseen_bytes == 0


# ---- when memory runs out ----

STRIKES = """
from tracer.record import rotation, trace
import pathlib
rotation.SETTLE_S, rotation.PRUNE_S = 0.5, {prune_s}
trace.Trace.nr_ooms = property(lambda _: len(list(pathlib.Path({place!r}).glob("kill*"))))
"""


def test_the_last_hour_is_kept_when_the_oom_killer_strikes(parent: Parent, tmp_path: Path) -> None:
    strikes = tmp_path / "strikes"
    strikes.mkdir()
    path = tmp_path / "oom.capture"
    shmtrace = patched(STRIKES.format(place=str(strikes), prune_s=0.7))
    command = [*shmtrace, "record", "-p", str(parent.tgid), "--keep-on-oom", str(path), "--keep", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"tracing" in process.stderr.readline()
        first = parent.tell("touch", 20, BY_FIRST)
        parent.tell("pass", OF_PASSING)
        time.sleep(2)  # it has looked for what is too old by then
        assert list(tmp_path.iterdir()) == [strikes]
        touchers = {first: BY_FIRST}
        for number, of in ((1, BY_SECOND), (2, BY_LATER), (3, 5)):
            (strikes / f"kill{number}").touch()
            touchers[parent.tell("touch", 100 * number, of)] = of
            assert b"an OOM kill: the last hour is in " in process.stderr.readline()
            if number == 1:
                found = read(path)
                assert pages(the_region(found)) == touchers
                assert [region.size_bytes for region in found.regions if region.gone_ns] == [OF_PASSING * PAGE_BYTES]
            time.sleep(1.1)  # the next has another name
        (strikes / "kill4").touch()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert path.exists()
    [last] = [part.path for part in parts.over(path)]
    assert pages(the_region(read(last))) == touchers
    assert len(list(tmp_path.iterdir())) == 3


def test_without_an_oom_kill_nothing_is_written(parent: Parent, tmp_path: Path) -> None:
    command = [*SHMTRACE, "record", "-p", str(parent.tgid), "--keep-on-oom", str(tmp_path / "x.capture"), "-d", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


# ---- labels and stacks ----


@pytest.mark.needs("php-fpm*")
def test_labels_and_stacks_of_earlier_parts(tmp_path: Path) -> None:
    """Each part says which script every page was made for, as one trace that was not cut does; workers are replaced."""
    path, whole = tmp_path / "pool.capture", tmp_path / "whole.capture"
    options = ["--label", "php", "--stacks"]
    with running_fpm(90, max_requests=20) as fpm, recording(whole, fpm.tgid, *options) as beside:
        with recording(path, fpm.tgid, *options, "--rotate", "1h") as process:
            for number in range(3):
                fpm.ask_for(script_names(90)[30 * number : 30 * number + 30])
                time.sleep(0.5)
                rotate(process, path, number + 1)
            stop(process)
        stop(beside)
    found = [read(each) for each in [*(part.path for part in parts.over(path)), path]]
    sizes = []
    for each in [*found, read(whole)]:
        opcache = max(each.regions, key=lambda region: region.allocated_bytes)
        assert opcache.unseen_bytes == 0
        by_script: Counter[str] = Counter()
        for labelled in opcache.labelled:
            by_script[Path(labelled.text("script") or "?").name] += labelled.touched_bytes
        sizes.append(by_script)
        assert all(toucher.made_by for toucher in opcache.touchers if toucher.touched_bytes)
    assert sizes[2] == sizes[3] == sizes[4]
    asked = [{name: size for name, size in each.items() if name in script_names(90)} for each in sizes]
    assert 0 < len(asked[0]) < len(asked[1]) < len(asked[2])
    assert asked[0].items() < asked[1].items() < asked[2].items()
    assert [max(each) < script_names(90)[30 * number] for number, each in enumerate(asked[:2], 1)] == [True, True]
