"""What reading the ledger's words takes, a page: of regions of four GiB, as processes may have touched them."""

from __future__ import annotations

import time
from functools import partial

from tests.bench.rounds import print_table, run_rounds
from tracer import ledger
from tracer.capture import Capture
from tracer.clock import Clock
from tracer.ledger import ALL_PAGES, Block, PageSet
from tracer.lives import Lives
from tracer.wire import BLOCK_PAGES, WHEN_BITS

PAGES = 1 << 20
PAGES_PER_MS = 4000  # so all of them within a second
TGIDS = range(5000, 5008)


def blocks_of(nr_tgids: int, turn_pages: int) -> dict[int, Block]:
    """Touched from the first page to the last, by turns."""
    words = [TGIDS[page // turn_pages % nr_tgids] << WHEN_BITS | page * 1000 // PAGES_PER_MS for page in range(PAGES)]
    return {
        start // BLOCK_PAGES: Block(tuple(words[start : start + BLOCK_PAGES]), 0)
        for start in range(0, PAGES, BLOCK_PAGES)
    }


def bench(rounds: int) -> None:
    with Capture() as capture:
        lives = Lives(capture, Clock.start())
        for tgid in TGIDS:
            lives.begin(tgid, tgid, None, "storm", "storm", began_us=-1)

        def us_per_page(blocks: dict[int, Block]) -> float:
            began_s = time.monotonic()
            ledger.read(blocks, PageSet([]), ALL_PAGES, lives.during)
            return (time.monotonic() - began_s) * 1e6 / PAGES

        ledgers = {"one process": blocks_of(1, PAGES), "8 processes, 16 pages by turns": blocks_of(8, 16)}
        variants = {name: partial(us_per_page, blocks) for name, blocks in ledgers.items()}
        measured = run_rounds(variants, rounds)
    print_table("reading the ledger of a million pages", "us a page", measured, {"one process": "0.15 us"})
