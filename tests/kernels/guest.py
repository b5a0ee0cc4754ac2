"""A command under another kernel: in QEMU, all emulated, over a root file system that is the host's or anybody's.

No security boundary: a guest's root could mount the host's file system again, and write to it.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import tempfile
from asyncio.subprocess import STDOUT
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from tests.kernels.commands import NoResultError, started
from tests.kernels.fetch import HOST_ARCHITECTURE
from tests.kernels.initramfs import Kernel, initramfs

CPUS = 2
MEMORY = "3G"
SWAP_BYTES = 512 << 20
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")

COMPLAINT = re.compile(
    r"WARNING: |BUG: |kernel BUG|Oops|rcu.*\bstall|soft lockup|general protection|blocked for more than|Kernel panic"
)


class Share(NamedTuple):
    """A directory of the host that the guest has at the same path."""

    path: Path
    writable: bool


class Logs(NamedTuple):
    """Written while the guest runs."""

    output: Path
    """What the command says."""
    console: Path
    """What the kernel says."""


def complaints(console: str) -> list[str]:
    """Lines of a kernel's console that must not be there."""
    return [line.strip() for line in console.splitlines() if COMPLAINT.search(line)]


class Machine(NamedTuple):
    """What QEMU emulates."""

    program: str
    board: str
    cpu: str
    counting_cpu: str
    clock: str
    counting_clock: str
    console: str
    serial: tuple[str, str]
    """What options make serial ports of the chardevs output and status."""
    ports: tuple[str, str]
    """The names that Linux has for these."""


MACHINES = {
    "amd64": Machine(
        "qemu-system-x86_64",
        "q35",
        "max,la57=off",
        # A string instruction counts as one for each of its rounds: by bytes, as with erms, to clear a page would cost
        # more than all the rest of a fault.
        "max,la57=off,erms=off,fsrm=off",
        # HPET says how fast it is; the TSC, which is the host's, is to be measured, and a guest interrupted at that had
        # a clock nine times too fast. Where instructions are counted it is as sure, and as cheap to read as real ones.
        "clocksource=hpet tsc=unstable",
        "clocksource=tsc tsc=reliable",
        "ttyS0",
        ("-serial chardev:output", "-serial chardev:status"),
        ("ttyS1", "ttyS2"),
    ),
    "arm64": Machine(
        "qemu-system-aarch64",
        "virt,gic-version=3",
        *("neoverse-n1", "neoverse-n1"),  # has pages of 4, 16 and 64 KiB, and no pointer authentication: that is slow
        *("", ""),
        "ttyAMA0",
        ("-device pci-serial,chardev=output", "-device pci-serial,chardev=status"),  # the board has one port
        ("ttyS0", "ttyS1"),
    ),
}


def processor(machine: Machine, counting: bool) -> list[str]:
    # One thread for both CPUs: with one each, a CPU now and then runs kernel text that the other is patching, and dies
    # of an int3 (3 of 70 boots; with this, none of 300).
    if not counting:
        return ["-accel", "tcg,thread=single", "-cpu", machine.cpu, "-smp", str(CPUS)]
    # A nanosecond an instruction, whatever else the host has to do.
    return ["-icount", "shift=0", "-accel", "tcg,thread=single", "-cpu", machine.counting_cpu, "-smp", "1"]


def parameters(kernel: Kernel, machine: Machine, counting: bool) -> str:
    """The kernel's command line."""
    own = f"console={machine.console} output={machine.ports[0]} status={machine.ports[1]}"
    clock = machine.counting_clock if counting else machine.clock
    preempt = f" preempt={kernel.preempt}" if kernel.preempt else ""
    # Level 5: warnings are on the console, and what is less is not.
    return f"{own} quiet loglevel=5 panic=-1 mitigations=off {clock}{preempt}"


