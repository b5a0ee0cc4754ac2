"""tests/kernels: what it makes of package names, of a kernel's console and of pytest's record. No guest is started."""

from __future__ import annotations

import asyncio
import json
import lzma
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from tests.kernels import __main__ as command_line
from tests.kernels import fetch, guest, installed, matrix, package, userlands
from tests.kernels.commands import NoResultError, run
from tests.kernels.fetch import pick_mirrors, pick_packages, pick_series
from tests.kernels.guest import Logs, complaints, qemu
from tests.kernels.initramfs import DIRECTORY, FILE, Entry, Kernel, cpio, initramfs, modules_to_load
from tests.kernels.results import Case, Result, read_cases, table, tier_of
from tests.kernels.userlands import CHECKOUT, HOST, Userland

NAMES = [
    "linux-image-5.10.0-9-cloud-amd64",
    "linux-image-5.10.0-32-cloud-amd64",
    "linux-image-5.10.0-32-cloud-amd64-dbg",
    "linux-image-5.10.0-32-cloud-amd64-unsigned",
    "linux-image-5.10.0-32-amd64",
    "linux-image-5.10.0-32-rt-amd64",
    "linux-image-6.1.0-0.deb11.7-cloud-amd64",
    "linux-image-6.12.9+deb13-cloud-amd64",
    "linux-image-6.12.9+deb13+1-cloud-amd64",
    "linux-image-6.12.10+deb13-cloud-amd64",
    "linux-image-6.12.11+deb13-rt-cloud-amd64",
    "linux-image-cloud-amd64",
    "linux-modules-5.10.0-9-cloud-amd64",
    "linux-binary-7.2.13+deb14-cloud-amd64",
    "linux-headers-7.2.13+deb14-cloud-amd64",
    "linux-image-7.2.13+deb14-cloud-amd64",
    "linux-modules-7.2.13+deb14-cloud-amd64",
    "linux-image-6.12.8+deb13-cloud-arm64",
    "linux-image-6.12.8+deb13-cloud-arm64-unsigned",
    "linux-image-6.12.9+deb13-arm64",
    "linux-image-6.12.9+deb13-arm64-16k",
    "linux-image-6.12.10+deb13-rt-arm64",
]
CLOUD = "cloud-amd64"

# As `apt-get update --print-uris` has it.
MIRROR = "http://ftp.cz.debian.org/debian"
URIS = f"""\
'{MIRROR}/dists/bookworm/InRelease' ftp.cz.debian.org_debian_dists_bookworm_InRelease 0 
'{MIRROR}/dists/bookworm-updates/InRelease' ftp.cz.debian.org_debian_dists_bookworm-updates_InRelease 0 
'{MIRROR}/dists/bookworm/main/binary-amd64/Packages.xz' ftp.cz.debian.org_debian_dists_bookworm_main_binary-amd64_Packages 0 
'http://packages.example/security/dists/bookworm-security/InRelease' packages.example_security_dists_bookworm-security_InRelease 0 
'https://user:word@old.example/debian/dists/buster/updates/InRelease' old.example_debian_dists_buster_updates_InRelease 0 
'mirror+file:/etc/apt/mirrors/debian.list/dists/stable/InRelease' _etc_apt_mirrors_debian.list_dists_stable_InRelease 0 
'cdrom://Debian%2012/dists/bookworm/InRelease' Debian%2012_dists_bookworm_InRelease 0 
'http://packages.example/flat/./InRelease' packages.example_flat_._InRelease 0 
"""  # noqa: E501, W291 # apt's lines

