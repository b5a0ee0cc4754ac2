"""Field offsets of the running kernel, from its own BTF, read by libbpf (which bcc brings).

bcc compiles C and relocates nothing, so what a probe reads from a kernel structure is found here, at start, and
handed to the compiler as a number. No header of any kernel is involved.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from types import TracebackType

KIND_STRUCT, KIND_UNION, KIND_ENUM, KIND_FUNC, KIND_ENUM64 = 4, 5, 6, 12, 19
# libbpf.so.1 since libbpf 1.0 (2022); Debian 11 has the older.
SONAMES = ("libbpf.so.1", "libbpf.so.0")


class BtfError(Exception):
    """The kernel's BTF cannot be read; the text says why."""


class _Type(ctypes.Structure):
    """``struct btf_type`` of the kernel's uapi/linux/btf.h."""

    _fields_ = [("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32)]

    @property
    def kind(self) -> int:
        return int(self.info >> 24) & 0x1F


class _Member(ctypes.Structure):
    """``struct btf_member``; the offset is in bits, its top byte a bit field's size where the type says so."""

    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32)]


class _Param(ctypes.Structure):
    """``struct btf_param``."""

    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32)]


class _Enum(ctypes.Structure):
    """``struct btf_enum``."""

    _fields_ = [("name_off", ctypes.c_uint32), ("value", ctypes.c_int32)]


def _libbpf() -> ctypes.CDLL:
    for soname in SONAMES:
        try:
            lib = ctypes.CDLL(soname)
            break
        except OSError:
            continue
    else:
        raise BtfError(f"no {SONAMES[0]} (Debian: apt install libbpf1)")
    lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
    lib.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.btf__type_by_id.restype = ctypes.c_void_p
    lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.btf__name_by_offset.restype = ctypes.c_char_p
    lib.btf__free.argtypes = [ctypes.c_void_p]
    lib.libbpf_set_print(None)  # it would say on stderr what comes back as an error, too
    return lib


class Btf:
    """The types of the running kernel (``/sys/kernel/btf/vmlinux``); a context manager, for it holds about 10 MB.

    Raises BtfError where libbpf or the kernel's BTF is missing.
    """

    def __init__(self) -> None:
        self._lib = _libbpf()
        # libbpf_find_kernel_btf until 0.7 renamed it; one loads the running kernel's BTF like the other.
        load = getattr(self._lib, "btf__load_vmlinux_btf", None) or self._lib.libbpf_find_kernel_btf
        load.restype = ctypes.c_void_p
        self._btf: int | None = load()
        # before libbpf 1.0 an error came as a pointer in the last page
        if not self._btf or self._btf >= 2**64 - 4095:
            number = (2**64 - self._btf) if self._btf else errno.ENOENT
            raise BtfError(f"the kernel offers no usable BTF ({errno.errorcode.get(number, number)})")

    def __enter__(self) -> Btf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lib.btf__free(self._btf)
        self._btf = None

    def function(self, name: str) -> int | None:
        """The BTF id of a kernel function; None if there is none of this name."""
        return self._find(name, KIND_FUNC)

    def parameters(self, function: int) -> list[str]:
        """The names of a function's parameters, in order."""
        prototype = _Type.from_address(self._type(function)[0]).size_or_type
        base, info = self._type(prototype)
        params = (
            _Param.from_address(base + ctypes.sizeof(_Type) + i * ctypes.sizeof(_Param)) for i in range(info & 0xFFFF)
        )
        return [self._name(param.name_off) for param in params]

    def offset(self, path: str) -> int | None:
        """Byte offset of ``struct.member[.member…]``, anonymous members looked through; None if there is none.

        Source: the running kernel's BTF.
        """
        name, *members = path.split(".")
        type_id = self._find(name, KIND_STRUCT)
        total = 0
        for member in members:
            found = self._member(type_id, member) if type_id else None
            if found is None:
                return None
            bits, type_id = found
            total += bits
        return total // 8 if type_id is not None else None

    def size(self, struct: str) -> int | None:
        """Bytes of a struct; None if there is none of this name."""
        type_id = self._find(struct, KIND_STRUCT)
        return _Type.from_address(self._type(type_id)[0]).size_or_type if type_id else None

    def enum_value(self, enum: str, name: str) -> int | None:
        """Value of one name of an enum; None if the enum or the name is not there."""
        type_id = self._find(enum, KIND_ENUM)
        if type_id is None:
            return None
        base, info = self._type(type_id)
        for i in range(info & 0xFFFF):
            value = _Enum.from_address(base + ctypes.sizeof(_Type) + i * ctypes.sizeof(_Enum))
            if self._name(value.name_off) == name:
                return int(value.value)
        return None

    def _find(self, name: str, kind: int) -> int | None:
        found = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        return found if found > 0 else None

    def _name(self, offset: int) -> str:
        name: bytes = self._lib.btf__name_by_offset(self._btf, offset) or b""
        return name.decode()

    def _type(self, type_id: int) -> tuple[int, int]:
        """(address, info) of a type."""
        address: int = self._lib.btf__type_by_id(self._btf, type_id)
        return address, _Type.from_address(address).info

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int]]:
        base, info = self._type(type_id)
        bit_fields = info >> 31
        for i in range(info & 0xFFFF):
            member = _Member.from_address(base + ctypes.sizeof(_Type) + i * ctypes.sizeof(_Member))
            bits = member.offset & 0xFFFFFF if bit_fields else member.offset
            yield self._name(member.name_off), bits, self._resolve(member.type)

    def _resolve(self, type_id: int) -> int:
        """The type behind typedefs (8), const (10), volatile (9) and the like, so that a member can be looked into."""
        while True:
            kind = _Type.from_address(self._type(type_id)[0])
            if kind.kind not in (8, 9, 10, 11, 18):
                return type_id
            type_id = kind.size_or_type

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        """(offset in bits, type) of a member of a struct or union, searched through anonymous members."""
        if _Type.from_address(self._type(type_id)[0]).kind not in (KIND_STRUCT, KIND_UNION):
            return None
        for member, bits, member_type in self._members(type_id):
            if member == name:
                return bits, member_type
            if not member:
                inner = self._member(member_type, name)
                if inner:
                    return bits + inner[0], inner[1]
        return None
