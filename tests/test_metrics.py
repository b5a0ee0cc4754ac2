"""Metrics: over a capture's time, in a file, and for those who ask over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from tests import captures, recorded
from tests.recorded import BEGAN_NS, END_S, shmtrace
from tests.test_series import balances
from tracer import account
from tracer.address import Address
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.metrics import exporter as exporting
from tracer.metrics import families, history, listener
from tracer.metrics.exporter import MOST_WAITING, Exporter
from tracer.metrics.listener import Listener
from tracer.metrics.series import NAME_COLUMNS, Series, Totals
from tracer.model import Account
from tracer.proc.shmem import PAGE_BYTES

LOOPBACK = Address(ip_address("127.0.0.1"), 0)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return recorded.pool(tmp_path / "pool.capture")


def moments(path: Path) -> list[tuple[int, list[Series]]]:
    with Capture.open(path, True) as capture:
        return history.moments(account.read(capture), capture)


# ---- over a capture's time ----


def test_the_pool_over_time(pool: Path) -> None:
    """23 pages by 812, of which 9 after 20 s, and 7 by 813; 3 more were freed, nobody knows when."""
    found = moments(pool)
    assert [time_ns - BEGAN_NS for time_ns, _ in found] == [0, 15 * 10**9, 30 * 10**9, END_S * 10**9]
    of = [{(each.unit, each.segment): each for each in some} for _, some in found]
    opcache = [each["php8.2-fpm.service", "opcache"] for each in of]
    touched = [sum(each.touched_bytes.values()) // PAGE_BYTES for each in opcache]
    assert touched == [0, 14, 30, 33]
    assert [each.freed_bytes // PAGE_BYTES for each in opcache] == [0, 0, 0, 3]
    assert [each.before_bytes // PAGE_BYTES for each in opcache] == [11] * 4
    assert opcache[-1].unseen_bytes == 2 * PAGE_BYTES
    assert opcache[-1].freed_since_bytes == 0


@pytest.mark.parametrize("name", captures.NAMES)
def test_recorded_captures_balance_at_every_moment(name: str, tmp_path: Path) -> None:
    path = captures.load(name, tmp_path / "x.capture")
    found = moments(path)
    before: Counter[tuple[str, ...]] = Counter()
    for _, some in found:
        now: Counter[tuple[str, ...]] = Counter()
        for each in some:
            there_bytes = sum(held.allocated_bytes for held in each.held.values())
            touched_bytes = sum(each.touched_bytes.values())
            unknown_bytes = each.before_bytes + each.unseen_bytes + each.moved_bytes + each.freed_since_bytes
            assert touched_bytes + unknown_bytes == there_bytes + each.freed_bytes
            now.update({(each.unit, each.segment, by): size_bytes for by, size_bytes in each.touched_bytes.items()})
        assert not before - now
        before = now
    with Capture.open(path) as capture:
        read = account.read(capture)
    last = found[-1][1]
    balances(last)
    assert last == Totals().add(read)
    exist = [region for region in read.regions if region.gone_ns is None]
    assert sum(held.allocated_bytes for each in last for held in each.held.values()) == sum(
        region.allocated_bytes for region in exist
    )


@pytest.mark.parametrize("seconds", [86400 * 400, 1_699_999_000])
def test_a_clock_that_jumped(seconds: int, pool: Path) -> None:
    """A host without a clock of its own begins in 1970."""
    with contextlib.closing(sqlite3.connect(pool)) as db, db:
        db.execute("UPDATE session SET started_ns = started_ns - ?", (seconds * 10**9,))
    found = moments(pool)
    assert 1000 < len(found) < 60_000
    balances(found[-1][1])


def test_what_is_in_every_sample_is_cut(pool: Path) -> None:
    """A stranger may have written anything there."""
    with contextlib.closing(sqlite3.connect(pool)) as database:
        database.execute("UPDATE region SET kind = ?", ("x" * 100_000,))
        database.execute("UPDATE session SET host = ?", ("x" * 100_000,))
        database.commit()
    text = shmtrace("export", pool, "--format", "openmetrics").stdout
    assert max(map(len, text.splitlines())) < 1000
    for _, found in moments(pool):
        assert all(len(kind) <= NAME_COLUMNS for each in found for kind in each.held)


def test_openmetrics_is_what_others_read(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.om"
    done = shmtrace("export", pool, "--format", "openmetrics", "-o", path)
    assert done.exit_code == 0, done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = {metric.name: metric for metric in parse_open(path.read_text())}
    last = BEGAN_NS / 1e9 + END_S
    touched = {
        tuple(sample.labels[name] for name in ("instance", "job", "unit", "segment")): sample.value
        for sample in found["shmtrace_touched_bytes"].samples
        if float(sample.timestamp) == last and sample.labels["segment"] == "opcache"
    }
    assert touched == {("web1", "shmtrace", "php8.2-fpm.service", "opcache"): 33 * PAGE_BYTES}
    for metric in found.values():
        for sample in metric.samples:
            assert not {"pid", "process", "region", "service", "type", "host"} & set(sample.labels)


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("name", captures.NAMES)
def test_promtool_backfills_it(name: str, tmp_path: Path) -> None:
    """Names, command lines and scripts of strangers are in it."""
    path = captures.load(name, tmp_path / "x.capture")
    text = shmtrace("export", path, "--format", "openmetrics").stdout
    (tmp_path / "x.om").write_text(text)
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "x.om", "data"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert list((tmp_path / "data").glob("*/chunks"))
    with Capture.open(path) as capture:
        read = account.read(capture)
    plain = families.plain(families.families([(None, Totals().add(read))], read.session))
    linted = subprocess.run(["promtool", "check", "metrics"], input=plain, capture_output=True)
    assert (linted.returncode, linted.stderr) == (0, b"")


def test_without_the_library(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("tracer.metrics", "prometheus_client"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    done = shmtrace("export", pool, "--format", "openmetrics")
    assert done.exit_code == 1
    assert "prometheus_client is not installed" in done.stderr
    assert "python3-prometheus-client" in done.stderr


# ---- a file ----


def exporter(path: Path | None, address: Address | None = None) -> tuple[Exporter, list[str]]:
    said: list[str] = []
    return Exporter(path, address, said.append), said


def test_the_file(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "collector" / "shmtrace.prom"
    path.parent.mkdir()
    running, said = exporter(path)
    before = os.umask(0o077)
    try:
        with running, Capture.open(pool) as capture:
            running.look(capture)
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            inode, text = path.stat().st_ino, path.read_text()
            running.look(capture)  # it is not time
            assert path.stat().st_ino == inode
            running.settle(capture)
            assert path.stat().st_ino != inode  # replaced, not written in place
            assert path.read_text() == text
            assert list(path.parent.iterdir()) == [path]
    finally:
        os.umask(before)
    assert said == []
    assert not path.exists()
    names = {metric.name for metric in parse_plain(text)}
    assert names >= {"shmtrace_touched_bytes", "shmtrace_segment_allocated_bytes", "shmtrace_lost"}
    assert not re.search(r"^[^#].*\} \S+ \S+$", text, re.MULTILINE)  # node_exporter takes no timestamps


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "other.prom"
    path.write_text("# HELP other_metric of somebody else\n")
    running, _ = exporter(path)
    with pytest.raises(ShmtraceError, match="not an earlier output"), running:
        pass
    assert path.read_text().startswith("# HELP other")


def test_one_writes_a_file_at_a_time(pool: Path, tmp_path: Path) -> None:
    """Somebody else's is neither written nor removed, also if it came while the trace runs."""
    path = tmp_path / "x.prom"
    running, said = exporter(path)
    with running, Capture.open(pool) as capture:
        running.settle(capture)
        program = "import sys; from pathlib import Path; from tracer.metrics.textfile import Textfile; "
        second = [sys.executable, "-c", f"{program}Textfile(Path(sys.argv[1]))", str(path)]
        done = subprocess.run(second, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        assert f"process {os.getpid()} writes {path} already: give another name, or stop it" in done.stderr
        path.write_text("# HELP other_metric of somebody else\n")
        running.settle(capture)
        running.settle(capture)
        assert len(said) == 1
        assert "not an earlier output" in said[0]
    assert path.read_text().startswith("# HELP other")
    gone = "# shmtrace is written by 1, started at 1\n"
    path.write_text(gone)
    running, _ = exporter(path)
    with running, Capture.open(pool) as capture:
        running.settle(capture)
        assert not path.read_text().startswith(gone)


def test_one_file_a_host(pool: Path, tmp_path: Path) -> None:
    """node_exporter would drop one of two, and say nothing. What others write there is no matter."""
    (tmp_path / "other.prom").write_text("# HELP other_metric of somebody else\n")
    os.mkfifo(tmp_path / "fifo.prom")
    running, _ = exporter(tmp_path / "a.prom")
    with running, Capture.open(pool) as capture:
        running.settle(capture)
        second, _ = exporter(tmp_path / "b.prom")
        with pytest.raises(ShmtraceError, match=r"a\.prom is of shmtrace, too") as raised, second:
            pass
        assert "by more -p" in str(raised.value)
    with second:
        pass


def test_what_cannot_be_a_file(tmp_path: Path) -> None:
    for path, match in (
        (tmp_path / "x.txt", "does not read"),
        (tmp_path / "nowhere" / "x.prom", "no directory"),
        (tmp_path / "directory.prom", "no regular file"),
        (tmp_path / "fifo.prom", "no regular file"),
        (tmp_path / "link.prom", "no regular file"),
    ):
        if path.name == "directory.prom":
            path.mkdir()
        elif path.name == "fifo.prom":
            os.mkfifo(path)
        elif path.name == "link.prom":
            path.symlink_to("/etc/passwd")
        running, _ = exporter(path)
        with pytest.raises(ShmtraceError, match=match), running:
            pass


def test_a_directory_that_goes_is_told_once(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "collector" / "shmtrace.prom"
    path.parent.mkdir()
    running, said = exporter(path)
    with running, Capture.open(pool) as capture:
        running.settle(capture)
        shutil.rmtree(path.parent)
        running.settle(capture)
        running.settle(capture)
        assert len(said) == 1
        assert "No such file" in said[0]
        path.parent.mkdir()
        running.settle(capture)
        assert path.exists()


@pytest.mark.parametrize(("took_s", "pause_s"), [(0.001, 5), (1, 50), (20, 240)])
def test_how_often_figures_are_read(
    took_s: float, pause_s: float, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The more it costs the less often, but before the alerts take them for too old."""
    now_s, reads, read = [1000.0], [], account.read

    def slow(capture: Capture) -> Account:
        reads.append(now_s[0])
        now_s[0] += took_s
        return read(capture)

    monkeypatch.setattr(exporting, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(account, "read", slow)
    running, _ = exporter(tmp_path / "x.prom")
    with running, Capture.open(pool) as capture:
        for each_s in (0, pause_s - 0.01, pause_s):
            now_s[0] = max(now_s[0], 1000 + each_s)
            running.look(capture)
    assert reads == [1000, 1000 + pause_s]


# ---- over HTTP ----


class Client(NamedTuple):
    """Asks a listener."""

    port: int

    def get(self, path: str = "/metrics", accept: str | None = None) -> tuple[int, str | None, str]:
        """(status, content type, page)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        found = answer.status, answer.getheader("Content-Type"), answer.read().decode()
        connection.close()
        return found

    def works(self) -> bool:
        status, _, page = self.get()
        return status == 200 and "shmtrace_touched_bytes_total" in page

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@pytest.fixture
def client(pool: Path) -> Iterator[Client]:
    running, said = exporter(None, LOOPBACK)
    with running, Capture.open(pool) as capture:
        [port] = re.findall(r"http://127\.0\.0\.1:(\d+)/metrics$", said[0])
        client = Client(int(port))
        assert client.get()[0] == 503
        running.settle(capture)
        yield client


def test_it_is_served_in_both_formats(client: Client) -> None:
    _, content_type, text = client.get()
    assert content_type
    assert content_type.startswith("text/plain; version=0.0.4")
    plain = {metric.name: metric.samples for metric in parse_plain(text)}
    _, content_type, text = client.get(
        accept="application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
    )
    assert content_type == families.OPEN
    for metric in parse_open(text):
        values = [(sample.labels, sample.value) for sample in metric.samples]
        assert values == [(sample.labels, sample.value) for sample in plain[metric.name]]
    assert client.get("/")[0] == 404


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_clients_that_hold_on_keep_nobody_out(client: Client) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(client.connect()) for _ in range(100)]
        for number, connection in enumerate(held):
            with contextlib.suppress(OSError):  # it was closed already
                connection.sendall(b"GET /met" if number % 2 else b"X" * 5000)
        assert client.works()
        assert 0 < sum(map(is_open, held)) <= listener.MOST_OPEN


def test_few_wait_for_a_profile(client: Client) -> None:
    """Whoever hangs up waits on, in a thread; and none is made before the trace looks again."""
    before = threading.active_count()
    for _ in range(4 * listener.MOST_OPEN):
        with client.connect() as connection:
            connection.sendall(b"GET /debug/pprof/shmem HTTP/1.0\r\n\r\n")
    assert client.works()
    assert threading.active_count() - before <= MOST_WAITING + 2


def test_a_request_without_an_end(client: Client) -> None:
    with client.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        for _ in range(10_000):
            connection.sendall(b"X-Header: " + b"y" * 1000 + b"\r\n")
        pytest.fail("it was not hung up on")
    assert client.works()


@pytest.mark.parametrize(
    "sent", [b"", b"\0" * 100, b"GET\r\n\r\n", b"POST /metrics HTTP/1.0\r\n\r\n", b"\xff /\r\n\r\n"]
)
def test_what_is_no_request(sent: bytes, client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    with client.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert b"shmtrace_" not in connection.makefile("rb").read()
    assert client.works()
    assert capfd.readouterr() == ("", "")


def test_clients_that_do_not_read(client: Client) -> None:
    """Whoever hangs up has the kernel send SIGPIPE, which ends a trace whose reader has gone."""
    ends: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: ends.append(number))
    try:
        for _ in range(60):
            with client.connect() as connection:
                connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert client.works()
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert ends == []


def test_requests_take_no_more_than_a_part_of_a_cpu(client: Client) -> None:
    began_s = time.monotonic()
    assert all(client.works() for _ in range(50))
    assert time.monotonic() - began_s >= 49 * listener.PAUSE_S


def test_an_address_that_is_taken() -> None:
    with Listener(LOOPBACK, {}) as first:
        port = int(first.url.rpartition(":")[2])
        with (
            pytest.raises(ShmtraceError, match=f"127.0.0.1:{port}.*in use"),
            Listener(LOOPBACK._replace(port=port), {}),
        ):
            pass


@pytest.mark.parametrize(
    "address",
    ["9109", ":9109", "web1:9109", "127.0.0.1", "127.0.0.1:99999", "::1:9109", "[::1", "1.2.3:5", "[::1%]:5"],
)
def test_what_is_no_address(address: str) -> None:
    done = shmtrace("record", "-p", "1", "-o", "/nowhere/x.capture", "--listen", address)
    assert done.exit_code == 2
    assert "write 127.0.0.1:9109" in done.stderr
