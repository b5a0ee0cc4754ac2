"""Where the tests are run from: the host's own file system, or a Debian release's, with its Python, bcc and compiler.

A release is a directory in the cache, made by debootstrap, in which the checkout's own bootstrap then sets up what the
tests need.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.kernels.commands import run
from tests.kernels.fetch import CACHE, HOST_ARCHITECTURE, KEYRING, from_mirror

CHECKOUT = Path(__file__).parents[2]
VENV = "/opt/shmtrace"
CERTIFICATES = "/opt/certificates.crt"


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


async def debootstrap(suite: str, architecture: str, mirror: str, scratch: Path, packages: Sequence[str]) -> Path:
    """The directory it has made below scratch. Raises NoResultError."""
    tree = Path(tempfile.mkdtemp(dir=scratch), "tree")
    options = ["--variant=minbase", f"--arch={architecture}", f"--keyring={KEYRING}"]
    options += [f"--include={','.join(packages)}"] * bool(packages)
    await run(*alone(architecture), "debootstrap", *options, suite, str(tree), mirror)
    return tree


async def prepare(name: str, architecture: str) -> Userland:
    """A release's, made if it is not there. Raises NoResultError."""
    root = CACHE / f"debian-{name}{'' if architecture == 'amd64' else f'-{architecture}'}"
    async with TURNS.setdefault(root, asyncio.Lock()):  # kernels that are tried at once may have the same
        await _prepare(root, name, architecture)
    return Userland(root, f"{VENV}/bin/python")


async def _prepare(root: Path, name: str, architecture: str) -> None:
    if root.exists():
        await set_up(root, architecture)
    else:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".debootstrap-") as scratch:
            suite = RELEASES[name].suite
            # a guest of another architecture has no use for the host's busybox
            packages = ["busybox-static"] if architecture != HOST_ARCHITECTURE else []
            tree = await from_mirror(
                suite, lambda mirror: debootstrap(suite, architecture, mirror, Path(scratch), packages)
            )
            await set_up(tree, architecture)
            tree.rename(root)  # at once: whatever is there is complete


async def usual(architecture: str) -> Userland:
    """The host's, for a guest of its architecture; for others Debian's of the same release. Raises NoResultError."""
    return HOST if architecture == HOST_ARCHITECTURE else await prepare("12", architecture)


async def bare() -> Path:
    """A root that has Python, and nothing that shmtrace could use besides, made if it is not there.

    Raises NoResultError.
    """
    return await minimal(CACHE / "bare", "12", ["python3"])  # as the host: what the tests compile runs in it


async def minimal(root: Path, name: str, packages: Sequence[str]) -> Path:
    """A root that has what a release cannot do without, and these packages, made if it is not there.

    Raises NoResultError.
    """
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".debootstrap-") as scratch:
            suite = RELEASES[name].suite
            tree = await from_mirror(suite, lambda mirror: debootstrap(suite, "amd64", mirror, Path(scratch), packages))
            tree.rename(root)
    return root
