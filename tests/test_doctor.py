"""The doctor: each check on hosts that are made up, and what they come to."""

from __future__ import annotations

import errno
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from tracer import doctor, prepare
from tracer.doctor import Check
from tracer.errors import ShmtraceError
from tracer.formatting import width
from tracer.kernel import host, tiers
from tracer.kernel.cache import Cache
from tracer.kernel.fields import KernelLayout
from tracer.kernel.tiers import Tier

ALL_WELL = [
    Check("privileges", True, "all"),
    Check(tiers.FAULTS.title, True, "works"),
    Check("map_files", True, "read"),
]


class Refused:
    """In the place of Probes."""

    def __init__(self, *_: object) -> None:
        raise ShmtraceError("BPF refused: bpf: Failed to load", "`shmtrace doctor` says more")


def test_what_is_missing_is_named_with_what_gives_it() -> None:
    missing = ["CAP_BPF", "CAP_PERFMON"]
    assert doctor.privileges([], root=True).ok
    assert doctor.privileges(missing, root=False)[1:] == (False, "lacks CAP_BPF, CAP_PERFMON", "sudo shmtrace doctor")
    assert doctor.privileges(missing, root=True).remedy == "docker run --cap-add=BPF --cap-add=PERFMON …"


def test_a_container_without_the_hosts_pids_cannot_trace() -> None:
    assert doctor.pid_namespace(host=True).ok
    assert doctor.pid_namespace(host=False).ok is False
    assert "--pid=host" in doctor.pid_namespace(host=False).remedy


def test_a_container_with_cgroups_of_its_own_can_trace(tmp_path: Path) -> None:
    assert doctor.cgroup_namespace(host=True).ok
    check = doctor.cgroup_namespace(host=False)
    assert check.ok is None
    assert doctor.traces([*ALL_WELL, check])
    assert not host.sees_host_cgroups(tmp_path)


def test_the_root_of_a_container_with_users_of_its_own_sees_nothing(tmp_path: Path) -> None:
    assert doctor.user_namespace(host=True).ok
    check = doctor.user_namespace(host=False)
    assert check.ok is False
    assert not doctor.reads([*ALL_WELL, check])
    assert not host.sees_host_users(tmp_path)


def test_what_a_check_reads_may_be_absent(tmp_path: Path) -> None:
    check = doctor.tell("huge pages", None, lambda: Check("huge pages", True, (tmp_path / "absent").read_text()))
    assert check == Check("huge pages", None, f"cannot be checked ({tmp_path}/absent: No such file or directory)")


def test_the_hosts_pid_namespace_is_known_by_its_number(tmp_path: Path) -> None:
    assert not host.sees_host_pids(tmp_path)


def test_bcc_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    check = doctor.bcc()
    assert not check.ok
    assert sys.executable in check.found
    assert "bcc" in check.remedy or "--system-site-packages" in check.remedy


def test_bcc_of_pypi_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = ModuleType("bcc")
    stranger.__file__ = "/venv/bcc/__init__.py"
    monkeypatch.setitem(sys.modules, "bcc", stranger)
    check = doctor.bcc()
    assert not check.ok
    assert check.found == "/venv/bcc is PyPI's bcc, an unrelated project"
    assert check.remedy == f"{sys.executable} -m pip uninstall bcc"


