"""The rules for Prometheus, by promtool, over histories whose answer is known: what fires, at which minute.

Every minute of a history is looked at, and every alert: what is not named does not fire.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.test_docs import parse

pytestmark = pytest.mark.needs("promtool")

RULES = Path(__file__).parents[1] / "docs/prometheus/shmtrace.rules.yml"
MINUTES = 40
MIB = 1 << 20
PAGE = 4096
SIZE = 25_000 * PAGE
FPM, DATABASE = "php8.2-fpm.service", "postgresql@15-main.service"
GREW = "host_unit_segment_by:shmtrace_touched_bytes:delta5m"
SEGMENT_GREW = "host_unit_segment:shmtrace_segment_allocated_bytes:delta1m"

Values = Sequence["int | None"]
Alert = tuple[tuple[str, str], ...]


def steps(by_minute: Mapping[int, int | None]) -> Values:
    """A value from each of these minutes on. None: there is no sample."""
    values: list[int | None] = []
    for minute in range(MINUTES):
        values.append(by_minute.get(minute, values[-1] if values else None))
    return values


def rising(first: int, each: int, until: int = MINUTES) -> Values:
    return [first + each * min(minute, until) for minute in range(MINUTES)]


ALWAYS = steps({0: 0})
FRESH = rising(0, 60)
"""Of a timestamp: read at that moment, as promtool begins at 0."""


def named(name: str, **labels: str) -> str:
    return name + "{" + ",".join(f"{label}={json.dumps(value)}" for label, value in labels.items()) + "}"


class History:
    """What Prometheus has scraped, a sample a minute."""

    def __init__(self) -> None:
        self.series: dict[str, Values] = {}

    def add(self, name: str, values: Values, **labels: str) -> None:
        self.series[named(name, **labels)] = values

    def target(self, host: str, job: str = "node", collected: Values = FRESH) -> Target:
        """A host's node_exporter with a textfile, or shmtrace itself."""
        instance = f"{host}:{9100 if job == 'node' else 9109}"
        target = Target(self, instance, job)
        target.add("shmtrace_collected_timestamp_seconds", collected)
        if job == "node":
            target.add("node_textfile_mtime_seconds", FRESH, file="/textfile/shmtrace.prom")
        return target

    def both(self, host: str, collected: Values = FRESH) -> list[Target]:
        return [self.target(host, "node", collected), self.target(host, "shmtrace", collected)]


class Target:
    def __init__(self, history: History, instance: str, job: str) -> None:
        self.history = history
        self.labels = {"instance": instance, "job": job}

    def add(self, name: str, values: Values, **labels: str) -> None:
        self.history.add(name, values, **self.labels, **labels)

    def segment(
        self, unit: str, segment: str, allocated: Values, touched: Mapping[str, Values], size: int | None = SIZE
    ) -> None:
        """Balanced: what nobody has touched was there before, and what is there no more has been freed."""
        of = {"unit": unit, "segment": segment}
        if size:
            self.add("shmtrace_segment_size_bytes", [None if a is None else size for a in allocated], **of, kind="anon")
        self.add("shmtrace_segment_allocated_bytes", allocated, **of, kind="anon")
        for by, values in touched.items():
            self.add("shmtrace_touched_bytes_total", values, **of, by=by)
        before, freed = [], []
        for minute, now in enumerate(allocated):
            over = (now or 0) - sum(values[minute] or 0 for values in touched.values())
            before.append(None if now is None else max(0, over))
            freed.append(max(0, -over))
        self.add("shmtrace_unattributed_bytes", before, **of, part="before")
        self.add("shmtrace_freed_bytes_total", freed, **of)


def notation(values: Values) -> Iterator[str]:
    """Samples as promtool reads them. Prometheus marks the end of a series that a scrape does not find any more."""
    last: int | None = None
    for value in values:
        yield str(value) if value is not None else "_" if last is None else "stale"
        last = value


def judge(directory: Path, history: History, every: str = "1m", **tests: object) -> None:
    """Let promtool say what it thinks of it, which evaluates all rules that often. JSON is YAML, too."""
    series = [{"series": name, "values": " ".join(notation(values))} for name, values in history.series.items()]
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": every,
        "group_eval_order": ["shmtrace", "shmtrace_by"],
        "tests": [{"interval": "1m", "input_series": series, **tests}],
    }
    path = directory / "test.yml"
    path.write_text(json.dumps(document))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def alert(name: str, **labels: str) -> Alert:
    return (("alertname", f"Shmtrace{name}"), *labels.items())


