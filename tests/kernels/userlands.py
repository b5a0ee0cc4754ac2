"""Where the tests are run from: the host's own file system, or a Debian release's, with its Python, bcc and compiler.

A release is a directory in the cache, made by debootstrap, in which the checkout's own bootstrap then sets up what the
tests need. Where less will do, packages are only extracted: that takes half a minute, also for another architecture.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.kernels.commands import run
from tests.kernels.fetch import CACHE, HOST_ARCHITECTURE, KEYRING, from_mirror
from tests.kernels.guest import Share

CHECKOUT = Path(__file__).parents[2]
VENV = "/opt/shmtrace"
CERTIFICATES = "/opt/certificates.crt"
MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"


class Release(NamedTuple):
    suite: str
    kernel: str


RELEASES = {
    "11": Release("bullseye", "5.10"),
    "12": Release("bookworm", "6.1"),
    "13": Release("trixie", "6.12"),
    "unstable": Release("sid", "7.2"),
}


class Userland(NamedTuple):
    root: Path
    python: str

    def shares(self, *paths: Path) -> list[Share]:
        """Of the host's directories those that a guest has to be given: in the host's own root they all are."""
        return [] if self is HOST else [Share(path, writable=False) for path in paths]


TURNS: dict[Path, asyncio.Lock] = {}
HOST = Userland(Path("/"), sys.executable)

# In namespaces of its own: whatever it starts ends with it, and what it mounts is mounted for nobody else.
ALONE = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
# And where programs of arm64 run, by QEMU: as qemu-user-static sets it up itself, on a host that has systemd.
WITH_ARM64 = """
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] ||
	cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
exec "$@"
"""
INSIDE = """
root=$1
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""
SET_UP = '"$1" test --setup; apt-get clean'

NETWORK = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
BUNDLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def way_out(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the host's environment apt and pip need to reach the network from another root."""
    handed = {name: value for name, value in environment.items() if name in NETWORK or name.startswith("PIP_")}
    return {**handed, "PIP_CERT": CERTIFICATES}


def certificates(environment: Mapping[str, str]) -> Path:
    """Those pip trusts here: a host behind a proxy may have one of its own among them."""
    return Path(next(filter(None, map(environment.get, BUNDLES)), "/etc/ssl/certs/ca-certificates.crt"))


def alone(architecture: str) -> list[str]:
    """What a command is to be preceded by, that runs programs of an architecture and may mount what it needs."""
    return ALONE if architecture == HOST_ARCHITECTURE else [*ALONE, "sh", "-ec", WITH_ARM64, "sh"]


async def run_inside(root: Path, architecture: str, *command: str, **variables: str) -> None:
    """As root of another root, from where apt and pip reach the network as they do here. Raises NoResultError."""
    # How the archive is reached from here, and what is taken from it.
    (root / "etc/apt/apt.conf.d/00host").write_text(await run("apt-config", "dump", "Acquire"))
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    shutil.copy(certificates(os.environ), root / CERTIFICATES.lstrip("/"))
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        **way_out(os.environ),
        **variables,
    }
    await run(*alone(architecture), "sh", "-ec", INSIDE, "sh", str(root), *command, env=environment)


async def set_up(root: Path, architecture: str) -> None:
    """Quick where nothing is missing. Raises NoResultError."""
    # A copy, which pip may write to; a guest has the checkout itself in its place.
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
    shutil.copytree(CHECKOUT, root / CHECKOUT.relative_to("/"), ignore=ignored, dirs_exist_ok=True)
    await run_inside(root, architecture, "sh", "-ec", SET_UP, "sh", f"{CHECKOUT}/bootstrap", SHMTRACE_VENV=VENV)


def place(name: str, architecture: str) -> Path:
    """Where a root is in the cache."""
    return CACHE / f"{name}{'' if architecture == 'amd64' else f'-{architecture}'}"


async def made(root: Path, release: str, make: Callable[[Path, str, str], Awaitable[object]]) -> Path:
    """A root, made if it is not there: below a directory, of a suite, from a mirror. Raises NoResultError."""
    async with TURNS.setdefault(root, asyncio.Lock()):  # kernels that are tried at once may have the same
        if not root.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=".root-") as scratch:
                suite = RELEASES[release].suite

                async def make_anew(mirror: str) -> Path:
                    tree = Path(tempfile.mkdtemp(dir=scratch), "tree")
                    await make(tree, suite, mirror)
                    return tree

                (await from_mirror(suite, make_anew)).rename(root)  # at once: whatever is there is complete
    return root


async def debootstrap(tree: Path, suite: str, mirror: str, architecture: str) -> None:
    """What a release cannot do without. Raises NoResultError."""
    options = ["--variant=minbase", f"--arch={architecture}", f"--keyring={KEYRING}"]
    if architecture != HOST_ARCHITECTURE:
        options.append("--include=busybox-static")  # a guest has no use for the host's
    await run(*alone(architecture), "debootstrap", *options, suite, str(tree), mirror)


async def minimal(release: str) -> Path:
    """A root that has nothing else. Raises NoResultError."""
    return await made(place(f"minimal-{release}", "amd64"), release, partial(debootstrap, architecture="amd64"))


async def prepare(release: str, architecture: str) -> Userland:
    """With all that the tests need. Raises NoResultError."""

    async def make(tree: Path, suite: str, mirror: str) -> None:
        await debootstrap(tree, suite, mirror, architecture)
        await set_up(tree, architecture)

    root = place(f"debian-{release}", architecture)
    was_there = root.exists()
    await made(root, release, make)
    if was_there:
        await set_up(root, architecture)
    return Userland(root, f"{VENV}/bin/python")


async def extracted(name: str, architecture: str, packages: Sequence[str]) -> Path:
    """Debian 12 with some packages as they are, of which no script is run: so nothing is emulated.

    Raises NoResultError.
    """

    async def make(tree: Path, suite: str, mirror: str) -> None:
        there = ",".join(["base-files", "busybox-static", "coreutils", "dash", "python3", *packages])
        options = ["--variant=extract", f"--architectures={architecture}", f"--keyring={KEYRING}", f"--include={there}"]
        await run(*ALONE, "mmdebstrap", *options, f"--hook-dir={MERGED_USR}", suite, str(tree), mirror)

    return await made(place(name, architecture), "12", make)


async def lean(architecture: str) -> Userland:
    """The host's, for a guest of its architecture; for others what the workloads need, and no bcc.

    Raises NoResultError.
    """
    if architecture == HOST_ARCHITECTURE:
        return HOST
    root = await extracted("lean", architecture, ["gcc", "libc6-dev", "python3-click", "python3-pytest"])
    with contextlib.suppress(FileExistsError):  # what scripts of packages would have made
        (root / "mnt").mkdir()
        (root / "usr/bin/cc").symlink_to("gcc")
    return Userland(root, "/usr/bin/python3")


async def bare(architecture: str) -> Path:
    """A root that has Python, and nothing that shmtrace could use besides. Raises NoResultError."""
    return await extracted("bare", architecture, [])  # as the others: what the tests compile runs in it
