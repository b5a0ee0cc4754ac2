"""A real PostgreSQL with a cluster of its own, run by an unprivileged user, without TCP and without huge pages."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.running import PATIENCE_SECONDS, running

USER = "postgres"


def find_programs() -> Path:
    """Debian keeps each version's programs apart."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"))


def as_user(*command: object) -> list[str]:
    """setpriv replaces itself by the command: its process number is the command's."""
    return ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", *map(str, command)]


class Postgres:
    """A running postmaster."""

    def __init__(self, process: subprocess.Popen[bytes], programs: Path, directory: Path) -> None:
        self.process = process
        self.programs = programs
        self.directory = directory
        self.tgid = process.pid

    def run(self, program: str, *arguments: str) -> str:
        command = as_user(self.programs / program, "--host", self.directory, *arguments, "postgres")
        done = subprocess.run(command, cwd=self.directory, check=True, capture_output=True, text=True)
        return done.stdout

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        ready = as_user(self.programs / "pg_isready", "--quiet", "--host", self.directory)
        while subprocess.run(ready, cwd=self.directory).returncode:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)


@contextmanager
def running_postgres(shared_buffers: str = "256MB") -> Iterator[Postgres]:
    programs = find_programs()
    directory = Path(tempfile.mkdtemp(prefix="postgres."))
    shutil.chown(directory, USER, USER)
    try:
        data = directory / "data"
        initdb = as_user(programs / "initdb", "--pgdata", data, "--auth=trust", "--no-sync")
        subprocess.run(initdb, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        settings = {
            "unix_socket_directories": directory,
            "listen_addresses": "",
            "huge_pages": "off",
            "shared_buffers": shared_buffers,
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = as_user(programs / "postgres", "-D", data, *options)
        with (
            open(directory / "log", "wb") as log,
            # SIGINT is "fast": it ends its backends and itself
            running(command, signal.SIGINT, cwd=directory, stdout=log, stderr=log) as process,
        ):
            postgres = Postgres(process, programs, directory)
            postgres.wait_until_up()
            yield postgres
    finally:
        shutil.rmtree(directory)
