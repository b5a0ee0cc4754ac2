"""What a kernel needs before it has a root file system, made in memory: busybox, modules, two scripts."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.kernels.commands import NoResultError

# In the order they are loaded; a kernel has no file for those it has built in. 6.1 wants virtio_ring before virtio.
# loop is for the tests, which cannot load modules: /lib/modules has the host's.
MODULES = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "fuse",
    "virtiofs",
    "overlay",
    "loop",
]
DIRECTORY, PROGRAM, FILE = 0o40755, 0o100755, 0o100644


class Kernel(NamedTuple):
    release: str
    image: Path
    modules: dict[str, Path]
    """Compressed or not, by name."""
    architecture: str = "amd64"
    """Debian's name of it."""
    preempt: str | None = None
    """The preemption model to boot it with; None: its own choice."""

    @classmethod
    def find(cls, unpacked: Path, architecture: str = "amd64") -> Kernel:
        """In a directory its packages were unpacked in. Raises NoResultError."""
        for folder in unpacked.glob("**/lib/modules/*"):
            for image in folder / "vmlinuz", unpacked / "boot" / f"vmlinuz-{folder.name}":
                if image.exists():
                    files = folder.glob("kernel/**/*.ko*")
                    modules = {path.name.partition(".ko")[0].replace("-", "_"): path for path in files}
                    return cls(folder.name, image, modules, architecture)
        what = f"there is no kernel in {unpacked}, no lib/modules/RELEASE with its vmlinuz"
        raise NoResultError(f"{what}: if it was fetched, remove it, to fetch it anew")


class Entry(NamedTuple):
    name: str
    mode: int
    data: bytes = b""


def cpio(entries: Iterable[Entry]) -> bytes:
    """An archive in the form the kernel unpacks, "newc": all its numbers are hexadecimal."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4) + entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def modules_to_load(kernel: Kernel) -> list[str]:
    return [name for name in MODULES if name in kernel.modules]


def initramfs(kernel: Kernel, busybox: Path, texts: Mapping[str, str]) -> bytes:
    """With the kernel's modules, a static busybox, the scripts beside this file, and some texts for them."""
    here = Path(__file__).parent
    entries = [Entry(name, DIRECTORY) for name in ("bin", "dev", "proc", "modules")]
    entries += [Entry("bin/busybox", PROGRAM, busybox.read_bytes())]
    entries += [Entry("init", PROGRAM, (here / "init.sh").read_bytes())]
    entries += [Entry("switched.sh", PROGRAM, (here / "switched.sh").read_bytes())]
    names = modules_to_load(kernel)
    entries += [Entry("modules/order", FILE, "\n".join(names).encode())]
    for name in names:
        path = kernel.modules[name]
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            entries.append(Entry(f"modules/{name}.ko", FILE, file.read()))
    entries += [Entry(name, FILE, text.encode()) for name, text in texts.items()]
    return cpio(entries)
