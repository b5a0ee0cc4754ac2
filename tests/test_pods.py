"""Names of pods and containers: by what a kubelet makes below /var/log, and by what somebody else may make there."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recorded import shmtrace, with_pods
from tracer import account
from tracer.answer import answer
from tracer.capture.capture import Capture
from tracer.capture.carry import Needed
from tracer.cgroup import Names, place
from tracer.clock import Clock
from tracer.proc import blocking, pod_logs
from tracer.proc.blocking import NoAnswerError
from tracer.proc.pod_logs import PodLogs
from tracer.record import pods
from tracer.record.pods import Pods
from tracer.record.processes import Processes

ID = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
OTHER_ID = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
UID = "a5c1f8d5-1919-434d-add7-4afaafdaef89"
OTHER_UID = "0d3f9d0e-7d52-4a63-9a17-2b6f3b1f6a11"
STATIC = "eb6e2c8d1f0a4b3c9d7e5f6a8b1c2d3e"
"""Of a pod that the kubelet has from a file."""
CGROUP = f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope"
POD = f"/kubepods/burstable/pod{UID}"
CLOCK = Clock(monotonic_ns=500, boot_ns=1_000_000_000_000, wall_ns=1_700_000_000_000_000_000)


class Kubelet:
    """Makes what a kubelet makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "pods").mkdir()
        (root / "containers").mkdir()

    def pod(self, namespace: str, name: str, uid: str = UID) -> Path:
        directory = self.root / "pods" / f"{namespace}_{name}_{uid}"
        directory.mkdir()
        return directory

    def container(self, pod: Path, name: str, container: str = ID, number: int = 0) -> Path:
        log = pod / name / f"{number}.log"
        log.parent.mkdir(exist_ok=True)
        log.touch()
        namespace, pod_name, _ = pod.name.split("_")
        link = self.root / "containers" / (f"{pod_name}_{namespace}_{name}-{container}"[:251] + ".log")
        link.symlink_to(log)
        return link


@pytest.fixture
def kubelet(tmp_path: Path) -> Kubelet:
    root = tmp_path / "log"
    root.mkdir()
    return Kubelet(root)


def told(kubelet: Kubelet, *cgroups: str) -> list[Names | None]:
    places = [place(cgroup) for cgroup in cgroups]
    found = PodLogs(str(kubelet.root)).names(places)
    return [found.get(where) for where in places]


# ---- what a kubelet makes ----


def test_the_names_of_a_container(kubelet: Kubelet) -> None:
    """And of the pod's own cgroup, and of the pause container, which has no log."""
    kubelet.container(kubelet.pod("shop", "web-7d9c8b6f5-x2x7q"), "php-fpm")
    pause = CGROUP.replace(ID, OTHER_ID)
    assert told(kubelet, CGROUP, POD, pause) == [
        Names("shop", "web-7d9c8b6f5-x2x7q", "php-fpm"),
        Names("shop", "web-7d9c8b6f5-x2x7q", None),
        Names("shop", "web-7d9c8b6f5-x2x7q", None),
    ]


def test_two_pods_and_a_container_that_was_started_anew(kubelet: Kubelet) -> None:
    web, job = kubelet.pod("shop", "web"), kubelet.pod("batch", "job.23", OTHER_UID)
    kubelet.container(web, "app")
    kubelet.container(web, "app", "7" * 64, number=1)
    kubelet.container(web, "side-car", "8" * 64)
    kubelet.container(job, "app", OTHER_ID)
    cgroups = [f"{POD}/{number * 64}" for number in "78"]
    assert told(kubelet, f"{POD}/{ID}", *cgroups, f"/kubepods/pod{OTHER_UID}/{OTHER_ID}") == [
        Names("shop", "web", "app"),
        Names("shop", "web", "app"),
        Names("shop", "web", "side-car"),
        Names("batch", "job.23", "app"),
    ]


@pytest.mark.parametrize("cgroup", ["/kubepods/pod{}/{}", "/kubepods-pod{}.slice/crio-{}.scope"])
def test_a_static_pod(cgroup: str, kubelet: Kubelet) -> None:
    kubelet.container(kubelet.pod("kube-system", "etcd-node1", STATIC), "etcd")
    assert told(kubelet, cgroup.format(STATIC, ID)) == [Names("kube-system", "etcd-node1", "etcd")]


