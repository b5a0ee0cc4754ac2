"""10,000 hosts in a real Prometheus: what the rules cost, and how long the question takes that they are for.

Which opcaches grew since the deploy, and by which script? 104 hosts' did, by known amounts, each by one script that is
new. On every tenth host something else grows meanwhile.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from tests.live.prometheus import RULES, Prometheus, running_prometheus

HOSTS, PLANTED, SCRIPTS = 10_000, 104, 20
MINUTES, DEPLOY = 12, 4
LIVE_MINUTES, LIVE_DEPLOY, SCRAPE_S = 11, 6, 15
TRIES = 3
PAGE = 4096
SIZE, OLD, EACH = 65_536 * PAGE, 40_000 * PAGE, 2_000 * PAGE
FPM, DATABASE = "php8.2-fpm.service", "postgresql@15-main.service"
OPCACHE, APCU, BUFFERS = (
    f'unit="{FPM}",segment="opcache"',
    f'unit="{FPM}",segment="apcu"',
    (f'unit="{DATABASE}",segment="shared buffers"'),
)
DELTA = "host_unit_segment:shmtrace_segment_allocated_bytes:delta1m"
BY = "host_unit_segment_by:shmtrace_touched_bytes:delta5m"
PASSES = {
    "host_instance_job:shmtrace_listen:group": 1,
    "host_instance_job:shmtrace_source:group": 1,
    DELTA: 1,
    BY: 5,
}
"""How often they are evaluated, in minutes; one after the other, for promtool evaluates no rule that depends on another
one of the same file."""
EVALUATED_MINUTES = 20
"""From the beginning on. At which second of its interval a group is evaluated depends on its name."""

QUESTION = 'topk by (host) (1, sum by (host, by) (sum_over_time({}{{segment="opcache"}}[{}m])))'
WITHOUT_RULES = """
topk by (instance) (1, increase(shmtrace_touched_bytes_total{{segment="opcache"}}[{0}m]) and on (instance) topk(104,
sum by (instance) (shmtrace_segment_allocated_bytes{{segment="opcache"}}
  - shmtrace_segment_allocated_bytes{{segment="opcache"}} offset {0}m)))
"""


class Grown(NamedTuple):
    """What a host's opcache grew by since the deploy."""

    script: str
    size_bytes: int


def is_planted(host: int) -> bool:
    return host % 96 == 5 and host // 96 < PLANTED


def script_of(host: int) -> str:
    return f"/srv/8/f{host % 23:05}.php"


def grown_bytes(host: int, minutes: int) -> int:
    """So many minutes after the deploy: as much each minute, and another on each host."""
    return (7 + host % 89) * PAGE * max(0, minutes) if is_planted(host) else 0


def answer(minutes: int) -> dict[str, Grown]:
    planted = filter(is_planted, range(HOSTS))
    return {f"web{host:05}": Grown(script_of(host), grown_bytes(host, minutes)) for host in planted}


def segments(host: int, minute: int, deploy: int) -> dict[str, tuple[int, dict[str, int]]]:
    """What was there before, and who touched how much since, of each segment."""
    noise = 3 * PAGE * minute * (host % 10 == 0)
    scripts = {f"/srv/7/f{number:05}.php": EACH for number in range(SCRIPTS - 1)}
    if grown := grown_bytes(host, minute - deploy):
        scripts[script_of(host)] = grown
    return {
        OPCACHE: (23 * PAGE, {**scripts, "other": 11 * PAGE}),
        APCU: (7 * PAGE, {"php-fpm: pool www": EACH + noise}),
        BUFFERS: (OLD, {"postgres: checkpointer": EACH, "postgres: app app": EACH + noise}),
    }


