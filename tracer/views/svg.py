"""An account as a flame graph that a browser shows: one SVG file, which loads nothing else.

The root is at the top. A frame is as wide as its share of all bytes, and its title has the figures; browsers show it
where the pointer rests. The stacks and their sum are those of views/flamegraph.py. Frames too narrow to be seen are
drawn as one, after their neighbours. A click zooms in, Escape zooms out.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from html import escape
from typing import NamedTuple

from tracer.alike import VARIES
from tracer.formatting import fit, format_bytes, printable
from tracer.model import Account
from tracer.shipped import shipped
from tracer.views import flamegraph
from tracer.views.json import rfc3339

WIDTH_PX, ROW_PX, TOP_PX = 1200, 20, 48
COLUMN_PX, MARGIN_PX = 7.3, 3  # of a text in 12 px monospace; flamegraph.js has the same
NARROWEST_PX = 0.1
MAX_FRAMES = 20_000  # drawn, the largest first
MAX_DEPTH = 150  # rows; deeper frames are left out
MAX_COLUMNS = 400  # of a name in a title
NR_COLOURS = 6
STYLE, SCRIPT = (shipped(f"views/page/flamegraph.{kind}") for kind in ("css", "js"))


@dataclasses.dataclass
class Frame:
    """A frame of all stacks that begin alike, with the frames below it by name."""

    size_bytes: int = 0
    below: dict[str, Frame] = dataclasses.field(default_factory=dict)


class Placed(NamedTuple):
    """A frame and where it is drawn."""

    name: str
    frame: Frame
    depth: int
    from_bytes: int
    """bytes of the frames to its left"""
    is_rest: bool = False
    """it stands for several frames, each too narrow"""


def render(account: Account) -> Iterator[str]:
    """The SVG document, one frame to a line."""
    root, nr_frames = _tree(flamegraph.stacks(account))
    placed = _placed(root)
    session = account.session
    height_px = TOP_PX + ROW_PX * (1 + max(each.depth for each in placed))
    heading = (
        f"Shared memory of {printable(session.host)}, {rfc3339(session.started_ns)} to {rfc3339(session.ended_ns)}"
    )
    left_out = nr_frames - sum(not each.is_rest for each in placed)
    hint = "A click zooms in, Escape zooms out." + f" {left_out} frames are too small to be drawn." * bool(left_out)
    # save() knows an earlier output by its beginning, so this must be of no other program's SVG
    yield (
        f'<svg id="shmtrace" xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX}" height="{height_px}"'
        f' viewBox="0 0 {WIDTH_PX} {height_px}">\n'
        f"<style>{escape(STYLE.read_text('utf-8'))}</style>\n"
        f'<rect class="ground" width="100%" height="100%"/>\n'
        f'<text x="{MARGIN_PX}" y="18">{escape(_cut(heading, WIDTH_PX))}</text>\n'
        f'<text x="{MARGIN_PX}" y="36">{hint}</text>\n'
    )
    for each in placed:
        yield _drawn(each, root.size_bytes, session.page_bytes)
    yield f"<script>{escape(SCRIPT.read_text('utf-8'))}</script>\n</svg>\n"


def _tree(stacks: Iterable[flamegraph.Stack]) -> tuple[Frame, int]:
    """The frame of all stacks, and the number of frames."""
    root, nr_frames = Frame(), 1
    for stack in stacks:
        frame = root
        frame.size_bytes += stack.size_bytes
        for name in stack.frames:
            if name not in frame.below:
                frame.below[name] = Frame()
                nr_frames += 1
            frame = frame.below[name]
            frame.size_bytes += stack.size_bytes
    return root, nr_frames


def _placed(root: Frame) -> list[Placed]:
    """The frames that are wide enough, at most MAX_FRAMES, none without that above it."""
    narrowest_bytes = root.size_bytes * NARROWEST_PX / WIDTH_PX
    placed = [Placed("all regions", root, 0, 0)]
    for each in placed:  # which grows
        from_bytes, depth, rest = each.from_bytes, each.depth + 1, []
        for name, frame in each.frame.below.items() if depth < MAX_DEPTH else ():
            if frame.size_bytes < narrowest_bytes:
                rest.append(frame.size_bytes)
            else:
                placed.append(Placed(name, frame, depth, from_bytes))
                from_bytes += frame.size_bytes
        if rest and sum(rest) >= narrowest_bytes:
            placed.append(Placed(f"[{len(rest)} smaller]", Frame(sum(rest)), depth, from_bytes, is_rest=True))
    return sorted(placed, key=lambda each: (-each.frame.size_bytes, each.depth))[:MAX_FRAMES]


def _drawn(each: Placed, all_bytes: int, page_bytes: int) -> str:
    name, size_bytes = printable(each.name), each.frame.size_bytes
    scale = WIDTH_PX / max(all_bytes, 1)
    width_px = size_bytes * scale if each.depth else WIDTH_PX
    share = 100 * size_bytes / max(all_bytes, 1)
    title = f"{fit(name, MAX_COLUMNS)}\n{format_bytes(size_bytes)}, {size_bytes // page_bytes} pages, {share:.1f}%"
    text = _cut(name, width_px)
    return (
        f'<svg class="{_classes(each)}" x="{each.from_bytes * scale:.2f}" y="{TOP_PX + ROW_PX * each.depth}"'
        f' width="{width_px:.2f}" height="{ROW_PX - 1}" data-from="{each.from_bytes}" data-bytes="{size_bytes}">'
        f"<title>{escape(title)}</title>"
        f'<rect width="100%" height="100%"/>'
        + f'<text x="{MARGIN_PX}" y="14">{escape(text)}</text>' * bool(text)
        + "</svg>\n"
    )


def _cut(text: str, width_px: float) -> str:
    """As much of a text as fits; nothing, if that would be its first character alone."""
    columns = int((width_px - 2 * MARGIN_PX) / COLUMN_PX)
    return fit(text, columns) if columns > 2 else ""


def _classes(each: Placed) -> str:
    """What is alike has one colour; what has no name of its own has none."""
    if not each.depth:
        return "frame none root"
    if each.name.startswith("["):
        return "frame none"
    name = VARIES.sub("", each.name).strip()
    return f"frame c{zlib.crc32(name.encode('utf-8', 'replace')) % NR_COLOURS}"