def test_a_container_that_has_just_been_made(kubelet: Kubelet) -> None:
    """The directory is there before it starts, the link is made afterwards. The only directory may be another's: the
    pause container has none."""
    (kubelet.pod("shop", "web") / "app").mkdir()
    assert told(kubelet, CGROUP) == [Names("shop", "web", None)]


@pytest.mark.parametrize(("pod", "container", "digits"), [(177, 3, 64), (200, 3, 41), (200, 32, 12), (200, 33, 11)])
def test_a_link_whose_name_was_cut(pod: int, container: int, digits: int, kubelet: Kubelet) -> None:
    """As far as the ID can be told from another."""
    link = kubelet.container(kubelet.pod("shop", "w" * pod), "c" * container)
    assert len(link.name.rpartition("-")[2].removesuffix(".log")) == digits
    assert told(kubelet, CGROUP) == [Names("shop", "w" * pod, "c" * container if digits > 11 else None)]


def test_no_directories(tmp_path: Path) -> None:
    assert PodLogs(str(tmp_path)).names([place(CGROUP)]) == {}


# ---- what somebody else makes ----

STRANGE = [
    "_web_{uid}",
    "shop__{uid}",
    "shop_web_x_{uid}",
    "shop_web_{uid}_",
    "shop_web_{uid}\n",
    "SHOP_web_{uid}",
    "shop_\x1b[31mweb_{uid}",
    "-shop_web_{uid}",
    "shop_web-_{uid}",
    "shop.x_web_{uid}",
    "s" * 64 + "_web_{uid}",
    "shop_web_" + UID.upper(),
    "shop_wéb_{uid}",
    "{uid}",
    "web_{uid}",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_no_kubelet_makes(name: str, kubelet: Kubelet) -> None:
    strange = kubelet.root / "pods" / name.format(uid=UID)
    strange.mkdir()
    (strange / "app").mkdir()
    (strange / "app" / "0.log").touch()
    (kubelet.root / "containers" / f"web_shop_app-{ID}.log").symlink_to(strange / "app" / "0.log")
    assert told(kubelet, CGROUP) == [None]


def test_a_name_in_no_encoding(kubelet: Kubelet) -> None:
    (kubelet.root / "pods" / os.fsdecode(b"shop_\xff_" + UID.encode())).mkdir()
    assert told(kubelet, CGROUP) == [None]


@pytest.mark.parametrize(
    "make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("."), lambda path: path.symlink_to(path)]
)
def test_no_directory(make: Callable[[Path], object], kubelet: Kubelet) -> None:
    make(kubelet.root / "pods" / f"shop_web_{UID}")
    make(kubelet.root / "containers" / f"web_shop_app-{ID}.log")
    assert told(kubelet, CGROUP) == [None]


@pytest.mark.parametrize(
    "target",
    [
        f"/var/log/pods/shop_web_{OTHER_UID}/app/0.log",  # of another pod
        f"/var/log/pods/shop_other_{UID}/app/0.log",
        f"/var/log/pods/shop_web_{UID}/other/0.log",
        f"/var/log/pods/shop_web_{UID}/app/0.log/..",
        f"/var/log/pods/shop_web_{UID}/app/x.log",
        f"/var/log/pods/shop_web_{UID}/app/{'0' * 200}.log",
        "/etc/passwd",
        "x" * 4000,
        "a_" * 2000,
        "/" * 4000,
    ],
)
def test_a_link_that_leads_elsewhere(target: str, kubelet: Kubelet) -> None:
    kubelet.pod("shop", "web")
    (kubelet.root / "containers" / f"web_shop_app-{ID}.log").symlink_to(target)
    assert told(kubelet, CGROUP) == [Names("shop", "web", None)]


def test_two_names_are_none(kubelet: Kubelet) -> None:
    web = kubelet.pod("shop", "web")
    kubelet.container(web, "app")
    kubelet.container(web, "other")
    assert told(kubelet, CGROUP) == [Names("shop", "web", None)]
    kubelet.pod("shop", "web2")
    assert told(kubelet, CGROUP, POD) == [None, None]


def test_very_many(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1000):
        kubelet.pod("shop", f"web-{number}", f"{number:08x}{UID[8:]}")
    kubelet.container(kubelet.pod("shop", "web"), "app")
    logs = PodLogs(str(kubelet.root))
    assert logs.names([place(CGROUP)]) == {place(CGROUP): Names("shop", "web", "app")}
    assert not logs.is_crowded
    monkeypatch.setattr(pod_logs, "MAX_ENTRIES", 999)
    logs.names([place(CGROUP)])
    assert logs.is_crowded


def test_one_that_does_not_answer(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "PATIENCE_S", 0.01)
    monkeypatch.setattr(blocking.promptly, "__kwdefaults__", {"patience_s": 0.01})
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (time.sleep(0.5), scandir(path))[1])
    with pytest.raises(NoAnswerError):
        PodLogs(str(kubelet.root)).names([place(CGROUP)])
    with Capture() as capture:
        found = Pods(capture, PodLogs(str(kubelet.root)))
        found.see(CGROUP)
        found.write()
        assert found.warnings == ["names of pods are not known: /var/log did not answer"]
    time.sleep(0.6)  # until that thread has ended