# As pytest writes it, but for what is not read.
RECORD = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="0" failures="1" skipped="1" tests="5" time="9.2">
<testcase classname="tests.live.test_answers" name="test_known_answer[kprobe-strided]" time="1.500"><properties>
<property name="unseen_pages" value="3" /></properties></testcase>
<testcase classname="tests.live.test_answers" name="test_known_answer[kprobe-full]" time="2.250"><properties>
<property name="unseen_pages" value="4" /><property name="other" value="x" /></properties>
<failure message="assert 3 == 4&#10; where 3 = f()">def test_known_answer(...)</failure></testcase>
<testcase classname="tests.live.test_answers" name="test_known_answer[faults-huge]" time="0.250">
<skipped type="pytest.skip" message="no huge pages here">tests/live/test_answers.py:300: no huge pages here</skipped>
</testcase>
<testcase classname="tests.live.test_attach" name="test_two_roots" time="3.000"><properties>
<property name="expected_skip" value="swap" /></properties></testcase>
<testcase classname="tests.live.test_attach" name="test_roots[faultsome]" time="3.000">
<error message="failed on setup with &quot;OSError&quot;">...</error></testcase>
</testsuite></testsuites>
"""

ALL_WELL = re.sub(r"(</?)(failure|error)\b", r"\1note", RECORD)

PREEMPT = [f"6.12 preempt={model}" for model in ("none", "voluntary", "full")]
PREEMPT += ["7.2 preempt=lazy", "7.2 preempt=full", "6.1-rt-amd64", "6.12-rt-amd64"]
BEFORE = '{"7.3 (for 7.2) faults": [5, 0, 7], "6.12-arm64 fentry": [9, 0, 0]}'

TABLE = """\
kernel  tier    passed  failed  skipped  unseen pages  seconds
5.10    kprobe       1       1        0             7        4
5.10    faults       0       0        1             -        0
5.10    -            1       1        0             -        6
6.12    faults       2       0        1             0        2
7.2     guest        0       1        0             -       41

skipped:
  no huge pages here (5.10 faults: 1, 6.12 faults: 1)

no longer skipped, see tests/skips.py:
  swap (5.10: 1)

failed:
  5.10: test_answers::test_known_answer[kprobe-full]: assert 3 == 4
  5.10: test_attach::test_roots[faultsome]: failed on setup with "OSError"
  7.2: did not boot"""

CONSOLE = """\
[    0.869210] mtrr: your CPUs had inconsistent fixed MTRR settings
[    1.318336] PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug
[   58.961616] NOTICE: Automounting of tracing to debugfs is deprecated and will be removed in 2030
[   60.000000] {}
virtio_loop: Unexpected poll revents 11
"""


@pytest.mark.parametrize(
    ("source", "packages"),
    [
        ("5.10", ["linux-image-5.10.0-32-cloud-amd64"]),
        ("6.1", ["linux-image-6.1.0-0.deb11.7-cloud-amd64"]),
        ("6.12", ["linux-image-6.12.10+deb13-cloud-amd64"]),
        ("7.2", [f"linux-{part}-7.2.13+deb14-cloud-amd64" for part in ("image", "binary", "modules")]),
        ("6.12-arm64", ["linux-image-6.12.8+deb13-cloud-arm64"]),
        ("6.12-arm64-16k", ["linux-image-6.12.9+deb13-arm64-16k"]),
        ("6.1-arm64", []),
    ],
)
def test_the_newest_kernel_of_a_series(source: str, packages: list[str]) -> None:
    assert pick_packages(NAMES, fetch.SOURCES[source].series, fetch.SOURCES[source].flavour) == packages


def test_the_newest_of_two_revisions() -> None:
    """A number is a number, and a longer version is a newer one."""
    assert pick_packages([name for name in NAMES if ".10+" not in name], "6.12", CLOUD) == [
        "linux-image-6.12.9+deb13+1-cloud-amd64"
    ]


def test_the_series_there_are() -> None:
    assert pick_series(NAMES, CLOUD) == ["5.10", "6.1", "6.12", "7.2"]
    assert pick_series(NAMES, "cloud-arm64") == ["6.12"]


@pytest.mark.parametrize(
    ("suite", "mirrors"),
    [
        ("sid", [MIRROR, "mirror+file:/etc/apt/mirrors/debian.list"]),
        ("trixie-security", ["http://packages.example/security", "https://user:word@old.example/debian"]),
    ],
)
def test_the_mirrors_of_apts_sources(suite: str, mirrors: list[str]) -> None:
    assert pick_mirrors(URIS, suite) == mirrors


def stand_in(
    monkeypatch: pytest.MonkeyPatch, cache: Path, names: str = "", broken: str = "", uris: str = URIS
) -> list[str]:
    """In place of the programs that fetch: what they are asked for."""
    asked: list[str] = []

    async def answer(*command: str, cwd: Path = cache) -> str:
        if "--print-uris" in command:
            return uris
        asked.append(command[0])
        if broken and broken in (command[0], *sources(command)):
            raise NoResultError(f"{broken} ended with 1")
        if "download" in command:
            (cwd / "a.deb").touch()
        if command[0] == "dpkg-deb":
            (Path(command[-1]) / "unpacked").touch()
        return names

    monkeypatch.setattr(fetch, "CACHE", cache)
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(fetch, "run", answer)
    return asked


def sources(command: tuple[str, ...]) -> list[str]:
    """The words of apt's sources, where apt is given any."""
    named = next((word for word in command if word.startswith("Dir::Etc::SourceList=")), None)
    return Path(named.partition("=")[2]).read_text().split() if named else []


