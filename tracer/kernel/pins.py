"""The directory on a bpffs that keeps the maps, programs and links of an armed trace, with no process running.

Unlinking them detaches the programs. Only root can enter the directory.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import ShmtraceError

if TYPE_CHECKING:
    from tracer.kernel.probes import Probes

BPFFS = Path("/sys/fs/bpf")
PINS = BPFFS / "shmtrace"
BPF_FS_MAGIC = 0xCAFE4A11

_libc = ctypes.CDLL(None, use_errno=True)


def need_bpffs() -> None:
    """Raises ShmtraceError where there is no bpffs, or somebody else has made the directory in it."""
    place = ctypes.create_string_buffer(256)  # struct statfs, which begins with the magic number
    if _libc.statfs(os.fsencode(BPFFS), place) or ctypes.c_long.from_buffer(place).value != BPF_FS_MAGIC:
        raise ShmtraceError(f"no bpffs is mounted on {BPFFS}", f"mount -t bpf -o mode=700 bpf {BPFFS}")
    found = PINS.lstat() if os.path.lexists(PINS) else None
    if found and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
        raise ShmtraceError(f"{PINS} belongs to another user, or others may enter it", "remove it")


def keep(probes: Probes) -> None:
    """Pin all that the probes consist of. Raises ShmtraceError where the kernel can't, and leaves nothing then."""
    need_bpffs()
    remove()
    try:
        PINS.mkdir(0o700)
        probes.pin(PINS)
    except OSError as error:
        remove()
        raise ShmtraceError(
            f"this kernel cannot keep {probes.tier.title} without a process ({error.strerror})",
            "`shmtrace record -o FILE` keeps a process running",
        ) from None


def nr_links() -> int:
    """How many links are pinned."""
    try:
        return len(list((PINS / "links").iterdir()))
    except OSError:
        return 0


def remove() -> bool:
    """Unlink all that is pinned; returns whether there was anything. Raises OSError."""
    if not PINS.is_dir():
        return False
    # the links first: what they attach runs until then, and uses the maps
    for name in ("links", "programs", "maps"):
        shutil.rmtree(PINS / name, ignore_errors=True)
    shutil.rmtree(PINS)
    return True
