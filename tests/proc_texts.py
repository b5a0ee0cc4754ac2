"""What /proc says of a host that there is not, and a tree of it to be read in its place."""

from __future__ import annotations

from tracer.proc.procfs import Proc

MAPS = """\
55d0c0000000-55d0c0010000 r-xp 00002000 fd:01 1234                       /usr/sbin/php-fpm8.2
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f1000000000-7f1010000000 rw-s 00000000 00:01 1047                       /dev/zero (deleted)
7f1010000000-7f1010400000 r-xs 10000000 00:01 1047                       /dev/zero (deleted)
7f2000000000-7f2000001000 rw-s 00000000 00:01 32769                      /SYSV00000000 (deleted)
7f3000000000-7f3000002000 rw-s 00000000 00:01 1048                       [anon_shmem:a pool]
7f4000000000-7f4000001000 r--s 00001000 103:10001 99                     /dev/shm/with  spaces (deleted)\x20
7f5000000000-7f5000001000 ---s 00000000 00:13 7
7f6000000000-7f6000001000 rw-s 00000000 00:13 8                          /dev/shm/a\\012b
"""
MEMINFO = """\
MemTotal:       24684524 kB
MemFree:        20799932 kB
SwapTotal:       1048576 kB
SwapFree:              0 kB
AnonPages:        811724 kB
Shmem:             46380 kB
ShmemHugePages:       12 kB
HugePages_Total:       7
"""
SYSVIPC = """\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime\
      ctime                   rss                  swap
   5432001          3   600                    56   811   812      7   112   120   112   120 1732400000 1732400001\
 1732400000                  4096                     0
-559038737      32769   600            2097152000  1201     0      1     0     0     0     0          0          0\
 1732400000                 81920                  4096
"""


def put(proc: Proc, tgid: int, **files: bytes | str) -> None:
    """A process of such files."""
    (proc.root / str(tgid)).mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        (proc.root / str(tgid) / name).write_bytes(raw)


def stat_of(tgid: int, comm: bytes, parent: int = 1, start_ticks: int = 521) -> bytes:
    rest = f"S {parent} 811 811 0 -1 4194560 1203 0 0 0 3 5 0 0 20 0 1 0 {start_ticks} 213700608 4821 1844 1 1 0"
    return b"%d (%s) %s\n" % (tgid, comm, rest.encode())
