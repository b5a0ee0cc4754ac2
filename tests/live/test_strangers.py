"""Programs that a stranger wrote, or merely named, traced for real: what is not known of them is said, and no more."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.reports import PATIENCE_SECONDS, ROOT, SHMTRACE, Report, read_report, trace
from tracer import account
from tracer.capture.capture import Capture
from tracer.proc.shmem import PAGE_BYTES

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]

# Runs these programs, says that it is ready, touches so many pages of a region when it is told to, ends with its input.
TOUCHER = """
import mmap, subprocess, sys
pages, programs = int(sys.argv[1]), sys.argv[2:]
region = mmap.mmap(-1, pages * 4096)
children = [subprocess.Popen([program, "300"], stdin=subprocess.DEVNULL) for program in programs]
print("ready", flush=True)
if sys.stdin.readline():
    for page in range(pages):
        region[page * 4096] = 1
    print("done", flush=True)
    sys.stdin.read()
for child in children:
    child.kill()
    child.wait()
"""
# The same with a file of its own mapped, as code; leased: who opens it waits until its lease is broken.
MAPPING = """
import fcntl, mmap, signal, sys
pages, path, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(path, "rb")
code = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
if how == "leased":
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
region = mmap.mmap(-1, pages * 4096)
print("ready", flush=True)
if sys.stdin.readline():
    for page in range(pages):
        region[page * 4096] = 1
    print("done", flush=True)
    sys.stdin.read()
