"""Hands out the metrics of a running trace: in a file for node_exporter, and to those who ask for them.

And a profile of what grew, which takes longer to make, so only if somebody asks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tracer import account, binaries
from tracer.address import Address
from tracer.capture.capture import Capture
from tracer.errors import ShmtraceError
from tracer.growth import Growth
from tracer.metrics import families
from tracer.metrics.listener import Listener
from tracer.metrics.series import Totals
from tracer.metrics.textfile import Textfile
from tracer.model import Account
from tracer.views import pprof

EVERY_S = 5.0
IDLE = 50  # times as long as reading took: at most a fiftieth of a CPU
MOST_S = 240.0  # but at least so often: figures of five minutes ago count for nothing (ShmtraceStale)
METRICS, PROFILE = "/metrics", "/debug/pprof/shmem"
WAIT_S = 10.0  # for a profile
MOST_WAITING = 8  # at a time: each has a thread and a descriptor, whether or not its client is there still
MOST_SAMPLES = 10_000  # Pyroscope takes no profile of more than 16,000


class Exporter:
    """Reads the account of a running trace now and then, as a context manager. On exit there are no metrics any more.

    Entering it raises ShmtraceError where the metrics cannot be written or served.
    """

    def __init__(self, textfile: Path | None, address: Address | None, say: Callable[[str], None]) -> None:
        """textfile: written each time; None: none. address: where to serve; None: nowhere. say: called with what the
        user should know.
        """
        self._path = textfile
        self._textfile: Textfile | None = None
        self._address = address
        self._say = say
        self._said: str | None = None
        self._totals = Totals()
        self._pages: dict[str, bytes] = {}
        self._at_s = 0.0
        self._profile = _Profile()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Exporter:
        if self._path:
            self._textfile = Textfile(self._path)
            self._undo.callback(self._textfile.remove)
        if self._address:
            pages = {METRICS: self._page, PROFILE: self._profile.page}
            listener = self._undo.enter_context(Listener(self._address, pages))
            self._say(f"metrics are at {listener.url}{METRICS}")
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def look(self, capture: Capture) -> None:
        """Read the account if it is time to. Call it often, in the thread that has opened the capture."""
        is_due = time.monotonic() >= self._at_s
        if is_due or self._profile.is_wanted:
            began_s = time.monotonic()
            read = account.read(capture)
            if is_due:
                self._collect(read, began_s)
            if self._profile.is_wanted:
                self._profile.make(read, capture, began_s)

    def settle(self, capture: Capture) -> None:
        """Count what is in the capture, for some of it is to be dropped."""
        began_s = time.monotonic()
        read = account.read(capture)
        self._collect(read, began_s)
        if self._address:
            self._profile.add(read, capture)

    def _collect(self, read: Account, began_s: float) -> None:
        """began_s: time.monotonic() before the account was read."""
        metrics = list(families.families([(None, self._totals.add(read))], read.session))
        self._pages = {
            families.PLAIN: families.plain(metrics),
            families.OPEN: b"".join(families.open_metrics(metrics)),
        }
        if self._textfile:
            self._write(self._textfile)
        self._at_s = began_s + min(max(EVERY_S, IDLE * (time.monotonic() - began_s)), MOST_S)

    def _page(self, accept: str | None) -> tuple[str, bytes] | None:
        form = families.accepted(accept)
        page = self._pages.get(form)
        return None if page is None else (form, page)

    def _write(self, textfile: Textfile) -> None:
        said = None
        try:
            textfile.write(self._pages[families.PLAIN])
        except (OSError, ShmtraceError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            said = f"{self._path} is not written, and the trace goes on without it: {reason}"
            if said != self._said:
                self._say(said)
        self._said = said


class _Profile:
    """What is held, and what grew since the trace began. Who asks waits until the trace's thread has made it."""

    def __init__(self) -> None:
        self._growth = Growth(most=MOST_SAMPLES)
        self._made: bytes | None = None
        self._at_s = 0.0
        self._nr_made = self._nr_waiting = 0
        self.is_wanted = False
        self._changed = threading.Condition()

    def page(self, _accept: str | None) -> tuple[str, bytes] | None:
        """The profile as of now, or the last one if it is too early for another or too many wait; None: none was made
        in time.
        """
        with self._changed:
            is_due = self._made is None or time.monotonic() >= self._at_s
            if is_due and self._nr_waiting < MOST_WAITING:
                self.is_wanted, nr_made = True, self._nr_made
                self._nr_waiting += 1
                self._changed.wait_for(lambda: self._nr_made > nr_made, WAIT_S)
                self._nr_waiting -= 1
            return None if self._made is None else ("application/octet-stream", self._made)

    def make(self, read: Account, capture: Capture, began_s: float) -> None:
        """Make one, for those who wait. began_s: time.monotonic() before the account was read."""
        self.add(read, capture)
        made = b"".join(pprof.render(self._growth))
        with self._changed:
            self._made, self.is_wanted, self._nr_made = made, False, self._nr_made + 1
            self._at_s = began_s + IDLE * (time.monotonic() - began_s)
            self._changed.notify_all()

    def add(self, read: Account, capture: Capture) -> None:
        """Add what the capture has to what grew."""
        self._growth.add(read, binaries.read(capture))
