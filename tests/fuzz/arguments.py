"""Command lines: every command and option, with every value and file that a user, or a script of theirs, may write.

Nothing is traced, and the host is not looked at: where a trace would begin, it is refused; and /proc is a small made-up
one, of a process whose title is a stranger's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import click
from hypothesis import strategies as st

from tests.fuzz import captures, harness, outputs, words
from tests.fuzz.harness import Fuzzer, Given
from tests.fuzz.procs import MOUNTS
from tests.fuzz.values import texts
from tests.proc_texts import MAPS, MEMINFO, SYSVIPC, stat_of
from tracer import cli
from tracer.errors import ShmtraceError
from tracer.kernel import host
from tracer.proc.procfs import Proc
from tracer.tables import groups

TITLES = {1: b"/sbin/init\0", 811: b"php-fpm: master\0", 812: b"a" * 4000 + b"!", 813: b"\xff\x1b[2J\0-x\0", 814: b""}
MADE = ["fifo", "directory", "socket", "nowhere", "loop", "empty", "large", "\udcff", "a b\n;c", "text", captures.FILE]
PATHS = [
    *MADE, *(f"./{name}" for name in MADE), ".", "/", "", "-", "no/such/file", "empty/x", "x" * 300, "x/" * 3000, "~",
    "$HOME", "\x1b[2J", "file:x?mode=rw", "%00", "/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random",
    "/proc/self/mem", "/proc/self/pagemap", "/proc/kmsg", "/proc/self/fd/0", "/proc/self/environ", "/proc/1/root",
    "/sys/kernel/btf/vmlinux",
]  # fmt: skip
PATTERNS = [
    "php", "[", "(?P<x", "\\", "(?i)", "*", "a{99999}",
    "(" * 150, "a{1,65536}{1,65536}", "(?(1)a|b)", "\x1b", "1", "0", "-1", "812", "4194305",
    "9" * 30, "٣", "1 ", "",
]  # fmt: skip
NUMBERS = [
    "0",
    "1",
    "-1",
    "1e308",
    "1e999",
    "nan",
    "inf",
    "-inf",
    "0.1",
    "0x10",
    "1_000",
    "\uff19",
    "",
    "x",
    "9" * 400,
]
ENCODINGS = ["utf-8", "utf-8", "ascii", "latin-1", "utf-16"]
short_texts = texts.filter(lambda text: len(text) < 1000)


def _value(parameter: click.Parameter) -> st.SearchStrategy[str]:
    """What may be written for an option or argument: what it takes, and what it does not."""
    kinds: dict[str, st.SearchStrategy[str]] = {
        "names": st.sampled_from([*PATTERNS, *PATHS]),
        "words": st.sampled_from(["opcache", "/dev/zero", "0:1/1047/00000007", "812:7f1000000000", *PATTERNS]),
        "by": st.sampled_from([*groups.NAMES, "command,region", "time,command", "command,time,region", ","]),
        "source": words.inputs.map(lambda given: str(given["word"])) | st.sampled_from(["php", "postgres", "php:file"]),
        "since": words._times,
        "until": words._times,
        "bounds": words._words["range"],
        "max_bytes": words._words["size"],
        "room_bytes": words._words["size"],
        "command": st.sampled_from(["true", "-x", "--", "no-such-program", *PATHS]),
        "sort": st.sampled_from(
            ["allocated", "allocated_bytes", "process", "faults", "first", "x", "", "_bytes", "__class__"]
        ),
    }
    own = kinds.get(parameter.name or "")
    if isinstance(parameter.type, click.Choice):
        own = st.sampled_from(list(parameter.type.choices))
    elif isinstance(parameter.type, click.Path):
        own = st.sampled_from([captures.FILE, captures.FILE, *PATHS])
    elif own is None:
        own = st.sampled_from(NUMBERS)
    return st.one_of(own, own, own, own, short_texts, st.sampled_from([*PATHS, *NUMBERS]))


def _option(parameter: click.Option) -> st.SearchStrategy[list[str]]:
    names = st.sampled_from([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names.map(lambda name: [name])
    given = st.tuples(names, _value(parameter))
    return st.one_of(given.map(list), given.map(lambda pair: [f"{pair[0]}={pair[1]}"]), names.map(lambda name: [name]))


def _part(parameter: click.Parameter) -> st.SearchStrategy[list[str]]:
    if isinstance(parameter, click.Option):
        return _option(parameter)
    return _value(parameter).map(lambda word: ["--", word] if parameter.nargs < 0 else [word])


def _command(name: str, command: click.Command) -> st.SearchStrategy[list[str]]:
    """What it needs, mostly, and some of what it takes, in any order."""
    needed = [_part(each) for each in command.params if each.required or each.name == "names"]
    more = st.lists(st.one_of(*map(_part, command.params)), max_size=4)
    whole = st.tuples(st.tuples(*needed), more).map(lambda parts: [*parts[0], *parts[1]])
    mixed = st.one_of(whole, whole, whole, more, st.lists(short_texts.map(lambda text: [text]), max_size=2))
    return mixed.flatmap(st.permutations).map(lambda parts: [name, *(word for part in parts for word in part)])


inputs = st.fixed_dictionaries(
    {
        "capture": captures.names,
        "arguments": st.one_of(
            *(
                _command(name, command)
                for name, command in cli.main.commands.items()
                if command.params and name not in ("demo", "doctor", "prepare")
            ),
            st.lists(
                st.one_of(short_texts, st.sampled_from([*cli.main.commands, "--help", "--version", "--"])), max_size=3
            ),
        ).map(lambda words: [word.replace("\0", "") for word in words]),
        "encoding": st.sampled_from(ENCODINGS),
    }
)


def write(given: Given, directory: Path) -> None:
    captures.put(given, directory)
    os.mkfifo(directory / "fifo")
    (directory / "directory").mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(str(directory / "socket"))
    (directory / "nowhere").symlink_to("no-such-file")
    (directory / "loop").symlink_to("loop")
    (directory / "text").write_text("812\n")
    for name in ("empty", "\udcff", "a b\n;c"):
        (directory / name).touch()
    with (directory / "large").open("wb") as file:
        file.truncate(1 << 40)
    proc = directory.parent / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text(MEMINFO)
    for name in ("sysvipc", "self"):
        (proc / name).mkdir()
    (proc / "self" / "mounts").write_text(MOUNTS)
    (proc / "sysvipc" / "shm").write_text(SYSVIPC)
    for tgid, title in TITLES.items():
        (proc / str(tgid)).mkdir()
        (proc / str(tgid) / "stat").write_bytes(stat_of(tgid, b"php-fpm8.2" if tgid in (811, 812) else b"other"))
        (proc / str(tgid) / "cmdline").write_bytes(title)
        for name in ("maps", "cgroup", "status"):
            (proc / str(tgid) / name).write_text(MAPS if name == "maps" else "")


class _NoTrace:
    def __init__(self, *_: Any, **_more: Any) -> None:
        raise ShmtraceError("no trace begins here", "this is a test")


def give(given: Given) -> None:
    trace = ModuleType("tracer.record.trace")  # which would want bcc
    trace.__getattr__ = lambda _: _NoTrace  # type: ignore[method-assign]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {"tracer.record.trace": trace}))
        stack.enter_context(mock.patch.object(Proc.__init__, "__defaults__", (str(Path("../proc").resolve()),)))
        stack.enter_context(mock.patch.object(host, "missing_capabilities", return_value=[]))
        stack.enter_context(mock.patch.object(host, "need_host_pids", return_value=None))
        harness.command(*given["arguments"])


def check(given: Given, _directory: Path, stdout: str) -> None:
    if given["encoding"] != "utf-16" and "completion" not in given["arguments"]:
        outputs.terminal(stdout.replace("\r\n", "\n"))


def made(given: Given) -> set[str]:
    """Files that it was asked to write; beside a capture lies its journal."""
    words = [word.removeprefix("-o") for word in given["arguments"]]
    names = {name.removeprefix("./") for word in words for name in (word, word.partition("=")[2])}
    return names | {f"{name}-journal" for name in names}


FUZZER = Fuzzer("arguments", inputs, give, 120, write, check, captures.warm, made)