def test_fetches_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = stand_in(monkeypatch, tmp_path / "cache", "\n".join(NAMES))
    for _ in range(2):
        assert asyncio.run(fetch.fetch(fetch.SOURCES["6.12"])) == tmp_path / "cache/6.12"
    assert asked == ["apt-get", "apt-cache", "apt-get", "dpkg-deb"]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "cache",
        "cache/6.12",
        "cache/6.12/unpacked",
    ]


def test_takes_the_next_mirror_where_one_has_it_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = stand_in(monkeypatch, tmp_path / "cache", "\n".join(NAMES), MIRROR)
    assert asyncio.run(fetch.fetch(fetch.SOURCES["6.12"])) == tmp_path / "cache/6.12"
    assert asked == ["apt-get", "apt-get", "apt-cache", "apt-get", "dpkg-deb"]


def test_says_where_apt_has_no_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = stand_in(monkeypatch, tmp_path, uris="'cdrom://Debian/dists/bookworm/InRelease' Debian 0 \n")
    with pytest.raises(NoResultError, match=r"sid: see sources\.list\(5\)"):
        asyncio.run(fetch.fetch(fetch.SOURCES["7.2"]))
    assert asked == []


@pytest.mark.parametrize("broken", ["apt-get", "apt-cache", "dpkg-deb"])
def test_what_is_half_fetched_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str) -> None:
    stand_in(monkeypatch, tmp_path, "\n".join(NAMES), broken)
    with pytest.raises(NoResultError, match=broken):
        asyncio.run(fetch.fetch(fetch.SOURCES["6.12"]))
    assert list(tmp_path.iterdir()) == []


def test_the_newest_stands_in_where_sid_has_moved_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = stand_in(monkeypatch, tmp_path, "linux-image-7.10.1+deb14-cloud-amd64\nlinux-image-7.3.2+deb14-cloud-amd64")
    for _ in range(2):
        assert asyncio.run(fetch.fetch(fetch.SOURCES["7.2"])) == tmp_path / "7.10"
    assert asked == ["apt-get", "apt-cache", "apt-get", "dpkg-deb", "apt-get", "apt-cache"]


def test_says_what_to_look_at_where_a_suite_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "linux-image-7.4.1+deb14-amd64")
    with pytest.raises(NoResultError, match="sid has no kernel of flavour cloud-amd64: see tests/kernels/fetch"):
        asyncio.run(fetch.fetch(fetch.SOURCES["7.2"]))


