"""vagrant/: what sets up a test machine, with stand-ins for the programs that need root or systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_bootstrap import CHECKOUT, Bootstrap
from vagrant import visitor

VAGRANT = CHECKOUT / "vagrant"
# The machine's own files, which a test keeps to its folder.
OUTSIDE = re.compile(r"(?<![\w/])/(?=etc/|usr/local/|run/systemd/)")


class Machine:
    """A copy of provision.sh, all of whose programs are stand-ins or harmless, on a machine that is a folder."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.checkout = base / "checkout"
        self.programs = base / "programs"
        self.pools = base / "etc/php/8.2/fpm/pool.d"
        for folder in ("etc/php/7.4/fpm/pool.d", "etc/systemd/system", "run/systemd/system", "usr/local/bin"):
            (base / folder).mkdir(parents=True)
        self.pools.mkdir(parents=True)
        text = (VAGRANT / "provision.sh").read_text()
        self.script(self.checkout / "vagrant/provision.sh", OUTSIDE.sub(f"{base}/", text))
        self.script(self.checkout / "bootstrap", f'#!/bin/sh\necho "$*" >>"{base}/bootstrap"\n')
        self.script(self.checkout / ".venv/bin/shmtrace", f'#!/bin/sh\necho "$*" >>"{base}/shmtrace"\n')
        for name in ("cat", "ln", "readlink", "sh"):
            self.stand_in(name, f'exec {shutil.which(name)} "$@"')
        self.stand_in("id", "echo 0")
        self.stand_in("apt-get", "exit 1")
        self.stand_in("systemctl", f'echo "$*" >>"{base}/systemctl"')

    def script(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def stand_in(self, name: str, command: str) -> None:
        self.script(self.programs / name, f"#!/bin/sh\n{command}\n")

    def provision(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "vagrant/provision.sh"],
            env={"PATH": str(self.programs)},
            cwd=self.base,
            capture_output=True,
            text=True,
        )

    def asked(self, name: str) -> list[str]:
        return (self.base / name).read_text().splitlines()

    def written(self) -> dict[Path, str]:
        return {path: path.read_text() for path in (self.base / "etc").rglob("*") if path.is_file()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def bootstrap(tmp_path: Path) -> Bootstrap:
    return Bootstrap(tmp_path)


def boxes() -> dict[str, list[str]]:
    """The names in the Vagrantfile's table, and the boxes of each."""
    rows = re.findall(r'^  "(\w+)" => \[(.*)\],$', (VAGRANT / "Vagrantfile").read_text(), re.MULTILINE)
    return {name: re.findall(r'"([^"]+)"', row) for name, row in rows}


def test_is_plain_sh() -> None:
    subprocess.run(["sh", "-n", VAGRANT / "provision.sh"], check=True)
    assert os.access(VAGRANT / "provision.sh", os.X_OK)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", VAGRANT / "provision.sh"], check=True)


def test_leaves_packages_to_bootstrap() -> None:
    text = (VAGRANT / "provision.sh").read_text()
    assert not re.search(r"^\s*(apt|apt-get|dnf|yum|zypper|pip)\b.* install\b", text, re.MULTILINE)
    assert '"$root/bootstrap" site' in text


def test_bootstrap_installs_the_site_and_runs_nothing(bootstrap: Bootstrap) -> None:
    for name in ("php-fpm", "postgresql"):
        (bootstrap.packages / name).unlink()
    done = bootstrap.run("site")
    assert done.returncode == 0
    assert done.stdout == ""
    assert bootstrap.asked("apt-get")[-1].endswith(" install php-fpm")


def test_sets_up_the_newest_php_and_the_command(machine: Machine) -> None:
    done = machine.provision()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "provision.sh: ready for: sudo shmtrace -p php-fpm -d 30\n"
    assert machine.asked("bootstrap") == ["site"]
    assert machine.asked("shmtrace") == ["doctor"]
    assert (machine.base / "usr/local/bin/shmtrace").resolve() == machine.checkout / ".venv/bin/shmtrace"
    pool = machine.pools / "shmtrace-site.conf"
    unit = machine.base / "etc/systemd/system/shmtrace-site.service"
    assert set(machine.written()) == {pool, unit}
    [socket] = re.findall(r"^listen = (.+)$", pool.read_text(), re.MULTILINE)
    assert f"-m vagrant.visitor {socket} " in unit.read_text()
    assert f"\nWorkingDirectory={machine.checkout}\n" in unit.read_text()
    assert machine.asked("systemctl") == [
        "daemon-reload",
        "--quiet enable php8.2-fpm shmtrace-site",
        "stop shmtrace-site",
        "restart php8.2-fpm",
        "start shmtrace-site",
    ]


def test_changes_nothing_the_second_time(machine: Machine) -> None:
    machine.provision()
    before = machine.written()
    done = machine.provision()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.written() == before


def test_says_what_is_in_the_way_and_what_to_do(machine: Machine) -> None:
    def fails_with(*words: str) -> bool:
        done = machine.provision()
        [line] = done.stderr.splitlines()
        assert done.returncode == 1
        assert line.startswith("provision.sh: ")
        return all(word in line for word in words)

    machine.script(machine.checkout / ".venv/bin/shmtrace", "#!/bin/sh\nexit 1\n")
    assert fails_with("sudo shmtrace doctor")
    machine.stand_in("systemctl", 'case "$1" in restart) echo much >&2; exit 1 ;; esac')
    assert fails_with("journalctl -u php8.2-fpm")
    (machine.base / "run/systemd/system").rmdir()
    assert fails_with("systemd", "virtual machine")
    (machine.programs / "apt-get").unlink()
    assert fails_with("no apt-get", "README.md")
    machine.stand_in("id", "echo 1000")
    assert fails_with("needs root: sudo ")


def test_ends_where_bootstrap_fails(machine: Machine) -> None:
    machine.script(machine.checkout / "bootstrap", "#!/bin/sh\necho 'bootstrap: failed' >&2\nexit 1\n")
    done = machine.provision()
    assert (done.returncode, done.stderr) == (1, "bootstrap: failed\n")
    assert machine.written() == {}


def test_visitor_asks_for_each_script_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Path]] = []
    monkeypatch.setattr(visitor, "SCRIPTS", 3)
    monkeypatch.setattr(visitor, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(visitor, "request", lambda address, script: asked.append((address, script)))
    address = tmp_path / "socket"
    for _ in range(2):
        visitor.visit(address, tmp_path)
    scripts = sorted(tmp_path.glob("*.php"))
    assert len(scripts) == 3
    assert asked == [(address, script) for script in scripts] * 2


def test_machines_have_a_box_for_each_provider() -> None:
    assert {"bullseye", "bookworm", "trixie"} < set(boxes())
    for of in boxes().values():
        assert len(of) == 3
        assert all(re.fullmatch(r"[\w-]+/[\w.-]+", box) for box in of)


def test_contributing_names_machines_there_are() -> None:
    named = re.findall(r"vagrant (?:up|ssh|rsync|destroy -f) (\w+)", (CHECKOUT / "CONTRIBUTING.md").read_text())
    assert named
    assert set(named) <= set(boxes())


@pytest.mark.skipif(not shutil.which("ruby"), reason="ruby is not installed")
def test_vagrantfile_is_ruby() -> None:
    subprocess.run(["ruby", "-c", VAGRANT / "Vagrantfile"], check=True, stdout=subprocess.DEVNULL)
