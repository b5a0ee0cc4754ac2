"""Find the systemd unit, container and Kubernetes pod of a process from the path of its cgroup. Pure.

The path is read from the root down, and the innermost name wins: for a container in a container the inner one, for a
service of a container's own systemd that service. What is not recognized is None; nothing is guessed.

The path has a pod's UID and a container's ID. What Kubernetes calls them is not in it: the trace asks the kubelet's
log directories (proc/pod_logs.py), and the capture has the answers.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple


class Names(NamedTuple):
    """What Kubernetes calls a pod, and a container of it."""

    namespace: str
    pod: str
    container: str | None
    """None: it is unknown, or this is the pod's own cgroup"""


class Place(NamedTuple):
    """The unit, container and pod of a process. None: it is in none, or the name was not recognized."""

    unit: str | None
    """as systemctl takes it, with its escapes; a slice only if the process is in no other unit"""
    container: str | None
    """64 hexadecimal digits for docker, containerd, cri-o and podman; the name for lxc and systemd-nspawn"""
    pod: str | None
    """the UID that Kubernetes gave it"""
    names: Names | None = None
    """None: it is in no pod, or the names are unknown"""

    @property
    def pod_called(self) -> str | None:
        """The pod as namespace/pod, or else its UID."""
        return f"{self.names.namespace}/{self.names.pod}" if self.names else self.pod

    @property
    def container_called(self) -> str | None:
        """The container's own name, or else the first digits of its ID."""
        return (self.names and self.names.container) or short(self.container)

    @property
    def in_pod(self) -> str | None:
        """namespace/pod/container; None: it is in no pod, or the names are unknown."""
        return "/".join(filter(None, (self.pod_called, self.container_called))) if self.names else None


NOWHERE = Place(None, None, None)
UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)")
SLICE = re.compile(r"[A-Za-z0-9:_.\\@-]+\.slice")
# docker-ID.scope, libpod-payload-ID …, or the ID alone without systemd. A monitor has crio-conmon-ID.scope: no match.
OCI = re.compile(
    r"(?:(?:docker|cri-containerd|containerd|nerdctl|crio|libpod|libpod-payload)-)?([0-9a-f]{64})(?:\.scope)?"
)
# "slice:prefix:name" is meant for systemd. runc without its systemd driver uses it as the cgroup's name.
UNRESOLVED = re.compile(r"([^:]*):(?:docker|cri-containerd|crio|libpod|nerdctl):([0-9a-f]{64})")
# podUID, or kubepods-burstable-podUID.slice. In a slice's name "-" separates levels, so the UID has "_" instead. That
# of a pod from a file is an MD5 sum: applyDefaults() in pkg/kubelet/config/common.go.
POD = re.compile(r"(?:.*kubepods-(?:.*-)?)?pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?:\.slice)?")
NAMED = re.compile(
    r"lxc\.payload\.(?P<lxc>.+)"
    r"|systemd-nspawn@(?P<nspawn>.+)\.service"
    r"|machine-(?!qemu\\x2d)(?P<machine>.+)\.scope"  # machine-qemu is a virtual machine, no container
)
LXC_PARENTS = {"lxc", "lxc.payload"}  # of LXC before 4.0, or with a configured cgroup.pattern
SHORT_DIGITS = 12
MONITORS = {"conmon", "supervisor"}  # processes of the runtime that live in the container's cgroup


@functools.lru_cache(maxsize=4096)
def place(cgroup: str | None) -> Place:
    """The unit, container and pod of a path from /proc/PID/cgroup, of cgroup v1 or v2. None: no cgroup is known."""
    unit = within = pod = None
    containers: list[str | None] = [None]
    before, before_is = "", None
    for written in (cgroup or "").removesuffix(" (deleted)").split("/"):
        name = written.removeprefix("_")  # systemd adds it to names that clash with the kernel's files
        container, parent = _container(name, before)
        if container:
            containers.append(container)
        elif name in MONITORS and before_is:
            containers.pop()
        if UNIT.fullmatch(name):
            unit = name
        elif SLICE.fullmatch(name):
            within = name
        in_pod = POD.fullmatch(parent or name)
        if in_pod:
            pod = in_pod[1].replace("_", "-")
        before, before_is = name, container
    return Place(unit or within, containers[-1], pod)


def short(container: str | None) -> str | None:
    """The first 12 digits of a container's ID, as docker and crictl print it. A name is left as it is."""
    return container[:SHORT_DIGITS] if container and OCI.fullmatch(container) else container


def _container(name: str, before: str) -> tuple[str | None, str | None]:
    """(container, slice that an UNRESOLVED name contains) of one part of a path. before: the part above it."""
    oci, unresolved, named = OCI.fullmatch(name), UNRESOLVED.fullmatch(name), NAMED.fullmatch(name)
    if unresolved:
        return unresolved[2], unresolved[1]
    if named:
        return _unescape(next(filter(None, named.groups()))), None
    return oci[1] if oci else name if before in LXC_PARENTS and name else None, None


def _unescape(name: str) -> str:
    r"""Undo the escapes of systemd.unit(5), as in my\x2dmachine."""
    escaped = re.sub(
        rb"\\x([0-9a-f]{2})", lambda code: bytes([int(code[1], 16)]), name.encode(errors="surrogateescape")
    )
    return escaped.decode(errors="backslashreplace")
