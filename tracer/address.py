"""Where to listen for connections."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple


class Address(NamedTuple):
    """Where to listen."""

    ip: IPv4Address | IPv6Address
    port: int
    """0: any that is free"""

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"
