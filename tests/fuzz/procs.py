"""Trees that look like /proc, of processes that call themselves, and what they map, anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.values import texts
from tests.proc_texts import MAPS, MEMINFO, SYSVIPC
from tracer.cgroup import place
from tracer.proc import leases, mounts, private_memory, shmem
from tracer.proc.procfs import Proc
from tracer.record import targets

NUMBERS = ["0", "1", "812", "-1", "4294967296", "18446744073709551615", "9" * 40, "", "x", "٣", "0x10", "1.5"]
MOUNTS = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
STATUS = "Name:\t{name}\nTgid:\t{number}\nNSpid:\t812\t{number}\nRssAnon:\t{number} kB\nVmSwap:\t0 kB\n"
MAPPED = "7f4000000000-7f4000001000"
LEADS_TO = ["/dev/null", "/dev/zero", "../../fifo", "../../file", "../..", "../../file/x", "nowhere", "/dev/shm"]
KINDS = {"absent": "nowhere", "gone": "../file/x", "unreadable": "/proc/self/mem"}
"""Where a link leads that gives ENOENT, ENOTDIR, and EIO when it is read."""
HOLE_BYTES = 1 << 30
MAX_MAPPINGS = 65530  # vm.max_map_count

_numbers, _names = st.sampled_from(NUMBERS), texts.map(lambda text: text.replace("\0", "")[:4000])
_addresses = st.sampled_from([MAPPED, "0-1000", "ffffffffff600000-ffffffffff601000", "1000-0", "x-y", "-"])
_devices = st.sampled_from(["00:01", "fd:01", "00:00", "fffff:fffff", "1", "x:y", ":"])
_maps = st.tuples(
    _addresses,
    st.sampled_from(["rw-s", "r-xp", "--xs", "----", "", "rw"]),
    st.sampled_from(["00000000", "1000", "ffffffffffffffff", "x"]),
    _devices,
    _numbers,
    _names.map(lambda name: name.replace("\n", "\\012")),
).map(lambda fields: " ".join(fields) + "\n")
_mounts = st.builds(
    "{} 27 {} / {} rw,noatime {}- {} /dev/root rw\n".format,
    *(_numbers, _devices, _names, st.sampled_from(["", "master:1 ", "- "]), _names),
)
_locks = st.builds("{}: LEASE  ACTIVE    WRITE {} {}:{} 0 EOF\n".format, _numbers, _numbers, _devices, _numbers)
_contents: dict[str, st.SearchStrategy[str]] = {
    "stat": st.builds(
        "{} ({}) S {} 811 811 0 -1 4194560 1203 0 0 0 3 5 0 0 20 0 1 0 {} 213700608 4821 1844\n".format,
        *(_numbers, _names, _numbers, _numbers),
    ),
    "cmdline": texts,
    "status": st.builds(lambda name, number: STATUS.format(name=name, number=number), _names, _numbers),
    "statm": st.builds("52183 {} 1844 900 0 700 0\n".format, _numbers),
    "cgroup": st.lists(
        st.builds("{}:{}:{}\n".format, _numbers, st.sampled_from(["", "memory", "cpu,memory"]), _names), max_size=3
    ).map("".join),
    "maps": st.lists(_maps, max_size=4).map(lambda lines: MAPS + "".join(lines)),
    "mountinfo": st.lists(_mounts, max_size=3).map("".join),
}
_host: dict[str, st.SearchStrategy[str]] = {
    "sysvipc/shm": st.builds(SYSVIPC.replace, st.just("32769"), _numbers),
    "self/mountinfo": st.lists(_mounts, max_size=3).map("".join),
    "locks": st.lists(_locks, max_size=3).map("".join),
    "self/mounts": st.builds("{}none {} cgroup2 rw 0 0\n".format, st.just(MOUNTS), _names),
}
"""What the kernel writes, with what strangers can choose of it."""


_large: dict[str, st.SearchStrategy[Any]] = {
    "cmdline": st.builds(lambda text: {"text": text, "hole_bytes": HOLE_BYTES}, texts),
    "maps": st.builds(lambda line: {"text": line, "times": MAX_MAPPINGS}, _maps),
    "mountinfo": st.builds(lambda line: {"text": line, "times": MAX_MAPPINGS}, _mounts),
}
"""Those that a process can make as large as this."""


def _file(name: str, contents: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A text; or one that is cut off somewhere, a large one, or no file at all."""
    cut = st.tuples(contents, st.integers(0, 200)).map(lambda parts: parts[0][: parts[1]])
    none = st.sampled_from([{"kind": kind} for kind in KINDS])
    return st.one_of(contents, contents, cut, none, *([_large[name]] if name in _large else []))


_process = st.fixed_dictionaries({name: _file(name, contents) for name, contents in _contents.items()})
inputs = st.fixed_dictionaries(
    {
        "processes": st.dictionaries(
            st.sampled_from(["1", "811", "812", "813", "4194304"]), _process, min_size=1, max_size=3
        ),
        "host": st.fixed_dictionaries({name: _file(name, contents) for name, contents in _host.items()}),
        "leads_to": st.sampled_from(LEADS_TO),
        "words": st.lists(st.sampled_from(["1", "812", "php", "x", "^$", ".*", "\\x1b"]), min_size=1, max_size=2),
    }
)


def write(given: Given, directory: Path) -> None:
    (directory / "meminfo").write_text(MEMINFO)
    for name, content in given["host"].items():
        _put(directory / name, content)
    for tgid, files in given["processes"].items():
        for name, content in files.items():
            _put(directory / tgid / name, content)
        for folder, entry in (("fd", "7"), ("map_files", MAPPED)):
            (directory / tgid / folder).mkdir()
            (directory / tgid / folder / entry).symlink_to(given["leads_to"])
    os.mkfifo(directory / "fifo")
    (directory / "file").write_bytes(b"x" * 5000)


def _put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = content if isinstance(content, dict) else {"text": content}
    if "kind" in file:
        path.symlink_to(KINDS[file["kind"]])
        return
    path.write_bytes(file["text"].encode(errors="surrogatepass") * file.get("times", 1))
    if "hole_bytes" in file:
        os.truncate(path, file["hole_bytes"])


def give(given: Given) -> None:
    proc = Proc(".")
    processes = proc.processes()
    wanted = targets.parse(given["words"])
    roots = wanted.roots(processes)
    tree = targets.tree(processes, roots)
    wanted.close_to(processes)
    mounted = mounts.Mounts(proc.root)
    cgroups = []
    for tgid in [*proc.tgids(), *tree]:
        proc.process(tgid)
        proc.rss_bytes(tgid)
        proc.ns_tgid(tgid)
        cgroups.append(proc.cgroup(tgid))
        place(cgroups[-1])
        mappings = proc.mappings(tgid)
        proc.identify(tgid, mappings)
        for path in {proc.map_file(tgid, mapping) for mapping in mappings} | set(proc.open_files(tgid)):
            for look in (shmem.identify, shmem.survey, shmem.residency, shmem.region_stat, shmem.link_name):
                look(path)
        proc.executables(tgid)
        for mapping in mappings[:1]:
            mounted.kind(tgid, mapping.dev)
            mounted.why_not(proc.folder(tgid), mapping.ino)
    leases.find(proc.root / "locks")
    private_memory.measure(proc, processes, cgroups)
    proc.sysv_segments()
    proc.memory()
    proc.warnings()


FUZZER = Fuzzer("procs", inputs, give, 60, write)
