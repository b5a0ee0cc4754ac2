"""shmtrace: who grew the shared memory?

The data goes one way, and a module imports only what stands before it on the road:

    kernel ── bpf/ ──► probes ──► events ─┐
                                  ledger ─┼─► trace ──► capture ──► account ──► views
    /proc ──────────────────────► procfs ─┘          (one SQLite file)  (pure)

Only the two ends touch the world: ``procfs`` reads /proc, ``probes`` is the one module that imports bcc.
"""

__version__ = "0.1.0"
