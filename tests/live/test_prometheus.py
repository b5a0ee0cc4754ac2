"""A real Prometheus with the rules and the dashboard, of a host that tells a known history both ways."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tests.live.fpm import Fpm, running_fpm, script_names
from tests.live.prometheus import (
    NODE_EXPORTER,
    PROCESS_EXPORTER,
    PROGRAM,
    ROOT,
    Prometheus,
    free_port,
    get,
    hurried,
    running_node_exporter,
    running_process_exporter,
    running_prometheus,
    wait_until,
)
from tests.live.shmem import read_regions
from tests.live.test_metrics import serving

pytestmark = pytest.mark.needs(PROGRAM, NODE_EXPORTER)

DASHBOARD = json.loads((ROOT / "docs/prometheus/grafana-dashboard.json").read_text())
PAGE = 4096
SIZE = 1000 * PAGE
FPM, DATABASE = "php8.2-fpm.service", "postgresql@15-main.service"
MINUTE_S = 1
FIRING = 'ALERTS{alertstate="firing"}'
SINCE = "sum by (by) (sum_over_time(host_unit_segment_by:shmtrace_touched_bytes:delta5m[5m]))"


class Host:
    """What shmtrace tells of a host: an opcache that scripts fill, and shared buffers that are full."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.touched = {"/srv/index.php": 23 * PAGE}
        self.freed = 0

    def fill(self, **pages: int) -> None:
        """Scripts, without /srv and .php, and how many pages more they touch."""
        with self.lock:
            for script, count in pages.items():
                name = f"/srv/{script}.php"
                self.touched[name] = self.touched.get(name, 0) + count * PAGE

    def restart(self) -> None:
        """The application: all is given back."""
        with self.lock:
            self.freed = sum(self.touched.values())

    def collect(self) -> Iterator[Metric]:
        with self.lock:
            touched, freed = dict(self.touched), self.freed
        opcache, buffers = (FPM, "opcache"), (DATABASE, "shared buffers")
        kinds = ["unit", "segment", "kind"]
        size = GaugeMetricFamily("shmtrace_segment_size_bytes", "", labels=kinds)
        allocated = GaugeMetricFamily("shmtrace_segment_allocated_bytes", "", labels=kinds)
        swapped = GaugeMetricFamily("shmtrace_segment_swapped_bytes", "", labels=kinds)
        unattributed = GaugeMetricFamily("shmtrace_unattributed_bytes", "", labels=["unit", "segment", "part"])
        gone = CounterMetricFamily("shmtrace_freed_bytes", "", labels=["unit", "segment"])
        by = CounterMetricFamily("shmtrace_touched_bytes", "", labels=["unit", "segment", "by"])
        for segment, before, now in ((opcache, 7 * PAGE, sum(touched.values()) - freed), (buffers, SIZE, 0)):
            size.add_metric([*segment, "anon"], SIZE)
            allocated.add_metric([*segment, "anon"], before + now)
            swapped.add_metric([*segment, "anon"], 0)
            unattributed.add_metric([*segment, "before"], before)
            unattributed.add_metric([*segment, "unseen"], 0)
        gone.add_metric(opcache, freed)
        gone.add_metric(buffers, 0)
        for name, size_bytes in touched.items():
            by.add_metric([*opcache, name], size_bytes)
        yield from (size, allocated, swapped, unattributed, gone, by)
        lost = CounterMetricFamily("shmtrace_lost", "", labels=["what"])
        for what in ("events", "pages", "probes"):
            lost.add_metric([what], 0)
        tier = GaugeMetricFamily("shmtrace_tier_info", "", labels=["tier", "mechanism", "version"])
        tier.add_metric(["faults", "tracepoint", "0.9"], 1)
        yield from (lost, tier)
        yield GaugeMetricFamily("shmtrace_collected_timestamp_seconds", "", time.time())
        yield GaugeMetricFamily("shmtrace_self_resident_bytes", "", 31 << 20)
        yield CounterMetricFamily("shmtrace_self_cpu_seconds", "", time.process_time())


