"""BTF, from types that were laid out by hand; and the running kernel's own, where it has one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tracer.kernel import btf
from tracer.kernel.btf import Btf, BtfError


class Types:
    """A blob of BTF in the making."""

    def __init__(self) -> None:
        self._strings = b"\0"
        self._types: list[bytes] = []

    def string(self, text: str) -> int:
        if not text:
            return 0
        wanted = b"\0" + text.encode() + b"\0"
        if wanted not in self._strings:
            self._strings += wanted[1:]
        return self._strings.index(wanted) + 1

    def add(self, kind: int, name: str, size_or_type: int, *members: tuple[object, ...], flag: int = 0) -> int:
        """Its id. Of members a text is a name."""
        count = len(members) if kind in btf.PER_MEMBER else 0
        words = [self.string(name), flag << 31 | kind << 24 | count, size_or_type]
        for member in members:
            words += [self.string(word) if isinstance(word, str) else int(str(word)) for word in member]
        self._types.append(struct.pack(f"={len(words)}I", *words))
        return len(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def write(self, path: Path) -> Path:
        types = b"".join(self._types)
        header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self._strings))
        path.write_bytes(header + types + self._strings)
        return path


@pytest.fixture
def types(tmp_path: Path) -> Btf:
    made = Types()
    number = made.add(btf.INT, "int", 4, (32,))
    list_head = made.add(btf.STRUCT, "list_head", 16, ("next", number, 0), ("prev", number, 64))
    made.add(btf.ARRAY, "", 0, (number, number, 7))
    inner = made.add(btf.UNION, "", 16, ("lru", list_head, 0), ("mapping", number, 64))
    alias = made.add(btf.TYPEDEF, "list_t", list_head)
    const = made.add(btf.CONST, "", alias)
    made.add(7, "page", 0)  # a declaration
    made.add(btf.STRUCT, "page", 40, ("flags", number, 0), ("", inner, 64), ("list", const, 192))
    made.add(btf.STRUCT, "bits", 8, ("whole", number, 0), ("some", number, 3 << 24 | 35), flag=1)
    made.add(btf.ENUM, "pageflags", 4, ("PG_locked", 0), ("PG_head", 6))
    prototype = made.add(btf.FUNC_PROTO, "", number, ("folio", number), ("index", number))
    made.add(btf.FUNC, "page", prototype)
    made.add(btf.FUNC, "shmem_add", prototype)
    arguments = made.add(btf.FUNC_PROTO, "", 0, ("", number), ("task", number), ("uid", number))
    made.add(btf.TYPEDEF, "btf_trace_mark_victim", made.add(btf.POINTER, "", arguments))
    made.add(btf.TYPEDEF, "btf_trace_number", number)
    made.add(btf.ARRAY, "", 0, (inner, number, 4))
    made.add(btf.STRUCT, "many", 80, ("flags", number, 0), ("pages", len(made), 64))
    made.add(btf.VAR, "per_cpu", number, (1,))
    made.add(btf.DATASEC, ".data", 8, (number, 0, 8))
    made.add(btf.DECL_TAG, "tag", number, (0,))
    made.add(btf.TYPE_TAG, "rcu", number)
    made.add(btf.ENUM64, "large", 8, ("ALL", 7, 9))
    made.add(btf.STRUCT, "last", 23)
    return Btf(made.write(tmp_path / "vmlinux"))


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("page.flags", 0),
        ("page.mapping", 16),
        ("page.lru.prev", 16),
        ("page.list.prev", 32),
        ("bits.some", 4),
        ("page.absent", None),
        ("many.pages.mapping", 16),
        ("many.pages.lru.prev", 16),
        ("page.flags.deeper", None),
        ("absent.flags", None),
        ("shmem_add.folio", None),
    ],
)
def test_offsets(types: Btf, path: str, offset: int | None) -> None:
    assert types.offset(path) == offset


def test_what_has_one_name(types: Btf) -> None:
    """A struct, a declaration of it, and a function."""
    assert types.size("page") == 40
    assert types.parameters(types.function("page") or 0) == ["folio", "index"]


def test_arguments_of_a_tracepoint(types: Btf) -> None:
    assert types.arguments("mark_victim") == 2
    assert [types.arguments(name) for name in ("number", "absent")] == [None, None]


def test_all_kinds_are_walked_over(types: Btf) -> None:
    assert types.size("last") == 23


def test_enums(types: Btf) -> None:
    assert types.enum_value("pageflags", "PG_head") == 6
    assert types.enum_value("pageflags", "PG_gone") is None
    assert types.enum_value("absent", "PG_head") is None


def test_what_is_not_there(types: Btf) -> None:
    assert types.function("shmem") is None
    assert types.function("add") is None  # the end of another's name
    assert types.size("absent") is None


@pytest.mark.parametrize(
    "raw", [b"", b"\x9f\xeb", b"\0" * 64, struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 7, 7, 1) + b"x" * 9]
)
def test_what_is_none(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(raw)
    with pytest.raises(BtfError):
        Btf(tmp_path / "vmlinux")


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(BtfError, match="no usable BTF"):
        Btf(tmp_path / "vmlinux")


@pytest.mark.skipif(not btf.VMLINUX.exists(), reason="this kernel has none")
def test_of_the_running_kernel() -> None:
    own = Btf()
    assert own.offset("list_head.prev") == struct.calcsize("P")
    assert own.size("list_head") == 2 * struct.calcsize("P")
    assert own.parameters(own.function("vfs_read") or 0)[0] == "file"
