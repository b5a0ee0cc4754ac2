"""The compiled programs of bpf/: their instructions and the maps they use.

The bytecode is the same for every trace on all kernels with the same layout. A trace only differs in what the maps hold
and how large they are. bcc compiles it in a separate process (tracer/kernel/compiler.py), since LLVM takes 130 MB and
nearly all of the time.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall
from tracer.kernel.cache import CACHE, Cache
from tracer.kernel.packages import install_bcc
from tracer.shipped import shipped

FORMAT = 1
ROOMS = ("blocks", "processes", "regions", "usages", "alive", "cpus")
FIRST_ROOM = 7919  # the compiled size of a map whose real size depends on the trace: FIRST_ROOM + its index in ROOMS
COMPILE_SECONDS = 600
# of the compiler's stderr
MAX_TOLD_BYTES = 1 << 16
NO_BCC = "no bcc: "
LIBRARIES = ("/usr/lib/{}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


def sources() -> dict[str, str]:
    """The files of bpf/: content by path."""
    top, checkout = shipped("bpf"), Path(__file__).parents[2] / "bpf"
    top = top if top.is_dir() else checkout
    found, waiting = {}, [("", top)]
    while waiting:
        name, place = waiting.pop()
        if place.is_dir():
            waiting += [(f"{name}/{inner.name}" if name else inner.name, inner) for inner in place.iterdir()]
        else:
            found[name] = place.read_text()
    return found


class MapLayout(NamedTuple):
    """The attributes to create a map with."""

    name: str
    kind: int
    """enum bpf_map_type."""
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int

    def make(self, rooms: Mapping[str, int]) -> int:
        """Create the map and return its descriptor. rooms: the number of entries by ROOMS. Raises OSError."""
        room = self.entries - FIRST_ROOM
        entries = rooms[ROOMS[room]] if 0 <= room < len(ROOMS) else self.entries
        return bpf_syscall.make_map(self.name, self.kind, self.key_bytes, self.value_bytes, entries, self.flags)


class Bytecode(NamedTuple):
    """The bytecode of one layout and tier."""

    compiler: str
    maps: list[MapLayout]
    programs: dict[str, bytes]
    """Instructions. One that loads a map refers to it by its index in `maps`."""

    @property
    def is_stale(self) -> bool:
        """Whether a different compiler is installed here now."""
        return installed_compiler() not in (None, self.compiler)

    def dump(self) -> bytes:
        """JSON, as load() reads it."""
        programs = {name: base64.b64encode(code).decode() for name, code in self.programs.items()}
        return json.dumps({"compiler": self.compiler, "maps": self.maps, "programs": programs}).encode()

    @classmethod
    def load(cls, raw: bytes) -> Bytecode:
        """Decode what dump() returned. Raises ValueError, KeyError or TypeError where the bytes are something else."""
        told = json.loads(raw)
        maps = [MapLayout(*layout) for layout in told["maps"]]
        return cls(told["compiler"], maps, {name: base64.b64decode(code) for name, code in told["programs"].items()})


class Wanted(NamedTuple):
    """What to compile."""

    sources: Sequence[str]
    """Files of bpf/, compiled as one text in this order."""
    defines: Mapping[str, int]
    flags: Sequence[str]

    def key(self) -> str:
        """The cache key, 64 hex digits: a hash of all that the bytecode depends on, except the compiler."""
        digest = hashlib.sha256()
        told = [FORMAT, sys.byteorder, list(self.sources), sorted(self.defines.items()), sorted(self.flags)]
        digest.update(json.dumps([told, sorted(sources().items())]).encode())
        return digest.hexdigest()

    def compile(self) -> Bytecode:
        """Compile with bcc in another process. Raises ShmtraceError where bcc is missing or fails."""
        line = [sys.executable, "-m", "tracer.kernel.compiler"]
        where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        told = json.dumps([sources(), list(self.sources), dict(self.defines), list(self.flags)]).encode()
        try:
            done = subprocess.run(line, input=told, capture_output=True, env=where, timeout=COMPILE_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ShmtraceError(f"the probes cannot be compiled ({error})", "`shmtrace doctor` says more") from None
        if done.returncode:
            lines = done.stderr[:MAX_TOLD_BYTES].decode(errors="replace").splitlines()
            reason = next((line for line in lines if "error:" in line), lines[-1] if lines else "it said nothing")
            if reason.startswith(NO_BCC):
                raise ShmtraceError(
                    f"bcc cannot be imported by {sys.executable} ({reason[len(NO_BCC) :]})",
                    f"{install_bcc()}, and a virtualenv needs --system-site-packages; or copy {CACHE} from a host of "
                    "that kernel where `shmtrace prepare` was run; `shmtrace snapshot` works without",
                )
            raise ShmtraceError(reason.strip(), "`shmtrace doctor` says more, `shmtrace snapshot` works without")
        return Bytecode.load(done.stdout)


def compiled(wanted: Wanted, cache: Cache) -> Bytecode:
    """The bytecode from the cache, or else compiled and added to it. Raises ShmtraceError where compiling fails."""
    key = wanted.key()
    kept = cache.read(key)
    known = Bytecode.load(kept) if kept else None
    if not known or known.is_stale:
        known = wanted.compile()
        cache.write(key, known.dump())
    return known


def installed_compiler() -> str | None:
    """The file name of the installed libbcc, which contains the compiler. None: not found."""
    libraries = (Path(directory.format(os.uname().machine), "libbcc.so.0") for directory in LIBRARIES)
    return next((library.resolve().name for library in libraries if library.exists()), None)
