"""shmtrace: who grew the shared memory?

Data flows from left to right:

    kernel (bpf/) ──► kernel ─┐
                              ├─► record ──► capture ──► account ──► tables ──► views ──► cli
    /proc ──────────► proc ───┘          (one SQLite file)

A module imports only from its own folder and from those above it in this list:

proc: reads /proc and the files behind mappings.
kernel: loads the BPF programs and reads their maps and events; kernel/compiler.py alone imports bcc.
capture: the SQLite file, its schema, and the checks before it is read.
record: joins events, ledger and /proc, and writes the capture.
account: attributes each page to the process that touched it first, and each region to a parent. Pure.
tables: the account by time, cgroup, label or stack, and the difference of two accounts.
views: the account and its tables as text, JSON, HTML and screens.
cli: the commands.

tests/test_layers.py has the full order and checks every import against it.
"""

__version__ = "0.1.0"
