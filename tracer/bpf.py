"""The commands of bpf(2) that bcc has no call for, and those that it has another call for in every release."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280}  # of the system call
PROG_LOAD, PROG_TEST_RUN, OBJ_GET_INFO_BY_FD, RAW_TRACEPOINT_OPEN = 5, 10, 15, 17
MAP_LOOKUP_BATCH = 24
PROG_TYPE_TRACING = 26
TRACE_FENTRY, TRACE_FEXIT = 24, 25
ATTRIBUTE_BYTES = 128
INSTRUCTION_BYTES = 8
RECURSION_MISSES = 208  # offset in struct bpf_prog_info, since v5.12
NOTHING = struct.pack("=QQ", 0xB7, 0x95)  # r0 = 0; exit

_libc = ctypes.CDLL(None, use_errno=True)


def _call(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(_NUMBER[platform.machine()], command, attributes, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _attributes(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack(layout, *values), ATTRIBUTE_BYTES)


def load_tracing(code: bytes, function: int, at_exit: bool) -> int:
    """A program to be attached to the entry or the exit of a kernel function, by the function's BTF id: its descriptor.

    Raises OSError.
    """
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = _attributes(
        "=IIQQ44xI36xI",
        PROG_TYPE_TRACING,
        len(code) // INSTRUCTION_BYTES,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        TRACE_FEXIT if at_exit else TRACE_FENTRY,
        function,
    )
    return _call(PROG_LOAD, attributes)


def attach(program: int, tracepoint: str | None = None) -> int:
    """To a raw tracepoint, or to the function that it was loaded for; until the descriptor that this returns is closed.

    Raises OSError.
    """
    name = ctypes.create_string_buffer((tracepoint or "").encode())
    return _call(RAW_TRACEPOINT_OPEN, _attributes("=QI", ctypes.addressof(name) if tracepoint else 0, program))


def run(program: int, *arguments: int) -> int:
    """Run a raw tracepoint's program here and now with these arguments: what it returns (v5.10). Raises OSError."""
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
    """How many entries came, of at most so many, and whether there are more (v5.6; bcc has it since 0.19).

    after: the token that the call before left; None: from the beginning. Raises OSError.
    """
    start = ctypes.addressof(after) if after else 0
    places = (ctypes.addressof(place) for place in (token, keys, values))
    attributes = _attributes("=QQQQIIQQ", start, *places, count, map_fd, 0, 0)
    try:
        _call(MAP_LOOKUP_BATCH, attributes)
        more = True
    except FileNotFoundError:  # ENOENT: these were the last
        more = False
    return int(struct.unpack_from("=I", attributes, 32)[0]), more


def recursion_misses(program: int) -> int:
    """How often the kernel skipped a program because it was running on that CPU already; 0 where it does not count."""
    info = ctypes.create_string_buffer(RECURSION_MISSES + 8)
    attributes = _attributes("=IIQ", program, len(info), ctypes.addressof(info))
    _call(OBJ_GET_INFO_BY_FD, attributes)
    return int(struct.unpack_from("=Q", info, RECURSION_MISSES)[0])