SEVERITY = dict(re.findall(r"alert: (\w+)\n.*?severity: (\w+)", RULES.read_text(), re.DOTALL))


def assert_fires(directory: Path, history: History, spans: Mapping[Alert, tuple[int, int]]) -> None:
    """These alerts, from the one minute to the one before the other, and no others at any time."""
    tests = []
    for minute in range(MINUTES):
        firing = [dict(labels) for labels, (start, end) in spans.items() if start <= minute < end]
        tests.append(
            {
                "expr": 'ALERTS{alertstate="firing"}',
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {
                        "labels": named("ALERTS", alertstate="firing", severity=SEVERITY[each["alertname"]], **each),
                        "value": 1,
                    }
                    for each in firing
                ],
            }
        )
    judge(directory, history, promql_expr_test=tests)


def expect(expr: str, minute: int, samples: Mapping[str, int]) -> dict[str, object]:
    told = [{"labels": labels, "value": value} for labels, value in samples.items()]
    return {"expr": expr, "eval_time": f"{minute}m", "exp_samples": told}


def assert_grew(directory: Path, history: History, by_minute: Mapping[int, Mapping[str, int]]) -> None:
    """What is recorded each five minutes of who grew the opcache of web1; and what the sum of it is at the end."""
    of = {"host": "web1", "unit": FPM, "segment": "opcache"}
    sums: Counter[str] = Counter()
    tests = []
    for minute in range(0, MINUTES, 5):
        grew = by_minute.get(minute, {})
        sums.update(grew)
        tests.append(expect(GREW, minute, {named(GREW, **of, by=by): value for by, value in grew.items()}))
    since = f"sum_over_time({GREW}[{MINUTES}m])"
    tests.append(expect(since, MINUTES - 1, {named("", **of, by=by): value for by, value in sums.items()}))
    judge(directory, history, "5m", promql_expr_test=tests)


def assert_allocated(directory: Path, history: History, by_minute: Mapping[int, int]) -> None:
    """What is recorded each minute of by how much that opcache has grown."""
    record = named(SEGMENT_GREW, host="web1", unit=FPM, segment="opcache")
    tests = [
        expect(SEGMENT_GREW, minute, {record: by_minute[minute]} if minute in by_minute else {})
        for minute in range(MINUTES)
    ]
    judge(directory, history, promql_expr_test=tests)