def qemu(kernel: Kernel, counting: bool, scratch: Path, logs: Logs) -> list[str]:
    """The command line, but for the file systems."""
    machine = MACHINES[kernel.architecture]
    return [
        machine.program,
        *processor(machine, counting),
        *("-m", MEMORY, "-machine", f"{machine.board},memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),  # shared, for virtiofsd
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel.image), "-initrd", f"{scratch}/initramfs"),
        *("-append", parameters(kernel, machine, counting)),
        *("-chardev", f"file,id=console,path={logs.console},append=on", "-serial", "chardev:console"),
        *("-chardev", f"file,id=output,path={logs.output}", "-chardev", f"file,id=status,path={scratch}/status"),
        *(word for option in machine.serial for word in option.split()),
        *("-drive", f"if=none,id=swap,file={scratch}/swap,format=raw,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=swap"),
    ]


def busybox(kernel: Kernel, root: Path) -> Path:
    """A static one for the kernel's architecture: the host's, or else that of the guest's root."""
    own = Path(shutil.which("busybox") or "/bin/busybox")
    return own if kernel.architecture == HOST_ARCHITECTURE else root / "bin/busybox"


async def serve(path: Path, socket: Path, cache: str, log: int, stack: AsyncExitStack) -> None:
    """A directory, until the stack is left. Raises NoResultError."""
    options = f"sandbox=chroot,log_level=err,cache={cache}"  # its other sandbox cannot serve /
    # It has a descriptor open for each file the guest knows of: 0 is as many as there may be.
    arguments = ("-f", f"--socket-path={socket}", "--rlimit-nofile=0", "-o", f"source={path}", "-o", options)
    # It leaves a file there.
    pid_file = Path("/run/virtiofsd", f"{socket}.pid".replace("/", "."))
    stack.callback(pid_file.unlink, missing_ok=True)
    server = await stack.enter_async_context(started(str(VIRTIOFSD), *arguments, stdout=log, stderr=STDOUT))
    while not socket.exists():
        if server.returncode is not None:
            raise NoResultError(f"virtiofsd cannot serve {path}")
        await asyncio.sleep(0.01)


async def run_in_guest(
    kernel: Kernel,
    command: Sequence[str],
    cwd: Path,
    shares: Sequence[Share],
    logs: Logs,
    timeout_seconds: float,
    root: Path = Path("/"),
    counting: bool = False,
    by: str = "",
) -> int:
    """The exit status of a command that is run there as root, with swap and without a network.

    Counting: on one CPU, whose time is the instructions it has run.
    by: a systemd in the root file system, such as /sbin/init, which becomes the first process and runs the command.

    Raises NoResultError where it does not come to one.
    """
    if not VIRTIOFSD.exists():
        raise NoResultError(f"no {VIRTIOFSD} here: it is in qemu-system-common of Debian 12")
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shmtrace-guest-")))
        log = stack.enter_context(logs.console.open("ab"))
        lines = (f"share{i} {'rw' if share.writable else 'ro'} {share.path}\n" for i, share in enumerate(shares))
        script = f"cd {shlex.quote(str(cwd))} || exit\nexec {shlex.join(command)}\n"
        texts = {"shares": "".join(lines), "command": script, "manager": by}
        (scratch / "initramfs").write_bytes(initramfs(kernel, busybox(kernel, root), texts))
        with (scratch / "swap").open("wb") as swap:
            swap.truncate(SWAP_BYTES)

        arguments = qemu(kernel, counting, scratch, logs)
        tags = [("root", root, "always")]
        tags += [(f"share{i}", share.path, "auto" if share.writable else "always") for i, share in enumerate(shares)]
        for tag, path, cache in tags:
            socket = scratch / f"{tag}.socket"
            await serve(path, socket, cache, log.fileno(), stack)
            arguments += ["-chardev", f"socket,id={tag},path={socket}"]
            arguments += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        machine = await stack.enter_async_context(started(*arguments, stdout=log.fileno(), stderr=STDOUT))
        try:
            await asyncio.wait_for(machine.wait(), timeout_seconds)
        except asyncio.TimeoutError:
            raise NoResultError(f"not at its end after {timeout_seconds:.0f} s") from None
        status = (scratch / "status").read_text() if (scratch / "status").exists() else ""
        if not status:
            raise NoResultError("did not boot, or died: its console, below, says why")
        return int(status)
