"""What the kernel offers, told from files and a BTF that are made up."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tracer import labels, wire
from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall, host, loader, tiers
from tracer.kernel.fields import Function, KernelLayout
from tracer.kernel.tiers import Kind, Probe, Tier

CAPABILITIES = {
    "CAP_SYS_PTRACE": host.CAP_SYS_PTRACE,
    "CAP_SYS_ADMIN": host.CAP_SYS_ADMIN,
    "CAP_PERFMON": host.CAP_PERFMON,
    "CAP_BPF": host.CAP_BPF,
    "CAP_CHECKPOINT_RESTORE": host.CAP_CHECKPOINT_RESTORE,
}


# ---- lockdown ----


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("", None),
        ("none\n", None),
    ],
)
def test_lockdown(text: str, mode: str | None, tmp_path: Path) -> None:
    (tmp_path / "lockdown").write_text(text)
    assert host.lockdown(tmp_path / "lockdown") == mode


def test_no_lockdown(tmp_path: Path) -> None:
    assert host.lockdown(tmp_path / "lockdown") is None


# ---- capabilities ----


@pytest.mark.parametrize(
    ("held", "for_proc", "for_bpf"),
    [
        (
            "",
            "CAP_SYS_PTRACE CAP_CHECKPOINT_RESTORE",
            "CAP_SYS_PTRACE CAP_CHECKPOINT_RESTORE CAP_BPF CAP_PERFMON",
        ),
        ("CAP_SYS_PTRACE CAP_SYS_ADMIN", "", ""),  # the one that stands for the finer ones
        ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_PTRACE"),
        ("CAP_SYS_PTRACE CAP_CHECKPOINT_RESTORE CAP_BPF CAP_PERFMON", "", ""),
        ("CAP_SYS_PTRACE CAP_CHECKPOINT_RESTORE", "", "CAP_BPF CAP_PERFMON"),
        ("CAP_SYS_PTRACE CAP_CHECKPOINT_RESTORE CAP_BPF", "", "CAP_PERFMON"),
    ],
)
def test_missing_capabilities(held: str, for_proc: str, for_bpf: str, tmp_path: Path) -> None:
    mask = sum(1 << CAPABILITIES[name] for name in held.split())
    status = tmp_path / "status"
    status.write_text(f"Name:\tshmtrace\nCapInh:\t{2**41 - 1:016x}\nCapPrm:\t{2**41 - 1:016x}\nCapEff:\t{mask:016x}\n")
    assert host.missing_capabilities(bpf=False, status=status) == for_proc.split()
    assert host.missing_capabilities(bpf=True, status=status) == for_bpf.split()


def test_numbers_of_capabilities() -> None:
    """As include/uapi/linux/capability.h has them."""
    assert list(CAPABILITIES.values()) == [19, 21, 38, 39, 40]


# ---- namespaces and processors ----


def test_the_hosts_pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = tmp_path / "pid"
    namespace.write_text("")
    assert not host.sees_host_pids(namespace)
    monkeypatch.setattr(host, "HOST_PID_NAMESPACE", namespace.stat().st_ino)
    assert host.sees_host_pids(namespace)


def test_a_container_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "HOST_PID_NAMESPACE", 1)
    with pytest.raises(ShmtraceError, match=r"not the host's.*--pid=host"):
        host.need_host_pids()


# ---- losses ----


def test_every_loss_has_a_sentence() -> None:
    assert tiers.LOSSES.keys() == {*wire.LOSSES, "probes"}  # these the kernel counts itself


def test_losses() -> None:
    assert tiers.explain(dict.fromkeys(wire.LOSSES, 0)) == []
    assert tiers.explain({"events": 0, "processes": 3, "pages": 4711}) == [
        "more processes than there is room for: the rest is unseen; give more with --room (3)",
        "the ledger is full: the rest is unseen; give more with --room (4711)",
    ]


# ---- tiers ----

ADDING = Probe("adding", Kind.ENTRY, ("add_page",))
ALLOCATING = Probe("allocating", Kind.ENTRY, ("allocate",), "on whose made_for", unless=("adding", "charge_mm"))
MADE = Probe("made", Kind.RETURN, ("make_newest", "make_newer", "make_older"))
HUGE = Probe("huge", Kind.RETURN, ("make_huge",), "hugetlbfs")
TIER = Tier(
    "made up",
    "kprobe",
    (),
    [
        Probe("fork", Kind.RAW, ("task:task_newtask",)),
        Probe("call", Kind.TRACEPOINT, ("syscalls:sys_exit_mmap",), "nothing"),
        *[MADE, HUGE, ALLOCATING, ADDING],
    ],
    [],
)
FUNCTIONS = {
    "make_older": ["sb", "mode"],
    "make_huge": [],
    "allocate": ["inode", "fault_mm"],
    "add_page": ["folio", "mapping", "index"],
}


def layout(*features: str, **functions: list[str] | None) -> KernelLayout:
    """Of a kernel that has these features, and FUNCTIONS, but for these."""
    changed = {name: parameters for name, parameters in {**FUNCTIONS, **functions}.items() if parameters is not None}
    found = {name: Function(name, number, changed[name]) for number, name in enumerate(changed, 1)}
    return KernelLayout(dict.fromkeys(features, 1), found)


def there(tier: Tier = TIER, **functions: list[str] | None) -> dict[str, Function]:
    """The points of a kernel that has FUNCTIONS, but for these."""
    return tiers.points(tier, layout(**functions))


def test_points() -> None:
    """Of functions alone, each by the name that it has here; with or without parameters."""
    assert there() == {
        "made": Function("make_older", 1, ["sb", "mode"]),
        "huge": Function("make_huge", 2, []),
        "allocating": Function("allocate", 3, ["inode", "fault_mm"]),
        "adding": Function("add_page", 4, ["folio", "mapping", "index"]),
    }
    assert tiers.absent(TIER, layout()) == []


def test_the_newest_name_is_taken() -> None:
    """Where one function was made of another, the kernel has both."""
    assert there(make_newer=["idmap", "sb"])["made"].name == "make_newer"
    assert there(make_newer=["idmap", "sb"], make_newest=["sb"])["made"].name == "make_newest"


def test_a_probe_that_another_makes_needless() -> None:
    told = layout(add_page=["page", "charge_mm"])
    assert tiers.points(TIER, told).keys() == {"made", "huge", "adding"}
    assert tiers.absent(TIER, told) == []
    assert tiers.absent(TIER, layout(add_page=["page", "charge_mm"], allocate=None)) == []


def test_what_is_absent() -> None:
    assert tiers.absent(TIER, layout(make_huge=None)) == [HUGE]
    assert tiers.absent(TIER, layout(make_huge=None, allocate=None)) == [HUGE, ALLOCATING]
    assert tiers.absent(TIER, layout(add_page=None, allocate=None)) == [ALLOCATING, ADDING]
    assert tiers.absent(TIER, KernelLayout({}, {})) == TIER.functions
    assert [probe.costs for probe in tiers.absent(TIER, layout(make_huge=None))] == ["hugetlbfs"]


def test_a_feature_that_the_kernel_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of PREEMPT_RT have no huge pages: there is nothing to lose."""
    monkeypatch.setattr(tiers, "FEATURES", {"hugetlbfs": "fault_huge"})
    assert tiers.absent(TIER, layout(make_huge=None)) == []
    assert tiers.absent(TIER, layout(make_huge=None, fault_huge=[])) == [HUGE]
    assert tiers.absent(TIER, layout(make_huge=None, allocate=None)) == [ALLOCATING]


