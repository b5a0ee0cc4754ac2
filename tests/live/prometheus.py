"""A real Prometheus and a real node_exporter, on loopback, with directories of their own; and the rules in a hurry."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.live.running import PATIENCE_SECONDS, running

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docs/prometheus/shmtrace.rules.yml"
PROGRAM, NODE_EXPORTER, PROCESS_EXPORTER = "prometheus", "prometheus-node-exporter", "prometheus-process-exporter"
ACCOUNT = {
    "shmtrace_touched_bytes_total": 1,
    "shmtrace_unattributed_bytes": 1,
    "shmtrace_segment_allocated_bytes": -1,
    "shmtrace_freed_bytes_total": -1,
}
"""What adds up to nothing at every scrape, by unit and segment."""

Found = list[dict[str, Any]]
"""As Prometheus answers: `metric` with the labels, and `value` or `values`, pairs of a time and a number as text."""


def wait_until(holds: Callable[[], bool], patience_s: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def get(url: str, **parameters: str) -> bytes:
    address = f"{url}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310, it is always http
        said: bytes = answer.read()
        return said


def answers(url: str) -> bool:
    try:
        get(url)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


@contextmanager
def answering(command: Sequence[object], ready_url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that serves, from the moment it answers."""
    with open(log, "wb") as said, running(command, signal.SIGTERM, stdout=said, stderr=said) as process:
        wait_until(lambda: process.poll() is not None or answers(ready_url))
        assert process.poll() is None, log.read_text()
        yield process


class Prometheus:
    """A running Prometheus."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, directory: Path) -> None:
        self.process = process
        self.url = url
        self.directory = directory

    def ask(self, path: str, **parameters: str) -> Any:
        try:
            return json.loads(get(f"{self.url}/api/v1/{path}", **parameters))["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr: str, at_s: float | None = None) -> Found:
        """An expression, at a time or now; one with a range at its end has all samples in it."""
        when = {} if at_s is None else {"time": repr(at_s)}
        found: Found = self.ask("query", query=expr, **when)["result"]
        return found

    def values(self, expr: str, label: str) -> dict[str, float]:
        """Of an expression now, by one of its labels."""
        return {each["metric"].get(label, ""): float(each["value"][1]) for each in self.query(expr)}

    def label_values(self, match: str, label: str) -> list[str]:
        found: list[str] = self.ask(f"label/{label}/values", **{"match[]": match})
        return found

    def alerts(self) -> Found:
        """Those that are pending or firing, each with `state` and `activeAt`."""
        found: Found = self.ask("alerts")["alerts"]
        return found

    def wait_for(self, expr: str, patience_s: float = PATIENCE_SECONDS) -> Found:
        """What an expression says as soon as it says something."""
        found: Found = []

        def says_something() -> bool:
            found[:] = self.query(expr)
            return bool(found)

        wait_until(says_something, patience_s)
        return found

    def rule_seconds(self) -> dict[str, float]:
        """How long each rule took when it was last evaluated, by name; and that none has failed."""
        rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
        assert [rule for rule in rules if rule["health"] == "err"] == []
        return {rule["name"]: rule["evaluationTime"] for rule in rules}

    def peak_mib(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def accounts(self, within: str) -> dict[tuple[str, ...], int]:
        """By how much each account is out at each scrape in the time before now, as in 10m. The key is job, instance,
        unit, segment, and the scrape's time. From the samples as they were stored, added up here."""
        sums: dict[tuple[str, ...], int] = defaultdict(int)
        for name, sign in ACCOUNT.items():
            for series in self.query(f"{name}[{within}]"):
                of = tuple(series["metric"][label] for label in ("job", "instance", "unit", "segment"))
                for time_s, value in series["values"]:
                    sums[(*of, repr(time_s))] += sign * int(float(value))
        return sums


@contextmanager
def running_prometheus(
    ports: Mapping[str, int] | None = None, rules: str | None = None, data: Path | None = None, interval_s: int = 1
) -> Iterator[Prometheus]:
    """Scrapes a port of this host for each job. What is scraped may have `instance` and `job` of its own.

    rules: the text of a file. data: a directory of blocks that were made before; it stays."""
    scrapes = [
        {"job_name": job, "honor_labels": True, "static_configs": [{"targets": [f"localhost:{port}"]}]}
        for job, port in (ports or {}).items()
    ]
    directory = Path(tempfile.mkdtemp(prefix="prometheus.", dir="/var/tmp"))
    try:
        timing = {"scrape_interval": f"{interval_s}s", "scrape_timeout": f"{interval_s}s"}
        files = []
        if rules:
            files = [str(directory / "rules.yml")]
            Path(files[0]).write_text(rules)
        configuration = {"global": timing, "scrape_configs": scrapes, "rule_files": files}
        (directory / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML, too
        url = f"http://127.0.0.1:{free_port()}"
        command = [
            PROGRAM,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={data or directory / 'data'}",
            "--storage.tsdb.retention.time=10y",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        with answering(command, f"{url}/-/ready", directory / "log") as process:
            yield Prometheus(process, url, directory)
    finally:
        shutil.rmtree(directory)


@contextmanager
def running_node_exporter(textfiles: Path) -> Iterator[int]:
    """Its port. It says what is in the text files of this directory, and nothing else."""
    port = free_port()
    command = [
        NODE_EXPORTER,
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={textfiles}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}/metrics"
    with tempfile.TemporaryDirectory() as directory, answering(command, url, Path(directory, "log")):
        yield port


@contextmanager
def running_process_exporter(command_line: str) -> Iterator[int]:
    """Its port. It says what the processes have, as the group `pool`, whose command line has these words; and what
    their children have."""
    port = free_port()
    pool = {"name": "pool", "cmdline": [re.escape(command_line)]}
    with tempfile.TemporaryDirectory() as directory:
        configuration = Path(directory, "groups.yml")
        configuration.write_text(json.dumps({"process_names": [pool]}))
        command = [
            PROCESS_EXPORTER,
            f"-config.path={configuration}",
            f"-web.listen-address=127.0.0.1:{port}",
            "-threads=false",
        ]
        with answering(command, f"http://127.0.0.1:{port}/metrics", Path(directory, "log")):
            yield port


def hurried(minute_s: int) -> str:
    """The rules, where a minute lasts so many seconds. What is seen of one or two minutes is seen of as many seconds.

    The names stay, and so do a day and the six hours that an absent host is remembered.
    """
    text = re.sub(r"\b(\d+)m\b", lambda found: f"{int(found[1]) * minute_s}s", RULES.read_text())
    return re.sub(r"([<>]) 300\b", rf"\1 {5 * minute_s}", text)
