"""Two pods that share a file: who grew it, by the names that Kubernetes has for them."""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as metrics

from tests.live.parent import recording
from tests.live.pods import OWN_PAGES, WITH_LOGS, Pod, pods, with_logs
from tests.live.reports import ROOT, SHMTRACE, patched, trace
from tests.live.shmem import PAGE_BYTES
from tests.live.test_armed import Armed, bpffs
from tracer.proc.pod_logs import MAX_ENTRIES

__all__ = ["bpffs"]
pytestmark = [pytest.mark.bpf, pytest.mark.needs("unshare", "mount")]

WEB, JOB = ("shop", "web-7d9c8b6f5-x2x7q", "php-fpm"), ("batch", "report-23", "worker")


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    directory = tmp_path / "log"
    (directory / "pods").mkdir(parents=True)
    return directory


@pytest.fixture
def shared() -> Iterator[Path]:
    path = Path("/dev/shm", f"both-{secrets.token_hex(4)}")
    with path.open("wb") as file:
        file.truncate(OWN_PAGES * PAGE_BYTES)
    yield path
    path.unlink()


def report(capture: Path, *options: str) -> str:
    done = subprocess.run([*SHMTRACE, "report", str(capture), *options], cwd=ROOT, capture_output=True, check=True)
    return done.stdout.decode()