def test_what_is_compiled_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can compile the rest is told how, whoever cannot is told so; and that something was not believed."""
    variants = prepare.variants(KernelLayout({}, {}), tiers.FAULTS, fexit=False)
    monkeypatch.setattr(prepare, "of_kernel", lambda _: variants)
    cache = Cache(tmp_path / "cache")
    for variant in variants[:7]:
        cache.write(variant.wanted.key(), b"bytes")
    check = doctor.compiled(cache, can_compile=True)
    assert (check.ok, check.remedy) == (None, "shmtrace prepare")
    assert check.found.startswith(f"7 of 10 variants for this kernel, in {tmp_path}/cache")
    assert "need bcc" in doctor.compiled(cache, can_compile=False).found
    for variant in variants[7:]:
        cache.write(variant.wanted.key(), b"bytes")
    assert doctor.compiled(cache, can_compile=False).ok
    (cache.directory / variants[3].wanted.key()).chmod(0o666)
    check = doctor.compiled(cache, can_compile=True)
    assert not check.ok
    assert "other users could have written it" in check.found


@pytest.mark.parametrize(
    ("mode", "ok"), [(None, True), ("none", True), ("integrity", True), ("confidentiality", False)]
)
def test_lockdown(mode: str | None, ok: bool) -> None:
    assert doctor.lockdown(mode).ok is ok


def test_without_tracefs_its_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The better tiers work without."""

    def refuse(_filesystem: str) -> int:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(host, "mounted_tracefs", lambda: None)
    monkeypatch.setattr(host, "_detached", refuse)
    check = doctor.tracefs()
    assert check.ok is None
    assert "(not permitted)" in check.found
    assert check.remedy == "mount -t tracefs tracefs /sys/kernel/tracing"


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """By what the tiers hang that the kernel refuses; add to them."""
    refused: set[str] = set()

    class Some:
        """In the place of Probes."""

        missing: ClassVar = ["who made a memfd", "who made a memfd"]
        attached: ClassVar = ["this", "that"]

        def __init__(self, tier: Tier, *_: object) -> None:
            if tier.by in refused:
                Refused()

        def __enter__(self) -> Some:
            return self

        def __exit__(self, *_: object) -> None: ...

        def attach(self) -> None: ...

    monkeypatch.setattr("tracer.kernel.probes.load", Some)
    return refused


def test_each_tier_is_tried(refusing: set[str]) -> None:
    """One that works is enough; where none does, all are missing."""
    refusing.add("kprobe")
    kprobe, fentry, faults = doctor.tried(tiers.TIERS, ALL_WELL)
    assert kprobe == Check(tiers.KPROBE.title, None, "BPF refused: bpf: Failed to load")
    assert fentry.ok
    assert "blind to: who made a memfd; " in fentry.found
    assert "this, that" in fentry.found
    assert faults.ok
    assert doctor.best([kprobe, fentry, faults]) is tiers.FENTRY
    refusing |= {"fentry", "tracepoint"}
    checks = doctor.tried(tiers.TIERS, ALL_WELL)
    assert [check.ok for check in checks] == [False, False, False]
    assert doctor.best(checks) is tiers.PROC


def test_tiers_are_not_tried_for_nothing() -> None:
    checks = doctor.tried(tiers.TIERS, [Check("bcc", False, "not there"), Check("lockdown", True, "none")])
    assert {check[1:3] for check in checks} == {(None, "not tried, because it needs bcc")}


def settings(folder: Path, **values: str) -> Path:
    """A copy of /sys/kernel/mm/transparent_hugepage; a size is written as hugepages_64kB."""
    for name, value in values.items():
        path = folder / ("shmem_enabled" if name == "everywhere" else f"{name.replace('_', '-')}/shmem_enabled")
        path.parent.mkdir(exist_ok=True)
        words = ["always", "inherit", "within_size", "advise", "never", "deny", "force"]
        path.write_text(" ".join(f"[{word}]" if word == value else word for word in words))
    return folder


MOUNTS = "tmpfs /dev/shm tmpfs rw,relatime 0 0\n"
HUGE_MOUNTS = "tmpfs /dev/shm tmpfs rw,relatime,huge=within_size 0 0\n"


def test_no_huge_pages(tmp_path: Path) -> None:
    folder = settings(tmp_path, everywhere="never", hugepages_2048kB="inherit", hugepages_64kB="never")
    assert doctor.huge_pages(folder, MOUNTS, exact=False).ok
    assert doctor.huge_pages(tmp_path / "none", MOUNTS, exact=False).ok  # a kernel without any


