"""What the content of a region says of its use: a name that a program keeps in its own memory. Pure."""

from __future__ import annotations

import re
import sys
from typing import Callable, NamedTuple

LOOK_PAGES = 32
"""Look at so many pages of a region, the first that have data."""
SHOWN = re.compile(r"[ -~]{1,80}")
"""What a hint may look like."""

# Modules write into their zone what its errors are about, as ngx_http_limit_req_init_zone() does: in limit_req zone "x"
ZONE = re.compile(rb' in ([ !#-~]{1,30} "[ !#-~]{1,40}")\0')
# PARALLEL_MAGIC in parallel.c, PG_LOGICAL_APPLY_SHM_MAGIC in applyparallelworker.c
SEGMENTS = {0x50477C7C: "parallel query", 0x787CA067: "parallel apply"}


class Hint(NamedTuple):
    """How to read what the regions of a program are for."""

    comm: str
    """The name of a process that maps it begins with this."""
    kind: str
    """Of the region."""
    read: Callable[[bytes], str | None]
    """From the first pages; None: they say nothing."""


def _zone(content: bytes) -> str | None:
    found = ZONE.search(content)
    return found[1].decode() if found else None


def _segment(content: bytes) -> str | None:
    return SEGMENTS.get(int.from_bytes(content[:4], sys.byteorder))


HINTS = [Hint("nginx", "anon", _zone), Hint("postgres", "posix", _segment)]


def find(comm: str, kind: str) -> Hint | None:
    """How to read regions of this kind that a process with this name maps; None: their content says nothing."""
    return next((hint for hint in HINTS if comm.startswith(hint.comm) and kind == hint.kind), None)
