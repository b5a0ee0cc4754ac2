"""Trees that look like /proc, of processes that call themselves, and what they map, anything."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.values import texts
from tests.test_procfs import MAPS, MEMINFO, SYSVIPC
from tracer import private, targets
from tracer.places import place
from tracer.procfs import Proc

NUMBERS = ["0", "1", "812", "-1", "4294967296", "18446744073709551615", "9" * 40, "", "x", "٣", "0x10", "1.5"]
MOUNTS = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
STATUS = "Name:\t{name}\nTgid:\t{number}\nNSpid:\t812\t{number}\nRssAnon:\t{number} kB\nVmSwap:\t0 kB\n"
KINDS = ["absent", "unreadable"]
LARGE_BYTES, HOLE_BYTES = 4 << 20, 1 << 30

_numbers, _names = st.sampled_from(NUMBERS), texts.map(lambda text: text.replace("\0", "")[:4000])
_addresses = st.sampled_from(
    ["7f4000000000-7f4000001000", "0-1000", "ffffffffff600000-ffffffffff601000", "1000-0", "x-y", "-"]
)
_maps = st.tuples(
    _addresses,
    st.sampled_from(["rw-s", "r-xp", "--xs", "----", "", "rw"]),
    st.sampled_from(["00000000", "1000", "ffffffffffffffff", "x"]),
    st.sampled_from(["00:01", "fd:01", "00:00", "fffff:fffff", "1", "x:y", ":"]),
    _numbers,
    _names.map(lambda name: name.replace("\n", "\\012")),
).map(lambda fields: " ".join(fields) + "\n")
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
}
_host: dict[str, st.SearchStrategy[str]] = {
    "meminfo": st.builds(MEMINFO.replace, st.just("46380"), _numbers),
    "sysvipc/shm": st.builds(SYSVIPC.replace, st.just("32769"), _numbers),
    "self/mounts": st.builds("{}none {} cgroup2 rw 0 0\n".format, st.just(MOUNTS), _names),
}
"""What the kernel writes, with what strangers can choose of it."""


def _file(contents: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A text; or one that is cut off somewhere, followed by a large one of one character, or no file at all."""
    return st.one_of(
        contents,
        contents,
        st.tuples(contents, st.integers(0, 200)).map(lambda parts: parts[0][: parts[1]]),
        st.tuples(contents, st.sampled_from(["x", "\0", "\n", " ", "("])).map(lambda parts: {"large": list(parts)}),
        st.sampled_from([{"kind": kind} for kind in KINDS]),
    )


_process = st.fixed_dictionaries({name: _file(contents) for name, contents in _contents.items()})
inputs = st.fixed_dictionaries(
    {
        "processes": st.dictionaries(st.sampled_from(["1", "811", "812", "813", "4194304"]), _process, min_size=1),
        "host": st.fixed_dictionaries({name: _file(contents) for name, contents in _host.items()}),
        "words": st.lists(st.sampled_from(["1", "812", "php", "x", "^$", ".*", "\\x1b"]), min_size=1, max_size=2),
    }
)


def write(given: Given, directory: Path) -> None:
    for name, content in given["host"].items():
        _put(directory / name, content)
    for tgid, files in given["processes"].items():
        for name, content in files.items():
            _put(directory / tgid / name, content)
        for folder, target in (("fd", "/dev/null"), ("map_files", "/dev/zero")):
            (directory / tgid / folder).mkdir()
            (directory / tgid / folder / "7f4000000000-7f4000001000").symlink_to(target)


def _put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_bytes(content.encode(errors="surrogatepass"))
    elif "large" in content:
        text, character = content["large"]
        with path.open("wb") as file:
            file.write(text.encode(errors="surrogatepass"))
            if character == "\0":
                file.truncate(HOLE_BYTES)
            else:
                file.write(character.encode() * LARGE_BYTES)
    elif content["kind"] == "unreadable":  # ELOOP, as may be any other error
        path.symlink_to(path.name)


def give(given: Given) -> None:
    proc = Proc(".")
    processes = proc.processes()
    wanted = targets.parse(given["words"])
    roots = wanted.roots(processes)
    tree = targets.tree(processes, roots)
    wanted.close_to(processes)
    cgroups = []
    for tgid in [*proc.tgids(), *tree]:
        proc.process(tgid)
        proc.rss_bytes(tgid)
        proc.ns_tgid(tgid)
        cgroups.append(proc.cgroup(tgid))
        place(cgroups[-1])
        for mapping in (*proc.mappings(tgid), *proc.executables(tgid)):
            proc.map_file(tgid, mapping)
        proc.open_files(tgid)
    private.measure(proc, processes, cgroups)
    proc.sysv_segments()
    with contextlib.suppress(KeyError):
        proc.memory()


FUZZER = Fuzzer("procs", inputs, give, 100, write)
