"""Where labels are, in processes that are C programs made for it, and in a /proc that is none."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_elf import mutants
from tracer import labels, wire
from tracer.errors import ShmtraceError
from tracer.labels import Source, Text
from tracer.proc import procfs
from tracer.proc.procfs import Proc
from tracer.proc.shmem import FileKey
from tracer.record import label_sites
from tracer.record.elf import read as elf_read
from tracer.record.label_sites import Sources

POINTED_TO = wire.TEXT_POINTED_TO


@pytest.mark.parametrize(
    ("name", "binary", "symbol", "text"),
    [
        ("nginx:ngx_doing", "nginx", "ngx_doing", Text("text", POINTED_TO)),
        ("php-fpm8.2:sapi_globals+40", r"php\-fpm8\.2", "sapi_globals", Text("text", POINTED_TO, 40)),
        ("/usr/sbin/x:y+0x1f", "/usr/sbin/x", "y", Text("text", POINTED_TO, 31)),
        ("app:&title", "app", "title", Text("text", wire.TEXT_IN_PLACE)),
        ("app:&globals+08", "app", "globals", Text("text", wire.TEXT_IN_PLACE, 8)),
        ("app:globals+0x7fffffffffffffff", "app", "globals", Text("text", POINTED_TO, 2**63 - 1)),
    ],
)
def test_spelling(name: str, binary: str, symbol: str, text: Text) -> None:
    assert labels.parse(name) == Source(name, binary, symbol, (text,))


@pytest.mark.parametrize(
    "name",
    [
        *("", "mysql", "a:", ":b", "a:b+", "a:b+x", "a:b-8", "a:b+8:c", "a:b c", "a:&"),
        *("a:b+0xffffffffffffffff", "a:b+9223372036854775808", "a:b+" + "9" * 5000, "a:b+0x" + "f" * 5000),
    ],
)
def test_what_is_no_label(name: str) -> None:
    with pytest.raises(ValueError, match="is not a label: write php, php:file, postgres or BINARY:SYMBOL"):
        labels.parse(name)


@pytest.mark.parametrize(
    ("name", "columns", "kinds"),
    [
        ("php", ["script", "request"], ["script", "request", "directory"]),
        ("php:file", ["file", "script", "request"], ["file", "script", "request", "directory"]),
        ("postgres", ["query", "title"], ["query", "statement"]),
        ("app:doing", ["text"], ["label"]),
    ],
)
def test_the_most_telling_text_comes_first(name: str, columns: list[str], kinds: list[str]) -> None:
    assert labels.columns(name) == columns
    assert labels.kinds(name) == kinds


@pytest.mark.parametrize(
    ("found", "whole"),
    [
        (["/srv/x.php", "/x.php", "a=1"], "/x.php?a=1"),
        (["/srv/x.php", "/x.php", ""], "/x.php"),
        (["/srv/x.php", "/x.php", None], "/x.php"),
        (["/srv/x.php", None, "a=1"], "?a=1"),
        ([None, None, None], None),
    ],
)
def test_a_request_is_its_name_and_its_query(found: list[str | None], whole: str | None) -> None:
    assert labels.READY["php"].label(found) == {"script": found[0], "request": whole}


PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>
struct globals { void *context; const char *method; char *query, *cookies; long length; char *path, *uri; };
struct globals sapi_globals = {.path = "/srv/x.php", .uri = "/x"};
char *debug_query_string = "SELECT 1";
int compile_file(int x) { return x + 1; }
int php_request_shutdown(int x) { return x + 2; }
int main(void)
{
	printf("%p %p\n", (void *)&sapi_globals, (void *)&debug_query_string);
	fflush(stdout);
	pause();
}
"""
FLAGS = {
    "position-independent": ["-pie", "-fPIE", "-rdynamic"],
    "at a fixed address": ["-no-pie", "-fno-pie", "-rdynamic"],
    "moved by prelink": ["-pie", "-fPIE", "-rdynamic", "-Wl,-Ttext-segment=0x31000000"],
    "old hash table": ["-pie", "-fPIE", "-rdynamic", "-Wl,--hash-style=sysv"],
    "stripped": ["-pie", "-fPIE", "-rdynamic", "-s"],
    "not exported": ["-pie", "-fPIE"],
}


def built(directory: Path, name: str, *flags: str, source: str = PROGRAM) -> Path:
    program = directory / name
    (directory / "program.c").write_text(source)
    subprocess.run(
        ["cc", *(flags or FLAGS["position-independent"]), "-o", program, directory / "program.c"], check=True
    )
    return program


