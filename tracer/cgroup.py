"""Where a process belongs, by the path of its cgroup: a systemd unit, a container, a Kubernetes pod. Pure.

The path is read from the root down, and the innermost counts: of a container within a container the inner one, of a
service that a container's own systemd started that service. What is not recognized is None, and nothing is guessed.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple


class Place(NamedTuple):
    unit: str | None
    """as systemctl takes it, escapes and all; a slice only of who is in no other unit"""
    container: str | None
    """64 hexadecimal digits, of docker, containerd, cri-o and podman; the name, of lxc and systemd-nspawn"""
    pod: str | None
    """the uid that Kubernetes gave it"""


UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)")
SLICE = re.compile(r"[A-Za-z0-9:_.\\@-]+\.slice")
# docker-ID.scope, libpod-payload-ID …, or the ID alone where no systemd is asked; a monitor has crio-conmon-ID.scope
OCI = re.compile(
    r"(?:(?:docker|cri-containerd|containerd|nerdctl|crio|libpod|libpod-payload)-)?([0-9a-f]{64})(?:\.scope)?"
)
# "slice:prefix:name" is meant for systemd, and what runc calls the cgroup where it was not told to ask systemd
UNRESOLVED = re.compile(r"([^:]*):(?:docker|cri-containerd|crio|libpod|nerdctl):([0-9a-f]{64})")
# podUID, or kubepods-burstable-podUID.slice, where "-" goes down a level of slices and the UID has "_" for it
POD = re.compile(r"(?:.*kubepods-(?:.*-)?)?pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?:\.slice)?")
NAMED = re.compile(
    r"lxc\.payload\.(?P<lxc>.+)"
    r"|systemd-nspawn@(?P<nspawn>.+)\.service"
    r"|machine-(?!qemu\\x2d)(?P<machine>.+)\.scope"  # qemu's is a virtual machine, and its guest's memory is its own
)
LXC_PARENTS = {"lxc", "lxc.payload"}  # before 4.0, and with a cgroup.pattern of one's own
SHORT_DIGITS = 12
MONITORS = {"conmon", "supervisor"}  # in a container's cgroup, and not of the container


@functools.lru_cache(maxsize=4096)
def place(cgroup: str | None) -> Place:
    """Of a path as /proc/PID/cgroup has it, of either version."""
    unit = within = pod = None
    containers: list[str | None] = [None]
    before, before_is = "", None
    for written in (cgroup or "").removesuffix(" (deleted)").split("/"):
        name = written.removeprefix("_")  # systemd's, where the kernel could take it for a file of its own
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
    """As docker and crictl print it."""
    return container[:SHORT_DIGITS] if container and OCI.fullmatch(container) else container


def _container(name: str, before: str) -> tuple[str | None, str | None]:
    """Which one a part of a path is of, and the slice it was meant to be in. before: the part above."""
    oci, unresolved, named = OCI.fullmatch(name), UNRESOLVED.fullmatch(name), NAMED.fullmatch(name)
    if unresolved:
        return unresolved[2], unresolved[1]
    if named:
        return _unescape(next(filter(None, named.groups()))), None
    return oci[1] if oci else name if before in LXC_PARENTS and name else None, None


def _unescape(name: str) -> str:
    r"""As systemd.unit(5) escapes: my\x2dmachine."""
    escaped = re.sub(
        rb"\\x([0-9a-f]{2})", lambda code: bytes([int(code[1], 16)]), name.encode(errors="surrogateescape")
    )
    return escaped.decode(errors="backslashreplace")
