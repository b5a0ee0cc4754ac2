"""bpf/wire.h and tracer/wire.py say the same: a C compiler is asked for each size, offset and number of the header."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer import wire
from tracer.kernel import events
from tracer.kernel.events import Absent
from tracer.kernel.updates import KernelProcess, KernelRegion
from tracer.proc.shmem import RegionKey

pytestmark = pytest.mark.needs("cc")

HEADER = Path(__file__).parent.parent / "bpf" / "wire.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
DEFINES = re.findall(r"^#define (\w+)[ \t]+\S", TEXT, re.MULTILINE)
STRUCTS = {
    name: re.findall(r"(\w[\w ]*?) (\w+)(?:\[(\w+)\])?;", body)
    for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", TEXT, re.DOTALL | re.MULTILINE)
}
"""(type, name, array size) of each member."""

LAYOUTS = {
    "region_key": [wire.REGION_KEY],
    "measured": [struct.Struct("=QQQ")],
    "region": [wire.REGION],
    "part": [wire.PART],
    "block": [wire.BLOCK],
    "state": [wire.STATE],
    "wanted": [wire.WANTED],
    "process": [wire.PROCESS],
    "oom": [wire.OOM],
    "asker": [wire.ASKER],
    "usage_key": [wire.USAGE_KEY],
    "usage": [wire.USAGE],
    "made_for_key": [wire.MADE_FOR_KEY],
    "stack": [wire.STACK],
    "stacked_key": [wire.STACKED_KEY],
    "event": [wire.EVENT],
    "event_punch": [wire.EVENT, wire.PUNCH],
    "texts": [wire.TEXTS],
    "label": [wire.LABEL],
    "event_label": [wire.EVENT, wire.LABEL_SINCE, wire.TEXTS],
}

EVENTS = r"""
    struct event_label label = {
        .event = {.time_ns = 91, .tgid = 93, .type = EVENT_LABEL},
        .since_us = 94, .lost_us = 95,
        .texts = {.bytes = {8, TEXT_NONE, TEXT_UNREADABLE, 130}}};
    memcpy(label.texts.text, "/a\xff.php", 8);
    memset(label.texts.text + 3 * TEXT_BYTES, 'x', 127);
    memcpy(label.texts.text + 3 * TEXT_BYTES + 127, "\u00e4", 2);
    struct event_punch punch = {
        .event = {.time_ns = 81, .tgid = 83, .type = EVENT_PUNCH},
        .first = 84, .end = 85, .id = 86};
"""
DECODED = {
    "label": events.LabelRead(93, 94, 95, ("/a\\xff.php", Absent.NONE, Absent.UNREADABLE, "x" * 127 + "…")),
    "punch": events.Punch(81, id=86, first=84, end=85),
}

# Entries of the maps; what user space does not read is there, and between what it does.
REGION = r"""
    struct region region = {
        .key = {.ino = 91, .generation = 92, .dev = 1}, .mapping = ~0ULL - 93,
        .now = {.size_bytes = 109, .pages = 110, .swapped = 111}, .peak_pages = 103, .start_pages = 104, .gone_us = 97,
        .last = {.size_bytes = 94, .pages = 95, .swapped = 96}, .torn_pages = 98, .punched_us = 99,
        .created_ns = 100, .creator_start_time_ns = 101, .creator_tgid = 102, .used_ns = 106,
        .user_start_time_ns = 107, .user_tgid = 108, .id = 105, .huge = 0, .order = 9,
        .name_bytes = 8, .deep = 1, .user_kind = OUTSIDE_TREE, .name = "dev/zerobeyond"};
    fwrite(&region, sizeof region, 1, stdout);
    region.gone_us = 0;
    fwrite(&region, sizeof region, 1, stdout);
"""
PROCESS = r"""
    struct process process = {
        .start_time_ns = 11, .parent_start_time_ns = 12, .began_ns = 13, .executed_ns = 14, .ended_ns = 15,
        .earlier_ns = 20, .read_ns = 21, .number = 16, .tgid = 17, .parent_tgid = 18, .kind = OUTSIDE_TREE,
        .title_bytes = 7, .exit_status = 19, .nr_uses = 22, .parent_place = 23,
        .comm = "ls", .title = "ls\0-l /\0beyond",
        .earlier_comm = "sh", .earlier_title = "/bin/sh"};
    fwrite(&process, sizeof process, 1, stdout);
