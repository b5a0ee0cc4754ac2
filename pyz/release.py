"""Makes all that a release has, in dist/: sdist, wheel, Debian package and shmtrace.pyz, with their SHA-256.

python3 -m pyz.release [--no-pyz]

What is made is of the last commit. The same commit makes the same bytes: all times in it are the commit's.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
DIST = CHECKOUT / "dist"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"


def run(*command: str | Path, cwd: Path, environment: Mapping[str, str]) -> None:
    """Raises SystemExit with the command's output, where it fails."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}release: {' '.join(map(str, command))} failed")


def sources(into: Path) -> int:
    """What the last commit has, and its time. Raises SystemExit where there is more: it would not be in the release."""
    if subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=no"], cwd=CHECKOUT):
        sys.exit("release: there are changes that are not committed: commit or stash them")
    text = subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=CHECKOUT, text=True)
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={into}/"], cwd=CHECKOUT, check=True)
    return int(text)


def sdist(source: Path, into: Path, time_s: int) -> Path:
    """setuptools gives what it generates the time of now, and all of it the builder's user: they are put right."""
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, "-c", BUILD.format("sdist"), scratch, cwd=source, environment={})
        [built] = Path(scratch).iterdir()
        with tarfile.open(built) as tar:
            members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as again:
                for member, content in sorted(members, key=lambda one: one[0].name):
                    member.mtime, member.uid, member.gid, member.uname, member.gname = time_s, 0, 0, "", ""
                    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                    member.pax_headers = {}
                    again.addfile(member, content)
        path = into / built.name
        path.write_bytes(gzip.compress(buffer.getvalue(), mtime=time_s))
    return path


def wheel(made: Path, into: Path, time_s: int) -> Path:
    """Of an sdist, as a packager builds it."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.unpack_archive(made, scratch)
        [source] = Path(scratch).iterdir()
        command = (sys.executable, "-c", BUILD.format("wheel"), into)
        run(*command, cwd=source, environment={"SOURCE_DATE_EPOCH": str(time_s)})
    [path] = into.glob("*.whl")
    return path


def package(source: Path, into: Path, time_s: int) -> Path:
    """The Debian package, built and looked through by lintian beside a copy of the sources."""
    environment = {"SOURCE_DATE_EPOCH": str(time_s)}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "shmtrace")
        shutil.copytree(source, copy, symlinks=True)
        for path in copy.rglob("*"):
            os.utime(path, (time_s, time_s))  # dpkg-deb makes later times this one, and leaves earlier ones
        run("dpkg-buildpackage", "--build=binary", "--no-sign", cwd=copy, environment=environment)
        [changes] = Path(scratch).glob("*.changes")
        run("lintian", "--fail-on=error,warning", "--allow-root", changes, cwd=copy, environment={})
        [built] = Path(scratch).glob("*.deb")
        return Path(shutil.copy(built, into))


def main(with_pyz: bool) -> None:
    """Raises SystemExit where something cannot be made."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory(prefix="shmtrace-release-") as scratch:
        source = Path(scratch)
        time_s = sources(source)
        made = sdist(source, DIST, time_s)
        paths = [made, wheel(made, DIST, time_s)]
        run(sys.executable, "-m", "twine", "check", "--strict", *paths, cwd=DIST, environment={})
        paths.append(package(source, DIST, time_s))
    if with_pyz:
        run(sys.executable, "-m", "pyz.build", cwd=CHECKOUT, environment={"SOURCE_DATE_EPOCH": str(time_s)})
        paths.append(Path(shutil.move(CHECKOUT / "shmtrace.pyz", DIST)))
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    (DIST / "SHA256SUMS").write_text(sums)
    print(sums, end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="./bootstrap release", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-pyz", action="store_true", help="leave out shmtrace.pyz, for which kernels are booted")
    main(not parser.parse_args().no_pyz)