def test_promtool_accepts_them() -> None:
    done = subprocess.run(["promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES], capture_output=True)
    assert done.returncode == 0, done.stdout


def test_each_alert_says_what_it_is_and_what_to_do() -> None:
    alerts = re.split(r"- alert: ", RULES.read_text())[1:]
    assert len(alerts) == len(SEVERITY) == 6
    for text in alerts:
        assert re.search(r"severity: (warning|info)\n", text)
        assert re.search(r"summary: .+\n(.+\n)*? +description: >-\n", text)
        [command] = re.findall(r"runbook: (.+)\n", text)
        words = shlex.split(command)
        if words[0] == "shmtrace":
            parse(words[1:])
        else:
            assert words == ["systemctl", "status", "shmtrace"]


def filling(history: History) -> None:
    """90% is not over 90%, at 4m; a page more is, at 7m, by a script that is new. At 29m it is restarted."""
    level, pages = SIZE * 8 // 10, SIZE * 9 // 10
    allocated = steps({0: level, 4: pages, 7: pages + PAGE, 29: 23 * PAGE})
    touched = {
        "/srv/7/index.php": steps({4: pages - level, 7: pages - level + PAGE}),
        "other": steps({0: 0, 29: 23 * PAGE}),
    }
    for target in history.both("web1"):
        target.segment(FPM, "opcache", allocated, touched)
    history.target("db1").segment(DATABASE, "shared buffers", steps({0: SIZE}), {"postgres: checkpointer": ALWAYS})


FULL = alert("SegmentAlmostFull", host="web1", unit=FPM, segment="opcache")


def test_an_opcache_fills_and_is_restarted(tmp_path: Path) -> None:
    history = History()
    filling(history)
    assert_fires(tmp_path, history, {FULL: (12, 29)})


def test_the_alert_says_who(tmp_path: Path) -> None:
    history = History()
    filling(history)
    grew = "In the last day by /srv/7/index.php 9.77MiB"
    told = {
        "exp_labels": {**dict(FULL[1:]), "severity": "warning"},
        "exp_annotations": {
            "summary": f"opcache of {FPM} on web1: 90% has been used",
            "description": "This is a high-water mark. It stays where it is after opcache_reset(), and falls when the "
            "service is restarted or the pages are given back. How full it is now, the application knows: "
            "opcache_get_status() of an opcache.",
            "grew_by": grew,
            "runbook": "shmtrace report /var/lib/shmtrace/shmtrace.capture --by script,region",
        },
    }
    judge(
        tmp_path,
        history,
        "5m",
        alert_rule_test=[{"alertname": dict(FULL)["alertname"], "eval_time": "20m", "exp_alerts": [told]}],
    )


def test_labels_are_strings_of_strangers(tmp_path: Path) -> None:
    """A unit or a file may be called anything. Names go into the query that asks who, and may not end its string."""
    history = History()
    unit, segment, by = 'a"} or vector(7) # \\', "b\"} zone '", '{{ "x" }} <b>'
    history.target("web1").segment(unit, segment, steps({0: 0, 3: SIZE}), {by: steps({0: 0, 3: SIZE})})
    expected = {"labels": f"{{alertname={json.dumps('ShmtraceSegmentAlmostFull')}}}", "value": 1}
    count = 'count by (alertname) (ALERTS{alertstate="firing"})'
    judge(tmp_path, history, promql_expr_test=[{"expr": count, "eval_time": "9m", "exp_samples": [expected]}])
    assert "97.66MiB" in said(tmp_path, history, "grew_by")


def said(directory: Path, history: History, annotation: str) -> str:
    """What an alert says at 20m: promtool tells it where it is not what was expected."""
    wrong = {"exp_labels": {}, "exp_annotations": {}}
    with pytest.raises(AssertionError) as failure:
        judge(
            directory,
            history,
            "5m",
            alert_rule_test=[{"alertname": "ShmtraceSegmentAlmostFull", "eval_time": "20m", "exp_alerts": [wrong]}],
        )
    [found] = re.findall(rf'{annotation}="(.*?)", runbook=', str(failure.value))
    return str(found)


def test_who_before_there_are_records(tmp_path: Path) -> None:
    history = History()
    for target in history.both("web1"):
        target.segment(
            FPM, "opcache", steps({0: SIZE}), {"other": steps({0: 23 * PAGE}), "/srv/a.php": steps({0: PAGE})}
        )
    assert said(tmp_path, history, "grew_by") == "Since shmtrace began by other 92kiB, /srv/a.php 4kiB"


def test_who_is_not_known(tmp_path: Path) -> None:
    history = History()
    history.target("web1").segment(FPM, "opcache", steps({0: SIZE}), {})
    assert said(tmp_path, history, "grew_by") == "It is not known by whom"


def test_what_is_meant_to_be_full(tmp_path: Path) -> None:
    history = History()
    target = history.target("web1")
    fill = ["opcache", "apcu", "cache", "zone", 'limit_req zone "one"']
    for segment in [*fill, "shared buffers", "heap", "scoreboard", "/dev/shm/torch_#_#"]:
        target.segment("x.service", segment, steps({0: SIZE}), {"other": ALWAYS})
    full = [alert("SegmentAlmostFull", host="web1", unit="x.service", segment=segment) for segment in fill]
    assert_fires(tmp_path, history, dict.fromkeys(full, (5, MINUTES)))


def test_a_full_segment_vanishes(tmp_path: Path) -> None:
    history = History()
    gone = steps({0: SIZE, 21: None})
    history.target("web1").segment(FPM, "opcache", gone, {"other": steps({0: 0, 2: SIZE})})
    assert_fires(tmp_path, history, {FULL: (5, 21)})


def test_a_textfile_stays_when_shmtrace_is_gone(tmp_path: Path) -> None:
    """Its figures count for five minutes."""
    history = History()
    target = history.target("web1", collected=rising(0, 60, 17))
    target.segment(FPM, "opcache", steps({0: SIZE}), {"other": ALWAYS})
    assert_fires(tmp_path, history, {FULL: (5, 22), alert("Stale", host="web1"): (24, MINUTES)})


def test_the_textfile_counts_where_nothing_listens(tmp_path: Path) -> None:
    """They differ, as they never do, to tell which of them counts: --listen, while it is there and fresh."""
    history = History()
    for host, collected in (("web1", steps_of_time({0: True, 12: False})), ("web2", rising(0, 60, 12))):
        textfile, listening = history.target(host), history.target(host, "shmtrace", collected)
        textfile.segment(FPM, "opcache", steps({0: SIZE}), {"other": ALWAYS})
        half = [None if time is None else SIZE // 2 for time in collected]
        listening.segment(FPM, "opcache", half, {"other": ALWAYS})
    on_web2 = alert("SegmentAlmostFull", host="web2", unit=FPM, segment="opcache")
    assert_fires(tmp_path, history, {FULL: (17, MINUTES), on_web2: (22, MINUTES)})


def steps_of_time(by_minute: Mapping[int, bool]) -> Values:
    """Collected at every minute of those spans that are true; absent in the others."""
    there = steps({minute: int(value) for minute, value in by_minute.items()})
    return [60 * minute if value else None for minute, value in enumerate(there)]


def test_stale_and_absent(tmp_path: Path) -> None:
    history = History()
    history.target("web1", "shmtrace", steps_of_time({0: True, 9: False, 25: True}))
    history.target("web2", collected=rising(0, 60, 11))
    history.target("web2", "shmtrace", rising(0, 60, 12))
    history.target("web3", collected=rising(0, 60, 5))
    history.target("web3", "shmtrace")
    fired = {alert("Stale", host="web1"): (15, 25), alert("Stale", host="web2"): (19, MINUTES)}
    assert_fires(tmp_path, history, fired)


def test_growth(tmp_path: Path) -> None:
    """64 MiB a minute is not more than that; shared buffers may; four minutes are not five."""
    history = History()
    for target in history.both("web1"):
        for unit, each, until in (("a", 64 * MIB + PAGE, 20), ("b", 64 * MIB, 20), ("c", 65 * MIB, 5)):
            grown = rising(0, each, until)
            target.segment(unit, "/dev/shm/torch_#_#", grown, {"python train.py": grown})
    grown = rising(0, 100 * MIB)
    history.target("db1").segment(DATABASE, "shared buffers", grown, {"postgres: checkpointer": grown})
    fired = {alert("SegmentGrows", host="web1", unit="a", segment="/dev/shm/torch_#_#"): (6, 21)}
    assert_fires(tmp_path, history, fired)


def test_unseen(tmp_path: Path) -> None:
    """More than a tenth and more than 16 MiB, for a quarter of an hour."""
    history = History()
    for target in history.both("web1"):
        for unit, size, unseen in (("a", SIZE, 17 * MIB), ("b", SIZE, 16 * MIB), ("c", 10 * SIZE, SIZE)):
            of = {"unit": unit, "segment": "opcache"}
            target.add("shmtrace_segment_allocated_bytes", steps({0: size}), **of, kind="anon")
            target.add("shmtrace_touched_bytes_total", steps({0: size - unseen}), **of, by="other")
            target.add("shmtrace_unattributed_bytes", steps({0: 0, 3: unseen, 30: 0}), **of, part="unseen")
            target.add("shmtrace_unattributed_bytes", steps({0: unseen, 3: 0, 30: unseen}), **of, part="before")
    assert_fires(tmp_path, history, {alert("Unseen", host="web1", unit="a", segment="opcache"): (18, 30)})


def test_lost(tmp_path: Path) -> None:
    """For ten minutes after it; a restart, which counts from zero again, alone loses nothing."""
    history = History()
    for target in history.both("web1"):
        target.add("shmtrace_lost_total", steps({0: 0, 7: 23}), what="pages")
        target.add("shmtrace_lost_total", steps({0: 7, 20: 0, 22: 3}), what="events")
        target.add("shmtrace_lost_total", steps({0: 7, 20: 0}), what="probes")
    pages, events = (alert("Lost", host="web1", what=what) for what in ("pages", "events"))
    assert_fires(tmp_path, history, {pages: (7, 17), events: (22, 32)})


def test_a_page_that_is_out(tmp_path: Path) -> None:
    """Of each of the four, on a host of its own."""
    history = History()
    fired = {}
    for name in ("touched_bytes_total", "unattributed_bytes", "segment_allocated_bytes", "freed_bytes_total"):
        host = name.partition("_")[0]
        for target in history.both(host):
            allocated = steps({0: 23 * PAGE, 5: 7 * PAGE})
            target.segment(FPM, "opcache", allocated, {"other": steps({0: 0, 3: 11 * PAGE})})
            [key] = [key for key in history.series if name in key and target.labels["instance"] in key]
            history.series[key] = [
                (value or 0) + PAGE * (10 <= minute < 20) for minute, value in enumerate(history.series[key])
            ]
        fired[alert("Unbalanced", host=host, unit=FPM, segment="opcache")] = (15, 20)
    assert_fires(tmp_path, history, fired)


def restarted(history: History) -> None:
    """shmtrace ends at 10m and begins anew at 12m: what was touched then is from before. Growth goes on."""
    there = [not 10 <= minute < 12 for minute in range(MINUTES)]
    allocated = [1000 * PAGE + 23 * PAGE * minute if there[minute] else None for minute in range(MINUTES)]
    touched = [23 * PAGE * (minute - 12 * (minute >= 12)) if there[minute] else None for minute in range(MINUTES)]
    for target in history.both("web1", [60 * minute if there[minute] else None for minute in range(MINUTES)]):
        target.segment(FPM, "opcache", allocated, {"/srv/index.php": touched}, size=None)


def test_a_restart_of_shmtrace_alarms_nobody(tmp_path: Path) -> None:
    history = History()
    restarted(history)
    assert_fires(tmp_path, history, {})


def test_what_grew_across_a_restart(tmp_path: Path) -> None:
    """What grew while nobody looked is nobody's."""
    history = History()
    restarted(history)
    grew = {"/srv/index.php": 5 * 23 * PAGE}
    assert_grew(tmp_path, history, {minute: grew for minute in range(5, MINUTES, 5) if minute not in (10, 15)})
    minutes = [minute for minute in range(1, MINUTES) if not 10 <= minute <= 12]
    assert_allocated(tmp_path, history, dict.fromkeys(minutes, 23 * PAGE))


def test_what_grew_is_counted_once(tmp_path: Path) -> None:
    """A growth that the one target shows a minute after the other; a new script; one that has gone;
    one that is counted from zero again."""
    history = History()
    for late, target in enumerate(history.both("web1")):
        touched = {
            "/srv/a.php": steps({0: 23 * PAGE, 5 + late: 30 * PAGE}),
            "/srv/b.php": steps({0: None, 9 + late: 7 * PAGE}),
            "/srv/c.php": steps({0: 11 * PAGE, 15 + late: None}),
            "/srv/d.php": steps({0: 50 * PAGE, 25 + late: 3 * PAGE}),
        }
        allocated = steps({0: 200 * PAGE, 5 + late: 207 * PAGE, 9 + late: 214 * PAGE, 25 + late: 217 * PAGE, 30: PAGE})
        target.segment(FPM, "opcache", allocated, touched)
    grew = {10: {"/srv/a.php": 7 * PAGE, "/srv/b.php": 7 * PAGE}, 30: {"/srv/d.php": 3 * PAGE}}
    assert_grew(tmp_path, history, grew)
    assert_allocated(tmp_path, history, {6: 7 * PAGE, 10: 7 * PAGE, 26: 3 * PAGE})


def test_what_was_there_when_shmtrace_came_is_no_growth(tmp_path: Path) -> None:
    history = History()
    target = history.target("web1", collected=steps_of_time({0: False, 5: True}))
    there = steps({0: None, 5: 23 * PAGE, 8: 30 * PAGE})
    target.segment(FPM, "opcache", there, {"/srv/a.php": there})
    assert_grew(tmp_path, history, {10: {"/srv/a.php": 7 * PAGE}})
    assert_allocated(tmp_path, history, {8: 7 * PAGE})
