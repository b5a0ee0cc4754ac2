"""Where labels are, in processes that are C programs made for it, and in a /proc that is none."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tracer import sources, wire
from tracer.errors import ShmtraceError
from tracer.procfs import Proc
from tracer.sources import Source, Sources, Text

POINTED_TO = wire.TEXT_POINTED_TO


@pytest.mark.parametrize(
    ("name", "binary", "symbol", "text"),
    [
        ("nginx:ngx_doing", "nginx", "ngx_doing", Text("text", POINTED_TO)),
        ("php-fpm8.2:sapi_globals+40", r"php\-fpm8\.2", "sapi_globals", Text("text", POINTED_TO, 40)),
        ("/usr/sbin/x:y+0x1f", "/usr/sbin/x", "y", Text("text", POINTED_TO, 31)),
        ("app:&title", "app", "title", Text("text", wire.TEXT_IN_PLACE)),
        ("app:&globals+8", "app", "globals", Text("text", wire.TEXT_IN_PLACE, 8)),
    ],
)
def test_spelling(name: str, binary: str, symbol: str, text: Text) -> None:
    assert sources.parse(name) == Source(name, binary, symbol, (text,))


@pytest.mark.parametrize("name", ["", "mysql", "a:", ":b", "a:b+", "a:b+x", "a:b-8", "a:b+8:c", "a:b c", "a:&"])
def test_what_is_no_label(name: str) -> None:
    with pytest.raises(ValueError, match="is no label: write php, php:file, postgres or BINARY:SYMBOL"):
        sources.parse(name)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("php", ["script", "request"]),
        ("php:file", ["file", "script", "request"]),
        ("postgres", ["query", "title"]),
        ("app:doing", ["text"]),
    ],
)
def test_the_most_telling_text_comes_first(name: str, columns: list[str]) -> None:
    assert sources.columns(name) == columns
    assert sources.kinds(name) == ([column for column in columns if column not in ("title", "text")] or ["label"])


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
    assert sources.READY["php"].label(found) == {"script": found[0], "request": whole}


PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>
struct globals { void *context; const char *method; char *query, *cookies; long length; char *path, *uri; };
struct globals sapi_globals = {.path = PATH, .uri = "/x"};
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


@contextmanager
def running(
    directory: Path, name: str = "php-fpm9", path: str = '"/srv/x.php"', *flags: str
) -> Iterator[tuple[int, list[int]]]:
    """A program: its tgid, and where it says that its symbols are."""
    (directory / "program.c").write_text(PROGRAM)
    program = directory / name
    subprocess.run(["cc", f"-DPATH={path}", *flags, "-o", program, directory / "program.c"], check=True)
    with subprocess.Popen([program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield process.pid, [int(address, 16) for address in process.stdout.readline().split()]
        finally:
            process.kill()


@pytest.mark.needs("cc")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_where_a_program_has_it(flags: list[str], tmp_path: Path) -> None:
    with running(tmp_path, "php-fpm9", '"/srv/x.php"', *flags) as (tgid, (globals_at, _)):
        found = Sources(Proc(), sources.READY["php:file"])
        site = found.find(tgid)
        assert site
        assert site.addresses == (globals_at + 40, globals_at + 48, globals_at + 16, 0)
        assert found.why_not(site, tgid) is None
        assert site.path.samefile(tmp_path / "php-fpm9")
        code = site.path.read_bytes()
        assert site.functions.keys() == {"php_compiling", "php_request_over"}
        # both begin alike, and neither is where the other is
        first, second = (code[offset : offset + 4] for offset in site.functions.values())
        assert first == second != b"\0" * 4
        assert len(set(site.functions.values())) == 2
        assert not site.file_is_string


@pytest.mark.needs("cc")
def test_another_program_has_none(tmp_path: Path) -> None:
    with running(tmp_path, "httpd") as (tgid, _):
        assert Sources(Proc(), sources.READY["php"]).find(tgid) is None
    assert Sources(Proc(), sources.READY["php"]).find(tgid) is None


@pytest.mark.needs("cc")
def test_a_program_by_its_path(tmp_path: Path) -> None:
    with running(tmp_path, "app", "0", "-rdynamic") as (tgid, (_, query_at)):
        for binary, there in ((f"{tmp_path}/app", True), ("app", True), (f"{tmp_path}/ap", False), ("ap.", False)):
            site = Sources(Proc(), sources.parse(f"{binary}:debug_query_string+3")).find(tgid)
            assert (site.addresses == (query_at + 3,) if site else False) == there


@pytest.mark.needs("cc")
@pytest.mark.parametrize("path", ['"x.php"', '""', "(char *)8"])
def test_what_does_not_look_like_a_path_is_not_believed(path: str, tmp_path: Path) -> None:
    with running(tmp_path, "php-fpm9", path, "-rdynamic") as (tgid, _):
        found = Sources(Proc(), sources.READY["php"])
        site = found.find(tgid)
        assert site
        assert "sapi_globals" in (found.why_not(site, tgid) or "")


@pytest.mark.needs("cc")
def test_an_idle_worker_has_no_path(tmp_path: Path) -> None:
    with running(tmp_path, "php-fpm9", "0", "-rdynamic") as (tgid, _):
        found = Sources(Proc(), sources.READY["php"])
        site = found.find(tgid)
        assert site
        assert found.why_not(site, tgid) is None


@pytest.mark.needs("cc")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("sapi_globals", "sapi_globals_offset"), "thread-safe build"),
        (lambda text: text.replace("sapi_globals", "sapi_globules"), "has no symbol sapi_globals"),
        (lambda text: text.replace("compile_file", "compile"), "has no function compile_file"),
    ],
)
def test_programs_that_are_refused(
    change: Callable[[str], str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PROGRAM", change(PROGRAM))
    with (
        running(tmp_path, "php-fpm9", "0", "-rdynamic") as (tgid, _),
        pytest.raises(ShmtraceError, match=message),
    ):
        Sources(Proc(), sources.READY["php:file"]).find(tgid)


def test_what_the_kernel_side_is_told() -> None:
    site = sources.Site(sources.READY["php:file"], (8, 16, 24, 0), (1, 2), Path("/x"), {}, file_is_string=True)
    *places, lost_us, _, _, _, _, texts, noted, noted_bytes, file_is_string, told, _ = wire.LABEL.unpack(site.pack())
    assert places == [8, 16, 24, 0, POINTED_TO, POINTED_TO, POINTED_TO, wire.TEXT_NOTED]
    assert (lost_us, noted_bytes, file_is_string, told) == (0, wire.TEXT_NONE, 1, 0)
    assert not any(texts + noted)


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    """A process may map any file by this name."""
    file = tmp_path / "php-cache"
    file.write_bytes(b"\x7fELF" + os.urandom(5000))
    other = tmp_path / "php-other"
    other.write_bytes(struct.pack("=Q", 7) * 600)
    for path in (file, other):
        assert sources._read(path, sources.READY["php"]) is None
