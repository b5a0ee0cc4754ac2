"""Private memory, of a /proc and of cgroups that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.proc import private_memory
from tracer.proc.private_memory import AT_MOST, EXACT, Private
from tracer.proc.procfs import Proc

STATUS = "Name:\tRssAnon:\nVmRSS:\t   99 kB\nRssAnon:\t  {} kB\nRssShmem:\t  88 kB\nVmSwap:\t  {} kB\n"
V1 = "rss 4096\nshmem 8192\ntotal_rss {}\ntotal_shmem 4096\ntotal_swap {}\n"
V2 = "anon {}\nfile 4096\nshmem 8192\n"


class Host:
    def __init__(self, root: Path, version: int) -> None:
        self.proc = Proc(str(root / "proc"))
        self.version = version
        self.cgroups = root / "cgroups"
        other = "cgroup /v1/cpu cgroup rw,cpu 0 0\n" + f"cgroup2 {root}/unified cgroup2 rw 0 0\n" * (version == 1)
        kind = (
            f"cgroup {self.cgroups} cgroup rw,memory 0 0" if version == 1 else f"cgroup2 {self.cgroups} cgroup2 rw 0 0"
        )
        (root / "proc" / "self").mkdir(parents=True)
        (root / "proc" / "self" / "mounts").write_text(f"tmpfs /tmp tmpfs rw 0 0\n{kind}\n{other}")

    def process(self, tgid: int, parent: int = 1, anon_kib: int = 0, swap_kib: int = 0) -> None:
        folder = self.proc.root / str(tgid)
        folder.mkdir()
        (folder / "status").write_text(STATUS.format(anon_kib, swap_kib))
        (folder / "stat").write_text(f"{tgid} (x) S {parent} {'0 ' * 48}")
        (folder / "cmdline").write_bytes(b"x\0")

    def group(self, path: str, *tgids: int, anon_bytes: int = 0, swap_bytes: int = 0) -> None:
        folder = self.cgroups / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text("".join(f"{tgid}\n" for tgid in tgids))
        (folder / "memory.stat").write_text((V1 if self.version == 1 else V2).format(anon_bytes, swap_bytes))
        if self.version == 2:
            (folder / "memory.swap.current").write_text(f"{swap_bytes}\n")

    def measure(self, tgids: list[int], *cgroups: str | None) -> Private:
        return private_memory.measure(self.proc, tgids, cgroups)


@pytest.fixture(params=[1, 2])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    host = Host(tmp_path, request.param)
    for tgid in (811, 812, 813):
        host.process(tgid, anon_kib=tgid, swap_kib=7)
    return host


SUM_BYTES = (811 + 812 + 813 + 21) * 1024


def test_a_cgroup_of_their_own(host: Host) -> None:
    host.group("/web", 811, 812, 813, anon_bytes=23)
    assert host.measure([811, 812, 813], "/web") == (SUM_BYTES, 23)


def test_several_and_one_within_another(host: Host) -> None:
    host.group("/web", 811, anon_bytes=23)
    host.group("/web/inner", 812, anon_bytes=7)
    host.group("/job", 813, anon_bytes=101)
    assert host.measure([811, 812, 813], "/web", "/web/inner", "/job") == (SUM_BYTES, 124)


def test_others_are_in_it(host: Host) -> None:
    host.process(900)
    host.group("/web", 811, 812, 813, 900, anon_bytes=23)
    assert host.measure([811, 812, 813], "/web") == (SUM_BYTES, None)


def test_others_are_below_it(host: Host) -> None:
    host.process(900)
    host.group("/web", 811, 812, 813, anon_bytes=23)
    host.group("/web/inner", 900, anon_bytes=7)
    assert host.measure([811, 812, 813], "/web") == (SUM_BYTES, None)


def test_one_that_was_forked_meanwhile_is_no_other(host: Host) -> None:
    host.process(900, parent=811)
    host.group("/web", 811, 812, 813, 900, anon_bytes=23)
    assert host.measure([811, 812, 813], "/web") == (SUM_BYTES, 23)


@pytest.mark.parametrize("cgroups", [(None,), ("/web", None), ("/absent",), ("/web", "/../../else")])
def test_a_cgroup_that_cannot_be_looked_at(cgroups: tuple[str | None, ...], host: Host) -> None:
    host.group("/web", 811, 812, 813, anon_bytes=23)
    found = host.measure([811, 812, 813], *cgroups)
    assert found == (SUM_BYTES, None)


def test_swapped_out(host: Host) -> None:
    """Which of it is shared memory, the cgroup does not say."""
    host.group("/web", 811, 812, 813, anon_bytes=23, swap_bytes=4096)
    assert host.measure([811, 812, 813], "/web") == (SUM_BYTES, None)


def test_the_dead_have_none(host: Host) -> None:
    host.group("/web", 811, anon_bytes=23)
    assert host.measure([], "/web") == (0, 0)
    assert host.measure([4711]).status_bytes == 0


def test_all_is_told_in_the_way_of_both_ends() -> None:
    assert private_memory.change([Private(50, 5), Private(90, 9), Private(70, 7)]) == (5, 9, 7, EXACT)
    assert private_memory.change([Private(50, 5), Private(90, None), Private(70, 7)]) == (5, 90, 7, EXACT)
    assert private_memory.change([Private(0, 0), Private(90, None), Private(0, 0)]) == (0, 90, 0, EXACT)
    assert private_memory.change([Private(50, 5), Private(90, 9), Private(70, None)]) == (50, 90, 70, AT_MOST)
    assert private_memory.change([Private(50, None), Private(70, 7)]) == (50, 70, 70, AT_MOST)
    assert private_memory.change([Private(50, 5), Private(0, 0)]) == (5, 5, 0, EXACT)
    assert private_memory.change([Private(50, 5)]) == (5, 5, 5, EXACT)


def test_the_highest() -> None:
    assert private_memory.highest(Private(50, 9), Private(70, 7)) == (70, 9)
    assert private_memory.highest(Private(50, None), Private(30, 7)) == (50, 50)
    assert private_memory.highest(Private(50, None), Private(70, None)) == (70, 70)