@pytest.fixture(scope="module")
def host() -> Host:
    return Host()


@pytest.fixture(scope="module")
def prometheus(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes the host both ways. The textfile is written twice a second."""
    textfiles = tmp_path_factory.mktemp("textfiles")
    registry = CollectorRegistry()
    registry.register(host)  # type: ignore[arg-type] # what it takes is a protocol in all but name
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.5):
            write_to_textfile(str(textfiles / "shmtrace.prom"), registry)

    port = free_port()
    server, serving = start_http_server(port, "127.0.0.1", registry)
    writing = threading.Thread(target=write)
    writing.start()
    try:
        with (
            running_node_exporter(textfiles) as node_port,
            running_prometheus({"shmtrace": port, "node": node_port}, hurried(MINUTE_S)) as prometheus,
        ):
            prometheus.wait_for(f"count(shmtrace_collected_timestamp_seconds offset {5 * MINUTE_S}s) == 2")
            yield prometheus
    finally:
        done.set()
        writing.join()
        server.shutdown()
        serving.join()


def test_an_opcache_fills_and_is_restarted(prometheus: Prometheus, host: Host) -> None:
    """One alert, though it is told twice; it says who; it ends."""
    host.fill(index=11, about=870)
    [firing] = prometheus.wait_for(FIRING)
    assert firing["metric"]["alertname"] == "ShmtraceSegmentAlmostFull"
    assert firing["metric"]["segment"] == "opcache"
    grew_by = "In the last day by /srv/about.php 3.398MiB, /srv/index.php 44kiB"
    wait_until(lambda: [alert["annotations"]["grew_by"] for alert in prometheus.alerts()] == [grew_by])
    assert prometheus.values(SINCE, "by") == {"/srv/about.php": 870 * PAGE, "/srv/index.php": 11 * PAGE}
    host.restart()
    wait_until(lambda: not prometheus.alerts())


def test_the_account_is_right_at_every_scrape(prometheus: Prometheus) -> None:
    out = prometheus.accounts("10m")
    assert len(out) > 40
    assert {key: pages for key, pages in out.items() if pages} == {}
    assert {key[0] for key in out} == {"node", "shmtrace"}


EMPTY = {
    "Alerts that fire",  # after all
    "Age of the textfile",  # of an instance that is shmtrace itself
}


@pytest.mark.parametrize("job", ["node", "shmtrace"])
def test_each_panel_of_the_dashboard_has_data(prometheus: Prometheus, host: Host, job: str) -> None:
    """As Grafana asks: first for the values of the variables, each with those before it, then for the panels."""
    grown = 11 + (3 if job == "node" else 6)
    host.fill(index=3)
    wait_until(lambda: prometheus.values(SINCE, "by")["/srv/index.php"] == grown * PAGE)
    chosen = {"__range": "5m", "__rate_interval": "10s", "unit": ".*", "segment": ".*"}
    [target] = prometheus.query(f'shmtrace_collected_timestamp_seconds{{job="{job}"}}')
    chosen["instance"] = target["metric"]["instance"]
    for variable in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert found
        values = prometheus.label_values(substituted(found[1], chosen), found[2])
        if variable["regex"]:
            values = re.findall(variable["regex"].strip("/"), values[0])
        assert values
        assert chosen.setdefault(variable["name"], values[0]) in [*values, ".*"]
    targets = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    assert len(targets) > 15
    empty = {title for title, expr in targets if not prometheus.query(substituted(expr, chosen))}
    assert empty == EMPTY - ({"Age of the textfile"} if job == "node" else set())


def substituted(expr: str, chosen: dict[str, str]) -> str:
    """As Grafana does it. No variable may be left."""
    return re.sub(r"\$(\w+)", lambda found: chosen[found[1]], expr)


def test_who_grew_the_fleet_is_in_the_dashboard(prometheus: Prometheus) -> None:
    [panel] = [panel for panel in DASHBOARD["panels"] if panel["title"].startswith("Hosts that grew")]
    allocated, by = (target["expr"] for target in panel["targets"])
    chosen = {"__range": "5m", "segment": "opcache"}
    assert prometheus.values(substituted(by, chosen), "by") == {"/srv/about.php": 870 * PAGE}
    grown = prometheus.values(substituted(allocated, chosen), "host")
    assert grown == {"localhost": (11 + 870 + 3 + 3) * PAGE}


def test_no_rule_fails(prometheus: Prometheus) -> None:
    assert len(prometheus.rule_seconds()) == 11


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        own = {(x + column, y + row) for column in range(width) for row in range(height)}
        assert not own & taken, panel["title"]
        assert x + width <= 24
        taken |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


SMALL = {"opcache.memory_consumption": 16, "opcache.interned_strings_buffer": 1}
SCRIPTS = 600
HELD = 'shmtrace_segment_allocated_bytes{job="shmtrace",segment="opcache"}'


def opcache_pages(fpm: Fpm) -> int:
    return max(read_regions(fpm.tgid).values(), key=lambda region: region.size_bytes).pages


def deploy_on(fpm: Fpm) -> Path:
    """A script that has all others compiled, in one request."""
    deploy = fpm.directory / "deploy.php"
    deploy.write_text("<?php " + "".join(f"require '{name}';" for name in script_names(SCRIPTS)))
    fpm.ask(deploy.name)
    return deploy


@pytest.mark.bpf
@pytest.mark.needs("php-fpm*")
def test_a_real_pool_fills_its_opcache_and_is_reloaded(tmp_path: Path) -> None:
    """Told both ways by shmtrace itself: what the inode has, by which scripts, balanced at every scrape."""
    options = ["--label", "php", "--textfile", str(tmp_path / "shmtrace.prom")]
    with (
        running_fpm(SCRIPTS, settings={**SMALL, "apc.enabled": 0}) as fpm,
        serving(fpm, tmp_path, *options) as port,
        running_node_exporter(tmp_path) as node_port,
        running_prometheus({"shmtrace": port, "node": node_port}, hurried(2)) as prometheus,
    ):
        prometheus.wait_for("count(shmtrace_collected_timestamp_seconds) == 2")
        deploy = deploy_on(fpm)
        [firing] = prometheus.wait_for(FIRING)
        assert firing["metric"]["alertname"] == "ShmtraceSegmentAlmostFull"
        pages = opcache_pages(fpm)
        wait_until(lambda: float(prometheus.query(HELD)[0]["value"][1]) == pages * PAGE)
        by = prometheus.values('shmtrace_touched_bytes_total{job="node",segment="opcache"}', "by")
        assert by[str(deploy)] > 0.9 * sum(by.values())
        fpm.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: not prometheus.alerts())
        assert opcache_pages(fpm) < pages
        out = prometheus.accounts("10m")
    assert len(out) > 60
    assert {key: size_bytes for key, size_bytes in out.items() if size_bytes} == {}


@pytest.mark.needs("php-fpm*", PROCESS_EXPORTER)
def test_what_process_exporter_says_of_a_pool() -> None:
    """Its workers hold what they have mapped. When they are replaced, its figure falls, and the opcache does not."""
    with (
        running_fpm(SCRIPTS, settings={**SMALL, "apc.enabled": 0}) as fpm,
        running_process_exporter(fpm.directory.name) as port,
    ):

        def pool(kind: str) -> float:
            said = get(f"http://127.0.0.1:{port}/metrics").decode()
            [found] = re.findall(rf'memory_bytes{{groupname="pool",memtype="{kind}"}} (\S+)', said)
            return float(found)

        deploy_on(fpm)
        pages, workers, before_bytes = opcache_pages(fpm), fpm.workers(), pool("proportionalResident")
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
        wait_until(lambda: not set(workers) & set(fpm.workers()))
        fpm.wait_until_up()
        wait_until(lambda: pool("proportionalResident") < before_bytes - pages * PAGE)
        assert opcache_pages(fpm) >= pages