def host_samples(host: int, minute: int, deploy: int, time_s: float) -> dict[str, list[tuple[str, float]]]:
    """All that shmtrace tells of a host, by family: labels and values."""
    told: dict[str, list[tuple[str, float]]] = {name: [] for name in FAMILIES}
    for segment, (before, touched) in segments(host, minute, deploy).items():
        kind = f'{segment},kind="anon"'
        told["shmtrace_segment_size_bytes"].append((kind, SIZE))
        told["shmtrace_segment_allocated_bytes"].append((kind, before + sum(touched.values())))
        told["shmtrace_segment_swapped_bytes"].append((kind, 0))
        told["shmtrace_touched_bytes"] += [(f'{segment},by="{by}"', value) for by, value in touched.items()]
        told["shmtrace_freed_bytes"].append((segment, 0))
        told["shmtrace_unattributed_bytes"] += [(f'{segment},part="before"', before), (f'{segment},part="unseen"', 0)]
    told["shmtrace_lost"] = [(f'what="{what}"', 0) for what in ("events", "pages", "probes")]
    told["shmtrace_tier_info"] = [('tier="exact",mechanism="fentry",version="0.9"', 1)]
    told["shmtrace_collected_timestamp_seconds"] = [("", time_s)]
    told["shmtrace_self_resident_bytes"] = [("", 31 << 20)]
    told["shmtrace_self_cpu_seconds"] = [("", 60 * 0.01 * minute)]
    return told


FAMILIES = {
    "shmtrace_segment_size_bytes": "gauge",
    "shmtrace_segment_allocated_bytes": "gauge",
    "shmtrace_segment_swapped_bytes": "gauge",
    "shmtrace_touched_bytes": "counter",
    "shmtrace_freed_bytes": "counter",
    "shmtrace_unattributed_bytes": "gauge",
    "shmtrace_lost": "counter",
    "shmtrace_tier_info": "gauge",
    "shmtrace_collected_timestamp_seconds": "gauge",
    "shmtrace_self_resident_bytes": "gauge",
    "shmtrace_self_cpu_seconds": "counter",
}


def exposition(minutes: range, deploy: int, end_s: int | None = None) -> Iterator[str]:
    """OpenMetrics of all hosts, a family after the other. end_s: the time of the last minute; None: without times."""
    collected_s = time.time() if end_s is None else end_s
    parts: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for host in range(HOSTS):
        target = f'instance="web{host:05}:9100",job="node"'
        lines: dict[str, dict[str, list[str]]] = {name: {} for name in FAMILIES}
        for minute in minutes:
            time_s = collected_s - 60 * (minutes[-1] - minute)
            stamp = "" if end_s is None else f" {time_s}"
            for name, samples in host_samples(host, minute, deploy, time_s).items():
                for labels, value in samples:
                    lines[name].setdefault(labels, []).append(f"{value}{stamp}")
        for name, kind in FAMILIES.items():
            suffix = "_total" if kind == "counter" else ""
            for labels, values in lines[name].items():
                series = f"{name}{suffix}{{{target}{',' * bool(labels)}{labels}}}"
                parts[name] += [f"{series} {value}\n" for value in values]
    for name, kind in FAMILIES.items():
        yield f"# TYPE {name} {kind}\n"
        yield from parts[name]
    yield "# EOF\n"


def taken_s(run: Callable[[], object]) -> float:
    start = time.monotonic()
    run()
    return time.monotonic() - start


def ask(prometheus: Prometheus, at_s: float) -> None:
    """The question, three times, and whether it is answered rightly."""
    expr = QUESTION.format(BY, EVALUATED_MINUTES)
    took = [taken_s(lambda: prometheus.query(expr, at_s)) for _ in range(TRIES)]
    found = {
        each["metric"]["host"]: Grown(each["metric"]["by"], int(float(each["value"][1])))
        for each in prometheus.query(expr, at_s)
    }
    said = "found exactly" if found == answer(MINUTES - 1 - DEPLOY) else f"WRONG: {len(found)} found"
    print(f"  with them it takes {max(took):.3f} s, worst of {TRIES}; {PLANTED} hosts and scripts {said}")