REGISTERS = "HAVE_X86_64_REGISTERS", "HAVE_ARM64_REGISTERS"


@pytest.fixture
def kprobes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel that has kprobes."""
    monkeypatch.setattr(tiers, "KPROBE_PMU", tmp_path)


@pytest.mark.usefixtures("kprobes")
@pytest.mark.parametrize("registers", REGISTERS)
def test_a_tier_that_the_kernel_can_have(registers: str) -> None:
    assert tiers.why_not(TIER, layout(registers)) is None
    assert tiers.why_not(TIER, layout(registers, make_huge=None, allocate=None)) is None  # it loses something by that


@pytest.mark.usefixtures("kprobes")
@pytest.mark.parametrize("by", ["kprobe", "fentry"])
def test_a_tier_that_lacks_what_it_cannot_do_without(by: str) -> None:
    """The name that the newest kernels have is told."""
    tier = TIER._replace(by=by)
    assert tiers.why_not(tier, layout(make_older=None)) == "the kernel's BTF has no make_newest"
    assert tiers.why_not(tier, layout(add_page=None)) == "the kernel's BTF has no add_page"


def test_no_kprobes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiers, "KPROBE_PMU", tmp_path / "absent")
    assert tiers.why_not(TIER, layout(*REGISTERS)) == "the kernel has no kprobes"


@pytest.mark.usefixtures("kprobes")
def test_another_machine_has_no_kprobes() -> None:
    assert tiers.why_not(TIER, layout()) == "kprobes need the registers of x86-64 or arm64"


@pytest.mark.parametrize("absent", ["self/status", "meminfo"])
def test_a_proc_that_is_not_whole(tmp_path: Path, absent: str) -> None:
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / "self").symlink_to(str(os.getpid()))
    for name in ("self/status", "meminfo"):
        (tmp_path / name).touch()
    host.need_proc(tmp_path)
    (tmp_path / absent).unlink()
    with pytest.raises(ShmtraceError, match=rf"/{absent} cannot be read \(No such file or directory\): mount -t proc "):
        host.need_proc(tmp_path)


def test_a_proc_that_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "self").symlink_to("1")
    for name in ("self/status", "meminfo"):
        (tmp_path / name).touch()
    with pytest.raises(ShmtraceError, match="of another PID namespace"):
        host.need_proc(tmp_path)


def test_the_tier_of_page_faults() -> None:
    assert tiers.why_not(tiers.FAULTS, layout("HAVE_PAGE_FAULT")) is None
    assert tiers.why_not(tiers.FAULTS, layout("HAVE_ARM64_REGISTERS")) == "the kernel has no tracepoints of page faults"
    assert tiers.why_not(tiers.PROC, layout()) is None


FENTRY = TIER._replace(by="fentry")


@pytest.mark.parametrize("refused", [None, "load", "attach"])
def test_fentry_is_tried(refused: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever machine, by a program that does nothing; nothing of it is left."""
    opened: list[int] = []

    def call(name: str) -> Callable[..., int]:
        def open_one(*_: object, **__: object) -> int:
            if name == refused:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            opened.append(os.open(os.devnull, os.O_RDONLY))
            return opened[-1]

        return open_one

    monkeypatch.setattr(bpf_syscall, "load", call("load"))
    monkeypatch.setattr(bpf_syscall, "attach", call("attach"))
    reason = tiers.why_not(FENTRY, layout())
    assert reason == ("fentry is refused (Operation not supported)" if refused else None)
    assert len(opened) == {None: 2, "load": 0, "attach": 1}[refused]
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_arguments_have_their_place_by_name() -> None:
    assert tiers.arguments(there()) == {
        "NARGS_MADE": 2,
        "ARG_MADE_SB": 0,
        "ARG_MADE_MODE": 1,
        "NARGS_HUGE": 0,
        "NARGS_ALLOCATING": 2,
        "ARG_ALLOCATING_INODE": 0,
        "ARG_ALLOCATING_FAULT_MM": 1,
        "NARGS_ADDING": 3,
        "ARG_ADDING_FOLIO": 0,
        "ARG_ADDING_MAPPING": 1,
        "ARG_ADDING_INDEX": 2,
    }
    assert tiers.arguments({}) == {}


