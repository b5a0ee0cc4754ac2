"""The usual tools' output, as they print it, and what is read where they are not installed."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.demo import ps_pmap_free
from tracer.proc.procfs import Mapping, Proc
from tracer.proc.shmem import PAGE_BYTES

PS = """\
  12433   5004  3992
     27 2062336  9420
"""
PMAP = """\
12729:   demo: child A
Address           Kbytes     RSS   Dirty Mode  Mapping
0000561d6c4cf000     188     188       0 r---- bash
00007f43b8efe000  204800   51200   51200 rw-s- zero (deleted)
ffffffffff600000       4       0       0 --x--   [ anon ]
---------------- ------- ------- -------
total kB           13912    7796    2612
"""
BUSYBOX_PMAP = """\
12729: {demo: child A} demo: child A
000055d1f0a6c000      48K r--p  /bin/busybox
mapped: 13912K
"""
SMAPS = """\
561d6c4cf000-561d6c4fe000 r--p 00000000 fe:00 1047 /usr/bin/bash
Size:                188 kB
Rss:                 188 kB
Pss:                  94 kB
7f43b8efe000-7f43c56fe000 rw-s 00000000 00:01 21387 /dev/zero (deleted)
Size:             204800 kB
KernelPageSize:        4 kB
Rss:               51200 kB
Pss:               25600 kB
THPeligible:    0
VmFlags: rd wr sh mr mw me ms sd
7f43c56fe000-7f43c5700000 rw-p 00000000 00:00 0
Rss:                   8 kB
Pss:                   8 kB
"""
FREE = """\
               total        used        free      shared  buff/cache   available
Mem:           24105         766       20312        1442        3429       23338
Swap:              0           0           0
"""
PAGES = 7


@pytest.fixture
def mapping() -> Iterator[Mapping]:
    """Of this process, with PAGES pages touched."""
    before = {mapping.start for mapping in Proc().mappings(os.getpid())}
    with mmap.mmap(-1, 23 * PAGE_BYTES) as region:
        region.write(b"x" * PAGES * PAGE_BYTES)
        yield next(found for found in Proc().mappings(os.getpid()) if found.shared and found.start not in before)


def test_ps() -> None:
    assert ps_pmap_free.parse_ps(PS) == {12433: (5004 << 10, 3992 << 10), 27: (2062336 << 10, 9420 << 10)}


def test_pmap() -> None:
    assert ps_pmap_free.parse_pmap(PMAP)[0x7F43B8EFE000] == 51200 << 10
    assert len(ps_pmap_free.parse_pmap(PMAP)) == 3


def test_a_pmap_without_rss_says_nothing() -> None:
    assert ps_pmap_free.parse_pmap(BUSYBOX_PMAP) == {}


def test_smaps() -> None:
    found = ps_pmap_free.parse_smaps(SMAPS, "7f43b8efe000-7f43c56fe000")
    assert (found["Rss"], found["Pss"]) == (51200 << 10, 25600 << 10)
    assert ps_pmap_free.parse_smaps(SMAPS, "7f43b8efe000-7f43c56ff000") == {}


def test_free() -> None:
    assert ps_pmap_free.parse_free(FREE) == (1442 << 20, 23338 << 20)


def test_what_stands_in_says_the_same(mapping: Mapping, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a tool is not installed, what it reads is read; where it is, the two agree."""
    with subprocess.Popen(["sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout
        sleeper.stdout.readline()  # it has all it will have
        shared_bytes = ps_pmap_free.free().shared_bytes
        installed = (
            ps_pmap_free.pmap_rss_bytes(os.getpid(), mapping),
            ps_pmap_free.ps([sleeper.pid])[sleeper.pid].vsz_bytes,
        )
        monkeypatch.setenv("PATH", str(tmp_path))
        assert ps_pmap_free.absent() == ["ps", "pmap", "free", "stat"]
        assert ps_pmap_free.pmap_rss_bytes(os.getpid(), mapping) == installed[0] == PAGES * PAGE_BYTES
        assert ps_pmap_free.ps([sleeper.pid])[sleeper.pid].vsz_bytes == installed[1]
        sleeper.kill()
    assert abs(ps_pmap_free.free().shared_bytes - shared_bytes) < 1 << 30  # others' memory comes and goes
    assert ps_pmap_free.file_system(Path("/dev/shm")) == "tmpfs"


def test_a_process_that_is_gone_says_nothing(mapping: Mapping) -> None:
    tgid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(tgid, 0)
    assert ps_pmap_free.ps([tgid, os.getpid()]).keys() == {os.getpid()}
    assert ps_pmap_free.pmap_rss_bytes(tgid, mapping) is None
    assert ps_pmap_free.smaps(tgid, mapping) == {}
    assert ps_pmap_free.maps_line(tgid, mapping) == ""


def test_the_line_of_maps(mapping: Mapping) -> None:
    line = ps_pmap_free.maps_line(os.getpid(), mapping)
    assert line.startswith(f"{mapping.start:x}-{mapping.end:x} rw-s 00000000 ")
    assert line.endswith(" /dev/zero (deleted)")
