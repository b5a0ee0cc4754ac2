"""Where content goes: what is skipped takes no room, nobody else may read it, and nothing half done is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracer.cli.sparse_file import ZEROS, Sink
from tracer.errors import ShmtraceError

PAGE = b"page".ljust(4096, b".")
HOLE_BYTES = 2 * len(ZEROS) + 4096 * 7
WHOLE = bytes(HOLE_BYTES) + PAGE + bytes(HOLE_BYTES)


def put(sink: Sink) -> None:
    sink.skip(HOLE_BYTES)
    sink.write(memoryview(PAGE))
    sink.skip(HOLE_BYTES)
    sink.finish()


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    umask = os.umask(0)
    with Sink(path, -1) as sink:
        put(sink)
    os.umask(umask)
    assert sink.is_file
    assert path.read_bytes() == WHOLE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 <= 8192


def test_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for each in (path, link, Path("/dev/null")):
        with pytest.raises(ShmtraceError, match=f"^{each} exists: give another name, or remove it$"):
            Sink(each, -1)
    assert path.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_one_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(
        ShmtraceError, match=r"/no/dump cannot be written \(No such file or directory\): give another path"
    ):
        Sink(tmp_path / "no" / "dump", -1)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_a_half_is_removed(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Sink(tmp_path / "dump", -1) as sink:  # noqa: PT012
        sink.write(PAGE)
        raise error
    assert not list(tmp_path.iterdir())


def redirected(redirection: str, folder: Path) -> None:
    """A shell's child that writes to its standard output."""
    program = "from tests.test_sparse_file import Sink, put\nwith Sink(None, 1) as sink: put(sink)"
    command = ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, program]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run(command, cwd=folder, env=environment, check=True)


def test_standard_output(tmp_path: Path) -> None:
    redirected(">dump", tmp_path)
    assert (tmp_path / "dump").read_bytes() == WHOLE
    assert (tmp_path / "dump").stat().st_blocks * 512 <= 8192
    redirected("| cat >piped", tmp_path)
    assert (tmp_path / "piped").read_bytes() == WHOLE


def test_what_is_in_the_file_already_does_not_show_through(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(b"x" * (len(WHOLE) + 5))
    redirected("1<>dump", tmp_path)
    assert path.read_bytes() == WHOLE + b"x" * 5
    path.write_bytes(b"before")
    redirected(">>dump", tmp_path)
    assert path.read_bytes() == b"before" + WHOLE


def test_a_full_disk() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"), Sink(None, fd) as sink:
        sink.write(PAGE)
    os.close(fd)
