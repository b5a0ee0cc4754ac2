"""bootstrap, with stand-ins for the programs that need root or a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tracer.kernel.packages import BCC

CHECKOUT = Path(__file__).parent.parent

# As .venv/bin/python: tells what it is asked, and fails at that where told to. What its pip installs as shmtrace tells
# where and with what it is run, and ends with its first argument as status.
PYTHON = """#!/bin/sh
base=${0%/venv/*}
echo "$*" >>"$base/python"
case "$*" in "$(cat "$base/broken")"*) echo cannot; exit 2 ;; esac
case "$*" in "-m pip install"*)
    printf '#!/bin/sh\\necho "$PWD" "$@"\\nexit "$1"\\n' >"${0%/*}/shmtrace"
    chmod +x "${0%/*}/shmtrace" ;;
esac
"""


class Bootstrap:
    """A copy of the checkout's, where all packages are installed, on a PATH of few programs."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.checkout = base / "a checkout"
        self.checkout.mkdir()
        shutil.copy(CHECKOUT / "pyproject.toml", self.checkout)
        # A package is there if base/packages/PACKAGE is.
        self.packages = base / "packages"
        self.packages.mkdir()
        table = re.compile(r"^([a-z0-9-]+) +/\S+$", re.MULTILINE)
        text = (CHECKOUT / "bootstrap").read_text()
        for name in table.findall(text):
            (self.packages / name).touch()
        text = table.sub(rf"\1 {self.packages}/\1", text.replace("/etc/os-release", f"{base}/os-release"))
        self.script(self.checkout / "bootstrap", text)
        self.programs = base / "programs"
        for name in ("cat", "chmod", "find", "ln", "mktemp", "readlink", "rm", "sh", "tee", "tr"):
            self.stand_in(name, f'exec {shutil.which(name)} "$@"')
        self.stand_in("id", "echo 0")
        self.stand_in("apt-get", f'echo "$*" >>"{base}/apt-get"')
        self.venv = base / "venv"
        self.script(self.venv / "bin/python", PYTHON)
        self.broken = base / "broken"
        self.broken.write_text("nothing")

    def script(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def stand_in(self, name: str, command: str) -> None:
        self.script(self.programs / name, f"#!/bin/sh\n{command}\n")

    def run(self, *arguments: str, cwd: Path | None = None, program: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program or self.checkout / "bootstrap", *arguments],
            env={"PATH": str(self.programs), "SHMTRACE_VENV": str(self.venv)},
            cwd=cwd or self.base,
            capture_output=True,
            text=True,
        )

    def asked(self, name: str) -> list[str]:
        return (self.base / name).read_text().splitlines()


@pytest.fixture
def bootstrap(tmp_path: Path) -> Bootstrap:
    return Bootstrap(tmp_path)


def test_is_plain_sh() -> None:
    subprocess.run(["sh", "-n", CHECKOUT / "bootstrap"], check=True)
    assert os.access(CHECKOUT / "bootstrap", os.X_OK)


def test_installs_once_and_is_silent_then(bootstrap: Bootstrap) -> None:
    first, second = bootstrap.run("0"), bootstrap.run("0")
    assert first.stderr == f"bootstrap: installing shmtrace into {bootstrap.venv}\n"
    assert second.stderr == ""
    assert [line for line in bootstrap.asked("python") if "pip install" in line] == [
        "-m pip install --quiet --disable-pip-version-check pip>=21.3",
        f"-m pip install --quiet --disable-pip-version-check --editable {bootstrap.checkout}",
    ]


def test_installs_again_for_another_pyproject(bootstrap: Bootstrap) -> None:
    bootstrap.run("0")
    with (bootstrap.checkout / "pyproject.toml").open("a") as file:
        file.write("# one more line\n")
    assert "installing shmtrace" in bootstrap.run("0").stderr
    assert bootstrap.run("0").stderr == ""


def test_ends_with_the_status_of_the_command(bootstrap: Bootstrap) -> None:
    assert bootstrap.run("7").returncode == 7


def test_stays_in_the_directory_it_is_called_from(bootstrap: Bootstrap) -> None:
    elsewhere = bootstrap.base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to(bootstrap.checkout / "bootstrap")
    done = bootstrap.run("0", "an argument", program="./link", cwd=elsewhere)
    assert done.stdout == f"{elsewhere} 0 an argument\n"


def test_says_what_failed_after_all_that_was_said(bootstrap: Bootstrap) -> None:
    bootstrap.broken.write_text("-m pip")
    done = bootstrap.run("0")
    task = f"installing shmtrace into {bootstrap.venv}"
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"bootstrap: {task}",
        "cannot",
        f"bootstrap: {task} failed (see its output above): check the network and run this again",
    ]
    bootstrap.broken.write_text("nothing")
    assert bootstrap.run("0").returncode == 0


def test_installs_the_packages_that_are_missing(bootstrap: Bootstrap) -> None:
    (bootstrap.packages / "python3-bpfcc").unlink()
    (bootstrap.packages / "php-fpm").unlink()  # only tests need it
    assert "bootstrap: installing python3-bpfcc\n" in bootstrap.run("0").stderr
    update, install = bootstrap.asked("apt-get")
    assert update.endswith(" update")
    assert " --no-install-recommends " in install
    assert install.endswith(" install python3-bpfcc")


@pytest.mark.parametrize(
    ("release", "package"),
    [
        ("ID=devuan\nID_LIKE=debian", "python3-bpfcc"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "python3-bcc"),
        ("ID=alpine", "py3-bcc"),
        ("ID=manjaro\nID_LIKE=arch", "python-bcc"),
        *((f"ID={name}", command.rpartition(" ")[2]) for name, command in BCC.items()),  # as shmtrace itself names them
    ],
)
def test_names_the_packages_where_there_is_no_apt_get(bootstrap: Bootstrap, release: str, package: str) -> None:
    (bootstrap.base / "os-release").write_text(release)
    (bootstrap.packages / "python3-bpfcc").unlink()
    (bootstrap.programs / "apt-get").unlink()
    done = bootstrap.run("0")
    assert done.returncode == 1
    said = f"install python3-bpfcc (Debian's names; bcc is {package} here) and run this again"
    assert done.stderr == f"bootstrap: there is no apt-get: {said}\n"


def test_says_so_where_it_is_not_root_and_there_is_no_sudo(bootstrap: Bootstrap) -> None:
    bootstrap.stand_in("id", "echo 65534")
    done = bootstrap.run("snapshot")
    assert done.returncode == 1
    assert done.stderr == (
        "bootstrap: it needs root, to load BPF and to read /proc/PID/map_files, and there is no sudo: run it as root\n"
    )


def test_goes_through_sudo(bootstrap: Bootstrap) -> None:
    bootstrap.stand_in("id", "echo 65534")
    bootstrap.stand_in("sudo", 'printf "%s\\n" "$@"; exit 7')
    done = bootstrap.run("-p", "php fpm")
    kept, *command = done.stdout.splitlines()
    assert kept.startswith("--preserve-env=SHMTRACE_VENV,")
    assert command == [str(bootstrap.checkout / "bootstrap"), "-p", "php fpm"]
    assert done.returncode == 7


@pytest.mark.parametrize(
    ("broken", "status"), [("nothing", 0), ("-m mypy", 1), ("-m pytest", 2)], ids=["well", "check", "tests"]
)
def test_runs_the_checks_and_then_the_tests(bootstrap: Bootstrap, broken: str, status: int) -> None:
    for folder in ("bpf", "tests"):
        (bootstrap.checkout / folder).mkdir()
    bootstrap.broken.write_text(broken)
    done = bootstrap.run("test", "-k", "a name")
    assert done.returncode == status
    assert bootstrap.asked("python")[-4:] == [
        "-m ruff check",
        "-m ruff format --check",
        "-m mypy",
        "-m pytest -k a name",
    ]
    assert ("bootstrap: the tests pass, but these checks fail:" in done.stderr) == (broken == "-m mypy")


def test_sets_up_for_the_tests_and_runs_none(bootstrap: Bootstrap) -> None:
    (bootstrap.packages / "php-fpm").unlink()
    done = bootstrap.run("test", "--setup")
    assert done.returncode == 0
    assert bootstrap.asked("apt-get")[-1].endswith(" install php-fpm")
    assert bootstrap.asked("python")[-1].endswith(f" --editable {bootstrap.checkout}[test]")


def test_runs_the_fuzzers(bootstrap: Bootstrap) -> None:
    done = bootstrap.run("fuzz", "60", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert bootstrap.asked("python")[-1] == "-m tests.fuzz 60 --seed 7"
    assert f"pip install --quiet --disable-pip-version-check --editable {bootstrap.checkout}[test]" in "".join(
        bootstrap.asked("python")
    )


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["--kernels"], "-m tests.kernels"),
        (["--kernels", "6.12", "7.2"], "-m tests.kernels 6.12 7.2"),
        (["--distros", "11"], "-m tests.kernels --distros 11"),
    ],
)
def test_runs_the_tests_under_other_kernels(bootstrap: Bootstrap, arguments: list[str], runs: str) -> None:
    """They need pytest, and the packages of the tests and those to boot a guest with."""
    for name in ("python3-bpfcc", "php-fpm", "qemu-system-x86", "bpftrace"):
        (bootstrap.packages / name).unlink()
    bootstrap.broken.write_text(runs)
    assert bootstrap.run("test", *arguments).returncode == 2
    *_, install, run = bootstrap.asked("python")
    assert install.endswith(f" --editable {bootstrap.checkout}[test]")
    assert run == runs
    assert bootstrap.asked("apt-get")[-1].endswith(" install python3-bpfcc php-fpm qemu-system-x86")


@pytest.mark.parametrize("arguments", [["test", "--kernels", "--arm64"], ["pyz", "6.12", "6.12-arm64"]])
def test_guests_of_arm64_need_its_emulators(bootstrap: Bootstrap, arguments: list[str]) -> None:
    for name in ("qemu-system-x86", "qemu-system-arm", "qemu-user-static"):
        (bootstrap.packages / name).unlink()
    bootstrap.run(*arguments)
    assert bootstrap.asked("apt-get")[-1].endswith(" install qemu-system-x86 qemu-system-arm qemu-user-static")


def test_tries_the_debian_package_with_what_builds_and_boots_it(bootstrap: Bootstrap) -> None:
    for name in ("php-fpm", "qemu-system-x86", "lintian"):
        (bootstrap.packages / name).unlink()
    assert bootstrap.run("test", "--kernels", "--deb", "13").returncode == 0
    assert bootstrap.asked("python")[-1] == "-m tests.kernels --deb 13"
    assert bootstrap.asked("apt-get")[-1].endswith(" install qemu-system-x86 lintian")
