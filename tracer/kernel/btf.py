"""Reads types of the running kernel from its BTF: field offsets, parameters of functions, values of enums.

bcc compiles C and does not relocate field accesses. So the offsets that a probe needs are read here and passed to the
compiler as numbers. This needs no kernel headers and no library. Format: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import errno
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")
MAX_BYTES = 64 << 20
MAGIC = 0xEB9F
HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, header size, then offset and size of types and of strings
INT, POINTER, ARRAY, STRUCT, UNION, ENUM, _, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, _, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
ALIASES = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
# Words of 4 bytes that follow a type's first three: a fixed number, and so many per member.
FIXED = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
PER_MEMBER = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
NAME, INFO, SIZE_OR_TYPE, MEMBERS = range(4)  # indexes of the words of a type


class BtfError(Exception):
    """The kernel's BTF cannot be read; the message says why."""


class Btf:
    """The types of one BTF file. Raises BtfError where the file is missing or cannot be read."""

    def __init__(self, path: Path = VMLINUX) -> None:
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES)
        except OSError as error:
            raise BtfError(f"the kernel offers no usable BTF ({errno.errorcode.get(error.errno or 0)})") from None
        try:
            magic, _, _, header_bytes, types_at, types_bytes, strings_at, strings_bytes = HEADER.unpack_from(raw)
            types = raw[header_bytes + types_at :][:types_bytes]
            self._words = array("I", types)
            self._strings = raw[header_bytes + strings_at :][:strings_bytes]
            self._starts = self._walk()
            self._names = array("I", map(self._words.__getitem__, self._starts)).tobytes()
        except (struct.error, ValueError, IndexError, KeyError):
            magic = 0
        if magic != MAGIC:
            raise BtfError(f"{path} cannot be read as BTF")

    def _walk(self) -> array[int]:
        """The index of each type's first word, by type id."""
        words, fixed, per_member = self._words, [0] * 32, [0] * 32
        for kind, count in FIXED.items():
            fixed[kind] = count
        for kind, count in PER_MEMBER.items():
            per_member[kind] = count
        starts = array("I", [0])  # type id 0 is void, which is not in the file
        at, end = 0, len(words)
        while at < end:
            starts.append(at)
            info = words[at + INFO]
            kind = info >> 24 & 31
            at += MEMBERS + fixed[kind] + per_member[kind] * (info & 0xFFFF)
        if at != end:
            raise ValueError
        return starts

    def function(self, name: str) -> int | None:
        """The BTF id of a kernel function; None if there is none of this name."""
        return self._find(name, FUNC)

    def parameters(self, function: int) -> list[str]:
        """The names of a function's parameters, in order."""
        prototype = self._words[self._starts[function] + SIZE_OR_TYPE]
        return [self._name(name) for name, _ in self._members(prototype, 2)]

    def arguments(self, tracepoint: str) -> int | None:
        """How many arguments a tracepoint passes to a raw tracepoint program; None if there is none of this name."""
        alias = self._find(f"btf_trace_{tracepoint}", TYPEDEF)
        prototype = self._resolve(alias, POINTER) if alias else None
        if prototype is None or self._kind(prototype) != FUNC_PROTO:
            return None
        return len(list(self._members(prototype, 2))) - 1  # the first is the program's own

    def offset(self, path: str) -> int | None:
        """Byte offset of ``struct.member[.member…]``, also through anonymous members; None if there is none.

        Of an array that is a member, the first element counts.
        """
        name, *members = path.split(".")
        type_id = self._find(name, STRUCT)
        total = 0
        for member in members:
            found = self._member(type_id, member) if type_id else None
            if found is None:
                return None
            bits, type_id = found
            total += bits
        return total // 8 if type_id is not None else None

    def size(self, struct: str) -> int | None:
        """Size of a struct in bytes; None if there is none of this name."""
        type_id = self._find(struct, STRUCT)
        return self._words[self._starts[type_id] + SIZE_OR_TYPE] if type_id else None

    def enum_value(self, enum: str, name: str) -> int | None:
        """Value of an enumerator; None if the enum or the name does not exist."""
        type_id = self._find(enum, ENUM)
        members = self._members(type_id, 2) if type_id else ()
        return next((value for member, value in members if self._name(member) == name), None)

    def _find(self, name: str, kind: int) -> int | None:
        at = self._strings.find(b"\0" + name.encode() + b"\0") + 1  # BTF stores each string once
        found = (type_id for type_id in self._named(at) if self._kind(type_id) == kind) if at else ()
        return next(iter(found), None)

    def _named(self, name: int) -> Iterator[int]:
        """Ids of the types with this name, given as an offset into the strings."""
        wanted, at = name.to_bytes(4, sys.byteorder), -1
        while (at := self._names.find(wanted, at + 1)) >= 0:
            if at % 4 == 0:
                yield at // 4

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _kind(self, type_id: int) -> int:
        return self._words[self._starts[type_id] + INFO] >> 24 & 31

    def _members(self, type_id: int, nr_words: int) -> Iterator[tuple[int, ...]]:
        """The words of each member."""
        start = self._starts[type_id]
        at = start + MEMBERS
        for _ in range(self._words[start + INFO] & 0xFFFF):
            yield tuple(self._words[at : at + nr_words])
            at += nr_words

    def _resolve(self, type_id: int, *more: int) -> int:
        """The type behind typedef, const and the like, so that its members can be looked up. more: other such kinds."""
        while self._kind(type_id) in (*ALIASES, *more):
            type_id = self._words[self._starts[type_id] + SIZE_OR_TYPE]
        return type_id

    def _element(self, type_id: int) -> int:
        """The type behind aliases and, of an array, of its elements."""
        type_id = self._resolve(type_id)
        while self._kind(type_id) == ARRAY:
            type_id = self._resolve(self._words[self._starts[type_id] + MEMBERS])
        return type_id

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        """(offset in bits, type id) of a member of a struct or union, also through anonymous members."""
        if self._kind(type_id) not in (STRUCT, UNION):
            return None
        has_bit_fields = self._words[self._starts[type_id] + INFO] >> 31
        for member, member_type, offset in self._members(type_id, 3):
            bits = offset & 0xFFFFFF if has_bit_fields else offset
            found = self._name(member)
            if found == name:
                return bits, self._element(member_type)
            inner = self._member(self._resolve(member_type), name) if not found else None
            if inner:
                return bits + inner[0], inner[1]
        return None
