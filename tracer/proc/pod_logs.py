"""What Kubernetes calls pods and containers, by the kubelet's log directories: no API server is asked.

BuildPodLogsDirectory() of pkg/kubelet/kuberuntime/helpers.go makes /var/log/pods/NAMESPACE_POD_UID before a pod's first
container. legacyLogSymlink() of legacy.go there links /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log, cut at 255
bytes, to the log in NAMESPACE_POD_UID/CONTAINER/ once a container has started. No name has a "_". The pause container
of a pod has no log.

Only names and links are read, and no file is opened. Whatever does not look exactly as the kubelet makes it is nothing.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Optional

from tracer.cgroup import Names, Place
from tracer.proc import bounded
from tracer.proc.blocking import promptly

MAX_ENTRIES = 1 << 16  # of a directory; the kubelet runs some hundred pods, and looking at so many takes 0.1 s
NAME_BYTES = 255  # ext4MaxFileNameLen of legacy.go
SUFFIX = ".log"
MAX_LINKS = 16  # that are read of a container; the kubelet makes one
LEAST_DIGITS = 12  # of an ID in a link's name that was cut

# Names of RFC 1123: a namespace and a container are a label, a pod is a subdomain. validation.go of apimachinery.
LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
SUBDOMAIN = r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?"
UID = r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}"
DIRECTORY = re.compile(rf"({LABEL})_({SUBDOMAIN})_({UID})")
CONTAINER, LOG = re.compile(LABEL), re.compile(r"[0-9]{1,10}\.log")

By = dict[tuple[Optional[str], Optional[str]], list[Names]]
"""By UID of the pod and ID of the container; None: of the pod itself."""


class PodLogs:
    """The kubelet's log directories."""

    def __init__(self, root: str = "/var/log") -> None:
        self._root = Path(root)
        self.is_crowded = False
        """A directory had more than MAX_ENTRIES: what is beyond was not looked at."""

    def names(self, places: Iterable[Place]) -> dict[Place, Names]:
        """What these places are called, as far as it is known now. Where two names are told, none is.

        Raises NoAnswerError where the file system does not answer.
        """
        return promptly(self._root, self._names, list(places))

    def _names(self, places: list[Place]) -> dict[Place, Names]:
        pods = self._pods()
        containers = self._containers({place.container for place in places if place.container})
        found = {}
        for place in places:
            own = containers.get((place.pod, place.container), [])
            pod_names = {names[:2] for names in [*own, *pods.get((place.pod, None), [])]}
            if len(pod_names) == 1:
                found[place] = Names(*pod_names.pop(), own[0].container if len(own) == 1 else None)
        return found

    def _pods(self) -> By:
        found: By = {}
        for entry in self._entries("pods"):
            match = DIRECTORY.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                namespace, pod, uid = match.groups()
                found.setdefault((uid, None), []).append(Names(namespace, pod, None))
        return found

    def _containers(self, ids: set[str]) -> By:
        """Only of these containers."""
        wanted = {each[:LEAST_DIGITS]: each for each in ids}
        nr_links: Counter[str] = Counter()
        found: By = {}
        for entry in self._entries("containers"):
            container = wanted.get(entry.name.rpartition("-")[2][:LEAST_DIGITS])
            if not container or nr_links[container] == MAX_LINKS or not entry.is_symlink():
                continue
            nr_links[container] += 1
            directory, name, log = ["", "", *_link(entry.path).split("/")][-3:]
            match = DIRECTORY.fullmatch(directory[: NAME_BYTES + 1])
            if not (match and CONTAINER.fullmatch(name) and LOG.fullmatch(log)):
                continue
            namespace, pod, uid = match.groups()
            if entry.name == f"{pod}_{namespace}_{name}-{container}"[: NAME_BYTES - len(SUFFIX)] + SUFFIX:
                found.setdefault((uid, container), []).append(Names(namespace, pod, name))
        return found

    def _entries(self, directory: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / directory) as entries:
                yield from islice(entries, MAX_ENTRIES)
                self.is_crowded |= next(entries, None) is not None
        except OSError as error:
            if not bounded.unreadable(error):
                raise


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - it need not be a path
    except OSError as error:
        if not bounded.unreadable(error):
            raise
        return ""
