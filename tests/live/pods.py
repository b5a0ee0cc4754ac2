"""Pods without a Kubernetes: namespaces, cgroups, and the directories that a kubelet makes of their logs."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.live.cgroups import Group, groups
from tests.live.reports import PYTHON
from tests.live.shmem import PAGE_BYTES

IN_ITS_OWN = ["unshare", "--pid", "--fork", "--mount-proc", "--net", "--uts", "--ipc"]
WITH_LOGS = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /var/log && exec "$@"']
"""Before a directory and a command, which has the directory at /var/log."""
OWN_PAGES = 53
WORK = f"""
import mmap, os, sys
group, shared, first, end = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with open(group, "w") as file:
    file.write("0")
own = mmap.mmap(-1, {OWN_PAGES} * {PAGE_BYTES})
with open(shared, "r+b") as file:
    both = mmap.mmap(file.fileno(), 0)
print(flush=True)
sys.stdin.readline()
for page in range(end - first):
    own[page * {PAGE_BYTES}] = both[(first + page) * {PAGE_BYTES}] = 1
print(flush=True)
sys.stdin.readline()
"""


class Pod(NamedTuple):
    """A pod of one container, whose process touches pages of a region of its own, and as many of a shared file."""

    namespace: str
    name: str
    container: str
    uid: str
    id: str
    group: Group
    logs: Path
    process: subprocess.Popen[bytes]

    @property
    def called(self) -> str:
        return f"{self.namespace}/{self.name}/{self.container}"

    @property
    def directory(self) -> Path:
        return self.logs / "pods" / f"{self.namespace}_{self.name}_{self.uid}"

    @property
    def link(self) -> Path:
        return self.logs / "containers" / f"{self.name}_{self.namespace}_{self.container}-{self.id}.log"

    def log(self) -> None:
        """What the kubelet does when the container has started."""
        log = self.directory / self.container / "0.log"
        log.parent.mkdir(parents=True)
        log.touch()
        self.link.parent.mkdir(exist_ok=True)
        self.link.symlink_to(Path("/var/log", log.relative_to(self.logs)))

    def forget(self) -> None:
        """What it does when the pod is deleted."""
        shutil.rmtree(self.directory)
        self.link.unlink()

    def go(self) -> None:
        """To the next step."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


@contextmanager
def pods(logs: Path, shared: Path, *names: Sequence[str]) -> Iterator[list[Pod]]:
    """Running ones; names: namespace, pod and container of each. The first touches 23 pages, the second the next 7."""
    uids = [
        f"{secrets.token_hex(4)}-1919-434d-add7-{secrets.token_hex(6)}",
        secrets.token_hex(16),
    ]  # and a static pod's
    ids = [secrets.token_hex(32) for _ in names]
    inner = [(f"{QOS}/pod{uid}", f"{QOS}/pod{uid}/{container}") for uid, container in zip(uids, ids)]
    with groups(*QOS_ABOVE, QOS, *(path for paths in inner for path in paths)) as made, ExitStack() as stack:
        found = []
        for place, (name, uid, container) in enumerate(zip(names, uids, ids)):
            group = made[len(QOS_ABOVE) + 1 + 2 * place + 1]
            first, end = ((0, 23), (23, 30))[place]
            words = [group.directory / "cgroup.procs", shared, first, end]
            process = subprocess.Popen(
                [*IN_ITS_OWN, sys.executable, "-c", WORK, *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.communicate)
            assert process.stdout
            assert process.stdout.readline() == b"\n"
            found.append(Pod(*name, uid, container, group, logs, process))
        yield found


QOS_ABOVE, QOS = (f"kubepods{os.getpid()}",), f"kubepods{os.getpid()}/burstable"


def with_logs(logs: Path) -> list[str]:
    """A shmtrace that has these at /var/log."""
    return [*WITH_LOGS, str(logs), *PYTHON, "-m", "tracer"]