@pytest.mark.parametrize("value", ["always", "within_size", "advise", "force"])
def test_huge_pages_everywhere(value: str, tmp_path: Path) -> None:
    check = doctor.huge_pages(settings(tmp_path, everywhere=value, hugepages_2048kB="inherit"), MOUNTS, exact=False)
    assert check.ok is None
    assert value in check.found
    assert check.remedy == f"echo never | tee {tmp_path}/shmem_enabled"


def test_huge_pages_of_one_size(tmp_path: Path) -> None:
    check = doctor.huge_pages(settings(tmp_path, everywhere="never", hugepages_64kB="always"), MOUNTS, exact=False)
    assert check.ok is None
    assert check.remedy == f"echo never | tee {tmp_path}/hugepages-64kB/shmem_enabled"


def test_huge_pages_of_one_mount(tmp_path: Path) -> None:
    check = doctor.huge_pages(settings(tmp_path, everywhere="never"), HUGE_MOUNTS, exact=False)
    assert check.ok is None
    assert check.remedy == "mount -o remount,huge=never /dev/shm"
    assert doctor.huge_pages(settings(tmp_path, everywhere="deny"), HUGE_MOUNTS, exact=False).ok


def test_reserved_huge_pages_are_counted(tmp_path: Path) -> None:
    for size, count in (("hugepages-2048kB", 512), ("hugepages-1048576kB", 0)):
        (tmp_path / size).mkdir()
        (tmp_path / size / "nr_hugepages").write_text(f"{count}\n")
    assert doctor.hugetlb(tmp_path, exact=False).found.startswith("512 of 2048kB: ")
    assert doctor.hugetlb(tmp_path / "none", exact=False).ok


def test_it_comes_to_a_tier() -> None:
    note = Check("hugetlb", None, "512 of 2048kB")
    assert doctor.traces([*ALL_WELL, note])
    assert doctor.render([*ALL_WELL, note]).startswith("tier faults: ")


def test_without_tracing_there_are_snapshots() -> None:
    checks = [Check("bcc", False, "not there", "apt-get install python3-bpfcc"), ALL_WELL[-1]]
    assert not doctor.traces(checks)
    assert doctor.reads(checks)
    verdict, *rest = doctor.render(checks).splitlines()
    assert verdict == "tier proc: only `shmtrace snapshot` works here; tracing needs: bcc"
    assert "- who touched the pages" in rest


def test_without_map_files_there_is_nothing() -> None:
    checks = [Check("map_files", False, "cannot be read", "sudo shmtrace doctor")]
    assert not doctor.reads(checks)
    assert doctor.render(checks).startswith("no tier: not even `shmtrace snapshot` works here; it needs: map_files\n")


def test_every_line_fits_and_no_command_is_broken() -> None:
    command = "docker run " + "--cap-add=SOMETHING " * 9
    checks = [*ALL_WELL, Check("bcc", False, "no " * 60, command), Check("huge pages", None, "word-with-hyphens " * 9)]
    lines = doctor.render(checks).splitlines()
    assert f"fix: {command}" in [line.strip() for line in lines] or f"fix: {command.strip()}" in map(str.strip, lines)
    assert max(width(line) for line in lines if "fix: " not in line) <= 80
    assert [line.split()[0] for line in lines if line.startswith(("ok", "missing", "note"))] == [
        *["ok"] * 3,
        "missing",
        "note",
    ]


def test_the_names_line_up() -> None:
    for check in doctor.region_calls():
        assert len(check.name) <= 16


def test_a_host_that_refuses_is_examined_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As whoever runs the tests, root or not, with bcc or not."""
    monkeypatch.setattr("tracer.kernel.probes.load", Refused)
    checks = doctor.examine()
    assert not doctor.traces(checks)
    assert all(check.found for check in checks)
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    for check in checks:
        assert not check.remedy or shlex.split(check.remedy.replace("…", ""))