"""
WILD = r"""
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
uint64_t sapi_globals[64];
int main(void)
{
	char *at = mmap(0, 23 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sapi_globals[5] = sapi_globals[6] = POINTER;
	puts("ready");
	fflush(stdout);
	getchar();
	for (int i = 0; i < 23; i++)
		at[i * 4096] = 1;
	puts("done");
	fflush(stdout);
	while (getchar() != EOF)
		;
}
"""
PHP = r"""
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
struct { void *context; const char *method; char *query, *cookies; long length; char *path, *uri; } sapi_globals;
int compile_file(void *handle) { return handle != NULL; }
int php_request_shutdown(void) { return 2; }
int main(void)
{
	char *at = mmap(0, 29 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	usleep(700000);
	for (int i = 0; i < 29; i++)
		at[i * 4096] = 1;
	usleep(300000);
}
"""


class Running:
    """A process that touches its pages when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.tgid = process.pid

    def says(self, word: str) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == f"{word}\n"

    def touch(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.says("done")


@contextmanager
def running(*command: object) -> Iterator[Running]:
    pipe = subprocess.PIPE
    with subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, text=True) as process:
        found = Running(process)
        found.says("ready")
        yield found
        assert process.stdin
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)


def traced(processes: list[Running], *options: object) -> Report:
    with trace(*(word for process in processes for word in ("-p", process.tgid)), *options) as tracing:
        for process in processes:
            process.touch()
        return tracing.stop()


def pages(report: Report) -> list[dict[str | None, int]]:
    """Of each region that was touched, by script; None: not known."""
    regions = [region for region in report["regions"] if region["touchers"]]
    assert not any(region["unseen_bytes"] for region in regions)
    return [
        {
            label["script"] if label["known"] else None: label["touched_bytes"] // PAGE_BYTES
            for label in region["labels"]
        }
        for region in regions
    ]


def sections(elf: bytes) -> dict[str, int]:
    """Where each section's header is, by name."""
    (table,) = struct.unpack_from("=Q", elf, 40)
    count, of_names = struct.unpack_from("=HH", elf, 60)
    (names,) = struct.unpack_from("=Q", elf, table + 64 * of_names + 24)
    found = {}
    for header in range(table, table + 64 * count, 64):
        (name,) = struct.unpack_from("=I", elf, header)
        found[elf[names + name : elf.index(b"\0", names + name)].decode()] = header
    return found


def hash_of_zeros(elf: bytearray) -> int:
    struct.pack_into("=QQ", elf, sections(elf)[".gnu.hash"] + 24, len(elf), 64)
    elf.extend(bytes(64))
    return 0


def hash_that_is_none(elf: bytearray) -> int:
    struct.pack_into("=I", elf, sections(elf)[".gnu.hash"] + 4, 1)
    return 0


def hash_nowhere(elf: bytearray) -> int:
    struct.pack_into("=Q", elf, sections(elf)[".gnu.hash"] + 24, 2**64 - 1)
    return 0


def no_headers(elf: bytearray) -> int:
    struct.pack_into("=Q", elf, 40, len(elf) + 10_000_000)
    return 0


def large_table(elf: bytearray) -> int:
    """Of 16 MB, all of them a hole in the file."""
    hole = (16 << 20) // 24 * 24
    at = sections(elf)
    struct.pack_into("=I", elf, at[".gnu.hash"] + 4, 1)
    elf.extend(bytes(-len(elf) % 4096))
    struct.pack_into("=QQ", elf, at[".dynsym"] + 24, len(elf), hole)
    return hole


BROKEN: list[Callable[[bytearray], int]] = [hash_of_zeros, hash_that_is_none, hash_nowhere, no_headers, large_table]


def test_programs_that_are_broken(tmp_path: Path) -> None:
    programs = []
    for damage in BROKEN:
        elf, program = bytearray(Path("/bin/sleep").read_bytes()), tmp_path / f"php-{damage.__name__}"
        hole = damage(elf)
        program.write_bytes(elf)
        os.truncate(program, len(elf) + hole)
        program.chmod(0o755)
        programs.append(program)
    with running(sys.executable, "-c", TOUCHER, 19, *programs) as process:
        report = traced([process], "--label", "php")
    assert pages(report) == [{None: 19}]
    nothing, *why = report["warnings"]
    assert nothing == "no process had what --label php reads: all labels are ?"
    assert sorted(why) == sorted(f"{program} has no symbol sapi_globals: its labels are ?" for program in programs)


@pytest.mark.parametrize("how", ["program", "mapped"])
def test_a_name_like_that_of_a_server(how: str, tmp_path: Path) -> None:
    """It is told at once, and refuses nothing."""
    file = tmp_path / "php-fpm_exporter"
    shutil.copy("/bin/sleep", file)
    command = (TOUCHER, 13, file) if how == "program" else (MAPPING, 13, file, "free")
    line = f"{file} has no symbol sapi_globals: its labels are ?"
    with running(sys.executable, "-c", *command) as process:
        options = [*SHMTRACE, "--json", "-p", str(process.tgid), "--label", "php", "-d", "4"]
        with subprocess.Popen(options, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tracing:
            assert tracing.stderr
            assert b"tracing" in tracing.stderr.readline()
            assert tracing.stderr.readline().decode() == f"shmtrace: {line}\n"
            process.touch()
            output, errors = tracing.communicate(timeout=PATIENCE_SECONDS)
    assert (tracing.returncode, errors) == (0, b"")
    report = read_report(output)
    assert pages(report) == [{None: 13}]
    assert line in report["warnings"]


def test_pointers_to_nowhere(tmp_path: Path) -> None:
    """Beyond all addresses, the kernel's, between its and ours, and where nothing is mapped."""
    (tmp_path / "wild.c").write_text(WILD)
    pointers = ["1ULL << 63", "~0ULL", "0xffffffff80000000ULL", "0x0000800000000000ULL", "8"]
    programs = [tmp_path / f"php{number}" for number, _ in enumerate(pointers)]
    with ExitStack() as stack:
        for pointer, program in zip(pointers, programs):
            subprocess.run(["cc", "-rdynamic", f"-DPOINTER={pointer}", "-o", program, tmp_path / "wild.c"], check=True)
        processes = [stack.enter_context(running(program)) for program in programs]
        report = traced(processes, "--label", "php")
    assert pages(report) == [{None: 23}] * len(pointers)
    assert report["warnings"] == [
        f"{program} has nothing readable at sapi_globals: its labels are ?" for program in programs
    ]


def test_a_file_that_its_owner_keeps_to_himself(tmp_path: Path) -> None:
    """To open it would take 45 seconds; it is said that it was not, and which pages were whose is known."""
    file, capture = tmp_path / "php", tmp_path / "x.capture"
    shutil.copy("/bin/sleep", file)
    with running(sys.executable, "-c", MAPPING, 31, file, "leased") as process:
        began_s = time.monotonic()
        report = traced([process], "--label", "php", "--stacks", "-o", capture)
        assert time.monotonic() - began_s < 40
    assert pages(report) == [{None: 31}]
    reason = "cannot be opened (another process has a lease on it)"
    assert report["warnings"] == [
        f"functions of some programs are shown by file offset: {file} {reason}",
        "no process had what --label php reads: all labels are ?",
        f"{file} {reason}: its labels are ?",
    ]
    with Capture.open(capture) as opened:
        found = account.read(opened)
    made = [each for region in found.regions for toucher in region.touchers for each in toucher.made_by]
    assert sum(each.size_bytes for each in made if each.frames) == 31 * PAGE_BYTES


@pytest.mark.needs("mount", "umount")
@pytest.mark.parametrize("options", [["--stacks"], ["--label", "php:file"]], ids=["stacks", "uprobes"])
def test_a_file_system_can_be_unmounted(options: list[str], tmp_path: Path) -> None:
    """While the trace goes on, once the program that was run from it has ended, though it touched a region."""
    room, source = tmp_path / "room", tmp_path / "php.c"
    room.mkdir()
    source.write_text(PHP)
    subprocess.run(["cc", "-rdynamic", "-o", tmp_path / "php", source], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", room], check=True)
    try:
        shutil.copy(tmp_path / "php", room)
        script = f"read line; {room}/php; echo done; cat"
        with (
            running("sh", "-c", f"echo ready; {script}") as process,
            trace("-p", process.tgid, *options, "-o", tmp_path / "x.capture") as tracing,
        ):
            process.touch()
            time.sleep(1)  # two looks of the trace
            subprocess.run(["umount", room], check=True)
            report = tracing.stop()
    finally:
        subprocess.run(["umount", "-l", room], check=False, stderr=subprocess.DEVNULL)
    touched: dict[str, Any] = {
        toucher["process"]["comm"]: toucher["touched_bytes"] // PAGE_BYTES
        for region in report["regions"]
        for toucher in region["touchers"]
    }
    assert touched == {"php": 29}
    assert report["warnings"] == []
