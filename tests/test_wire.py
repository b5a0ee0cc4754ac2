"""bpf/wire.h and tracer/wire.py say the same: a C compiler is asked for each size, offset and number of the header."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer import events, wire
from tracer.events import Absent, Head
from tracer.probes import KernelRegion
from tracer.procfs import RegionKey

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
    "region": [wire.REGION],
    "part": [wire.PART],
    "block": [wire.BLOCK],
    "filter": [wire.FILTER],
    "range": [wire.RANGE],
    "ranges": [wire.RANGES_HEAD, *[wire.RANGE] * wire.MAX_RANGES],
    "process": [wire.PROCESS],
    "usage_key": [wire.USAGE_KEY],
    "usage": [wire.USAGE],
    "behalf_key": [wire.BEHALF_KEY],
    "stack": [wire.STACK],
    "stacked_key": [wire.STACKED_KEY],
    "event": [wire.EVENT],
    "event_fork": [wire.EVENT, wire.FORK],
    "event_exec": [wire.EVENT, wire.EXEC],
    "event_exit": [wire.EVENT, wire.EXIT],
    "event_region": [wire.EVENT, wire.NEW_REGION],
    "event_gone": [wire.EVENT, wire.GONE],
    "event_segment": [wire.EVENT, wire.SEGMENT],
    "event_touch": [wire.EVENT, wire.TOUCH],
    "event_punch": [wire.EVENT, wire.PUNCH],
    "texts": [wire.TEXTS],
    "label": [wire.LABEL],
    "event_label": [wire.EVENT, wire.LABEL_SINCE, wire.TEXTS],
}

EVENTS = r"""
    struct event_fork fork = {
        .event = {.time_ns = 11, .start_time_ns = 12, .tgid = 13, .type = EVENT_FORK},
        .parent_start_time_ns = 14, .parent_tgid = 15, .shares_memory = 16, .comm = "php-fpm"};
    struct event_exec exec = {
        .event = {.time_ns = 21, .start_time_ns = 22, .tgid = 23, .type = EVENT_EXEC},
        .title_bytes = 7, .tracked = 1, .comm = "ls", .title = "ls\0-l /\0beyond"};
    struct event_exit exit = {
        .event = {.time_ns = 31, .start_time_ns = 32, .tgid = 33, .type = EVENT_EXIT},
        .title_bytes = 6, .comm = "sleep", .title = "sleep\0beyond"};
    struct event_region region = {
        .event = {.time_ns = 41, .start_time_ns = 42, .tgid = 43, .type = EVENT_REGION},
        .key = {.ino = 44, .generation = 45, .dev = 8 << 20 | 300},
        .size_bytes = 46, .made_ns = 401, .maker_start_time_ns = 402, .maker_tgid = 403,
        .id = 47, .magic = 48, .name_bytes = 8, .name = "dev/zerobeyond"};
    struct event_gone gone = {
        .event = {.time_ns = 51, .start_time_ns = 52, .tgid = 53, .type = EVENT_GONE},
        .key = {.ino = 54, .generation = 55, .dev = 1}, .id = 56};
    struct event_segment segment = {
        .event = {.time_ns = 61, .start_time_ns = 62, .tgid = 63, .type = EVENT_SEGMENT}, .shmid = 64};
    struct event_touch touch = {
        .event = {.time_ns = 71, .start_time_ns = 72, .tgid = 73, .type = EVENT_TOUCH},
        .id = 74, .stranger = 1, .comm = "cat"};
    struct event_label label = {
        .event = {.time_ns = 91, .start_time_ns = 92, .tgid = 93, .type = EVENT_LABEL},
        .since_us = 94, .lost_us = 95,
        .texts = {.bytes = {8, TEXT_NONE, TEXT_UNREADABLE, 130}}};
    memcpy(label.texts.text, "/a\xff.php", 8);
    memset(label.texts.text + 3 * TEXT_BYTES, 'x', 127);
    memcpy(label.texts.text + 3 * TEXT_BYTES + 127, "\u00e4", 2);
    struct event_punch punch = {
        .event = {.time_ns = 81, .start_time_ns = 82, .tgid = 83, .type = EVENT_PUNCH},
        .first = 84, .end = 85, .id = 86};
"""
DECODED = {
    "fork": events.Fork(Head(11, 12, 13), parent_tgid=15, parent_start_time_ns=14, comm="php-fpm"),
    "exec": events.Exec(Head(21, 22, 23), "ls", "ls", "ls -l /", tracked=True),
    "exit": events.Exit(Head(31, 32, 33), "sleep", "sleep"),
    "region": events.Region(
        Head(41, 42, 43),
        RegionKey(os.makedev(8, 300), 44, 45),
        id=47,
        vss_bytes=46,
        file_system=48,
        name="dev/zero",
        made=Head(401, 402, 403),
    ),
    "gone": events.Gone(Head(51, 52, 53), 56, RegionKey(1, 54, 55)),
    "segment": events.Segment(Head(61, 62, 63), 64),
    "touch": events.Touch(Head(71, 72, 73), 74, comm="cat", stranger=True),
    "label": events.Label(Head(91, 92, 93), 94, 95, ("/a\\xff.php", Absent.NONE, Absent.UNREADABLE, "x" * 127 + "…")),
    "punch": events.Punch(Head(81, 82, 83), id=86, first=84, end=85),
}

# An entry of the map of regions; what user space does not read is there, and between what it does.
REGION = r"""
    struct region region = {
        .key = {.ino = 91, .generation = 92, .dev = 1}, .mapping = ~0ULL - 93, .size_bytes = 94, .pages = 95,
        .swapped = 96, .peak_pages = 103, .start_pages = 104, .gone_us = 97, .torn_pages = 98, .punched_us = 99,
        .made_ns = 100, .maker_start_time_ns = 101, .maker_tgid = 102, .id = 105, .huge = 0, .told = 1,
        .order = 9};
    fwrite(&region, sizeof region, 1, stdout);
"""


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
    expressions = [*DEFINES, *enumerators("loss"), *enumerators("event_type"), *enumerators("text_how")]
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
    assert header["sizeof(struct ranges)"] == wire.RANGES_BYTES
    assert wire.TGID.size == wire.REGION_ID.size == 4


@pytest.mark.parametrize("name", [*DEFINES, *enumerators("event_type"), *enumerators("text_how")])
def test_numbers(name: str, header: dict[str, int]) -> None:
    assert header[name] == getattr(wire, name)


def test_losses_are_in_the_order_of_their_counters(header: dict[str, int]) -> None:
    *names, end = enumerators("loss")
    assert [header[name] for name in names] == list(range(len(wire.LOSSES)))
    assert header[end] == len(wire.LOSSES)
    for name, loss in zip(names, wire.LOSSES):
        assert loss.startswith(name[len("LOST_") :].lower())


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
    assert KernelRegion.unpack(run_c(tmp_path, REGION)) == KernelRegion(
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
        order=9,
        huge=False,
        told=True,
    )
