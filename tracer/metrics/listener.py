"""Serves pages over HTTP to whoever may connect.

Any user of the host may connect to a loopback address, and hold a connection. So there is a time, a size and a number
for all that a client can hold; when too many are open the oldest one is closed, not the new one refused.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Optional

from tracer.address import Address
from tracer.errors import ShmtraceError

MOST_OPEN = 16
PAUSE_S = 0.01  # after a connection, before the next is accepted: they take time from the trace
PATIENCE_S = 5.0  # for the next bytes from or to a client
MAX_REQUEST_BYTES = 1 << 14

Page = Callable[[Optional[str]], Optional[tuple[str, bytes]]]
"""Returns (content type, content) for a request's header Accept, None: there is none yet. Other threads call it."""


class _Request:
    """What a client sends, up to MAX_REQUEST_BYTES."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_REQUEST_BYTES

    def readline(self, size: int) -> bytes:
        line: bytes = self._file.readline(min(size, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._file.close()


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _Request(self.rfile)

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client went, or was closed
            super().handle()

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if not page:
            self.send_error(404, "Not Found", f"there is {', '.join(self.server.pages)}")
            return
        found = page(self.headers.get("Accept"))
        if not found:
            self.send_error(503, "Service Unavailable", "the trace has not begun")
            return
        content_type, content = found
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing: it would be text from strangers."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address, pages: Mapping[str, Page]) -> None:
        self.address_family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
        self.pages = pages
        self._open: dict[socket.socket, None] = {}
        super().__init__((str(address.ip), address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open[request] = None
        if len(self._open) > MOST_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)
        time.sleep(PAUSE_S)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client can make a handler fail, but no more than that."""


class Listener:
    """Serves in a thread, as a context manager. Entering it raises ShmtraceError where it cannot listen."""

    def __init__(self, address: Address, pages: Mapping[str, Page]) -> None:
        """pages: by path."""
        self._address = address
        self._pages = pages

    def __enter__(self) -> Listener:
        try:
            self._server = _Server(self._address, self._pages)
        except OSError as error:
            raise ShmtraceError(f"cannot listen at {self._address} ({error.strerror})", "give another") from None
        self.url = f"http://{self._address._replace(port=self._server.server_address[1])}"
        Thread(target=self._serve, name="metrics", daemon=True).start()
        return self

    def _serve(self) -> None:
        # A client that has hung up must not end the trace, as whoever reads its output may. Threads that are started
        # here have the mask, too: the write fails with EPIPE then.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
        self._server.serve_forever()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
