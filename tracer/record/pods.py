"""Writes what Kubernetes calls the pods and containers of the trace: a pod's directory goes when the pod does."""

from __future__ import annotations

import time
from collections.abc import Collection

from tracer.capture.capture import Capture
from tracer.cgroup import place
from tracer.proc.blocking import NoAnswerError
from tracer.proc.pod_logs import MAX_ENTRIES, PodLogs

PAUSE_S, IDLE = 1.0, 50  # between two looks: at least so long, and so many times as long as the last one took
PATIENCE_S = 60.0  # a cgroup whose names are not there by then has none: the kubelet links a log within a second or two


class Pods:
    """The cgroups of pods that processes of the trace are in, and their names."""

    def __init__(self, capture: Capture, logs: PodLogs | None = None) -> None:
        self._capture = capture
        self._logs = logs or PodLogs()
        self._seen: set[str] = set()
        self._nameless: dict[str, float] = {}  # cgroups whose names are looked for, and until when (time.monotonic())
        self._look_at_s = 0.0
        self._is_silent = False

    def see(self, cgroup: str | None) -> None:
        """A process, or a limit, is in this cgroup."""
        if cgroup and cgroup not in self._seen:
            self._seen.add(cgroup)
            if place(cgroup).pod:
                self._nameless[cgroup] = time.monotonic() + PATIENCE_S

    def write(self, at_once: bool = False) -> None:
        """Look for names that are not known yet, and write those that are found.

        at_once: even if that was done a moment ago.
        """
        began_s = time.monotonic()
        if not self._nameless or (began_s < self._look_at_s and not at_once):
            return
        places = {cgroup: place(cgroup) for cgroup in self._nameless}
        try:
            found = self._logs.names(places.values())
            self._is_silent = False
        except NoAnswerError:
            found = {}
            self._is_silent = True
        now_s = time.monotonic()
        self._look_at_s = now_s + max(PAUSE_S, IDLE * (now_s - began_s))
        for cgroup, where in places.items():
            names = found.get(where)
            if names:
                self._capture.insert_all("cgroup", "path, namespace, pod, container", [(cgroup, *names)])
            if (names and (names.container or not where.container)) or now_s > self._nameless[cgroup]:
                del self._nameless[cgroup]

    def prune(self, cgroups: Collection[str | None]) -> None:
        """Forget those that the capture does not have any more. cgroups: those that it has."""
        self._seen.intersection_update(cgroups)
        for cgroup in self._nameless.keys() - self._seen:
            del self._nameless[cgroup]

    @property
    def warnings(self) -> list[str]:
        """What could not be read."""
        return [
            *(["names of pods are not known: /var/log did not answer"] if self._is_silent else []),
            *(
                [f"not all names of pods are known: /var/log has more than {MAX_ENTRIES} entries"]
                if self._logs.is_crowded
                else []
            ),
        ]