def rows(capture: Path, by: str) -> dict[str, int]:
    """Pages by what the rows are called."""
    found = json.loads(report(capture, "--by", by, "--json"))["rows"]
    return {row[by]: row["allocated_bytes"] // PAGE_BYTES for row in found if row["part"] == "touched"}


@contextmanager
def two(logs: Path, shared: Path) -> Iterator[tuple[Pod, Pod]]:
    with pods(logs, shared, WEB, JOB) as (web, job):
        web.log()
        yield web, job


def wait_for(path: Path, query: str, value: Any) -> None:
    """Until a capture that is being written says so."""
    deadline = time.monotonic() + 30
    line = ["sqlite3", "-readonly", path, query]
    while (said := subprocess.run(line, capture_output=True, text=True).stdout.strip()) != value:
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


PAGES = """SELECT sum("end" - start) FROM extent JOIN region ON region = id WHERE name = '{}'"""
NAMES = "SELECT group_concat(namespace || '/' || pod || '/' || container) FROM (SELECT * FROM cgroup ORDER BY pod DESC)"


@pytest.mark.needs("sqlite3")
def test_who_grew_it_by_the_names_of_pods(logs: Path, shared: Path, tmp_path: Path) -> None:
    """The directories of one come late, and are gone before the report, as its process is."""
    capture = tmp_path / "x.capture"
    with two(logs, shared) as (web, job):
        tgids = [option for pod in (web, job) for option in ("-p", str(pod.process.pid))]
        with trace(*tgids, "-o", capture, shmtrace=with_logs(logs)) as running:
            web.go()
            job.go()
            wait_for(capture, NAMES, web.called)
            job.log()
            wait_for(capture, NAMES, f"{web.called},{job.called}")
            job.process.communicate(b"\n")
            job.forget()
            found = running.stop()
    assert rows(capture, "unit") == {web.called: 46, job.called: 14}
    [both] = [region for region in found["regions"] if region["name"] == str(shared)]
    told = {
        (row["process"]["namespace"], row["process"]["pod_name"], row["process"]["container_name"]): (
            row["touched_bytes"] // PAGE_BYTES
        )
        for row in both["touchers"]
    }
    assert told == {WEB: 23, JOB: 7}
    assert {(row["process"]["pod"], row["process"]["container"]) for row in both["touchers"]} == {
        (web.uid, web.id),
        (job.uid, job.id),
    }
    text = report(capture, "--by", "container")
    assert max(map(len, text.split("\n"))) <= 80
    assert re.search(r"^php-fpm +shop/web-7d9c8b6f5-x2x7q +184 KiB ", text, re.MULTILINE)
    assert re.search(r"^worker +batch/report-23 +56.0 KiB ", text, re.MULTILINE)
    table = list(csv.DictReader(report(capture, "--by", "container", "--csv").splitlines()))
    assert [(row["namespace"], row["pod_name"], row["container_name"], row["pod"]) for row in table[:2]] == [
        (*WEB, web.uid),
        (*JOB, job.uid),
    ]
    crossed = json.loads(report(capture, "--by", "container,what", "--json"))["rows"]
    assert {
        (row["container"], row["allocated_bytes"] // PAGE_BYTES) for row in crossed if "both" in str(row["what"])
    } == {
        (web.called, 23),
        (job.called, 7),
    }
    assert "charged 92.0 KiB to shop/web-7d9c8b6f5-x2x7q/php-fpm" in report(capture)
    page = tmp_path / "page.html"
    subprocess.run([*SHMTRACE, "html", capture, "-o", page], cwd=ROOT, check=True)
    assert job.called in page.read_text()
    fleet = tmp_path / "fleet.db"
    subprocess.run([*SHMTRACE, "merge", capture, "-o", fleet], cwd=ROOT, check=True)
    line = ["sqlite3", "-readonly", fleet, "SELECT unit, sum(pages) FROM growth GROUP BY unit ORDER BY 2"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [f"{job.called}|14", f"{web.called}|46"]
    line = [*SHMTRACE, "export", capture, "--format", "openmetrics"]
    exported = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    units = {sample.labels.get("unit") for metric in metrics(exported) for sample in metric.samples}
    assert units - {None} == {web.called, job.called}  # and not of what keeps the pod, which is in another cgroup


def test_by_pod_and_namespace(logs: Path, shared: Path, tmp_path: Path) -> None:
    """Also of a trace that is cut off, and of a part of one."""
    capture = tmp_path / "x.capture"
    with two(logs, shared) as (web, job):
        job.log()
        options = "-p", str(job.process.pid), "--rotate", "1h"
        with recording(capture, web.process.pid, *options, shmtrace=with_logs(logs)) as process:
            web.go()
            job.go()
            wait_for(capture, PAGES.format(shared), "30")
            process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 30
            while not list(tmp_path.glob("x.*.capture")) and time.monotonic() < deadline:
                time.sleep(0.1)
            web.forget()
    assert len(list(tmp_path.glob("x*.capture"))) == 2
    for each in tmp_path.glob("x*.capture"):
        assert {pod: pages for pod, pages in rows(each, "pod").items() if pod != "-"} == {
            "shop/web-7d9c8b6f5-x2x7q": 46,
            "batch/report-23": 14,
        }
        assert rows(each, "namespace")["batch"] == 14
        assert rows(each, "container")[job.id] == 14


def test_a_snapshot(logs: Path, shared: Path) -> None:
    with two(logs, shared) as (web, _):
        web.go()
        line = [*with_logs(logs), "snapshot", "-p", str(web.process.pid), "--json"]
        found = json.loads(subprocess.run(line, cwd=ROOT, capture_output=True, check=True).stdout)
    names = {row["process"]["pod_name"] for row in found["parents"]}
    assert "web-7d9c8b6f5-x2x7q" in names


def test_in_a_cgroup_namespace_of_its_own(logs: Path, shared: Path) -> None:
    """As a container has one: paths count from its own cgroup, and pods are told all the same."""
    inside = 'echo 0 > "$0" && exec unshare --cgroup "$@"'
    with two(logs, shared) as (web, job):
        place = ["sh", "-c", inside, str(job.group.directory / "cgroup.procs")]
        shmtrace = [*WITH_LOGS, str(logs), *place, *SHMTRACE]
        line = [*shmtrace, "snapshot", "-p", str(web.process.pid), "--json"]
        found = json.loads(subprocess.run(line, cwd=ROOT, capture_output=True, check=True).stdout)
        doctor = subprocess.run([*shmtrace, "doctor"], cwd=ROOT, capture_output=True, text=True).stdout
    [told] = [row["process"] for row in found["parents"] if row["process"]["pod_name"]]
    assert told["cgroup"] == f"/../../pod{web.uid}/{web.id}"
    assert (told["namespace"], told["pod_name"], told["container_name"]) == WEB
    assert re.search(
        r"^note +cgroup namespace +not the host's.*\n(?:  .*\n)* +fix: nsenter --cgroup=", doctor, re.MULTILINE
    )


@pytest.mark.usefixtures("bpffs")
def test_armed(logs: Path, shared: Path, tmp_path: Path) -> None:
    """Of a pod that is there by then its names are kept, too."""
    shmtrace = [*WITH_LOGS, str(logs), *patched(*Armed("", tmp_path).patches)]
    with two(logs, shared) as (web, job):
        targets = [option for pod in (web, job) for option in ("-p", str(pod.process.pid))]
        subprocess.run([*shmtrace, "arm", *targets], cwd=ROOT, check=True)
        try:
            web.forget()
            job.log()
            web.go()
            job.go()
            line = [*shmtrace, "report", "--armed", "--by", "container", "--json"]
            found = json.loads(subprocess.run(line, cwd=ROOT, capture_output=True, check=True).stdout)
        finally:
            subprocess.run([*shmtrace, "disarm"], cwd=ROOT, check=True)
    told = {row["container_name"]: row["allocated_bytes"] // PAGE_BYTES for row in found["rows"]}
    assert (told["php-fpm"], told["worker"]) == (46, 14)


def test_hostile_directories(logs: Path, shared: Path, tmp_path: Path) -> None:
    """More than are looked at, and things in place of directories: it takes no longer, and what is left out is told."""
    with two(logs, shared) as (web, job):
        for number in range(MAX_ENTRIES + 1):
            (logs / "pods" / f"x{number}_\x1b[31m_{job.uid}").mkdir()
        os.mkfifo(job.link)
        capture = tmp_path / "x.capture"
        began_s = time.monotonic()
        with trace("-p", web.process.pid, "-p", job.process.pid, "-o", capture, shmtrace=with_logs(logs)) as running:
            web.go()
            job.go()
            found = running.stop()
        assert time.monotonic() - began_s < 30
    assert found["warnings"] == [f"not all names of pods are known: /var/log has more than {MAX_ENTRIES} entries"]
    assert rows(capture, "container")[job.id] == 14