# ---- what a trace writes ----


class Recorded:
    def __init__(self, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(pods.time, "monotonic", lambda: self.now_s)
        self.capture = Capture()
        self.lives = Processes(self.capture, CLOCK)
        self.pods = self.lives.pods = Pods(self.capture, PodLogs(str(kubelet.root)))

    def rows(self) -> list[tuple[object, ...]]:
        return [tuple(row) for row in self.capture.rows("SELECT * FROM cgroup")]


@pytest.fixture
def recorded(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(kubelet, monkeypatch)


def test_a_name_is_written_as_soon_as_it_is_there(kubelet: Kubelet, recorded: Recorded) -> None:
    recorded.lives.begin(7, 7, None, "a", "a", -1, cgroup=CGROUP)
    recorded.lives.begin(8, 8, None, "b", "b", -1, cgroup="/system.slice/x.service")
    recorded.pods.write()
    assert recorded.rows() == []
    web = kubelet.pod("shop", "web")
    recorded.pods.write()
    assert recorded.rows() == []  # it has just looked
    recorded.now_s += 1
    recorded.pods.write()
    assert recorded.rows() == [(CGROUP, "shop", "web", None)]
    link = kubelet.container(web, "app")
    recorded.pods.write(at_once=True)
    assert recorded.rows() == [(CGROUP, "shop", "web", "app")]
    link.unlink()
    recorded.now_s += 100
    recorded.pods.write()
    assert recorded.rows() == [(CGROUP, "shop", "web", "app")]


def test_what_has_no_name_is_looked_for_for_a_minute(
    kubelet: Kubelet, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    names = PodLogs.names
    monkeypatch.setattr(PodLogs, "names", lambda logs, places: looks.append(recorded.now_s) or names(logs, places))
    recorded.lives.begin(7, 7, None, "a", "a", -1, cgroup=CGROUP)
    for _ in range(400):
        recorded.now_s += 0.5
        recorded.pods.write()
    assert len(looks) == 61
    kubelet.pod("shop", "web")
    recorded.pods.write(at_once=True)
    assert recorded.rows() == []


def test_one_that_moves_into_a_pod(kubelet: Kubelet, recorded: Recorded) -> None:
    kubelet.container(kubelet.pod("shop", "web"), "app")
    process = recorded.lives.begin(7, 7, None, "a", "a", -1, cgroup="/")
    recorded.lives.move(process, CGROUP)
    recorded.pods.write()
    assert recorded.rows() == [(CGROUP, "shop", "web", "app")]


def test_a_part_takes_over_those_that_it_needs(kubelet: Kubelet, recorded: Recorded) -> None:
    """A pod that ends and comes again, with its name, is written again."""
    kubelet.container(kubelet.pod("shop", "web"), "app")
    kubelet.container(kubelet.pod("shop", "job", OTHER_UID), "app", OTHER_ID)
    job = f"/kubepods/pod{OTHER_UID}/{OTHER_ID}"
    stays = recorded.lives.begin(7, 7, None, "a", "a", -1, cgroup=CGROUP)
    goes = recorded.lives.begin(8, 8, None, "b", "b", -1, cgroup=job)
    recorded.lives.end(goes, 1)
    recorded.pods.write()
    needed = Needed(set(), {stays.row}, set(), set())
    recorded.capture.choose(needed, 2)
    recorded.capture.drop_others(2)
    recorded.lives.prune(needed.processes)
    assert recorded.rows() == [(CGROUP, "shop", "web", "app")]
    recorded.lives.begin(9, 9, None, "b", "b", -1, cgroup=job)
    recorded.pods.write(at_once=True)
    assert sorted(recorded.rows()) == sorted([(CGROUP, "shop", "web", "app"), (job, "shop", "job", "app")])


# ---- what is shown ----


@pytest.fixture
def capture_path(tmp_path: Path) -> Path:
    return with_pods(tmp_path / "x.capture")


def test_units(capture_path: Path) -> None:
    with Capture.open(capture_path) as capture:
        found = account.read(capture)
        assert [process.unit for process in account.read_processes(capture).values()] == [
            "php8.2-fpm.service",
            "shop/web-7d9c8b6f5-x2x7q/php-fpm",
            "batch/report-29384760-9xk2p/4f797c539e6c",
        ]
    assert found.ooms[0].limit_pod == "shop/web-7d9c8b6f5-x2x7q"
    assert "in shop/web-7d9c8b6f5-x2x7q, limit 512 KiB" in " ".join(answer(found).text.split())


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("container", ["^php-fpm +shop/web-7d9c8b6f5-x2x7q", "^4f797c539e6c +batch/report…9384760-9xk2p"]),
        ("unit", ["^shop/web-7d9c8b6f5-x2x7q/php-fpm  ", "^batch/report-293…k2p/4f797c539e6c  "]),
        ("pod", ["shop/web-7d9c8b6f5-x2x7q", "batch/report-29384760-9xk2p"]),
        ("namespace", ["shop", "batch"]),
        ("container,region", ["shop/web-7d9c8b6f5-x2x7q/php-fpm", "p/4f797c539e6c +opcache"]),
    ],
)
def test_a_table(by: str, rows: list[str], capture_path: Path) -> None:
    done = shmtrace("report", capture_path, "--by", by)
    assert done.exit_code == 0, done.output
    lines = done.stdout.split("\n")
    assert max(map(len, lines)) <= 80
    for row in rows:
        assert len([line for line in lines if re.search(row, line)]) == 1, done.stdout


def test_a_container_that_was_started_anew_is_one(capture_path: Path) -> None:
    """By its name, with the IDs of both."""
    with sqlite3.connect(capture_path) as database:
        web = f"/kubepods/burstable/pod{UID}"
        database.execute("UPDATE process SET cgroup = ? WHERE id = 3", (f"{web}/{'7' * 64}",))
        database.execute(
            "INSERT INTO cgroup VALUES (?, 'shop', 'web-7d9c8b6f5-x2x7q', 'php-fpm')", (f"{web}/{'7' * 64}",)
        )
    database.close()
    found = json.loads(shmtrace("report", capture_path, "--by", "container", "--json").stdout)["rows"]
    (row,) = [row for row in found if row["part"] == "touched"]
    assert (row["container"], row["pod"], row["processes"]) == (f"{'7' * 64}, {ID}", UID, 2)
    assert (row["namespace"], row["pod_name"], row["container_name"]) == ("shop", "web-7d9c8b6f5-x2x7q", "php-fpm")
    assert row["allocated_bytes"] == (23 + 7 + 5) * 4096


def test_names_that_strangers_chose_in_a_capture(capture_path: Path) -> None:
    """They are shown, and nothing more."""
    with sqlite3.connect(capture_path) as database:
        database.execute("UPDATE cgroup SET pod = ?, container = ?", ("\x1b]0;pwned\x07\n", "=1+1<script>"))
    database.close()
    for by in ("container", "unit", "pod", "container,what"):
        text = shmtrace("report", capture_path, "--by", by).stdout
        assert "\x1b" not in text
        assert max(map(len, text.split("\n"))) <= 80
    assert "\x1b" not in shmtrace("report", capture_path).stdout