@contextmanager
def running(*command: Path) -> Iterator[tuple[int, list[int]]]:
    """A program: its tgid, and the addresses that it says its symbols have."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield process.pid, [int(address, 16) for address in process.stdout.readline().split()]
        finally:
            process.kill()


@pytest.mark.needs("cc")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_where_a_program_has_it(flags: list[str], tmp_path: Path) -> None:
    program = built(tmp_path, "php-fpm9", *flags)
    with running(program) as (tgid, (globals_at, _)):
        found = Sources(Proc(), labels.READY["php:file"])
        site = found.find(tgid)
        assert site
        assert site.addresses == (globals_at + 40, globals_at + 48, globals_at + 16, 0)
        with found.opened(site, tgid) as path:
            assert path.samefile(program)
        code = program.read_bytes()
        assert site.functions.keys() == {"php_compiling", "php_request_over"}
        # both begin alike, and neither is where the other is
        first, second = (code[offset : offset + 4] for offset in site.functions.values())
        assert first == second != b"\0" * 4
        assert len(set(site.functions.values())) == 2
        assert not site.file_is_string


@pytest.mark.needs("cc")
def test_another_program_has_none(tmp_path: Path) -> None:
    with running(built(tmp_path, "httpd")) as (tgid, _):
        assert Sources(Proc(), labels.READY["php"]).find(tgid) is None
    assert Sources(Proc(), labels.READY["php"]).find(tgid) is None


@pytest.mark.needs("cc")
def test_a_program_by_its_path(tmp_path: Path) -> None:
    with running(built(tmp_path, "app")) as (tgid, (_, query_at)):
        for binary, there in ((f"{tmp_path}/app", True), ("app", True), (f"{tmp_path}/ap", False), ("ap.", False)):
            site = Sources(Proc(), labels.parse(f"{binary}:debug_query_string+3")).find(tgid)
            assert (site.addresses == (query_at + 3,) if site else False) == there


PROBLEMS: dict[str, tuple[Callable[[str], str], str]] = {
    "thread-safe": (lambda text: text.replace("sapi_globals", "sapi_globals_offset"), "is a thread-safe build"),
    "other symbols": (lambda text: text.replace("sapi_globals", "sapi_globules"), "has no symbol sapi_globals"),
    "of a thread": (lambda text: text.replace("struct globals sapi", "__thread struct globals sapi"), "has no symbol"),
    "no function": (lambda text: text.replace("compile_file", "compile"), "has no function compile_file"),
    "data": (
        lambda text: text.replace("int compile_file(int x) { return x + 1; }", "int compile_file = 5;"),
        "has no function compile_file",
    ),
}


@pytest.mark.needs("cc")
@pytest.mark.parametrize(("change", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_programs_that_have_it_not(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    """It is told why, as often as one is asked about."""
    with running(built(tmp_path, "php-fpm9", source=change(PROGRAM))) as (tgid, _):
        found = Sources(Proc(), labels.READY["php:file"])
        for _ in range(2):
            with pytest.raises(ShmtraceError, match=f"^{tmp_path}/php-fpm9 {message}"):
                found.find(tgid)


@pytest.mark.needs("cc")
def test_more_than_memory_is_large(tmp_path: Path) -> None:
    found = Sources(Proc(), labels.parse("app:debug_query_string+0x7fffffffffffffff"))
    with (
        running(built(tmp_path, "app")) as (tgid, _),
        pytest.raises(ShmtraceError, match="at an address that no process has"),
    ):
        found.find(tgid)


@contextmanager
def mapping(*paths: Path, leased: bool = False) -> Iterator[int]:
    """A process that has files mapped, in this order by address; leased: nobody else may open them at once."""
    script = (
        "import fcntl, mmap, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "files = [open(path, 'rb') for path in sys.argv[2:]]\n"
        "how = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC\n"
        "maps = [mmap.mmap(file.fileno(), 0, *how) for file in reversed(files)]\n"
        "for file in files if sys.argv[1] == 'leased' else ():\n"
        "    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, "leased" if leased else "free", *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"mapped\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.needs("cc")
def test_files_that_are_merely_called_so(tmp_path: Path) -> None:
    """One that fits is found behind any others; what is no program is passed over without a word."""
    fits = built(tmp_path, "php-z")
    notes, other, empty = tmp_path / "php-notes.txt", tmp_path / "php-fpm_exporter", tmp_path / "php-magic"
    notes.write_bytes(b"my notes\n" * 500)
    empty.write_bytes(b"\x7fELF" + os.urandom(5000))
    shutil.copy("/bin/sleep", other)
    found = Sources(Proc(), labels.READY["php"])
    with mapping(notes, other, empty, fits) as tgid:
        site = found.find(tgid)
        assert site
        assert site.mapping.path == str(fits)
    with mapping(notes, empty) as tgid:
        assert found.find(tgid) is None
    with (
        mapping(notes, other) as tgid,
        pytest.raises(ShmtraceError, match="php-fpm_exporter has no symbol sapi_globals"),
    ):
        found.find(tgid)


@pytest.mark.needs("cc")
def test_a_file_that_its_owner_keeps_to_himself(tmp_path: Path) -> None:
    """A lease would keep whoever opens it waiting for 45 seconds."""
    program = built(tmp_path, "php")
    began_s = time.monotonic()
    with (
        mapping(program, leased=True) as tgid,
        pytest.raises(ShmtraceError, match=r"cannot be opened \(another process has a lease on it"),
    ):
        Sources(Proc(), labels.READY["php"]).find(tgid)
    assert time.monotonic() - began_s < 20


@pytest.mark.needs("cc")
def test_a_file_that_comes_to_the_place_of_another(tmp_path: Path) -> None:
    """Its uprobes would hang anywhere in it, and in whatever else runs it."""
    first, second = built(tmp_path, "php"), tmp_path / "php2"
    shutil.copy(first, second)
    found = Sources(Proc(), labels.READY["php:file"])
    with mapping(first) as one, mapping(second) as other:
        site, another = found.find(one), found.find(other)
        assert site
        assert another
        assert site.functions == another.functions
        with pytest.raises(FileNotFoundError), found.opened(site._replace(mapping=another.mapping), other):
            pass


@pytest.mark.needs("cc")
def test_there_is_an_end_to_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been read once is not read again; and when they have had their time, others are not read."""
    program = built(tmp_path, "php")
    monkeypatch.setattr("tracer.record.label_sites.MAX_KNOWN", 3)
    found = Sources(Proc(), labels.READY["php"])
    reads = []
    monkeypatch.setattr("tracer.record.elf.read", lambda fd: reads.append(fd) or elf_read(fd))
    for number in range(10):
        copy = tmp_path / f"php{number}"
        shutil.copy(program, copy)
        with mapping(copy) as tgid:
            for _ in range(2):
                assert found.find(tgid)
    assert len(reads) == 10
    assert len(found._known) <= 3
    found._budget._used_s = 1000
    with mapping(copy) as tgid:
        assert found.find(tgid)
    with (
        mapping(program) as tgid,
        pytest.raises(ShmtraceError, match="php was not read, since other files took too long"),
    ):
        found.find(tgid)
    assert len(reads) == 10


