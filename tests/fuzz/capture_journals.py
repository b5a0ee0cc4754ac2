"""Captures beside which lie files that SQLite would believe: journals, and whatever else may have their names."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import captures
from tests.fuzz.captures import FILE
from tests.fuzz.harness import Fuzzer, Given

MAGIC = bytes.fromhex("d9d505f920a163d7")
SECTOR, NONCE, PAGE_BYTES = 512, 1, 4096
LOCKING_PAGE = 0x40000000 // PAGE_BYTES + 1  # by this number a super-journal's name is told from a page
SUFFIXES = ["-journal", "-wal", "-shm"]
OUTSIDE_TREE = 65534

_suffixes = st.sampled_from(SUFFIXES)
changes = st.one_of(
    st.tuples(st.just("hot"), st.sampled_from(["", "victim", "absolute", ".", "../input/victim", "x" * 600, FILE])),
    st.tuples(st.just("wal"), st.integers(0, 3)),
    st.tuples(
        st.just("bytes"), _suffixes, st.sampled_from(["", "00" * 600, MAGIC.hex(), "377f0682" + "00" * 28, "ff"])
    ),
    st.tuples(st.just("set"), _suffixes, st.integers(0, 600), st.integers(0, 255)),
    st.tuples(st.just("cut off"), _suffixes, st.integers(0, 5000)),
    st.tuples(
        st.just("kind"), st.sampled_from([*SUFFIXES, ""]), st.sampled_from(["directory", "fifo", "socket", "loop"])
    ),
    st.tuples(st.just("link"), st.sampled_from([*SUFFIXES, ""]), st.sampled_from(["victim", "nowhere", "elsewhere"])),
    st.tuples(st.just("mode"), st.sampled_from([*SUFFIXES, "", "/.."]), st.sampled_from([0o400, 0o666, 0o777])),
    st.tuples(st.sampled_from(["owner", "group"]), st.sampled_from([*SUFFIXES, "", "/.."])),
    st.tuples(st.just("wal mode"), st.sampled_from([(1, 2), (2, 1), (2, 2), (3, 3)])),
)
inputs = st.fixed_dictionaries(
    {
        "capture": captures.names,
        "changes": st.lists(changes, min_size=1, max_size=5),
        "command": captures.commands,
    }
)


def hot(path: Path, name: bytes) -> None:
    """A rollback journal that is to be played back, and names a super-journal, which would be removed then: section
    3.1 of sqlite.org/fileformat.html."""
    first = path.read_bytes()[:PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
    checksum = (NONCE + sum(first[place] for place in range(PAGE_BYTES - 200, 0, -200))) & 0xFFFFFFFF
    header = struct.pack(">5I", 1, NONCE, path.stat().st_size // PAGE_BYTES, SECTOR, PAGE_BYTES)
    page = struct.pack(">I", 1) + first + struct.pack(">I", checksum)
    end = struct.pack(">I", LOCKING_PAGE) + name + struct.pack(">II", len(name), sum(name)) + MAGIC if name else b""
    Path(f"{path}-journal").write_bytes((MAGIC + header).ljust(SECTOR, b"\0") + page + end)


def with_wal(path: Path, transactions: int) -> None:
    """A write-ahead log that nobody has brought in, as it lies there while a trace runs that keeps one."""
    for suffix in SUFFIXES:  # SQLite would wait for a FIFO
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    files = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        for _ in range(transactions):
            writer.execute("INSERT INTO exec (comm) VALUES ('x')")
        kept = {file: file.read_bytes() for file in files if file.exists()}
    for file, data in kept.items():
        file.write_bytes(data)


def change(path: Path, what: str, *how: Any) -> None:
    """Raises OSError where it does not go together with the others."""
    beside = path if what in ("hot", "wal", "wal mode") else Path(f"{path}{how[0]}")
    if what not in ("bytes", "kind", "link", "owner", "group", "mode") and not beside.is_file():
        raise FileNotFoundError  # or a FIFO, which would be waited for
    if what == "hot":
        hot(path, str(path.parent / "victim").encode() if how[0] == "absolute" else how[0].encode())
    elif what == "wal":
        with_wal(path, how[0])
    elif what == "bytes":
        beside.unlink(missing_ok=True)
        beside.write_bytes(bytes.fromhex(how[1]))
    elif what == "set":
        data = bytearray(beside.read_bytes())
        if data:
            data[how[1] % len(data)] = how[2]
        beside.write_bytes(data)
    elif what == "cut off":
        os.truncate(beside, min(how[1], beside.stat().st_size))
    elif what == "mode":
        beside.chmod(how[1])
    elif what == "owner":
        os.chown(beside, OUTSIDE_TREE, OUTSIDE_TREE)
    elif what == "group":
        os.chown(beside, -1, OUTSIDE_TREE)
    elif what == "wal mode":
        data = bytearray(path.read_bytes())
        data[18:20] = bytes(how[0])
        path.write_bytes(data)
    else:
        beside.unlink(missing_ok=True)
        if how[1] == "directory":
            beside.mkdir()
        elif how[1] == "fifo":
            os.mkfifo(beside)
        elif how[1] == "socket":
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
                end.bind(str(beside))
        elif how[1] == "elsewhere":
            shutil.copyfile(captures.good("pool"), path.parent / "elsewhere")
            beside.symlink_to("elsewhere")
        else:
            beside.symlink_to(beside.name if how[1] == "loop" else how[1])


def write(given: Given, directory: Path) -> None:
    path = captures.put(given, directory)
    (directory / "victim").write_text("mine\n")
    for each in given["changes"]:
        with contextlib.suppress(OSError, sqlite3.Error):
            change(path, *each)


FUZZER = Fuzzer("capture_journals", inputs, captures.give, 80, write, captures.check, captures.warm)
