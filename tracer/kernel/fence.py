"""A memory barrier, between reads of what BPF programs write on other CPUs.

arm64 may carry out loads and stores in another order than that of the program; x86 may load before an earlier store.
"""

from __future__ import annotations

import threading


def fence() -> None:
    """Whatever memory was read or written before this was so before what is read or written after it.

    A lock is given back by a store-release and taken by a load-acquire: these two stay in order on all machines.
    """
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()
