"""bpf(2): creates maps, and loads and attaches programs. Each object exists until its last descriptor is closed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280}  # of the system call
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_LOOKUP_BATCH = 0, 1, 2, 3, 24
PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_TEST_RUN = 5, 6, 7, 10
OBJ_GET_INFO_BY_FD, RAW_TRACEPOINT_OPEN, LINK_CREATE = 15, 17, 28
KPROBE, TRACEPOINT, RAW_TRACEPOINT, TRACING = 2, 5, 17, 26  # program types; a uprobe program has type KPROBE
UPDATE_ANY, UPDATE_NEW = 0, 1
BATCH = 4096
LOG_BYTES = 1 << 20
LOAD_MAP = 0x18, 1  # of a 16-byte instruction: the opcode, and the source register that marks its number as a map
TRACE_FENTRY, TRACE_FEXIT, PERF_EVENT = 24, 25, 41  # enum bpf_attach_type
ATTRIBUTE_BYTES = 128
INSTRUCTION_BYTES = 8
RECURSION_MISSES = 208  # offset in struct bpf_prog_info, since v5.12
NOTHING = struct.pack("=QQ", 0xB7, 0x95)  # r0 = 0; exit

_libc = ctypes.CDLL(None, use_errno=True)


def _call(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(_NUMBER[os.uname().machine], command, attributes, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _attributes(layout: str, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack(layout, *values), ATTRIBUTE_BYTES)


class Map:
    """A BPF map by its descriptor. Keys and values are bytes."""

    def __init__(self, fd: int, key_bytes: int, value_bytes: int) -> None:
        self.fd = fd
        self._key_bytes, self._value_bytes = key_bytes, value_bytes
        self._value = ctypes.create_string_buffer(value_bytes)

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0) -> None:
        of_key = ctypes.create_string_buffer(key, self._key_bytes)
        places = ctypes.addressof(of_key), ctypes.addressof(value) if value else 0
        _call(command, _attributes("=I4xQQQ", self.fd, *places, flags))

    def __getitem__(self, key: bytes) -> bytes | None:
        try:
            self._element(MAP_LOOKUP, key, self._value)
        except OSError:
            return None
        return self._value.raw

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Raises OSError where the map is full."""
        self._element(MAP_UPDATE, key, ctypes.create_string_buffer(value, self._value_bytes), UPDATE_ANY)

    def insert(self, key: bytes, value: bytes) -> bool:
        """Add an entry. False: the key already exists, or the map is full."""
        try:
            self._element(MAP_UPDATE, key, ctypes.create_string_buffer(value, self._value_bytes), UPDATE_NEW)
        except OSError:
            return False
        return True

    def __delitem__(self, key: bytes) -> None:
        """Delete an entry; a missing one is no error."""
        with contextlib.suppress(OSError):
            self._element(MAP_DELETE, key, None)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries."""
        for keys, values in self.batches():
            for i in range(len(keys) // self._key_bytes):
                key = keys[i * self._key_bytes : (i + 1) * self._key_bytes]
                yield key, values[i * self._value_bytes : (i + 1) * self._value_bytes]

    def batches(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys and all values, joined, in batches (BPF_MAP_LOOKUP_BATCH, v5.6). Raises OSError."""
        token = (ctypes.c_uint32 * max(self._key_bytes // 4, 2))()
        keys = ctypes.create_string_buffer(self._key_bytes * BATCH)
        values = ctypes.create_string_buffer(self._value_bytes * BATCH)
        after, more = None, True
        while more:
            count, more = lookup_batch(self.fd, after, token, keys, values, BATCH)
            after = token
            yield keys.raw[: count * self._key_bytes], values.raw[: count * self._value_bytes]


def make_map(name: str, kind: int, key_bytes: int, value_bytes: int, entries: int, flags: int) -> int:
    """Create a map and return its descriptor. kind: enum bpf_map_type. Raises OSError."""
    _lift_limit()
    attributes = _attributes("=7I16s", kind, key_bytes, value_bytes, entries, flags, 0, 0, name.encode()[:15])
    return _call(MAP_CREATE, attributes)


def _lift_limit() -> None:
    """Lift the limit on locked memory. Before v5.11 all maps and programs of a user count, pinned ones too."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def renumber_maps(code: bytes, numbers: Sequence[int] | Mapping[int, int]) -> bytes:
    """Replace the map number in every instruction that loads a map, by looking it up in `numbers`."""
    renumbered = bytearray(code)
    for at in range(0, len(code), INSTRUCTION_BYTES):
        operation, registers, number = struct.unpack_from("=BB2xI", code, at)
        if (operation, registers >> 4) == LOAD_MAP:
            struct.pack_into("=I", renumbered, at + 4, numbers[number])
    return bytes(renumbered)


def load(code: bytes, kind: int, function: int = 0, at_exit: bool = False) -> int:
    """Load a program and return its descriptor. function: for TRACING, the BTF id of the kernel function to attach to.

    Raises OSError; its strerror includes the verifier's last message, if there is one.
    """
    _lift_limit()
    try:
        return _load(code, kind, function, at_exit, None)
    except OSError as error:
        log = ctypes.create_string_buffer(LOG_BYTES)
        with contextlib.suppress(OSError):
            os.close(_load(code, kind, function, at_exit, log))
        lines = log.value.decode(errors="replace").split("\n")
        told = [line for line in lines if line and not line.startswith(("processed ", "verification time"))]
        raise OSError(error.errno, f"{error.strerror}: {told[-1].strip()}" if told else error.strerror) from None


def _load(code: bytes, kind: int, function: int, at_exit: bool, log: ctypes.Array[ctypes.c_char] | None) -> int:
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attach_type = (TRACE_FEXIT if at_exit else TRACE_FENTRY) if kind == TRACING else 0
    attributes = _attributes(
        "=IIQQIIQ28xI36xI",
        kind,
        len(code) // INSTRUCTION_BYTES,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        1 if log else 0,
        len(log) if log else 0,
        ctypes.addressof(log) if log else 0,
        attach_type,
        function,
    )
    return _call(PROG_LOAD, attributes)


def attach(program: int, tracepoint: str | None = None) -> int:
    """Attach a program to a raw tracepoint, or to the function it was loaded for.

    It stays attached until the returned descriptor is closed. Raises OSError.
    """
    name = ctypes.create_string_buffer((tracepoint or "").encode())
    return _call(RAW_TRACEPOINT_OPEN, _attributes("=QI", ctypes.addressof(name) if tracepoint else 0, program))


def link(program: int, perf_event: int) -> int:
    """Attach a program to a perf event; likewise. The link keeps the event (v5.15). Raises OSError."""
    return _call(LINK_CREATE, _attributes("=IIII", program, perf_event, PERF_EVENT, 0))


def pin(descriptor: int, path: Path) -> None:
    """Keep a map, program or link under a path on a bpffs until it is unlinked there. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _call(OBJ_PIN, _attributes("=QI", ctypes.addressof(name), descriptor))


def pinned(path: Path) -> int:
    """A new descriptor of what is pinned under a path. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _call(OBJ_GET, _attributes("=Q", ctypes.addressof(name)))


def run(program: int, *arguments: int) -> int:
    """Run a raw tracepoint program once with these arguments and return its result (BPF_PROG_TEST_RUN, v5.10).

    Raises OSError.
    """
    context = ctypes.create_string_buffer(struct.pack(f"={len(arguments)}Q", *arguments), 8 * len(arguments))
    attributes = _attributes("=II32xI4xQ", program, 0, len(context), ctypes.addressof(context))
    _call(PROG_TEST_RUN, attributes)
    return int(struct.unpack_from("=I", attributes, 4)[0])


def lookup_batch(
    map_fd: int,
    after: ctypes.Array[ctypes.c_uint32] | None,
    token: ctypes.Array[ctypes.c_uint32],
    keys: ctypes.Array[ctypes.c_char],
    values: ctypes.Array[ctypes.c_char],
    count: int,
) -> tuple[int, bool]:
    """Read at most `count` entries; returns how many, and whether there are more (v5.6; in bcc since 0.19).

    after: the token that the previous call filled in; None: start at the beginning. Raises OSError.
    """
    start = ctypes.addressof(after) if after else 0
    places = (ctypes.addressof(place) for place in (token, keys, values))
    attributes = _attributes("=QQQQIIQQ", start, *places, count, map_fd, 0, 0)
    try:
        _call(MAP_LOOKUP_BATCH, attributes)
        more = True
    except FileNotFoundError:  # ENOENT: these were the last entries
        more = False
    return int(struct.unpack_from("=I", attributes, 32)[0]), more


def recursion_misses(program: int) -> int:
    """How often the kernel skipped a program that was already running on that CPU.

    0 where the kernel does not count it.
    """
    info = ctypes.create_string_buffer(RECURSION_MISSES + 8)
    attributes = _attributes("=IIQ", program, len(info), ctypes.addressof(info))
    _call(OBJ_GET_INFO_BY_FD, attributes)
    return int(struct.unpack_from("=Q", info, RECURSION_MISSES)[0])
