"""A real php-fpm in the foreground, with a pool of its own, scripts of its own, and a client that asks for them."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import string
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.live.running import PATIENCE_SECONDS, running

WORKERS = 4
OPCACHE_BYTES = 256 << 20
APCU_BYTES = 64 << 20

POOL = """
[global]
error_log = {directory}/error.log
log_level = warning

[www]
user = www-data
group = www-data
listen = {directory}/socket
listen.mode = 0666
pm = static
pm.max_children = {workers}
pm.max_requests = {max_requests}
"""

SETTINGS = {
    "opcache.enable": 1,
    "opcache.memory_consumption": OPCACHE_BYTES >> 20,
    "opcache.interned_strings_buffer": 16,
    "opcache.max_accelerated_files": 10000,
    "opcache.validate_timestamps": 0,
    "opcache.file_update_protection": 0,
    "apc.enabled": 1,
    "apc.shm_size": f"{APCU_BYTES >> 20}M",
}

STATUS = "<?php $status = opcache_get_status(false); echo $status['opcache_statistics']['num_cached_scripts'];"
STORE = "<?php for ($i = 0; $i < 1000; $i++) apcu_store('key' . $i, str_repeat('x', 4000)); echo 'stored';"


def find_program() -> Path:
    """Debian names it after its version."""
    return max(Path("/usr/sbin").glob("php-fpm*"))


def write_script(path: Path, number: int) -> None:
    """A script of 5 to 50 KB, always the same for a number: functions around long strings."""
    rng = random.Random(number)
    size = rng.randrange(5_000, 50_000)
    lines = ["<?php"]
    written = 0
    while written < size:
        text = "".join(rng.choices(string.ascii_letters, k=20)) * rng.randrange(5, 20)
        lines.append(f"function f{number}_{len(lines)}($a) {{ $b = '{text}'; return $a . $b; }}")
        written += len(lines[-1])
    lines.append(f"echo strlen(f{number}_1(''));")
    path.write_text("\n".join(lines))


# FastCGI: a header of version, type, request id, length, padding; then the content (the specification, section 3.3).
BEGIN_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT = 1, 3, 4, 5, 6
RESPONDER = 1
HEADER = struct.Struct(">BBHHBx")


def record(kind: int, content: bytes) -> bytes:
    return HEADER.pack(1, kind, 1, len(content), 0) + content


def parameter(name: str, value: str) -> bytes:
    """Lengths of 128 and more take four bytes, the first bit set."""
    lengths = b"".join(
        struct.pack(">B", len(text)) if len(text) < 128 else struct.pack(">I", len(text) | 1 << 31)
        for text in (name, value)
    )
    return lengths + name.encode() + value.encode()


def request(address: Path, script: Path, query: str = "") -> str:
    """What a script says, without its headers."""
    parameters = {
        "SCRIPT_FILENAME": str(script),
        "SCRIPT_NAME": f"/{script.name}",
        "QUERY_STRING": query,
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": f"/{script.name}",
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(str(address))
        connection.sendall(
            record(BEGIN_REQUEST, struct.pack(">HB5x", RESPONDER, 0))
            + record(PARAMS, b"".join(parameter(*each) for each in parameters.items()))
            + record(PARAMS, b"")
            + record(STDIN, b"")
        )
        said = b""
        with connection.makefile("rb") as answer:
            while header := answer.read(HEADER.size):
                _, kind, _, length, padding = HEADER.unpack(header)
                content = answer.read(length)
                answer.read(padding)
                if kind == STDOUT:
                    said += content
                elif kind == END_REQUEST:
                    return said.partition(b"\r\n\r\n")[2].decode()
    raise ConnectionError(f"php-fpm hung up on {script.name}")


class Fpm:
    """A running php-fpm and its scripts."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.tgid = process.pid

    def workers(self) -> list[int]:
        return [int(tgid) for tgid in Path(f"/proc/{self.tgid}/task/{self.tgid}/children").read_text().split()]

    def ask(self, script: str) -> str:
        """Its answer; what follows a question mark is the query."""
        name, _, query = script.partition("?")
        return request(self.directory / "socket", self.directory / name, query)

    def ask_for(self, scripts: Iterable[str], clients: int = WORKERS) -> list[str]:
        """The answers of several scripts, asked for by several clients at once."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.ask, scripts))

    def wait_until_up(self) -> None:
        """Until it answers, with all of its workers: after the start and after a reload."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if len(self.workers()) == WORKERS and self.ask("status.php").isdigit():
                    return
            except OSError:
                pass
            assert self.process.poll() is None, (self.directory / "error.log").read_text()
            assert time.monotonic() < deadline, "php-fpm does not answer"
            time.sleep(0.02)


def script_names(count: int) -> list[str]:
    return [f"f{number:05}.php" for number in range(count)]


@contextmanager
def running_fpm(
    scripts: int = 2000, max_requests: int = 200, settings: Mapping[str, int] = MappingProxyType({})
) -> Iterator[Fpm]:
    """Runs until the end of the block. Its folder is not one of pytest's: the workers could not read those.

    settings: in the place of those in SETTINGS."""
    program = find_program()
    directory = Path(tempfile.mkdtemp(prefix="fpm."))
    directory.chmod(0o755)
    try:
        configuration = directory / "fpm.conf"
        configuration.write_text(POOL.format(directory=directory, workers=WORKERS, max_requests=max_requests))
        for number, name in enumerate(script_names(scripts)):
            write_script(directory / name, number)
        (directory / "status.php").write_text(STATUS)
        (directory / "store.php").write_text(STORE)
        options = [word for name, value in {**SETTINGS, **settings}.items() for word in ("-d", f"{name}={value}")]
        command = [program, "--nodaemonize", "--fpm-config", configuration, *options]
        with running(command, signal.SIGTERM) as process:
            fpm = Fpm(process, directory)
            fpm.wait_until_up()
            yield fpm
    finally:
        shutil.rmtree(directory)
