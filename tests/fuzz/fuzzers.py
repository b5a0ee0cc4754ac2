"""All of them, by name: a new one takes its place here."""

from __future__ import annotations

from tests.fuzz import (
    arguments,
    capture_bits,
    capture_cells,
    capture_journals,
    capture_schema,
    capture_sizes,
    elf_files,
    fleets,
    labels,
    procs,
    ring,
    words,
)

FUZZERS = {
    module.FUZZER.name: module.FUZZER
    for module in (
        *(capture_bits, capture_cells, capture_schema, capture_sizes, capture_journals, fleets),
        *(elf_files, procs, ring, labels, words, arguments),
    )
}
