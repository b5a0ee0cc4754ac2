"""What reading the ledger's words takes, a page: of regions of four GiB, as processes may have touched them."""

from __future__ import annotations

import time
from array import array
from functools import partial

from tests.bench.rounds import print_table, run_rounds
from tracer.capture.capture import Capture
from tracer.clock import Clock
from tracer.kernel.maps import Block
from tracer.record import ledger
from tracer.record.ledger import ALL_PAGES, PageSet
from tracer.record.processes import Processes
from tracer.wire import BLOCK_PAGES, WHEN_BITS, WORD_ABSENT

PAGES = 1 << 20
PAGES_PER_MS = 4000  # so all of them within a second
TGIDS = range(5000, 5008)


def sparse() -> dict[int, Block]:
    """A page of each block, of those that as many words are in."""
    absent = [WORD_ABSENT] * (BLOCK_PAGES - 1)
    return {
        number: Block(array("Q", [TGIDS[0] << WHEN_BITS | number, *absent]), 0)
        for number in range(PAGES // BLOCK_PAGES)
    }


def blocks_of(nr_tgids: int, turn_pages: int) -> dict[int, Block]:
    """Touched from the first page to the last, by turns."""
    words = [TGIDS[page // turn_pages % nr_tgids] << WHEN_BITS | page * 1000 // PAGES_PER_MS for page in range(PAGES)]
    return {
        start // BLOCK_PAGES: Block(array("Q", words[start : start + BLOCK_PAGES]), 0)
        for start in range(0, PAGES, BLOCK_PAGES)
    }


def bench(rounds: int) -> None:
    with Capture() as capture:
        lives = Processes(capture, Clock.start())
        for tgid in TGIDS:
            lives.begin(tgid, tgid, None, "storm", "storm", began_us=-1)

        def us_per_page(blocks: dict[int, Block]) -> float:
            began_s = time.process_time()
            ledger.read(blocks, PageSet([]), ALL_PAGES, lives.during)
            return (time.process_time() - began_s) * 1e6 / PAGES

        ledgers = {
            "one process": blocks_of(1, PAGES),
            "8 processes, 16 pages by turns": blocks_of(8, 16),
            "one page of 64": sparse(),
        }
        variants = {name: partial(us_per_page, blocks) for name, blocks in ledgers.items()}
        measured = run_rounds(variants, rounds)
    print_table("reading the ledger of a million pages", "us a page", measured, {"one process": "0.15 us"})
