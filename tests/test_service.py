"""The unit for systemd: what it runs, whom it overwrites, and what systemd itself says of it."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.recorded import shmtrace
from tracer.errors import ShmtraceError
from tracer.service import notify, unit

CAPTURE = Path("/var/lib/shmtrace/pool.capture")
ARGUMENTS = ["-p", "php-fpm", "--rotate", "1h", "--keep", "24"]
MOST_EXPOSED = 3.0  # of systemd-analyze; a service that may do all has 9.6


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "shmtrace.service"
    monkeypatch.setattr(unit, "PLACE", place)
    monkeypatch.setattr(unit.install, "__defaults__", (place,))
    return place


def setting(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def test_what_it_runs() -> None:
    done = shmtrace("install-service", *ARGUMENTS, "--print")
    assert done.exit_code == 0, done.stderr
    [line] = setting(done.stdout, "ExecStart")
    assert line.startswith(f"{sys.executable} ")
    assert line.endswith(" record -p php-fpm --rotate 1h --keep 24 --wait -o /var/lib/shmtrace/shmtrace.capture")
    assert setting(done.stdout, "ReadWritePaths") == []
    elsewhere = shmtrace("install-service", "-a", "--keep-on-oom", "/srv/oom 1/x.capture", "--print").stdout
    assert setting(elsewhere, "ExecStart")[0].endswith(' record -a --keep-on-oom "/srv/oom 1/x.capture"')
    assert setting(elsewhere, "ReadWritePaths") == ['"/srv/oom 1"']
    assert setting(elsewhere, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert "@" not in re.sub(r"@system-service", "", re.sub(r"^#.*$", "", elsewhere, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("address", "families", "allowed"),
    [
        ("127.0.0.1:9109", "AF_UNIX AF_INET AF_INET6", ["localhost"]),
        ("[::1]:0", "AF_UNIX AF_INET AF_INET6", ["localhost"]),
        ("192.0.2.7:9109", "AF_UNIX AF_INET AF_INET6", []),
    ],
)
def test_metrics(address: str, families: str, allowed: list[str]) -> None:
    where = ["--textfile", "/var/lib/prometheus/node-exporter/shmtrace.prom", "--listen", address]
    text = shmtrace("install-service", *ARGUMENTS, *where, "--print").stdout
    assert setting(text, "ReadWritePaths") == ["/var/lib/prometheus/node-exporter"]
    assert setting(text, "RestrictAddressFamilies") == [families]
    assert setting(text, "IPAddressAllow") == allowed
    assert setting(text, "IPAddressDeny") == ["any"] * bool(allowed)


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("php-fpm", "php-fpm"),
        ("php-fpm: pool www", '"php-fpm: pool www"'),
        ('50% of "$x" \\', '"50%% of \\"$$x\\" \\\\"'),
        ("", '""'),
        (";", '";"'),
        ("^php-fpm$", '"^php-fpm$$"'),
        ("prüfer", '"prüfer"'),
    ],
)
def test_words_are_those_that_systemd_reads_back(word: str, quoted: str) -> None:
    [line] = setting(unit.render(["-p", word], [CAPTURE]), "ExecStart")
    assert line.endswith(f" record -p {quoted}")


@pytest.mark.parametrize("word", ["a\nExecStartPre=/bin/sh", "a\0b", "\x1b[2J", "\udcff", "a\u2028b"])
def test_what_cannot_be_told_in_a_line(word: str) -> None:
    with pytest.raises(ShmtraceError, match="cannot stand in a unit: leave out what is not printable"):
        unit.render(["-p", word], [CAPTURE])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "x"], "a service runs for weeks: give --rotate 1h --keep 24, or --keep-on-oom FILE"),
        (["-p", "x", "--rotate", "1h"], "a service runs for weeks: give --rotate 1h --keep 24, or --keep-on-oom FILE"),
        (["--rotate", "1h", "--keep", "3"], "give one of -p NAME, -a (all)"),
        ([*ARGUMENTS, "-d", "9"], "a service runs until it is stopped: leave out -d and COMMAND"),
        ([*ARGUMENTS, "--", "make"], "a service runs until it is stopped: leave out -d and COMMAND"),
        ([*ARGUMENTS, "-o", "/"], "/ is a directory: name a file in it"),
        ([*ARGUMENTS, "-p", ""], "-p '' would match every process"),
        ([*ARGUMENTS, "-p", "./x.pid"], "./x.pid is relative, and a service has another directory"),
        ([*ARGUMENTS, "-o", "x"], "x is relative, and a service has another directory: give an absolute path"),
        (["-p", "x", "--rotate", "1y"], "'1y' is neither a time nor a size: write 90s, 10m, 1h, 1d, or 100M, 1G"),
        (["-p", "x", "--rotate", "1h,2h"], "two times: give one time and one size at most"),
        (["-p", "x", "--rotate", "1M", "--rotate", "2M"], "two sizes: give one time and one size at most"),
        (["-p", "x", "--rotate", "0s"], "'0s' is no time to wait: write 1h"),
    ],
)
def test_what_a_service_cannot_do(arguments: list[str], said: str, place: Path) -> None:
    done = shmtrace("install-service", *arguments)
    assert done.exit_code in (1, 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not place.exists()


def test_no_command_begins_in_it(place: Path) -> None:
    """What is appended stands behind the last word."""
    (line,) = setting(shmtrace("install-service", *ARGUMENTS, "--print", "--").stdout, "ExecStart")
    assert " -- " not in line
    assert line.endswith(" -o /var/lib/shmtrace/shmtrace.capture")


def test_it_overwrites_only_what_it_wrote(place: Path) -> None:
    first = shmtrace("install-service", *ARGUMENTS)
    assert first.stdout == f"wrote {place}; next: systemctl daemon-reload && systemctl enable --now shmtrace\n"
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    second = shmtrace("install-service", "-a", "--rotate", "10m", "--keep", "7")
    assert second.stdout == f"wrote {place}; next: systemctl daemon-reload && systemctl restart shmtrace\n"
    assert " record -a --rotate 10m " in place.read_text()
    edited = place.read_text().replace("MemoryMax=1G", "MemoryMax=2G")
    place.write_text(edited)
    third = shmtrace("install-service", *ARGUMENTS)
    assert third.exit_code == 1
    assert third.stderr.startswith(f"shmtrace: {place} was not written by this command, or edited since: `rm ")
    assert place.read_text() == edited
    assert sorted(each.name for each in place.parent.iterdir()) == [place.name]


@pytest.mark.parametrize("text", ["", "[Service]\nExecStart=/bin/true\n", f"{unit.MARK}abc\n[Service]\n"])
def test_somebody_elses_unit_stays(text: str, place: Path) -> None:
    place.write_text(text)
    assert shmtrace("install-service", *ARGUMENTS).exit_code == 1
    assert place.read_text() == text


def test_a_masked_unit_stays(place: Path) -> None:
    place.symlink_to("/dev/null")
    done = shmtrace("install-service", *ARGUMENTS)
    assert done.stderr == f"shmtrace: {place} is no regular file: `systemctl unmask shmtrace`, or remove it\n"
    assert place.readlink() == Path("/dev/null")


def test_a_host_without_systemd(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit.install, "__defaults__", (place.parent / "none" / place.name,))
    done = shmtrace("install-service", *ARGUMENTS)
    assert done.stderr == f"shmtrace: there is no {place.parent / 'none'}: --print shows the unit, for another host\n"


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize(("address", "most"), [(None, MOST_EXPOSED), (IPv4Address("127.0.0.1"), MOST_EXPOSED + 0.1)])
def test_what_systemd_says_of_it(address: IPv4Address | None, most: float, tmp_path: Path) -> None:
    """Each setting is one that it knows, and the whole is as closed as it can be."""
    path = tmp_path / "shmtrace.service"
    paths = [tmp_path / "x.capture", tmp_path / "a b" / "x.prom"]
    path.write_text(unit.render([*ARGUMENTS, "-p", '50% "x" $y'], paths, address))
    verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    # older ones have no name for cachestat
    left = [line for line in verified.stderr.splitlines() if not line.endswith("ignoring: cachestat")]
    assert (verified.returncode, left) == (0, [])
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", path],
        capture_output=True,
        text=True,
        check=True,
    )
    [exposed] = re.findall(r"Overall exposure level for shmtrace.service: ([\d.]+)", rated.stdout)
    assert float(exposed) <= most


# ---- readiness ----


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_service_manager_is_told(is_abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@shmtrace-{os.getpid()}" if is_abstract else str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify.tell(notify.READY, "tracing 5 processes\nREADY=0")
        assert manager.recv(1000).decode().split("\n") == ["READY=1", "STATUS=tracing 5 processes\\x0aREADY=0"]


@pytest.mark.parametrize("name", [None, "", "/nowhere/socket", "@nobody", "x" * 5000])
def test_nobody_to_tell(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if name is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert notify.tell(notify.READY) is None
