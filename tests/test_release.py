"""A release: the same sources make the same bytes, and what is installed works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pyz import release
from tracer import __version__
from tracer.kernel import bytecode

CHECKOUT = Path(__file__).parent.parent
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
TIME_S = 1_700_000_000

pytest.importorskip("setuptools", minversion="77")


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Two copies, of which one has other times, modes and order."""
    copies = [tmp_path / "one", tmp_path / "two"]
    for copy in copies:
        shutil.copytree(CHECKOUT, copy, ignore=NOT_SOURCE)
    for path in sorted(copies[1].rglob("*.py")):
        os.utime(path, (TIME_S - 10**8, TIME_S - 10**8))
        path.chmod(path.stat().st_mode & ~0o022)
    return copies


def made(sources: list[Path], tmp_path: Path, number: int) -> Path:
    into = tmp_path / f"made{number}"
    into.mkdir()
    return into


def test_python_packages_come_out_the_same(sources: list[Path], tmp_path: Path) -> None:
    found = []
    for number, source in enumerate(sources):
        into = made(sources, tmp_path, number)
        sdist = release.sdist(source, into, TIME_S)
        found.append((sdist, release.wheel(sdist, into, TIME_S)))
    (sdist, wheel), (other_sdist, other_wheel) = found
    assert sdist.read_bytes() == other_sdist.read_bytes()
    assert wheel.read_bytes() == other_wheel.read_bytes()
    with tarfile.open(sdist) as tar:
        assert {member.mtime for member in tar} == {TIME_S}
        assert {(member.uid, member.uname) for member in tar} == {(0, "")}
        assert f"shmtrace-{__version__}/bpf/maps.c" in tar.getnames()
    assert "tracer/bpf/maps.c" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.needs("dpkg-buildpackage", "dh", "lintian")
def test_debian_package_comes_out_the_same_and_works(sources: list[Path], tmp_path: Path) -> None:
    packages = [
        release.package(source, made(sources, tmp_path, number), TIME_S) for number, source in enumerate(sources)
    ]
    assert packages[0].read_bytes() == packages[1].read_bytes()
    root = tmp_path / "root"
    subprocess.run(["dpkg-deb", "--extract", packages[0], root], check=True)
    program = (root / "usr/bin/shmtrace").read_text()
    assert "/usr/share/shmtrace" in program
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root / "usr/share/shmtrace")}
    ask = "import tracer; from tracer.kernel import bytecode; print(tracer.__file__, *bytecode.sources())"
    said = subprocess.check_output([sys.executable, "-c", ask], cwd=tmp_path, env=environment, text=True).split()
    assert said[0] == str(root / "usr/share/shmtrace/tracer/__init__.py")
    assert said[1:] == [*bytecode.sources()]
    for name in ("bash-completion/completions/shmtrace", "zsh/vendor-completions/_shmtrace", "man/man1/shmtrace.1.gz"):
        assert (root / "usr/share" / name).stat().st_size > 100
    [unit] = (root / "usr/lib/systemd/system").iterdir()
    assert unit.name == "shmtrace@.service"
    assert "ExecStart=/usr/bin/shmtrace record -p %i --wait " in unit.read_text()
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    left = [
        line for line in verified.stderr.splitlines() if "cachestat" not in line and "is not executable" not in line
    ]
    assert left == []
    control = subprocess.check_output(["dpkg-deb", "--field", packages[0], "Depends"], text=True)
    assert {"python3-bpfcc", "python3-click"} <= set(control.replace("\n", "").split(", "))


def test_versions_are_one() -> None:
    changelog = (CHECKOUT / "debian/changelog").read_text()
    assert changelog.startswith(f"shmtrace ({__version__}) ")
    assert f"## {__version__}" in (CHECKOUT / "CHANGELOG.md").read_text()