@pytest.mark.parametrize("image", ["boot/vmlinuz-6.1.0-9", "usr/lib/modules/6.1.0-9/vmlinuz"])
def test_finds_an_unpacked_kernel(tmp_path: Path, image: str) -> None:
    """Where Debian has it up to 6.12, and since."""
    drivers = tmp_path / "usr/lib/modules/6.1.0-9/kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "virtio-rng.ko.xz").touch()
    (tmp_path / image).parent.mkdir(exist_ok=True)
    (tmp_path / image).touch()
    modules = {"virtio_rng": drivers / "virtio-rng.ko.xz"}
    assert Kernel.find(tmp_path) == Kernel("6.1.0-9", tmp_path / image, modules)


@pytest.mark.parametrize(("arguments", "architecture"), [([], "amd64"), (["--arm64"], "arm64")])
def test_a_kernel_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], architecture: str
) -> None:
    """It is not fetched, is called as its directory, and may have no modules."""
    directory = tmp_path / "mine"
    (directory / "lib/modules/6.12.9-64k").mkdir(parents=True)
    (directory / "boot").mkdir()
    (directory / "boot/vmlinuz-6.12.9-64k").touch()
    examined = []

    async def examine(subject: matrix.Subject, *_: object) -> Result:
        kernel = await matrix.unpacked(subject)
        examined.append((matrix.stand_in(subject, kernel).names, kernel))
        return Result(subject.names, read_cases(RECORD)[:1], [], 1.0)

    monkeypatch.setattr(matrix, "examine", examine)
    monkeypatch.setattr(sys, "argv", ["tests.kernels", *arguments, str(directory)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    kernel = Kernel("6.12.9-64k", directory / "boot/vmlinuz-6.12.9-64k", {}, architecture)
    assert (ended.value.code, examined) == (0, [(("mine",), kernel)])


def test_says_what_to_do_with_what_is_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(NoResultError, match="remove it"):
        Kernel.find(tmp_path)


def test_a_module_comes_after_those_it_needs() -> None:
    names = ["overlay", "virtiofs", "xfs", "virtio", "fuse", "virtio_pci", "virtio_ring"]
    kernel = Kernel("6.1", Path("vmlinuz"), {name: Path(f"{name}.ko") for name in names})
    assert modules_to_load(kernel) == ["virtio_ring", "virtio", "virtio_pci", "fuse", "virtiofs", "overlay"]


def test_cpio() -> None:
    """Names and contents are padded to four bytes, counted from the start of the archive and without the padding."""
    head = "070701{:08X}{:08X}00000000000000000000000100000000{:08X}" + "00000000" * 4 + "{:08X}00000000"
    expected = [
        head.format(1, 0o40755, 0, 4).encode() + b"dev\0\0\0",
        head.format(2, 0o100644, 5, 6).encode() + b"dev/a\x0012345\0\0\0",
        head.format(3, 0, 0, 11).encode() + b"TRAILER!!!\0\0\0\0",
    ]
    assert cpio([Entry("dev", DIRECTORY), Entry("dev/a", FILE, b"12345")]) == b"".join(expected)


def test_modules_are_uncompressed(tmp_path: Path) -> None:
    """The kernel's own insmod would not."""
    (tmp_path / "busybox").write_text("a program")
    (tmp_path / "fuse.ko").write_bytes(b"one module")
    (tmp_path / "overlay.ko.xz").write_bytes(lzma.compress(b"another module"))
    modules = {"overlay": tmp_path / "overlay.ko.xz", "fuse": tmp_path / "fuse.ko"}
    kernel = Kernel("6.1", tmp_path / "vmlinuz", modules)
    archive = initramfs(kernel, tmp_path / "busybox", {"command": "exec true"})
    for expected in (b"fuse\noverlay", b"\0one module\0", b"\0another module\0", b"\0exec true\0", b"\0a program\0"):
        assert expected in archive


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: CPU: 0 PID: 712 at kernel/trace/trace_kprobe.c:1021 foo+0x1/0x2",
        "BUG: unable to handle page fault for address: ffffffff81000000",
        "kernel BUG at mm/shmem.c:812!",
        "Oops: int3: 0000 [#1] PREEMPT SMP NOPTI",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [cc:812]",
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
        "INFO: task python3:812 blocked for more than 120 seconds.",
        "Kernel panic - not syncing: Attempted to kill init!",
    ],
)
def test_what_a_kernel_must_not_say(line: str) -> None:
    assert complaints(CONSOLE.format(line)) == [f"[   60.000000] {line}"]