def backfilled(directory: Path) -> None:
    """By promtool, from what `export --format openmetrics` writes; the rules too."""
    end_s = int(time.time()) // 60 * 60 - 120
    text, data = directory / "fleet.txt", directory / "data"
    with text.open("w") as file:
        file.writelines(exposition(range(MINUTES), DEPLOY, end_s))
    size_mb = text.stat().st_size / 1e6
    took = taken_s(lambda: promtool("openmetrics", text, data))
    text.unlink()
    print(f"  backfilled: {size_mb:.0f} MB of OpenMetrics in {took:.0f} s")
    with running_prometheus(data=data) as prometheus:
        series = prometheus.query('count({__name__=~"shmtrace_.+"})', end_s)[0]["value"][1]
        print(f"  {int(series):,} series, a sample a minute for {MINUTES} minutes")
        expr = WITHOUT_RULES.format(MINUTES - 1 - DEPLOY)
        took = max(taken_s(lambda: prometheus.query(expr, end_s)) for _ in range(TRIES))
        print(f"  without rules the question takes {took:.1f} s, worst of {TRIES}")
        rules = {rule["name"]: rule["query"] for rule in rules_of(RULES.read_text())}
        print(f"  peak memory {prometheus.peak_mib():.0f} MiB")
    start_s = end_s - 60 * (MINUTES - 1)
    for name, minutes in PASSES.items():
        evaluated(name, rules[name], minutes, data, start_s)
    with running_prometheus(data=data) as prometheus:
        ask(prometheus, start_s + 60 * EVALUATED_MINUTES)
        print(f"  peak memory {prometheus.peak_mib():.0f} MiB")


def evaluated(name: str, expr: str, minutes: int, data: Path, start_s: int) -> None:
    """What a rule records, added to the data."""
    path = data.with_name("pass.yml")
    path.write_text(json.dumps({"groups": [{"name": "fleet", "rules": [{"record": name, "expr": expr}]}]}))
    with running_prometheus(data=data) as prometheus:
        end_s = start_s + 60 * EVALUATED_MINUTES
        times = [f"--start={start_s}", f"--end={end_s}", f"--eval-interval={minutes}m"]
        took = taken_s(lambda: promtool("rules", f"--url={prometheus.url}", *times, f"--output-dir={data}", path))
        peak = prometheus.peak_mib()
    each = took / (EVALUATED_MINUTES // minutes)
    print(f"  promtool evaluates {name}: {each:.2f} s each {minutes} min, peak memory {peak:.0f} MiB")


def promtool(kind: str, *arguments: object) -> None:
    command = ["promtool", "tsdb", "create-blocks-from", kind, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rules_of(text: str) -> list[dict[str, str]]:
    """As Prometheus reads them."""
    with running_prometheus(rules=text) as prometheus:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]


@contextmanager
def serving() -> Iterator[int]:
    """The port of a page that tells of all hosts, each minute something new."""
    start_s = time.time()
    pages: dict[int, bytes] = {}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            minute = int(time.time() - start_s) // 60
            if minute not in pages:
                pages.clear()
                pages[minute] = "".join(exposition(range(minute, minute + 1), LIVE_DEPLOY)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages[minute])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def live() -> None:
    """Scraped, and the rules as they are shipped: the slowest evaluation of each."""
    worst: dict[str, float] = {}
    with serving() as port, running_prometheus({"fleet": port}, RULES.read_text(), interval_s=SCRAPE_S) as prometheus:
        end_s = time.monotonic() + 60 * LIVE_MINUTES
        while time.monotonic() < end_s:
            time.sleep(5)
            for name, took in prometheus.rule_seconds().items():
                worst[name] = max(worst.get(name, 0), took)
        print(f"  live, for {LIVE_MINUTES} min, peak memory {prometheus.peak_mib():.0f} MiB; each rule at its slowest:")
        for name, took in sorted(worst.items(), key=lambda rule: -rule[1]):
            print(f"    {took:6.2f} s  {name}")


def bench() -> None:
    """Both take place in /var/tmp, and leave nothing there."""
    print(f"\n{HOSTS:,} hosts in Prometheus")
    directory = Path(tempfile.mkdtemp(prefix="fleet.", dir="/var/tmp"))
    try:
        backfilled(directory)
    finally:
        shutil.rmtree(directory)
    live()