"""


NUMBERED = ("event_type", "text_how", "process_kind", "free")


def run_c(folder: Path, body: str) -> bytes:
    """What a main() of this body prints. A structure with padding is an error."""
    source, program = folder / "wire.c", folder / "wire"
    headers = "".join(f"#include <{name}.h>\n" for name in ("stddef", "stdio", "string"))
    source.write_text(f'{headers}#include "{HEADER}"\nint main(void)\n{{\n{body}\n}}\n')
    subprocess.run(["cc", "-Wall", "-Wextra", "-Wpadded", "-Werror", "-o", program, source], check=True)
    return subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout


def enumerators(name: str) -> list[str]:
    (body,) = re.findall(rf"enum {name} \{{(.*?)\}};", TEXT, re.DOTALL)
    return re.findall(r"[A-Z]\w+", body)


def members(name: str) -> Iterator[str]:
    """As offsetof takes them, down to the scalars and their arrays."""
    for kind, member, count in STRUCTS[name]:
        inner = kind.split()[-1]
        if inner not in STRUCTS:
            yield member
            continue
        for element in [f"{member}[{i}]" for i in range(getattr(wire, count))] if count else [member]:
            yield from (f"{element}.{field}" for field in members(inner))


def offset(name: str, member: str) -> str:
    return f"offsetof(struct {name}, {member})"


def size(name: str, member: str) -> str:
    return f"sizeof(((struct {name} *)0)->{member})"


def fields(layouts: list[struct.Struct]) -> list[tuple[int, int]]:
    """(offset, size) of each field of structures that follow each other."""
    found, at = [], 0
    for layout in layouts:
        assert layout.format[0] == "=", "native alignment would pad"
        for field in re.findall(r"\d*[a-zA-Z]", layout.format):
            found.append((at, struct.calcsize(f"={field}")))
            at += found[-1][1]
    return found


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler makes of the header: the value of each expression."""
    expressions = [*DEFINES, *enumerators("loss"), *enumerators("room"), *itertools.chain(*map(enumerators, NUMBERED))]
    for name in STRUCTS:
        expressions.append(f"sizeof(struct {name})")
        expressions += [expression(name, member) for member in members(name) for expression in (offset, size)]
    body = "\n".join(f'printf("%lld\\n", (long long){expression});' for expression in expressions)
    values = run_c(tmp_path_factory.mktemp("wire"), body).split()
    return dict(zip(expressions, map(int, values)))


def test_every_structure_of_the_header_is_compared() -> None:
    assert LAYOUTS.keys() == STRUCTS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, header: dict[str, int]) -> None:
    found = [(header[offset(name, member)], header[size(name, member)]) for member in members(name)]
    assert found == fields(LAYOUTS[name])
    assert header[f"sizeof(struct {name})"] == sum(layout.size for layout in LAYOUTS[name])


def test_sizes_of_maps(header: dict[str, int]) -> None:
    assert wire.TGID.size == wire.REGION_ID.size == 4


@pytest.mark.parametrize("name", [*DEFINES, *itertools.chain(*map(enumerators, NUMBERED))])
def test_numbers(name: str, header: dict[str, int]) -> None:
    assert header[name] == getattr(wire, name)


def test_losses_are_in_the_order_of_their_counters(header: dict[str, int]) -> None:
    *names, end = enumerators("loss")
    assert [header[name] for name in names] == list(range(len(wire.LOSSES)))
    assert header[end] == len(wire.LOSSES)
    for name, loss in zip(names, wire.LOSSES):
        assert loss.startswith(name[len("LOST_") :].lower())


def test_what_is_recycled_is_counted_last(header: dict[str, int]) -> None:
    *names, end = enumerators("room")
    assert header[end] == wire.NR_ROOM
    last = [name for name in names if name.startswith("RECYCLED_")]
    assert [name[len("RECYCLED_") :].lower() for name in last] == list(wire.RECYCLED)
    assert [header[name] for name in last] == list(range(wire.NR_ROOM))[-len(last) :]


def test_what_c_writes_is_what_python_reads(tmp_path: Path) -> None:
    """Two fields of one size may not change places."""
    writes = "".join(f"fwrite(&{name}, sizeof {name}, 1, stdout);\n" for name in DECODED)
    raw = run_c(tmp_path, EVENTS + writes)
    decoded = []
    for name in DECODED:
        length = sum(layout.size for layout in LAYOUTS[f"event_{name}"])
        decoded.append(events.decode(raw[:length]))
        raw = raw[length:]
    assert decoded == list(DECODED.values())
    assert not raw


def test_a_region_as_the_kernel_side_keeps_it(tmp_path: Path) -> None:
    raw = run_c(tmp_path, REGION)
    gone, alive = (KernelRegion.unpack(raw[at : at + wire.REGION.size]) for at in (0, wire.REGION.size))
    assert gone == KernelRegion(
        key=RegionKey(1, 91, 92),
        id=105,
        size_bytes=94,
        pages=95,
        swapped_pages=96,
        peak_pages=103,
        start_pages=104,
        gone_us=97,
        torn_pages=98,
        made_ns=100,
        maker=(102, 101),
        used_ns=106,
        user=(108, 107),
        order=9,
        huge=False,
        deep=True,
        user_kind=wire.OUTSIDE_TREE,
        name="dev/zero",
    )
    assert alive == gone._replace(gone_us=0, size_bytes=109, pages=110, swapped_pages=111)


def test_a_process_as_the_kernel_side_keeps_it(tmp_path: Path) -> None:
    process = KernelProcess.unpack(run_c(tmp_path, PROCESS))
    assert process[:-4] == (11, 12, 13, 14, 15, 20, 21, 16, 17, 18, wire.OUTSIDE_TREE, 7, 19)
    assert [raw.rstrip(b"\0") for raw in process[-2:]] == [b"sh", b"/bin/sh"]
    assert (process.comm.rstrip(b"\0"), process.titles()) == (b"ls", ("ls", "ls -l /"))


def test_what_user_space_reads_or_writes_without_the_rest(header: dict[str, int]) -> None:
    assert header[offset("region", "id")] == wire.REGION_ID_BYTES
    assert header[offset("process", "number")] == wire.PROCESS_NUMBER_BYTES
    assert header[offset("process", "kind")] == wire.PROCESS_KIND_BYTES
    assert header[offset("usage", "key.region")] == wire.USAGE_REGION_BYTES
