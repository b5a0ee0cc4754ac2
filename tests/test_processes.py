"""Whose a PID was, and who made what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.proc.procfs import TICK_NS
from tracer.record.processes import Processes, TracedProcess, infer_creator, stands_for, top

CLOCK = Clock(monotonic_ns=500, boot_ns=1_000_000_000_000, wall_ns=1_700_000_000_000_000_000)
BOOTED_NS = CLOCK.wall_ns - CLOCK.boot_ns


@pytest.fixture
def capture() -> Iterator[Capture]:
    with Capture() as capture:
        yield capture


@pytest.fixture
def lives(capture: Capture) -> Processes:
    return Processes(capture, CLOCK)


def process(
    tgid: int, parent: TracedProcess | None = None, exited: bool = False, start_time_ns: int = 0
) -> TracedProcess:
    return TracedProcess(tgid, tgid, start_time_ns, parent, "x", "x", -1, exited)


# ---- a PID in time ----


def test_the_time_tells_whose_it_was(lives: Processes) -> None:
    first = lives.begin(812, 10, None, "first", "", began_us=-1)
    second = lives.begin(812, 20, None, "second", "", began_us=1000)
    third = lives.begin(812, 30, None, "third", "", began_us=2000)
    found = {when_us: lives.at(812, when_us) for when_us in (-1, 0, 999, 1000, 1999, 2000, 10**9)}
    assert found == {-1: first, 0: first, 999: first, 1000: second, 1999: second, 2000: third, 10**9: third}


def test_whose_it_was_all_the_time(lives: Processes) -> None:
    first = lives.begin(812, 10, None, "first", "", began_us=-1)
    second = lives.begin(812, 20, None, "second", "", began_us=1000)
    lives.begin(812, 30, None, "third", "", began_us=2000)
    spans = [(0, 999), (0, 1000), (1000, 1999), (999, 2000)]
    assert [lives.during(812, *span) for span in spans] == [first, None, second, None]


def test_what_was_before_it_was_heard_of_is_its_own(lives: Processes) -> None:
    """A word may be older than the event of the fork."""
    only = lives.begin(812, 10, None, "only", "", began_us=1000)
    assert lives.at(812, 3) is only


def test_somebody_unknown(lives: Processes, capture: Capture) -> None:
    """A word is all there is of it."""
    stranger = lives.at(4711, 5)
    assert lives.at(4711, 10**9) is stranger
    assert (stranger.tgid, stranger.start_time_ns, stranger.comm) == (4711, 0, None)
    assert stranger.exited
    assert lives.alive(4711) is None
    assert [tuple(row) for row in capture.rows("SELECT tgid, start_time_ns, comm FROM process")] == [(4711, 0, None)]


def test_a_stranger_is_not_of_the_tree(lives: Processes, capture: Capture) -> None:
    """It is known for the time it lives, as its parent is, and takes no part in who made what."""
    master = lives.begin(811, 10, 1, "php-fpm8.2", "php-fpm8.2 -F", began_us=-1)
    stranger = lives.begin(4711, 20, 811, "cat", "cat /dev/zero", began_us=-1, outside_tree=True)
    worker = lives.begin(812, 30, 811, "php-fpm8.2", "php-fpm: pool www", began_us=7)
    assert lives.tree() == [master, worker]
    assert lives.all_alive() == [master, stranger, worker]
    assert lives.alive(4711) is lives.at(4711, 5) is lives.find(4711, 20) is stranger
    assert (stranger.outside_tree, master.outside_tree, worker.outside_tree) == (True, False, False)
    assert stranger.parent is None
    lives.end(stranger, 7)
    lives.end(worker, 7)
    assert lives.tree() == [master]
    found = capture.rows("SELECT tgid, parent, parent_tgid, outside_tree FROM process")
    assert [tuple(row) for row in found] == [(811, None, 1, 0), (4711, None, 811, 1), (812, 1, 811, 0)]


def test_a_stranger_is_nobodys_parent(lives: Processes) -> None:
    """The tree goes no further up than what is traced."""
    lives.begin(4711, 20, 1, "bash", "bash", began_us=-1, outside_tree=True)
    child = lives.begin(4712, 30, 4711, "php", "php", began_us=7)
    assert child.parent is None
    assert stands_for(process(4713, child, exited=True), []) is child


def test_a_pid_may_be_a_strangers_next(lives: Processes) -> None:
    first = lives.begin(812, 10, None, "first", "", began_us=-1)
    stranger = lives.begin(812, 20, None, "cat", "cat", began_us=1000, outside_tree=True)
    assert first.exited
    assert lives.tree() == []
    assert [lives.at(812, when_us) for when_us in (999, 1000)] == [first, stranger]


def test_a_pid_that_begins_again_had_ended(lives: Processes) -> None:
    first = lives.begin(812, 10, None, "first", "", began_us=-1)
    assert lives.alive(812) is first
    second = lives.begin(812, 20, None, "second", "", began_us=1000)
    assert first.exited
    assert lives.alive(812) is lives.last(812) is second
    lives.end(second, 7)
    assert lives.alive(812) is None
    assert lives.last(812) is second
    assert (lives.find(812, 10), lives.find(812, 20), lives.find(812, 30), lives.find(9, 10)) == (
        first,
        second,
        None,
        None,
    )
    assert lives.all_alive() == []


def test_the_last_that_is_dead(lives: Processes) -> None:
    first = lives.begin(812, 10, None, "first", "", began_us=-1)
    assert lives.last_dead(812) is first  # there is no other
    second = lives.begin(812, 20, None, "second", "", began_us=1000)
    lives.end(second, 7)
    assert lives.last_dead(812) is second
    lives.begin(812, 30, None, "third", "", began_us=2000)
    assert lives.last_dead(812) is second
    assert lives.last_dead(4711).comm is None


def test_they_are_entered_as_they_come(lives: Processes, capture: Capture) -> None:
    master = lives.begin(811, 10, 1, "php-fpm8.2", "php-fpm8.2 -F", began_us=-1, cgroup="/system.slice")
    worker = lives.begin(812, 20, 811, "php-fpm8.2", "php-fpm8.2 -F", began_us=7)
    assert worker.cgroup == "/system.slice"
    lives.rename(worker, "php-fpm8.2", "php-fpm: pool www")
    lives.rename(worker, "worker-7", "")  # the kernel had dropped the command line
    lives.move(worker, "/moved")
    lives.move(worker, None)  # it has ended, and /proc with it
    lives.number(worker, 7)
    lives.number(worker, None)
    lives.end(worker, 1_700_000_000_000_000_001, 9, oom_killed=True)
    orphan = lives.begin(813, 30, 812, "x", "x", began_us=9)
    assert worker.parent is master
    assert orphan.parent is None  # 812 had ended: whoever 812 was then, it was not this one
    assert [tuple(row) for row in capture.rows("SELECT * FROM process")] == [
        (
            1,
            811,
            10,
            None,
            None,
            1,
            "php-fpm8.2",
            "php-fpm8.2 -F",
            "/system.slice",
            BOOTED_NS + 10,
            None,
            None,
            None,
            0,
        ),
        (
            2,
            812,
            20,
            7,
            1,
            811,
            "worker-7",
            "php-fpm: pool www",
            "/moved",
            BOOTED_NS + 20,
            1_700_000_000_000_000_001,
            9,
            1,
            0,
        ),
        (3, 813, 30, None, None, 812, "x", "x", None, BOOTED_NS + 30, None, None, None, 0),
    ]


def test_what_it_executes(lives: Processes, capture: Capture) -> None:
    master = lives.begin(811, 10, 1, "php-fpm8.2", "php-fpm8.2 -F", began_us=-1)
    lives.executed(master, "php-fpm8.2", "php-fpm8.2 -F -D", 42)
    assert [tuple(row) for row in capture.rows("SELECT * FROM exec")] == [(42, 1, "php-fpm8.2", "php-fpm8.2 -F -D")]
    assert capture.rows("SELECT command FROM process")[0]["command"] == "php-fpm8.2 -F -D"


def test_one_that_began_before_another_was_heard_of(lives: Processes) -> None:
    """A stranger is known by its first touch only, and began before."""
    later = lives.begin(812, 30, None, "later", "", began_us=2000)
    earlier = lives.begin(812, 20, None, "earlier", "", began_us=1000)
    assert [lives.at(812, when_us) for when_us in (1000, 1999, 2000)] == [earlier, earlier, later]


def test_a_command_line_that_was_cut_adds_nothing_to_the_whole(lives: Processes) -> None:
    """The kernel side tells its beginning, and /proc more of it."""
    master = lives.begin(811, 10, 1, "java", "java -cp a:b:c Main", began_us=-1)
    lives.rename(master, "renamed", "java -cp a…")
    assert (master.comm, master.command) == ("renamed", "java -cp a:b:c Main")
    lives.executed(master, "java", "java -jar a…", 42)
    assert master.command == "java -jar a…"
    lives.rename(master, "java", "java -jar a.jar")
    assert master.command == "java -jar a.jar"


# ---- who made it ----


def test_top() -> None:
    master = process(811)
    worker, other = process(812, master), process(813, master)
    grandchild = process(814, worker)
    assert top([grandchild, other, worker, master]) is master
    assert top([grandchild, worker]) is worker
    assert top([other, worker]) is other  # neither is above the other: the first
    assert top([grandchild, other]) is grandchild
    assert top(iter([worker])) is worker
    assert top([]) is None


@pytest.mark.parametrize(
    ("born_ns", "inferred"),
    [
        pytest.param(None, True, id="kernels before v6.1 do not say"),
        pytest.param(0, True, id="at the same moment"),
        pytest.param(10**9, True, id="later"),
        pytest.param(-TICK_NS, True, id="start times are rounded to the tick"),
        pytest.param(-TICK_NS - 1, False, id="before there was such a process"),
        pytest.param(-(10**9), False, id="long before"),
    ],
)
def test_who_is_younger_than_a_region_did_not_make_it(born_ns: int | None, inferred: bool) -> None:
    master = process(811, start_time_ns=CLOCK.boot_ns + 3_000_000_000)
    worker = process(812, master, start_time_ns=CLOCK.boot_ns + 4_000_000_000)
    created_ns = None if born_ns is None else CLOCK.wall_ns + 3_000_000_000 + born_ns
    assert infer_creator([worker, master], created_ns, CLOCK) == (master if inferred else None)


def test_nobody_maps_it() -> None:
    assert infer_creator([], None, CLOCK) is None
    assert infer_creator([], CLOCK.wall_ns, CLOCK) is None


def test_who_stands_for_a_region() -> None:
    shell = process(1)
    master = process(811, shell)
    dead = process(812, master, exited=True)
    worker = process(813, master)
    assert stands_for(master, [worker]) is master  # alive, whether it maps it or not
    assert stands_for(dead, [worker, master]) is master  # the top of those who map it
    assert stands_for(dead, [worker]) is worker
    assert stands_for(dead, []) is master  # next of kin
    assert stands_for(process(814, dead, exited=True), []) is master
    assert stands_for(None, [worker]) is worker
    assert stands_for(None, []) is None


@pytest.mark.parametrize(
    ("of_parent", "of_child", "is_heir"),
    [
        ("/system.slice/php8.2-fpm.service", "/system.slice/php8.2-fpm.service", True),
        (
            "/user.slice/user-0.slice/user@0.service/app.slice",
            "/user.slice/user-0.slice/user@0.service/init.scope",
            False,
        ),
        ("/system.slice/x.service", "/system.slice/x.service/worker", True),
        ("/init.scope", "/system.slice/php8.2-fpm.service", False),
        ("/system.slice/containerd.service", f"/kubepods/pod{'0' * 32}/{'a' * 64}", False),
        (f"/kubepods/pod{'0' * 32}/{'b' * 64}", f"/kubepods/pod{'0' * 32}/{'a' * 64}", False),
        ("/", "/made/by/hand", False),
        (None, None, True),
    ],
)
def test_nobody_of_another_unit_stands_for_a_region(of_parent: str | None, of_child: str | None, is_heir: bool) -> None:
    """What keeps a service or a container lives on when that is over, and has made none of its regions."""
    keeper = process(1)
    dead = process(812, keeper, exited=True)
    keeper.cgroup, dead.cgroup = of_parent, of_child
    assert stands_for(dead, []) is (keeper if is_heir else dead)


def test_a_dead_one_stands_for_itself_where_all_are_dead() -> None:
    master = process(811, exited=True)
    worker = process(812, master, exited=True)
    assert stands_for(worker, []) is worker


def test_a_long_line_of_the_dead() -> None:
    """Each forked the next and ended: nobody looks along it once for each."""
    line = [process(1)]
    for tgid in range(2, 20_003):
        line.append(process(tgid, line[-1], exited=True))
    assert all(stands_for(dead, []) is line[0] for dead in reversed(line[1:]))
    assert top(reversed(line)) is line[0]
    line[0].exited = True
    assert all(stands_for(dead, []) is dead for dead in line)


# ---- the capture's times ----


def test_one_moment_by_every_clock() -> None:
    """1.5 s into the capture."""
    assert CLOCK.since_us(CLOCK.monotonic_ns + 1_500_000_999) == 1_500_000
    assert CLOCK.wall(CLOCK.monotonic_ns + 1_500_000_999) == CLOCK.wall_ns + 1_500_000_999
    assert CLOCK.wall_of_us(1_500_000) == CLOCK.wall_ns + 1_500_000_000
    assert CLOCK.wall_of_boot(CLOCK.boot_ns + 1_500_000_999) == CLOCK.wall_ns + 1_500_000_999
    assert CLOCK.since_us(CLOCK.monotonic_ns - 1) == -1


def test_those_that_the_capture_has_no_more_are_forgotten(lives: Processes) -> None:
    """But nobody who lives. A PID whose first owner is forgotten is its next owner's, and no stranger's."""
    first = lives.begin(812, 10, None, "first", "", began_us=-1)
    second = lives.begin(812, 20, None, "second", "", began_us=1000)
    child = lives.begin(813, 30, 812, "child", "", began_us=2000)
    other = lives.begin(814, 40, None, "other", "", began_us=3000)
    for each in (first, second, other):
        lives.end(each, 1)
    assert child.heir() is None
    lives.prune({second.row, child.row})
    assert lives.find(*first.key) is lives.find(*other.key) is None
    assert lives.find(*second.key) is second
    assert lives.at(812, 1500) is second
    assert lives.last(814) is None
    assert (lives.has_dead(812), lives.has_dead(813), lives.has_dead(814)) == (True, False, False)
    assert child.parent is second
    lives.prune({child.row})
    assert child.parent is None
    assert lives.alive(813) is child
