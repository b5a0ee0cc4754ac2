"""Where the code of stacks is: which file of code each frame is in, and at which address. Pure."""

from __future__ import annotations

from typing import NamedTuple

from tracer.capture.capture import Capture

ADDRESS_END = 1 << 61
"""No segment reaches beyond: linkers put none there, and profiles add to its addresses."""


class Binary(NamedTuple):
    """A segment of code of a file, from and to whole pages, as it is laid out before it is loaded anywhere."""

    path: str
    build_id: str | None
    """in hexadecimal; None: unknown, or it has none"""
    address: int
    """as objdump shows it; of a file whose layout is unknown, the offset"""
    size_bytes: int
    offset_bytes: int
    """in the file"""

    def has(self, address: int) -> bool:
        """Whether an address is in it."""
        end = self.address + self.size_bytes
        return 0 <= self.address <= address < end <= ADDRESS_END


Places = dict[int, dict[int, tuple[Binary, int]]]
"""The binary and the address of frames: by row of the stack in the capture, and by its line from 0 on, callers first.

The address is as addr2line takes it: of a function that has a name, where it begins."""


def read(capture: Capture) -> Places:
    """All that a capture has; what contradicts itself is left out.

    Of files with one build ID, as in several containers, all have the path of the first.
    """
    first: dict[Binary, Binary] = {}
    binaries = {}
    for row, *fields in capture.each(BINARIES):
        binary = Binary(*fields)
        binaries[row] = first.setdefault(binary._replace(path="") if binary.build_id else binary, binary)
    found: Places = {}
    for stack, line, row, address in capture.each(FRAMES):
        binary = binaries[row]
        if binary.has(address):
            found.setdefault(stack, {})[line] = binary, address
    return found


BINARIES = f"SELECT id, {', '.join(Binary._fields)} FROM binary"  # noqa: S608
FRAMES = "SELECT stack, line, binary, address FROM frame"