def test_what_a_kernel_may_say() -> None:
    assert complaints(CONSOLE.format("rcu: Hierarchical RCU implementation.")) == []


@pytest.mark.parametrize(
    ("name", "tier"),
    [
        ("test_known_answer[kprobe-strided]", "kprobe"),
        ("test_huge_pages[fentry]", "fentry"),
        ("test_known_answer[faults-2-SIGINT]", "faults"),
        ("test_known_answer[strided]", "-"),
        ("test_known_answer[strided-faults]", "-"),
        ("test_kprobe", "-"),
    ],
)
def test_the_tier_of_a_test(name: str, tier: str) -> None:
    assert tier_of(name) == tier


def test_table() -> None:
    cases = read_cases(RECORD)
    skipped = Case("test_answers::test_huge[faults]", "faults", "skipped", "no huge pages here", None, 0.1)
    passed = Case("test_answers::test_all[faults]", "faults", "passed", "", 0, 1.0)
    results = [
        Result(("5.10",), cases, [], 9.2),
        Result(("6.12",), [passed, passed, skipped], [], 3.0),
        Result(("7.2",), [], ["did not boot\n--- its console"], 41.0),
    ]
    assert [result.failed for result in results] == [True, False, True]
    assert table(["kernel"], results) == TABLE


@pytest.mark.parametrize(
    ("arguments", "kernels"),
    [
        ([], ["5.10", "6.1", "6.12", "7.2"]),
        (["oldest", "newest"], ["5.10", "7.2"]),
        (["7.2", "6.12", "newest"], ["7.2", "6.12"]),
        (["--arm64"], ["6.1-arm64", "6.12-arm64", "6.12-arm64-16k", "7.2-arm64"]),
        (["--arm64", "oldest"], ["6.1-arm64"]),
        (["--smoke", "6.12"], ["6.12"]),
        (["--preempt"], PREEMPT),
        (["--preempt", "7.2-full"], ["7.2 preempt=full"]),
    ],
)
def test_what_is_recorded_is_of_all_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], kernels: list[str]
) -> None:
    examined = []

    async def examine(subject: matrix.Subject, *_: object) -> Result:
        examined.extend(subject.names)
        return Result(subject.names, read_cases(RECORD)[:1], [], 1.0)

    monkeypatch.setattr(matrix, "examine", examine)
    monkeypatch.setattr(matrix, "FOUND", tmp_path / "found.json")
    (tmp_path / "found.json").write_text(BEFORE)
    monkeypatch.setenv("SHMTRACE_REFRESH_GOLDEN", "1")
    monkeypatch.setattr(sys, "argv", ["tests.kernels", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert (ended.value.code, examined) == (0, kernels)
    kept = {name: row for name, row in json.loads(BEFORE).items() if ("arm64" in name) != ("--arm64" in arguments)}
    found = {f"{kernel} kprobe": [1, 0, 3] for kernel in kernels}
    expected = {**kept, **found} if len(kernels) == 4 else json.loads(BEFORE)
    assert json.loads((tmp_path / "found.json").read_text()) == expected


@pytest.mark.parametrize(
    ("arguments", "subjects", "attempt"),
    [
        ("--distros 11", [("11", "5.10")], partial(matrix.try_tests, matrix.DISTRO_TESTS)),
        ("--preempt 6.12-full", [("6.12 preempt=full",)], partial(matrix.try_tests, matrix.PREEMPTED)),
        ("--pressure --distros 13", [("13", "6.12")], partial(matrix.try_tests, matrix.PRESSURE)),
        ("--servers --arm64 6.12-arm64", [("6.12-arm64",)], partial(matrix.try_tests, matrix.SERVERS, whole=True)),
        ("--pyz 6.12", [("6.12",)], partial(matrix.try_tests, matrix.EXACT, in_archive=True)),
        ("--bench --arm64 oldest", [("6.1-arm64",)], matrix.measure),
    ],
)
def test_what_is_tried_where(
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    subjects: list[tuple[str, ...]],
    attempt: object,
) -> None:
    asked = []

    async def examine(subject: matrix.Subject, attempt: matrix.Attempt, _: Path) -> Result:
        asked.append((subject.names, repr(attempt)))
        return Result(subject.names, read_cases(RECORD)[:1], [], 1.0)

    monkeypatch.setattr(matrix, "examine", examine)
    monkeypatch.setattr(command_line, "ARCHIVE", Path(__file__))
    monkeypatch.setattr(sys, "argv", ["tests.kernels", *arguments.split()])
    with pytest.raises(SystemExit):
        command_line.main()
    assert asked == [(names, repr(attempt)) for names in subjects]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("by_archive", [True, False])
def test_a_guest_has_all_that_its_tests_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: bool, by_archive: bool
) -> None:
    """Where its root is not the host's: the checkout, and the root that shmtrace.pyz runs in."""
    bare_root, own = tmp_path / "bare", tmp_path / "own"
    own.mkdir()
    given: dict[Path, bool] = {}
    command: list[str] = []
    compiled: list[Userland] = []
    userland = HOST if native else Userland(tmp_path / "arm64", "python3")

    async def run_in_guest(kernel: Kernel, words: list[str], cwd: Path, shares: list[guest.Share], *_: object) -> int:
        given.update(shares)
        command.extend(words)
        (own / "record.xml").write_text(RECORD)
        return 1

    async def lean(_: str) -> Userland:
        return userland

    async def bare(_: str) -> Path:
        return bare_root

    async def compile_for(_: Kernel, userland: Userland) -> None:
        compiled.append(userland)

    for stand_in in (run_in_guest, lean, bare, compile_for):
        monkeypatch.setattr(matrix, stand_in.__name__, stand_in)
    logs = Logs(own / "output", own / "console")
    subject = matrix.Guest(matrix.Subject("6"), Kernel("6", tmp_path / "vmlinuz", {}), logs, [])
    asyncio.run(matrix.try_tests(["test_23.py"], subject, in_archive=by_archive))
    assert subject.cases == read_cases(RECORD)
    assert any(word.endswith(f"bare.sh {bare_root} {matrix.ARCHIVE}") for word in command) == by_archive
    others = [] if native else [CHECKOUT, *([bare_root] if by_archive else [])]
    assert given == {own: True, **dict.fromkeys(others, False)}
    assert compiled == ([] if by_archive else [userland])


@pytest.mark.parametrize(
    ("status", "record", "wrong"),
    [
        (1, RECORD, []),
        (0, ALL_WELL, []),
        (
            2,
            ALL_WELL,
            ["no test has failed, but pytest ended with 2"],
        ),
        (0, "<testsuites></testsuites>", ["of 0 tests none was run"]),
        (135, None, ["pytest ended with 135, and left no record"]),
    ],
)
def test_what_is_wrong_is_in_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, record: str | None, wrong: list[str]
) -> None:
    """And what the kernel complains of, however the tests went."""
    kernel = Kernel("6.12.9", tmp_path / "vmlinuz", {})

    async def run_in_guest(_: Kernel, __: list[str], ___: Path, ____: object, logs: Logs, *_____: object) -> int:
        logs.console.write_text("Oops: 23\n")
        if record is not None:
            logs.output.with_name("record.xml").write_text(record)
        return status

    async def unpacked(_: matrix.Subject) -> Kernel:
        return kernel

    async def set_up(*_: object) -> Userland:
        return HOST

    for stand_in in (run_in_guest, unpacked, set_up):
        monkeypatch.setattr(matrix, stand_in.__name__, stand_in)
    attempt = partial(matrix.try_tests, ["test_23.py"])
    result = asyncio.run(matrix.examine(matrix.Subject("6.12"), attempt, tmp_path))
    assert [line.partition(":")[0] for line in result.complaints] == [*wrong, "Oops"]
    assert len(result.cases) == (5 if record and "testcase" in record else 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--deb"], [("12", "6.1"), ("13", "6.12")]),
        (["--deb", "newest"], [("13", "6.12")]),
        (["--deb", "12", "--arm64"], "argument --arm64: not allowed with argument --deb"),
        (["--deb", "11"], "nothing is named 11; there are 12, 13, oldest, newest"),
        (["--deb", "--smoke"], "--smoke is not for --deb"),
        (["--deb", "/tmp/23"], "--deb is for no kernel of one's own"),
    ],
)
def test_releases_the_package_is_tried_in(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: list[tuple[str, str]] | str,
) -> None:
    examined: list[tuple[str, ...]] = []

    async def examine(subject: matrix.Subject, attempt: matrix.Attempt, _: Path) -> Result:
        assert attempt is package.try_package
        examined.append(subject.names)
        return Result(subject.names, package.cases_of('["doctor", "no tier", 1.5]'), [], 2.0)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # logs of what failed are kept
    monkeypatch.setattr(matrix, "examine", examine)
    monkeypatch.setattr(sys, "argv", ["tests.kernels", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capsys.readouterr()
    if isinstance(expected, str):
        assert (ended.value.code, examined) == (2, [])
        assert expected in said.err
    else:
        assert (ended.value.code, examined) == (1, expected)
        assert all(f"  {' '.join(names)}: doctor: no tier\n" in said.out for names in expected)


def test_steps_that_are_tried_are_there() -> None:
    assert sorted([*package.ALONE, *package.UNDER_SYSTEMD]) == sorted(installed.STEPS)


def test_a_step_that_goes_wrong_is_recorded_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = {
        "tier": lambda: installed.must_be("the tier", "tier faults", "tier exact"),
        "status": lambda: installed.run(sys.executable, "-c", "exit(3)"),
        "one": lambda: [].pop(),
        "run": lambda: installed.run(sys.executable, "-c", "exit(0)"),
    }
    monkeypatch.setattr(installed, "STEPS", steps)
    monkeypatch.setattr(installed, "CACHE", tmp_path / "nowhere")
    installed.main(tmp_path / "record", ["tier", "status", "one", "run"])
    cases = package.cases_of((tmp_path / "record").read_text())
    assert [(case.name, case.outcome, case.message) for case in cases] == [
        ("tier", "failed", "the tier: tier faults, not tier exact"),
        ("status", "failed", f"{sys.executable} -c exit(3) ended with 3"),
        ("one", "failed", "IndexError: pop from empty list"),
        ("run", "passed", ""),
    ]


@pytest.mark.needs("dpkg-deb")
def test_a_later_version_is_the_same_but_for_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def made(source: Path, into: Path, time_s: int) -> Path:
        tree = source.parent / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "a file").write_text("23")
        text = "Package: shmtrace\nVersion: 0.7\nArchitecture: all\nMaintainer: x <x@x>\nDescription: Version: 9\n"
        (tree / "DEBIAN/control").write_text(text)
        subprocess.run(["dpkg-deb", "--build", tree, into / "shmtrace_0.7_all.deb"], check=True, stdout=subprocess.PIPE)
        return into / "shmtrace_0.7_all.deb"

    monkeypatch.setattr(package.release, "sources", lambda into: into.mkdir() or 1)
    monkeypatch.setattr(package.release, "package", made)
    first = package.build(tmp_path / "package")
    [later] = (tmp_path / "package/newer").iterdir()
    assert later.name == "shmtrace_0.7+1_all.deb"
    fields = [
        subprocess.check_output(["dpkg-deb", "--field", path, "Version", "Description"], text=True)
        for path in (first, later)
    ]
    assert fields == ["Version: 0.7\nDescription: Version: 9\n", "Version: 0.7+1\nDescription: Version: 9\n"]
    assert (tmp_path / "package/installed.py").read_text() == Path(installed.__file__).read_text()


@pytest.mark.parametrize("name", fetch.SOURCES)
@pytest.mark.parametrize("counting", [False, True])
def test_the_command_line_of_a_guest(name: str, counting: bool, tmp_path: Path) -> None:
    """Its console, output and status have a port each, which the kernel is told of."""
    kernel = Kernel("6", tmp_path / "vmlinuz", {}, fetch.SOURCES[name].architecture)
    line = qemu(kernel, counting, tmp_path, Logs(tmp_path / "output", tmp_path / "console"))
    assert line[0] == {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[kernel.architecture]
    text = " ".join(line)
    for port, file in (("console", "console"), ("output", "output"), ("status", "status")):
        assert f"file,id={port},path={tmp_path}/{file}" in text
        assert f"chardev{'=' if f'chardev={port}' in text else ':'}{port}" in text
    told = dict(word.split("=", 1) for word in line[line.index("-append") + 1].split() if "=" in word)
    assert len({told["console"], told["output"], told["status"]}) == 3
    assert ("-icount" in line) == counting
    assert "preempt" not in told
    line = qemu(kernel._replace(preempt="lazy"), counting, tmp_path, Logs(tmp_path / "output", tmp_path / "console"))
    assert "preempt=lazy" in line[line.index("-append") + 1].split()


def test_a_root_is_made_once_and_of_packages_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of another architecture: no program of it is run. Those who ask at once have the same."""
    made: list[tuple[str, ...]] = []

    async def run(*command: str, **_: object) -> str:
        if "mmdebstrap" in command:
            made.append(command)
            await asyncio.sleep(0.01)
            (Path(command[-2]) / "usr/bin").mkdir(parents=True)
        return URIS

    monkeypatch.setattr(userlands, "HOST_ARCHITECTURE", "amd64")
    monkeypatch.setattr(userlands, "CACHE", tmp_path)
    monkeypatch.setattr(userlands, "run", run)
    monkeypatch.setattr(fetch, "run", run)

    async def ask() -> list[userlands.Userland]:
        return await asyncio.gather(userlands.lean("arm64"), userlands.lean("arm64"))

    first, second = asyncio.run(ask())
    assert first == second == (tmp_path / "lean-arm64", "/usr/bin/python3")
    assert [path.name for path in tmp_path.iterdir()] == ["lean-arm64"]
    assert (first.root / "usr/bin/cc").readlink() == Path("gcc")
    assert (first.root / "mnt").is_dir()
    (command,) = made
    assert {"--variant=extract", "--architectures=arm64"} < set(command)
    assert command[-3] == "bookworm"


def test_a_guest_of_another_machine_has_its_own_busybox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest, "HOST_ARCHITECTURE", "amd64")
    kernel = Kernel("6", tmp_path / "vmlinuz", {}, "arm64")
    assert guest.busybox(kernel, tmp_path) == tmp_path / "bin/busybox"
    assert guest.busybox(kernel._replace(architecture="amd64"), tmp_path) != tmp_path / "bin/busybox"


@pytest.mark.parametrize("name", ["bare.sh", "init.sh", "switched.sh"])
def test_scripts_are_plain_sh(name: str) -> None:
    subprocess.run(["sh", "-n", Path(fetch.__file__).with_name(name)], check=True)


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(NoResultError, match=r"(?s)ended with 3: 24\n5\n.*\n23$"):
        asyncio.run(run(sys.executable, "-c", "for i in range(25): print(i)\nexit(3)"))


def test_no_program_outlives_its_cancellation() -> None:
    async def cancelled() -> None:
        await asyncio.wait_for(run("sleep", "60"), 0.1)

    began = time.monotonic()
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(cancelled())
    assert time.monotonic() - began < 10
