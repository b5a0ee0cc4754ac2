"""Where shmtrace is installed from its Debian package, in a guest: uses it, and keeps a record of how that went.

    python3 installed.py RECORD STEP...

RECORD gets a line of JSON for each step: its name, what was wrong with it (null: nothing), its seconds. compiled/,
beside it, gets what shmtrace has compiled. This file runs where tests/kernels/package.py has put it, with nothing else
of the checkout.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from mmap import PAGESIZE
from pathlib import Path

HERE = Path(__file__).parent
CACHE, STATE = Path("/var/cache/shmtrace"), Path("/var/lib/shmtrace")
SERVICE = "shmtrace@workload.service"
DEMO_MIB = 92
REGION_PAGES, TOUCHED = 409, [11, 29]
# Its name, which the service waits for, is the file's.
WORKLOAD = f"""#!/usr/bin/python3
import mmap, os
memory = mmap.mmap(-1, {REGION_PAGES} * mmap.PAGESIZE)
for first, number in zip((30, 200), {TOUCHED}):
    child = os.fork()
    if not child:
        for page in range(first, first + number):
            memory[page * mmap.PAGESIZE] = 1
        os._exit(0)
    os.waitpid(child, 0)
"""


class WrongError(Exception):
    """What is not as it should be."""


def run(*command: str | Path) -> str:
    """What it says on standard output, which is printed. Raises WrongError where it fails."""
    print("+", *command, flush=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise WrongError(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def must_be(what: str, found: object, expected: object) -> None:
    """Raises WrongError where it is not."""
    if found != expected:
        raise WrongError(f"{what}: {found}, not {expected}")


def doctor() -> None:
    must_be("the tier", run("shmtrace", "doctor").partition(":")[0], "tier exact")


def demo() -> None:
    """Of half a region's two halves, each child is the first to touch one."""
    said = run("shmtrace", "demo", "--size", str(DEMO_MIB)).rpartition("\n6  ")[2]
    found = dict(re.findall(r"^  ([AB]) .* (\d+) pages, exited$", said, re.MULTILINE))
    quarter = str((DEMO_MIB << 20) // 4 // PAGESIZE)
    must_be("what A and B have touched", found, {"A": quarter, "B": quarter})


def autopkgtest() -> None:
    """debian/tests, as Debian would run them. Needs no network: what they depend on is there."""
    [package] = HERE.glob("shmtrace_*_all.deb")
    # The guest is the machine; Debian 13's null says no more that there is one.
    alone = "--ignore-restrictions=isolation-machine"
    run("autopkgtest", "--no-built-binaries", alone, package, HERE / "source", "--", "null")


def touched() -> list[list[int]]:
    """How many pages each process has touched of each of the workload's regions in all captures there are."""
    found = []
    for capture in STATE.glob("workload*.capture"):
        report = json.loads(run("shmtrace", "report", "--json", capture))
        for region in report["regions"]:
            if region["size_bytes"] == REGION_PAGES * PAGESIZE:
                must_be("bytes unseen", region["unseen_bytes"], 0)
                found.append(sorted(toucher["touched_bytes"] // PAGESIZE for toucher in region["touchers"]))
    return found


def property_of(name: str) -> str:
    return run("systemctl", "show", "--value", f"--property={name}", SERVICE).strip()


def service() -> None:
    """The unit waits for a workload, records it, and has its capture once it is stopped."""
    workload = HERE / "workload"
    workload.write_text(WORKLOAD)
    workload.chmod(0o755)
    Path("/run/systemd/system/work.service").write_text(f"[Service]\nType=oneshot\nExecStart={workload}\n")
    run("systemctl", "start", SERVICE)
    run("systemctl", "start", "work.service")
    must_be("its restarts", property_of("NRestarts"), "0")
    run("systemctl", "stop", SERVICE)
    run("journalctl", "--no-pager", "--quiet", f"--unit={SERVICE}")
    must_be("how it ended", property_of("Result"), "success")
    must_be("pages touched", touched(), [TOUCHED])


def upgrade() -> None:
    """A service that runs is restarted with the new version, and captures are kept."""
    run("systemctl", "enable", "--now", SERVICE)
    process = property_of("MainPID")
    run("dpkg", "--install", *HERE.glob("newer/*.deb"))
    must_be("the service", property_of("ActiveState"), "active")
    must_be("whether its process is the old one", property_of("MainPID") == process, False)
    must_be("pages touched", touched(), [TOUCHED])


def purge() -> None:
    """Nothing is left, of a service that runs and a trace that is armed neither."""
    run("shmtrace", "arm", "-p", "workload")
    run("apt-get", "-qqy", "purge", "shmtrace")
    must_be("the service", property_of("ActiveState"), "inactive")
    places = ["/etc", "/opt", "/root", "/run", "/sys/fs/bpf", "/tmp", "/usr", "/var"]
    ours = ["(", "-path", HERE, "-o", "-path", "/tmp/shmtrace-kernels-*", ")", "-prune"]  # and where the record is
    left = run("find", *places, *ours, "-o", "-name", "*shmtrace*", "-print").split()
    must_be("files left", left, [])


STEPS = {step.__name__: step for step in (doctor, demo, autopkgtest, service, upgrade, purge)}


def main(record: Path, names: list[str]) -> None:
    with record.open("w") as file:
        for name in names:
            began, wrong = time.monotonic(), None
            try:
                STEPS[name]()
            except (WrongError, ValueError, LookupError, OSError) as error:
                wrong = f"{type(error).__name__}: {error}" if not isinstance(error, WrongError) else str(error)
            print(json.dumps([name, wrong, time.monotonic() - began]), file=file, flush=True)
    if CACHE.exists():
        shutil.copytree(CACHE, record.with_name("compiled"), dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
