"""shmtrace.pyz: one file, and a Python that has nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyz.build import write
from tests.live.reports import read_report
from tests.live.shmem import PAGE_BYTES
from tracer import prepare
from tracer.kernel.cache import Cache

pytestmark = [pytest.mark.bpf, pytest.mark.needs("cc")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what this kernel takes without labels and stacks."""
    directory = tmp_path_factory.mktemp("pyz")
    cache = Cache(directory / "cache")
    plain = [variant for variant in prepare.of_kernel(cache) if not variant.wanted.flags]
    assert plain
    for _ in prepare.compile_all(plain, cache):
        pass
    write(plain, cache, directory / "shmtrace.pyz")
    return directory / "shmtrace.pyz"


def run(archive: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Where nothing that the distribution or anybody else has installed can be imported, and bcc by no child."""
    (archive.parent / "bcc.py").write_text("raise ImportError('there is none')\n")
    code = f"""
import pathlib, runpy, sys
sys.path = [place for place in sys.path if "-packages" not in place]
sys.path[:0] = [{str(archive)!r}, {str(archive.parent)!r}]
from tracer.kernel.cache import Cache
Cache.__init__.__defaults__ = (pathlib.Path({str(archive.parent / "none")!r}),)
runpy.run_path({str(archive)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-IS", "-c", code, *map(str, arguments)], capture_output=True, cwd="/")
    assert done.returncode == status, done.stderr.decode()
    return done


def test_it_traces(archive: Path, program: Path, tmp_path: Path) -> None:
    report = read_report(run(archive, "--json", "--", program, "strided", tmp_path / "notes").stdout)
    (region,) = report["regions"]
    assert region["unseen_bytes"] == 0
    assert sum(toucher["touched_bytes"] for toucher in region["touchers"]) == region["allocated_bytes"] > PAGE_BYTES


def test_what_it_has_not_compiled_wants_bcc(archive: Path) -> None:
    """And it says what to do: both ways."""
    said = run(archive, "--label", "postgres", "-d", "1", "-a", status=1).stderr.decode()
    assert "bcc cannot be imported" in said
    assert "python3-bpfcc" in said
    assert "`shmtrace prepare`" in said


def test_all_else_works(archive: Path, tmp_path: Path) -> None:
    assert read_report(run(archive, "snapshot", "--json").stdout)
    run(archive, "record", "-o", tmp_path / "x.capture", "--", "true")
    run(archive, "html", tmp_path / "x.capture", "-o", tmp_path / "x.html")
    assert b"uPlot" in (tmp_path / "x.html").read_bytes()
    assert b"A parent maps" in run(archive, "demo", "--size", 22).stdout
