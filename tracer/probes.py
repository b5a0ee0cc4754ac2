"""The kernel side: compiles, loads and attaches the programs in bpf/, reads their maps and events.

The one module that imports bcc. bcc is the distribution's (python3-bpfcc); PyPI's ``bcc`` is another project.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tracer import events, kernel
from tracer.btf import Btf, BtfError
from tracer.errors import ShmtraceError
from tracer.events import Event
from tracer.ledger import Block
from tracer.wire import BLOCK, BLOCK_KEY, LOSSES

_package = Path(__file__).parent / "bpf"  # in a wheel; in a checkout bpf/ is beside the package
SOURCES = _package if _package.is_dir() else Path(__file__).parent.parent / "bpf"
STUBS = SOURCES / "stubs"
PROGRAM = ("maps.c", "regions.c", "pages.c", "processes.c")  # one after the other they are one C text
EVENT_PAGES = 1024  # a power of two; 4 MiB, some 10,000 forks or execs
BATCH = 4096


class Sizes(NamedTuple):
    """How many entries the maps have room for; they are allocated at once, so that no fault waits for memory."""

    blocks: int
    spaces: int
    regions: int
    usages: int


class Map:
    """A BPF map by its descriptor: bytes in, bytes out."""

    def __init__(self, lib: ctypes.CDLL, fd: int, key_bytes: int, value_bytes: int) -> None:
        self._lib, self._fd = lib, fd
        self._key_bytes, self._value_bytes = key_bytes, value_bytes

    def __getitem__(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._value_bytes)
        return None if self._lib.bpf_lookup_elem(self._fd, key, value) else value.raw

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if self._lib.bpf_update_elem(self._fd, key, value, 0):
            raise OSError(ctypes.get_errno(), "BPF map is full")

    def insert(self, key: bytes, value: bytes) -> bool:
        """Whether it was not there, and there was room."""
        return not self._lib.bpf_update_elem(self._fd, key, value, 1)

    def __delitem__(self, key: bytes) -> None:
        self._lib.bpf_delete_elem(self._fd, key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, in batches (v5.6)."""
        token = (ctypes.c_uint32 * max(self._key_bytes // 4, 2))()
        keys = ctypes.create_string_buffer(self._key_bytes * BATCH)
        values = ctypes.create_string_buffer(self._value_bytes * BATCH)
        started, more = False, True
        while more:
            count = ctypes.c_uint32(BATCH)
            more = not self._lib.bpf_lookup_batch(
                self._fd, token if started else None, token, keys, values, ctypes.byref(count)
            )
            started = True
            all_keys, all_values = keys.raw, values.raw
            for i in range(count.value):
                key = all_keys[i * self._key_bytes : (i + 1) * self._key_bytes]
                yield key, all_values[i * self._value_bytes : (i + 1) * self._value_bytes]


class Probes:
    """The programs of one tier, loaded; a context manager that leaves nothing behind in the kernel.

    Raises ShmtraceError: bcc or BTF missing, BPF refused, a tracepoint absent that the tier needs.
    """

    def __init__(self, tier: kernel.Tier, sizes: Sizes, began_ns: int, began_boot_ns: int, *flags: str) -> None:
        self.tier = tier
        self.missing: list[str] = []
        self.nr_cpus = kernel.possible_cpus()
        try:
            import bcc
            from bcc.libbcc import lib
        except (ImportError, OSError) as error:  # OSError: libbcc itself
            raise ShmtraceError(
                f"bcc cannot be imported by {sys.executable} ({error})",
                "apt install python3-bpfcc, and a virtualenv needs --system-site-packages; "
                "`shmtrace snapshot` works without",
            ) from None
        try:
            with Btf() as btf:
                defines = kernel.defines(btf)
        except BtfError as error:
            raise ShmtraceError(str(error), "`shmtrace snapshot` works without") from None
        defines |= {f"NR_{name.upper()}": value for name, value in sizes._asdict().items()}
        defines |= {"NR_CPUS": self.nr_cpus, "EVENT_PAGES": EVENT_PAGES}
        defines |= {"T0_NS": began_ns, "T0_BOOT_NS": began_boot_ns}
        cflags = [f"-D{name}={value}" for name, value in defines.items()] + [f"-D{flag}" for flag in flags]
        cflags += [f"-I{SOURCES}", "-Wno-unused-function"]
        os.environ["BCC_KERNEL_SOURCE"] = str(STUBS)
        self._queue: list[bytes] = []
        with _quiet():
            text = "\n".join(f'#line 1 "{name}"\n{(SOURCES / name).read_text()}' for name in PROGRAM)
            self._bpf = bcc.BPF(text=text.encode(), cflags=cflags)
            kinds = {True: bcc.BPF.RAW_TRACEPOINT, False: bcc.BPF.TRACEPOINT}
            programs = {probe.program.encode(): kinds[probe.raw] for probe in tier.probes}
            with ThreadPoolExecutor() as pool:  # the verifier takes most of the time to attach, a CPU each
                list(pool.map(lambda program: self._bpf.load_func(*program), programs.items()))
        self.ledger = self._map(lib, "ledger", BLOCK_KEY.size, BLOCK.size)
        self.spaces = self._map(lib, "spaces")
        self.regions = self._map(lib, "regions")
        self.mappings = self._map(lib, "mappings")
        self.usages = self._map(lib, "usages")
        self._losses = self._map(lib, "losses")
        self._bpf[b"events"].open_ring_buffer(self._keep)

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bpf.cleanup()

    def attach(self) -> None:
        """All probes of the tier, in its order. From here on the kernel writes."""
        with kernel.tracefs() as events_dir:
            for probe in self.tier.probes:
                there = probe.raw or (events_dir / probe.tracepoint.replace(":", "/")).is_dir()
                try:
                    if not there:
                        raise OSError("absent")
                    with _quiet():
                        self._attach(probe)
                except (OSError, ShmtraceError) as error:
                    if not probe.costs:
                        reason = error.message if isinstance(error, ShmtraceError) else error
                        raise ShmtraceError(
                            f"tracepoint {probe.tracepoint} cannot be used ({reason})",
                            "`shmtrace doctor` says more, `shmtrace snapshot` works without",
                        ) from None
                    self.missing.append(probe.costs)

    def _attach(self, probe: kernel.Probe) -> None:
        program, tracepoint = probe.program.encode(), probe.tracepoint.encode()
        if probe.raw:
            self._bpf.attach_raw_tracepoint(tp=tracepoint.split(b":")[1], fn_name=program)
        else:
            self._bpf.attach_tracepoint(tp=tracepoint, fn_name=program)

    def poll(self, timeout_s: float) -> list[Event]:
        """Events, waiting for the first at most so long; a signal cuts it short."""
        self._bpf.ring_buffer_poll(int(timeout_s * 1000))
        queue, self._queue = self._queue, []
        return [events.decode(raw) for raw in queue]

    def losses(self) -> dict[str, int]:
        """What could not be written down so far, by wire.LOSSES."""
        counts = (self._losses[i.to_bytes(4, sys.byteorder)] for i in range(len(LOSSES)))
        return {name: int.from_bytes(count or b"", sys.byteorder) for name, count in zip(LOSSES, counts)}

    def block(self, region: int, number: int) -> Block | None:
        raw = self.ledger[BLOCK_KEY.pack(region, number)]
        return Block.unpack(raw) if raw else None

    def blocks(self) -> dict[int, dict[int, Block]]:
        """All of the ledger: region, block number, block."""
        found: dict[int, dict[int, Block]] = {}
        for key, value in self.ledger.items():
            region, number = BLOCK_KEY.unpack(key)
            found.setdefault(region, {})[number] = Block.unpack(value)
        return found

    def _map(self, lib: ctypes.CDLL, name: str, *sizes: int) -> Map:
        table = self._bpf[name.encode()]
        key_bytes, value_bytes = ctypes.sizeof(table.Key), ctypes.sizeof(table.Leaf)
        if sizes and sizes != (key_bytes, value_bytes):
            raise AssertionError(f"{name} is {key_bytes} to {value_bytes} bytes, not {sizes}")
        return Map(lib, table.map_fd, key_bytes, value_bytes)

    def _keep(self, _context: object, data: int, size: int) -> None:
        self._queue.append(ctypes.string_at(data, size))


def _refusal(error: Exception, output: str) -> ShmtraceError:
    """bcc says on stderr, in many lines, why it failed; the first that matters, and what to do."""
    lines = [line for line in output.splitlines() if line.strip()]
    told = (line for line in lines if "error:" in line or "bpf:" in line)
    reason = next(told, lines[0] if lines else str(error)).strip()
    mode = kernel.lockdown()
    if mode == "confidentiality":
        return ShmtraceError(
            "the kernel is locked down (confidentiality) and refuses BPF",
            "boot with lockdown=integrity; `shmtrace snapshot` works without",
        )
    return ShmtraceError(f"BPF refused: {reason}", "`shmtrace doctor` says more, `shmtrace snapshot` works without")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """bcc and LLVM write to descriptor 2: kept back, and made one line of if it comes to an error."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - bcc raises nothing finer
            kept.seek(0)
            raise _refusal(error, kept.read().decode(errors="replace")) from None
        finally:
            os.dup2(saved, 2)
            os.close(saved)