@pytest.mark.needs("cc")
def test_there_is_an_end_to_what_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, which may have mapped more than there is time for."""
    program = built(tmp_path, "php-z")
    notes = [tmp_path / f"php-{letter}" for letter in "abcdefg"]
    for path in notes:
        path.write_text("notes")
    found = Sources(Proc(), labels.READY["php"])
    with mapping(*notes, program) as tgid:
        tried = [each.path for each in Proc().mappings(tgid) if "/php-" in each.path]
        monkeypatch.setattr("tracer.record.label_sites.MAX_TRIED", tried.index(str(program)) + 1)
        assert found.find(tgid)
        monkeypatch.setattr("tracer.record.label_sites.MAX_TRIED", tried.index(str(program)))
        assert found.find(tgid) is None


@pytest.mark.needs("cc")
def test_programs_made_up_to_do_harm(tmp_path: Path) -> None:
    """What is believed is a place in memory, and functions that are in code of the file."""
    program, path = built(tmp_path, "php"), tmp_path / "mutant"
    mapped, fits = procfs.Mapping(0x5555_0000_0000, 0x5555_0001_0000, False, 0, 1, 2, "/x/php"), 0
    found = Sources(Proc(), labels.READY["php:file"])
    for mutant in mutants(program.read_bytes(), random.Random(5), 400):
        path.write_bytes(mutant)
        with path.open("rb") as file:
            binary = label_sites._read(file.fileno(), found._source)
        site = found._site(mapped, FileKey(1, 2, 3, 4), binary) if isinstance(binary, label_sites._Binary) else binary
        if isinstance(site, label_sites.Site):
            fits += 1
            assert len(site.pack()) == wire.LABEL.size
            assert all(0 < address < 2**63 for address in site.addresses[:3])
            code = [load for load in binary.loads if load.executable]
            for offset in site.functions.values():
                assert any(load.offset_bytes <= offset < load.offset_bytes + load.size_bytes for load in code)
    assert 50 < fits < 400


def test_what_the_kernel_side_is_told() -> None:
    mapped = procfs.Mapping(0x1000, 0x2000, False, 0, 1, 2, "/x")
    site = label_sites.Site(
        labels.READY["php:file"], (8, 16, 24, 0), mapped, FileKey(1, 2, 3, 4), {}, file_is_string=True
    )
    *places, lost_us, _, _, _, _, texts, noted, noted_bytes, file_is_string, told, _ = wire.LABEL.unpack(site.pack())
    assert places == [8, 16, 24, 0, POINTED_TO, POINTED_TO, POINTED_TO, wire.TEXT_NOTED]
    assert (lost_us, noted_bytes, file_is_string, told) == (0, wire.TEXT_NONE, 1, 0)
    assert not any(texts + noted)
