"""Writes a unit for systemd that runs `shmtrace record`."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from tracer.errors import ShmtraceError
from tracer.record.armed import STATE
from tracer.service import public
from tracer.shipped import shipped

PLACE = Path("/etc/systemd/system/shmtrace.service")
MARK = "# Written by `shmtrace install-service`, which writes it anew unless it is edited: sha256 "
MAX_BYTES = 1 << 16
PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+", re.ASCII)
EDITED = f"`rm {PLACE}` has it written anew; `systemctl edit shmtrace` keeps changes in a file of their own"


NO_NETWORK = "RestrictAddressFamilies=AF_UNIX\nIPAddressDeny=any"
LOOPBACK = "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\nIPAddressDeny=any\nIPAddressAllow=localhost"
NETWORK = "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"


def render(arguments: Sequence[str], paths: Collection[Path], address: IPv4Address | IPv6Address | None = None) -> str:
    """The unit. arguments: of `shmtrace record`. paths: of files that it writes, absolute. address: where it
    listens.

    Raises ShmtraceError where an argument cannot stand in a unit.
    """
    command, environment = _command()
    lines = [f"Environment={_quoted(f'{name}={value}', dollar='$')}" for name, value in environment.items()]
    lines.append("ExecStart=" + " ".join(_quoted(word) for word in [*command, "record", *arguments]))
    outside = sorted({path.parent for path in paths if STATE not in path.parents})
    writable = " ".join(_quoted(str(directory), dollar="$") for directory in outside)
    template = shipped("service/shmtrace.service").read_text()
    text = template.replace("@EXEC@", "\n".join(lines))
    text = text.replace("@WRITABLE@\n", f"ReadWritePaths={writable}\n" if writable else "")
    text = text.replace("@NETWORK@", (LOOPBACK if address.is_loopback else NETWORK) if address else NO_NETWORK)
    return f"{MARK}{_hash(text)}\n{text}"


def install(text: str, place: Path = PLACE) -> bool:
    """Write the unit, and return whether it was another before. Raises ShmtraceError, also where somebody else's is."""
    try:
        before = public.read(place, MAX_BYTES)
        if before is not None and not _is_own(before.decode(errors="replace")):
            raise ShmtraceError(f"{place} was not written by this command, or edited since", EDITED)
        public.write(place, text.encode())
    except FileNotFoundError:
        raise ShmtraceError(f"there is no {place.parent}", "--print shows the unit, for another host") from None
    except public.NotAFileError:
        raise ShmtraceError(f"{place} is no regular file", "`systemctl unmask shmtrace`, or remove it") from None
    except OSError as error:
        raise ShmtraceError(
            f"{place} cannot be written ({error.strerror})", "run it as root (sudo shmtrace …)"
        ) from None
    return before is not None


def _is_own(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return first == MARK + _hash(rest)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _command() -> tuple[list[str], dict[str, str]]:
    """How this shmtrace is run, and the environment that takes."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "__main__.py":  # python -m tracer, in a checkout
        return [sys.executable, "-m", "tracer"], {"PYTHONPATH": str(script.parents[1])}
    return [sys.executable, str(script)], {}


def _quoted(word: str, dollar: str = "$$") -> str:
    """A word of a unit: systemd.syntax(7) and systemd.service(5). dollar: how one stands there.

    Raises ShmtraceError for what cannot be told in a line.
    """
    if not word.isprintable():
        raise ShmtraceError(f"{ascii(word)[:80]} cannot stand in a unit", "leave out what is not printable")
    if PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", dollar)
    return f'"{escaped}"'
