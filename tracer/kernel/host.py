"""What the host allows: tracefs, capabilities, lockdown, PID and user namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import ShmtraceError

TRACEFS = Path("/sys/kernel/tracing")

FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432  # system call numbers, the same on all architectures

FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1

FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 1

# PROC_…_INIT_INO of include/linux/proc_ns.h
HOST_CGROUP_NAMESPACE, HOST_PID_NAMESPACE, HOST_USER_NAMESPACE = 0xEFFFFFFB, 0xEFFFFFFC, 0xEFFFFFFD

_libc = ctypes.CDLL(None, use_errno=True)


def preempts(version: str | None = None) -> bool:
    """Whether a task can be preempted inside an fentry program, by the preemption model now in force.

    version: as `uname -v` prints it. Since v7.0 all models allow it: Linux kernel commit 7dadeaa6e851 ("sched: Further
    restrict the preemption modes").
    """
    version = os.uname().version if version is None else version
    if "PREEMPT_DYNAMIC" not in version:
        return "PREEMPT" in version
    try:
        debugfs = _detached("debugfs")
    except OSError:
        return True  # unknown: assume the model that needs more care
    try:
        with open(os.open("sched/preempt", os.O_RDONLY, dir_fd=debugfs)) as file:
            return _model(file.read()) not in ("none", "voluntary")
    except OSError:  # a locked-down kernel refuses
        return True
    finally:
        os.close(debugfs)


def _model(text: str) -> str:
    """The current model, which is in parentheses: none (voluntary) full"""
    return text.partition("(")[2].partition(")")[0]


def mounted_tracefs() -> Path | None:
    """Where tracefs is mounted and accessible to this process."""
    mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape")
    places = (Path(place) for _, place, kind, *_ in map(str.split, mounts.splitlines()) if kind == "tracefs")
    return next((place for place in places if os.access(place / "events", os.X_OK)), None)


@contextlib.contextmanager
def tracefs() -> Iterator[int]:
    """Yield a descriptor of tracefs' root directory, to open files relative to.

    If tracefs is not mounted (containers, small systems), it is mounted detached: visible nowhere, and gone when the
    descriptor is closed.

    Raises ShmtraceError where neither works.
    """
    try:
        place = mounted_tracefs()
        directory = os.open(place, os.O_PATH | os.O_DIRECTORY) if place else _detached("tracefs")
    except OSError as error:
        raise ShmtraceError(
            f"tracefs is not mounted, and cannot be ({error.strerror})", f"mount -t tracefs tracefs {TRACEFS}"
        ) from None
    try:
        yield directory
    finally:
        os.close(directory)


def _detached(filesystem: str) -> int:
    """Mount a file system detached (v5.2) and return a descriptor of its root. Raises OSError."""

    def call(number: int, *arguments: object) -> int:
        result: int = _libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    context = call(FSOPEN, filesystem.encode(), FSOPEN_CLOEXEC)
    try:
        call(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return call(FSMOUNT, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)


def tracepoint_id(directory: int, point: str) -> int:
    """The id of a tracepoint given as category:event. Raises OSError where it does not exist."""
    with open(os.open(f"events/{point.replace(':', '/')}/id", os.O_RDONLY, dir_fd=directory)) as file:
        return int(file.read())


def boot_id() -> str:
    """Another one with each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def release() -> str:
    """The kernel release, as of uname -r."""
    return os.uname().release


def lockdown(path: Path = Path("/sys/kernel/security/lockdown")) -> str | None:
    """none, integrity or confidentiality; None where securityfs does not say."""
    try:
        text = path.read_text()
    except OSError:
        return None
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else None


# Bits of CapEff (include/uapi/linux/capability.h). CAP_SYS_ADMIN includes the finer ones.
CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE = 19, 21, 38, 39, 40


def missing_capabilities(bpf: bool, status: Path = Path("/proc/self/status")) -> list[str]:
    """Names of the capabilities that this process lacks to read map_files of others and, if `bpf`, to trace."""
    lines = status.read_text().splitlines()
    effective = int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16)

    def have(bit: int) -> bool:
        return bool(effective >> bit & 1)

    wanted = {
        "CAP_SYS_PTRACE": have(CAP_SYS_PTRACE),
        "CAP_CHECKPOINT_RESTORE": have(CAP_CHECKPOINT_RESTORE) or have(CAP_SYS_ADMIN),
    }
    if bpf:
        wanted["CAP_BPF"] = have(CAP_BPF) or have(CAP_SYS_ADMIN)
        wanted["CAP_PERFMON"] = have(CAP_PERFMON) or have(CAP_SYS_ADMIN)
    return [name for name, there in wanted.items() if not there]


def possible_cpus() -> int:
    """The number of CPU ids that the kernel may use."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().split("-")[-1].split(",")[-1]) + 1


def need_proc(root: Path = Path("/proc")) -> None:
    """Raises ShmtraceError where /proc is unusable.

    It may be missing, show processes only (subset=pid), or be of another PID namespace.
    """
    try:
        for name in ("self/status", "meminfo"):
            (root / name).read_bytes()
    except OSError as error:
        what = f"{error.filename} cannot be read ({error.strerror})"
        raise ShmtraceError(what, f"mount -t proc proc {root}") from None
    if (root / "self").readlink().name != str(os.getpid()):
        raise ShmtraceError(f"{root} is of another PID namespace than this process", f"mount -t proc proc {root}")


def sees_host_pids(namespace: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether this process sees the host's PIDs, which are those that BPF reports."""
    return namespace.stat().st_ino == HOST_PID_NAMESPACE


def sees_host_users(namespace: Path = Path("/proc/self/ns/user")) -> bool:
    """Whether this process is in the host's user namespace: capabilities of another one do not open map_files."""
    return namespace.stat().st_ino == HOST_USER_NAMESPACE


def sees_host_cgroups(namespace: Path = Path("/proc/self/ns/cgroup")) -> bool:
    """Whether /proc/PID/cgroup has the host's paths here; else they count from this process's own cgroup, by "/.."."""
    return namespace.stat().st_ino == HOST_CGROUP_NAMESPACE


def need_host_users() -> None:
    """Raises ShmtraceError where root is not the host's root."""
    if not sees_host_users():
        raise ShmtraceError(
            "this user namespace is not the host's: its root may not look at shared memory",
            "run it as the host's root, or in a container that is not rootless and has no users of its own",
        )


def need_host_pids() -> None:
    """Raises ShmtraceError where the PIDs that BPF reports are not those in /proc."""
    if not sees_host_pids():
        raise ShmtraceError(
            "this PID namespace is not the host's: BPF tells processes by the host's PIDs, and /proc by others",
            "docker run --pid=host …, or run it on the host; `shmtrace snapshot` works here, for what is in here",
        )
