"""The structures shared with the BPF programs: bpf/wire.h as struct formats.

tests/test_wire.py compiles the header and compares all sizes and offsets with these.
"""

from __future__ import annotations

import struct

COMM_BYTES, TITLE_BYTES, EARLIER_BYTES, NAME_BYTES = 16, 256, 64, 64
MAX_WANTED, LETTERS = 4, 8
BLOCK_PAGES = 64
SLOT_BITS = 16
MAX_TEXTS, TEXT_BYTES, SHOWN_BYTES = 4, 136, 128
TEXTS_BYTES = MAX_TEXTS * TEXT_BYTES
TEXT_IN_PLACE, TEXT_POINTED_TO, TEXT_TITLE, TEXT_NOTED = range(4)
TEXT_NONE, TEXT_UNREADABLE = -1, -2
STACK_DEPTH, NO_STACK = 127, 0
NR_OOMS, UNKNOWN_PAGES = 64, -1
WHEN_BITS = 42
WORD_ABSENT, WORD_EXISTED, WORD_FREED, WORD_REAPPEARED = range(4)
FREE_BLOCK, FREE_PROCESS, FREE_REGION, FREE_USAGE, NR_FREE = range(5)
EVENT_NEWS, EVENT_PUNCH, EVENT_LABEL = range(1, 4)

# maps
TGID = REGION_ID = struct.Struct("=I")
REGION_KEY = struct.Struct("=QII")
REGION = struct.Struct(f"=QII{'Q' * 16}{'I' * 8}{NAME_BYTES}s")
REGION_ID_BYTES = struct.calcsize("=QII16QII")  # offset of the id
PART = struct.Struct("=II")
BLOCK = struct.Struct(f"={BLOCK_PAGES}QQQII")  # words, torn, number, part
# start by CLOCK_MONOTONIC and CLOCK_BOOTTIME, everything, watches_execs, only_dev, armed, few; the rest is the kernel's
STATE = struct.Struct(f"=QQIIII{NR_FREE}IQQq")
WANTED = struct.Struct(f"={MAX_WANTED}Q{MAX_WANTED}QQ")  # letters, masks, count
EXITED, OOM_KILLED = 1 << 16, 1 << 17
OF_TREE, WATCHED, OUTSIDE_TREE = range(3)
PROCESS = struct.Struct(f"=QQQQQQQIIIIIIII{COMM_BYTES}s{TITLE_BYTES}s{COMM_BYTES}s{EARLIER_BYTES}s")
PROCESS_READ_BYTES = struct.calcsize("=6Q")  # offset of read_ns; below, those of number and kind
PROCESS_NUMBER_BYTES, PROCESS_KIND_BYTES = struct.calcsize("=7Q"), struct.calcsize("=7QIII")
OOM = struct.Struct(f"=QQQQQQqqqII{COMM_BYTES}s")
OOM_NUMBER_BYTES = struct.calcsize("=QQ")  # offset of the number
ASKER = struct.Struct("=QQ")  # for a SysV segment: start time, tgid
USAGE_KEY = struct.Struct("=IIQ")
USAGE = struct.Struct(f"=QQIIQII{COMM_BYTES}s")  # faults, freed pages, key, kind, reserved, comm
USAGE_REGION_BYTES = struct.calcsize("=QQ")  # offset of the region id
MADE_FOR_KEY = struct.Struct("=QQIIII")
LABEL = struct.Struct(f"={MAX_TEXTS}Q{MAX_TEXTS}IQ{MAX_TEXTS}q{TEXTS_BYTES}s{TEXT_BYTES}siIII")
STACK = struct.Struct(f"={STACK_DEPTH}QQ")  # addresses, count
STACKED_KEY = struct.Struct("=QQII")
COUNT = struct.Struct("=Q")
NR_ROOM = 12  # counts in the map `room`; the last ones:
RECYCLED = ("processes", "regions", "pages")
LOSSES = ("events", "processes", "regions", "usages", "pages", "mappings", "labels", "stacks")

# events: EVENT, then one of the following
EVENT = struct.Struct("=QII")
PUNCH = struct.Struct("=QQII")
TEXTS = struct.Struct(f"={MAX_TEXTS}q{TEXTS_BYTES}s")  # lengths, then all texts
LABEL_SINCE = struct.Struct("=QQ")
