"""What is installed is complete: the wheel, built from an sdist as a packager would, carries the BPF sources."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tracer.kernel import bytecode

CHECKOUT = Path(__file__).parent.parent
# A copy is built, for setuptools leaves build/ and *.egg-info behind, and believes those it finds.
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")

pytest.importorskip("setuptools", minversion="77")


def build(kind: str, source: Path, into: Path) -> Path:
    """By setuptools itself: pip would ask an index for it."""
    program = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(into)], cwd=source, check=True, stdout=subprocess.DEVNULL)
    [built] = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("build")
    shutil.copytree(CHECKOUT, base / "copy", ignore=NOT_SOURCE)
    shutil.unpack_archive(build("sdist", base / "copy", base / "sdist"), base / "unpacked")
    [source] = (base / "unpacked").iterdir()
    return build("wheel", source, base / "wheel")


def files_below(folder: Path, suffixes: set[str]) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in suffixes}


def test_wheel_carries_every_source(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"tracer/bpf/{name}" for name in files_below(CHECKOUT / "bpf", {".c", ".h"})} <= names
    assert {f"tracer/{name}" for name in files_below(CHECKOUT / "tracer", {".py"})} <= names
    assert {f"tracer/{name}" for name in files_below(CHECKOUT / "tracer", {".css", ".html", ".js", ".uPlot"})} <= names
    release = wheel.stem.rsplit("-", 3)[0]
    assert {name.split("/")[0] for name in names} == {"tracer", f"{release}.dist-info", f"{release}.data"}


def test_wheel_carries_the_man_page(wheel: Path) -> None:
    release = wheel.stem.rsplit("-", 3)[0]
    page = zipfile.ZipFile(wheel).read(f"{release}.data/data/share/man/man1/shmtrace.1")
    assert page == (CHECKOUT / "man" / "shmtrace.1").read_bytes()


def test_bcc_is_no_requirement(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    requirements = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    assert [line for line in requirements if "extra ==" not in line] == ["click>=8.0", "textual~=8.2"]
    assert not any("bcc" in line for line in requirements)


def test_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path / "site", format="zip")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ask = (
        "from tracer import cli, shipped; from tracer.kernel import bytecode; "
        "print(shipped.shipped('bpf'), *sorted(bytecode.sources()))"
    )
    answer = subprocess.check_output([sys.executable, "-c", ask], cwd=tmp_path, env=environment, text=True).split()
    assert Path(answer[0]) == tmp_path / "site/tracer/bpf"
    assert answer[1:] == sorted(bytecode.sources())
