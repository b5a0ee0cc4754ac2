"""Tells the service manager how a service is doing: sd_notify(3), which is a datagram to a socket."""

from __future__ import annotations

import contextlib
import os
import socket

from tracer.formatting import printable

READY, STOPPING = "READY=1", "STOPPING=1"


def tell(state: str, status: str = "") -> None:
    """Tell the service manager a state, and a line for people. If there is none, or it does not listen, do nothing."""
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return
    message = "\n".join(filter(None, [state, f"STATUS={printable(status)}" if status else ""]))
    # systemd.exec(5): a place that begins with @ is in the abstract namespace
    address = f"\0{place[1:]}" if place.startswith("@") else place
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
        sender.sendto(message.encode(), address)