# ---- the tiers there are ----

BPF = Path(__file__).parent.parent / "bpf"
TIERS = pytest.mark.parametrize("tier", tiers.TIERS, ids=[tier.by for tier in tiers.TIERS])
OWN = {"adopt", "anchor", "empty", "enter", "fill", "forget", "leave", "measure"}
"""which user space runs itself"""
CALLED = set(loader.PARTS_OF_CALLS)
"""which other programs go on with"""
UPROBES = {program for source in labels.READY.values() for program in source.functions}


def written(tier: Tier) -> str:
    """The one text that the tier's sources are."""
    return "\n".join((BPF / name).read_text() for name in ("maps.c", *tier.sources))


def test_there_are_these_tiers() -> None:
    assert [(tier.name, tier.by) for tier in tiers.TIERS] == [
        ("exact", "kprobe"),
        ("exact", "fentry"),
        ("faults", "tracepoint"),
    ]


@TIERS
def test_processes_come_first_and_pages_last(tier: Tier) -> None:
    """No page may be written down before the processes and their regions are followed."""
    assert tier.probes[: len(tiers.PROCESSES)] == tiers.PROCESSES
    page = {"exact": "adding", "faults": "page_fault"}[tier.name]
    programs = [probe.program for probe in tier.probes]
    assert set(programs[programs.index(page) :]) == {page}


