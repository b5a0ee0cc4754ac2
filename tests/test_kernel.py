"""What the kernel offers, told from files and a BTF that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer import kernel, wire
from tracer.btf import Btf
from tracer.errors import ShmtraceError

CAPABILITIES = {
    "CAP_SYS_PTRACE": kernel.CAP_SYS_PTRACE,
    "CAP_SYS_ADMIN": kernel.CAP_SYS_ADMIN,
    "CAP_PERFMON": kernel.CAP_PERFMON,
    "CAP_BPF": kernel.CAP_BPF,
    "CAP_CHECKPOINT_RESTORE": kernel.CAP_CHECKPOINT_RESTORE,
}


class FakeBtf(Btf):
    """Every field at an offset of its own, but those that are missing."""

    def __init__(self, *missing: str) -> None:
        self.missing = missing
        self.asked: list[str] = []

    def offset(self, path: str) -> int | None:
        self.asked.append(path)
        return None if path in self.missing else 8 * len(self.asked)

    def size(self, struct: str) -> int | None:
        return None if struct in self.missing else 64

    def enum_value(self, enum: str, name: str) -> int | None:
        return None if name in self.missing else len(name)


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
    assert kernel.lockdown(tmp_path / "lockdown") == mode


def test_no_lockdown(tmp_path: Path) -> None:
    assert kernel.lockdown(tmp_path / "lockdown") is None


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
    assert kernel.missing_capabilities(bpf=False, status=status) == for_proc.split()
    assert kernel.missing_capabilities(bpf=True, status=status) == for_bpf.split()


def test_numbers_of_capabilities() -> None:
    """As include/uapi/linux/capability.h has them."""
    assert list(CAPABILITIES.values()) == [19, 21, 38, 39, 40]


# ---- namespaces and processors ----


def test_the_hosts_pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = tmp_path / "pid"
    namespace.write_text("")
    assert not kernel.sees_host_pids(namespace)
    monkeypatch.setattr(kernel, "HOST_PID_NAMESPACE", namespace.stat().st_ino)
    assert kernel.sees_host_pids(namespace)


def test_a_container_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "HOST_PID_NAMESPACE", 1)
    with pytest.raises(ShmtraceError, match=r"not the host's.*--pid=host"):
        kernel.need_host_pids()


# ---- losses ----


def test_every_loss_has_a_sentence() -> None:
    assert tuple(kernel.LOSSES) == wire.LOSSES


def test_losses() -> None:
    assert kernel.explain(dict.fromkeys(wire.LOSSES, 0)) == []
    assert kernel.explain({"events": 0, "ranges": 3, "pages": 4711}) == [
        "a process maps more than 64 ranges: the rest is unseen (3)",
        "the ledger is full: the rest is unseen; make it bigger with --room (4711)",
    ]
    assert f"more than {wire.MAX_RANGES} ranges" in kernel.LOSSES["ranges"]


# ---- fields ----


def test_a_kernel_that_has_it_all() -> None:
    btf = FakeBtf()
    defines = kernel.defines(btf)
    grouped = {f"OFF_{name}" for members in kernel.GROUPS.values() for name in members}
    assert defines.keys() == {
        *(f"OFF_{name}" for name in kernel.FIELDS),
        *grouped,
        *(f"HAVE_{group}" for group in kernel.GROUPS),
        *(f"BIT_{bit.upper()}" for bit in kernel.BITS),
        "SIZE_PAGE",
    }
    assert defines["OFF_TASK_TGID"] == 8 * (btf.asked.index("task_struct.tgid") + 1)


def test_an_older_name_of_a_field() -> None:
    older = FakeBtf("folio.mapping", "folio.index")
    defines = kernel.defines(older)
    assert defines["OFF_FOLIO_INDEX"] == 8 * (older.asked.index("page.index") + 1)


@pytest.mark.parametrize("missing", [["task_struct.tgid"], ["folio.mapping", "page.mapping"], ["PG_head"]])
def test_a_field_that_no_name_leads_to(missing: list[str]) -> None:
    with pytest.raises(ShmtraceError, match=rf"^this kernel's BTF has no {missing[0]}: .*snapshot works"):
        kernel.defines(FakeBtf(*missing))


def test_a_group_comes_whole_or_not_at_all() -> None:
    defines = kernel.defines(FakeBtf("maple_arange_64.slot", "page.compound_order"))
    absent = {"HAVE_MM_MT", "HAVE_PAGE_ORDER", *(f"OFF_{name}" for name in kernel.GROUPS["MM_MT"])}
    assert not absent & defines.keys()
    assert {"HAVE_MM_RB", "OFF_MM_RB", "OFF_VMA_RB", "OFF_RB_LEFT", "OFF_RB_RIGHT"} <= defines.keys()


# ---- probes ----


def test_the_faults_come_last() -> None:
    """None may be written down before the processes and their mappings are followed."""
    assert [probe.program for probe in kernel.FAULTS.probes[-2:]] == ["page_fault", "page_fault"]
    assert "page_fault" not in [probe.program for probe in kernel.FAULTS.probes[:-2]]


def test_every_program_of_the_tier_is_written() -> None:
    sources = "\n".join(path.read_text() for path in (Path(__file__).parent.parent / "bpf").glob("*.c"))
    for probe in kernel.FAULTS.probes:
        assert f"int {probe.program}(struct" in sources