@TIERS
def test_every_program_of_a_tier_is_written(tier: Tier) -> None:
    programs = set(re.findall(r"^int (\w+)\(", written(tier), re.MULTILINE))
    hung = {probe.program for probe in tiers.armed(tiers.labelled(tier)).probes}
    assert hung <= programs
    assert programs - CALLED == {*hung, *UPROBES, *OWN}


@TIERS
def test_labels_come_after_the_processes_that_they_are_of(tier: Tier) -> None:
    assert tiers.labelled(tier).probes[: len(tiers.PROCESSES) + len(tiers.LABELS)] == tiers.PROCESSES + tiers.LABELS
    assert [probe for probe in tiers.labelled(tier).probes if probe not in tiers.LABELS] == tier.probes


@TIERS
def test_a_program_on_a_function_that_may_be_absent_may_be_left_out(tier: Tier) -> None:
    """Its arguments have no place then, and what does not compile takes all the others with it."""
    conditions: list[str] = []
    conditional, always = set(), set()
    for line in written(tier).splitlines():
        if line.startswith("#if"):
            conditions.append(line)
        elif line.startswith("#endif"):
            conditions.pop()
        elif found := re.match(r"int (\w+)\(", line):
            (conditional if conditions else always).add(found[1])
    assert conditions == []
    assert {probe.program for probe in tier.functions if probe.costs} <= conditional - always


@TIERS
def test_every_argument_that_is_asked_for_is_of_a_program(tier: Tier) -> None:
    programs = {probe.program.upper() for probe in tier.functions}
    for name in re.findall(r"\bNARGS_(\w+)", written(tier)):
        assert name in programs
    for name in re.findall(r"\bARG_(\w+)", written(tier)):
        assert [program for program in programs if name.startswith(f"{program}_")], name


@TIERS
def test_what_makes_a_probe_needless_is_in_its_tier(tier: Tier) -> None:
    programs = {probe.program for probe in tier.functions}
    for probe in tier.functions:
        program, parameter = probe.unless
        assert bool(program) == bool(parameter)
        assert not program or (program in programs and f"ARG_{program}_{parameter}".upper() in written(tier))
        assert not program or probe.costs


@TIERS
def test_a_program_hangs_on_one_thing_at_a_time(tier: Tier) -> None:
    """Of a function; several tracepoints may have one program, but none the same twice."""
    hung = [(probe.program, probe.points) for probe in tier.probes]
    assert len(hung) == len(set(hung))
    functions = [probe.program for probe in tier.functions]
    assert len(functions) == len(set(functions))
    assert all(":" not in point for probe in tier.functions for point in probe.points)
    assert all(
        len(probe.points) == 1 and ":" in probe.points[0] for probe in tier.probes if probe not in tier.functions
    )


@pytest.mark.parametrize(
    ("version", "model", "preempts"),
    [
        ("#1 SMP Debian 5.10.1-1", None, False),
        ("#1 SMP PREEMPT Debian 5.10.1-1", None, True),
        ("#1 SMP PREEMPT_RT Debian 5.10.1-1", None, True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.1-1", "none (voluntary) full", False),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.1-1", "(none) voluntary full", False),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.1-1", "none voluntary (full) lazy", True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 7.2.1-1", "full (lazy)", True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 7.2.1-1", None, True),
    ],
)
def test_who_can_be_preempted_takes_kprobes(
    version: str, model: str | None, preempts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that is in force, or where nobody says, what is right under each."""
    if model:
        (tmp_path / "sched").mkdir()
        (tmp_path / "sched" / "preempt").write_text(f"{model}\n")
    monkeypatch.setattr(host, "_detached", lambda _: os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    assert host.preempts(version) == preempts
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(version=version))
    best, *_, last = tiers.tiers()
    assert (best, last) == (tiers.KPROBE if preempts else tiers.FENTRY, tiers.FAULTS)


def test_one_source_makes_both_exact_tiers() -> None:
    assert tiers.KPROBE.sources == tiers.FENTRY.sources
    assert tiers.KPROBE.probes == tiers.FENTRY.probes
    assert tiers.KPROBE.blind_to == tiers.FENTRY.blind_to == []
